"""Label texts with a model folder."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

import torch

from common.models import quietly
from common.runs import RunFolder
from common.runtime import resolve_device

_BATCH = 32


def predict(
    folder: Path, texts: Sequence[str], file: Path | None, column: str, device: str, out: TextIO
) -> None:
    """Write CSV to `out`: `text`, `label`, then one probability column per label.

    Raises:
        ValueError: no model in the folder, no texts, or a file without that column.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    location = _model_folder(folder)
    wanted = [*texts, *(_read_column(file, column) if file else ())]
    if not wanted:
        raise ValueError('nothing to label; give --text "..." or --file texts.csv.')
    target = resolve_device(device)
    with quietly():
        tokenizer = AutoTokenizer.from_pretrained(location)
        model = AutoModelForSequenceClassification.from_pretrained(location).to(target).eval()
    labels = [str(model.config.id2label[number]) for number in range(model.config.num_labels)]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["text", "label", *labels])
    max_length = _max_length(folder, tokenizer.model_max_length)
    for start in range(0, len(wanted), _BATCH):
        batch = wanted[start : start + _BATCH]
        inputs = tokenizer(batch, truncation=True, max_length=max_length, padding=True, return_tensors="pt")
        with torch.no_grad():
            probabilities = model(**inputs.to(target)).logits.softmax(dim=1).cpu()  # (B, C)
        for text, row in zip(batch, probabilities, strict=True):
            writer.writerow([text, labels[int(row.argmax())], *(f"{value:.4f}" for value in row.tolist())])


def _model_folder(folder: Path) -> Path:
    for candidate in (folder / "model", folder):
        if (candidate / "config.json").exists():
            return candidate
    raise ValueError(
        f"'{folder}' holds no model: neither config.json nor model/config.json is there. Give the folder of "
        "a finished run, or one written by save_pretrained."
    )


def _max_length(folder: Path, limit: int) -> int:
    """The length the model was trained at, where the run folder tells; else all it can take."""
    settings = RunFolder(folder).settings() or RunFolder(folder.parent).settings()
    return settings.train.max_length if settings else min(limit, 512)


def _read_column(file: Path, column: str) -> Iterator[str]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines)
            if column not in (reader.fieldnames or []):
                raise ValueError(
                    f"'{file}' has no column '{column}'; it has {', '.join(reader.fieldnames or ['none'])}. "
                    "Name the text's column with --column."
                )
            yield from (row[column] or "" for row in reader)
    except OSError as error:
        raise ValueError(f"'{file}' cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"'{file}' is not UTF-8 (byte {error.start}); convert it first.") from None
