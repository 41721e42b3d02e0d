"""The commands of docs/hospital.md, run as they stand there: two sites that approve by hand."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from shutil import copy, copytree

import pytest

from tests.e2e.processes import PATIENCE, free_port, wait_for
from wardround.common.wire.refusals import PENDING
from wardround.server.run_folder import RunFolder

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)]

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "hospital.md").read_text(
    encoding="utf-8"
)
BIN = Path(sys.executable).parent
SITES = ("st_marys", "lakeside")


def blocks() -> Iterator[str]:
    """Return the content of the page's fences."""
    yield from re.findall(r"^```\w*\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


COMMANDS = [
    line
    for block in blocks()
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith(("wardround ", "wardround-site "))
]


def wait_to_read(log: Path, text: str, name: str) -> None:
    """Wait until the log has this text. Args: name: what is waited for, in words."""
    wait_for(lambda: text in log.read_text(), PATIENCE, name)


class Typist:
    """Runs commands of the page, each in the folder of its user."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.started: list[subprocess.Popen[bytes]] = []

    def words(self, start: str, **instead: str) -> list[str]:
        """Return the page's one command that starts like this. Args: instead: replacements."""
        (line,) = {line for line in COMMANDS if line.startswith(start)}
        for old, new in instead.items():
            assert old in line, (old, line)
            line = line.replace(old, new)
        return shlex.split(line)

    def start(self, folder: Path, words: list[str], log: str) -> Path:
        """Start a command in the background. Returns the file of its output."""
        path = self.root / log
        with path.open("wb") as file:
            process = subprocess.Popen(
                [str(BIN / words[0]), *words[1:]],
                cwd=folder,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.started.append(process)
        return path

    def type(self, folder: Path, words: list[str]) -> str:
        """Run a command that must succeed. Returns its output."""
        done = subprocess.run(
            [str(BIN / words[0]), *words[1:]],
            cwd=folder,
            env=self._environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def _environment(self) -> dict[str, str]:
        path = os.pathsep.join((str(BIN), os.environ.get("PATH", os.defpath)))
        quiet = {
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "HF_HUB_OFFLINE": "1",
        }
        return (
            os.environ | quiet | {"PATH": path, "WARDROUND_CA_PASSPHRASE": "a long one"}
        )

    def close(self) -> None:
        """Stop everything by the signal that people use."""
        for process in reversed(self.started):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 60
        for process in self.started:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(10)


@pytest.fixture
def typist(tmp_path: Path) -> Iterator[Typist]:
    """A typist, whose processes are stopped afterwards."""
    made = Typist(tmp_path)
    try:
        yield made
    finally:
        made.close()


def write_letters(path: Path, own_name: str) -> None:
    """Write 80 letters of two departments. Args: own_name: the site's name for one of them."""
    words = {own_name: "heart pulse valve", "surgery": "knife wound suture"}
    lines = [
        f"{text} {number},{department}"
        for number in range(40)
        for department, text in words.items()
    ]
    path.write_text("\n".join(["letter,department", *lines]) + "\n", encoding="utf-8")


def test_every_command_of_the_page_runs(
    typist: Typist, tiny_model: Path, tmp_path: Path
) -> None:
    office = tmp_path / "office"
    homes = {name: tmp_path / name for name in SITES}
    for folder in (office, *homes.values()):
        folder.mkdir()

    # 1 and 2: the server, and an invitation for each site.
    ports = [
        f"--fleet-port={free_port()}",
        f"--control-port={free_port()}",
        "--fleet-host=127.0.0.1",
    ]
    init = typist.words("wardround server init", **{"fl.example.org": "localhost"})
    typist.type(office, [*init, *ports])
    log = typist.start(office, typist.words("wardround server up"), "server.log")
    wait_for(lambda: "the server is up" in log.read_text(), PATIENCE, "the server")
    for name in SITES:
        typist.type(office, typist.words(f"wardround server invite {name}"))
        (found,) = office.rglob(f"{name}.json")
        copy(found, homes[name])

    # 3 and 4: each site's files, and its registration. The policy is the one on the page.
    (policy,) = (block for block in blocks() if block.startswith("counts: true"))
    sites = {name: home / "wardround-site" for name, home in homes.items()}
    for name, home in homes.items():
        (home / "policy.yaml").write_text(policy)
        write_letters(
            home / "letters.csv", "kardio" if name == "st_marys" else "cardiology"
        )
        init = typist.words("wardround-site init", **{"st_marys.json": f"{name}.json"})
        typist.type(home, [*init, "--model", str(tiny_model), "--device", "cpu"])
        copy(sites[name] / f"registration-{name}.json", office)
        typist.type(office, typist.words(f"wardround server register {name}"))
    site_file = sites["st_marys"] / "site.yaml"
    text = site_file.read_text()
    assert "labels: {}" in text
    site_file.write_text(text.replace("labels: {}", 'labels: {"kardio": cardiology}'))

    # Among themselves: each site pins the other, with the fingerprint that the other one reads out.
    for name, other in (SITES, tuple(reversed(SITES))):
        copy(sites[other] / f"registration-{other}.json", sites[name])
        shown = typist.type(sites[other], typist.words("wardround-site peers list"))
        (fingerprint,) = re.findall(r"this site's registration is (SHA256:\S+)", shown)
        pin = typist.words(
            "wardround-site peers add", **{"lakeside": other, "SHA256:…": fingerprint}
        )
        typist.type(sites[name], pin)
        assert other in typist.type(
            sites[name], typist.words("wardround-site peers list")
        )

    # 5 and 6: check, join.
    (check,) = {line for line in COMMANDS if line.startswith("wardround-site check")}
    words = [*shlex.split(check), "--skip-check", "device"]
    words[words.index("google-bert/bert-base-cased")] = str(tiny_model)
    for folder in sites.values():
        shown = typist.type(folder, words)
        assert "A person approves each plan" in shown
    logs = {
        name: typist.start(
            folder,
            [*typist.words("wardround-site join"), "--skip-check", "device"],
            f"{name}.log",
        )
        for name, folder in sites.items()
    }
    for log in logs.values():
        wait_to_read(log, "connected to the server", "a site to join")

    # 7: train. The tiny model in place of BERT, for a round.
    submit = typist.words(
        "wardround submit", **{"model=bert": f"model=hf model.name={tiny_model}"}
    )
    size = [
        "num_rounds=1",
        "threads=1",
        "device=cpu",
        "train.max_length=16",
        "strategy.wait_seconds=240",
    ]
    followed = typist.start(office, [*submit, *size], "submit.log")
    status = typist.words("wardround status outputs/trial")
    listed = typist.words("wardround server sites")
    for name, log in logs.items():
        wait_to_read(log, "wardround-site plan", f"{name} to be asked")

    def are_undecided() -> bool:
        approvals = RunFolder(office / "outputs" / "trial").approvals()
        codes = {name: approvals[name]["code"] for name in approvals}
        return codes == dict.fromkeys(SITES, PENDING)

    wait_for(are_undecided, PATIENCE, "the run folder to name both sites")
    shown = typist.type(office, status)
    assert all(f"{name}: undecided" in shown for name in SITES)

    # 8: decide. Both see the roster that the coordinator sees.
    rosters = set(
        re.findall(
            r"roster of these 2 sites: (SHA256:\S+)", typist.type(office, listed)
        )
    )
    for folder in sites.values():
        (plan,) = re.findall(
            r"^([0-9a-f]{12}) ",
            typist.type(folder, typist.words("wardround-site plans")),
            re.M,
        )
        shown = typist.type(
            folder, typist.words("wardround-site plan ", **{"3f8a90c2d1e4": plan})
        )
        assert "labels    cardiology, surgery" in shown
        assert "recipe    fine_tune@1 with 2 deviations:" in shown
        assert "costs     a round: up to" in shown
        assert "pinned here with this key: " in shown
        rosters |= set(re.findall(r"roster +(SHA256:\S+)", shown))
        typist.type(
            folder, typist.words("wardround-site approve", **{"3f8a90c2d1e4": plan})
        )
    assert typist.started[-1].wait(300) == 0, followed.read_text()
    shown = typist.type(office, status)
    for name in SITES:
        assert f"{name}: takes part" in shown
    assert len(rosters) == 1

    # Afterwards: each ledger, compared with the server's answers.
    for name, folder in sites.items():
        for verb in ("show", "verify"):
            typist.type(folder, typist.words(f"wardround-site ledger {verb}"))
        typist.type(folder, typist.words("wardround-site ledger export", st_marys=name))
        copy(folder / f"{name}.jsonl", office)
    audit = typist.words("wardround audit", north="lakeside")
    shown = typist.type(office, audit)
    for name in SITES:
        assert name in shown
    # The model comes back, and each site verifies it.
    for folder in sites.values():
        copytree(office / "outputs" / "trial" / "model", folder / "model")
        shown = typist.type(folder, typist.words("wardround-site verify-model"))
        assert shown.splitlines()[-1].startswith("verified: "), shown
    assert (
        json.loads((office / "outputs/trial/status.json").read_text())["state"]
        == "finished"
    )
