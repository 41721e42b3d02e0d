"""The certificate authority of a federation and the server's certificate."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from wardround.common.credentials import (
    Certificate,
    read_certificate,
    refuse_to_overwrite,
    replace_secret,
)
from wardround.common.files import write_text

AUTHORITY_DAYS = 3650
SERVER_DAYS = 365
# A site's clock may be behind: the certificates are valid a little before they were made.
_HEAD_START = timedelta(hours=1)
_DNS_LABEL = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)")
_AUTHORITY = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Wardround CA")])
_USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


@dataclass(frozen=True)
class Pair:
    """The files of a certificate and its private key, both PEM."""

    certificate: Path
    key: Path

    def read(self) -> Certificate:
        """Return the certificate's content. Raises ValueError if the file holds no certificate."""
        return read_certificate(
            self.certificate, "the server folder", "Bring it back, or renew it."
        )

    @property
    def is_encrypted(self) -> bool:
        """True if the private key has a passphrase; False if there is no key."""
        return self.key.exists() and b"ENCRYPTED" in self.key.read_bytes()

    @property
    def next(self) -> Pair:
        """The files of the pair that will replace this one."""
        return Pair(
            self.certificate.with_name(f"{self.certificate.name}.next"),
            self.key.with_name(f"{self.key.name}.next"),
        )

    def finish_renewal(self) -> None:
        """Move the next pair into place if it is complete: its certificate is written last."""
        if not self.next.certificate.exists():
            return
        # A file may be missing: an interrupted call or another process has moved it already.
        with suppress(FileNotFoundError):
            self.next.key.replace(self.key)
        with suppress(FileNotFoundError):
            self.next.certificate.replace(self.certificate)


def make_authority(
    target: Pair,
    *,
    days: int = AUTHORITY_DAYS,
    now: datetime | None = None,
    passphrase: str = "",
) -> None:
    """Write a new certificate authority.

    Args:
        now: start of its validity; None means now.
        passphrase: encrypts the key; "" leaves it plain.

    Raises:
        ValueError: a file exists already.
    """
    refuse_to_overwrite(target.certificate, target.key)
    key = ec.generate_private_key(ec.SECP384R1())
    extensions = (
        x509.BasicConstraints(ca=True, path_length=0),
        _usage("key_cert_sign", "crl_sign"),
    )
    certificate = _sign(_AUTHORITY, key, _AUTHORITY, key, days, now, extensions)
    _write(target, certificate, key, passphrase)


def issue_server_certificate(
    authority: Pair,
    target: Pair,
    names: Sequence[str],
    *,
    days: int = SERVER_DAYS,
    now: datetime | None = None,
    renew: bool = False,
    passphrase: str = "",
) -> None:
    """Write a new key and a certificate for it, signed by `authority`.

    Args:
        names: DNS names and IP addresses under which the server is reached; at least one.
        now: start of its validity; None means now.
        renew: replace the files of `target`. An interruption leaves the old or the new pair,
            never a mix.
        passphrase: passphrase of the authority's key.

    Raises:
        ValueError: a file exists already and `renew` is False, a name is neither a DNS name nor
            an IP address, or the authority's key cannot be read.
    """
    if not renew:
        refuse_to_overwrite(target.certificate, target.key)
    signer = x509.load_pem_x509_certificate(authority.certificate.read_bytes())
    signing_key = _authority_key(authority.key, passphrase)
    key = ec.generate_private_key(ec.SECP384R1())
    alternatives = [general_name(name) for name in dict.fromkeys(names)]
    extensions = (
        x509.SubjectAlternativeName(alternatives),
        x509.BasicConstraints(ca=False, path_length=None),
        _usage("digital_signature"),
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]),
        x509.AuthorityKeyIdentifier.from_issuer_public_key(signing_key.public_key()),
    )
    # A common name holds 64 characters; clients check the alternative names.
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
    # It may be left from an interrupted renewal.
    target.next.certificate.unlink(missing_ok=True)
    certificate = _sign(
        subject, key, signer.subject, signing_key, days, now, extensions
    )
    _write(target.next, certificate, key)
    target.finish_renewal()


def _authority_key(path: Path, passphrase: str) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(
            path.read_bytes(), passphrase.encode() or None
        )
    except OSError as error:
        raise ValueError(
            f"'{path}' cannot be read ({error.strerror}). Copy ca.key back into the server folder."
        ) from None
    except (TypeError, ValueError):
        raise ValueError(f"'{path}' does not open with this passphrase.") from None
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


def general_name(name: str) -> x509.GeneralName:
    """Return a name in the form of a certificate: an IP address or a DNS name.

    Raises:
        ValueError: it is neither.
    """
    with suppress(ValueError):
        return x509.IPAddress(ip_address(name))
    labels = name.split(".")
    if (
        len(name) > 253
        or not all(_DNS_LABEL.fullmatch(label) for label in labels)
        or labels[-1].isdigit()
    ):
        raise ValueError(
            f"'{name}' is neither a DNS name nor an IP address. Give the name that the sites "
            f"dial, without "
            "port or scheme, for example --name server.example.org."
        )
    return x509.DNSName(name)


def _sign(
    subject: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Name,
    issuer_key: ec.EllipticCurvePrivateKey,
    days: int,
    now: datetime | None,
    extensions: Sequence[x509.ExtensionType],
) -> x509.Certificate:
    """Return a certificate that is valid for `days`. The limits of its use are critical
    extensions."""
    start = now or datetime.now(UTC)
    public = key.public_key()
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - _HEAD_START)
        .not_valid_after(start + timedelta(days=days))
    )
    key_id = x509.SubjectKeyIdentifier.from_public_key(public)
    for extension in (key_id, *extensions):
        is_critical = isinstance(extension, x509.BasicConstraints | x509.KeyUsage)
        builder = builder.add_extension(extension, is_critical)
    return builder.sign(issuer_key, hashes.SHA384())


def _usage(*allowed: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{name: name in allowed for name in _USAGES})


def _write(
    target: Pair,
    certificate: x509.Certificate,
    key: ec.EllipticCurvePrivateKey,
    passphrase: str = "",
) -> None:
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase:
        encryption = serialization.BestAvailableEncryption(passphrase.encode())
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, encryption)
    replace_secret(target.key, private)
    public = certificate.public_bytes(pem)
    write_text(target.certificate, public.decode("ascii"))
