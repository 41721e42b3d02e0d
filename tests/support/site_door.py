"""`wardround-site` as a program of its own, on this checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Torch takes seconds to import, and few tests are about the device.
QUICK = ("--skip-check", "device")
# Runs the command line with another program in Flower's place.
WITH_FAKE = (
    "import sys, client.join as j, client.cli as c\n"
    "fake = sys.argv.pop(1); j.find_supernode = lambda: fake; c.main()"
)


def command_line(*words: str, fake: Path | None = None) -> list[str]:
    """`wardround-site WORDS`, on this checkout."""
    if fake is None:
        return [sys.executable, "-m", "client.kit.cli", *words]
    return [sys.executable, "-c", WITH_FAKE, str(fake), *words]


def environment() -> dict[str, str]:
    """Ours, without its proxies."""
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return kept | {"PYTHONPATH": str(ROOT)}


def site_command(*words: str, folder: Path, fake: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    return subprocess.run(
        command_line(*words, fake=fake),
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
