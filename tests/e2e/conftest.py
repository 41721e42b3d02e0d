"""Real federations on loopback."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.e2e.federation import Federation

_LEFT_OUT = pytest.StashKey[int]()
_FAILED = pytest.StashKey[bool]()
_LAST_LINES = 40


@pytest.fixture
def federation(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Federation]:
    """A server folder on free ports; nothing runs yet, and nothing runs afterwards.

    Of a test that failed, the last lines of every program are printed.
    """
    made = Federation(tmp_path / "federation")
    try:
        yield made
    finally:
        made.close()
        if request.node.stash.get(_FAILED, False):
            for log in sorted(made.root.glob("*.log")):
                lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
                sys.stdout.write(
                    "\n".join([f"--- {log.name}", *lines[-_LAST_LINES:], ""])
                )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember, for its fixtures, that a test failed."""
    report = yield
    if report.failed:
        item.stash[_FAILED] = True
    return report


def _engine_answers() -> bool:
    try:
        ran = subprocess.run(
            ["docker", "version"], capture_output=True, timeout=15, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return ran.returncode == 0


def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Leave Docker tests out where no engine answers; the last lines of the session say so."""
    docker = [item for item in items if item.get_closest_marker("docker")]
    if docker and not _engine_answers():
        config.stash[_LEFT_OUT] = len(docker)
        config.hook.pytest_deselected(items=docker)
        items[:] = [item for item in items if item not in docker]


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Say plainly what was left out."""
    left_out = config.stash.get(_LEFT_OUT, 0)
    if left_out:
        terminalreporter.write_line(
            f"{left_out} docker tests left out: no Docker engine answers"
        )
