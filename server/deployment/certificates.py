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
    write_secret,
)
from wardround.common.files import write_atomically

AUTHORITY_DAYS = 3650
SERVER_DAYS = 365
# A site's clock may be behind: the certificates are valid a little before they were made.
_HEAD_START = timedelta(hours=1)
_DNS_LABEL = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)")
_AUTHORITY = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Wardround CA")])
_USAGES = (
    *(
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
    ),
    *("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
)


@dataclass(frozen=True)
class Pair:
    """Where a certificate and its private key stand, both PEM."""

    certificate: Path
    key: Path

    def read(self) -> Certificate:
        """What the certificate says. Raises ValueError if the file holds none."""
        return read_certificate(
            self.certificate, "the server folder", "Bring it back, or renew it."
        )

    @property
    def is_encrypted(self) -> bool:
        """Whether the private key can be read with its passphrase only; False where there is none."""
        return self.key.exists() and b"ENCRYPTED" in self.key.read_bytes()

    @property
    def next(self) -> Pair:
        """Where the pair that will replace this one is made."""
        return Pair(
            *(
                path.with_name(f"{path.name}.next")
                for path in (self.certificate, self.key)
            )
        )

    def finish_renewal(self) -> None:
        """Put the next pair in place, if it was made whole: its certificate is written last."""
        if self.next.certificate.exists():
            for made, place in (
                (self.next.key, self.key),
                (self.next.certificate, self.certificate),
            ):
                with suppress(
                    FileNotFoundError
                ):  # done before a kill, or by another process now
                    made.replace(place)


def make_authority(
    target: Pair,
    *,
    days: int = AUTHORITY_DAYS,
    now: datetime | None = None,
    passphrase: str = "",
) -> None:
    """Write a new certificate authority.

    Args:
        now: start of its validity; the present if None.
        passphrase: encrypts the key; "" leaves it plain.

    Raises:
        ValueError: a file is there already.
    """
    refuse_to_overwrite(target.certificate, target.key)
    key = ec.generate_private_key(ec.SECP384R1())
    what_for = (
        x509.BasicConstraints(ca=True, path_length=0),
        _usage("key_cert_sign", "crl_sign"),
    )
    _write(
        target,
        _sign(_AUTHORITY, key, _AUTHORITY, key, days, now, what_for),
        key,
        passphrase,
    )


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
        now: start of its validity; the present if None.
        renew: replace what stands at `target`; a kill leaves the old pair or the new one, never one of each.
        passphrase: of the authority's key.

    Raises:
        ValueError: a file is there already and `renew` is False, a name is neither a DNS name nor an IP
            address, or the authority's key cannot be read.
    """
    if not renew:
        refuse_to_overwrite(target.certificate, target.key)
    signer = x509.load_pem_x509_certificate(authority.certificate.read_bytes())
    signing_key = _authority_key(authority.key, passphrase)
    key = ec.generate_private_key(ec.SECP384R1())
    what_for = (
        x509.SubjectAlternativeName(
            [general_name(name) for name in dict.fromkeys(names)]
        ),
        x509.BasicConstraints(ca=False, path_length=None),
        _usage("digital_signature"),
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]),
        x509.AuthorityKeyIdentifier.from_issuer_public_key(signing_key.public_key()),
    )
    # A common name holds 64 characters; the alternative names are what counts.
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
    target.next.certificate.unlink(
        missing_ok=True
    )  # from a renewal that was never finished
    _write(
        target.next,
        _sign(subject, key, signer.subject, signing_key, days, now, what_for),
        key,
    )
    target.finish_renewal()


def _authority_key(path: Path, passphrase: str) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(
            path.read_bytes(), passphrase.encode() or None
        )
    except OSError as error:
        raise ValueError(
            f"'{path}' cannot be read ({error.strerror}). Bring ca.key back from where it is kept."
        ) from None
    except (TypeError, ValueError):
        raise ValueError(f"'{path}' does not open with this passphrase.") from None
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


def general_name(name: str) -> x509.GeneralName:
    """A name as certificates tell them apart: an IP address, or a DNS name.

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
            f"'{name}' is neither a DNS name nor an IP address. Give the name under which the sites reach "
            "the server, without port or scheme, for example --name server.example.org."
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
    """A certificate that holds `days`; what it must not be used for is critical in it."""
    start = now or datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer)
    builder = builder.public_key(key.public_key()).serial_number(
        x509.random_serial_number()
    )
    builder = builder.not_valid_before(start - _HEAD_START).not_valid_after(
        start + timedelta(days=days)
    )
    for extension in (
        x509.SubjectKeyIdentifier.from_public_key(key.public_key()),
        *extensions,
    ):
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
    kept: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase:
        kept = serialization.BestAvailableEncryption(passphrase.encode())
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, kept)
    write_atomically(target.key, lambda part: write_secret(part, private))
    public = certificate.public_bytes(pem)
    write_atomically(target.certificate, lambda part: part.write_bytes(public))
