"""Write requirements/*.txt: every package with its version and the SHA-256 of each of its files.

    python -m release.requirements      (or: make requirements)

Versions come from constraints.txt, hashes from the package index, both through `uv pip compile`;
constraints.txt also pins uv. The files are for Linux on x86_64 and aarch64 and
every supported Python.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path

from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "requirements"
CONSTRAINTS = ROOT / "constraints.txt"
PROJECT = ROOT / "pyproject.toml"
PYTHONS = ("3.11", "3.12", "3.13")
MACHINES = ("x86_64", "aarch64")
SBOM = ("cyclonedx-bom",)
"""Packages that `make sbom` installs in a separate environment."""
_SETUPTOOLS = "setuptools"
"""Builds the only package without a wheel, antlr4-python3-runtime."""
_OF_TORCH = re.compile(r"(torch|triton|cuda-.*|nvidia-.*)")
"""PyTorch, and packages that only its GPU build for Linux needs."""
_SECONDS = 600.0
_HEAD = """\
# {title}
# Made by `make requirements`; do not change it by hand.
"""
_FILES = {
    "build": "Packages that build wheels. Install them before the others.",
    "run": "Packages that sites and the server need, without PyTorch.",
    "torch": "PyTorch of the package index, and packages that its Linux build needs.",
    "demo": "The extra demo: packages with real texts and a pre-trained encoder.",
    "dev": "The extras ray, launch and dev: the other packages of constraints.txt.",
    "sbom": "Packages of `make sbom`, which has its own environment.",
}


def main() -> None:
    """Write all files. Raises subprocess.CalledProcessError if uv cannot resolve them."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))
    needed = project["project"]["dependencies"]
    extras = project["project"]["optional-dependencies"]
    run = compiled(needed)
    torch = {name: block for name, block in run.items() if _OF_TORCH.fullmatch(name)}
    demo = without(compiled([*needed, *extras["demo"]]), run)
    every = compiled([*needed, *(line for lines in extras.values() for line in lines)])
    files = {
        "build": compiled([*project["build-system"]["requires"], _SETUPTOOLS]),
        "run": without(run, torch),
        "torch": torch,
        "demo": demo,
        "dev": without(every, run | demo),
        "sbom": compiled(SBOM),
    }
    FOLDER.mkdir(exist_ok=True)
    for name, blocks in files.items():
        text = _HEAD.format(title=_FILES[name]) + "".join(blocks.values())
        (FOLDER / f"{name}.txt").write_text(text, encoding="ascii")


def compiled(lines: Iterable[str]) -> dict[str, str]:
    """Return the lines of every package that these requirements need on a supported machine, by
    name."""
    done = subprocess.run(
        [
            Path(sys.executable).with_name("uv"),
            "pip",
            "compile",
            "--no-config",
            "--quiet",
            "--universal",
            "--python-version",
            PYTHONS[0],
            "--generate-hashes",
            "--no-header",
            "--no-annotate",
            "--constraints",
            CONSTRAINTS,
            "-",
        ],
        input="\n".join(lines),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=_SECONDS,
    )
    blocks = re.findall(r"^\S.*(?:\n +.*)*\n", done.stdout, re.MULTILINE)
    found = {canonicalize_name(requirement_of(block).name): block for block in blocks}
    return {
        name: block
        for name, block in found.items()
        if is_for_linux(requirement_of(block).marker)
    }


def requirement_of(block: str) -> Requirement:
    """Return the requirement in the first line of a package's block, without its hashes."""
    return Requirement(block.splitlines()[0].rstrip("\\ "))


def is_for_linux(marker: Marker | None) -> bool:
    """Return True if a package is installed on a supported machine with a supported Python."""
    if marker is None:
        return True
    return any(
        marker.evaluate(_linux(python, machine))
        for python in PYTHONS
        for machine in MACHINES
    )


def _linux(python: str, machine: str) -> dict[str, str]:
    """Return the values of markers for such a machine."""
    return {
        "sys_platform": "linux",
        "platform_system": "Linux",
        "os_name": "posix",
        "python_version": python,
        "python_full_version": f"{python}.0",
        "platform_machine": machine,
    }


def without(blocks: Mapping[str, str], others: Mapping[str, str]) -> dict[str, str]:
    """Return the packages that are not in `others`."""
    return {name: block for name, block in blocks.items() if name not in others}


if __name__ == "__main__":
    main()
