"""Rules for the steps of the sites and of the server."""

from __future__ import annotations

from math import inf, sqrt

from wardround.client.policy.limits import Limits
from wardround.client.policy.rule import Rule
from wardround.common.settings.tree import Settings

_MIN_RATE = 1e-7
_MIN_GRAD_NORM = 0.01
_MAX_ADAPTER_SCALE = 8
_MAX_SERVER_RATE = 1.0
_MAX_ADAPTIVE_RATE = 0.01
_MAX_ADAPTIVE_STEP = 2.4


def _max_rate(settings: Settings, limits: Limits) -> float:
    if settings.train.optimizer == "adamw":
        return limits.policy.max_learning_rate_adamw
    return limits.policy.max_learning_rate


LEARNING_RATE = Rule(
    "bounded",
    lambda limits: (
        f"at least {_MIN_RATE:g}; at most {limits.policy.max_learning_rate:g} with sgd "
        f"(policy.max_learning_rate), {limits.policy.max_learning_rate_adamw:g} with "
        "adamw (policy.max_learning_rate_adamw)"
    ),
    lambda value, settings, limits: (
        value is None or _MIN_RATE <= value <= _max_rate(settings, limits)
    ),
)
CLIPPING = Rule(
    "bounded",
    lambda limits: (
        f"null, or at least {_MIN_GRAD_NORM:g}: below that, adamw's steps grow with the "
        "gradient, and the first ones of a round count more"
    ),
    lambda value, settings, limits: value is None or value >= _MIN_GRAD_NORM,
)
SCHEDULE = Rule(
    "bounded",
    lambda limits: (
        "a linear schedule must span all rounds: after its end no step moves a weight"
    ),
    lambda value, settings, limits: (
        settings.train.schedule == "constant" or settings.num_rounds <= (value or 0)
    ),
)
PROXIMAL = Rule(
    "bounded",
    lambda limits: (
        "0 with adamw; with sgd, all steps of a round together pull by at most 0.4"
    ),
    lambda value, settings, limits: value == 0 or settings.train.optimizer == "sgd",
)
ADAPTER_SCALE = Rule(
    "bounded",
    lambda limits: (
        f"at most {_MAX_ADAPTER_SCALE} times adapters.rank: adapters add alpha / rank "
        "of their product"
    ),
    lambda value, settings, limits: (
        value <= _MAX_ADAPTER_SCALE * settings.adapters.rank
    ),
)


def _max_server_rate(settings: Settings) -> float:
    is_sgd = settings.strategy.optimizer == "sgd"
    return _MAX_SERVER_RATE if is_sgd else _MAX_ADAPTIVE_RATE


SERVER_RATE = Rule(
    "bounded",
    lambda limits: (
        f"at most {_MAX_SERVER_RATE:g} with sgd, {_MAX_ADAPTIVE_RATE:g} with the others: "
        "it sets how far the model may move in a round"
    ),
    lambda value, settings, limits: value <= _max_server_rate(settings),
)


def adaptive_step(beta_1: float, beta_2: float) -> float:
    """Largest step of one weight by an adaptive server optimizer, in learning rates.

    With m and v the decayed means of updates and of their squares (Reddi et al. 2021,
    arXiv:2003.00295), Cauchy and Schwarz give
    m / sqrt(v) <= (1 - beta_1) / sqrt((1 - beta_2) (1 - beta_1^2 / beta_2)).
    """
    if not beta_1**2 < beta_2 < 1:
        return inf
    return (1 - beta_1) / sqrt((1 - beta_2) * (1 - beta_1**2 / beta_2))


def _is_step_short(value: object, settings: Settings, limits: Limits) -> bool:
    strategy = settings.strategy
    if strategy.optimizer == "sgd":
        return True
    return adaptive_step(strategy.beta_1, strategy.beta_2) <= _MAX_ADAPTIVE_STEP


BETAS = Rule(
    "bounded",
    lambda limits: (
        f"a step of the server's optimizer is at most {_MAX_ADAPTIVE_STEP:g} times its "
        "learning rate"
    ),
    _is_step_short,
)
