"""The form of a text file: its encoding, and the delimiter of a CSV.

A file is read as the settings say. A guess serves only to suggest other settings in an error
message.
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
# A tab is hard to type on a command line and to see in a file.
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
    """The settings of a file's form; None means the usual form.

    Raises:
        ValueError: the delimiter or the encoding is not possible.
    """

    delimiter: str | None = None
    """Delimiter of a CSV: one character, or `tab`; None is a comma."""
    encoding: str | None = None
    """Name of a Python codec; None is UTF-8, with or without a byte order mark."""
    is_in_site_file: bool = False
    """True if the settings are in site.yaml, False if on a command line; for messages."""

    def __post_init__(self) -> None:
        if len(self.separator) != 1 or self.separator in _NO_DELIMITER:
            raise ValueError(
                f"data.delimiter is {self.delimiter!r}. Give one character, for example ;, or the "
                f"word "
                "tab, or null for a comma. It must not be a quote, a line break or NUL."
            )
        if self.encoding is not None and not _is_text_encoding(self.encoding):
            raise ValueError(
                f"data.encoding is {self.encoding!r}, which is not a text encoding of Python."
                f"{nearest(self.encoding, sorted(aliases))} Give for example windows-1252 or "
                f"utf-16, or "
                "null for UTF-8."
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
        names = " and ".join(kind.removeprefix(".").upper() for kind in sorted(kinds))
        for key, about, without in (
            ("delimiter", "CSV", {".jsonl", ".parquet"}),
            ("encoding", "CSV and JSONL", {".parquet"}),
        ):
            value = getattr(self, key)
            if value is None or not kinds <= without:
                continue
            if self.is_in_site_file:
                step = f"Remove data.{key} from site.yaml."
            else:
                step = f"Set data.{key}=null."
            raise ValueError(
                f"data.{key} is {value!r}, but it is for {about} files, and {names} has no {key}. "
                f"{step}"
            )

    def step_to(self, other: FileForm) -> str:
        """Return the settings that change this form into the other, as a next step."""
        changes = []
        if other.codec != self.codec:
            changes.append(("encoding", str(other.encoding)))
        if other.separator != self.separator:
            delimiter = "tab" if other.separator == TAB else f'"{other.separator}"'
            changes.append(("delimiter", delimiter))
        if self.is_in_site_file:
            lines = [f"data.{key}: {value}" for key, value in changes]
            return f"Set {' and '.join(lines)} in site.yaml"
        words = [f"data.{key}={value}" for key, value in changes]
        # Hydra needs the quotes inside a word, so the whole word is quoted for the shell.
        return "Set " + " ".join(f"'{word}'" if '"' in word else word for word in words)


def _is_text_encoding(name: str) -> bool:
    try:
        return "a;b".encode(name).decode(name, errors="replace") == "a;b"
    except (LookupError, ValueError):  # rot13 and base64 are codecs, but not for text
        return False


def looks_like(path: Path, form: FileForm, wanted: Sequence[str] = ()) -> str | None:
    """Guess the file's form and say how to set it; None if no better form than `form` is found.

    Args:
        wanted: columns that the header of a CSV should have; () if columns do not matter.
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
    """Return the reason why this content cannot be decoded, with the first bad byte; None if it
    can."""
    error = _fault(content, form.codec)
    if error is None:
        return None
    if not isinstance(error, UnicodeDecodeError):
        return f"not {form.encoding_name}: {error}"
    before = content[: error.start].decode(_plain(form.codec), errors="replace")
    line = before.count("\n") + 1
    byte = f"byte {content[error.start]:#04x} at offset {error.start}"
    return f"not {form.encoding_name}: {byte}, line {line}"


def _plain(codec: str) -> str:
    """Return the codec that counts offsets from the start of the file."""
    return "utf-8" if codec == "utf-8-sig" else codec


def _fault(content: bytes, codec: str) -> UnicodeError | None:
    """Return the error of reading such a file; None if it can be read. UTF-16 needs its mark
    here."""
    try:
        codecs.getincrementaldecoder(_plain(codec))().decode(content, final=True)
    except UnicodeError as error:
        return error
    return None


def _guess_encoding(content: bytes, form: FileForm) -> str | None:
    """Guess the encoding of a file; None if no guess can decode it.

    In this order: the byte order mark; UTF-16 if there are many zero bytes; the encoding that is
    set; UTF-8; windows-1252.
    """
    for mark, name in _MARKS.items():
        if content.startswith(mark):
            return name if _fault(content, name) is None else None
    sample = content[:_SAMPLE]
    # In UTF-16, every second byte of Latin letters is zero.
    if 5 * sample.count(0) > len(sample):
        is_little_endian = sample[1::2].count(0) > sample[::2].count(0)
        name = "utf-16-le" if is_little_endian else "utf-16-be"
        return name if _fault(content, name) is None else None
    for name in (form.encoding or "utf-8", "utf-8", "windows-1252"):
        if _fault(content, name) is None:
            return name
    return None


def _guess_delimiter(
    content: bytes, encoding: str, form: FileForm, wanted: Sequence[str]
) -> str:
    """Guess the delimiter of a CSV.

    In this order: the delimiter that is set, or another, if the header then has the wanted columns;
    the one that is set, if it gives several columns; the one that gives the most columns.
    """
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
    """Return the first row that is not blank; empty if it is malformed."""
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        return next(filter(None, rows), [])
    except csv.Error:
        return []
