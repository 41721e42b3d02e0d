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
    for name in (
        "grpc_proxy",
        "https_proxy",
        "http_proxy",
        "no_grpc_proxy",
        "no_proxy",
    ):
        monkeypatch.delenv(name, raising=False)


def test_every_network_check_passes_if_the_server_knows_the_key(
    tmp_path: Path, tiny_texts: Path
) -> None:
    fleet = FakeFleet()
    with fleet_server(make_certificates(tmp_path), fleet) as port:
        site = make_site(tmp_path, port, tiny_texts)
        findings = look(site, *NETWORK)
    assert set(states(findings).values()) == {"ok"}, findings
    assert (
        "90 more days" in findings["certificate"].message
        or "89 more days" in findings["certificate"].message
    )
    assert "5 s ahead and 305 s behind" in findings["clock"].message
    # The server receives the public key, the time, its signature, and Flower's version.
    ((name, request, metadata),) = fleet.calls
    assert {key for key in metadata if key.startswith("flwr")} == {
        "flwr-public-key-bin",
        "flwr-timestamp",
        "flwr-signature-bin",
        *(
            key
            for key in metadata
            if "version" in key or "component" in key or "package" in key
        ),
    }
    assert (name, request.node.node_id) == ("PullMessages", 0)  # nothing is activated


@pytest.mark.parametrize(
    ("code", "refusal", "expected", "words"),
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
def test_each_answer_of_the_server_to_the_key(
    code: int,
    refusal: str,
    expected: dict[str, str],
    words: str,
    tmp_path: Path,
    tiny_texts: Path,
) -> None:
    fleet = FakeFleet()
    fleet.code, fleet.refusal = code, refusal
    with fleet_server(make_certificates(tmp_path), fleet) as port:
        findings = look(make_site(tmp_path, port, tiny_texts), "clock", "registered")
    assert states(findings) == expected
    assert any(words in finding.next_step for finding in findings.values())


def test_expired_certificate(tmp_path: Path, tiny_texts: Path) -> None:
    pair = make_certificates(tmp_path, started_days_ago=20, days=10)
    with tls_server(pair) as port:
        findings = look(
            make_site(tmp_path, port, tiny_texts),
            "tcp",
            "tls",
            "certificate",
            "clock",
            "registered",
        )
    assert states(findings) == {
        "tcp": "ok",
        "tls": "problem",
        "certificate": "problem",
        "clock": "warning",
        "registered": "warning",
    }
    assert "the server's certificate expired on" in findings["certificate"].message


def test_certificate_of_the_future_points_to_the_clock(
    tmp_path: Path, tiny_texts: Path
) -> None:
    with tls_server(make_certificates(tmp_path, started_days_ago=-5)) as port:
        found = look(make_site(tmp_path, port, tiny_texts), "certificate")[
            "certificate"
        ]
    assert found.state == "problem"
    assert "clock" in found.next_step


def test_certificate_that_ends_soon(tmp_path: Path, tiny_texts: Path) -> None:
    with tls_server(make_certificates(tmp_path, days=10)) as port:
        found = look(make_site(tmp_path, port, tiny_texts), "certificate")[
            "certificate"
        ]
    assert found.state == "warning"
    assert "renew" in found.next_step


def test_wrong_name(tmp_path: Path, tiny_texts: Path) -> None:
    with tls_server(make_certificates(tmp_path, names=("fl.example.org",))) as port:
        found = look(make_site(tmp_path, port, tiny_texts), "tls")["tls"]
    assert found.state == "problem"
    assert "fl.example.org" in found.message
    assert "localhost" in found.message
    assert "server.address" in found.next_step


def test_wrong_authority(tmp_path: Path, tiny_texts: Path) -> None:
    make_certificates(tmp_path)
    with tls_server(make_certificates(tmp_path / "stranger")) as port:
        found = look(make_site(tmp_path, port, tiny_texts), "tls")["tls"]
    assert found.state == "problem"
    assert 'signed by "Wardround CA"' in found.message
    assert "fingerprints" in found.next_step


def test_plain_text_server_and_one_without_http2(
    tmp_path: Path, tiny_texts: Path
) -> None:
    pair = make_certificates(tmp_path)
    with raw_server(
        lambda connection: connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    ) as port:
        plain = look(make_site(tmp_path, port, tiny_texts), "tls")["tls"]
    with tls_server(pair, protocols=()) as port:
        old = look(make_site(tmp_path, port, tiny_texts), "tls")["tls"]
    assert (plain.state, old.state) == ("problem", "problem")
    assert "server.address" in plain.next_step
    assert "HTTP/2" in old.message


@pytest.mark.parametrize("content", [None, "not a certificate"])
def test_authority_that_cannot_be_read(
    content: str | None, tmp_path: Path, tiny_texts: Path
) -> None:
    if content is not None:
        (tmp_path / "ca.crt").write_text(content)
    found = look(make_site(tmp_path, free_port(), tiny_texts), "tls")["tls"]
    assert found.state == "problem"
    assert "server.ca" in found.message


def test_a_closed_port_and_an_unknown_name(tmp_path: Path, tiny_texts: Path) -> None:
    make_certificates(tmp_path)
    closed = look(make_site(tmp_path, free_port(), tiny_texts), *NETWORK)
    assert closed["tcp"].state == "problem"
    assert "refused" in closed["tcp"].message
    assert {closed[name].state for name in ("tls", "clock", "registered")} == {
        "warning"
    }
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


def test_proxy_is_named_and_tunnelled_through(
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
def test_exceptions_from_the_proxy(host: str, exceptions: str, expected: bool) -> None:
    assert is_excepted(host, exceptions) is expected


def test_each_step_of_a_link_is_taken_once(tmp_path: Path, tiny_texts: Path) -> None:
    fleet = FakeFleet()
    with fleet_server(make_certificates(tmp_path), fleet) as port:
        link = Link(make_site(tmp_path, port, tiny_texts), 2.0)
        assert link.refusal is link.refusal is None
    assert len(fleet.calls) == 1
