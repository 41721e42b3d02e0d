"""A plan and a policy in plain words, for the people who decide."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import yaml
from pydantic import TypeAdapter, ValidationError

from client.plans import Known
from client.policy import Limits, Policy, lines_of, refusals_of, without_retired
from common.errors import explain
from common.wire.messages import printable

_POLICY: TypeAdapter[Policy] = TypeAdapter(Policy)
STATES = {
    "pending": "waits for your decision",
    "approved": "approved",
    "rejected": "rejected",
    "revoked": "approval revoked",
}


def read_policy(path: Path) -> Policy:
    """A policy written as YAML, `key: value` a line. Raises ValueError where it is none."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        return _POLICY.validate_python(without_retired(content))
    except ValidationError as error:
        raise ValueError(f"{path}: {explain(error, list(_POLICY.json_schema()['properties']))}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"--policy is '{path}', which cannot be read as YAML ({reason}).") from None


def in_words(limits: Limits) -> Iterator[str]:
    """What a policy says, a sentence each."""
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


def table(known: Sequence[Known]) -> str:
    """All plans, newest last, a line each, in which nothing moves a terminal's cursor."""
    lines = [
        f"{plan.short}  {_day(plan.plan.not_before)}  {STATES[plan.decision.state]:<24}"
        f"{plan.settings.model.short_name} on {plan.settings.data.short_name}, "
        f"{plan.settings.num_rounds} rounds, {len(plan.plan.sites)} sites"
        for plan in known
    ]
    return "\n".join(printable(line, None) for line in lines) or "This site was told of no plan."


def describe(known: Known, before: Known | None, limits: Limits) -> Iterator[str]:
    """A plan, line by line; the server's words in it can move no terminal's cursor.

    Args:
        before: the plan to compare it with; None for none.
    """
    return (printable(line, None) for line in _lines(known, before, limits))


def _lines(known: Known, before: Known | None, limits: Limits) -> Iterator[str]:
    plan, settings, train = known.plan, known.settings, known.settings.train
    yield f"Plan {known.short}, signed by the coordinator: {STATES[known.decision.state]}"
    yield f"  SHA-256  {known.digest}"
    yield f"  good     from {_day(plan.not_before)} to {_day(plan.not_after)}"
    yield f"  sites    {', '.join(sorted(plan.sites))}; this one is {limits.site}"
    yield f"  code     {', '.join(_code(plan.code))}"
    yield ""
    model = settings.model
    yield f"Trained is {model.name}{f'@{model.revision}' if model.revision else ''}"
    yield f"  to tell apart: {', '.join(settings.data.label_names or ())}"
    yield f"  in up to {settings.num_rounds} rounds, each {train.local_epochs} times over the site's texts"
    yield f"  by {train.optimizer}, step size {train.learning_rate:g}, batches of {train.batch_size}"
    yield ""
    yield "What leaves this site"
    yield "  once:        how many texts it trains on, and how many it holds out"
    yield f"  each round:  the trained weights ({settings.transforms.name}), how many texts and steps,"
    yield "               the mean loss, the seconds it took"
    if settings.evaluation.where == "sites":
        yield "               how many held-out texts of each label were taken for which; their summed loss"
    yield "  or, instead: a code that says why not"
    yield ""
    yield "What the policy says"
    refused = list(refusals_of(plan, settings, limits))
    for _, _, words in refused:
        yield f"  NO  {words}"
    told = lines_of(settings, limits)
    for line in told:
        if line.is_allowed and line.rule.kind in ("bounded", "listed"):
            yield f"  ok  {line.key} = {_shown(line.value)}: {line.words}"
    for kind, words in (("fixed", "not the server's to say"), ("harmless", "harmless")):
        yield f"  {words}:"
        for line in told:
            if line.is_allowed and line.rule.kind == kind:
                yield f"      {line.key} = {_shown(line.value)}: {line.words}"
    yield ""
    if before is not None:
        yield f"Against plan {before.short}, {STATES[before.decision.state]}"
        yield from (f"  {text}" for text in _differences(known, before) or ["  nothing differs but its days"])
        yield ""
    if known.decision.why:
        yield f"Rejected because: {known.decision.why}"
    if refused:
        yield "The policy refuses it: it cannot be approved as it is."
    elif known.decision.state == "approved":
        yield f"To take the approval back: wardround-site revoke {known.short}"
    else:
        yield f"Next: wardround-site approve {known.short}, or reject {known.short} --why TEXT"


def _differences(known: Known, before: Known) -> list[str]:
    ours, theirs = known.settings.flat(), before.settings.flat()
    found = [
        f"{key}: {_shown(theirs[key])} -> {_shown(ours[key])}" for key in ours if ours[key] != theirs[key]
    ]
    for word, more, fewer in (("joined", known, before), ("left", before, known)):
        names = sorted(more.plan.sites.keys() - fewer.plan.sites.keys())
        found += [f"{word}: {', '.join(names)}"] if names else []
    same = known.plan.sites.keys() & before.plan.sites.keys()
    found += [
        f"another key: {name}" for name in sorted(same) if known.plan.sites[name] != before.plan.sites[name]
    ]
    if known.plan.code != before.plan.code:
        found.append(f"code: {', '.join(_code(before.plan.code))} -> {', '.join(_code(known.plan.code))}")
    return found


def _code(code: Mapping[str, str]) -> Iterator[str]:
    for name, wanted in code.items():
        try:
            here = version(name)
        except PackageNotFoundError:
            here = "not installed"
        yield f"{name} {wanted}" if here == wanted else f"{name} {wanted} (HERE {here})"


def _shown(value: object) -> str:
    text = "null" if value is None else ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return (text or '""') if len(text) <= 60 else f"{text[:57]}…"


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")


def compared_with(known: Known, all_plans: Sequence[Known]) -> Known | None:
    """The plan that another is held against: its parent, else the one approved last before it."""
    others = [plan for plan in all_plans if plan.digest != known.digest]
    parents = [plan for plan in others if plan.digest == known.plan.parent]
    older = [
        plan
        for plan in others
        if plan.decision.state == "approved" and plan.plan.not_before <= known.plan.not_before
    ]
    return next(iter(parents), older[-1] if older else None)
