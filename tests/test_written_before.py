"""Folders of an earlier version can be opened: of a server, a site, a run and a model.

They come from a run of three sites over two rounds, by the version of commit 14d4ec1.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import wardround
from tests.support.door import wardround as command
from tests.support.site_door import site_command
from wardround.common.credentials import fingerprint, public_line
from wardround.server.deployment.folder import (
    ServerFolder,
    coordinator_line,
    signing_key,
)

WRITTEN = Path(__file__).parent / "data" / "written_by_14d4ec1"
PLAN = "b349dcb4fa3e"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A copy of all folders. Only the owner can read their keys, as before."""
    folder = tmp_path / "old"
    shutil.copytree(WRITTEN, folder)
    (folder / "server").chmod(0o700)
    for key in folder.rglob("*.key"):
        key.chmod(0o600)
    return folder


def test_a_run_of_an_earlier_version_is_read(old: Path) -> None:
    run = wardround.load_run(old / "run")
    assert run.state == "finished"
    assert run.history["round"].tolist() == [0, 1, 2]
    assert run.settings.num_clients == 3
    assert run.report().is_file()
    said = command("status", str(run.path))
    assert "finished (all 2 rounds" in said.out.splitlines()[0]
    assert f"plan {PLAN}" in said.out


def test_a_model_of_an_earlier_version_predicts(old: Path) -> None:
    table = wardround.predict(old / "run" / "model", ["goal match"], device="cpu")
    assert table.columns.tolist() == ["text", "label", "health", "money", "sport"]


def test_a_server_folder_of_an_earlier_version_is_read_and_renewed(old: Path) -> None:
    folder = ServerFolder(old / "server")
    assert sorted(folder.sites()) == ["alpha", "beta", "gamma"]
    own = fingerprint(public_line(signing_key(folder)))
    assert own == fingerprint(coordinator_line(folder))
    folder.renew()


def test_plans_and_ledger_of_an_earlier_version_are_read(old: Path) -> None:
    listed = site_command("plans", folder=old / "site")
    assert listed.stdout.startswith(PLAN), listed.stderr
    assert "approved" in listed.stdout
    told = site_command("plan", PLAN, folder=old / "site")
    assert told.returncode == 0, told.stderr
    assert told.stdout.splitlines()[0].endswith(": approved")
    verified = site_command("ledger", "verify", folder=old / "site")
    assert verified.returncode == 0, verified.stderr
    ledger = str(old / "site" / "state" / "ledger.jsonl")
    audited = command("audit", str(old / "run"), "--ledger", ledger)
    assert audited.code == 0, audited.err
    assert "4 answers" in audited.out


def test_a_site_of_an_earlier_version_passes_its_checks(old: Path) -> None:
    said = site_command("check", "--skip-check", "device", folder=old / "site").stdout
    for name in ("policy", "data", "columns", "labels", "model"):
        assert f"ok      {name}" in said, said
