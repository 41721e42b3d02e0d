"""The files of one run. Tools read them, so that these tests fix every key."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema import ValidationError
from safetensors.numpy import load_file

from tests.support import contract
from tests.support.door import CommandResult, changed, contents, run_dir_of, wardround
from tests.support.tiny import TOPICS
from wardround.client import round as local_round
from wardround.common.settings.tree import Settings


@dataclass(frozen=True)
class Run:
    """A finished run of two clients and three rounds."""

    folder: Path
    overrides: list[str]

    def json(self, name: str) -> Any:
        """Return the content of a JSON file of the folder."""
        return json.loads((self.folder / name).read_text(encoding="utf-8"))

    def history(self) -> list[Any]:
        """Return the lines of history.jsonl."""
        return [
            json.loads(line)
            for line in (self.folder / "history.jsonl").read_text().splitlines()
        ]


@pytest.fixture
def run(learned_run: tuple[list[str], CommandResult]) -> Run:
    overrides, said = learned_run
    folder = run_dir_of(overrides)
    assert f"run folder: {folder}" in said.out
    return Run(folder, overrides)


def test_a_run_folder_holds_these_entries(run: Run) -> None:
    entries = {entry.name for entry in run.folder.iterdir()}
    # Only the run itself reads the two others.
    assert entries - {".lock", "live.json"} == {
        "settings.json",
        "history.jsonl",
        "partition.json",
        "labels.json",
        "status.json",
        "checkpoint",
        "model",
    }


def test_settings_json_holds_the_settings_of_the_run(run: Run) -> None:
    contract.check(run.json("settings.json"), "settings")
    settings = Settings.from_dict(run.json("settings.json"))
    assert settings.num_clients == 2
    assert settings.num_rounds == 3
    assert settings.train.batch_size == 8
    assert settings.run_dir == str(run.folder)


def test_history_holds_a_line_for_each_round(run: Run) -> None:
    lines = run.history()
    assert [line["round"] for line in lines] == [0, 1, 2, 3]
    for line in lines:
        contract.check_history_line(line)
    for line in lines[1:]:
        clients = line["clients"]
        # 48 texts over 2 clients, all of them in every round; 30 test texts.
        assert [client["client"] for client in clients] == [0, 1]
        assert [client["num_examples"] for client in clients] == [24, 24]
        assert line["train"]["num_examples"] == 48
        assert line["test"]["num_examples"] == 30
        losses = [client["loss"] for client in clients]
        assert line["train"]["loss"] == pytest.approx(sum(losses) / 2)
        seconds = line["seconds"]
        parts = seconds["train"] + seconds["aggregate"] + seconds["evaluate"]
        assert seconds["total"] == pytest.approx(parts)
        assert line["bytes"]["down"] == line["bytes"]["up"]
        # 24 texts in batches of 8, 8 epochs a round.
        assert [client["num_steps"] for client in clients] == [24, 24]
        total = 24 * line["round"]
        assert [client["total_steps"] for client in clients] == [total, total]
    assert len({line["model_sha256"] for line in lines}) == 4


def test_the_partition_covers_every_example_once(run: Run) -> None:
    parts = run.json("partition.json")
    contract.check(parts, contract.PARTITION)
    assert list(parts) == ["0", "1"]
    assert sorted(index for part in parts.values() for index in part) == list(range(48))


def test_status_and_labels_have_these_values(run: Run) -> None:
    contract.check(run.json("status.json"), contract.STATUS)
    assert run.json("status.json") == {
        "state": "finished",
        "reason": "all 3 rounds are done",
    }
    contract.check(run.json("labels.json"), contract.LABELS)
    # 30 test texts, each of the three topics in turn.
    assert run.json("labels.json") == {
        "label_names": sorted(TOPICS),
        "test_counts": [10, 10, 10],
    }


def test_the_newest_two_checkpoints_are_kept(run: Run) -> None:
    names = sorted(entry.name for entry in (run.folder / "checkpoint").iterdir())
    assert names == ["round-000002", "round-000003"]


def test_the_model_hash_is_the_sha256_of_names_and_fp32_bytes(run: Run) -> None:
    tensors = load_file(run.folder / "model" / "model.safetensors")
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode("utf-8"))
        digest.update(np.ascontiguousarray(tensors[name], dtype="<f4").tobytes())
    assert run.history()[-1]["model_sha256"] == digest.hexdigest()


def test_the_model_gives_the_same_in_a_pipeline_and_in_predict(run: Run) -> None:
    from transformers import pipeline

    model = run.folder / "model"
    texts = ["goal match team", "bank loan market", "nurse ward fever", "the said of"]
    classify = pipeline("text-classification", str(model), device="cpu")
    answers = [classify(text)[0] for text in texts]
    assert [answer["label"] for answer in answers[:3]] == ["sport", "money", "health"]
    words = [word for text in texts for word in ("--text", text)]
    predicted = wardround("predict", str(run.folder), *words)
    header, *rows = [line.split(",") for line in predicted.out.splitlines()]
    assert header == ["text", "label", *sorted(TOPICS)]
    assert [row[1] for row in rows] == [answer["label"] for answer in answers]
    for row, answer in zip(rows, answers, strict=True):
        share = float(row[header.index(answer["label"])])
        assert share == pytest.approx(answer["score"], abs=5e-5)
    card = (model / "README.md").read_text()
    assert "pipeline_tag: text-classification" in card
    assert run.history()[-1]["model_sha256"] in card


def test_a_finished_run_does_not_train_again(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a finished run trained again")

    monkeypatch.setattr(local_round, "train_epochs", refuse)
    before = contents(run.folder)
    said = wardround("simulate", *run.overrides)
    assert said.code == 0, said.err
    assert contents(run.folder) == before


def test_a_run_with_more_rounds_continues_from_the_last_round(
    run: Run, tmp_path: Path
) -> None:
    def simulate(name: str, num_rounds: int) -> Path:
        more = [
            "train.local_epochs=1",
            f"num_rounds={num_rounds}",
            f"run_dir={tmp_path / name}",
        ]
        assert wardround("simulate", *changed(run.overrides, *more)).code == 0
        return tmp_path / name

    first = (simulate("grown", 1) / "history.jsonl").read_text()
    grown = Run(simulate("grown", 4), [])
    whole = Run(simulate("whole", 4), [])
    assert (grown.folder / "history.jsonl").read_text().startswith(first)
    hashes = [line["model_sha256"] for line in grown.history()]
    assert len(hashes) == 5
    assert hashes == [line["model_sha256"] for line in whole.history()]


@pytest.mark.parametrize("name", contract.PUBLISHED)
def test_the_published_schemas_are_those_of_the_code(name: str) -> None:
    """`python -m tests.support.contract` writes them again."""
    text = contract.published(name).read_text(encoding="utf-8")
    assert text == contract.schema_text(name)


@pytest.mark.parametrize("key", ["seed", "num_clients"])
def test_settings_with_an_unknown_or_missing_key_are_refused(
    run: Run, key: str
) -> None:
    settings = run.json("settings.json")
    for wrong in (
        settings | {f"{key}_": 1},
        {k: v for k, v in settings.items() if k != key},
    ):
        with pytest.raises(ValidationError, match=key):
            contract.check(wrong, "settings")


@pytest.mark.parametrize(
    "change",
    [
        {"extra": 1},
        {"bytes": None},
        {"model_sha256": "abc"},
        {"train": {"loss": None, "num_examples": 48}},
        {"clients": []},
        {"clients": [{"text": "a letter"}]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_line_with_an_unknown_a_missing_or_a_null_key_is_refused(
    run: Run, change: dict[str, Any]
) -> None:
    with pytest.raises((ValidationError, AssertionError)):
        contract.check_history_line(run.history()[1] | change)
