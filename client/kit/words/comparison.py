"""A plan compared with another one, and with the versions installed here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version

from wardround.client.kit.words.values import names_in_words, value_in_words
from wardround.client.plans import Known
from wardround.common.words import shown


def plan_to_compare(known: Known, all_plans: Sequence[Known]) -> Known | None:
    """Return the parent of a plan, else the plan approved last before it."""
    others = [plan for plan in all_plans if plan.digest != known.digest]
    for plan in others:
        if plan.digest == known.plan.parent:
            return plan
    older = [
        plan
        for plan in others
        if plan.decision.state == "approved"
        and plan.plan.not_before <= known.plan.not_before
    ]
    return older[-1] if older else None


def differences(known: Known, before: Known) -> list[str]:
    """Describe how a plan differs from an earlier one: settings, sites, keys, code."""
    values = known.settings.flat()
    earlier = before.settings.flat()
    found = [
        f"{key}: {value_in_words(earlier[key])} -> {value_in_words(value)}"
        for key, value in values.items()
        if value != earlier[key]
    ]
    sites = known.plan.sites
    earlier_sites = before.plan.sites
    joined = sorted(sites.keys() - earlier_sites.keys())
    if joined:
        found.append(f"joined: {names_in_words(joined)}")
    left = sorted(earlier_sites.keys() - sites.keys())
    if left:
        found.append(f"left: {names_in_words(left)}")
    for name in sorted(sites.keys() & earlier_sites.keys()):
        if sites[name] != earlier_sites[name]:
            found.append(f"another key: {shown(name)}")
    if known.plan.code != before.plan.code:
        found.append(f"code: {_code(before)} -> {_code(known)}")
    return found


def _code(known: Known) -> str:
    return ", ".join(words for words, _ in versions_in_words(known.plan.code))


def versions_in_words(code: Mapping[str, str]) -> Iterator[tuple[str, bool]]:
    """Describe each package of a plan. The flag is true if its version is installed."""
    for name, wanted in code.items():
        try:
            here = version(name)
        except (PackageNotFoundError, ValueError):  # ValueError: no package's name
            here = "not installed"
        words = f"{shown(name)} {shown(wanted)}"
        if here == wanted:
            yield words, True
        else:
            yield f"{words} (HERE {here})", False
