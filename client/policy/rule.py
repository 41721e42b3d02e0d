"""A rule for one setting, and the kinds of rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from wardround.client.policy.limits import Limits
from wardround.common.settings.tree import Settings

Kind = Literal["fixed", "bounded", "listed", "harmless"]
Bound = str | float | None
"""A field of `Policy`, a number, or None for no bound."""


def _allow(value: Any, settings: Settings, limits: Limits) -> bool:
    return True


@dataclass(frozen=True)
class Rule:
    """The limit of a policy for one setting."""

    kind: Kind
    describe: Callable[[Limits], str]
    """Returns the limit, or the reason why there is none, in plain words."""
    allows: Callable[[Any, Settings, Limits], bool] = _allow
    """Returns True if a plan with these settings may be approved. The first argument is
    the setting's own value."""


def own(subject: str) -> Rule:
    """The site's own value is used, and the plan's is ignored."""
    return Rule("fixed", lambda limits: f"not used: this site's own {subject} counts")


def must_be(wanted: object, reason: str) -> Rule:
    """The setting must have this value."""
    shown = "unset" if wanted is None else repr(wanted)
    return Rule(
        "fixed",
        lambda limits: f"must be {shown}: {reason}",
        lambda value, settings, limits: value == wanted,
    )


def harmless(reason: str) -> Rule:
    """Any value is allowed."""
    return Rule("harmless", lambda limits: reason)


def bounded(low: Bound, high: Bound) -> Rule:
    """The setting lies between two bounds, or it is None."""

    def number(limits: Limits, bound: Bound) -> Any:
        return getattr(limits.policy, bound) if isinstance(bound, str) else bound

    def describe(limits: Limits) -> str:
        parts = []
        for words, bound in (("at least", low), ("at most", high)):
            if bound is not None:
                key = f" (policy.{bound})" if isinstance(bound, str) else ""
                parts.append(f"{words} {number(limits, bound):g}{key}")
        return ", ".join(parts)

    def allows(value: Any, settings: Settings, limits: Limits) -> bool:
        if value is None:
            return True
        least = number(limits, low)
        most = number(limits, high)
        return (least is None or value >= least) and (most is None or value <= most)

    return Rule("bounded", describe, allows)
