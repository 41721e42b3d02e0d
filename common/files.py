"""Files that are written whole or not at all, and hashes of files."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any

from safetensors import SafetensorError


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file or folder beside `path`, flush it, and move it to `path`.

    Raises:
        OSError: it could not be written; names `path`, which then has its old content.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    old = path.with_name(f".{path.name}.old")
    for left_over in (temporary, old):
        _remove(left_over)
    with named(path):
        try:
            write(temporary)
            _apply_umask(temporary)
            written = [*temporary.rglob("*"), temporary]
            for item in written:
                to_disk(item)
            if path.is_dir():
                # A folder cannot be replaced in one step, and a half deleted one would look whole.
                path.replace(old)
            temporary.replace(path)
            to_disk(path.parent)
        except (OSError, SafetensorError):
            _remove(temporary)
            raise
    if old.is_dir():
        shutil.rmtree(old)


def _apply_umask(written: Path) -> None:
    """Give files of weights the access rights of all other new files: safetensors sets 0600."""
    weights = list(written.rglob("*.safetensors"))
    if not weights:
        return
    usual = written / ".usual"
    usual.touch()
    mode = stat.S_IMODE(usual.stat().st_mode)
    usual.unlink()
    for file in weights:
        file.chmod(mode)


def require_readable(path: Path) -> None:
    """Raise PermissionError if this user may not read a file or a folder that is there.

    safetensors and transformers report such a file as missing.
    """
    wanted = os.R_OK | os.X_OK if path.is_dir() else os.R_OK
    if path.exists() and not os.access(path, wanted):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def keep_private() -> None:
    """Make all later files and folders of this process private to its user (0600, 0700)."""
    os.umask(0o077)


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Turn every failure to write into an OSError that names `path`."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    except SafetensorError as error:  # safetensors has its own error for a full disk
        raise OSError(errno.EIO, str(error), str(path)) from error


def stamp_of(path: Path) -> tuple[int, ...]:
    """Return values that change with every write to a file. Raises OSError."""
    found = path.stat()
    return (
        found.st_dev,
        found.st_ino,
        found.st_size,
        found.st_mtime_ns,
        found.st_ctime_ns,
    )


def file_sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file; an unchanged file is not read again.

    Raises:
        OSError: it cannot be read; names `path`.
    """
    with named(path):
        return _sha256_of(path, stamp_of(path))


@lru_cache(maxsize=1024)
def _sha256_of(path: Path, stamp: tuple[int, ...]) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str, encoding: str = "utf-8") -> None:
    """Write or replace a text file, atomically. Raises OSError if that fails."""
    write_atomically(path, lambda part: part.write_text(text, encoding))


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, atomically."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def append_line(path: Path, line: str) -> None:
    """Add a line to a file, and flush it to the disk.

    Args:
        line: with its line break.

    Raises:
        OSError: it cannot be written; names `path`.
    """
    with named(path), path.open("a", encoding="utf-8") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def to_disk(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk. Raises OSError."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Writer:
    """Writes in the background, in order, by one thread; its context waits for the last write."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._writes: list[Future[Any]] = []

    def write(self, write: Callable[..., Any], *arguments: Any) -> None:
        """Call `write(*arguments)` in the background, after all earlier writes."""
        future = self._thread.submit(write, *arguments)
        self._writes.append(future)

    def wait(self) -> None:
        """Return when everything is written. Raises OSError if a write failed."""
        while self._writes:
            oldest = self._writes.pop(0)
            oldest.result()

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._thread.shutdown(wait=True)
        if error is None:
            self.wait()
