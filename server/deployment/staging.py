"""The app that is sent to the server app and the sites: this very code, copied from where it is installed."""

from __future__ import annotations

import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = ("server", "client", "common", "conf")
_FILES = ("pyproject.toml", "LICENSE")
# A wheel has no place beside its packages for these two; pyproject.toml puts them here.
_IN_WHEEL = ROOT / "server" / "bundle"


def stage_app(target: Path) -> Path:
    """Fill the new folder `target` with what Flower bundles; returns it.

    Raises:
        ValueError: this installation lacks a part.
    """
    for package in _PACKAGES:
        unwanted = shutil.ignore_patterns("__pycache__", _IN_WHEEL.name)
        shutil.copytree(_there(ROOT / package), target / package, ignore=unwanted)
    for name in _FILES:
        bundled = _IN_WHEEL / name
        shutil.copyfile(bundled if bundled.exists() else _there(ROOT / name), target / name)
    return target


def _there(path: Path) -> Path:
    if not path.exists():
        raise ValueError(f"'{path}' is missing from this installation. Install Wardround again.")
    return path
