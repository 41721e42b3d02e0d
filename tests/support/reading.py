"""Small files and plain settings for the tests that read texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from wardround.common.data.dataset import read_texts
from wardround.common.data.texts import TextData, TextsAndTargets
from wardround.common.settings.data import DataSettings
from wardround.common.tasks.label import LABEL

DEFAULTS: dict[str, Any] = {
    "name": "test",
    "reader": "files",
    "hub_name": None,
    "hub_revision": None,
    "path": None,
    "local_reader": None,
    "test_path": None,
    "text_columns": ("text",),
    "label_column": "label",
    "delimiter": None,
    "encoding": None,
    "opt_out_column": None,
    "label_names": None,
    "label_map": (),
    "test_fraction": 0.5,
    "split_seed": None,
    "token_cache": None,
    "train_examples": None,
    "test_examples": None,
    "max_words": None,
    "drop_empty": False,
    "budget_rounds": 0,
    "second_threshold_rounds": 0,
}


def read(*, seed: int = 7, **changes: Any) -> TextData[TextsAndTargets]:
    """Read with these settings changed from the defaults above."""
    return read_texts(LABEL, DataSettings(**(DEFAULTS | changes)), seed=seed)


def message(**changes: Any) -> str:
    """Return the message with which `read` refuses. It shows no error of a library."""
    with pytest.raises(ValueError, match=r".") as caught:
        read(**changes)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return str(caught.value)


def write(path: Path, content: str | bytes) -> str:
    """Write a small file and its folders. Return the path as settings need it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def pairs(
    data: TextData[TextsAndTargets], part: str = "train"
) -> list[tuple[str, str]]:
    """Return (text, label name) of every example of a part."""
    texts = getattr(data, part)
    return [
        (text, data.label_names[number])
        for text, number in zip(texts.texts, texts.targets, strict=True)
    ]
