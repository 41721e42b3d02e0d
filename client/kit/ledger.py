"""The commands about the ledger.

Each function returns the text for the person who typed the command.
"""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from wardround.client.node.journal import Journal
from wardround.client.node.ledger import Ledger
from wardround.client.site_file import SiteFile, signing_keys
from wardround.common.credentials import fingerprint, public_line
from wardround.common.files import write_atomically
from wardround.common.ledger import FILE_NAME, START, parts_of, walk
from wardround.common.wire.objects import is_id


def newest_in_words(site: SiteFile, number: int) -> str:
    """Describe the newest lines, newest last."""
    lines = walk(site.state / FILE_NAME)
    newest = deque(lines, maxlen=number)
    if not newest:
        return "Nothing came and nothing left."
    words = [entry.in_words() for _, entry in newest]
    return "\n".join(words)


def verify(site: SiteFile) -> str:
    """Check every line of the ledger. Raises ValueError if a line does not follow."""
    path = site.state / FILE_NAME
    number, newest = _verified(path)
    num_files = len(parts_of(path))
    return (
        f"{number} lines in {num_files} files, each follows the one before. "
        f"The newest is {newest}"
    )


def export(site: SiteFile, file: Path) -> str:
    """Copy all files of the ledger into one.

    Raises:
        ValueError: `file` exists, or the ledger is not whole.
    """
    path = site.state / FILE_NAME
    number, _ = _verified(path)
    if file.exists():
        raise ValueError(
            f"FILE is '{file}', which exists already. Choose another name."
        )
    parts = parts_of(path)
    write_atomically(file, partial(_join_files, parts))
    return f"Wrote {number} lines to {file}"


def accept(site: SiteFile, missing: str) -> str:
    """Record that the site continues without a line.

    Args:
        missing: hash of the line, which the server holds.

    Raises:
        ValueError: `missing` is not a hash, or the ledger belongs to another key.
    """
    if not is_id(missing):
        raise ValueError(
            f"HASH is '{missing}'; it must be the 64 letters and digits that `join` named."
        )
    key, _ = signing_keys(site)
    own = fingerprint(public_line(key))
    ledger = Ledger(site.state, site.name, own)
    with Journal(site.state, own), ledger:
        ledger.accept(missing)
    return "Noted. Next: start wardround-site join again."


def _verified(path: Path) -> tuple[int, str]:
    """Return the number of lines and the newest hash. Raises ValueError if not whole."""
    number = 0
    newest = START
    for found, entry in walk(path):
        number = entry.number
        newest = found
    return number, newest


def _join_files(files: Sequence[Path], target: Path) -> None:
    """Write the content of the files one after the other."""
    with target.open("wb") as joined:
        for file in files:
            with file.open("rb") as part:
                shutil.copyfileobj(part, joined)
