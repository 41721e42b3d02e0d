"""A plan and a policy in plain words, for the people who decide."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import yaml
from pydantic import TypeAdapter, ValidationError

from client.peers import roster_in_words
from client.plans import Known
from client.policy import Limits, Policy, lines_of, refusals_of
from common.errors import explain
from common.wire.messages import printable, printable_day

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
        return _POLICY.validate_python(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    except ValidationError as error:
        raise ValueError(f"{path}: {explain(error, list(_POLICY.json_schema()['properties']))}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"--policy is '{path}', which cannot be read as YAML ({reason}).") from None


def in_words(limits: Limits) -> Iterator[str]:
    """What a policy says, a sentence each."""
    policy = limits.policy
    yield (
        "A person approves each plan"
        if policy.approve == "by_hand"
        else "Plans inside the limits are approved"
    )
    yield "all texts are used but the part held out, which is the same in every run"
    yield (
        f"a plan has at most {policy.max_answers} rounds, {policy.max_epochs} passes and {policy.max_steps} "
        f"steps a round, {policy.max_days:g} days, and at least {policy.min_sites} sites"
    )
    known = ", all of them pinned here" if policy.require_peers else ""
    yield f"at most {policy.max_sites} sites{known}"
    yield (
        f"batches of {policy.min_batch_size} to {policy.max_batch_size} texts of at least "
        f"{policy.min_max_length} tokens; step sizes up to {policy.max_learning_rate:g}"
    )
    models = (
        "this site's own" if limits.has_own_model else ", ".join(policy.models or ("any that is approved",))
    )
    yield f"model: {models}; safetensors only"
    yield f"updates leave as {', '.join(policy.forms)}, with at least {policy.min_examples} training texts"
    yield (
        f"counts of held-out texts leave, unless one is below {policy.min_count}"
        if policy.counts
        else "counts of held-out texts stay here"
    )
    first = "is held against this site's own files" if policy.same_start else "is taken as it comes"
    far = (
        "any distance"
        if policy.max_global_step is None
        else f"at most {policy.max_global_step:g} of its norm"
    )
    yield f"the first model {first}; from round to round it may move {far}"
    yield "texts may change under a plan" if policy.data_may_change else "changed texts need a new approval"
    if policy.require_privacy or policy.require_aggregation:
        yield "every plan is refused, for this version has no differential privacy and no secure aggregation"


def table(known: Sequence[Known]) -> str:
    """All plans, newest last, a line each, in which nothing moves a terminal's cursor."""
    lines = [
        f"{plan.short}  {printable_day(plan.plan.not_before)}  {STATES[plan.decision.state]:<24}"
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
    yield f"  good     from {printable_day(plan.not_before)} to {printable_day(plan.not_after)}"
    yield f"  sites    {', '.join(sorted(plan.sites))}; this one is {limits.site}"
    yield from roster_in_words(plan, limits)
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
