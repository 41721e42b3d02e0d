"""`wardround-site` of this checkout, in a new process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Torch takes seconds to import, and few tests are about the device.
QUICK = ("--skip-check", "device")
FEW_CHECKS = ("--skip-check", "lengths", "--skip-check", "model")
"""Options for tests that start `join` often: these two checks import torch too."""


def command_line(*words: str) -> list[str]:
    """Return the command line of `wardround-site WORDS` of this checkout."""
    return [sys.executable, "-m", "wardround.client.kit.cli", *words]


def environment() -> dict[str, str]:
    """Return the environment of this process without its proxies."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.lower().endswith("_proxy")
    }
    return kept | {"PYTHONPATH": str(ROOT)}


def site_command(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run `wardround-site WORDS` to its end."""
    return subprocess.run(
        command_line(*words),
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )
