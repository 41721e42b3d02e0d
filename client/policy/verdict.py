"""The verdict of a policy on a plan, setting by setting and as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isclose

from wardround.client.policy.limits import Limits, Policy, Refusal
from wardround.client.policy.roster import roster_refusals
from wardround.client.policy.rule import Rule
from wardround.client.policy.rules import RULES
from wardround.common.settings.tree import Settings
from wardround.common.wire.signing import Plan

_DAY_SECONDS = 86_400.0


@dataclass(frozen=True)
class SettingVerdict:
    """One setting of a plan, with the verdict of the policy."""

    key: str
    value: object
    rule: Rule
    words: str
    """The limit in plain words."""
    is_allowed: bool


def judge_settings(settings: Settings, limits: Limits) -> list[SettingVerdict]:
    """Judge every setting of a plan, in the order of docs/settings.md."""
    found = []
    for key, value in settings.flat().items():
        rule = RULES[key]
        is_allowed = rule.allows(value, settings, limits)
        words = rule.describe(limits)
        found.append(SettingVerdict(key, value, rule, words, is_allowed))
    return found


def refusals_of(plan: Plan, settings: Settings, limits: Limits) -> Iterator[Refusal]:
    """Yield each reason why the policy refuses a plan."""
    policy = limits.policy
    num_sites = len(plan.sites)
    if plan.sites.get(limits.site) != limits.key:
        words = f"the plan does not name {limits.site} with its own key"
        yield "not_in_plan", "", words
    if num_sites != settings.num_clients or num_sites < policy.min_sites:
        words = f"{num_sites} sites take part; policy.min_sites is {policy.min_sites}"
        yield "policy", "num_clients", words
    yield from roster_refusals(plan, limits)
    days = (plan.not_after - plan.not_before) / _DAY_SECONDS
    if days > policy.max_days and not isclose(days, policy.max_days):
        words = f"it may last {days:.0f} days; policy.max_days is {policy.max_days:g}"
        yield "policy", "", words
    for key, words in _unusable_keys(policy):
        yield "policy", key, words
    for verdict in judge_settings(settings, limits):
        if not verdict.is_allowed:
            words = f"{verdict.key} is {verdict.value!r}: {verdict.words}"
            yield "policy", verdict.key, words


def _unusable_keys(policy: Policy) -> Iterator[tuple[str, str]]:
    """Yield each rule of the policy that no plan can meet: the setting or "", and words."""
    if policy.require_privacy:
        words = (
            "this version has no differential privacy; policy.require_privacy is true"
        )
        yield "", words
    if policy.require_aggregation:
        words = (
            "this version has no secure aggregation; policy.require_aggregation is true"
        )
        yield "", words
    if policy.approve == "by_hand":
        return
    if policy.approvals > 1:
        words = f"policy.approvals is {policy.approvals}, which needs policy.approve: by_hand"
        yield "", words
    if policy.models == "any":
        words = "policy.approve: within_policy needs a list in policy.models"
        yield "model.name", words
