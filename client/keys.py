"""A site's key pair: made here, kept here; only the public half is meant to leave."""

from __future__ import annotations

import base64
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey


def make_key_pair(private: Path, public: Path, comment: str) -> None:
    """Write what `ssh-keygen -t ecdsa -b 384` would: an OpenSSH private key, mode 0600, and its .pub line.

    Raises:
        ValueError: one of the files is there already; a key is never overwritten.
    """
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    refuse_to_overwrite(private, public)
    key = ec.generate_private_key(ec.SECP384R1())
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    # O_EXCL and the mode at birth: at no moment is there a key that others can read or that was replaced.
    with os.fdopen(os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(secret)
    public.write_text(f"{public_line(key)} {comment}\n", encoding="ascii")


def refuse_to_overwrite(*paths: Path) -> None:
    """Raise ValueError if one of the files is there."""
    for path in paths:
        if path.exists() or path.is_symlink():
            raise ValueError(
                f"{path} is there already and is never overwritten. Move it away, or choose another --dir."
            )


def read_private_key(path: Path) -> EllipticCurvePrivateKey:
    """The private key of a site. Raises ValueError if the file does not hold a P-384 key without password."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key

    step = "Make a new pair with `wardround-site init` in another folder, and register the new public key."
    try:
        key = load_ssh_private_key(path.read_bytes(), None)
    except OSError as error:
        raise ValueError(f"key.private: {path} cannot be read: {error.strerror}. {step}") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ValueError(
            f"key.private: {path} holds no OpenSSH private key without a password. {step}"
        ) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        raise ValueError(f"key.private: {path} is no ECDSA key on P-384. {step}")
    return key


def public_line(key: EllipticCurvePrivateKey) -> str:
    """The public half as it stands in a .pub file, without the comment."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode("ascii")


def fingerprint(public: Path) -> str:
    """`SHA256:…` of a .pub file, as `ssh-keygen -lf` tells it; two people compare it by telephone."""
    digest = hashlib.sha256(base64.b64decode(public.read_text(encoding="ascii").split()[1])).digest()
    return f"SHA256:{base64.b64encode(digest).decode().rstrip('=')}"
