"""Label texts with a model folder, or with a site's own mixture."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import torch
from safetensors import SafetensorError

from common.data.read import csv_rows, require_file
from common.data.texts import cut_words
from common.errors import first_line, nearest
from common.model.blend import is_blended, load_blended
from common.model.mixture import GATE, load_mixture
from common.pretrained import quietly, settings_of_model
from common.runtime import resolve_device
from server.run_folder import RunFolder

_BATCH = 32


def predict(
    folder: Path, texts: Sequence[str], file: Path | None, column: str, device: str, out: TextIO
) -> None:
    """Write CSV to `out`: `text`, `label`, then one probability column per label.

    Texts are cut to the words and tokens the model was trained on, where the run folder tells; else to what
    it can take.

    Raises:
        ValueError: no trained classifier in the folder, no texts, or a file that is broken, not UTF-8 or
            without that column.
    """
    location = _model_folder(folder)
    wanted = [*texts, *(_read_column(file, column) if file else ())]
    if not wanted:
        raise ValueError('nothing to label; give --text "..." or --file texts.csv.')
    target = resolve_device(device)
    tokenizer, model = load_classifier(location, target)
    labels = [str(model.config.id2label[number]) for number in range(model.config.num_labels)]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["text", "label", *labels])
    # A model without settings of its own was left by an earlier version, in its run folder.
    settings = (
        settings_of_model(location) or RunFolder(folder).settings() or RunFolder(folder.parent).settings()
    )
    max_length = settings.train.max_length if settings else min(tokenizer.model_max_length, 512)
    max_words = settings.data.max_words if settings else None
    for start in range(0, len(wanted), _BATCH):
        batch = wanted[start : start + _BATCH]
        read = [cut_words(text, max_words) for text in batch]
        inputs = tokenizer(read, truncation=True, max_length=max_length, padding=True, return_tensors="pt")
        with torch.no_grad():
            probabilities = model(**inputs.to(target)).logits.softmax(dim=1).cpu()  # (B, C)
        for text, row in zip(batch, probabilities, strict=True):
            writer.writerow([text, labels[int(row.argmax())], *(f"{value:.4f}" for value in row.tolist())])


def _model_folder(folder: Path) -> Path:
    for candidate in (folder / "model", folder):
        if (candidate / "config.json").exists() or (candidate / GATE).exists():
            return candidate
    raise ValueError(
        f"'{folder}' holds no model: neither config.json nor model/config.json is there. Give the folder of "
        "a finished run, or one written by save_pretrained."
    )


def load_classifier(location: Path, device: torch.device) -> tuple[Any, Any]:
    """Tokenizer and classifier of a model folder of any kind, ready to be asked.

    Raises:
        ValueError: weights are missing, most of all the head's, or damaged.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    try:
        if (location / GATE).exists():
            return load_mixture(location, device)
        with quietly():
            if is_blended(location):
                return AutoTokenizer.from_pretrained(location), load_blended(location).to(device)
            tokenizer = AutoTokenizer.from_pretrained(location)
            model, info = AutoModelForSequenceClassification.from_pretrained(
                location,
                output_loading_info=True,
                use_safetensors=True,  # the other form is read by an unpickler
            )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"'{location}' holds a model that cannot be loaded ({first_line(error)}). Give the folder of a "
            "finished run, or one written by save_pretrained with its tokenizer."
        ) from None
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(
            f"'{location}' holds no trained classifier: its files have no weights for {missing[0]}, so that "
            "labels would be drawn by lot. Train it first: wardround simulate model=hf model.name=<folder>"
        )
    return tokenizer, model.to(device).eval()


def _read_column(file: Path, column: str) -> Iterator[str]:
    require_file(file, "--file")
    rows = csv_rows(file)
    _, header = next(rows, (0, list[str]()))
    if column not in header:
        raise ValueError(
            f"'{file}' has no column '{column}'; it has: {', '.join(header)}.{nearest(column, header)} "
            "Name the text's column with --column."
        )
    position = header.index(column)
    for _, row in rows:
        yield row[position]
