"""Token ids kept on the disk between runs.

A file is named after a hash of the texts, the content of the tokenizer, the largest number of
tokens and the versions of the libraries. If any of them changes, another file is made. It holds N
and `starts` as int64, `ids` as int32, and the SHA-256 of these. An incomplete or damaged file is
made again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

MOST_BYTES = 4 << 30
"""Largest size of all files of a cache.

Above it, the files that were unused for longest are removed.
"""
Ragged = tuple[np.ndarray, np.ndarray]
"""ids (sum of lengths,) int32, starts (N + 1,) int64; text i is ids[starts[i]:starts[i + 1]]."""
_CHUNK = 10_000  # texts tokenised or hashed at a time
_WORD = 8  # bytes of a count
_SEAL = 32  # bytes of a SHA-256


def cache_folder(setting: str | None) -> Path | None:
    """Return the folder of `data.token_cache`: for `auto` the user's cache; None for no cache.

    A user without a home folder has no cache, and the log says so once.
    """
    if setting is None:
        return None
    if setting != "auto":
        return Path(setting)
    base = os.environ.get("XDG_CACHE_HOME", "")
    if base.startswith("/"):
        return _below(Path(base))
    try:
        return _below(Path.home() / ".cache")
    except RuntimeError:
        say_no_home()
        return None


def _below(caches: Path) -> Path:
    return caches / "wardround" / "tokens"


@cache
def say_no_home() -> None:
    """Warn once that nothing is kept."""
    log.warning(
        "data.token_cache: this user has no home folder, so token ids are not kept. Set "
        "data.token_cache to a folder, or to null."
    )


def chunks_of(texts: Sequence[str]) -> Iterator[list[str]]:
    """Yield the texts in lists of at most 10,000."""
    for start in range(0, len(texts), _CHUNK):
        yield list(texts[start : start + _CHUNK])


def cached(
    folder: Path | None,
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    make: Callable[[], Ragged],
) -> Ragged:
    """Return the token ids of these texts from `folder`; if they are not there, make and keep them.

    Token ids from the disk are mapped, not copied, and read-only. If the folder cannot be
    written, the log says so and nothing else changes. For a tokenizer without a Rust core nothing
    is kept, because its content is not known.
    """
    if not len(texts):
        return np.zeros(0, dtype=np.int32), np.zeros(1, dtype=np.int64)
    content = _tokenizer_content(tokenizer)
    if folder is None or content is None:
        return make()
    file = folder / f"{_key(texts, content, max_length)}.tokens"
    found = _read(file)
    if found is not None:
        return found
    made = make()
    try:
        _write(file, made)
        _trim(folder, newest=file)
    except OSError as error:
        log.warning(
            "data.token_cache: %s cannot be written (%s), so texts will be tokenised "
            "again. Set data.token_cache to another folder, or to null.",
            folder,
            error.strerror,
        )
    return made


def _tokenizer_content(tokenizer: PreTrainedTokenizerBase) -> str | None:
    core = getattr(tokenizer, "backend_tokenizer", None)
    if core is None:
        return None
    # These two are from the last call, and every call sets them again.
    parts = json.loads(core.to_str()) | {"truncation": None, "padding": None}
    versions = [version(library) for library in ("transformers", "tokenizers")]
    kind = [
        type(tokenizer).__name__,
        tokenizer.truncation_side,
        tokenizer.split_special_tokens,
        *versions,
    ]
    return json.dumps([kind, parts], sort_keys=True)


def _key(texts: Sequence[str], tokenizer_content: str, max_length: int) -> str:
    head = json.dumps([tokenizer_content, max_length, len(texts)])
    digest = hashlib.sha256(head.encode())
    for chunk in chunks_of(texts):
        # The lengths make the joined text unambiguous.
        digest.update(np.fromiter(map(len, chunk), np.int64, len(chunk)).tobytes())
        digest.update("".join(chunk).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _read(file: Path) -> Ragged | None:
    """Read a file of token ids; return None if it is missing or damaged."""
    try:
        memory = np.asarray(np.memmap(file, np.uint8, mode="r"))
    except (OSError, ValueError):  # NumPy maps no empty file
        return None
    with suppress(OSError):
        os.utime(file)  # so that it is among the last to be removed
    content = memory[:-_SEAL]
    seal = memory[-_SEAL:].tobytes()
    if len(content) < 2 * _WORD or hashlib.sha256(content.data).digest() != seal:
        return None
    num_texts = int(content[:_WORD].view(np.int64)[0])
    ids_at = _WORD * (2 + num_texts)
    return content[ids_at:].view(np.int32), content[_WORD:ids_at].view(np.int64)


def _write(file: Path, ragged: Ragged) -> None:
    """Write the whole file or nothing, readable by its owner only.

    Several processes may write the same file at once.
    """
    ids, starts = ragged
    head = np.array([len(starts) - 1], dtype=np.int64)
    parts = [np.ascontiguousarray(part).view(np.uint8) for part in (head, starts, ids)]
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with suppress(PermissionError):  # the folder belongs to another user
        file.parent.chmod(0o700)
    # The mode of a temporary file is 0600.
    descriptor, name = tempfile.mkstemp(prefix=".", suffix=".part", dir=file.parent)
    try:
        digest = hashlib.sha256()
        with os.fdopen(descriptor, "wb") as opened:
            for part in parts:
                digest.update(part.data)
                opened.write(part.data)
            opened.write(digest.digest())
        Path(name).replace(file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _trim(folder: Path, newest: Path) -> None:
    """Remove the files that were unused for longest, until the rest fits. Keep `newest`."""
    found = []
    for pattern in ("*.tokens", ".*.part"):
        for file in folder.glob(pattern):
            with suppress(OSError):  # another process has removed it
                about = file.stat()
                found.append((about.st_mtime_ns, about.st_size, file))
    total = sum(size for _, size, _ in found)
    for _, size, file in sorted(found, key=lambda entry: entry[0]):
        if total > MOST_BYTES and file != newest:
            file.unlink(missing_ok=True)
            total -= size
