"""Sites whose version differs from the coordinator's."""

from __future__ import annotations

import pytest

from wardround.client.kit.checks.machine import fits
from wardround.common.versions import work_together

ONE = "0.1.0"
"""An example: the table says which versions work with it."""


@pytest.mark.parametrize(
    ("theirs", "works"),
    [
        ("0.1.0", True),
        ("0.1.7", True),
        ("0.2.0", True),
        ("0.0.9", True),
        ("0.2", True),
        ("0.3.0", False),
        ("1.1.0", False),
        ("10.1.0", False),
        ("", False),
        ("new", False),
    ],
)
def test_versions_at_most_one_minor_version_apart_work_together(
    theirs: str, works: bool
) -> None:
    assert work_together(ONE, theirs) is works
    assert work_together(theirs, ONE) is works
    assert fits("wardround", ONE, theirs) is works
