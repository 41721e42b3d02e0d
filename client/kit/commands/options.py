"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def option(name: str, help: str, metavar: str | None = None, **more: Any) -> Any:
    """Describe an option. Args: metavar: the word for its value in `--help`."""
    return typer.Option(name, help=help, metavar=metavar, **more)


SITE_FILE = Path("site.yaml")
Site = Annotated[Path, option("--site", "The site file.", "FILE")]
SkipCheck = Annotated[
    list[str] | None,
    option("--skip-check", "A check to leave out; repeatable.", "NAME"),
]
