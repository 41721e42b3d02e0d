"""The files of a model folder that decide its results, their hashes, and what is refused.

transformers reads more from a folder than weights. It can run Python files that `auto_map`
names, add the adapter of an `adapter_config.json`, and follow keys of `config.json` to other
files. So there is a closed list of files that may be read. A folder that could add other files
is refused with a reason.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wardround.common.errors import ModelNotLoaded
from wardround.common.files import file_sha256, require_readable

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
TOKENIZER_FILES = frozenset(
    (
        *(
            "tokenizer.json",
            TOKENIZER_CONFIG,
            "special_tokens_map.json",
            "added_tokens.json",
        ),
        *(
            "vocab.txt",
            "vocab.json",
            "merges.txt",
            "bpe.codes",
            "dict.txt",
            "entity_vocab.json",
        ),
        *("tokenizer.model", "tiktoken.model", "tekken.json"),
        *(
            "spiece.model",
            "spm.model",
            "sentencepiece.model",
            "sentencepiece.bpe.model",
        ),
    )
)
"""Names of all files that a tokenizer may be read from."""
FETCHED = (
    *(
        CONFIG,
        WEIGHTS,
        INDEX,
        "model-?????-of-?????.safetensors",
        *sorted(TOKENIZER_FILES),
    ),
    ADAPTER,
)
"""Patterns of the files to download: files that are read, and one that makes a model refused."""
FILES_PREFIX = "files:"
"""Precedes the hash of all files."""
WEIGHTS_PREFIX = "sha256:"
"""Precedes the hash of the one file of weights."""

_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_PICKLES = "pytorch_model*.bin"
_ELSEWHERE = {
    "transformers_weights": "it makes transformers read other weights than model.safetensors",
    "configuration_files": "it makes transformers read another file than config.json",
    "fast_tokenizer_files": "it makes transformers read another file than tokenizer.json",
    "quantization_config": "quantised models are not read here",
}
"""Keys of the two configuration files that are refused, and why."""
_ATTENTION = ("attn_implementation", "_attn_implementation")
_OTHER_MODEL = "Use a model whose architecture is part of transformers."


@dataclass(frozen=True)
class ModelFiles:
    """The files of a folder that decide what its model computes."""

    folder: Path
    names: tuple[str, ...]
    """Names in alphabetical order."""

    def hashes(self) -> dict[str, str]:
        """Return the SHA-256 of each file, hexadecimal, by name. Raises OSError."""
        return {name: file_sha256(self.folder / name) for name in self.names}

    def digest(self) -> str:
        """Return one SHA-256 for all files: that of the lines `<SHA-256>  <name>` as `sha256sum`
        prints them.

        Raises:
            OSError: a file cannot be read.
        """
        return digest_of(self.hashes())

    def weights_digest(self) -> str | None:
        """Return the SHA-256 of `model.safetensors`; None if there are several files.

        Raises OSError.
        """
        return file_sha256(self.folder / WEIGHTS) if WEIGHTS in self.names else None

    def weights(self) -> tuple[str, ...]:
        """Return the names of the files of weights."""
        return tuple(name for name in self.names if name.endswith(".safetensors"))


def digest_of(hashes: Mapping[str, str]) -> str:
    """Return `ModelFiles.digest`, computed from the hash of each file by name."""
    lines = (f"{found}  {name}\n" for name, found in sorted(hashes.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def read_model_files(folder: Path) -> ModelFiles:
    """Return the files that decide the results of a model folder.

    Raises:
        ModelNotLoaded: the folder holds no whole model, or is refused.
        OSError: a file cannot be read.
    """
    check_folder(folder)
    if not (folder / CONFIG).is_file():
        raise ModelNotLoaded(
            f"'{folder}' lacks {CONFIG}. Give the whole folder of a pre-trained model."
        )
    tokenizer = {name for name in TOKENIZER_FILES if (folder / name).is_file()}
    return ModelFiles(folder, tuple(sorted({CONFIG, *_weights(folder), *tokenizer})))


def check_folder(folder: Path) -> None:
    """Refuse a folder that brings code, or brings weights from elsewhere.

    Raises:
        ModelNotLoaded: the folder is refused; the text has the reason and the next step.
        OSError: a file cannot be read.
    """
    _require_rights(folder)
    if (folder / ADAPTER).exists():
        raise ModelNotLoaded(
            f"'{folder}' holds {ADAPTER}, so that transformers would add an adapter to the "
            "model, or load another model that this file names. Merge the adapter into its "
            f"model (peft: merge_and_unload), or remove {ADAPTER} from the folder."
        )
    for name in (CONFIG, TOKENIZER_CONFIG):
        content = read_json(folder / name)
        for key, value in _keys_of(content):
            _check_key(folder, name, key, value)
        if content.get("auto_map"):
            _check_code(folder, name)
    _check_architecture(folder)
    if not any(folder.glob("*.safetensors")) and any(folder.glob(_PICKLES)):
        raise ModelNotLoaded(
            f"'{folder}' holds its weights as a pickle ({_PICKLES}), which can run code and is "
            f"not read here. Ask for the model with {WEIGHTS}."
        )


def _require_rights(folder: Path) -> None:
    """Refuse a folder with a file that this user may not read."""
    try:
        require_readable(folder)
        for file in sorted(folder.glob("*")):
            if file.name in (CONFIG, *TOKENIZER_FILES) or file.suffix == ".safetensors":
                require_readable(file)
    except PermissionError as error:
        raise ModelNotLoaded(
            f"'{error.filename}' may not be read by this user (permission denied). Let its owner "
            f"allow it: chmod -R a+rX '{folder}'."
        ) from None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file; it is empty if there is no file.

    Raises:
        ModelNotLoaded: the file holds something else.
        OSError: it cannot be read.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        reason = type(error).__name__
        raise ModelNotLoaded(
            f"'{path}' cannot be read as JSON ({reason}). Copy the folder anew."
        ) from None
    if not isinstance(content, dict):
        raise ModelNotLoaded(f"'{path}' holds no JSON object. Copy the folder anew.")
    return content


def _keys_of(content: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield every key with its value, at every depth: a configuration can hold others."""
    waiting: list[Any] = [content]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            yield from part.items()
            waiting.extend(part.values())
        elif isinstance(part, list):
            waiting.extend(part)


def _check_key(folder: Path, name: str, key: str, value: Any) -> None:
    if key in _ELSEWHERE and value:
        raise ModelNotLoaded(
            f"'{folder / name}' holds the key {key}: {_ELSEWHERE[key]}. Save the model anew, in "
            "full precision, with save_pretrained of transformers."
        )
    if key in _ATTENTION and "/" in str(value):
        raise ModelNotLoaded(
            f"'{folder / name}' holds the key {key}, which names code on a hub, and such code "
            f"is not run here. Remove the key from {name}."
        )


def _check_code(folder: Path, name: str) -> None:
    """Refuse `auto_map` beside Python files, whether transformers needs them or not."""
    python = sorted(path.name for path in folder.glob("*.py"))
    if python:
        raise ModelNotLoaded(
            f"'{folder}' brings code of its own (auto_map in {name}, and {python[0]!r}), and "
            f"code from a model folder is not run here. {_OTHER_MODEL} If it knows this one, "
            "take the Python files out."
        )


def _check_architecture(folder: Path) -> None:
    """Refuse `auto_map` in `config.json` for an architecture that needs it."""
    content = read_json(folder / CONFIG)
    if not content.get("auto_map"):
        return
    from transformers import CONFIG_MAPPING

    kind = str(content.get("model_type"))
    if kind not in CONFIG_MAPPING:
        raise ModelNotLoaded(
            f"'{folder}' needs code of its own (auto_map in {CONFIG}): transformers does not "
            f"know a model of type {kind!r}, and code from a model folder is not run here. "
            f"{_OTHER_MODEL}"
        )


def _weights(folder: Path) -> set[str]:
    """Return the names of the files of weights; if there are several, also of the index."""
    if (folder / WEIGHTS).is_file():
        return {WEIGHTS}
    if not (folder / INDEX).is_file():
        raise ModelNotLoaded(
            f"'{folder}' lacks {WEIGHTS}. Give the whole folder of a model with {WEIGHTS}."
        )
    shards = read_json(folder / INDEX).get("weight_map")
    names = set(map(str, shards.values())) if isinstance(shards, dict) else set()
    odd = sorted(name for name in names if not _SHARD.fullmatch(name))
    if odd or not names:
        named = odd[0] if odd else "no file"
        raise ModelNotLoaded(
            f"'{folder / INDEX}' names {named!r} as a part of the weights; parts are called "
            "model-00001-of-00002.safetensors. Save the model anew with save_pretrained of "
            "transformers."
        )
    missing = sorted(name for name in names if not (folder / name).is_file())
    if missing:
        raise ModelNotLoaded(
            f"'{folder}' lacks {missing[0]}, a part of the weights. Copy the whole folder."
        )
    return {INDEX, *names}
