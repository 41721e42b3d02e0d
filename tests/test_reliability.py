"""docs/reliability.md and the tests it names stay together."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
# Every test of these files is on the page.
WHOLE_FILES = (
    "test_attacks",
    "test_door",
    "test_faults",
    "test_hostile_server",
    "test_ledger",
    "test_machines",
    "test_rounds",
)
# A test of the tests' own tools.
TOOLS = {"test_the_clocks_of_the_tests_are_wrong"}


def names_in(*files: Path) -> set[str]:
    """Names of the test functions."""
    texts = [file.read_text(encoding="utf-8") for file in files]
    return {
        name for text in texts for name in re.findall(r"^def (test_\w+)", text, re.M)
    }


def test_every_test_on_the_page_exists() -> None:
    files = list((ROOT / "tests").rglob("test_*.py"))
    there = names_in(*files) | {file.name for file in files}
    rows = [row for row in PAGE.splitlines() if row.startswith("|") and "`test_" in row]
    named = {name for row in rows for name in re.findall(r"`(test_\w+(?:\.py)?)`", row)}
    assert len(rows) >= 35
    assert named - there == set()


def test_every_tested_fault_is_on_the_page() -> None:
    files = [ROOT / "tests" / "e2e" / f"{name}.py" for name in WHOLE_FILES]
    found = names_in(*files) - TOOLS
    assert {name for name in found if f"`{name}`" not in PAGE} == set()
