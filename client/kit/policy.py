"""A site's policy: read from a file, and in plain words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import yaml
from pydantic import TypeAdapter, ValidationError

from wardround.client.policy import Limits, Policy, without_retired
from wardround.common.errors import explain

_POLICY: TypeAdapter[Policy] = TypeAdapter(Policy)


def read_policy(path: Path) -> Policy:
    """A policy written as YAML, `key: value` a line. Raises ValueError where it is none."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        return _POLICY.validate_python(without_retired(content))
    except ValidationError as error:
        raise ValueError(
            f"{path}: {explain(error, list(_POLICY.json_schema()['properties']))}"
        ) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"--policy is '{path}', which cannot be read as YAML ({reason})."
        ) from None


def in_words(limits: Limits) -> Iterator[str]:
    """A policy in sentences, one for each limit."""
    policy = limits.policy
    if policy.approve == "by_hand":
        yield "A person approves each plan"
    else:
        yield "Plans inside the limits are approved"
    yield "all texts are used but the part held out, which is the same in every run"
    yield (
        f"a plan has at most {policy.max_answers} rounds, {policy.max_epochs} passes and {policy.max_steps} "
        f"steps a round, {policy.max_days:g} days, and at least {policy.min_sites} sites"
    )
    yield f"all plans together get at most {policy.max_total_answers} answers"
    known = ", all of them pinned here" if policy.require_peers else ""
    yield f"at most {policy.max_sites} sites{known}"
    yield (
        f"batches of {policy.min_batch_size} to {policy.max_batch_size} texts of at least "
        f"{policy.min_max_length} tokens; step sizes up to {policy.max_learning_rate:g} (sgd) and "
        f"{policy.max_learning_rate_adamw:g} (adamw)"
    )
    yield (
        f"no text has more than {policy.max_influence:g} times its even share of an update, and at least "
        f"{policy.min_speaking_texts:g} texts speak in it"
    )
    if policy.frozen == "embeddings":
        yield "word embeddings are not trained"
    else:
        yield "word embeddings may be trained: their updates tell which words occur"
    yield f"model: {_models_in_words(limits)}; safetensors only"
    yield f"updates leave as {', '.join(policy.forms)}, with at least {policy.min_examples} training texts"
    if policy.counts:
        yield f"test counts are sent, unless one of them is from 1 to {policy.min_count - 1}"
    else:
        yield "test counts stay here"
    if policy.same_start:
        yield "the first model must be the one that this site's own files give"
    else:
        yield "the first model is taken as it comes"
    if policy.max_step_ratio is None:
        yield "a model may change by any amount from round to round"
    else:
        yield (
            f"from round to round a tensor of the model may move {policy.max_step_ratio:g} times as far as "
            "this site moves it"
        )
    if policy.data_may_change:
        yield "texts may change under a plan"
    else:
        yield "changed texts need a new approval"
    yield f"texts that differ by fewer than {policy.min_changed_texts} from answered ones get no answer"
    if policy.require_privacy or policy.require_aggregation:
        yield "every plan is refused, for this version has no differential privacy and no secure aggregation"


def _models_in_words(limits: Limits) -> str:
    listed = limits.policy.models
    if listed == "any":
        return "any that is approved"
    if listed is None:
        return "one that a recipe pins"
    return ", ".join(listed)
