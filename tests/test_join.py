"""The decision to connect again after a connection has ended."""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from pathlib import Path
from threading import Thread

import pytest

from tests.support.fake_fleet import FakeFleet, fleet_server
from tests.support.site_lab import free_port, make_certificates, make_site, tls_server
from wardround.client.kit.reconnect import LinkJudge
from wardround.client.node.connection import Connection
from wardround.common.errors import Refused, Unreachable

STILL_ONLINE = Refused("still_online")
UNKNOWN = Refused("unknown_key")
LOST = Unreachable("gone")


def test_a_node_that_is_still_online_is_tried_again(
    tmp_path: Path, tiny_texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = LinkJudge(make_site(tmp_path, free_port(), tiny_texts))
    first = judge(STILL_ONLINE)
    now = time.monotonic()
    clock = "wardround.client.kit.reconnect.time.monotonic"
    monkeypatch.setattr(clock, lambda: now + 200)
    later = judge(STILL_ONLINE)
    assert not first.is_final
    assert first.is_soon
    assert not later.is_final
    # After some time the message also names a second machine as a reason.
    assert "another machine" not in first.reason
    assert later.reason.startswith(first.reason)
    assert "another machine" in later.reason


def test_an_unknown_key_ends_the_site_unless_the_server_knew_it(
    tmp_path: Path, tiny_texts: Path
) -> None:
    fleet = FakeFleet()
    fleet.refusal = "unknown_key"
    with fleet_server(make_certificates(tmp_path), fleet) as port:
        site = make_site(tmp_path, port, tiny_texts)
        stranger, known = LinkJudge(site), LinkJudge(site)
        verdict = stranger(UNKNOWN)
        assert verdict.is_final
        assert "wardround server register" in verdict.reason
        # A site may be registered again with the same key, so that it tries again.
        known.accepted()
        assert not known(UNKNOWN).is_final


def test_a_site_joins_a_restarted_server_again(
    tmp_path: Path, tiny_texts: Path
) -> None:
    judge = LinkJudge(make_site(tmp_path, free_port(), tiny_texts))
    verdict = judge(Refused("other_node"))
    assert not verdict.is_final
    assert verdict.is_soon


@pytest.mark.parametrize(
    ("why", "is_final"), [("wrong_time", False), ("version", True), ("other", False)]
)
def test_an_old_version_ends_the_site_and_a_wrong_clock_does_not(
    why: str, is_final: bool, tmp_path: Path, tiny_texts: Path
) -> None:
    judge = LinkJudge(make_site(tmp_path, free_port(), tiny_texts))
    assert judge(Refused(why)).is_final == is_final  # type: ignore[arg-type]


def test_a_server_that_does_not_run_is_tried_again(
    tmp_path: Path, tiny_texts: Path
) -> None:
    make_certificates(tmp_path)
    verdict = LinkJudge(make_site(tmp_path, free_port(), tiny_texts))(LOST)
    assert not verdict.is_final
    assert "cannot be reached (Connection refused)" in verdict.reason


def test_an_interrupted_handshake_is_tried_again(
    tmp_path: Path, tiny_texts: Path
) -> None:
    """A server that stops interrupts it, and a proxy whose server does not run."""
    make_certificates(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as door:

        def hang_up() -> None:
            with suppress(OSError):
                while True:
                    door.accept()[0].close()

        Thread(target=hang_up, daemon=True).start()
        port = door.getsockname()[1]
        verdict = LinkJudge(make_site(tmp_path, port, tiny_texts))(LOST)
        door.shutdown(socket.SHUT_RDWR)
    assert not verdict.is_final
    assert "TLS handshake" in verdict.reason


def test_another_authority_and_an_expired_certificate_end_the_site(
    tmp_path: Path, tiny_texts: Path
) -> None:
    make_certificates(tmp_path)
    with tls_server(make_certificates(tmp_path / "stranger")) as port:
        stranger = LinkJudge(make_site(tmp_path, port, tiny_texts))(LOST)
    old = tmp_path / "old"
    with tls_server(make_certificates(old, started_days_ago=20, days=10)) as port:
        expired = LinkJudge(make_site(old, port, tiny_texts))(LOST)
    assert stranger.is_final
    assert "is signed by" in stranger.reason
    assert expired.is_final
    assert "expired on" in expired.reason


def test_a_terminal_shows_a_servers_words_without_control_characters(
    tmp_path: Path, tiny_texts: Path
) -> None:
    fleet = FakeFleet()
    fleet.refusal = "\x1b[2Jyou are\nowned" + "!" * 1000
    with fleet_server(make_certificates(tmp_path), fleet) as port:
        site = make_site(tmp_path, port, tiny_texts)
        with Connection(site) as connection, pytest.raises(Refused) as refused:
            connection.activate()
    verdict = LinkJudge(site)(refused.value)
    assert not verdict.is_final
    assert verdict.reason.isprintable()
    assert '"[2Jyou are owned!!!' in verdict.reason
    assert len(verdict.reason) < 400
