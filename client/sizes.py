"""The rules of a policy that depend on the number of this site's texts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from wardround.client.policy.limits import Policy, Refusal
from wardround.common.model.influence import RoundSteps, peaks
from wardround.common.settings.tree import Settings

MOST_PULL = 0.4
"""Largest sum, over the steps of a round, of learning rate x (proximal_mu + weight_decay). Each
step removes this share of all earlier steps, so with a larger sum the last texts of a round would
dominate."""


@dataclass(frozen=True)
class Sizes:
    """The amounts of a site's data."""

    num_texts: int
    """Number of training texts."""
    num_held_out: int
    """Number of held-out texts."""
    num_tokens: int | None = None
    """Tokens of the training texts after cutting; None if they are not tokenised."""
    hidden_size: int | None = None
    """Width of the model's layers; None if the model was not opened."""


def size_refusals(
    settings: Settings, sizes: Sizes, policy: Policy
) -> Iterator[Refusal]:
    """Yield the reasons why a site of this size does not take part in a plan."""
    if sizes.num_texts < policy.min_examples:
        words = f"{sizes.num_texts} training texts; policy.min_examples is {policy.min_examples}"
        yield "too_few_texts", "", words
        return
    train = settings.train
    steps = RoundSteps(train, sizes.num_texts, 1)
    if steps.total > policy.max_steps:
        words = f"{steps.total} steps a round; policy.max_steps is {policy.max_steps}"
        yield "policy", "train.local_epochs", words
    pull = steps.total * max(peaks(train)) * (train.proximal_mu + train.weight_decay)
    if pull > MOST_PULL:
        key = "train.proximal_mu" if train.proximal_mu else "train.weight_decay"
        words = (
            f"{key} is {getattr(train, key.removeprefix('train.'))}: "
            f"over the {steps.total} steps of a round it removes {pull:.2g} of the first "
            f"texts' part; at most {MOST_PULL} is allowed"
        )
        yield "policy", key, words
    influence = largest_influence(settings, sizes.num_texts)
    if influence > policy.max_influence:
        words = (
            f"one text may have {influence:.2g} times its even share of an update; "
            f"policy.max_influence is {policy.max_influence:g}"
        )
        yield "policy", "train.batch_size", words
    yield from _token_refusals(sizes, policy)


def _token_refusals(sizes: Sizes, policy: Policy) -> Iterator[Refusal]:
    if sizes.num_tokens is None or sizes.hidden_size is None:
        return
    least = policy.min_token_ratio * sizes.hidden_size
    if sizes.num_tokens < least:
        words = (
            f"{sizes.num_tokens} training tokens; with fewer than {least:.0f}, a layer of "
            f"{sizes.hidden_size} numbers can reveal single texts "
            f"(policy.min_token_ratio is {policy.min_token_ratio:g})"
        )
        yield "too_few_tokens", "train.max_length", words


def largest_influence(settings: Settings, num_texts: int) -> float:
    """Return the largest share of a text in a round, as a multiple of its even share."""
    train = settings.train
    # With a constant rate all rounds are alike.
    num_rounds = 1 if train.schedule == "constant" else max(1, settings.num_rounds)
    return max(
        RoundSteps(train, num_texts, number).largest_influence()
        for number in range(1, num_rounds + 1)
    )
