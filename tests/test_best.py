"""The best model is kept. It is chosen on held-out texts whose results are not reported."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.support.pages import Page
from tests.support.runs import PowerCut, hashes, history, measured
from tests.support.tiny import Make
from wardround.common.data.corpus import open_corpus
from wardround.common.data.partitions import split_held_out
from wardround.common.files import Writer
from wardround.common.model.flat import Layout, model_sha256, tensors_to_flat
from wardround.common.model.state import open_model
from wardround.common.tasks.label import LABEL
from wardround.server.deployment.status import read_status
from wardround.server.engines.simulate import simulate
from wardround.server.record import RoundRecord, best_of
from wardround.server.report.render import write_report
from wardround.server.rounds.recorder import Recorder
from wardround.server.rounds.server_step import ServerStep
from wardround.server.run_folder import RunFolder
from wardround.server.watchers import Patience

SPLIT = "evaluation.validation_fraction=0.5"


def record_of(round: int, accuracy: float, loss: float = 1.0) -> RoundRecord:
    """Return a record whose validation part and test part have these numbers."""
    part = {"accuracy": accuracy, "loss": loss, "macro_f1": accuracy}
    part["num_examples"] = 10
    line = {"round": round, "test": part, "validation": part}
    return RoundRecord.read(json.dumps(line))


def test_the_validation_part_is_drawn_evenly_by_label() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    validation, test = split_held_out(labels, np.arange(8), 0.5, seed=0)
    assert labels[validation].tolist() == [0, 0, 1, 1] == labels[test].tolist()
    assert sorted([*validation, *test]) == list(range(8))


def test_a_fraction_of_0_leaves_the_test_set_unchanged() -> None:
    labels, held_out = np.array([0, 1, 0]), np.array([2, 0])
    validation, test = split_held_out(labels, held_out, 0.0, seed=0)
    assert (validation.tolist(), test.tolist()) == ([], [2, 0])


def test_both_parts_hold_at_least_one_text() -> None:
    for fraction in (0.001, 0.999):
        parts = split_held_out(np.array([0, 1, 0]), np.arange(3), fraction, seed=0)
        assert min(map(len, parts)) == 1
    expected = (
        r"evaluation\.validation_fraction is 0\.5, but 1 held-out .*_fraction=0\."
    )
    with pytest.raises(ValueError, match=expected):
        split_held_out(np.array([0]), np.arange(1), 0.5, seed=0)


def test_the_first_of_equals_is_the_best() -> None:
    records = [
        record_of(0, 0.2),
        record_of(1, 0.6),
        record_of(2, 0.6),
        record_of(3, 0.4),
    ]
    assert best_of(records, LABEL) is records[1]
    assert best_of([*records, better := record_of(4, 0.6, loss=0.9)], LABEL) is better
    assert best_of([RoundRecord.read('{"round": 0}')], LABEL) is None


RECORDS = (record_of(0, 0.2), record_of(1, 0.6), record_of(2, 0.5), record_of(3, 0.6))


def test_patience_counts_rounds_since_the_best(
    make_settings: Make, tmp_path: Path
) -> None:
    settings = make_settings(SPLIT, "evaluation.patience=2")
    patience = Patience(RunFolder(tmp_path), settings)
    *reasons, last = [patience.after_round(record) for record in RECORDS]
    assert reasons == [None, None, None]
    assert last is not None
    assert "since round 1" in last
    assert "evaluation.patience" in last


def test_the_checkpoint_of_the_best_round_is_kept(
    make_settings: Make, tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path)
    layout = Layout.of({"w": (1,)})
    with Writer() as writer:
        step = ServerStep(make_settings())
        recorder = Recorder(
            folder, layout, step, writer, LABEL, waits_for_checkpoint=False
        )
        for record in RECORDS:
            tensors = torch.full((layout.size,), float(record.round))
            recorder.after_average(record, tensors)
            recorder.after_round(record)
    kept = folder.load_best()
    assert kept is not None
    assert (kept.record.round, kept.tensors["w"].tolist()) == (1, [1.0])


@pytest.mark.parametrize("where", ["server", "sites"])
def test_a_run_leaves_its_best_model(
    make_settings: Make, tmp_path: Path, where: str
) -> None:
    # At this rate the accuracy goes up and down, so that the last round is not the best.
    settings = make_settings(
        SPLIT,
        f"evaluation.where={where}",
        "num_rounds=6",
        "train.learning_rate=3",
        "train.optimizer=sgd",
    )
    simulate(settings)
    folder = RunFolder(Path(settings.run_dir))
    records = folder.history()
    best = best_of(records, LABEL)
    assert best is not None
    assert best.round < 6, [record.validation for record in records]
    kept = folder.load_best()
    assert kept is not None
    layout = open_model(settings, folder.label_names()).layout
    flat = tensors_to_flat(layout, kept.tensors)
    assert model_sha256(layout, flat) == best.model_sha256
    # The released model is that one, and its card says so.
    saved = load_file(folder.path / "model" / "model.safetensors")
    assert saved.keys() <= kept.tensors.keys()
    assert all(torch.equal(saved[name], kept.tensors[name]) for name in saved)
    card = (folder.path / "model" / "README.md").read_text()
    assert best.model_sha256 is not None
    assert best.model_sha256 in card
    assert f"| rounds | {best.round}, the best of 6 " in card
    # `status` and the page name the same round.
    standing = read_status(folder, None)
    assert standing.best is not None
    assert standing.best["round"] == best.round
    assert f"kept: round {best.round}, " in standing.to_text()
    page = Page(write_report(folder.path)).text
    assert f"kept model is from round {best.round}" in page


def test_reported_texts_do_not_choose_the_best_model(
    make_settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for where in ("server", "sites"):
        settings = make_settings(
            SPLIT, f"evaluation.where={where}", f"run_dir={where}", "num_rounds=1"
        )
        simulate(settings)
        num_held_out = len(open_corpus(settings).test)
        for line in history(where):
            num_test = line["test"]["num_examples"]
            num_validation = line["validation"]["num_examples"]
            assert num_test + num_validation == num_held_out
            assert abs(num_test - num_validation) <= 3


def test_training_does_not_depend_on_the_validation_part(
    make_settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, fraction in (("without", 0), ("with", 0.5)):
        share = f"evaluation.validation_fraction={fraction}"
        simulate(make_settings(share, f"run_dir={name}"))
    assert hashes(Path("without")) == hashes(Path("with"))
    assert "validation" not in Path("without/history.jsonl").read_text()


@pytest.mark.parametrize("where", ["server", "sites"])
def test_a_killed_run_keeps_the_same_best_model(
    make_settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.chdir(tmp_path)
    swing = (
        SPLIT,
        f"evaluation.where={where}",
        "num_rounds=4",
        "train.learning_rate=3",
    )
    simulate(make_settings(*swing, "run_dir=whole"))
    original = Recorder._keep_if_best

    def cut(self: Recorder, record: RoundRecord) -> None:
        if record.round == at:
            raise PowerCut
        original(self, record)

    for at in range(4):
        settings = make_settings(*swing, f"run_dir=cut{at}")
        monkeypatch.setattr(Recorder, "_keep_if_best", cut)
        with pytest.raises(PowerCut):
            simulate(settings)
        monkeypatch.setattr(Recorder, "_keep_if_best", original)
        simulate(settings)
        kept, expected = (
            RunFolder(Path(name)).load_best() for name in (f"cut{at}", "whole")
        )
        assert kept is not None
        assert expected is not None
        assert kept.record.model_sha256 == expected.record.model_sha256
        assert measured(Path(f"cut{at}")) == measured(Path("whole"))


def test_patience_without_a_validation_part_is_refused(make_settings: Make) -> None:
    expected = r"^evaluation\.patience is 3.*evaluation\.validation_fraction=0\.2"
    with pytest.raises(ValueError, match=expected):
        make_settings("evaluation.patience=3")
