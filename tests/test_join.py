"""Whether a SuperNode that ended is started again: the verdicts, and the supervisor's waits."""

from __future__ import annotations

import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from threading import Thread

import pytest

from client import supervisor as supervision
from client.join import Judge, flower_exit_code, node_config, node_environment
from client.supervisor import Ended, Supervisor, Verdict
from tests.site_lab import Fleet, fleet_server, free_port, make_certificates, make_site, tls_server

REFUSED = Ended(1, ("ERROR : Exit Code: 305", "[code: 2004] Failed to activate SuperNode."), connected=False)
WORKED = Ended(1, ("SuperNode ID: 7",), connected=True)


def test_a_node_that_is_still_online_is_tried_again(
    tmp_path: Path, tiny_texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fleet_server(make_certificates(tmp_path), Fleet()) as port:
        judge = Judge(make_site(tmp_path, port, tiny_texts))
        first = judge(REFUSED)
        now = time.monotonic()
        monkeypatch.setattr("client.join.time.monotonic", lambda: now + 200)
        later = judge(REFUSED)
    assert (first.action, first.soon) == ("restart", True)
    assert "still counts this site as online" in first.reason
    assert "another machine" not in first.reason
    assert (later.action, "another machine" in later.reason) == ("restart", True)


def test_an_unknown_key_ends_unless_the_server_knew_it(tmp_path: Path, tiny_texts: Path) -> None:
    fleet = Fleet()
    fleet.code = 2004
    with fleet_server(make_certificates(tmp_path), fleet) as port:
        site = make_site(tmp_path, port, tiny_texts)
        stranger, known = Judge(site), Judge(site)
        verdict = stranger(REFUSED)
        assert (verdict.action, "wardround server register" in verdict.reason) == ("end", True)
        # A server that was restarted has to register its sites again: that heals.
        assert known(WORKED).action == "restart"
        assert known(REFUSED).action == "restart"


def test_a_server_that_is_away_is_waited_for(tmp_path: Path, tiny_texts: Path) -> None:
    make_certificates(tmp_path)
    verdict = Judge(make_site(tmp_path, free_port(), tiny_texts))(REFUSED)
    assert (verdict.action, "cannot be reached" in verdict.reason) == ("restart", True)


def test_a_greeting_that_is_broken_off_is_tried_again(tmp_path: Path, tiny_texts: Path) -> None:
    """As by a server that ends, or by a proxy whose server is away."""
    make_certificates(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as door:

        def hang_up() -> None:
            with suppress(OSError):
                while True:
                    door.accept()[0].close()

        Thread(target=hang_up, daemon=True).start()
        verdict = Judge(make_site(tmp_path, door.getsockname()[1], tiny_texts))(WORKED)
        door.shutdown(socket.SHUT_RDWR)
    assert (verdict.action, "broke the TLS greeting off" in verdict.reason) == ("restart", True)


def test_wrong_authority_and_expired_certificate_end(tmp_path: Path, tiny_texts: Path) -> None:
    make_certificates(tmp_path)
    with tls_server(make_certificates(tmp_path / "stranger")) as port:
        stranger = Judge(make_site(tmp_path, port, tiny_texts))(REFUSED)
    old = tmp_path / "old"
    with tls_server(make_certificates(old, started_days_ago=20, days=10)) as port:
        expired = Judge(make_site(old, port, tiny_texts))(REFUSED)
    assert (stranger.action, "is signed by" in stranger.reason) == ("end", True)
    assert (expired.action, "expired on" in expired.reason) == ("end", True)


def test_exit_codes_of_flower_are_read_from_its_words() -> None:
    assert flower_exit_code(("INFO : x", "ERROR : Exit Code: 305", "words")) == 305
    assert flower_exit_code(("words",)) is None


def test_the_node_talks_to_itself_without_a_proxy(
    tmp_path: Path, tiny_texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "example.org")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    site = make_site(tmp_path, 9092, tiny_texts, model=tmp_path)
    environment = node_environment(site)
    assert environment["no_proxy"] == "example.org,127.0.0.1,localhost"
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert environment["PATH"].split(":")[0] == str(Path(sys.executable).parent)
    with pytest.raises(ValueError, match="quotes"):
        node_config(Path('/a"b/site.yaml'))


def test_waits_double_and_start_over_once_connected(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    def sleep(_: Supervisor, seconds: float) -> bool:
        waits.append(seconds)
        return True

    monkeypatch.setattr(Supervisor, "_sleep", sleep)
    endings = [False, False, False, True, False]
    ends = iter([*[Ended(1, (), connected) for connected in endings], Ended(0, (), False)])
    monkeypatch.setattr(Supervisor, "_run_once", lambda _: next(ends))
    verdicts = iter([*[Verdict("restart", "x")] * len(endings), Verdict("end", "enough")])
    keeper = Supervisor(list, {}, lambda _: next(verdicts), lambda _: None, retry_seconds=20)
    assert keeper.run() == Verdict("end", "enough")
    assert waits == [20, 40, 60, 20, 40]


def test_a_child_that_will_not_go_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "_CLEAN_UP_SECONDS", 0.3)
    # It is deaf to SIGTERM, and asks its parent to stop: by then the parent listens.
    code = (
        "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('deaf', os.getpid(), flush=True); os.kill(os.getppid(), signal.SIGTERM); time.sleep(600)"
    )
    said: list[str] = []
    keeper = Supervisor(
        lambda: [sys.executable, "-c", code],
        {},
        lambda _: Verdict("end", "?"),
        said.append,
        retry_seconds=1,
        grace_seconds=0.3,
    )
    started = time.monotonic()
    assert keeper.run() is None
    assert time.monotonic() - started < 20
    pid = next(int(line.split()[-1]) for line in said if "deaf" in line)
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize(
    "words", ["INFO : SuperNode terminated gracefully.", "Exception in thread Thread-3 (_run):"]
)
def test_a_child_that_stays_after_its_last_words_is_started_again(words: str) -> None:
    code = f"import time; print('SuperNode ID: 1'); print({words!r}, flush=True); time.sleep(600)"
    said: list[str] = []
    verdicts = iter([Verdict("restart", "it hung"), Verdict("end", "enough")])
    keeper = Supervisor(
        lambda: [sys.executable, "-c", code],
        {},
        lambda _: next(verdicts),
        said.append,
        retry_seconds=0.1,
        grace_seconds=0.3,
    )
    started = time.monotonic()
    assert keeper.run() == Verdict("end", "enough")
    assert time.monotonic() - started < 20
    assert said.count("the node did not end within 0.3 s and is killed") == 2


def test_other_words_do_not_end_a_child() -> None:
    code = "import time; print('Connection attempt failed', flush=True); time.sleep(1.5); raise SystemExit(7)"
    ends: list[Ended] = []

    def judge(ended: Ended) -> Verdict:
        ends.append(ended)
        return Verdict("end", "enough")

    command = [sys.executable, "-c", code]
    Supervisor(lambda: command, {}, judge, lambda _: None, grace_seconds=0.3).run()
    assert [end.returncode for end in ends] == [7]
