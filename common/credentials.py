"""Key pairs, certificates and fingerprints: made once, kept secret, never overwritten.

A site has two key pairs: ECDSA on P-384, by which Flower identifies its node, and Ed25519, which
signs its answers. The coordinator has one Ed25519 pair. All are stored in OpenSSH form, as by
`ssh-keygen`.

Functions import cryptography themselves: commands that need no key start faster without it.
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
NEW_KEYS = (
    "Make new files with `wardround-site init --invitation FILE`, then have the site "
    "registered."
)
_KIND_NAMES = {"node": "an ECDSA key on P-384", "signing": "an Ed25519 key"}
_PREFIXES = {"node": "ecdsa-sha2-nistp384", "signing": "ssh-ed25519"}


def new_key(kind: Kind) -> PrivateKey:
    """Return a new private key."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    if kind == "node":
        return ec.generate_private_key(ec.SECP384R1())
    return ed25519.Ed25519PrivateKey.generate()


def write_key_pair(key: PrivateKey, private: Path, public: Path, comment: str) -> None:
    """Write the private key, mode 0600, and its .pub line.

    Raises:
        ValueError: one of the files exists; a key is never overwritten.
    """
    refuse_to_overwrite(private, public)
    write_private_key(key, private)
    public.write_text(f"{public_line(key)} {comment}\n", encoding="ascii")


def private_text(key: PrivateKey) -> str:
    """Return a private key in OpenSSH form, not encrypted."""
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
    )

    encryption = NoEncryption()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, encryption)
    return pem.decode("ascii")


def write_private_key(key: PrivateKey, path: Path) -> None:
    """Write a key to a new file, mode 0600, in one step. Raises ValueError if the file exists."""
    refuse_to_overwrite(path)
    content = private_text(key).encode("ascii")
    replace_secret(path, content)


def refuse_to_overwrite(*paths: Path) -> None:
    """Raise ValueError if one of the files exists."""
    for path in paths:
        if path.exists() or path.is_symlink():
            raise ValueError(
                f"{path} exists and is never overwritten. Move it away, or choose another --dir."
            )


def write_secret(path: Path, content: bytes) -> None:
    """Write a new file that others can never read. Raises FileExistsError."""
    how = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    descriptor = os.open(path, how, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def replace_secret(path: Path, content: bytes) -> None:
    """Write or replace a file that others can never read. A new folder is private, too.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomically(path, lambda part: write_secret(part, content))


def read_private_key(path: Path, kind: Kind, setting: str, step: str) -> PrivateKey:
    """Read a private key that has no password.

    Args:
        setting: name of the file's setting, for messages.
        step: next step, for messages.

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
    if not public_line(key).startswith(_PREFIXES[kind]):  # type: ignore[arg-type]
        raise ValueError(f"{setting}: {path} is not {_KIND_NAMES[kind]}. {step}")
    return key  # type: ignore[return-value]


def public_line(key: PrivateKey) -> str:
    """Return the public half in the form of a .pub file, without the comment."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    public = key.public_key()
    line = public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return line.decode("ascii")


def check_public_line(line: str, kind: Kind) -> str:
    """Return a public key in the one OpenSSH form that this program writes, without a comment.

    The lenient base64 reader accepts many forms of a key. Two returned lines are equal if and only
    if the keys are equal.

    Raises:
        ValueError: it is not such a key.
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
        encoded = key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        written = encoded.decode()
    except (ValueError, UnsupportedAlgorithm):
        written = ""
    if not written.startswith(f"{_PREFIXES[kind]} "):
        raise ValueError(
            f"this is not the public half of {_KIND_NAMES[kind]} in OpenSSH form (a line that "
            f"begins with {_PREFIXES[kind]})"
        )
    return written


def pem_of(public: str) -> bytes:
    """Return an OpenSSH public key as PEM, the form by which Flower identifies a node."""
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        PublicFormat,
        load_ssh_public_key,
    )

    key = load_ssh_public_key(public.encode())
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def fingerprint(public: str) -> str:
    """Return `SHA256:…` of an OpenSSH public key, as `ssh-keygen -lf` does, to compare by
    telephone."""
    _, key = public.split()[:2]
    return sha256_text(base64.b64decode(key))


def sha256_text(content: bytes) -> str:
    """Return `SHA256:…` in base64 without padding, the form in which people compare
    fingerprints."""
    digest = hashlib.sha256(content).digest()
    text = base64.b64encode(digest).decode()
    return f"SHA256:{text.rstrip('=')}"


@dataclass(frozen=True)
class Certificate:
    """The content of a certificate."""

    subject: str
    """Common name of its owner."""
    issuer: str
    """Common name of its signer."""
    names: tuple[str, ...]
    """DNS names and IP addresses for which it is valid."""
    not_before: datetime
    not_after: datetime
    fingerprint: str
    """SHA-256 of the certificate, colon-separated hex."""

    def days_left(self, now: datetime | None = None) -> int:
        """Return the whole days until it expires; negative afterwards."""
        if now is None:
            now = datetime.now(UTC)
        return (self.not_after - now).days


def read_certificate(path: Path, setting: str, step: str) -> Certificate:
    """Read a certificate in PEM form.

    Args:
        setting: name of the file's setting, for messages.
        step: next step, for messages.

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
    """Parse a certificate in PEM or DER form. Raises ValueError if it is not one."""
    from cryptography import x509
    from cryptography.hazmat.primitives.hashes import SHA256

    if encoded.startswith(b"\x30"):  # a DER sequence; PEM is text
        read = x509.load_der_x509_certificate(encoded)
    else:
        read = x509.load_pem_x509_certificate(encoded)

    def common_name(name: x509.Name) -> str:
        attributes = name.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        return str(attributes[0].value) if attributes else name.rfc4514_string()

    try:
        extension = read.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        names = tuple(str(name.value) for name in extension.value)
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
