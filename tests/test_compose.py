"""Settings that the command line composes: the paper's cell, and one switch at a time."""

from __future__ import annotations

from dataclasses import MISSING, fields, is_dataclass
from functools import lru_cache
from typing import Any

import pytest

from tests.support.settings import options
from tests.support.tiny import Make
from wardround.common.settings.earlier import EARLIER
from wardround.common.settings.tree import Settings
from wardround.server.compose import compose

PAPER_CELL = ["model=albert", "data=ag_news", "num_clients=8"]

# PAPER.md, first table: the protocol in the paper's text.
PAPER = {
    "strategy.weighting": "examples",
    "strategy.on_missing": "fail",
    "num_clients": 8,
    "num_rounds": 100,
    "partition.name": "iid",
    "partition.alpha": None,
    "partition.drop_remainder": False,
    "train.local_epochs": 2,
    "train.batch_size": 32,
    "train.max_length": 128,
    "train.learning_rate": 2e-5,
    "train.optimizer": "sgd",
    "train.weight_decay": 0.0,
    "train.schedule": "constant",
    "train.warmup_fraction": 0.0,
    "train.max_grad_norm": None,
    "train.shuffle": True,
    "train.drop_last": False,
    "train.attention_mask": True,
    "train.head_init": "shared",
    "evaluation.mode": "test",
    "model.source": "hub",
    "model.name": "albert/albert-base-v1",
    "data.hub_name": "fancyzhx/ag_news",
    "data.text_columns": ("title", "description"),
    "data.label_names": ("World", "Sports", "Business", "Sci/Tech"),
    "data.train_examples": None,
    "data.test_examples": None,
    "data.budget_rounds": 100,
    "data.second_threshold_rounds": 200,
    "precision": "fp32",
}
# PAPER.md, second table: differences of the authors' code, and the override for each alone.
AUTHORS = {
    "train.head_init": ("per_site", "train.head_init=per_site"),
    "train.attention_mask": (False, "train.attention_mask=false"),
    "train.shuffle": (False, "train.shuffle=false"),
    "train.drop_last": (True, "train.drop_last=true"),
    "strategy.weighting": ("uniform", "strategy.weighting=uniform"),
    "partition.drop_remainder": (True, "partition.drop_remainder=true"),
    "protocol.ag_news_columns": (
        ("description",),
        "protocol.ag_news_columns=[description]",
    ),
    "evaluation.mode": ("parts", "evaluation.mode=parts"),
}


@lru_cache
def papers_cell() -> dict[str, Any]:
    """Return the settings of the paper's cell, flat."""
    return compose(PAPER_CELL).settings.flat()


def difference(*overrides: str) -> dict[str, Any]:
    """Return the keys that these overrides change in the paper's cell, and their new values."""
    before = papers_cell()
    after = compose([*PAPER_CELL, *overrides]).settings.flat()
    return {key: after[key] for key in after if after[key] != before[key]}


def test_the_paper_cell_has_the_values_of_the_papers_first_table() -> None:
    values = papers_cell()
    assert {key: values[key] for key in PAPER} == PAPER


@pytest.mark.parametrize(
    ("data", "budget", "second"),
    [("imdb", 100, 200), ("ag_news", 100, 200), ("yelp_full", 50, 100)],
)
def test_budgets_are_those_of_the_paper(data: str, budget: int, second: int) -> None:
    settings = compose([f"data={data}"]).settings
    assert (settings.num_rounds, settings.data.budget_rounds) == (budget, budget)
    assert settings.data.second_threshold_rounds == second


def test_checkpoints_are_those_of_the_paper() -> None:
    names = [
        compose([f"model={model}"]).settings.model.name
        for model in ("bert", "albert", "distilbert")
    ]
    assert names == [
        "google-bert/bert-base-cased",
        "albert/albert-base-v1",
        "distilbert/distilbert-base-cased",
    ]


def test_protocol_authors_code_changes_exactly_the_papers_second_table() -> None:
    expected = {key: value for key, (value, _) in AUTHORS.items()}
    expected |= {"protocol.name": "authors_code", "data.text_columns": ("description",)}
    assert difference("protocol=authors_code") == expected


@pytest.mark.parametrize("key", AUTHORS)
def test_each_switch_changes_only_its_own_key(key: str) -> None:
    value, override = AUTHORS[key]
    expected = {key: value}
    if key == "protocol.ag_news_columns":
        expected["data.text_columns"] = value
    assert difference(override) == expected


@pytest.mark.parametrize(
    ("group", "option"),
    [
        (group, option)
        for group in (
            "model",
            "data",
            "partition",
            "engine",
            "protocol",
            "personalisation",
        )
        for option in options(group)
    ],
)
def test_every_option_composes(group: str, option: str) -> None:
    needed = {
        "hf": ["model.name=x/y"],
        "files": ["data.path=x.csv"],
        "spooky_author": ["data.path=x.csv"],
    }
    judged = ["evaluation.validation_fraction=0.5", "evaluation.where=sites"]
    if group == "personalisation":
        needed["personalisation"] = judged
    more = needed.get(option, needed.get(group, []))
    settings = compose([f"{group}={option}", *more]).settings
    chosen = getattr(settings, group)
    name = chosen.label if group == "model" else chosen.name
    assert name == ("x/y" if option == "hf" else option)


@pytest.mark.parametrize("protocol", options("protocol"))
def test_settings_come_back_from_json_unchanged(protocol: str) -> None:
    words = (f"protocol={protocol}", "data.path=/tmp/a b", "seed=3")
    settings = compose([*PAPER_CELL, *words]).settings
    again = Settings.from_json(settings.to_json())
    assert again == settings
    assert again.data.label_names == ("World", "Sports", "Business", "Sci/Tech")
    assert again.differences(settings) == []


def test_json_with_an_unknown_or_missing_key_is_refused() -> None:
    values = compose(PAPER_CELL).settings.to_dict()
    with pytest.raises(ValueError, match=r"train\.momentum is 0\.9"):
        Settings.from_dict(values | {"train": values["train"] | {"momentum": 0.9}})
    del values["seed"]
    with pytest.raises(ValueError, match=r"^seed is missing\."):
        Settings.from_dict(values)


def test_only_conf_gives_defaults() -> None:
    groups = vars(compose(PAPER_CELL).settings).values()
    trees: list[Any] = [Settings]
    trees += [type(group) for group in groups if is_dataclass(group)]
    with_default = [
        (tree.__name__, field.name)
        for tree in trees
        for field in fields(tree)
        if field.default is not MISSING or field.default_factory is not MISSING
    ]
    assert with_default == []


def test_keys_that_an_earlier_version_lacked_have_their_earlier_values() -> None:
    settings = compose(["train.frozen=embeddings", "adapters=lora"]).settings
    values = settings.to_dict()
    for dotted in EARLIER:
        group, _, key = dotted.rpartition(".")
        del (values[group] if group else values)[key]
    read = Settings.from_dict(values).flat()
    assert read == settings.flat() | EARLIER
    del values["adapters"]
    assert Settings.from_dict(values).flat() == read
    del values["data"]
    with pytest.raises(ValueError, match=r"^data is missing\."):
        Settings.from_dict(values)


def test_differences_name_only_settings_that_change_numbers(
    make_settings: Make,
) -> None:
    settings = make_settings()
    other = make_settings(
        "num_rounds=9",
        "run_dir=elsewhere",
        "engine=ray",
        "engine.num_cpus=2",
        "evaluation.target_accuracy=0.5",
    )
    assert settings.differences(other) == []
    other = make_settings("seed=8", "train.batch_size=5", "num_rounds=9")
    assert settings.differences(other) == ["train.batch_size: 4 -> 5", "seed: 7 -> 8"]
