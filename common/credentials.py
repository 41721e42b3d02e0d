"""Key pairs, certificates and fingerprints: made once, kept secret, never overwritten.

A site has two pairs: ECDSA on P-384, with which Flower knows its node, and Ed25519, which signs its answers.
The coordinator has one of Ed25519. All are kept in OpenSSH form, as `ssh-keygen` writes them.
"""

from __future__ import annotations

import base64
import hashlib
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from wardround.common.files import write_atomically

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    PrivateKey = EllipticCurvePrivateKey | Ed25519PrivateKey

Kind = Literal["node", "signing"]
NEW_KEYS = "Make the site's files anew with `wardround-site init --invitation FILE`, and have it registered."
_CALLED = {"node": "an ECDSA key on P-384", "signing": "an Ed25519 key"}
_STARTS = {"node": "ecdsa-sha2-nistp384", "signing": "ssh-ed25519"}


def new_key(kind: Kind) -> PrivateKey:
    """A fresh private key."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    return (
        ec.generate_private_key(ec.SECP384R1())
        if kind == "node"
        else ed25519.Ed25519PrivateKey.generate()
    )


def write_key_pair(key: PrivateKey, private: Path, public: Path, comment: str) -> None:
    """Write the private key, mode 0600, and its .pub line.

    Raises:
        ValueError: one of the files is there already; a key is never overwritten.
    """
    refuse_to_overwrite(private, public)
    write_private_key(key, private)
    public.write_text(f"{public_line(key)} {comment}\n", encoding="ascii")


def private_text(key: PrivateKey) -> str:
    """A private key in OpenSSH form, not encrypted."""
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
    )

    return key.private_bytes(
        Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()
    ).decode("ascii")


def write_private_key(key: PrivateKey, path: Path) -> None:
    """A new file, mode 0600, whole or not there. Raises ValueError if something is there."""
    refuse_to_overwrite(path)
    write_atomically(
        path, lambda part: write_secret(part, private_text(key).encode("ascii"))
    )


def refuse_to_overwrite(*paths: Path) -> None:
    """Raise ValueError if one of the files is there."""
    for path in paths:
        if path.exists() or path.is_symlink():
            raise ValueError(
                f"{path} is there already and is never overwritten. Move it away, or choose another --dir."
            )


def write_secret(path: Path, content: bytes) -> None:
    """A new file that was never readable for others. Raises FileExistsError."""
    with os.fdopen(
        os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb"
    ) as file:
        file.write(content)


def read_private_key(path: Path, kind: Kind, setting: str, step: str) -> PrivateKey:
    """A private key without a password.

    Args:
        setting: what names the file, for messages; step: what to do where it is not one.

    Raises:
        ValueError: the file cannot be read, or holds no such key.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key

    try:
        key = load_ssh_private_key(path.read_bytes(), None)
    except OSError as error:
        raise ValueError(
            f"{setting}: {path} cannot be read: {error.strerror}. {step}"
        ) from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ValueError(
            f"{setting}: {path} holds no OpenSSH private key without a password. {step}"
        ) from None
    if not public_line(key).startswith(_STARTS[kind]):  # type: ignore[arg-type]
        raise ValueError(f"{setting}: {path} is not {_CALLED[kind]}. {step}")
    return key  # type: ignore[return-value]


def public_line(key: PrivateKey) -> str:
    """The public half as it stands in a .pub file, without the comment."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return (
        key.public_key()
        .public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        .decode("ascii")
    )


def check_public_line(line: str, kind: Kind) -> str:
    """A public key in OpenSSH form, without its comment, as this program writes it.

    One key can be written in many ways, since base64 is read with a lenient reader: lines are equal here if
    and only if the keys are.

    Raises:
        ValueError: it is no such key.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        PublicFormat,
        load_ssh_public_key,
    )

    words = line.split()[:2]
    try:
        key = load_ssh_public_key(" ".join(words).encode())
        written = key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode(
            "ascii"
        )
    except (ValueError, UnsupportedAlgorithm):
        written = ""
    if not written.startswith(f"{_STARTS[kind]} "):
        raise ValueError(
            f"this is not the public half of {_CALLED[kind]} in OpenSSH form (a line that begins with "
            f"{_STARTS[kind]})"
        )
    return written


def pem_of(public: str) -> bytes:
    """A public key in OpenSSH form as PEM, which is how Flower knows a node."""
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        PublicFormat,
        load_ssh_public_key,
    )

    key = load_ssh_public_key(public.encode())
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def fingerprint(public: str) -> str:
    """`SHA256:…` of a public key in OpenSSH form, as `ssh-keygen -lf` tells it, to compare by telephone."""
    return sha256_text(base64.b64decode(public.split()[1]))


def sha256_text(content: bytes) -> str:
    """`SHA256:…` in base64 without padding, the form in which people compare fingerprints."""
    return f"SHA256:{base64.b64encode(hashlib.sha256(content).digest()).decode().rstrip('=')}"


@dataclass(frozen=True)
class Certificate:
    """What a certificate says about itself."""

    subject: str
    """The common name of who shows it."""
    issuer: str
    """The common name of who signed it."""
    names: tuple[str, ...]
    """DNS names and IP addresses it is good for, as they stand in it."""
    not_before: datetime
    not_after: datetime
    fingerprint: str
    """SHA-256 of the certificate, colon-separated hex."""

    def days_left(self, now: datetime | None = None) -> int:
        """Whole days until it ends; negative once it has."""
        return (self.not_after - (now or datetime.now(UTC))).days


def read_certificate(path: Path, setting: str, step: str) -> Certificate:
    """A certificate in PEM form.

    Args:
        setting: what names the file, for messages; step: what to do where it is not one.

    Raises:
        ValueError: the file cannot be read, or holds no certificate.
    """
    try:
        return certificate_of(path.read_bytes())
    except OSError as error:
        raise ValueError(
            f"{setting}: {path} cannot be read: {error.strerror}. {step}"
        ) from None
    except ValueError:
        raise ValueError(
            f"{setting}: {path} holds no certificate in PEM form. {step}"
        ) from None


def certificate_of(encoded: bytes) -> Certificate:
    """A certificate in PEM or DER form. Raises ValueError if it is none."""
    from cryptography import x509
    from cryptography.hazmat.primitives.hashes import SHA256

    is_der = encoded.startswith(b"\x30")  # DER: a sequence; PEM is text
    read = (
        x509.load_der_x509_certificate(encoded)
        if is_der
        else x509.load_pem_x509_certificate(encoded)
    )

    def common_name(name: x509.Name) -> str:
        attributes = name.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        return str(attributes[0].value) if attributes else name.rfc4514_string()

    try:
        alternatives = read.extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        ).value
        names = tuple(str(name.value) for name in alternatives)
    except x509.ExtensionNotFound:
        names = ()
    return Certificate(
        common_name(read.subject),
        common_name(read.issuer),
        names,
        read.not_valid_before_utc,
        read.not_valid_after_utc,
        read.fingerprint(SHA256()).hex(":"),
    )
