"""Real federations on loopback."""

from __future__ import annotations

import subprocess
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.e2e.federation import Federation
from tests.e2e.runs import start_sites, texts_of, write_sites

_LEFT_OUT = pytest.StashKey[int]()
_LAST_LINES = 40


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    """A server folder on free ports; nothing runs yet, and nothing runs afterwards."""
    made = Federation(tmp_path / "federation")
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def three(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path
) -> Iterator[Federation]:
    """A server and three sites at work, for all tests of a module: starting them is slow.

    A test that needs all of them begins with `restore`.
    """
    folder = tmp_path_factory.mktemp("three")
    made = Federation(folder / "federation")
    texts = write_sites(texts_of(made))
    try:
        made.up()
        start_sites(made, texts, tiny_model)
        yield made
    finally:
        made.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the last lines of every program of its federation to the report of a failed test."""
    report = yield
    if report.failed:
        for made in getattr(item, "funcargs", {}).values():
            if isinstance(made, Federation):
                report.sections += last_lines(made)
    return report


def last_lines(federation: Federation) -> list[tuple[str, str]]:
    """Return the name of each log, and its last lines."""
    found = []
    for log in sorted(federation.root.glob("*.log")):
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        found.append((log.name, "\n".join(lines[-_LAST_LINES:])))
    return found


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
