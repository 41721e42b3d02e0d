"""Values of settings that earlier versions did not have, and so did not write.

The defaults of a new run are in `conf/`, and nowhere else. A run folder, plan or message of an
earlier version may lack a key of this table: the value here is what that version did. It must
not change when a default in `conf/` does.
"""

from __future__ import annotations

from typing import Any

EARLIER: dict[str, object] = {
    "model.activation": "own",
    "model.abu_where": "head",
    "model.abu_normalisation": "none",
    "model.sha256": None,
    "data.delimiter": None,
    "data.encoding": None,
    "data.opt_out_column": None,
    "data.split_seed": None,
    "train.last_batch": "short",
    "train.frozen": "none",
    "train.gradient_checkpointing": False,
    "train.proximal_mu": 0.0,
    "train.control_variates": False,
    "adapters.name": "none",
    "adapters.rank": 8,
    "adapters.alpha": 16.0,
    "adapters.dropout": 0.0,
    "adapters.targets": None,
    "adapters.base_precision": "fp32",
    "strategy.optimizer": "sgd",
    "strategy.beta_1": 0.9,
    "strategy.beta_2": 0.99,
    "strategy.tau": 1e-3,
    "strategy.ask_again_seconds": 300.0,
    "strategy.max_share": None,
    "strategy.max_update_norm": None,
    "strategy.max_norm_ratio": None,
    "strategy.on_excess": "refuse",
    "evaluation.validation_fraction": 0.0,
    "evaluation.patience": None,
    "personalisation.name": "none",
    "personalisation.epochs": 5,
    "personalisation.learning_rate": None,
    "personalisation.gate_hidden": 32,
    "personalisation.everyone": False,
    "personalisation.keep_models": False,
    "personalisation.opt_out_clients": (),
    "recipe": "",
}
"""The value of earlier versions, by dotted key of the setting."""


def with_earlier(values: dict[str, Any]) -> dict[str, Any]:
    """Return nested settings in which every missing key of `EARLIER` has its value.

    A group that is missing stays missing, unless earlier versions did not have it.
    """
    if not isinstance(values, dict):
        return values
    # Earlier versions did not have these groups at all.
    complete: dict[str, Any] = {"adapters": {}, "personalisation": {}} | values
    for dotted, value in EARLIER.items():
        group, _, key = dotted.rpartition(".")
        if not group:
            complete.setdefault(key, value)
        elif isinstance(complete.get(group), dict):
            complete[group] = {key: value} | complete[group]
    return complete
