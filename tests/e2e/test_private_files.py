"""What the programs write is for their own user alone, whatever umask they were started with."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.processes import PATIENCE, Process, free_port, wait_for
from tests.e2e.runs import LABELS
from tests.support.tiny import write_texts
from wardround.common.credentials import new_key, public_line
from wardround.common.wire.invitation import Registration, write_document

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]

BIN = Path(sys.executable).parent
LIMITS = """
approve: by_hand
min_sites: 1
min_examples: 5
"""


class Shell:
    """Starts programs under one umask."""

    def __init__(self, root: Path, umask: int) -> None:
        self.root, self.umask = root, umask
        self.started: list[Process] = []

    def start(self, *words: str) -> Process:
        """In the background."""
        log = self.root / f"{len(self.started):02d}.log"
        path = os.pathsep.join((str(BIN), os.environ.get("PATH", os.defpath)))
        with log.open("wb") as file:
            popen = subprocess.Popen(
                [str(BIN / words[0]), *words[1:]],
                cwd=self.root,
                env=os.environ
                | {"PATH": path, "FLWR_TELEMETRY_ENABLED": "0", "HF_HUB_OFFLINE": "1"},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                umask=self.umask,
            )
        self.started.append(Process(popen, log))
        return self.started[-1]

    def run(self, *words: str) -> str:
        """To its end, which is good; what it prints."""
        process = self.start(*words)
        assert process.wait(PATIENCE) == 0, process.text()
        return process.text()

    def close(self) -> None:
        """End everything."""
        for process in reversed(self.started):
            process.send(signal.SIGTERM)
        for process in self.started:
            try:
                process.wait(PATIENCE)
            finally:
                process.send(signal.SIGKILL)


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """Nothing runs afterwards.

    No umask leaves more open than 000: any other takes rights away from the same files.
    """
    made = Shell(tmp_path, 0o000)
    try:
        yield made
    finally:
        made.close()


def open_to_others(folder: Path) -> list[str]:
    """What below a folder, or the folder itself, somebody else could read or write."""
    paths = [folder, *folder.rglob("*")]
    return [
        str(path)
        for path in paths
        if stat.S_IMODE(path.lstat().st_mode) & 0o077 and not path.is_symlink()
    ]


def test_what_the_programs_write_is_for_their_user_alone(
    shell: Shell, tiny_model: Path, tmp_path: Path
) -> None:
    server, site = tmp_path / "server", tmp_path / "site"
    where, mine = ("--dir", str(server)), ("--site", str(site / "site.yaml"))
    bound = ("--max-examples", "unlimited", *where)
    ports = [
        "--fleet-host",
        "127.0.0.1",
        "--fleet-port",
        str(free_port()),
        "--control-port",
        str(free_port()),
    ]
    shell.run("wardround", "server", "init", "--name", "localhost", *ports, *where)
    shell.run("wardround", "server", "invite", "alpha", *where)
    (tmp_path / "policy.yaml").write_text(LIMITS)
    shell.run(
        *(
            "wardround-site",
            "init",
            "--invitation",
            str(server / "invitations" / "alpha.json"),
        ),
        *(
            "--data",
            str(write_texts(tmp_path / "alpha.csv", 30, seed=0)),
            "--text",
            "text",
            "--label",
            "label",
        ),
        *(
            "--policy",
            str(tmp_path / "policy.yaml"),
            "--model",
            str(tiny_model),
            "--device",
            "cpu",
        ),
        *("--dir", str(site)),
    )
    shell.run(
        "wardround",
        "server",
        "register",
        "alpha",
        str(site / "registration-alpha.json"),
        *bound,
    )
    key = new_key("signing")
    other = Registration(
        "north", public_line(new_key("node")), public_line(key), "SHA256:x"
    )
    told = write_document(other, tmp_path / "north.json", key)  # type: ignore[arg-type]
    shell.run(
        "wardround-site",
        "peers",
        "add",
        str(tmp_path / "north.json"),
        "--fingerprint",
        told,
        *mine,
    )
    up = shell.start("wardround", "server", "up", *where)
    wait_for(lambda: "the server is up" in up.text(), PATIENCE, "the server")
    join = shell.start("wardround-site", "join", "--skip-check", "device", *mine)
    wait_for(lambda: "connected to the server" in join.text(), PATIENCE, "the site")
    run = shell.start(
        *(
            "wardround",
            "submit",
            "model=hf",
            f"model.name={tiny_model}",
            "data=files",
            LABELS,
            "num_clients=1",
        ),
        *("evaluation.where=sites", "run_dir=run", "device=cpu", "threads=1", *where),
    )
    wait_for(
        lambda: "wardround-site plan" in join.text() or "is refused" in join.text(),
        PATIENCE,
        "a plan",
    )
    (plan,) = re.findall(
        r"^([0-9a-f]{12}) ", shell.run("wardround-site", "plans", *mine), re.MULTILINE
    )
    shell.run("wardround-site", "reject", plan, "--why", "no", *mine)
    assert run.wait(PATIENCE) != 0

    names = {path.name for path in (site / "state").rglob("*")}
    assert {
        "plan.json",
        "decision.json",
        "journal.json",
        "ledger.jsonl",
        "peers.json",
    } <= names
    assert {"signing.key", "ca.key", "server.key", "fleet.json"} <= {
        path.name for path in server.iterdir()
    }
    assert open_to_others(site) == []
    assert open_to_others(server) == []
    assert open_to_others(tmp_path / "run") == []
