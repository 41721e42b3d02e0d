"""A plan and a policy in plain words, for the people who decide."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import yaml
from pydantic import TypeAdapter, ValidationError

from client.peers import roster_in_words
from client.plans import Known
from client.policy import Limits, Line, Policy, lines_of, refusals_of, without_retired
from common.errors import explain
from common.words import printable, printable_day, shown

_POLICY: TypeAdapter[Policy] = TypeAdapter(Policy)
_LONGEST_RULE = 600
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


def table(known: Sequence[Known]) -> str:
    """All plans, newest last, a line each. The server's words in it can imitate no line of ours."""
    lines = [
        f"{plan.short}  {printable_day(plan.plan.not_before)}  {STATES[plan.decision.state]:<24}"
        f"{shown(plan.settings.model.short_name)} on {shown(plan.settings.data.short_name)}, "
        f"{plan.settings.num_rounds} rounds, {len(plan.plan.sites)} sites"
        for plan in known
    ]
    return "\n".join(lines) or "This site was told of no plan."


def describe(known: Known, before: Known | None, limits: Limits) -> Iterator[str]:
    """A plan, line by line. The server's words in it can imitate no line of ours.

    Args:
        before: the plan to compare it with; None for no comparison.
    """
    plan, settings, train = known.plan, known.settings, known.settings.train
    yield f"Plan {known.short}, signed by the coordinator: {STATES[known.decision.state]}"
    yield f"  SHA-256  {known.digest}"
    yield f"  good     from {printable_day(plan.not_before)} to {printable_day(plan.not_after)}"
    yield f"  sites    {_listed(sorted(plan.sites))}; this one is {limits.site}"
    yield from roster_in_words(plan, limits)
    yield f"  code     {', '.join(_code(plan.code))}"
    yield ""
    model = settings.model
    yield f"Trained is {shown(model.name)}{f'@{shown(model.revision)}' if model.revision else ''}"
    yield f"  to tell apart: {_listed(settings.data.label_names or ())}"
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
        yield f"  NO  {printable(words, _LONGEST_RULE)}"
    told = lines_of(settings, limits)
    for line in told:
        if line.is_allowed and line.rule.kind in ("bounded", "listed"):
            yield f"  ok  {_rule(line)}"
    for kind, words in (("fixed", "not the server's to say"), ("harmless", "harmless")):
        yield f"  {words}:"
        for line in told:
            if line.is_allowed and line.rule.kind == kind:
                yield f"      {_rule(line)}"
    yield ""
    if before is not None:
        yield f"Against plan {before.short}, {STATES[before.decision.state]}"
        yield from (f"  {text}" for text in _differences(known, before) or ["  nothing differs but its days"])
        yield ""
    if known.decision.why:
        yield f"Rejected because: {printable(known.decision.why)}"
    if refused:
        yield "The policy refuses it: it cannot be approved as it is."
    elif known.decision.state == "approved":
        yield f"To take the approval back: wardround-site revoke {known.short}"
    else:
        yield f"Next: wardround-site approve {known.short}, or reject {known.short} --why TEXT"


def _differences(known: Known, before: Known) -> list[str]:
    ours, theirs = known.settings.flat(), before.settings.flat()
    found = [
        f"{key}: {_value(theirs[key])} -> {_value(ours[key])}" for key in ours if ours[key] != theirs[key]
    ]
    for word, more, fewer in (("joined", known, before), ("left", before, known)):
        names = sorted(more.plan.sites.keys() - fewer.plan.sites.keys())
        found += [f"{word}: {_listed(names)}"] if names else []
    same = known.plan.sites.keys() & before.plan.sites.keys()
    found += [
        f"another key: {shown(name)}"
        for name in sorted(same)
        if known.plan.sites[name] != before.plan.sites[name]
    ]
    if known.plan.code != before.plan.code:
        found.append(f"code: {', '.join(_code(before.plan.code))} -> {', '.join(_code(known.plan.code))}")
    return found


def _code(code: Mapping[str, str]) -> Iterator[str]:
    for name, wanted in code.items():
        try:
            here = version(name)
        except (PackageNotFoundError, ValueError):  # ValueError for a name that no package can have
            here = "not installed"
        told = f"{shown(name)} {shown(wanted)}"
        yield told if here == wanted else f"{told} (HERE {here})"


def _rule(line: Line) -> str:
    return f"{line.key} = {_value(line.value)}: {printable(line.words, _LONGEST_RULE)}"


def _value(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, tuple):
        return _listed(map(str, value)) or "()"
    return shown(str(value))


def _listed(words: Iterable[str]) -> str:
    return ", ".join(map(shown, words))


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
