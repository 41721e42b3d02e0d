"""For every setting, a value of a server that wants to learn more than it should."""

from __future__ import annotations

import copy
from typing import Any

from wardround.common.settings.tree import Settings

# The hostile value of each setting.
HOSTILE: dict[str, Any] = {
    "model.label": "another",
    "model.source": "package",
    "model.name": "somebody/else",
    "model.revision": "evil",
    "model.sha256": "0" * 64,
    "model.head": "distilbert",
    "model.activation": "abu",
    "model.abu_where": "all",
    "model.abu_normalisation": "softmax",
    "data.name": "another",
    "data.reader": "bbc_package",
    "data.hub_name": "somebody/else",
    "data.hub_revision": "evil",
    "data.path": "/etc/passwd",
    "data.local_reader": "files",
    "data.test_path": "/etc/passwd",
    "data.text_columns": ["label"],
    "data.label_column": "text",
    "data.delimiter": "|",
    "data.encoding": "utf-16",
    "data.opt_out_column": "label",
    "data.label_names": ["health", "money", "sport", "is_patient_7"],
    "data.test_fraction": 0.999,
    "data.split_seed": 12345,
    "data.train_examples": 3,
    "data.test_examples": 1,
    "data.max_words": 1,
    "data.drop_empty": True,
    "data.label_map": [["health", "sport"]],
    "data.token_cache": "/tmp/stolen",
    "data.budget_rounds": 1,
    "data.second_threshold_rounds": 999,
    "protocol.name": "another",
    "protocol.ag_news_columns": ["label"],
    "partition.name": "dirichlet",
    "partition.alpha": 0.001,
    "partition.drop_remainder": True,
    "train.local_epochs": 11,
    "train.batch_size": 1,
    "train.learning_rate": 100.0,
    "train.max_length": 3,
    "train.optimizer": "adamw",
    "train.weight_decay": 1.0,
    "train.schedule": "linear",
    "train.warmup_fraction": 0.9,
    "train.schedule_rounds": 1,
    "train.max_grad_norm": 1e-9,
    "train.shuffle": False,
    "train.drop_last": True,
    "train.last_batch": "short",
    "train.frozen": "none",
    "train.attention_mask": False,
    "train.padding": "max_length",
    "train.micro_batches": "by_length",
    "train.group_by_length": True,
    "train.head_init": "per_site",
    "train.head_learning_rate": 100.0,
    "train.head_warmup_rounds": 1,
    "train.gradient_checkpointing": True,
    "train.proximal_mu": 1e9,
    "adapters.name": "lora",
    "adapters.rank": 257,
    "adapters.alpha": 1e9,
    "adapters.dropout": 0.9,
    "adapters.targets": ["classifier"],
    "adapters.base_precision": "bf16",
    "train.control_variates": True,
    "train.on_collapse": "stop",
    "train.collapse_rounds": 99,
    "transforms.name": "fp16",
    "transforms.error_feedback": False,
    "strategy.weighting": "uniform",
    "strategy.optimizer": "adam",
    "strategy.beta_1": 0.0,
    "strategy.beta_2": 0.9999,
    "strategy.tau": 1e9,
    "strategy.server_learning_rate": 9.0,
    "strategy.server_momentum": 0.95,
    "strategy.min_sites": 1,
    "strategy.wait_seconds": 1e9,
    "strategy.round_timeout_seconds": 1e9,
    "strategy.ask_again_seconds": 1e-3,
    "strategy.on_missing": "continue",
    "strategy.max_share": 1.0,
    "strategy.max_update_norm": 1.0,
    "strategy.max_norm_ratio": 1.0,
    "strategy.on_excess": "clip",
    "evaluation.where": "sites",
    "evaluation.mode": "parts",
    "evaluation.batch_size": 10**9,
    "evaluation.target_accuracy": 0.1,
    "evaluation.validation_fraction": 0.999,
    "evaluation.patience": 1,
    "personalisation.name": "all",
    "personalisation.epochs": 10**6,
    "personalisation.learning_rate": 100.0,
    "personalisation.gate_hidden": 10**6,
    "personalisation.everyone": True,
    "personalisation.keep_models": True,
    "personalisation.opt_out_clients": [0],
    "engine.name": "inprocess",
    "engine.num_cpus": 99.0,
    "engine.num_gpus": 9.0,
    "engine.address": "auto",
    "engine.workers": 99,
    "num_clients": 2,
    "num_rounds": 201,
    "seed": 12345,
    "arm": "another",
    "recipe": "another@1",
    "run_dir": "/root",
    "device": "cuda:7",
    "precision": "bf16",
    "attention": "eager",
    "threads": 100_000,
}
# Other values that a hostile value needs, so that the settings do not contradict each other.
BESIDE: dict[str, dict[str, Any]] = {
    "data.encoding": {"data.local_reader": "files"},
    "data.delimiter": {"data.local_reader": "files"},
    "data.opt_out_column": {"data.local_reader": "files"},
    "personalisation.name": {"evaluation.validation_fraction": 0.5},
    "personalisation.opt_out_clients": {
        "engine.name": "inprocess",
        "data.path": "x",
        "num_clients": 3,
    },
    "train.schedule": {"train.schedule_rounds": 9},
    "train.schedule_rounds": {"train.schedule": "linear"},
    "train.proximal_mu": {"train.optimizer": "adamw", "train.learning_rate": 1e-3},
    "train.drop_last": {"train.last_batch": "short"},
    "strategy.beta_1": {
        "strategy.optimizer": "adam",
        "strategy.server_learning_rate": 0.01,
        "strategy.beta_2": 0.9999,
    },
    "strategy.beta_2": {
        "strategy.optimizer": "adam",
        "strategy.server_learning_rate": 0.01,
    },
    "train.attention_mask": {"train.padding": "max_length"},
    "adapters.base_precision": {"adapters.name": "lora", "precision": "bf16"},
    "strategy.optimizer": {"strategy.server_learning_rate": 0.01},
    "evaluation.patience": {"evaluation.validation_fraction": 0.5},
    "train.group_by_length": {"train.micro_batches": "by_length"},
    "strategy.max_norm_ratio": {"strategy.max_update_norm": 1.0},
    "partition.name": {"partition.alpha": 0.1},
    "engine.name": {"data.path": "x"},
    "strategy.min_sites": {"strategy.on_missing": "continue", "num_clients": 3},
    "strategy.on_missing": {"num_clients": 3},
}


def with_changes(settings: Settings, changes: dict[str, Any]) -> Settings:
    """Return the settings with these dotted keys set."""
    values = copy.deepcopy(settings.to_dict())
    for key, value in changes.items():
        *groups, last = key.split(".")
        inner = values
        for group in groups:
            inner = inner[group]
        inner[last] = value
    return Settings.from_dict(values)


def hostile(settings: Settings, key: str) -> Settings:
    """Return the settings with the hostile value of one key, and the values that it needs."""
    return with_changes(settings, BESIDE.get(key, {}) | {key: HOSTILE[key]})
