"""Guesses about the form of a file: for the next step in a message, never to read it.

Excel's line `sep=;` is no guess: the file says it itself.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from wardround.common.file_form import COMMA, TAB, FileForm
from wardround.common.words import label_name

_GUESSED = (COMMA, ";", TAB, "|")
_SAMPLE = 2**16
_EXCEL_LINE = re.compile(r'"?sep=([^"\0])"?[\r\n]*', re.I)
_LONGEST_EXCEL_LINE = 12
_MOST_TITLES = 20
"""Lines above the header that are looked at."""
_MOST_LINES = 5
"""Lines that a message names."""
_MOST_STRANGE = 0.1
"""Largest share of the signs outside ASCII that may be strange in a windows-1252 file."""
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",  # it begins as UTF-16 does, so it comes first
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_MANY_BYTES = 200
"""Of 256; an encoding that uses several bytes for a character has fewer."""
_LINE_END = re.compile("\r\n|\r|\n")
_FOREIGN = re.compile("[^\0-\x7f]+")
_LETTER = r"[^\W\d_]"
_SIGNS = "\xa1-\xac\xae-\xb6\xb8-\xbf\xd7\xf7\u02c6\u02dc\u2018\u201a\u201c-\u2022\u2026\u2030"
_STRANGE = re.compile(
    "[\xc0-\xff]{3,}"  # letters with accents in a row
    "|(?<=[a-z])[\u0152\u0160\u0178\u017d]"  # capitals after small letters
    f"|(?<={_LETTER})[{_SIGNS}]+(?={_LETTER})"  # signs inside words
)
"""Signs that hardly stand so in Western texts."""


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
        form.said_in,
    )
    if (found.codec, found.separator) == (form.codec, form.separator):
        return None
    looks = f"the file looks like {found.encoding_name}"
    if found.separator != form.separator:
        sign = "a tab" if found.separator == TAB else f"'{found.separator}'"
        looks += f" with {sign} between columns"
    return f"{looks}. {form.step_to(found)}"


def excel_separator(path: Path, form: FileForm) -> str | None:
    """Return the delimiter in Excel's first line, such as `sep=;`; None without such a line."""
    try:
        with path.open(encoding=form.codec, newline="") as file:
            found = _EXCEL_LINE.fullmatch(file.readline(_LONGEST_EXCEL_LINE))
    except UnicodeError:
        return None
    return found and found[1]


def with_excel_line(path: Path, form: FileForm) -> FileForm:
    """Return the form with the delimiter of Excel's first line, if the file has such a line.

    Raises:
        ValueError: another delimiter is set.
    """
    separator = excel_separator(path, form)
    if separator is None:
        return form
    if form.delimiter is not None and form.separator != separator:
        raise ValueError(
            f"{path} begins with Excel's line sep={separator}, but {form.key('delimiter')} is "
            f"{form.delimiter!r}. {form.unset('delimiter')}."
        )
    return replace(form, delimiter=separator)


def header_elsewhere(path: Path, form: FileForm, wanted: Sequence[str]) -> str | None:
    """Say that the wanted columns are below the first line, or in quotes as a whole; else None."""
    try:
        with path.open(encoding=form.codec, newline="") as file:
            text = file.read(_SAMPLE)
    except UnicodeError:
        return None
    for sign in (form.separator, *_GUESSED):
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=sign)
        for number, row in enumerate(rows):
            if number > 0 and _holds(row, wanted):
                return (
                    f"line {rows.line_num} names the columns, but the file begins with other "
                    f"lines. Delete the lines above line {rows.line_num}."
                )
            if number == 0 and len(row) == 1 and _holds(_header(row[0], sign), wanted):
                return (
                    "every line is in quotes as a whole, so that it is one column. Export the "
                    "file again, and save it as CSV only once."
                )
            if number > _MOST_TITLES:
                break
    return None


def _holds(header: Sequence[str], wanted: Sequence[str]) -> bool:
    """Return whether a row holds the names of all wanted columns."""
    return set(map(label_name, wanted)) <= set(map(label_name, header))


def decoding_fault(content: bytes, form: FileForm) -> str | None:
    """Return the reason why this content cannot be decoded, with the first bad byte; None if it
    can."""
    error = _fault(content, form.codec)
    if error is None:
        return None
    if not isinstance(error, UnicodeDecodeError):
        return f"not {form.encoding_name}: {error}"
    before = content[: error.start].decode(_plain(form.codec), errors="replace")
    line = len(_LINE_END.findall(before)) + 1
    byte = f"byte {content[error.start]:#04x} at offset {error.start}"
    return f"not {form.encoding_name}: {byte}, line {line}"


def wrong_lines(content: bytes) -> str | None:
    """Say which lines of a file are not UTF-8, if most lines outside ASCII are; else None.

    Such a file is UTF-8 with a few wrong bytes. Any other encoding garbles the other lines.
    """
    lines = foreign_lines(content)
    wrong = [number for number, is_utf8 in lines if not is_utf8]
    if not wrong or 2 * len(wrong) > len(lines):
        return None
    shown = ", ".join(map(str, wrong[:_MOST_LINES]))
    more = f" and {len(wrong) - _MOST_LINES} more" if len(wrong) > _MOST_LINES else ""
    return (
        f"{len(lines) - len(wrong)} of {len(lines)} lines with signs outside ASCII are UTF-8, "
        f"but not line {shown}{more}. Write these lines again in UTF-8, or export the "
        "file again; another encoding would garble the other lines"
    )


def foreign_lines(content: bytes) -> list[tuple[int, bool]]:
    """Return number and `is it UTF-8` of every line that holds a byte outside ASCII."""
    return [
        (number, _fault(line, "utf-8") is None)
        for number, line in enumerate(content.splitlines(), start=1)
        if not line.isascii()
    ]


def misread(content: bytes, form: FileForm) -> str | None:
    """Say that a file is UTF-8 although another encoding is set; None if it is not.

    Nearly every file can be decoded as windows-1252, but hardly any file of another encoding
    of single bytes happens to be UTF-8.
    """
    if content.isascii() or not _has_single_bytes(form.codec):
        return None
    if _fault(content, "utf-8") is not None:
        return None
    return f"is UTF-8, but {form.key('encoding')} is {form.encoding}. {form.unset('encoding')}"


def _has_single_bytes(codec: str) -> bool:
    """Return whether nearly every byte alone is a character in this encoding."""
    faults = (_fault(bytes([byte]), codec) for byte in range(256))
    return sum(fault is None for fault in faults) > _MANY_BYTES


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
    """Guess the encoding of a file; None if no guess reads well.

    In this order: the byte order mark; UTF-16 if there are many zero bytes; the encoding that is
    set, unless the file is UTF-8; UTF-8; windows-1252 if that reads like words.
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
    set_name = form.encoding or "utf-8"
    if _fault(content, "utf-8") is None:
        is_set_right = content.isascii() and _is_ascii(set_name)
        return set_name if is_set_right else "utf-8"
    if _fault(content, set_name) is None:
        return set_name
    return "windows-1252" if _reads_as_western(content) else None


def _is_ascii(codec: str) -> bool:
    """Return whether this encoding writes ASCII as ASCII."""
    return "a".encode(codec) == b"a"


def _reads_as_western(content: bytes) -> bool:
    """Return whether a file reads well as windows-1252.

    It does not if most lines are UTF-8. Nor does it if signs stand inside words, or letters
    outside ASCII stand in long rows: then the file is in another encoding of single bytes.
    """
    if _fault(content, "windows-1252") is not None or wrong_lines(content) is not None:
        return False
    text = content.decode("windows-1252")
    num_foreign = sum(len(run) for run in _FOREIGN.findall(text))
    num_strange = sum(len(run) for run in _STRANGE.findall(text))
    return _MOST_STRANGE * num_foreign >= num_strange


def _guess_delimiter(
    content: bytes, encoding: str, form: FileForm, wanted: Sequence[str]
) -> str:
    """Guess the delimiter of a CSV.

    In this order: the delimiter that is set, or another, if the header then has the wanted columns;
    the one that is set, if it gives several columns; the one that gives the most columns.
    """
    text = content[:_SAMPLE].decode(FileForm(encoding=encoding).codec, errors="replace")
    headers = {sign: _header(text, sign) for sign in (form.separator, *_GUESSED)}
    if _holds(headers[form.separator], wanted):
        return form.separator
    for sign, header in headers.items():
        if _holds(header, wanted):
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
