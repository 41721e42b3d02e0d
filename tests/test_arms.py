"""Named arms of a sweep: the settings that they change, how to choose them, their folders."""

from __future__ import annotations

import csv
import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from studies import findings
from tests.support.door import for_sweep
from wardround.server.compose import compose
from wardround.server.sweeps.plan import compose_sweep
from wardround.server.sweeps.run import sweep

MINE = "+sweep.arms.mine=['train.head_init=per_site']"
OTHER = "+sweep.arms.other=['train.shuffle=false','num_clients=2,4']"

# The settings behind each part of an arm's name in conf/experiment/collapse.yaml.
SWITCHES: dict[str, tuple[str, Any]] = {
    "own": ("model.head", "own"),
    "distil": ("model.head", "distilbert"),
    "shared": ("train.head_init", "shared"),
    "shrunk": ("train.head_init", "shared_shrunk"),
    "persite": ("train.head_init", "per_site"),
}
REMEDIES = {
    "remedy_head_rate_3": "train.head_learning_rate",
    "remedy_head_rate_10": "train.head_learning_rate",
    "remedy_head_warmup": "train.head_warmup_rounds",
    "remedy_momentum": "strategy.server_momentum",
    "remedy_rescaled": "train.head_init",
}


def settings_by_arm(num_clients: str) -> dict[str, dict[str, Any]]:
    """Return the study's cells of this K, flat, without the names of arm and folder."""
    plan = compose_sweep(
        ["experiment=collapse", f"num_clients={num_clients}", "seed=0"]
    )
    cells = [compose(cell).settings.flat() for cell in plan.cells]
    return {
        str(cell.pop("arm")): {k: v for k, v in cell.items() if k != "run_dir"}
        for cell in cells
    }


def test_the_arms_of_the_study_differ_only_in_the_settings_in_their_names() -> None:
    arms = settings_by_arm("16")
    grid = {
        name: values
        for name, values in arms.items()
        if name.startswith(("own", "distil"))
    }
    assert len(grid) == 5
    for (one, first), (two, second) in combinations(grid.items(), 2):
        differing = {key for key in first if first[key] != second[key]}
        parts = zip(one.split("_"), two.split("_"), strict=True)
        assert differing == {
            SWITCHES[mine][0] for mine, theirs in parts if mine != theirs
        }
    for name, values in grid.items():
        expected = dict(SWITCHES[part] for part in name.split("_"))
        assert {key: values[key] for key in expected} == expected


@pytest.mark.parametrize("name", REMEDIES)
def test_a_remedy_differs_from_the_worst_arm_only_in_itself(name: str) -> None:
    arms = settings_by_arm("16")
    worst, remedy = arms["distil_persite"], arms[name]
    assert {key for key in worst if worst[key] != remedy[key]} == {REMEDIES[name]}


def test_an_arm_may_set_num_clients_and_the_command_line_overrides_it() -> None:
    def cells(*more: str) -> list[tuple[str, int]]:
        plan = compose_sweep(["sweep.num_clients=[1,8]", MINE, OTHER, *more])
        found = [compose(cell).settings for cell in plan.cells]
        return [(settings.arm, settings.num_clients) for settings in found]

    assert cells() == [("mine", 1), ("other", 2), ("other", 4), ("mine", 8)]
    assert cells("num_clients=4") == [("mine", 4), ("other", 4)]
    assert cells("arm=other") == [("other", 2), ("other", 4)]


def test_a_sweep_without_arms_does_not_mention_them() -> None:
    plan = compose_sweep(["experiment=demo"])
    assert not any(word.startswith("arm") for cell in plan.cells for word in cell)
    assert compose(plan.cells[0]).settings.cell == "minilm-bbc_news-k1-s0"


@pytest.mark.parametrize(
    ("more", "pattern"),
    [
        (["arm=min"], r"'min'\. Nearest: 'mine'\..*: mine\."),
        (
            ["train.head_init=shared"],
            r"'train\.head_init=shared'.*'train\.head_init=per_site'.*'mine'.*arm=",
        ),
        (
            ["+sweep.arms.own=['model=hf','model.name=m']", "model=bert"],
            r"'model=bert'.*'model=hf'.*'own'.*arm=",
        ),
        (["+sweep.arms.two=['run_dir=x']"], r"sweep\.arms\.two .*run_dir"),
        (["+sweep.arms.three=['train.shufle=false']"], r"'train\.shufle'"),
    ],
)
def test_arms_that_cannot_be_planned_are_refused(more: list[str], pattern: str) -> None:
    with pytest.raises(ValueError, match=pattern):
        compose_sweep(["experiment=demo", MINE, *more])


def test_an_arm_of_a_sweep_without_arms_is_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown arm 'x'\..*sweep\.arms"):
        compose_sweep(["experiment=demo", "arm=x"])


def test_an_arms_name_must_be_a_valid_folder_name() -> None:
    with pytest.raises(ValueError, match="arm is 'a b'"):
        compose(["arm='a b'"])


def test_arms_are_in_folders_table_and_report(
    overrides: list[str], tmp_path: Path
) -> None:
    study = tmp_path / "study"
    words = [
        text
        for text in for_sweep(overrides)
        if not text.startswith(("run_dir", "num_clients"))
    ]
    words += [
        f"run_dir={study}",
        "num_clients=1,3",
        MINE,
        "+sweep.arms.plain=[]",
        "data.budget_rounds=2",
        "data.second_threshold_rounds=2",
    ]
    outcome = sweep(words, findings)
    names = ["mine-k1", "plain-k1", "mine-k3", "plain-k3"]
    cells = [f"tiny-files-{name}-s7" for name in names]
    folders = [path.name for path in (study / "cells").iterdir()]
    assert sorted(folders) == sorted(cells)
    rows = list(csv.DictReader((study / "sweep.csv").read_text().splitlines()))
    assert [(row["arm"], row["num_clients"], row["status"]) for row in rows] == [
        (arm, k, "finished") for k in ("1", "3") for arm in ("mine", "plain")
    ]
    # Every arm is compared with its own K = 1.
    assert [row["baseline_accuracy"] for row in rows[2:]] == [
        row["accuracy_at_budget"] for row in rows[:2]
    ]
    answers = json.loads((outcome.report.parent / "study.json").read_text())
    by_id = {answer["id"]: answer for answer in answers}
    assert by_id["head"]["verdict"] == "not tested"
    # There is no target, so that neither arm reaches one.
    assert by_id["sites_own"]["verdict"] == "one seed, no verdict"
    assert by_id["sites_own"]["numbers"]["never"] == [1, 1]
    suffixes = {path.suffix for path in outcome.report.parent.iterdir()}
    assert suffixes == {".html", ".md", ".json", ".png", ".svg"}


def test_a_cell_ends_at_its_experiments_target_and_is_not_run_again(
    overrides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dropped = ("run_dir", "num_clients", "seed", "train.", "model")
    run = [text for text in for_sweep(overrides) if not text.startswith(dropped)]
    model = [text for text in overrides if text.startswith("model.")]
    words = [
        "experiment=collapse",
        *run,
        *model,
        "model=hf",
        f"run_dir={tmp_path / 'long'}",
        "arm=own_shared",
        "num_clients=1",
        "seed=0",
        "data.train_examples=null",
        "data.test_examples=null",
        "data.max_words=null",
        # AdamW learns the three topics within a few of the thirty rounds.
        "train.optimizer=adamw",
        "train.learning_rate=0.005",
        "train.local_epochs=8",
        "train.batch_size=4",
        "data.budget_rounds=30",
        "data.second_threshold_rounds=30",
    ]
    (row,) = sweep(words, findings).rows
    (history,) = (tmp_path / "long" / "cells").glob("*/history.jsonl")
    text = history.read_text()
    last = json.loads(text.splitlines()[-1])
    assert row.status == "finished"
    assert last["test"]["accuracy"] >= 0.85
    assert last["round"] < 30
    capsys.readouterr()
    sweep(words, findings)
    assert history.read_text() == text
    assert "goes on after" not in "".join(capsys.readouterr())
