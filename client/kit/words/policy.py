"""A site's policy in plain words."""

from __future__ import annotations

from collections.abc import Iterator

from wardround.client.policy.limits import Limits, Policy


def policy_in_words(limits: Limits) -> Iterator[str]:
    """Describe a policy, one sentence for each limit."""
    policy = limits.policy
    if policy.approve == "by_hand":
        yield "A person approves each plan"
    else:
        yield "Plans inside the limits are approved"
    yield "all texts are used except the test part, which is the same in every run"
    yield (
        f"a plan has at most {policy.max_answers} rounds, "
        f"{policy.max_epochs} passes and {policy.max_steps} steps a round, "
        f"{policy.max_days:g} days, and at least {policy.min_sites} sites"
    )
    yield f"all plans together get at most {policy.max_total_answers} answers"
    pinned = ", all of them pinned here" if policy.require_peers else ""
    yield f"at most {policy.max_sites} sites{pinned}"
    yield (
        f"batches of {policy.min_batch_size} to {policy.max_batch_size} texts of at "
        f"least {policy.min_max_length} tokens; step sizes up to "
        f"{policy.max_learning_rate:g} (sgd) and "
        f"{policy.max_learning_rate_adamw:g} (adamw)"
    )
    yield (
        f"no text has more than {policy.max_influence:g} times its even share of an "
        f"update, and at least {policy.min_speaking_texts:g} texts contribute to it"
    )
    if policy.frozen == "embeddings":
        yield "word embeddings are not trained"
    else:
        yield "word embeddings may be trained: their updates show which words occur"
    yield f"model: {_models(limits)}; safetensors only"
    yield (
        f"updates leave as {', '.join(policy.forms)}, with at least "
        f"{policy.min_examples} training texts"
    )
    yield _counts(policy)
    if policy.same_start:
        yield "the first model must be the one that this site computes from its own files"
    else:
        yield "the first model is accepted as the server sends it"
    if policy.max_step_ratio is None:
        yield "a model may change by any amount from round to round"
    else:
        yield (
            "from round to round a tensor of the model may change "
            f"{policy.max_step_ratio:g} times as much as this site changes it"
        )
    if policy.data_may_change:
        yield "texts may change under a plan"
    else:
        yield "changed texts need a new approval"
    yield (
        f"texts that differ by fewer than {policy.min_changed_texts} from answered ones "
        "get no answer"
    )
    if policy.require_privacy or policy.require_aggregation:
        yield (
            "every plan is refused: this version has no differential privacy and no "
            "secure aggregation"
        )


def _counts(policy: Policy) -> str:
    if not policy.counts:
        return "test counts stay here"
    if policy.min_count <= 1:
        return "test counts are sent"
    if policy.min_count == 2:
        return "test counts are sent, unless one of them is 1"
    return (
        f"test counts are sent, unless one of them is from 1 to {policy.min_count - 1}"
    )


def _models(limits: Limits) -> str:
    listed = limits.policy.models
    if listed == "any":
        return "any that is approved"
    if listed is None:
        return "one that a recipe pins"
    return ", ".join(listed)
