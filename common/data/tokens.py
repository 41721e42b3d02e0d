"""Texts as token ids: tokenised once, kept ragged, padded batch by batch, and kept on the disk between runs.

A file of token ids is named after a hash of the texts themselves, the tokenizer's content, the cut and the
versions of the libraries, so a changed text, tokenizer or setting finds nothing and never something old. It
holds N and `starts` as int64, `ids` as int32, and the SHA-256 of all that: what is cut short or damaged is
made anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

MOST_BYTES = 4 << 30
"""Of all files of a cache together; past it, those unused for longest are removed."""
Ragged = tuple[np.ndarray, np.ndarray]
"""ids (sum of lengths,) int32, starts (N + 1,) int64; text i is ids[starts[i]:starts[i + 1]]."""
_CHUNK = 10_000  # texts tokenised or hashed at a time
_WORD, _SEAL = 8, 32  # bytes of a count, and of a SHA-256


@dataclass(frozen=True)
class Batch:
    """What one forward pass takes."""

    input_ids: Tensor  # (B, T) int64
    attention_mask: Tensor | None  # (B, T) int64, 0 on padding; None attends to it
    labels: Tensor  # (B,) int64
    rows: Tensor  # (B,) int64 on the CPU, positions of the texts among those they were taken from

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class TokenisedTexts:
    """N labelled texts as one run of token ids."""

    ids: np.ndarray  # (sum of lengths,) int32
    starts: np.ndarray  # (N + 1,) int64; text i is ids[starts[i]:starts[i + 1]]
    labels: np.ndarray  # (N,) int64
    pad_id: int

    def __len__(self) -> int:
        return len(self.labels)

    def followed_by(self, more: TokenisedTexts) -> TokenisedTexts:
        """These texts, then those of `more`, which the same tokenizer made."""
        return TokenisedTexts(
            np.concatenate([self.ids, more.ids]),
            np.concatenate([self.starts, more.starts[1:] + self.starts[-1]]),
            np.concatenate([self.labels, more.labels]),
            self.pad_id,
        )

    def take(self, indices: np.ndarray) -> TokenisedTexts:
        """The texts at these positions, in this order."""
        lengths = self.lengths_of(indices)
        pieces = [
            self.ids[self.starts[index] : self.starts[index + 1]] for index in indices
        ]
        starts = np.cumsum([0, *lengths], dtype=np.int64)
        return TokenisedTexts(
            np.concatenate([self.ids[:0], *pieces]),
            starts,
            self.labels[indices],
            self.pad_id,
        )

    def lengths_of(self, indices: np.ndarray) -> np.ndarray:
        """Tokens of the chosen texts, (B,) int64."""
        lengths: np.ndarray = self.starts[indices + 1] - self.starts[indices]
        return lengths

    def batch(
        self,
        indices: np.ndarray,
        *,
        pad_to: int | None,
        mask: bool,
        device: torch.device,
    ) -> Batch:
        """Pad the chosen texts on the right to `pad_to` tokens, or to the longest of them for None."""
        # It takes seconds; a site's connection and its plans read this file without it.
        import torch

        lengths = self.lengths_of(indices)
        width = pad_to or int(lengths.max())
        input_ids = np.full((len(indices), width), self.pad_id, dtype=np.int64)
        for row, index in enumerate(indices):
            input_ids[row, : lengths[row]] = self.ids[
                self.starts[index] : self.starts[index + 1]
            ]
        attention = (
            (np.arange(width) < lengths[:, None]).astype(np.int64) if mask else None
        )
        return Batch(
            input_ids=torch.from_numpy(input_ids).to(device),
            attention_mask=None
            if attention is None
            else torch.from_numpy(attention).to(device),
            labels=torch.from_numpy(self.labels[indices]).to(device),
            rows=torch.from_numpy(np.ascontiguousarray(indices)),
        )


def tokenise(
    texts: Sequence[str],
    labels: np.ndarray,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    cache: Path | None = None,
) -> TokenisedTexts:
    """Tokenise every text once, markers included, cut to `max_length` tokens.

    Args:
        cache: folder of token ids from earlier runs; what is not there yet is added. None keeps none.

    Raises:
        ValueError: the tokenizer has no padding token, or the model takes no text that long.
    """
    if tokenizer.pad_token_id is None:
        raise ValueError(
            "the model's tokenizer has no padding token, which batches of texts need, nor another special "
            "token that no text ends with. Add a pad_token to its tokenizer files, or choose another model."
        )
    if max_length > tokenizer.model_max_length:
        raise ValueError(
            f"train.max_length is {max_length} but the model takes at most {tokenizer.model_max_length} "
            f"tokens. Set train.max_length={tokenizer.model_max_length} or less."
        )

    ids, starts = _remembered(cache, texts, tokenizer, max_length)
    return TokenisedTexts(
        ids, starts, np.asarray(labels, dtype=np.int64), int(tokenizer.pad_token_id)
    )


def _cut(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Ragged:
    ids = [
        np.asarray(tokens, dtype=np.int32)
        for chunk in _chunks(texts)
        for tokens in tokenizer(chunk, truncation=True, max_length=max_length)[
            "input_ids"
        ]
    ]
    starts = np.cumsum([0, *map(len, ids)], dtype=np.int64)
    return np.concatenate([np.zeros(0, dtype=np.int32), *ids]), starts


def _chunks(texts: Sequence[str]) -> Iterator[list[str]]:
    for start in range(0, len(texts), _CHUNK):
        yield list(texts[start : start + _CHUNK])


def cache_folder(setting: str | None) -> Path | None:
    """The folder that `data.token_cache` stands for; `auto` is the user's own cache, None no cache."""
    if setting is None:
        return None
    if setting != "auto":
        return Path(setting).expanduser()
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (
        (Path(base) if base.startswith("/") else Path.home() / ".cache")
        / "wardround"
        / "tokens"
    )


def _remembered(
    folder: Path | None,
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
) -> Ragged:
    """What `_cut` gives for these texts: read from `folder` where it stands there, else made and left there.

    What is read is mapped, not copied, and read-only. A folder that cannot be written is told in the log, and
    changes nothing else. Nothing is kept for a tokenizer without a Rust core, whose content is not at hand.
    """
    if not len(texts):
        return np.zeros(0, dtype=np.int32), np.zeros(1, dtype=np.int64)
    content = _tokenizer_content(tokenizer)
    if folder is None or content is None:
        return _cut(texts, tokenizer, max_length)
    file = folder / f"{_key(texts, content, max_length)}.tokens"
    found = _read(file)
    if found is not None:
        return found
    made = _cut(texts, tokenizer, max_length)
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
    versions = [version(library) for library in ("transformers", "tokenizers")]
    kind = [type(tokenizer).__name__, tokenizer.truncation_side, *versions]
    return json.dumps([kind, parts], sort_keys=True)


def _key(texts: Sequence[str], tokenizer_content: str, max_length: int) -> str:
    digest = hashlib.sha256(
        json.dumps([tokenizer_content, max_length, len(texts)]).encode()
    )
    for chunk in _chunks(texts):
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
    if (
        len(content) < 2 * _WORD
        or hashlib.sha256(content.data).digest() != seal.tobytes()
    ):
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
    descriptor, name = tempfile.mkstemp(
        prefix=".", suffix=".part", dir=file.parent
    )  # mode 0600
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
