"""How a text file is written: its encoding, and what stands between the columns of a CSV.

A file is read as the settings say. What it looks like instead is guessed only to say what to set.
"""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from encodings.aliases import aliases
from pathlib import Path

from wardround.common.explain import nearest

COMMA, TAB = ",", "\t"
# A tab is hard to write on a command line, and harder to see in a file.
_WORDS = {"tab": TAB, r"\t": TAB}
_NO_DELIMITER = "\"'\r\n\0"
_GUESSED = (COMMA, ";", TAB, "|")
_SAMPLE = 2**16
_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


@dataclass(frozen=True)
class FileForm:
    """What a person said about a file; None is what most files have.

    Raises:
        ValueError: a delimiter or an encoding that cannot be.
    """

    delimiter: str | None = None
    """Stands between the columns of a CSV: one character, or `tab`; None is a comma."""
    encoding: str | None = None
    """Name of a Python codec; None is UTF-8, with or without a byte order mark."""
    is_in_site_file: bool = False
    """Whether it was said in site.yaml, for messages; else it is data.delimiter=... of a command."""

    def __post_init__(self) -> None:
        if len(self.separator) != 1 or self.separator in _NO_DELIMITER:
            raise ValueError(
                f"data.delimiter is {self.delimiter!r}; it must be one character, and no quote, line break "
                "or NUL. Give for example ;, or the word tab, or null for a comma."
            )
        if self.encoding is not None and not _is_text_encoding(self.encoding):
            raise ValueError(
                f"data.encoding is {self.encoding!r}, which is no text encoding that Python knows."
                f"{nearest(self.encoding, sorted(aliases))} Give for example windows-1252 or utf-16, or null "
                "for UTF-8."
            )

    @property
    def separator(self) -> str:
        """The delimiter as it stands in the file."""
        return (
            COMMA
            if self.delimiter is None
            else _WORDS.get(self.delimiter, self.delimiter)
        )

    @property
    def codec(self) -> str:
        """The encoding as `open` takes it; the byte order mark of UTF-8 is no part of a text."""
        name = codecs.lookup(self.encoding or "utf-8").name
        return "utf-8-sig" if name == "utf-8" else name

    @property
    def encoding_name(self) -> str:
        """The encoding as people call it."""
        name = self.encoding or "utf-8"
        return name.capitalize() if name.lower().startswith("windows") else name.upper()

    def require_use(self, paths: Iterable[Path]) -> None:
        """Raise ValueError if a setting would do nothing, since none of these files has what it is about."""
        kinds = {path.suffix.lower() for path in paths}
        names = " and ".join(kind.removeprefix(".").upper() for kind in sorted(kinds))
        for key, about, without in (
            ("delimiter", "CSV", {".jsonl", ".parquet"}),
            ("encoding", "CSV and JSONL", {".parquet"}),
        ):
            value = getattr(self, key)
            if value is not None and kinds <= without:
                raise ValueError(
                    f"data.{key} is {value!r}, but it is about {about} files, and {names} has no {key}. "
                    + (
                        f"Remove data.{key} from site.yaml."
                        if self.is_in_site_file
                        else f"Set data.{key}=null."
                    )
                )

    def step_to(self, other: FileForm) -> str:
        """What to set so that this form becomes the other."""
        delimiter = "tab" if other.separator == TAB else f'"{other.separator}"'
        changes = []
        if other.codec != self.codec:
            changes.append(("encoding", str(other.encoding)))
        if other.separator != self.separator:
            changes.append(("delimiter", delimiter))
        if self.is_in_site_file:
            return f"Set {' and '.join(f'data.{key}: {value}' for key, value in changes)} in site.yaml"
        # A quote inside a word is the shell's; Hydra has to see it, so the word stands in quotes of its own.
        words = [f"data.{key}={value}" for key, value in changes]
        return "Set " + " ".join(f"'{word}'" if '"' in word else word for word in words)


def _is_text_encoding(name: str) -> bool:
    try:
        return "a;b".encode(name).decode(name, errors="replace") == "a;b"
    except (LookupError, ValueError):  # rot13 and base64 are codecs, but of no text
        return False


def looks_like(path: Path, form: FileForm, wanted: Sequence[str] = ()) -> str | None:
    """What the file looks like and what to set for that; None where nothing better than `form` is found.

    Args:
        wanted: columns that are looked for in the header of a CSV; () where columns are of no account.
    """
    content = path.read_bytes()
    encoding = _guess_encoding(content, form)
    if encoding is None:
        return None
    found = FileForm(
        _guess_delimiter(content, encoding, form, wanted),
        encoding,
        form.is_in_site_file,
    )
    if (found.codec, found.separator) == (form.codec, form.separator):
        return None
    looks = f"the file looks like {found.encoding_name}"
    if found.separator != form.separator:
        sign = "a tab" if found.separator == TAB else f"'{found.separator}'"
        looks += f" with {sign} between columns"
    return f"{looks}. {form.step_to(found)}"


def decoding_fault(content: bytes, form: FileForm) -> str | None:
    """Why a file of this content cannot be decoded, with the first byte that shows it; None if it can be."""
    error = _fault(content, form.codec)
    if error is None:
        return None
    if not isinstance(error, UnicodeDecodeError):
        return f"not {form.encoding_name}: {error}"
    line = (
        content[: error.start].decode(_plain(form.codec), errors="replace").count("\n")
        + 1
    )
    byte = f"byte {content[error.start]:#04x} at offset {error.start}"
    return f"not {form.encoding_name}: {byte}, line {line}"


def _plain(codec: str) -> str:
    """The codec whose offsets count from the start of the file."""
    return "utf-8" if codec == "utf-8-sig" else codec


def _fault(content: bytes, codec: str) -> UnicodeError | None:
    """What reading such a file raises: unlike `bytes.decode`, a reader of UTF-16 wants to see its mark."""
    try:
        codecs.getincrementaldecoder(_plain(codec))().decode(content, final=True)
    except UnicodeError as error:
        return error
    return None


def _guess_encoding(content: bytes, form: FileForm) -> str | None:
    """By its mark; by its zeros; what was said, where that fits; else what fits of the two usual ones."""
    for mark, name in _MARKS.items():
        if content.startswith(mark):
            return name if _fault(content, name) is None else None
    sample = content[:_SAMPLE]
    if 5 * sample.count(0) > len(
        sample
    ):  # every second byte, in a text of Latin letters
        name = (
            "utf-16-le" if sample[1::2].count(0) > sample[::2].count(0) else "utf-16-be"
        )
        return name if _fault(content, name) is None else None
    names = (form.encoding or "utf-8", "utf-8", "windows-1252")
    return next((name for name in names if _fault(content, name) is None), None)


def _guess_delimiter(
    content: bytes, encoding: str, form: FileForm, wanted: Sequence[str]
) -> str:
    """What was said, unless the header names the wanted columns, or falls apart at all, with another one."""
    text = content[:_SAMPLE].decode(FileForm(encoding=encoding).codec, errors="replace")
    headers = {sign: _header(text, sign) for sign in (form.separator, *_GUESSED)}
    if set(wanted) <= set(headers[form.separator]):
        return form.separator
    for sign, header in headers.items():
        if set(wanted) <= set(header):
            return sign
    if len(headers[form.separator]) > 1:
        return form.separator
    return max(headers, key=lambda sign: len(headers[sign]))


def _header(text: str, delimiter: str) -> list[str]:
    """The first row that is not blank; empty where it is broken."""
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        return next(filter(None, rows), [])
    except csv.Error:
        return []
