"""Writes that are whole or not there, and hashes of files."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any

from safetensors import SafetensorError


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary neighbour of `path`, bring it to the disk, then put it in place.

    Raises:
        OSError: it could not be written; names `path`, where whatever stood before still stands.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = (
        path.with_name(f".{path.name}.{suffix}") for suffix in ("part", "old")
    )
    for left_over in (temporary, old):
        if left_over.is_dir():
            shutil.rmtree(left_over)
        else:
            left_over.unlink(missing_ok=True)
    with named(path):
        try:
            write(temporary)
            for item in [*temporary.rglob("*"), temporary]:
                to_disk(item)
            if path.is_dir():  # a folder is not replaced in one step, and half deleted it would look whole
                path.replace(old)
            temporary.replace(path)
            to_disk(path.parent)
        except (OSError, SafetensorError):
            shutil.rmtree(temporary) if temporary.is_dir() else temporary.unlink(
                missing_ok=True
            )
            raise
    if old.is_dir():
        shutil.rmtree(old)


def keep_private() -> None:
    """From now on, new files and folders of this process are for its own user alone (0600, 0700)."""
    os.umask(0o077)


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Let every failure to write be an OSError that names `path`."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    except SafetensorError as error:  # safetensors has its own error for a full disk
        raise OSError(errno.EIO, str(error), str(path)) from error


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal; it is read again only if it was written since.

    Raises:
        OSError: it cannot be read; names `path`.
    """
    with named(path):
        found = path.stat()
        stamp = (
            found.st_dev,
            found.st_ino,
            found.st_size,
            found.st_mtime_ns,
            found.st_ctime_ns,
        )
        return _sha256_of(path, stamp)


@lru_cache(maxsize=1024)
def _sha256_of(path: Path, stamp: tuple[int, ...]) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, atomically."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))


def to_disk(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk. Raises OSError."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Writer:
    """Writes beside the work, in their order, by one thread; a context manager that waits for the last."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._writes: list[Future[Any]] = []

    def write(self, write: Callable[..., Any], *arguments: Any) -> None:
        """Have `write(*arguments)` called after all that was asked for before."""
        self._writes.append(self._thread.submit(write, *arguments))

    def wait(self) -> None:
        """Return once everything is written. Raises what a write raised: OSError."""
        while self._writes:
            self._writes.pop(0).result()

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
