"""The rules for the roster of a plan: the sites that take part, with their keys."""

from __future__ import annotations

from collections.abc import Iterator

from wardround.client.peers import UNKNOWN_PEER
from wardround.client.policy.limits import Limits, Refusal
from wardround.common.wire.roster import names_with_one_key, roster_fingerprint
from wardround.common.wire.signing import Plan
from wardround.common.words import NAME, shown


def roster_refusals(plan: Plan, limits: Limits) -> Iterator[Refusal]:
    """Yield each reason why a plan's roster is refused."""
    roster = plan.sites
    policy = limits.policy
    if len(roster) > policy.max_sites:
        words = f"{len(roster)} sites take part; policy.max_sites is {policy.max_sites}"
        yield "policy", "num_clients", words
    bad_names = [name for name in roster if not NAME.fullmatch(name)]
    if bad_names:
        yield "policy", "", f"{bad_names[0]!r} cannot be the name of a site"
    twins = names_with_one_key(roster)
    if twins:
        words = f"{' and '.join(twins)} have one key, and would be counted twice"
        yield "policy", "", words
    for name in _with_another_key(plan, limits):
        words = (
            f"{name} has another key ({roster[name]}) than the one pinned here "
            f"({limits.peers[name]}). Ask that hospital by telephone which is right"
        )
        yield UNKNOWN_PEER, "", words
    if not policy.require_peers:
        return
    for name in _not_pinned(plan, limits):
        words = (
            f"{name} is not pinned here, and policy.require_peers is true. "
            "Next: wardround-site peers add FILE"
        )
        yield UNKNOWN_PEER, "", words


def roster_in_words(plan: Plan, limits: Limits, max_names: int) -> Iterator[str]:
    """Yield the lines about a roster that people read before they decide.

    Args:
        max_names: names in one line.
    """
    yield f"  roster    {roster_fingerprint(plan.sites)}"
    yield "            COMPARE it with the other hospitals by telephone: all must see the same"
    another_key = _with_another_key(plan, limits)
    missing = _not_pinned(plan, limits)
    pinned = sorted(set(_others(plan, limits)) - set(another_key) - set(missing))
    for words, names in (
        ("pinned here with this key", pinned),
        ("not pinned here", missing),
        ("ANOTHER KEY than the one pinned here", another_key),
    ):
        if not names:
            continue
        more = f" and {len(names) - max_names} more" if len(names) > max_names else ""
        yield f"            {words}: {', '.join(map(shown, names[:max_names]))}{more}"


def _others(plan: Plan, limits: Limits) -> list[str]:
    return sorted(name for name in plan.sites if name != limits.site)


def _not_pinned(plan: Plan, limits: Limits) -> list[str]:
    return [name for name in _others(plan, limits) if name not in limits.peers]


def _with_another_key(plan: Plan, limits: Limits) -> list[str]:
    others = [name for name in _others(plan, limits) if name in limits.peers]
    return [name for name in others if limits.peers[name] != plan.sites[name]]
