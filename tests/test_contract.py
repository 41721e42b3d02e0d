"""The files of one run; tools read them, so every key is pinned."""

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
    """A run of two clients and three rounds that is done."""

    folder: Path
    overrides: list[str]

    def json(self, name: str) -> Any:
        """A JSON file of the folder."""
        return json.loads((self.folder / name).read_text(encoding="utf-8"))

    def history(self) -> list[Any]:
        """The lines of history.jsonl."""
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


def test_folder_holds_these_entries(run: Run) -> None:
    entries = {entry.name for entry in run.folder.iterdir()}
    # What a run needs for itself, and no tool reads.
    assert entries - {".lock", "live.json"} == {
        "settings.json",
        "history.jsonl",
        "partition.json",
        "labels.json",
        "status.json",
        "checkpoint",
        "model",
    }


def test_settings(run: Run) -> None:
    contract.check(run.json("settings.json"), "settings")
    settings = Settings.from_dict(run.json("settings.json"))
    assert (settings.num_clients, settings.num_rounds, settings.train.batch_size) == (
        2,
        3,
        8,
    )
    assert settings.run_dir == str(run.folder)


def test_history(run: Run) -> None:
    lines = run.history()
    assert [line["round"] for line in lines] == [0, 1, 2, 3]
    for line in lines:
        contract.check_history_line(line)
    for line in lines[1:]:
        # 48 texts over 2 clients, all of them in every round; 30 test texts.
        assert [
            (client["client"], client["num_examples"]) for client in line["clients"]
        ] == [
            (0, 24),
            (1, 24),
        ]
        assert (line["train"]["num_examples"], line["test"]["num_examples"]) == (48, 30)
        losses = [client["loss"] for client in line["clients"]]
        assert line["train"]["loss"] == pytest.approx(sum(losses) / 2)
        parts = line["seconds"]
        assert parts["total"] == pytest.approx(
            parts["train"] + parts["aggregate"] + parts["evaluate"]
        )
        assert line["bytes"]["down"] == line["bytes"]["up"]
        # 24 texts in batches of 8, 8 epochs a round.
        steps = [
            (client["num_steps"], client["total_steps"]) for client in line["clients"]
        ]
        assert steps == [(24, 24 * line["round"])] * 2
    assert len({line["model_sha256"] for line in lines}) == 4


def test_partition_covers_every_example_once(run: Run) -> None:
    parts = run.json("partition.json")
    contract.check(parts, contract.PARTITION)
    assert list(parts) == ["0", "1"]
    assert sorted(index for part in parts.values() for index in part) == list(range(48))


def test_status_and_labels(run: Run) -> None:
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


def test_checkpoint_keeps_the_newest_two(run: Run) -> None:
    assert sorted(entry.name for entry in (run.folder / "checkpoint").iterdir()) == [
        "round-000002",
        "round-000003",
    ]


def test_model_hash_is_what_the_contract_says(run: Run) -> None:
    tensors = load_file(run.folder / "model" / "model.safetensors")
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode("utf-8"))
        digest.update(np.ascontiguousarray(tensors[name], dtype="<f4").tobytes())
    assert run.history()[-1]["model_sha256"] == digest.hexdigest()


def test_model_works_in_a_pipeline_as_in_predict(run: Run) -> None:
    from transformers import pipeline

    model = run.folder / "model"
    texts = ["goal match team", "bank loan market", "nurse ward fever", "the said of"]
    classify = pipeline("text-classification", str(model), device="cpu")
    answers = [classify(text)[0] for text in texts]
    assert [answer["label"] for answer in answers[:3]] == ["sport", "money", "health"]
    said = wardround(
        "predict",
        str(run.folder),
        *(word for text in texts for word in ("--text", text)),
    )
    header, *rows = [line.split(",") for line in said.out.splitlines()]
    assert header == ["text", "label", *sorted(TOPICS)]
    assert [row[1] for row in rows] == [answer["label"] for answer in answers]
    for row, answer in zip(rows, answers, strict=True):
        assert float(row[header.index(answer["label"])]) == pytest.approx(
            answer["score"], abs=5e-5
        )
    card = (model / "README.md").read_text()
    assert "pipeline_tag: text-classification" in card
    assert run.history()[-1]["model_sha256"] in card


def test_finished_run_trains_nothing_again(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a finished run trained again")

    monkeypatch.setattr(local_round, "train_epochs", refuse)
    before = contents(run.folder)
    said = wardround("simulate", *run.overrides)
    assert said.code == 0, said.err
    assert contents(run.folder) == before


def test_more_rounds_go_on_from_the_last(run: Run, tmp_path: Path) -> None:
    def simulate(name: str, num_rounds: int) -> Path:
        more = [
            "train.local_epochs=1",
            f"num_rounds={num_rounds}",
            f"run_dir={tmp_path / name}",
        ]
        assert wardround("simulate", *changed(run.overrides, *more)).code == 0
        return tmp_path / name

    first = (simulate("grown", 1) / "history.jsonl").read_text()
    grown, whole = Run(simulate("grown", 4), []), Run(simulate("whole", 4), [])
    assert (grown.folder / "history.jsonl").read_text().startswith(first)
    hashes = [line["model_sha256"] for line in grown.history()]
    assert len(hashes) == 5
    assert hashes == [line["model_sha256"] for line in whole.history()]


@pytest.mark.parametrize("name", contract.PUBLISHED)
def test_published_schemas_are_what_the_code_says(name: str) -> None:
    """`python -m tests.support.contract` writes them anew."""
    assert contract.published(name).read_text(encoding="utf-8") == contract.schema_text(
        name
    )


@pytest.mark.parametrize("key", ["seed", "num_clients"])
def test_settings_with_more_or_less_are_refused(run: Run, key: str) -> None:
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
def test_a_line_with_more_or_less_or_null_is_refused(
    run: Run, change: dict[str, Any]
) -> None:
    with pytest.raises((ValidationError, AssertionError)):
        contract.check_history_line(run.history()[1] | change)
