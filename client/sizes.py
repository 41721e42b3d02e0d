"""What a policy says about a plan once it is known how many texts this site would train on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from wardround.client.policy.limits import Policy, Refusal
from wardround.common.model.influence import RoundSteps, peaks
from wardround.common.settings.tree import Settings

MOST_PULL = 0.4
"""Largest sum, over the steps of a round, of learning rate x (proximal_mu + weight_decay). Each step takes
this share of all earlier steps away, so that with more the last texts of a round speak louder."""


@dataclass(frozen=True)
class Sizes:
    """How much a site has to train on."""

    num_texts: int
    """Training texts."""
    num_held_out: int
    num_tokens: int | None = None
    """Tokens of the training texts, as they are cut; None if they were not tokenised."""
    hidden_size: int | None = None
    """Width of the model's layers; None if the model was not opened."""


def size_refusals(
    settings: Settings, sizes: Sizes, policy: Policy
) -> Iterator[Refusal]:
    """Why a site of this size does not take part in a plan."""
    if sizes.num_texts < policy.min_examples:
        words = f"{sizes.num_texts} texts to train on; policy.min_examples is {policy.min_examples}"
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
            f"{key} is {getattr(train, key.removeprefix('train.'))}: over the {steps.total} steps of a round "
            f"it takes {pull:.2g} of the first texts' part away; {MOST_PULL} is the most"
        )
        yield "policy", key, words
    influence = largest_influence(settings, sizes.num_texts)
    if influence > policy.max_influence:
        words = (
            f"one text may have {influence:.2g} times its even share of an update; policy.max_influence is "
            f"{policy.max_influence:g}"
        )
        yield "policy", "train.batch_size", words
    yield from _token_refusals(sizes, policy)


def _token_refusals(sizes: Sizes, policy: Policy) -> Iterator[Refusal]:
    if sizes.num_tokens is None or sizes.hidden_size is None:
        return
    least = policy.min_token_ratio * sizes.hidden_size
    if sizes.num_tokens < least:
        words = (
            f"{sizes.num_tokens} tokens to train on; a layer of {sizes.hidden_size} numbers tells them apart "
            f"below {least:.0f} (policy.min_token_ratio is {policy.min_token_ratio:g})"
        )
        yield "too_few_tokens", "train.max_length", words


def largest_influence(settings: Settings, num_texts: int) -> float:
    """The largest share one text can have in any round of a plan, as a multiple of its even share."""
    train = settings.train
    rounds = (
        range(1, 2)
        if train.schedule == "constant"
        else range(1, max(1, settings.num_rounds) + 1)
    )
    return max(
        RoundSteps(train, num_texts, number).largest_influence() for number in rounds
    )
