"""Label texts with a model folder, or with a site's own mixture."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import torch

from common.credentials import check_public_line
from common.data.read import csv_rows, require_file
from common.data.texts import cut_words
from common.errors import first_line, nearest
from common.model.blend import is_blended, load_blended
from common.model.mixture import GATE, load_mixture
from common.pretrained import explained, read_classifier, read_tokenizer, settings_of_model
from common.provenance import FILE_NAME as PROVENANCE
from common.provenance import Claim, Unproven
from common.runtime import resolve_device
from common.settings import Settings
from common.words import cleaned
from server.run_folder import RunFolder
from server.spreadsheet import write_rows

_BATCH = 32


def predict(
    folder: Path,
    texts: Sequence[str],
    file: Path | None,
    column: str,
    device: str,
    out: TextIO,
    *,
    key: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> None:
    """Write CSV to `out`: `text`, `label`, then one probability column per label.

    Texts are cut to the words and tokens the model was trained on, where the run folder tells; else to what
    it can take. A text that a spreadsheet would run gets a `'` in front (server/spreadsheet.py).

    Args:
        key: file with the coordinator's public signing key, for the model's `provenance.json`.
        say: is told what could not be checked of that.

    Raises:
        ValueError: no trained classifier in the folder, or one that is not what its `provenance.json`
            says; no texts, or a file that is broken, not UTF-8 or without that column.
    """
    location = _model_folder(folder)
    wanted = [*texts, *(_read_column(file, column) if file else ())]
    if not wanted:
        raise ValueError('nothing to label; give --text "..." or --file texts.csv.')
    target = resolve_device(device)
    check_provenance(location, key, say)
    tokenizer, model = load_classifier(location, target)
    # A model without settings of its own was left by an earlier version, in its run folder.
    settings = (
        settings_of_model(location) or RunFolder(folder).settings() or RunFolder(folder.parent).settings()
    )
    write_rows(out, _rows(wanted, tokenizer, model, settings, target))


def _rows(
    wanted: Sequence[str], tokenizer: Any, model: Any, settings: Settings | None, device: torch.device
) -> Iterator[list[str]]:
    """The header, then a row for each text."""
    config = model.config
    labels = [cleaned(str(config.id2label[number])) for number in range(config.num_labels)]
    yield ["text", "label", *labels]
    max_length = settings.train.max_length if settings else min(tokenizer.model_max_length, 512)
    max_words = settings.data.max_words if settings else None
    for start in range(0, len(wanted), _BATCH):
        batch = wanted[start : start + _BATCH]
        read = [cut_words(text, max_words) for text in batch]
        inputs = tokenizer(read, truncation=True, max_length=max_length, padding=True, return_tensors="pt")
        with torch.no_grad():
            probabilities = model(**inputs.to(device)).logits.softmax(dim=1).cpu()  # (B, C)
        for text, row in zip(batch, probabilities, strict=True):
            yield [text, labels[int(row.argmax())], *(f"{value:.4f}" for value in row.tolist())]


def check_provenance(location: Path, key: Path | None, say: Callable[[str], None]) -> None:
    """Hold a model folder against its `provenance.json`, as far as that is possible without a site.

    Args:
        key: file with the coordinator's public signing key; None where none is at hand.
        say: is told what could not be checked.

    Raises:
        ValueError: the folder is not what its provenance says, or the key cannot be read.
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
            say(f"'{location}' has a {PROVENANCE} of version 1, which names no files: not checked.")
        else:
            claim.check_files()
    except Unproven as error:
        raise ValueError(
            f"'{location}' is not what its {PROVENANCE} says: {error}. Get the folder anew from the "
            "coordinator; a file of your own does not belong there."
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
            f"--key is '{file}', which is no public signing key ({first_line(error)}). Give coordinator.pub."
        ) from None


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
        ValueError: weights are missing, most of all the head's, or damaged; the folder brings code, or
            weights from elsewhere.
    """
    with explained(location):
        if (location / GATE).exists():
            return load_mixture(location, device)
        if is_blended(location):
            return read_tokenizer(location), load_blended(location).to(device)
    tokenizer = read_tokenizer(location)
    model: Any
    model, info = read_classifier(location)
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
