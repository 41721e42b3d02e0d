"""Rules between settings of several groups. Each function raises ValueError with the next step."""

from __future__ import annotations

from wardround.common.settings.data import DataSettings, PartitionSettings
from wardround.common.settings.engine import EngineSettings
from wardround.common.settings.evaluation import (
    EvaluationSettings,
    PersonalisationSettings,
)
from wardround.common.settings.model import AdapterSettings, ModelSettings
from wardround.common.settings.strategy import StrategySettings, TransformSettings
from wardround.common.settings.train import TrainSettings
from wardround.common.settings.values import require

LOCAL_READERS = ("imdb_folders", "zhang_csv", "spooky_csv", "files")
"""Readers of `data.reader` that need `data.path`."""
_NEEDS_THE_MEAN = (
    "each client computes the mean step from the next global model, which must be the "
    "clients' mean"
)
_WITH_CONTROL_VARIATES: tuple[tuple[str, str, object, str], ...] = (
    ("train", "optimizer", "sgd", "a variate corrects plain gradient steps"),
    (
        "train",
        "schedule",
        "constant",
        "the steps of one round predict those of the next",
    ),
    ("train", "head_init", "shared", "all variates must belong to one head"),
    (
        "strategy",
        "on_missing",
        "fail",
        "the corrections cancel only if every client is in every mean",
    ),
    (
        "strategy",
        "on_excess",
        "refuse",
        "the client remembers its update as it was before it was shrunk",
    ),
    ("strategy", "optimizer", "sgd", _NEEDS_THE_MEAN),
    ("strategy", "server_learning_rate", 1, _NEEDS_THE_MEAN),
    ("strategy", "server_momentum", 0, _NEEDS_THE_MEAN),
    ("transforms", "name", "exact", "rounding errors would stay in the variates"),
)
"""Group, key and value that SCAFFOLD needs, and the reason: otherwise its corrections do not
cancel in the mean, or are not gradients."""


def check_rounds(
    train: TrainSettings, strategy: StrategySettings, num_clients: int, num_rounds: int
) -> None:
    """Refuse rounds that could never be closed, or would change nothing."""
    require(
        strategy.min_sites <= num_clients,
        f"strategy.min_sites is {strategy.min_sites} but num_clients is {num_clients}; "
        "a round can never have more updates than clients. Set "
        f"strategy.min_sites={num_clients}, or num_clients={strategy.min_sites} or more.",
    )
    require(
        train.schedule_rounds != 0 or num_rounds == 0,
        f"train.schedule_rounds is 0 with num_rounds={num_rounds}: no step would move a "
        "weight. Set it to num_rounds.",
    )


def check_model(
    model: ModelSettings, adapters: AdapterSettings, precision: str
) -> None:
    """Refuse adapters on a model or a precision that they do not work with."""
    has_adapters = adapters.name != "none"
    require(
        adapters.base_precision == "fp32" or (has_adapters and precision == "bf16"),
        f"adapters.base_precision is bf16, with adapters.name={adapters.name} and "
        f"precision={precision}; it needs adapters, and a forward pass in bf16. Set "
        "adapters=lora and precision=bf16, or adapters.base_precision=fp32.",
    )
    require(
        model.activation == "own" or not has_adapters,
        f"model.activation is abu with adapters.name={adapters.name}; adapters are "
        "merged into plain models, which have no blends. Set adapters=none, or "
        "model.activation=own.",
    )


def check_opt_out(
    personalisation: PersonalisationSettings,
    engine: EngineSettings,
    data: DataSettings,
    partition: PartitionSettings,
    num_clients: int,
    min_sites: int,
) -> None:
    """Refuse an opt-out that this run could not respect."""
    out = personalisation.opt_out_clients
    require(
        not out or engine.is_simulated,
        f"personalisation.opt_out_clients is {list(out)}, but it is for clients of a "
        "simulation. A real site that opts out does not join; set it to [].",
    )
    is_known = all(client < num_clients for client in out)
    num_taking_part = num_clients - len(set(out))
    require(
        is_known and num_taking_part >= min_sites,
        f"personalisation.opt_out_clients is {list(out)}, but there are clients 0 to "
        f"{num_clients - 1}, of which at least {min_sites} must take part "
        "(strategy.min_sites). Name fewer.",
    )
    require(
        data.opt_out_column is None
        or not engine.is_simulated
        or partition.name == "by_site",
        f"data.opt_out_column is '{data.opt_out_column}', but partition "
        f"'{partition.name}' deals texts to any client: a text that opts out belongs to "
        "one site. Set partition=by_site.",
    )


def check_personalisation(
    name: str,
    evaluation: EvaluationSettings,
    engine: EngineSettings,
    model: ModelSettings,
) -> None:
    """Refuse personal models that could not be chosen fairly, or not saved."""
    if name == "none":
        return
    require(
        evaluation.validation_fraction > 0,
        f"personalisation.name is '{name}' and evaluation.validation_fraction is 0: a "
        "client's best model is chosen on a validation part, never on the test part. "
        "Set evaluation.validation_fraction=0.5, or personalisation=none.",
    )
    require(
        evaluation.where == "sites" or not engine.is_simulated,
        f"personalisation.name is '{name}' and evaluation.where is server: the best "
        "round would be chosen by the texts on which clients test their own models. "
        "Set evaluation.where=sites.",
    )
    require(
        model.activation == "own",
        f"personalisation.name is '{name}' with model.activation=abu; personal models "
        "are saved as plain ones, which have no blends. Set model.activation=own, or "
        "personalisation=none.",
    )


def check_share(max_share: float | None, num_taking_part: int) -> None:
    """Refuse a largest share that no mean of so many clients can keep."""
    require(
        max_share is None or max_share * num_taking_part >= 1,
        f"strategy.max_share is {max_share}, but with num_clients={num_taking_part} "
        f"one client has at least 1/{num_taking_part} of the mean. Raise it, or set it "
        "to null.",
    )


def check_control_variates(
    train: TrainSettings, strategy: StrategySettings, transforms: TransformSettings
) -> None:
    """Refuse settings with which the corrections of SCAFFOLD are wrong."""
    if not train.control_variates:
        return
    groups = {"train": train, "strategy": strategy, "transforms": transforms}
    for group, key, needed, reason in _WITH_CONTROL_VARIATES:
        value = getattr(groups[group], key)
        require(
            value == needed,
            f"{group}.{key} is {value!r}, which does not work with "
            f"train.control_variates=true: {reason}. Set {group}.{key}={needed}, or "
            "train.control_variates=false.",
        )


def check_places(
    data: DataSettings, engine: EngineSettings, evaluation: EvaluationSettings
) -> None:
    """Refuse a run that needs a local copy of its texts and names none."""
    if engine.is_simulated or evaluation.where == "server":
        require(
            data.reader not in LOCAL_READERS or data.path is not None,
            f"data.path is missing; reader '{data.reader}' reads a local copy. Set "
            "data.path=...",
        )
