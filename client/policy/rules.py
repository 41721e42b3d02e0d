"""The rule for every setting that a server can name in a plan."""

from __future__ import annotations

import os

from wardround.client.policy.models import MODEL, RECIPE, WEIGHTS
from wardround.client.policy.rule import Rule, bounded, harmless, must_be, own
from wardround.client.policy.steps import (
    ADAPTER_SCALE,
    BETAS,
    CLIPPING,
    LEARNING_RATE,
    PROXIMAL,
    SCHEDULE,
    SERVER_RATE,
)

_MAX_DROPOUT = 0.5
_MAX_MOMENTUM = 0.9
_MAX_RANK = 256
_FRACTIONS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)

_NAME = harmless("a name for folders and figures")
_SERVERS = harmless("only the server reads it")
_SIMULATED = harmless("only simulations read it")
_CHOICE = harmless("one of a few ways to train, each on all of the site's texts")
_ORDER = harmless("decides in which order the texts are read, never which texts")
_SCALE = harmless("scales the steps of a training over all of the site's texts")
_PERSONAL = harmless(
    "for `wardround-site personalise`, which this site starts itself and which sends "
    "nothing"
)
_OWN_FILE = own("data file and its form")
_OWN_SPLIT = own("held-out part")
_ALL_TEXTS = must_be(None, "all of the site's texts are used, whole")

_LABELS = Rule(
    "listed",
    lambda limits: (
        f"must be {', '.join(limits.allowed_labels)}"
        if limits.allowed_labels
        else "look at them"
    ),
    lambda value, settings, limits: (
        not limits.allowed_labels or value == limits.allowed_labels
    ),
)
_FROZEN = Rule(
    "listed",
    lambda limits: (
        "embeddings: their updates reveal which words the texts use (policy.frozen)"
        if limits.policy.frozen == "embeddings"
        else "embeddings or none"
    ),
    lambda value, settings, limits: limits.policy.frozen in ("none", value),
)
_CONTROL_VARIATES = Rule(
    "listed",
    lambda limits: (
        "true or false"
        if limits.policy.control_variates
        else "false: the server can invent the corrections (policy.control_variates)"
    ),
    lambda value, settings, limits: limits.policy.control_variates or not value,
)
_FORMS = Rule(
    "listed",
    lambda limits: f"one of {', '.join(limits.policy.forms)} (policy.forms)",
    lambda value, settings, limits: value in limits.policy.forms,
)
_ROUND_SITES = Rule(
    "bounded",
    lambda limits: (
        f"a round needs at least {limits.policy.min_sites} (policy.min_sites)"
    ),
    lambda value, settings, limits: (
        settings.strategy.on_missing == "fail" or value >= limits.policy.min_sites
    ),
)
_PLACE_OF_TEST = Rule(
    "listed",
    lambda limits: (
        "server or sites" if limits.policy.counts else "server: policy.counts is false"
    ),
    lambda value, settings, limits: limits.policy.counts or value == "server",
)
_VALIDATION = Rule(
    "listed",
    lambda limits: "0, 0.1 … 0.5: parts that differ by one text would reveal that text",
    lambda value, settings, limits: value in _FRACTIONS,
)
_SITES = Rule(
    "bounded",
    lambda limits: (
        f"at least {limits.policy.min_sites} (policy.min_sites), and as many as the plan "
        "names"
    ),
    lambda value, settings, limits: value >= limits.policy.min_sites,
)
_THREADS = Rule(
    "bounded",
    lambda limits: f"at most the {os.cpu_count()} of this machine",
    lambda value, settings, limits: value == "auto" or value <= (os.cpu_count() or 1),
)

RULES: dict[str, Rule] = {
    "model.label": _NAME,
    "model.source": MODEL,
    "model.name": MODEL,
    "model.revision": MODEL,
    "model.sha256": WEIGHTS,
    "model.head": _CHOICE,
    "model.activation": _CHOICE,
    "model.abu_where": _CHOICE,
    "model.abu_normalisation": _CHOICE,
    "data.reader": _OWN_FILE,
    "data.hub_name": _OWN_FILE,
    "data.hub_revision": _OWN_FILE,
    "data.path": _OWN_FILE,
    "data.local_reader": _OWN_FILE,
    "data.test_path": _OWN_FILE,
    "data.text_columns": _OWN_FILE,
    "data.label_column": _OWN_FILE,
    "data.delimiter": _OWN_FILE,
    "data.encoding": _OWN_FILE,
    "data.drop_empty": _OWN_FILE,
    "data.label_map": _OWN_FILE,
    "data.token_cache": _OWN_FILE,
    "data.opt_out_column": _OWN_FILE,
    "data.test_fraction": _OWN_SPLIT,
    "data.split_seed": _OWN_SPLIT,
    "data.label_names": _LABELS,
    "data.train_examples": _ALL_TEXTS,
    "data.test_examples": _ALL_TEXTS,
    "data.max_words": _ALL_TEXTS,
    "data.name": _NAME,
    "data.budget_rounds": _SERVERS,
    "data.second_threshold_rounds": _SERVERS,
    "protocol.name": harmless("a name; what it stands for is in the other settings"),
    "protocol.ag_news_columns": own("columns"),
    "partition.name": _SIMULATED,
    "partition.alpha": _SIMULATED,
    "partition.drop_remainder": _SIMULATED,
    "train.local_epochs": bounded(None, "max_epochs"),
    "train.batch_size": bounded("min_batch_size", "max_batch_size"),
    "train.learning_rate": LEARNING_RATE,
    "train.max_length": bounded("min_max_length", "max_max_length"),
    "train.optimizer": _CHOICE,
    "train.weight_decay": bounded(None, "max_weight_decay"),
    "train.schedule": _SCALE,
    "train.warmup_fraction": _SCALE,
    "train.max_grad_norm": CLIPPING,
    "train.schedule_rounds": SCHEDULE,
    "train.shuffle": must_be(True, "no text stands at the same place in every round"),
    "train.drop_last": must_be(False, "all of the site's texts are used, whole"),
    "train.last_batch": must_be(
        "even", "the last batch of an epoch could be a single text"
    ),
    "train.frozen": _FROZEN,
    "train.attention_mask": _CHOICE,
    "train.padding": _ORDER,
    "train.micro_batches": _ORDER,
    "train.group_by_length": _ORDER,
    "train.head_init": _CHOICE,
    "train.head_learning_rate": LEARNING_RATE,
    "train.head_warmup_rounds": _CHOICE,
    "train.gradient_checkpointing": harmless("the same numbers with less memory"),
    "adapters.name": _CHOICE,
    "adapters.targets": _CHOICE,
    "adapters.base_precision": _CHOICE,
    "adapters.rank": bounded(None, _MAX_RANK),
    "adapters.alpha": ADAPTER_SCALE,
    "adapters.dropout": bounded(None, _MAX_DROPOUT),
    "train.proximal_mu": PROXIMAL,
    "train.control_variates": _CONTROL_VARIATES,
    "train.on_collapse": _SERVERS,
    "train.collapse_rounds": _SERVERS,
    "transforms.name": _FORMS,
    "transforms.error_feedback": harmless(
        "what rounding loses is added to this site's next update"
    ),
    "strategy.weighting": _SERVERS,
    "strategy.optimizer": _SERVERS,
    "strategy.tau": _SERVERS,
    "strategy.wait_seconds": _SERVERS,
    "strategy.round_timeout_seconds": _SERVERS,
    "strategy.ask_again_seconds": _SERVERS,
    "strategy.on_missing": _SERVERS,
    "strategy.max_share": _SERVERS,
    "strategy.max_update_norm": _SERVERS,
    "strategy.max_norm_ratio": _SERVERS,
    "strategy.on_excess": _SERVERS,
    "strategy.server_learning_rate": SERVER_RATE,
    "strategy.server_momentum": bounded(None, _MAX_MOMENTUM),
    "strategy.beta_1": BETAS,
    "strategy.beta_2": BETAS,
    "strategy.min_sites": _ROUND_SITES,
    "evaluation.where": _PLACE_OF_TEST,
    "evaluation.validation_fraction": _VALIDATION,
    "evaluation.mode": _SERVERS,
    "evaluation.target_accuracy": _SERVERS,
    "evaluation.patience": _SERVERS,
    "evaluation.batch_size": bounded(None, "max_batch_size"),
    "personalisation.name": _PERSONAL,
    "personalisation.epochs": _PERSONAL,
    "personalisation.learning_rate": _PERSONAL,
    "personalisation.gate_hidden": _PERSONAL,
    "personalisation.everyone": _SIMULATED,
    "personalisation.keep_models": _SIMULATED,
    "personalisation.opt_out_clients": _SIMULATED,
    "engine.name": must_be("deployment", "this is no simulation"),
    "engine.num_cpus": _SIMULATED,
    "engine.num_gpus": _SIMULATED,
    "engine.address": _SIMULATED,
    "engine.workers": _SIMULATED,
    "num_clients": _SITES,
    "num_rounds": bounded(None, "max_answers"),
    "recipe": RECIPE,
    "seed": harmless(
        "decides order and dropout, never which texts: the held-out part is this site's own"
    ),
    "arm": _NAME,
    "run_dir": _SERVERS,
    "device": own("device"),
    "precision": _CHOICE,
    "attention": harmless("one of a few ways to compute the same"),
    "threads": _THREADS,
}
"""The rule for each setting. A test checks that no setting is missing."""
