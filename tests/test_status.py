"""`wardround status`: a run from its files, its sites from the SuperLink."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support.fake_flwr import words_for, write_run
from tests.support.nasty import NASTY, faults
from tests.support.report_folders import told_line
from wardround.common.credentials import new_key
from wardround.common.files import write_json
from wardround.common.wire.signing import PLAN, Plan, sign
from wardround.server.deployment import superlink
from wardround.server.deployment.addresses import Addresses
from wardround.server.deployment.folder import (
    RegisteredSite,
    ServerFolder,
)
from wardround.server.deployment.follow import RunWatch
from wardround.server.deployment.status import (
    find_run,
    is_held,
    read_open_round,
    read_status,
)
from wardround.server.deployment.submit import settings_to_submit
from wardround.server.deployment.superlink import NodeState
from wardround.server.record import RoundRecord
from wardround.server.run_folder import RunFolder

PLANNED = Plan(1, {}, {}, 0.0, 1.0, {}, "")


def site(key: str, fingerprint: str, most: int | None = None) -> RegisteredSite:
    """A registered site with these base64 keys."""
    node, signing = f"ecdsa-sha2-nistp384 {key}", f"ssh-ed25519 {key}"
    return RegisteredSite(node, signing, fingerprint, most)


def test_status_names_missing_sites_and_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = ServerFolder.create(tmp_path / "server", Addresses(("localhost",)))
    with folder.changing_sites() as sites:
        sites["ward-a"] = site("QQ==", "SHA256:a", 500)
        sites["ward-b"] = site("Qg==", "SHA256:b")
        sites["ward-c"] = site("Qw==", "SHA256:c")
    refused = {"not its own": 2}
    states = {
        "ward-a": NodeState("online", 5.0, "", {}),
        "ward-b": NodeState("registered", 0.0, "", {}),
        "ward-c": NodeState("offline", 0.0, "2026-01-01 00:00:00", refused),
    }
    monkeypatch.setattr(superlink, "fleet_states", lambda folder: states)
    settings = settings_to_submit(words_for(tmp_path, "num_rounds=4"))
    run = write_run(settings, "running", "", 0.25, 0.75)
    since = datetime(2026, 1, 1, tzinfo=UTC)
    live: dict[str, object] = {
        "round": 2,
        "answered": ["ward-a"],
        "waiting_for": ["ward-b"],
        "since": since.isoformat(),
        "warnings": ["round 1: ward-b: no answer"],
    }
    write_json(run.path / "live.json", live)
    run.write_refused({"ward-c": {"forged": 3}})
    found = read_open_round(run, since + timedelta(seconds=90))
    assert found is not None
    assert found.answered == ("ward-a",)
    assert found.missing == {"ward-b": 90.0}
    # No process holds the folder: the server app was killed.
    assert read_status(run, None).state == "interrupted"
    monkeypatch.setattr("wardround.server.deployment.status.is_held", lambda run: True)
    standing = read_status(run, folder, since + timedelta(seconds=90))
    assert standing.to_text().splitlines() == [
        f"{settings.cell}: running",
        "round 1 of 4, accuracy 0.7500",
        "  round   0  accuracy 0.2500  train loss 0.5000  1.0 s",
        "  round   1  accuracy 0.7500  train loss 0.5000  1.0 s",
        "round 2 in progress",
        "  answered: ward-a",
        "  missing:  ward-b (for 90 s)",
        "warning: round 1: ward-b: no answer",
        "sites",
        "  ward-a: online for 5 s, at most 500 texts a round",
        "  ward-b: never seen",
        "  ward-c: offline since 2026-01-01 00:00:00, calls refused: not its own 2",
        "refused answers of ward-c: forged 3",
    ]
    read = json.loads(standing.to_json())
    assert read["state"] == "running"
    assert read["accuracy"] == 0.75
    assert read["live"]["missing"] == {"ward-b": 90.0}


@pytest.mark.parametrize("name", NASTY)
def test_words_of_sites_cannot_imitate_a_line_of_the_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Refusals, warnings and reasons contain words of sites; a run folder may come from others."""
    monkeypatch.setattr("wardround.server.deployment.status.is_held", lambda run: True)
    lines: dict[str, list[str]] = {}
    for word in ("word", NASTY[name]):
        settings = settings_to_submit(words_for(tmp_path / str(len(lines))))
        run = write_run(settings, "running", f"because {word}", 0.25)
        live = {
            "round": 1,
            "answered": [word],
            "waiting_for": [f"{word}2"],
            "warnings": [f"round 1: {word}"],
            "since": datetime.now(UTC).isoformat(),
        }
        write_json(run.path / "live.json", live)
        key: Any = new_key("signing")
        (run.path / "plan.json").write_text(sign(PLAN, PLANNED, key))
        run.write_approvals(
            {f"site {word}": {"code": "refused", "words": f"no: {word}"}}
        )
        run.write_refused({f"site {word}": {f"reason {word}": 2}})
        standing = read_status(run, None)
        lines[word] = standing.to_text().split("\n")
        assert standing.to_json().isascii()
    honest, hostile = lines["word"], lines[NASTY[name]]
    assert len(hostile) == len(honest)
    for line, usual in zip(hostile, honest, strict=True):
        assert faults(line) == []
        assert re.findall(" {2,}", line) == re.findall(" {2,}", usual), line


def test_status_and_submit_print_a_collapse(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = settings_to_submit(words_for(tmp_path, "train.collapse_rounds=2"))
    run = write_run(settings, "running", "")
    write_json(run.path / "labels.json", {"label_names": ["a", "b", "c", "d", "e"]})
    watch = RunWatch(run, settings)
    for number in (0, 1, 2):
        line = told_line(number, 0.2, [0.0, 1.0, 0.0, 0.0, 0.0])
        run.append_history(RoundRecord.read(line))
    for _ in range(2):
        watch.look()
    standing = read_status(run, None)
    (found,) = json.loads(standing.to_json())["collapses"]
    assert found["round"] == 2
    assert found["is_up"] is True
    flagged = found["words"]
    for fact in ("round 2", "single class since round 1", "95%", "'b'"):
        assert fact in flagged
    assert flagged in standing.to_text().splitlines()
    # Submit prints it once, with the settings that help.
    printed = capsys.readouterr().err
    assert printed.count(f"{settings.cell}: {flagged}") == 1
    assert "train.head_learning_rate=" in printed


def test_status_names_the_next_step(tmp_path: Path) -> None:
    settings = settings_to_submit(words_for(tmp_path))
    run = write_run(settings, "failed", "round 2: ward-b: no answer", 0.25)
    standing = read_status(run, None)
    assert standing.next_step == f"wardround submit --resume {run.path}"
    assert "ward-b: no answer" in standing.to_text()


def test_without_a_run_folder_the_status_is_of_the_last_submitted_run(
    tmp_path: Path,
) -> None:
    folder = ServerFolder.create(tmp_path / "server", Addresses(("localhost",)))
    with pytest.raises(
        ValueError, match=f"'{folder.path}' has no run.* wardround status RUN_DIR"
    ):
        find_run(None, folder.path)
    folder.remember_run("77", str(tmp_path / "run"))
    run, _ = find_run(None, folder.path)
    assert run.path == tmp_path / "run"
    assert read_status(run, None).state == "pending"
    with pytest.raises(ValueError, match="nowhere' is not a folder"):
        find_run(tmp_path / "nowhere", folder.path)


def test_a_run_folder_in_use_is_held(tmp_path: Path) -> None:
    settings = settings_to_submit(words_for(tmp_path))
    run = RunFolder(Path(settings.run_dir))
    assert not is_held(run)
    with run.open(settings):
        assert is_held(run)
    assert not is_held(run)
