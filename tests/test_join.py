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

STILL_ONLINE, UNKNOWN, LOST = (
    Refused("still_online"),
    Refused("unknown_key"),
    Unreachable("gone"),
)


def test_a_node_that_is_still_online_is_tried_again(
    tmp_path: Path, tiny_texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = LinkJudge(make_site(tmp_path, free_port(), tiny_texts))
    first = judge(STILL_ONLINE)
    now = time.monotonic()
    monkeypatch.setattr(
        "wardround.client.kit.reconnect.time.monotonic", lambda: now + 200
    )
    later = judge(STILL_ONLINE)
    assert (first.is_final, first.is_soon) == (False, True)
    assert "still counts this site as online" in first.reason
    assert "another machine" not in first.reason
    assert (later.is_final, "another machine" in later.reason) == (False, True)


def test_an_unknown_key_ends_unless_the_server_knew_it(
    tmp_path: Path, tiny_texts: Path
) -> None:
    fleet = FakeFleet()
    fleet.refusal = "unknown_key"
    with fleet_server(make_certificates(tmp_path), fleet) as port:
        site = make_site(tmp_path, port, tiny_texts)
        stranger, known = LinkJudge(site), LinkJudge(site)
        verdict = stranger(UNKNOWN)
        assert (verdict.is_final, "wardround server register" in verdict.reason) == (
            True,
            True,
        )
        # A site may be let in again under the same key: that heals.
        known.accepted()
        assert not known(UNKNOWN).is_final


def test_a_restarted_server_is_joined_anew(tmp_path: Path, tiny_texts: Path) -> None:
    verdict = LinkJudge(make_site(tmp_path, free_port(), tiny_texts))(
        Refused("other_node")
    )
    assert (verdict.is_final, verdict.is_soon) == (False, True)


@pytest.mark.parametrize(
    ("why", "is_final"), [("wrong_time", False), ("version", True), ("other", False)]
)
def test_an_old_version_ends_and_a_wrong_clock_does_not(
    why: str, is_final: bool, tmp_path: Path, tiny_texts: Path
) -> None:
    judge = LinkJudge(make_site(tmp_path, free_port(), tiny_texts))
    assert judge(Refused(why)).is_final == is_final  # type: ignore[arg-type]


def test_a_server_that_is_away_is_waited_for(tmp_path: Path, tiny_texts: Path) -> None:
    make_certificates(tmp_path)
    verdict = LinkJudge(make_site(tmp_path, free_port(), tiny_texts))(LOST)
    assert (verdict.is_final, "cannot be reached" in verdict.reason) == (False, True)


def test_a_handshake_that_is_broken_off_is_tried_again(
    tmp_path: Path, tiny_texts: Path
) -> None:
    """A server that stops does this, and a proxy whose server is away."""
    make_certificates(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as door:

        def hang_up() -> None:
            with suppress(OSError):
                while True:
                    door.accept()[0].close()

        Thread(target=hang_up, daemon=True).start()
        verdict = LinkJudge(make_site(tmp_path, door.getsockname()[1], tiny_texts))(
            LOST
        )
        door.shutdown(socket.SHUT_RDWR)
    assert (verdict.is_final, "TLS handshake" in verdict.reason) == (
        False,
        True,
    )


def test_another_authority_and_an_expired_certificate_end(
    tmp_path: Path, tiny_texts: Path
) -> None:
    make_certificates(tmp_path)
    with tls_server(make_certificates(tmp_path / "stranger")) as port:
        stranger = LinkJudge(make_site(tmp_path, port, tiny_texts))(LOST)
    old = tmp_path / "old"
    with tls_server(make_certificates(old, started_days_ago=20, days=10)) as port:
        expired = LinkJudge(make_site(old, port, tiny_texts))(LOST)
    assert (stranger.is_final, "is signed by" in stranger.reason) == (True, True)
    assert (expired.is_final, "expired on" in expired.reason) == (True, True)


def test_words_of_the_server_reach_the_terminal_without_control_characters(
    tmp_path: Path, tiny_texts: Path
) -> None:
    fleet = FakeFleet()
    fleet.refusal = "\x1b[2Jyou are\nowned" + "!" * 1000
    with fleet_server(make_certificates(tmp_path), fleet) as port:
        site = make_site(tmp_path, port, tiny_texts)
        with Connection(site) as connection, pytest.raises(Refused) as refused:
            connection.activate()
    verdict = LinkJudge(site)(refused.value)
    assert (verdict.is_final, verdict.reason.isprintable()) == (False, True)
    assert 'the server refused this site: "[2Jyou are owned!!!' in verdict.reason
    assert len(verdict.reason) < 400
