"""Submitting: the composed settings, Flower's part, and reading its answers and the run folder."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import threading
import time
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.fake_flwr import Flwr, words_for, write_run
from wardround.common.credentials import new_key, public_line
from wardround.common.errors import RunFailed
from wardround.common.settings.tree import Settings
from wardround.server.deployment import follow, submit, superlink
from wardround.server.deployment.addresses import Addresses
from wardround.server.deployment.folder import (
    RegisteredSite,
    ServerFolder,
)
from wardround.server.deployment.superlink import RunState, SuperLinkError
from wardround.server.run_folder import RunFolder


@pytest.fixture
def flwr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Flwr:
    """A fake of Flower's command line. A SuperLink seems to run, and every wait is short."""
    made = Flwr(tmp_path / "bin")
    monkeypatch.setattr(superlink, "BIN", made.folder)
    monkeypatch.setattr(superlink, "is_up", lambda folder: True)
    monkeypatch.setattr(follow, "_LOOK_SECONDS", 0.02)
    monkeypatch.setattr(follow, "_ASK_SECONDS", 0.1)
    monkeypatch.setattr(follow, "_ASK_WITH_NEWS_SECONDS", 0.1)
    monkeypatch.setattr(follow, "_ASK_AT_END_SECONDS", 0.02)
    return made


@pytest.fixture
def folder(tmp_path: Path) -> ServerFolder:
    """A server folder with two registered sites."""
    made = ServerFolder.create(tmp_path / "server", Addresses(("localhost",)))
    with made.changing_sites() as sites:
        for name in ("ward-b", "ward-a"):
            keys = (public_line(new_key("node")), public_line(new_key("signing")))
            sites[name] = RegisteredSite(*keys, f"SHA256:{name}", 40)
    return made


def test_a_deployment_is_composed_with_absolute_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    words = [
        "model=hf",
        "model.name=tiny",
        "data=files",
        "data.path=a.csv",
        "data.label_names=[a,b]",
        "run_dir=out",
    ]
    settings = submit.settings_to_submit(words)
    assert settings.engine.name == "deployment"
    assert settings.run_dir == str(tmp_path / "out")
    assert settings.data.path == str(tmp_path / "a.csv")
    assert settings.model.name == str(tmp_path / "tiny")
    with pytest.raises(ValueError, match=r"engine.* wardround simulate"):
        submit.settings_to_submit(["engine=ray"])


def test_a_deployment_needs_declared_labels(tmp_path: Path) -> None:
    """Else two sites could number their labels in two ways, and the server would mix them."""
    for where in ("server", "sites"):
        words = [f"data.path={tmp_path / 'a.csv'}", f"evaluation.where={where}"]
        with pytest.raises(ValueError, match=r"data\.label_names is missing"):
            submit.settings_to_submit(["model=minilm", "data=files", *words])


def test_the_run_config_holds_a_ticket_only(
    flwr: Flwr, folder: ServerFolder, tmp_path: Path
) -> None:
    """Flower gives the run config to every node, so it holds no setting, path, name or key."""
    settings = submit.settings_to_submit(words_for(tmp_path))
    sites = folder.sites()
    assert submit.start(folder, settings, sites) == "77"
    given = tomllib.loads((flwr.folder / "run.toml").read_text())
    assert set(given) == {"ticket"}
    assert re.fullmatch("[0-9a-f]{32}", given["ticket"])
    assert folder.last_run() == {"run_id": "77", "run_dir": str(tmp_path / "run")}
    # Only this server can read the ticket.
    file = folder.path / "tickets" / f"{given['ticket']}.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    left = json.loads(file.read_text())
    assert Settings.from_dict(left["settings"]) == settings
    kept = {name: RegisteredSite(**site) for name, site in left["sites"].items()}
    assert kept == sites


def test_without_keys_the_run_config_holds_the_settings(
    flwr: Flwr, folder: ServerFolder, tmp_path: Path
) -> None:
    settings = submit.settings_to_submit(words_for(tmp_path))
    submit.start(folder, settings, {})
    given = tomllib.loads((flwr.folder / "run.toml").read_text())
    assert set(given) == {"settings"}
    assert Settings.from_json(given["settings"]) == settings


def test_few_sites_cause_warnings(tmp_path: Path) -> None:
    words = words_for(
        tmp_path,
        "num_clients=2",
        "strategy.on_missing=continue",
        "strategy.min_sites=1",
    )
    two_sites, one_answer = submit.warnings_of(submit.settings_to_submit(words))
    assert "two sites" in two_sites
    assert "strategy.min_sites is 1" in one_answer
    assert "Set strategy.min_sites=3" in one_answer
    three = words_for(tmp_path, "num_clients=3")
    assert submit.warnings_of(submit.settings_to_submit(three)) == []


def test_heads_that_sites_draw_cause_a_warning(tmp_path: Path) -> None:
    words = words_for(tmp_path, "num_clients=3", "train.head_init=per_site")
    (told,) = submit.warnings_of(submit.settings_to_submit(words))
    assert told.startswith("train.head_init=per_site")


def test_the_number_of_chosen_sites_is_the_number_of_clients(
    folder: ServerFolder,
) -> None:
    assert submit.choose_sites(folder, [], 2) == ["ward-a", "ward-b"]
    assert submit.choose_sites(folder, ["ward-b"], 1) == ["ward-b"]
    with pytest.raises(
        ValueError, match=r"num_clients is 3 .*2 sites .*\(ward-a, ward-b\)"
    ):
        submit.choose_sites(folder, [], 3)
    with pytest.raises(ValueError, match="--site"):
        submit.choose_sites(folder, [], 1)
    with pytest.raises(ValueError, match="no site 'ward-c'"):
        submit.choose_sites(folder, ["ward-c"], 1)


@pytest.mark.parametrize(
    ("state", "status", "is_finished", "told"),
    [
        ("finished:completed", "finished", True, "all rounds"),
        ("finished:failed", "failed", False, "--resume"),
        ("finished:completed", "failed", False, "--resume"),
        ("finished:failed", "finished", False, "--resume"),
    ],
)
def test_a_run_is_followed_to_its_end(
    flwr: Flwr,
    folder: ServerFolder,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    state: str,
    status: str,
    is_finished: bool,
    told: str,
) -> None:
    settings = submit.settings_to_submit(words_for(tmp_path, "num_rounds=1"))
    flwr.ends("running")

    def server_app() -> None:
        while not (flwr.folder / "run.toml").exists():
            time.sleep(0.02)
        write_run(settings, status, "all rounds are done", 0.25, 0.75)
        flwr.ends(state)

    thread = threading.Thread(target=server_app, daemon=True)
    thread.start()
    outcome = submit.submit(words_for(tmp_path, "num_rounds=1"), folder)
    thread.join(timeout=10)
    assert outcome.is_finished is is_finished
    assert told in outcome.reason
    assert "round 1/1  accuracy 0.7500" in capsys.readouterr().err


def test_the_superlink_is_asked_often_only_at_the_end_of_a_run(tmp_path: Path) -> None:
    settings = submit.settings_to_submit(words_for(tmp_path))
    run = RunFolder(Path(settings.run_dir))
    watch = follow.RunWatch(run, settings)
    with_news = follow.pause_before_asking(watch, quiet=1.0)
    without = follow.pause_before_asking(watch, quiet=20.0)
    with run.open(settings):
        run.write_status("finished", "all rounds are done")
        assert follow.pause_before_asking(watch, quiet=1.0) == with_news
    at_the_end = follow.pause_before_asking(watch, quiet=1.0)
    assert at_the_end < without < with_news


def test_an_error_before_the_run_folder_exists_is_reported(
    flwr: Flwr, folder: ServerFolder, tmp_path: Path
) -> None:
    reason = "ServerApp failed with exception: data.path is missing"
    flwr.ends("finished:failed", reason)
    outcome = submit.submit(words_for(tmp_path), folder)
    assert outcome == follow.RunEnd(False, reason)


def test_the_end_of_an_earlier_attempt_does_not_count(
    flwr: Flwr, folder: ServerFolder, tmp_path: Path
) -> None:
    settings = submit.settings_to_submit(words_for(tmp_path))
    run = write_run(settings, "finished", "all rounds are done", 0.5)
    flwr.ends("finished:failed", "No heartbeat received from the task")
    outcome = submit.submit([], folder, resume=run.path)
    assert outcome == follow.RunEnd(False, "No heartbeat received from the task")


def test_the_status_of_a_killed_server_app_is_written(tmp_path: Path) -> None:
    settings = submit.settings_to_submit(words_for(tmp_path))
    run = write_run(settings, "running", "", 0.5)
    for state, ending in (
        ("finished:failed", "failed"),
        ("finished:stopped", "stopped"),
    ):
        run.write_status("running", "")
        outcome = follow.conclude(RunState(state, ""), run.status(), run)
        assert not outcome.is_finished
        assert run.status()["state"] == ending


def test_an_interrupt_stops_the_run(
    flwr: Flwr, folder: ServerFolder, tmp_path: Path
) -> None:
    flwr.ends("running")
    interrupt = threading.Timer(2.0, os.kill, (os.getpid(), signal.SIGINT))
    interrupt.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            submit.submit(words_for(tmp_path), folder)
    finally:
        interrupt.cancel()
    assert ["stop", "77", "wardround", "--format", "json"] in flwr.asked()


def test_a_lost_superlink_ends_the_wait(
    flwr: Flwr, folder: ServerFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flwr.answers["list"] = {"success": False, "error-message": "gone"}
    flwr.write()
    monkeypatch.setattr(follow, "_LOST_SECONDS", 0.2)
    settings = submit.settings_to_submit(words_for(tmp_path))
    run = RunFolder(Path(settings.run_dir))
    with pytest.raises(
        RunFailed, match=r"wardround server up, then wardround submit --resume"
    ):
        follow.follow(folder, "77", follow.RunWatch(run, settings), ["ward-a"])


def test_a_refusal_of_flower_is_reported_with_its_command(
    flwr: Flwr, folder: ServerFolder
) -> None:
    said = "Using SuperLink: wardround (127.0.0.1:8000)\n\n[code: 23] Run is over."
    flwr.answers["stop"] = {"success": False, "error-message": said}
    flwr.write()
    with pytest.raises(
        SuperLinkError, match=r"`flwr stop 77` .*\[code: 23\] Run is over"
    ):
        superlink.stop_run(folder, "77")


def test_a_resumed_run_uses_the_current_place_of_its_folder(tmp_path: Path) -> None:
    settings = submit.settings_to_submit(words_for(tmp_path))
    run = write_run(settings, "failed", "", 0.5)
    moved = run.path.rename(tmp_path / "moved")
    assert submit.settings_to_resume(moved, []) == replace(settings, run_dir=str(moved))
    with pytest.raises(ValueError, match=r"--resume .*'num_rounds=9'"):
        submit.settings_to_resume(moved, ["num_rounds=9"])
    with pytest.raises(ValueError, match=r"no settings\.json.* --resume"):
        submit.settings_to_resume(tmp_path, [])
