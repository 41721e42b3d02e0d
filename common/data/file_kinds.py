"""Kinds of files that are no CSV, JSONL or Parquet, told by their first bytes."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

_HEAD = 1024
"""Bytes that are read to tell the kind of a file."""
_AS_CSV = "Open it in a spreadsheet program and save it as CSV (UTF-8)"
_UNPACK = "Unpack it and name the file inside"
_WRITE_PARQUET = "Read it with the program that wrote it, and write Parquet or CSV"
PARQUET_SIGN = b"PAR1"

_SIGNS = (
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Excel workbook (.xls)", _AS_CSV),
    (b"\x1f\x8b", "packed with gzip", _UNPACK),
    (b"\xfd7zXZ\0", "packed with xz", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "packed with zstd", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "packed with 7-Zip", _UNPACK),
    (b"ARROW1", "an Arrow or Feather file", _WRITE_PARQUET),
    (b"Obj\x01", "an Avro file", _WRITE_PARQUET),
    (b"SQLite format 3\0", "an SQLite database", "Export the table as CSV"),
    (b"%PDF-", "a PDF", "Export the texts as CSV"),
    (b"{\\rtf", "a text in RTF", "Export the texts as CSV"),
)
"""First bytes of a file, its kind, and the next step."""
_BZIP2 = re.compile(rb"BZh[1-9]1AY&SY")
_MARKUP = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype|html|table|meta|\?xml)", re.I)


def other_kind(path: Path) -> tuple[str, str] | None:
    """Return kind and next step of a file that no reader reads; None for texts and Parquet.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD)
    for sign, kind, step in _SIGNS:
        if head.startswith(sign):
            return kind, step
    if _BZIP2.match(head):
        return "packed with bzip2", _UNPACK
    if head.startswith(b"PK\x03\x04"):
        return _in_zip(path)
    if _MARKUP.match(head):
        return "HTML or XML", _AS_CSV
    return None


def _in_zip(path: Path) -> tuple[str, str]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError):
        return "a damaged ZIP archive", "Copy it again"
    if any(name.startswith("xl/") for name in names):
        return "an Excel workbook (.xlsx)", _AS_CSV
    if "mimetype" in names and "content.xml" in names:
        return "an OpenDocument file (.ods)", _AS_CSV
    return "packed with ZIP", _UNPACK


def is_parquet(path: Path) -> bool:
    """Return whether a file begins as Parquet does. Raises OSError."""
    with path.open("rb") as file:
        return file.read(len(PARQUET_SIGN)) == PARQUET_SIGN
