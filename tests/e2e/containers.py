"""A copy of the project as Docker containers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass
class Stack:
    """A copy of the project with its containers."""

    folder: Path
    ups: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def compose(self, *words: str, seconds: float = 120.0) -> str:
        """What `docker compose WORDS` prints; fails the test if it fails."""
        done = subprocess.run(
            ["docker", "compose", *words],
            cwd=self.folder,
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        assert done.returncode == 0, (
            f"docker compose {words[0]}: {done.stdout[-4000:]}{done.stderr[-4000:]}"
        )
        return done.stdout

    def up(self, *options: str, overrides: str = "") -> subprocess.Popen[bytes]:
        """Start the documented command, which ends with the run and its exit code."""
        words = [
            "docker",
            "compose",
            "up",
            *options,
            "--attach",
            "run",
            "--exit-code-from",
            "run",
        ]
        with (self.folder / "up.log").open("ab") as log:
            environment = self._environment() | {"OVERRIDES": overrides}
            self.ups.append(
                subprocess.Popen(
                    words, cwd=self.folder, env=environment, stdout=log, stderr=log
                )
            )
        return self.ups[-1]

    def _environment(self) -> dict[str, str]:
        # A project of its own: a federation that someone runs on this machine is left alone.
        given = {"COMPOSE_PROJECT_NAME": f"wardround-test-{os.getpid()}"}
        return os.environ | given | torch_of_this_machine()

    def health(self) -> dict[str, str]:
        """Health by service, of those that run and have one."""
        lines = self.compose("ps", "--format", "json").splitlines()
        found = [item for line in lines for item in _as_list(json.loads(line))]
        return {item["Service"]: item["Health"] for item in found if item["Health"]}

    def inspect(self, service: str) -> Any:
        """All that the engine knows of a service's container."""
        container = self.compose("ps", "--all", "--quiet", service).strip()
        found = subprocess.run(
            ["docker", "inspect", container], capture_output=True, check=True
        )
        return json.loads(found.stdout)[0]

    def addresses(self, service: str) -> dict[str, str]:
        """Its IP address in each network, by the network's name in the compose file."""
        networks = self.inspect(service)["NetworkSettings"]["Networks"]
        return {
            name.rpartition("_")[2]: facts["IPAddress"]
            for name, facts in networks.items()
        }

    def end(self, up: subprocess.Popen[bytes], seconds: float) -> int:
        """Wait for the run's end; returns the exit code."""
        try:
            return up.wait(seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f"not over after {seconds:g} s: {self.log()}")

    def log(self) -> str:
        """The end of what was printed so far."""
        return (self.folder / "up.log").read_text(errors="replace")[-4000:]

    def close(self) -> None:
        """Leave no container, network or volume."""
        for up in self.ups:
            if up.poll() is None:
                up.kill()
                up.wait()
        self.compose("down", "--volumes", "--timeout", "5", "--remove-orphans")


@cache
def torch_of_this_machine() -> dict[str, str]:
    """Return TORCH_SHA256 of the PyTorch that pip installs here, unless it is the published one."""
    hashed = (ROOT / "requirements" / "torch.txt").read_text(encoding="ascii")
    pinned = next(
        line.split()[0] for line in hashed.splitlines() if line.startswith("torch==")
    )
    words = (
        "install",
        "--dry-run",
        "--ignore-installed",
        "--no-deps",
        "--quiet",
        "--report",
        "-",
        pinned,
    )
    done = subprocess.run(
        [sys.executable, "-m", "pip", *words],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=600,
    )
    (found,) = json.loads(done.stdout)["install"]
    digest = str(found["download_info"]["archive_info"]["hashes"]["sha256"])
    return {} if f"sha256:{digest}" in hashed else {"TORCH_SHA256": digest}


def _as_list(read: Any) -> list[Any]:
    return (
        read if isinstance(read, list) else [read]
    )  # older versions of compose print one list


def copy_project(target: Path) -> None:
    """What a fresh clone has, as far as it matters here."""
    target.mkdir()
    for name in (
        "wardround",
        "common",
        "client",
        "server",
        "conf",
        "docker",
        "requirements",
    ):
        shutil.copytree(
            ROOT / name,
            target / name,
            ignore=shutil.ignore_patterns("__pycache__"),
            symlinks=True,
        )
    for name in (
        "pyproject.toml",
        "constraints.txt",
        "README.md",
        "LICENSE",
        ".dockerignore",
    ):
        shutil.copy(ROOT / name, target / name)
    for path in ROOT.glob("docker-compose*.yml"):
        if path.name != "docker-compose.override.yml":
            shutil.copy(path, target / path.name)
