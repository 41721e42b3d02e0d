"""Real federations on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.federation import Federation


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    """A server folder on free ports; nothing runs yet, and nothing runs afterwards."""
    made = Federation(tmp_path / "federation")
    try:
        yield made
    finally:
        made.close()
