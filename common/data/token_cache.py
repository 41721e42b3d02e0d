"""Token ids kept on the disk from one run to the next, found by what they were made of.

A file is named after a hash of the texts themselves, the tokenizer's content, the cut and the versions of the
libraries, so a changed text, tokenizer or setting finds nothing and never something old. The file holds N and
`starts` as int64, `ids` as int32, and the SHA-256 of all that: what is cut short or damaged is made anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

MOST_BYTES = 4 << 30
"""Of all files of a cache together; past it, those unused for longest are removed."""
Ragged = tuple[np.ndarray, np.ndarray]
"""ids (sum of lengths,) int32, starts (N + 1,) int64; text i is ids[starts[i]:starts[i + 1]]."""
_CHUNK = 10_000  # texts hashed at a time
_WORD, _SEAL = 8, 32  # bytes of a count, and of a SHA-256


def cache_folder(setting: str | None) -> Path | None:
    """The folder that `data.token_cache` stands for; `auto` is the user's own cache, None no cache."""
    if setting is None:
        return None
    if setting != "auto":
        return Path(setting).expanduser()
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "wardround" / "tokens"


def remembered(
    folder: Path,
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    cut: Callable[[], Ragged],
) -> Ragged:
    """What `cut` gives for these texts: read from `folder` where it stands there, else made and left there.

    What is read is mapped, not copied, and read-only. A folder that cannot be written is told in the log, and
    changes nothing else. Nothing is kept for a tokenizer without a Rust core, whose content is not at hand.
    """
    content = _tokenizer_content(tokenizer)
    if content is None:
        return cut()
    file = folder / f"{_key(texts, content, max_length)}.tokens"
    found = _read(file)
    if found is not None:
        return found
    made = cut()
    try:
        _write(file, made)
        _trim(folder, newest=file)
    except OSError as error:
        log.warning(
            "data.token_cache: %s cannot be written (%s), so texts will be tokenised again. "
            "Set data.token_cache to another folder, or to null.",
            folder,
            error.strerror,
        )
    return made


def _tokenizer_content(tokenizer: PreTrainedTokenizerBase) -> str | None:
    core = getattr(tokenizer, "backend_tokenizer", None)
    if core is None:
        return None
    # How it was last asked to cut and pad is no part of what it is; both are asked for anew in every call.
    parts = json.loads(core.to_str()) | {"truncation": None, "padding": None}
    kind = [
        type(tokenizer).__name__,
        tokenizer.truncation_side,
        version("transformers"),
        version("tokenizers"),
    ]
    return json.dumps([kind, parts], sort_keys=True)


def _key(texts: Sequence[str], tokenizer_content: str, max_length: int) -> str:
    digest = hashlib.sha256(json.dumps([tokenizer_content, max_length, len(texts)]).encode())
    for start in range(0, len(texts), _CHUNK):
        chunk = texts[start : start + _CHUNK]
        # With the lengths beside it, the joined text can be taken apart in one way only.
        digest.update(np.fromiter(map(len, chunk), np.int64, len(chunk)).tobytes())
        digest.update("".join(chunk).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _read(file: Path) -> Ragged | None:
    """None where there is no such file, or not a whole one."""
    try:
        memory = np.asarray(np.memmap(file, np.uint8, mode="r"))
    except (OSError, ValueError):  # NumPy maps no empty file
        return None
    with suppress(OSError):
        os.utime(file)  # used just now: among the last to be removed
    content, seal = memory[:-_SEAL], memory[-_SEAL:]
    if len(content) < 2 * _WORD or hashlib.sha256(content.data).digest() != seal.tobytes():
        return None
    ids_at = _WORD * (2 + int(content[:_WORD].view(np.int64)[0]))
    return content[ids_at:].view(np.int32), content[_WORD:ids_at].view(np.int64)


def _write(file: Path, ragged: Ragged) -> None:
    """Whole or not at all, for its owner's eyes only, and beside others that write the same."""
    ids, starts = ragged
    head = np.array([len(starts) - 1], dtype=np.int64)
    parts = [np.ascontiguousarray(part).view(np.uint8) for part in (head, starts, ids)]
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with suppress(PermissionError):  # somebody else's
        file.parent.chmod(0o700)
    descriptor, name = tempfile.mkstemp(prefix=".", suffix=".part", dir=file.parent)  # mode 0600
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
    """Remove what was unused for longest until the rest fits; what was written last stays."""
    found = []
    for pattern in ("*.tokens", ".*.part"):
        for file in folder.glob(pattern):
            with suppress(OSError):  # another process has removed it
                about = file.stat()
                found.append((file != newest, about.st_mtime_ns, about.st_size, file))
    total = sum(size for _, _, size, _ in found)
    for is_old, _, size, file in sorted(found, key=lambda entry: entry[1]):
        if total > MOST_BYTES and is_old:
            file.unlink(missing_ok=True)
            total -= size
