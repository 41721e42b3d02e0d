"""The certificates of authority and server: contents, TLS handshakes, access to the keys."""

from __future__ import annotations

import re
import socket
import ssl
import stat
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from wardround.server.deployment.certificates import (
    Pair,
    issue_server_certificate,
    make_authority,
)

NAMES = ("fl.example.org", "localhost", "127.0.0.1", "::1")


def pair(folder: Path, name: str) -> Pair:
    return Pair(folder / f"{name}.crt", folder / f"{name}.key")


def make(
    folder: Path, *, days: int = 30, now: datetime | None = None
) -> tuple[Pair, Pair]:
    """Make an authority and a server certificate for NAMES."""
    authority, server = pair(folder, "ca"), pair(folder, "server")
    make_authority(authority, now=now)
    issue_server_certificate(authority, server, NAMES, days=days, now=now)
    return authority, server


def handshake(server: Pair, trusted: Path, name: str) -> str:
    """Connect to `server` as a client that trusts one authority.

    Returns:
        The TLS version, or the message of the failed verification.
    """
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(server.certificate, server.key)
    with socket.create_server(("127.0.0.1", 0)) as door:
        door.settimeout(10)

        def answer() -> None:
            connection, _ = door.accept()
            connection.settimeout(10)
            try:
                serving.wrap_socket(connection, server_side=True).close()
            except OSError:
                connection.close()

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        context = ssl.create_default_context(cafile=trusted)
        try:
            with (
                socket.create_connection(door.getsockname(), timeout=10) as plain,
                context.wrap_socket(plain, server_hostname=name) as met,
            ):
                return str(met.version())
        except ssl.SSLCertVerificationError as error:
            return error.verify_message
        finally:
            thread.join(timeout=10)


def test_a_server_certificate_holds_dns_names_addresses_and_dates(
    tmp_path: Path,
) -> None:
    authority, server = make(tmp_path, days=30, now=datetime(2026, 1, 1, tzinfo=UTC))
    read = server.read()
    assert read.names == NAMES
    assert read.subject == "fl.example.org"
    assert read.issuer == "Wardround CA"
    # It is valid for 30 days from January 1, and one hour earlier for clocks that are slow.
    assert read.not_after == datetime(2026, 1, 31, tzinfo=UTC)
    assert read.not_before == datetime(2025, 12, 31, 23, tzinfo=UTC)
    assert read.days_left(datetime(2026, 1, 21, tzinfo=UTC)) == 10
    assert read.days_left(datetime(2026, 2, 2, tzinfo=UTC)) == -2
    assert authority.read().issuer == "Wardround CA"


@pytest.mark.parametrize("name", ["fl.example.org", "localhost", "127.0.0.1"])
def test_a_client_that_trusts_the_authority_verifies_the_server(
    tmp_path: Path, name: str
) -> None:
    authority, server = make(tmp_path)
    assert handshake(server, authority.certificate, name) == "TLSv1.3"


def test_other_names_other_authorities_and_old_certificates_do_not_verify(
    tmp_path: Path,
) -> None:
    """The messages are OpenSSL's."""
    authority, server = make(tmp_path)
    trusted = authority.certificate
    other_name = handshake(server, trusted, "other.example.org")
    assert "Hostname mismatch" in other_name
    other_address = handshake(server, trusted, "127.0.0.2")
    assert "IP address mismatch" in other_address
    stranger = pair(tmp_path, "stranger")
    make_authority(stranger)
    assert "issuer certificate" in handshake(server, stranger.certificate, "localhost")
    expired = pair(tmp_path, "expired")
    long_ago = datetime.now(UTC) - timedelta(days=9)
    issue_server_certificate(authority, expired, NAMES, days=8, now=long_ago)
    assert handshake(expired, trusted, "localhost") == "certificate has expired"


def test_a_server_certificate_signs_no_others(tmp_path: Path) -> None:
    authority, server = make(tmp_path)
    forged = pair(tmp_path, "forged")
    issue_server_certificate(server, forged, NAMES)
    chain = forged.certificate.read_bytes() + server.certificate.read_bytes()
    forged.certificate.write_bytes(chain)
    assert handshake(forged, authority.certificate, "localhost") != "TLSv1.3"


def test_only_its_owner_can_read_a_key(tmp_path: Path) -> None:
    for made in make(tmp_path):
        assert stat.S_IMODE(made.key.stat().st_mode) == 0o600
        assert b"PRIVATE" not in made.certificate.read_bytes()


def test_only_a_renewal_overwrites_files(tmp_path: Path) -> None:
    authority, server = make(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=r"/ca\.crt exists .*--dir"):
        make_authority(authority)
    with pytest.raises(ValueError, match=r"/server\.crt exists .*--dir"):
        issue_server_certificate(authority, server, NAMES)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    issue_server_certificate(authority, server, NAMES, renew=True)
    assert server.key.read_bytes() != before[server.key]
    assert handshake(server, authority.certificate, "localhost") == "TLSv1.3"


@pytest.mark.parametrize(
    "name",
    ["https://fl.example.org", "fl.example.org:9092", "a b", "", "1.2.3", "-a.org"],
)
def test_a_server_name_that_is_no_dns_name_or_address_is_refused(
    tmp_path: Path, name: str
) -> None:
    authority = pair(tmp_path, "ca")
    make_authority(authority)
    expected = rf"^'{re.escape(name)}' .*--name server\.example\.org"
    with pytest.raises(ValueError, match=expected):
        issue_server_certificate(authority, pair(tmp_path, "server"), [name])


def test_a_file_that_is_no_certificate_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "ca.crt"
    file.write_text("nothing")
    with pytest.raises(ValueError, match="PEM"):
        Pair(file, tmp_path / "ca.key").read()
