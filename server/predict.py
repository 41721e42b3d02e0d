"""Label texts with a model folder, or with a site's own mixture."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch

from wardround.common.credentials import check_public_line
from wardround.common.data.texts import cut_words
from wardround.common.data.tokens import tokenise
from wardround.common.data.values import readable
from wardround.common.errors import NotProven
from wardround.common.explain import first_line
from wardround.common.file_form import FileForm
from wardround.common.model.blend import is_blended, load_blended
from wardround.common.model.mixture import GATE, load_mixture
from wardround.common.model.padding import sees_padding
from wardround.common.model.train import forward
from wardround.common.pretrained import (
    explained,
    pad_alike,
    read_model,
    read_tokenizer,
    settings_of_model,
)
from wardround.common.provenance import FILE_NAME as PROVENANCE
from wardround.common.provenance import Claim
from wardround.common.runtime import resolve_device
from wardround.common.settings.tree import Settings
from wardround.common.tasks.table import task_of
from wardround.common.tasks.task import Task
from wardround.common.words import cleaned
from wardround.server.labelled_files import kept_names, texts_to_label
from wardround.server.run_folder import RunFolder

_BATCH = 32
_MOST_TOKENS = 512


def predict(
    folder: Path,
    texts: Sequence[str],
    file: Path | None,
    column: str,
    device: str,
    out: TextIO,
    *,
    delimiter: str | None = None,
    encoding: str | None = None,
    key: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> None:
    """Write every text with the model's answer to `out`: CSV, or JSONL if `file` is JSONL.

    All columns of `file` are kept, in their order; the answer's columns follow.

    Args:
        texts: they come before those of the file.
        file: CSV with a header, or JSONL; None reads no file.
        column: name of the text's column in the file.
        delimiter, encoding: as in `FileForm`; None means a comma and UTF-8.
        key: file with the coordinator's public signing key, for the model's `provenance.json`.
        say: receives a message for every check that was not possible, and for a column of the
            file that gets another name because the answer has a column of its name.

    Raises:
        ValueError: the folder has no trained model, or does not match its `provenance.json`; there
            are no texts, or the file is damaged or lacks the column.
    """
    wanted = texts_to_label(
        texts, file, column, FileForm(delimiter, encoding, "options")
    )
    predictor = open_predictor(folder, device, key=key, say=say)
    added = predictor.columns[1:]
    for name, kept in zip(
        wanted.columns, kept_names(wanted.columns, added), strict=True
    ):
        if kept != name:
            say(f"the column '{name}' of the file is called '{kept}' in the output")
    answers = (answer for _, *answer in predictor.answer(wanted.texts))
    wanted.write(out, added, answers)


@dataclass(frozen=True)
class Predictor:
    """A trained model that answers for texts."""

    tokenizer: Any
    model: Any
    settings: Settings | None
    """Settings of its training; None if its folder does not hold them."""
    device: torch.device

    @property
    def task(self) -> Task:
        """The task that the model was trained for."""
        return task_of(self.settings)

    @property
    def label_names(self) -> list[str]:
        """Labels in the order of the model's outputs."""
        config = self.model.config
        names = (config.id2label[number] for number in range(config.num_labels))
        return [cleaned(str(name)) for name in names]

    @property
    def columns(self) -> list[str]:
        """Names of the columns of `answer`: `text`, then those of the task."""
        return ["text", *self.task.columns(self.label_names)]

    def answer(self, texts: Sequence[str]) -> Iterator[list[str | float]]:
        """Yield a row for each text: the text and the model's answer.

        Texts are cut to the words and tokens that the model was trained on, or to those that it
        can take. A sign that cannot be part of a text becomes U+FFFD.
        """
        label_names = self.label_names
        settings = self.settings
        max_words = settings.data.max_words if settings else None
        wanted = settings.train.max_length if settings else _MOST_TOKENS
        max_length = min(wanted, self.tokenizer.model_max_length)
        pad_to, mask, size = self._batches(max_length)
        for start in range(0, len(texts), size):
            batch = [readable(text) for text in texts[start : start + size]]
            tokens = tokenise(
                [cut_words(text, max_words) for text in batch],
                np.zeros(len(batch), dtype=np.int64),
                self.tokenizer,
                max_length,
            )
            inputs = tokens.batch(
                np.arange(len(batch)), pad_to=pad_to, mask=mask, device=self.device
            )
            with torch.no_grad():
                logits = forward(self.model, inputs)
            answers = self.task.answers(logits, label_names)
            for text, values in zip(batch, answers, strict=True):
                yield [text, *values]

    def _batches(self, max_length: int) -> tuple[int | None, bool, int]:
        """Return how texts are padded as in training: width or None, mask, texts in a batch.

        If the model sees padding and no run trained it, each text is computed alone.
        """
        settings = self.settings
        mask = settings is None or settings.train.attention_mask
        if mask and not sees_padding(self.model):
            return None, mask, _BATCH
        if settings is None:
            return None, mask, 1
        return max_length, mask, _BATCH


def open_predictor(
    folder: Path,
    device: str,
    *,
    key: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Predictor:
    """Open the model of a run folder or of a model folder. See `predict` for the arguments."""
    location = _model_folder(folder)
    target = resolve_device(device)
    check_provenance(location, key, say)
    # Earlier versions wrote no settings into the model folder, only into the run folder.
    settings = (
        settings_of_model(location)
        or RunFolder(folder).settings()
        or RunFolder(folder.parent).settings()
    )
    tokenizer, model = load_trained(location, task_of(settings), target)
    return Predictor(tokenizer, model, settings, target)


def check_provenance(
    location: Path, key: Path | None, say: Callable[[str], None]
) -> None:
    """Check a model folder against its `provenance.json`.

    Args:
        key: file with the coordinator's public signing key; None if there is none.
        say: receives a message for every check that was not possible.

    Raises:
        ValueError: the folder does not match its provenance, or the key cannot be read.
    """
    trusted = None if key is None else _read_key(key)
    if not (location / PROVENANCE).exists():
        if trusted is not None:
            raise ValueError(
                f"'{location}' holds no {PROVENANCE}, so that --key proves nothing. Leave it out."
            )
        return
    claim = Claim(location, trusted)
    try:
        if claim.provenance.version == 1:
            say(
                f"'{location}' has a {PROVENANCE} of version 1, which names no files: not checked."
            )
        else:
            claim.check_files()
    except NotProven as error:
        raise ValueError(
            f"'{location}' does not match its {PROVENANCE}: {error}. Get the folder again from the "
            "coordinator, and put no file of your own into it."
        ) from None
    if trusted is None:
        say(
            f"Who signed the {PROVENANCE} of '{location}' was not checked, for want of the "
            "coordinator's key (--key coordinator.pub)."
        )


def _read_key(file: Path) -> str:
    try:
        return check_public_line(file.read_text(encoding="ascii"), "signing")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"--key is '{file}', which is no public signing key ({first_line(error)}). Give "
            "coordinator.pub."
        ) from None


def _model_folder(folder: Path) -> Path:
    for candidate in (folder / "model", folder):
        if (candidate / "config.json").exists() or (candidate / GATE).exists():
            return candidate
    raise ValueError(
        f"'{folder}' holds no model: neither config.json nor model/config.json is there. Give the "
        "folder of a finished run, or one written by save_pretrained."
    )


def load_trained(location: Path, task: Task, device: torch.device) -> tuple[Any, Any]:
    """Return tokenizer and model of a model folder of any kind, in evaluation mode.

    Raises:
        ValueError: weights are missing (often those of the head) or damaged; the folder brings
            code, or weights from elsewhere.
    """
    with explained(location):
        if (location / GATE).exists():
            return load_mixture(location, device)
        if is_blended(location):
            return read_tokenizer(location), load_blended(location).to(device)
    tokenizer = read_tokenizer(location)
    model: Any
    model, info = read_model(location, task.model_class())
    pad_alike(model, tokenizer)
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(
            f"'{location}' holds no trained classifier: its files have no weights for "
            f"{missing[0]}, so that predictions would be random. Train it first: wardround "
            "simulate model=hf model.name=<folder>"
        )
    return tokenizer, model.to(device).eval()
