"""The form of a text file: its encoding, and the delimiter of a CSV."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from dataclasses import dataclass
from encodings.aliases import aliases
from pathlib import Path
from typing import Literal

from wardround.common.explain import nearest

COMMA, TAB = ",", "\t"
# A tab is hard to type on a command line and to see in a file.
_WORDS = {"tab": TAB, r"\t": TAB}
_NO_DELIMITER = "\"'\r\n\0"


@dataclass(frozen=True)
class FileForm:
    """The settings of a file's form; None means the usual form.

    Raises:
        ValueError: the delimiter or the encoding is not possible.
    """

    delimiter: str | None = None
    """Delimiter of a CSV: one character, or `tab`; None is a comma."""
    encoding: str | None = None
    """Name of a Python codec; None is UTF-8, with or without a byte order mark."""
    said_in: Literal["settings", "site.yaml", "options"] = "settings"
    """The place of the settings, for messages: `data.…` on a command line, site.yaml, or
    options as `--delimiter`."""

    def __post_init__(self) -> None:
        if len(self.separator) != 1 or self.separator in _NO_DELIMITER:
            raise ValueError(
                f"{self.key('delimiter')} is {self.delimiter!r}. Give one "
                "character, for example ;, or the word tab, or null for a comma. It "
                "must not be a quote, a line break or NUL."
            )
        if self.encoding is not None and not _is_text_encoding(self.encoding):
            raise ValueError(
                f"{self.key('encoding')} is {self.encoding!r}, which is not a text "
                f"encoding of Python.{nearest(self.encoding, sorted(aliases))} Give for "
                "example windows-1252 or utf-16, or null for UTF-8."
            )

    @property
    def separator(self) -> str:
        """The delimiter in the file."""
        if self.delimiter is None:
            return COMMA
        return _WORDS.get(self.delimiter, self.delimiter)

    @property
    def codec(self) -> str:
        """The encoding for `open`. For UTF-8 it skips the byte order mark."""
        name = codecs.lookup(self.encoding or "utf-8").name
        return "utf-8-sig" if name == "utf-8" else name

    @property
    def encoding_name(self) -> str:
        """The encoding's name for people."""
        name = self.encoding or "utf-8"
        if name.lower().startswith("windows"):
            return name.capitalize()
        return name.upper()

    def require_use(self, paths: Iterable[Path]) -> None:
        """Raise ValueError if a setting has no effect on any of these files."""
        kinds = {path.suffix.lower() for path in paths}
        named = [kind.removeprefix(".").upper() for kind in sorted(kinds)]
        names = " and ".join(named)
        for key, about, without in (
            ("delimiter", "CSV", {".jsonl", ".parquet"}),
            ("encoding", "CSV and JSONL", {".parquet"}),
        ):
            value = getattr(self, key)
            if value is None or not kinds <= without:
                continue
            raise ValueError(
                f"{self.key(key)} is {value!r}, but it is for {about} files, and {names} has no "
                f"{key}. {self.unset(key)}."
            )

    def key(self, name: str) -> str:
        """Return the full name of the setting `delimiter` or `encoding`."""
        return f"--{name}" if self.said_in == "options" else f"data.{name}"

    def unset(self, name: str) -> str:
        """Return the next step that takes the setting back."""
        if self.said_in == "settings":
            return f"Set {self.key(name)}=null"
        where = " from site.yaml" if self.said_in == "site.yaml" else ""
        return f"Remove {self.key(name)}{where}"

    def step_to(self, other: FileForm) -> str:
        """Return the settings that change this form into the other, as a next step."""
        changes = []
        if other.codec != self.codec:
            changes.append(("encoding", str(other.encoding)))
        if other.separator != self.separator:
            delimiter = "tab" if other.separator == TAB else f'"{other.separator}"'
            changes.append(("delimiter", delimiter))
        if self.said_in == "site.yaml":
            lines = [f"{self.key(key)}: {value}" for key, value in changes]
            return f"Set {' and '.join(lines)} in site.yaml"
        words = [f"{self.key(key)}={value}" for key, value in changes]
        if self.said_in == "options":
            return f"Give {' '.join(words)}"
        # Hydra needs the quotes inside a word, so the whole word is quoted for the shell.
        pasted = [f"'{word}'" if '"' in word else word for word in words]
        return f"Set {' '.join(pasted)}"


def _is_text_encoding(name: str) -> bool:
    try:
        return "a;b".encode(name).decode(name, errors="replace") == "a;b"
    except (LookupError, ValueError):  # rot13 and base64 are codecs, but not for text
        return False
