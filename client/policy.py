"""What a site allows, whatever a plan asks: its limits, and a rule for every setting a server can name."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import inf, isclose, sqrt
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from wardround.client.peers import roster_refusals
from wardround.common.model_files import FILES_PREFIX, WEIGHTS_PREFIX
from wardround.common.recipes import pinned_models, recipes
from wardround.common.settings.model import ModelSettings
from wardround.common.settings.tree import Settings
from wardround.common.wire.signing import Plan

_DAY = 86_400.0
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True, kw_only=True)
class Policy:
    """The section `policy` of site.yaml, in the order of that file."""

    __pydantic_config__ = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    approve: Literal["by_hand", "within_policy"] = "by_hand"
    """`by_hand`: a person approves each plan; `within_policy`: every plan inside these limits is approved."""
    approvals: Literal[1, 2] = 1
    """How many people have to approve a plan, each with a name and a key of their own (`by_hand` only)."""
    recipes: tuple[str, ...] | None = None
    """Recipes, as `fine_tune@1`, that a plan must follow without a deviation. None asks for no recipe."""
    max_answers: Count = 200
    """Most rounds one plan may ask for; each is answered three times at most, where answers get lost."""
    max_epochs: Count = 10
    """Most passes over the site's texts in one round."""
    max_steps: Count = 20_000
    """Most optimiser steps in one round."""
    max_days: Positive = 90.0
    """Longest time from a plan's first to its last day."""
    min_batch_size: Count = 8
    """Smallest batch: a step on one text tells more of it than a step on many."""
    max_batch_size: Count = 512
    """Largest batch, of training and of counting."""
    min_max_length: Count = 16
    """Fewest tokens a text may be cut to."""
    max_max_length: Count = 4096
    """Most tokens a text may be padded to."""
    max_learning_rate: Positive = 0.1
    """Largest step size with SGD, of the whole model and of its head."""
    max_learning_rate_adamw: Positive = 0.001
    """The same with AdamW, whose steps have about this length for every weight."""
    max_weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.5
    max_influence: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 4.0
    """Largest share of an update that one text may have, as a multiple of its even share."""
    min_speaking_texts: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 10.0
    """An update stays here if fewer texts than this speak in it: a crafted model can silence all but one."""
    min_token_ratio: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 4.0
    """Fewest tokens of the training texts, as a multiple of the model's hidden size."""
    frozen: Literal["embeddings", "none"] = "embeddings"
    """`embeddings`: word embeddings must not be trained, since their updates tell which words occur."""
    control_variates: bool = False
    """Whether a plan may correct steps by control variates, which the server can invent."""
    models: tuple[str, ...] | Literal["any"] | None = None
    """Which may be trained: `sha256:` and the SHA-256 of model.safetensors, `files:` and the digest of all
    files, `name` or `name@revision`. None allows the models that a recipe of this version pins; `any` leaves
    it to who approves."""
    labels: tuple[str, ...] | None = None
    """The labels, in their order; None takes those of the invitation, where it names any."""
    counts: bool = False
    """Whether counts of right and wrong held-out texts may leave, for each pair of labels."""
    min_count: Count = 5
    """Counts stay where one of them is above 0 and below this."""
    forms: tuple[Literal["exact", "bf16", "fp16", "int8"], ...] = (
        "exact",
        "bf16",
        "fp16",
        "int8",
    )
    """In which forms updates may leave."""
    min_sites: Count = 3
    """Fewest sites of a plan, and of a round: of two, each can work out the other's update."""
    max_sites: Count = 64
    """Most sites of a plan: a coordinator can invent sites, and nobody reads a list of hundreds."""
    require_peers: bool = False
    """Whether every other site of a plan must be pinned here with its key (`wardround-site peers add`)."""
    min_examples: Count = 50
    """Fewest training texts here; with fewer, nothing leaves."""
    same_start: bool = True
    """Whether the first model must be what this site computes from its own model files, bit for bit."""
    max_step_ratio: Positive | None = 10.0
    """How far each tensor of the model may move from round to round, as a multiple of how far this site moves
    it itself (`client/bounds.py`). None bounds nothing."""
    max_size_ratio: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 100.0
    """How many times as far as this site the other sites and the server's momentum may move a model: a site
    of 50 texts can take part beside one of 5,000."""
    max_total_answers: Count = 600
    """Most rounds that this site answers in all, over all plans and files. Nothing resets the count."""
    min_changed_texts: Count = 50
    """A plan on texts that differ from an answered version by fewer is refused: the difference of two updates
    would be that of these texts."""
    data_may_change: bool = False
    """Whether a plan stays approved when texts were added or taken away."""
    require_privacy: bool = False
    """Only plans with differential privacy; this version has none, so that every plan is refused."""
    max_epsilon: Positive | None = None
    delta: Positive | None = None
    """Of differential privacy; of no account while there is none."""
    require_aggregation: bool = False
    """Only plans whose updates are summed before anybody sees one; this version has none, so that every plan
    is refused."""


RETIRED = {"max_global_step": "max_step_ratio"}
"""Keys of earlier versions, which are read over, and what took their place."""


def without_retired(policy: Any) -> Any:
    """A section `policy` as it was read, without keys of earlier versions."""
    if not isinstance(policy, dict):
        return policy
    return {key: value for key, value in policy.items() if key not in RETIRED}


@dataclass(frozen=True)
class Limits:
    """A policy, and the facts about its site that a rule needs."""

    policy: Policy
    site: str
    key: str
    """Fingerprint of the key that signs the site's answers."""
    has_own_model: bool
    labels: tuple[str, ...] = ()
    """Of the invitation."""
    peers: Mapping[str, str] = field(default_factory=dict)
    """The pinned sites: name, and fingerprint of the site's signing key."""


Kind = Literal["fixed", "bounded", "listed", "harmless"]


@dataclass(frozen=True)
class Rule:
    """What a policy says to one setting."""

    kind: Kind
    says: Callable[[Limits], str]
    """The limit, or why there need be none, in plain words."""
    holds: Callable[[Any, Settings, Limits], bool] = lambda value, settings, limits: (
        True
    )
    """Takes the setting's own value, too."""


@dataclass(frozen=True)
class Line:
    """One setting of a plan, with what the policy says to it."""

    key: str
    value: object
    rule: Rule
    words: str
    is_allowed: bool


def lines_of(settings: Settings, limits: Limits) -> list[Line]:
    """Every setting of a plan, in the order of docs/settings.md."""
    found = []
    for key, value in settings.flat().items():
        rule = RULES[key]
        found.append(
            Line(
                key, value, rule, rule.says(limits), rule.holds(value, settings, limits)
            )
        )
    return found


def refusals_of(
    plan: Plan, settings: Settings, limits: Limits
) -> Iterator[tuple[str, str, str]]:
    """Why the policy refuses a plan: a code of `REFUSALS`, the setting that is meant or "", and words."""
    policy = limits.policy
    if plan.sites.get(limits.site) != limits.key:
        yield (
            "not_in_plan",
            "",
            f"{limits.site} does not stand in the plan under its own key",
        )
    if len(plan.sites) != settings.num_clients or len(plan.sites) < policy.min_sites:
        yield (
            "policy",
            "num_clients",
            f"{len(plan.sites)} sites stand in it; policy.min_sites is {policy.min_sites}",
        )
    yield from roster_refusals(plan, limits)
    days = (plan.not_after - plan.not_before) / _DAY
    if days > policy.max_days and not isclose(days, policy.max_days):
        yield (
            "policy",
            "",
            f"it may go on for {days:.0f} days; policy.max_days is {policy.max_days:g}",
        )
    for is_asked, name in (
        (policy.require_privacy, "require_privacy"),
        (policy.require_aggregation, "require_aggregation"),
    ):
        if is_asked:
            yield (
                "policy",
                "",
                f"policy.{name} is true, and this version has nothing of the kind",
            )
    if policy.approve == "within_policy" and policy.approvals > 1:
        yield (
            "policy",
            "",
            f"policy.approvals is {policy.approvals}, which needs policy.approve: by_hand",
        )
    if policy.approve == "within_policy" and policy.models == "any":
        yield (
            "policy",
            "model.name",
            "policy.approve: within_policy needs a list in policy.models",
        )
    for line in lines_of(settings, limits):
        if not line.is_allowed:
            yield "policy", line.key, f"{line.key} is {line.value!r}: {line.words}"


def _own(what: str) -> Rule:
    return Rule(
        "fixed", lambda limits: f"this site's own {what} counts, whatever stands here"
    )


def _must_be(wanted: object, why: str) -> Rule:
    return Rule(
        "fixed",
        lambda limits: f"must be {wanted!r}: {why}",
        lambda value, settings, limits: value == wanted,
    )


def _bounded(low: str | float | None, high: str | float | None) -> Rule:
    """Args: low and high: a field of `Policy`, a number, or None for no bound. A setting may be None."""

    def bound(limits: Limits, end: str | float | None) -> Any:
        return getattr(limits.policy, end) if isinstance(end, str) else end

    def says(limits: Limits) -> str:
        ends = [
            f"{sign} {bound(limits, end):g}{f' (policy.{end})' if isinstance(end, str) else ''}"
            for sign, end in (("at least", low), ("at most", high))
            if end is not None
        ]
        return ", ".join(ends)

    def holds(value: Any, settings: Settings, limits: Limits) -> bool:
        if value is None:
            return True
        least, most = bound(limits, low), bound(limits, high)
        return (least is None or value >= least) and (most is None or value <= most)

    return Rule("bounded", says, holds)


def _harmless(why: str) -> Rule:
    return Rule("harmless", lambda limits: why)


_SERVERS = _harmless("only the server reads it")
_SIMULATED = _harmless("only simulations read it")
_CHOICE = _harmless("one of a few ways to train, each on all of the site's texts")
_ORDER = _harmless(
    "decides in which order the site's texts are gone through, never which"
)
_SCALE = _harmless(
    "scales the steps of a training that goes over all of the site's texts"
)


def _highest_rate(settings: Settings, limits: Limits) -> float:
    policy = limits.policy
    is_adamw = settings.train.optimizer == "adamw"
    return policy.max_learning_rate_adamw if is_adamw else policy.max_learning_rate


_RATE = Rule(
    "bounded",
    lambda limits: (
        f"at least {_LEAST_RATE:g}; "
        f"at most {limits.policy.max_learning_rate:g} with sgd (policy.max_learning_rate), "
        f"{limits.policy.max_learning_rate_adamw:g} with adamw (policy.max_learning_rate_adamw)"
    ),
    lambda value, settings, limits: (
        value is None or _LEAST_RATE <= value <= _highest_rate(settings, limits)
    ),
)
_CLIPPING = Rule(
    "bounded",
    lambda limits: (
        f"null, or at least {_LEAST_GRAD_NORM:g}: below that adamw's steps grow with the gradient, and the "
        "first ones of a round count for more"
    ),
    lambda value, settings, limits: value is None or value >= _LEAST_GRAD_NORM,
)
_SCHEDULE = Rule(
    "bounded",
    lambda limits: (
        "a linear schedule spans all rounds: past its end no step would move a weight"
    ),
    lambda value, settings, limits: (
        settings.train.schedule == "constant" or settings.num_rounds <= (value or 0)
    ),
)
_PULL = Rule(
    "bounded",
    lambda limits: (
        "0 with adamw; with sgd, the pull of a round's steps together is at most 0.4"
    ),
    lambda value, settings, limits: value == 0 or settings.train.optimizer == "sgd",
)
_SERVER_RATE = Rule(
    "bounded",
    lambda limits: (
        f"at most {_MOST_SERVER_RATE:g} with sgd, {_MOST_ADAPTIVE_RATE:g} with the others: it says how far "
        "the model may move in a round"
    ),
    lambda value, settings, limits: (
        value
        <= (
            _MOST_SERVER_RATE
            if settings.strategy.optimizer == "sgd"
            else _MOST_ADAPTIVE_RATE
        )
    ),
)
_BETAS = Rule(
    "bounded",
    lambda limits: (
        f"a step of the server's optimizer is at most {_MOST_ADAPTIVE_STEP:g} times its learning rate"
    ),
    lambda value, settings, limits: (
        settings.strategy.optimizer == "sgd"
        or adaptive_step(settings.strategy.beta_1, settings.strategy.beta_2)
        <= _MOST_ADAPTIVE_STEP
    ),
)


def _is_model_listed(value: object, settings: Settings, limits: Limits) -> bool:
    listed, model = limits.policy.models, settings.model
    if listed == "any":
        return True
    if listed is None:
        is_own = limits.has_own_model and model.sha256 in pinned_models().values()
        is_installed = (
            model.source == "package"
            and pinned_models().get(model.name) == model.sha256
        )
        return model.sha256 is not None and (is_own or is_installed)
    if names_of(model) & set(listed):
        return True
    # Pinned files are held against their hashes when they are opened. The hash of the weights alone says
    # nothing about configuration and tokenizer, which only a folder of the site's own keeps from the server.
    return any(
        entry.startswith(FILES_PREFIX)
        or (entry.startswith(WEIGHTS_PREFIX) and limits.has_own_model)
        for entry in listed
    )


def names_of(model: ModelSettings) -> set[str]:
    """The entries of `policy.models` that allow a model by its name."""
    return {model.name} | (
        {f"{model.name}@{model.revision}"} if model.revision else set()
    )


def is_pinned(listed: tuple[str, ...] | str | None) -> bool:
    """Whether a list of models names files by their hashes."""
    return isinstance(listed, tuple) and any(
        entry.startswith((WEIGHTS_PREFIX, FILES_PREFIX)) for entry in listed
    )


def _models(limits: Limits) -> str:
    listed = limits.policy.models
    own = "this site's own folder counts (model:), " if limits.has_own_model else ""
    if listed == "any":
        return f"{own}any: look at it"
    if listed is None:
        return (
            f"{own}one that a recipe of this version pins; policy.models lists no other"
        )
    return f"{own}one of {', '.join(listed)}; sha256: counts for this site's own folder only"


def _recipes(limits: Limits) -> str:
    listed = limits.policy.recipes
    if listed is None:
        return "a name; deviations from this site's own copy of the recipe are shown"
    return f"one of {', '.join(listed)}, without a deviation (policy.recipes)"


def _follows_recipe(value: object, settings: Settings, limits: Limits) -> bool:
    listed = limits.policy.recipes
    if listed is None:
        return True
    recipe = recipes().get(str(value))
    return (
        value in listed and recipe is not None and not any(recipe.deviations(settings))
    )


def adaptive_step(beta_1: float, beta_2: float) -> float:
    """Largest step of one weight by an adaptive server optimizer, as a multiple of its learning rate.

    With m and v the decayed means of updates and of their squares (Reddi et al. 2021, arXiv:2003.00295),
    Cauchy and Schwarz give m / sqrt(v) <= (1 - beta_1) / sqrt((1 - beta_2) (1 - beta_1^2 / beta_2)).
    """
    if not beta_1**2 < beta_2 < 1:
        return inf
    return (1 - beta_1) / sqrt((1 - beta_2) * (1 - beta_1**2 / beta_2))


def _labels(limits: Limits) -> tuple[str, ...]:
    return limits.labels if limits.policy.labels is None else limits.policy.labels


_MODEL = Rule("listed", _models, _is_model_listed)
_PIN = Rule(
    "listed",
    lambda limits: "the file of weights must have this SHA-256",
    _is_model_listed,
)
_MOST_SCALE = 8
_LEAST_RATE = 1e-7
_LEAST_GRAD_NORM = 0.01
_MOST_DROPOUT = 0.5
_MOST_SERVER_RATE = 1.0
_MOST_ADAPTIVE_RATE = 0.01
_MOST_MOMENTUM = 0.9
_MOST_ADAPTIVE_STEP = 2.4
_FRACTIONS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
_ALL_TEXTS = "all of the site's texts are used, whole"
RULES: dict[str, Rule] = {
    "model.label": _harmless("a name for folders and figures"),
    "model.source": _MODEL,
    "model.name": _MODEL,
    "model.revision": _MODEL,
    "model.sha256": _PIN,
    **dict.fromkeys(
        (
            "model.head",
            "model.activation",
            "model.abu_where",
            "model.abu_normalisation",
        ),
        _CHOICE,
    ),
    **dict.fromkeys(
        (
            *(
                "data.reader",
                "data.hub_name",
                "data.hub_revision",
                "data.path",
                "data.local_reader",
            ),
            *(
                "data.test_path",
                "data.text_columns",
                "data.label_column",
                "data.delimiter",
                "data.encoding",
            ),
            *(
                "data.drop_empty",
                "data.label_map",
                "data.token_cache",
                "data.opt_out_column",
            ),
        ),
        _own("data file and how it is read"),
    ),
    **dict.fromkeys(("data.test_fraction", "data.split_seed"), _own("held-out part")),
    "data.label_names": Rule(
        "listed",
        lambda limits: (
            f"must be {', '.join(_labels(limits))}" if _labels(limits) else "look at it"
        ),
        lambda value, settings, limits: not _labels(limits) or value == _labels(limits),
    ),
    **dict.fromkeys(
        ("data.train_examples", "data.test_examples", "data.max_words"),
        _must_be(None, _ALL_TEXTS),
    ),
    "data.name": _harmless("a name for folders and figures"),
    **dict.fromkeys(("data.budget_rounds", "data.second_threshold_rounds"), _SERVERS),
    "protocol.name": _harmless("a name; what it stands for is in the other settings"),
    "protocol.ag_news_columns": _own("columns"),
    **dict.fromkeys(
        ("partition.name", "partition.alpha", "partition.drop_remainder"), _SIMULATED
    ),
    "train.local_epochs": _bounded(None, "max_epochs"),
    "train.batch_size": _bounded("min_batch_size", "max_batch_size"),
    "train.learning_rate": _RATE,
    "train.max_length": _bounded("min_max_length", "max_max_length"),
    "train.optimizer": _CHOICE,
    "train.weight_decay": _bounded(None, "max_weight_decay"),
    **dict.fromkeys(("train.schedule", "train.warmup_fraction"), _SCALE),
    "train.max_grad_norm": _CLIPPING,
    "train.schedule_rounds": _SCHEDULE,
    "train.shuffle": _must_be(True, "no text stands at the same place in every round"),
    "train.drop_last": _must_be(False, _ALL_TEXTS),
    "train.last_batch": _must_be(
        "even", "the last batch of an epoch could be a single text"
    ),
    "train.frozen": Rule(
        "listed",
        lambda limits: (
            "embeddings: their updates tell which words the texts use (policy.frozen)"
            if limits.policy.frozen == "embeddings"
            else "embeddings or none"
        ),
        lambda value, settings, limits: limits.policy.frozen in ("none", value),
    ),
    "train.attention_mask": _CHOICE,
    **dict.fromkeys(
        ("train.padding", "train.micro_batches", "train.group_by_length"), _ORDER
    ),
    "train.head_init": _CHOICE,
    "train.head_learning_rate": _RATE,
    "train.head_warmup_rounds": _CHOICE,
    "train.gradient_checkpointing": _harmless("the same numbers with less memory"),
    **dict.fromkeys(
        ("adapters.name", "adapters.targets", "adapters.base_precision"), _CHOICE
    ),
    "adapters.rank": _bounded(None, 256),
    "adapters.alpha": Rule(
        "bounded",
        lambda limits: (
            f"at most {_MOST_SCALE} times adapters.rank: what adapters do is alpha / rank of their product"
        ),
        lambda value, settings, limits: value <= _MOST_SCALE * settings.adapters.rank,
    ),
    "adapters.dropout": _bounded(None, _MOST_DROPOUT),
    "train.proximal_mu": _PULL,
    "train.control_variates": Rule(
        "listed",
        lambda limits: (
            "true or false"
            if limits.policy.control_variates
            else "false: the server can invent what they correct by (policy.control_variates)"
        ),
        lambda value, settings, limits: limits.policy.control_variates or not value,
    ),
    **dict.fromkeys(("train.on_collapse", "train.collapse_rounds"), _SERVERS),
    "transforms.name": Rule(
        "listed",
        lambda limits: f"one of {', '.join(limits.policy.forms)} (policy.forms)",
        lambda value, settings, limits: value in limits.policy.forms,
    ),
    "transforms.error_feedback": _harmless(
        "what rounding loses is added to this site's next update"
    ),
    **dict.fromkeys(
        (
            *("strategy.weighting", "strategy.optimizer", "strategy.tau"),
            *(
                "strategy.wait_seconds",
                "strategy.round_timeout_seconds",
                "strategy.ask_again_seconds",
            ),
            *("strategy.on_missing", "strategy.max_share", "strategy.max_update_norm"),
            *("strategy.max_norm_ratio", "strategy.on_excess"),
        ),
        _SERVERS,
    ),
    "strategy.server_learning_rate": _SERVER_RATE,
    "strategy.server_momentum": _bounded(None, _MOST_MOMENTUM),
    **dict.fromkeys(("strategy.beta_1", "strategy.beta_2"), _BETAS),
    "strategy.min_sites": Rule(
        "bounded",
        lambda limits: (
            f"a round needs at least {limits.policy.min_sites} (policy.min_sites)"
        ),
        lambda value, settings, limits: (
            settings.strategy.on_missing == "fail" or value >= limits.policy.min_sites
        ),
    ),
    "evaluation.where": Rule(
        "listed",
        lambda limits: (
            "server or sites"
            if limits.policy.counts
            else "server: policy.counts is false"
        ),
        lambda value, settings, limits: limits.policy.counts or value == "server",
    ),
    "evaluation.validation_fraction": Rule(
        "listed",
        lambda limits: (
            "0, 0.1 … 0.5: parts that differ by one text would tell of that text"
        ),
        lambda value, settings, limits: value in _FRACTIONS,
    ),
    **dict.fromkeys(
        ("evaluation.mode", "evaluation.target_accuracy", "evaluation.patience"),
        _SERVERS,
    ),
    "evaluation.batch_size": _bounded(None, "max_batch_size"),
    **dict.fromkeys(
        (
            *(
                "personalisation.name",
                "personalisation.epochs",
                "personalisation.learning_rate",
            ),
            "personalisation.gate_hidden",
        ),
        _harmless(
            "for `wardround-site personalise`, which this site starts itself and which sends nothing"
        ),
    ),
    **dict.fromkeys(
        (
            "personalisation.everyone",
            "personalisation.keep_models",
            "personalisation.opt_out_clients",
        ),
        _SIMULATED,
    ),
    "engine.name": _must_be("deployment", "this is no simulation"),
    **dict.fromkeys(
        ("engine.num_cpus", "engine.num_gpus", "engine.address", "engine.workers"),
        _SIMULATED,
    ),
    "num_clients": Rule(
        "bounded",
        lambda limits: (
            f"at least {limits.policy.min_sites} (policy.min_sites), and as many as stand in it"
        ),
        lambda value, settings, limits: value >= limits.policy.min_sites,
    ),
    "num_rounds": _bounded(None, "max_answers"),
    "recipe": Rule("listed", _recipes, _follows_recipe),
    "seed": _harmless(
        "decides order and dropout, never which texts: the held-out part is this site's own"
    ),
    "arm": _harmless("a name for folders and figures"),
    "run_dir": _SERVERS,
    "device": _own("device"),
    "precision": _CHOICE,
    "attention": _harmless("one of a few ways to compute the same"),
    "threads": Rule(
        "bounded",
        lambda limits: f"at most the {os.cpu_count()} of this machine",
        lambda value, settings, limits: (
            value == "auto" or value <= (os.cpu_count() or 1)
        ),
    ),
}
"""By setting: fixed by the site, bounded, listed, or harmless with a reason. A test walks all settings."""
