"""Checks of the way to the server: their states, values and next steps."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from tests.support.fake_fleet import FakeFleet, fleet_server
from tests.support.site_lab import (
    free_port,
    look,
    make_certificates,
    make_site,
    raw_server,
    states,
    tls_server,
)
from wardround.client.kit.link import Link, is_excepted

NETWORK = ("proxy", "address", "tcp", "tls", "certificate", "clock", "registered")


@pytest.fixture(autouse=True)
def no_proxy_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide this machine's own proxies."""
    own = ("grpc_proxy", "https_proxy", "http_proxy", "no_grpc_proxy", "no_proxy")
    for name in own:
        monkeypatch.delenv(name, raising=False)


def test_every_network_check_passes_if_the_server_knows_the_key(
    tmp_path: Path, tiny_texts: Path
) -> None:
    fleet = FakeFleet()
    with fleet_server(make_certificates(tmp_path), fleet) as port:
        site = make_site(tmp_path, port, tiny_texts)
        findings = look(site, *NETWORK)
    assert set(states(findings).values()) == {"ok"}, findings
    certificate = findings["certificate"].message
    assert "90 more days" in certificate or "89 more days" in certificate
    assert "5 s ahead and 305 s behind" in findings["clock"].message
    # The server receives the public key, the time, its signature, and Flower's version.
    ((name, request, metadata),) = fleet.calls
    sent = {key for key in metadata if key.startswith("flwr")}
    of_version = {
        key
        for key in sent
        if "version" in key or "component" in key or "package" in key
    }
    assert sent - of_version == {
        "flwr-public-key-bin",
        "flwr-timestamp",
        "flwr-signature-bin",
    }
    # Nothing is activated.
    assert name == "PullMessages"
    assert request.node.node_id == 0


@pytest.mark.parametrize(
    ("code", "refusal", "expected", "fact"),
    [
        (
            0,
            "unknown_key",
            {"clock": "ok", "registered": "problem"},
            "wardround server register st_marys",
        ),
        (0, "wrong_time", {"clock": "problem", "registered": "warning"}, "time"),
        (
            0,
            "bad_signature",
            {"clock": "warning", "registered": "problem"},
            "fleet port",
        ),
        (1001, "", {"clock": "warning", "registered": "problem"}, "version"),
    ],
)
def test_each_refusal_of_the_key_has_its_next_step(
    code: int,
    refusal: str,
    expected: dict[str, str],
    fact: str,
    tmp_path: Path,
    tiny_texts: Path,
) -> None:
    fleet = FakeFleet()
    fleet.code, fleet.refusal = code, refusal
    with fleet_server(make_certificates(tmp_path), fleet) as port:
        findings = look(make_site(tmp_path, port, tiny_texts), "clock", "registered")
    assert states(findings) == expected
    assert any(fact in finding.next_step for finding in findings.values())


def test_an_expired_certificate_is_a_problem(tmp_path: Path, tiny_texts: Path) -> None:
    pair = make_certificates(tmp_path, started_days_ago=20, days=10)
    names = ("tcp", "tls", "certificate", "clock", "registered")
    with tls_server(pair) as port:
        findings = look(make_site(tmp_path, port, tiny_texts), *names)
    assert states(findings) == {
        "tcp": "ok",
        "tls": "problem",
        "certificate": "problem",
        "clock": "warning",
        "registered": "warning",
    }
    assert "expired" in findings["certificate"].message
    assert "wardround server renew" in findings["certificate"].next_step


def test_a_certificate_of_the_future_points_to_the_clock(
    tmp_path: Path, tiny_texts: Path
) -> None:
    with tls_server(make_certificates(tmp_path, started_days_ago=-5)) as port:
        site = make_site(tmp_path, port, tiny_texts)
        found = look(site, "certificate")["certificate"]
    assert found.state == "problem"
    assert "clock" in found.next_step


def test_a_certificate_that_ends_soon_is_a_warning(
    tmp_path: Path, tiny_texts: Path
) -> None:
    with tls_server(make_certificates(tmp_path, days=10)) as port:
        site = make_site(tmp_path, port, tiny_texts)
        found = look(site, "certificate")["certificate"]
    assert found.state == "warning"
    assert "renew" in found.next_step


def test_a_certificate_for_another_name_is_a_problem(
    tmp_path: Path, tiny_texts: Path
) -> None:
    with tls_server(make_certificates(tmp_path, names=("fl.example.org",))) as port:
        found = look(make_site(tmp_path, port, tiny_texts), "tls")["tls"]
    assert found.state == "problem"
    assert "fl.example.org" in found.message
    assert "localhost" in found.message
    assert "server.address" in found.next_step


def test_a_certificate_of_another_authority_is_a_problem(
    tmp_path: Path, tiny_texts: Path
) -> None:
    make_certificates(tmp_path)
    with tls_server(make_certificates(tmp_path / "stranger")) as port:
        found = look(make_site(tmp_path, port, tiny_texts), "tls")["tls"]
    assert found.state == "problem"
    assert 'signed by "Wardround CA"' in found.message
    assert "fingerprints" in found.next_step


def test_a_server_without_tls_or_http2_is_a_problem(
    tmp_path: Path, tiny_texts: Path
) -> None:
    pair = make_certificates(tmp_path)

    def answer(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with raw_server(answer) as port:
        plain = look(make_site(tmp_path, port, tiny_texts), "tls")["tls"]
    with tls_server(pair, protocols=()) as port:
        old = look(make_site(tmp_path, port, tiny_texts), "tls")["tls"]
    assert (plain.state, old.state) == ("problem", "problem")
    assert "server.address" in plain.next_step
    assert "HTTP/2" in old.message


@pytest.mark.parametrize("content", [None, "not a certificate"])
def test_an_authority_that_cannot_be_read_is_a_problem(
    content: str | None, tmp_path: Path, tiny_texts: Path
) -> None:
    if content is not None:
        (tmp_path / "ca.crt").write_text(content)
    found = look(make_site(tmp_path, free_port(), tiny_texts), "tls")["tls"]
    assert found.state == "problem"
    assert "server.ca" in found.message


def test_a_closed_port_or_an_unknown_name_is_a_problem(
    tmp_path: Path, tiny_texts: Path
) -> None:
    make_certificates(tmp_path)
    closed = look(make_site(tmp_path, free_port(), tiny_texts), *NETWORK)
    assert closed["tcp"].state == "problem"
    assert "refused" in closed["tcp"].message
    for name in ("tls", "clock", "registered"):
        assert closed[name].state == "warning"
    site = make_site(
        tmp_path, 1, tiny_texts, server_address="no-such-host.invalid:9092"
    )
    unknown = look(site, "address", "tcp")
    assert states(unknown) == {"address": "problem", "tcp": "warning"}


def test_a_silent_server_is_waited_for_within_bounds(
    tmp_path: Path, tiny_texts: Path
) -> None:
    make_certificates(tmp_path)
    with raw_server(lambda _: time.sleep(0.7)) as port:
        started = time.monotonic()
        findings = look(
            make_site(tmp_path, port, tiny_texts), *NETWORK, timeout_seconds=0.3
        )
    assert findings["tls"].state == "problem"
    assert time.monotonic() - started < 5


def test_a_proxy_is_named_and_asked_for_a_tunnel(
    tmp_path: Path, tiny_texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_certificates(tmp_path)
    asked: list[bytes] = []

    def proxy(connection: socket.socket) -> None:
        asked.append(connection.recv(4096))
        connection.sendall(b"HTTP/1.1 403 Forbidden\r\n\r\n")

    with raw_server(proxy) as port:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{port}")
        site = make_site(
            tmp_path, 9092, tiny_texts, server_address="fl.example.invalid:9092"
        )
        findings = look(site, "proxy", "address", "tcp")
        monkeypatch.setenv("no_proxy", "example.invalid")
        assert look(site, "proxy")["proxy"].state == "ok"
    assert states(findings) == {
        "proxy": "warning",
        "address": "warning",
        "tcp": "problem",
    }
    assert "no_proxy=fl.example.invalid" in findings["proxy"].next_step
    assert "403 Forbidden" in findings["tcp"].message
    assert asked[0].startswith(b"CONNECT fl.example.invalid:9092 HTTP/1.1\r\n")


@pytest.mark.parametrize(
    ("host", "exceptions", "expected"),
    [
        ("fl.example.org", "example.org", True),
        ("fl.example.org", ".example.org, other", True),
        ("fl.example.org", "example.com", False),
        ("10.1.2.3", "10.0.0.0/8", True),
        ("10.1.2.3", "11.0.0.0/8", False),
        ("fl.example.org", "", False),
    ],
)
def test_a_host_in_no_proxy_is_excepted(
    host: str, exceptions: str, expected: bool
) -> None:
    assert is_excepted(host, exceptions) is expected


def test_each_step_of_a_link_is_taken_once(tmp_path: Path, tiny_texts: Path) -> None:
    fleet = FakeFleet()
    with fleet_server(make_certificates(tmp_path), fleet) as port:
        link = Link(make_site(tmp_path, port, tiny_texts), 2.0)
        assert link.refusal is link.refusal is None
    assert len(fleet.calls) == 1
