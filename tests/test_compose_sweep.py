"""The plan of `wardround sweep`: cells of every experiment, axes on the command line."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from tests.support.door import wardround
from tests.support.settings import options
from wardround.server.compose import compose
from wardround.server.sweeps.plan import compose_sweep


def axes(cells: list[list[str]]) -> list[tuple[str, str, str, str]]:
    """Return (model, data, num_clients, seed) of each cell."""
    named = [dict(text.split("=", 1) for text in cell) for cell in cells]
    return [
        (cell["model"], cell["data"], cell["num_clients"], cell["seed"])
        for cell in named
    ]


FIFTY_FOUR = [
    (model, data, clients, "0")
    for clients, model, data in product(
        ("1", "2", "4", "8", "16", "32"),
        ("bert", "albert", "distilbert"),
        ("imdb", "yelp_full", "ag_news"),
    )
]
# Two arms for each model, three for BERT, two for its shuffled pooler at every K; five remedies
# at two K.
COLLAPSE_HUB = [
    (model, "imdb", clients, seed)
    for clients in ("1", "2", "4", "8", "16", "32")
    for model in (
        *("bert", "albert", "distilbert") * 2,
        *("bert",) * 3,
        *("hf",) * 2,
        *("bert",) * (5 if clients in ("16", "32") else 0),
    )
    for seed in "012"
]
# conf/experiment/collapse.yaml: four arms at every K, two of them at K = 1 too, and a computed
# one; four poolers from K = 8 on, five remedies at K = 16; each with three seeds.
COLLAPSE = [
    (model, "bbc_news", clients, seed)
    for clients, models in (
        ("1", ["minilm"] * 2),
        ("2", ["minilm"] * 5),
        ("8", ["minilm"] * 5 + ["hf"] * 4),
        ("16", ["minilm"] * 5 + ["hf"] * 4 + ["minilm"] * 5),
    )
    for model in models
    for seed in "012"
]
EXPERIMENTS = {
    # Three arms for each K and seed.
    "blending": [
        ("minilm", "bbc_news", k, seed)
        for k in "148"
        for _ in range(3)
        for seed in "012"
    ],
    "collapse": COLLAPSE,
    "collapse_hub": COLLAPSE_HUB,
    "paper": FIFTY_FOUR,
    "personal": [("minilm", "bbc_news", "8", seed) for seed in ("0", "1", "2")],
    "authors_code": FIFTY_FOUR,
    "compose": [
        ("minilm", "bbc_news", clients, "0")
        for clients in ("1", "2", "4", "8", "16", "32")
    ],
    # Four arms with three seeds.
    "even_frozen": [
        ("minilm", "bbc_news", "4", seed) for _ in range(4) for seed in "012"
    ],
    "demo": [("minilm", "bbc_news", "1", "0"), ("minilm", "bbc_news", "4", "0")],
}


def test_this_table_lists_every_experiment() -> None:
    assert options("experiment") == sorted(EXPERIMENTS)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_plans_its_cells_with_the_baselines_first(name: str) -> None:
    plan = compose_sweep([f"experiment={name}"])
    assert axes(plan.cells) == EXPERIMENTS[name]
    assert plan.run_dir == f"outputs/sweep-{name}"
    assert plan.target_fraction == 0.9
    settings = compose(plan.cells[-1]).settings
    assert settings.num_clients == int(EXPERIMENTS[name][-1][2])
    protocols = {"authors_code": "authors_code", "compose": "modern"}
    assert settings.protocol.name == protocols.get(name, "paper")


def test_axes_on_the_command_line_replace_those_of_the_experiment() -> None:
    plan = compose_sweep(
        ["model=bert,albert", "data=imdb", "num_clients=4,1", "run_dir=a/b"]
    )
    assert axes(plan.cells) == [
        ("bert", "imdb", "1", "0"),
        ("albert", "imdb", "1", "0"),
        ("bert", "imdb", "4", "0"),
        ("albert", "imdb", "4", "0"),
    ]
    assert plan.run_dir == "a/b"


def test_other_overrides_reach_every_cell() -> None:
    plan = compose_sweep(["num_clients=1,2", "seed=0,1", "train.batch_size=5"])
    found = [compose(cell).settings for cell in plan.cells]
    assert [(s.num_clients, s.seed, s.train.batch_size) for s in found] == [
        (1, 0, 5),
        (1, 1, 5),
        (2, 0, 5),
        (2, 1, 5),
    ]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "train.learning_rate=1,2",
            ["'train.learning_rate=1,2'", "model, data, num_clients, seed"],
        ),
        (
            "protocol=paper,modern",
            ["'protocol'", "model, data, num_clients, seed"],
        ),
        ("sweep.seed=[]", ["sweep.seed is empty"]),
        ("model=bert,albrt", ["unknown model 'albrt'", "albert"]),
    ],
)
def test_a_sweep_that_cannot_be_planned_is_refused(
    override: str, words: list[str], tmp_path: Path
) -> None:
    said = wardround("sweep", override, f"run_dir={tmp_path / 'sweep'}")
    assert said.code == 2
    for word in words:
        assert word in said.err
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    "override",
    ["num_rounds=3", "evaluation.target_accuracy=0.9", "evaluation.patience=2"],
)
def test_keys_that_a_sweep_sets_itself_are_refused(override: str) -> None:
    with pytest.raises(ValueError, match=r"data\.budget_rounds"):
        compose_sweep(["experiment=demo", override])
