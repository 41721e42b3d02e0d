"""Sites whose version differs from the coordinator's."""

from __future__ import annotations

import pytest

from wardround.client.kit.checks.machine import fits
from wardround.common.versions import installed, work_together

HERE = "0.1.0"


def test_these_tests_assume_this_version() -> None:
    assert installed() == HERE


@pytest.mark.parametrize(
    ("theirs", "works"),
    [
        *(
            ("0.1.0", True),
            ("0.1.7", True),
            ("0.2.0", True),
            ("0.0.9", True),
            ("0.2", True),
        ),
        *(
            ("0.3.0", False),
            ("1.1.0", False),
            ("10.1.0", False),
            ("", False),
            ("new", False),
        ),
    ],
)
def test_one_minor_version_apart_works(theirs: str, works: bool) -> None:
    assert work_together(HERE, theirs) is works
    assert work_together(theirs, HERE) is works
    assert fits("wardround", HERE, theirs) is works
