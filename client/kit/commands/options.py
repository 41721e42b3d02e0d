"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from wardround.common.command_line import option

SITE_FILE = Path("site.yaml")
Site = Annotated[Path, option("--site", "The site file.", "FILE")]
SkipCheck = Annotated[
    list[str] | None,
    option("--skip-check", "A check to leave out; repeatable.", "NAME"),
]
