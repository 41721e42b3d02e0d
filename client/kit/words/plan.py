"""A plan in plain words: one screen, and everything it holds under `--all`.

Words of the server are made printable, so that they cannot imitate a line of ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from wardround.client.kit.words.comparison import differences, versions_in_words
from wardround.client.kit.words.values import (
    LONGEST_RULE,
    MOST_NAMES,
    first_lines,
    names_in_words,
    size_in_words,
    time_in_words,
    value_in_words,
)
from wardround.client.plans import Known
from wardround.client.policy.limits import Limits, Refusal
from wardround.client.policy.roster import roster_in_words
from wardround.client.policy.verdict import SettingVerdict, judge_settings, refusals_of
from wardround.client.sizes import Sizes, largest_influence
from wardround.common.recipes import recipes
from wardround.common.settings.tree import Settings
from wardround.common.wire.signing import Plan
from wardround.common.words import printable, printable_day, shown

_MOST_DEVIATIONS = 2
_MOST_REFUSALS = 3
_MOST_DIFFERENCES = 2
STATES = {
    "pending": "waits for your decision",
    "approved": "approved",
    "rejected": "rejected",
    "revoked": "approval revoked",
}
"""The states of a decision, in words."""


@dataclass(frozen=True)
class Costs:
    """The costs of one round."""

    bytes: int
    """Most that are sent and received."""
    seconds: float


@dataclass(frozen=True)
class Here:
    """The facts of this site that a plan depends on."""

    sizes: Sizes | None = None
    """None if the texts cannot be read as the plan asks."""
    costs: Costs | None = None
    """None if they were not measured."""
    num_answers: int = 0
    """Rounds that this site has answered so far, over all plans."""
    refusals: tuple[Refusal, ...] = ()
    """Why this site's texts, files or budget do not fit the plan."""
    why_not: str = ""
    """Why `sizes` or `costs` is not known, in words."""


def list_of_plans(known: Sequence[Known]) -> str:
    """Return all plans, newest last, one a line."""
    lines = []
    for plan in known:
        model = shown(plan.settings.model.short_name)
        data = shown(plan.settings.data.short_name)
        lines.append(
            f"{plan.short}  {printable_day(plan.plan.not_before)}  "
            f"{STATES[plan.decision.state]:<24}{model} on {data}, "
            f"{plan.settings.num_rounds} rounds, {len(plan.plan.sites)} sites"
        )
    return "\n".join(lines) or "This site has received no plan."


def describe(
    known: Known,
    before: Known | None,
    limits: Limits,
    here: Here | None = None,
) -> Iterator[str]:
    """Describe everything a person needs to decide, in 40 lines at most.

    Args:
        before: the plan to compare it with; None for no comparison.
        here: the facts of this site that the plan depends on.
    """
    here = here or Here()
    plan = known.plan
    yield (
        f"Plan {known.short}, signed by the coordinator: {STATES[known.decision.state]}"
    )
    yield from _recipe(known.settings)
    yield from _training(known.settings)
    yield from _costs(known, limits, here)
    yield (
        f"  valid     from {printable_day(plan.not_before)} "
        f"to {printable_day(plan.not_after)}"
    )
    differing = [
        words for words, is_here in versions_in_words(plan.code) if not is_here
    ]
    if differing:
        yield f"  versions  the coordinator's: {', '.join(differing)}"
    yield "Who takes part"
    yield (
        f"  sites     {names_in_words(sorted(plan.sites))}; this one is {limits.site}"
        f"{_largest_site(plan, limits, here)}"
    )
    yield from roster_in_words(plan, limits, MOST_NAMES)
    yield "What leaves this site, and what it can reveal"
    yield from _leaves(known.settings)
    yield from _reveals(known.settings, limits, here)
    yield from _verdict(known, limits, here)
    if before is not None:
        found = differences(known, before) or ["only the days differ"]
        yield f"Compared with plan {before.short}, {STATES[before.decision.state]}"
        yield from first_lines(found, _MOST_DIFFERENCES)
    yield from _next_step(known, limits, here)


def describe_all(
    known: Known,
    before: Known | None,
    limits: Limits,
    here: Here | None = None,
) -> Iterator[str]:
    """Describe everything a plan holds, with the policy's rule for each setting."""
    here = here or Here()
    plan = known.plan
    parent = f"plan {plan.parent[:12]}" if plan.parent else "no other plan"
    versions = (words for words, _ in versions_in_words(plan.code))
    yield ""
    yield "Everything"
    yield f"  SHA-256   {known.digest}"
    yield f"  follows   {parent}"
    yield f"  code      {', '.join(versions)}"
    for name, key in sorted(plan.sites.items()):
        yield f"  key       {shown(key)}, of {shown(name)}"
    for text in _deviations(known.settings):
        yield f"  differs from the recipe: {text}"
    for words in _refusals(known, limits, here):
        yield f"  NO  {printable(words, LONGEST_RULE)}"
    yield from _rules(known.settings, limits)
    if before is not None:
        yield f"  compared with plan {before.short}:"
        yield from (f"      {text}" for text in differences(known, before))


def _rules(settings: Settings, limits: Limits) -> Iterator[str]:
    allowed = [line for line in judge_settings(settings, limits) if line.is_allowed]
    for line in allowed:
        if line.rule.kind in ("bounded", "listed"):
            yield f"  ok  {_rule(line)}"
    for kind, heading in (
        ("fixed", "your site decides these"),
        ("harmless", "harmless"),
    ):
        yield f"  {heading}:"
        for line in allowed:
            if line.rule.kind == kind:
                yield f"      {_rule(line)}"


def _rule(line: SettingVerdict) -> str:
    words = printable(line.words, LONGEST_RULE)
    return f"{line.key} = {value_in_words(line.value)}: {words}"


def _recipe(settings: Settings) -> Iterator[str]:
    name = settings.recipe
    if not name:
        yield (
            "  recipe    no recipe: its settings are the coordinator's own choice "
            "(--all shows them)"
        )
        return
    recipe = recipes().get(name)
    if recipe is None:
        yield f"  recipe    {shown(name)}, which this installation does not know"
        return
    found = list(_deviations(settings))
    number = "no deviation"
    if found:
        number = f"{len(found)} deviation{'s' if len(found) > 1 else ''}:"
    yield f"  recipe    {name} with {number}  ({recipe.words})"
    yield from first_lines(found, _MOST_DEVIATIONS, indent=12)


def _deviations(settings: Settings) -> Iterator[str]:
    recipe = recipes().get(settings.recipe)
    if recipe is None:
        return
    for deviation in recipe.deviations(settings):
        value = value_in_words(deviation.value)
        allowed = printable(deviation.allowed)
        yield f"{deviation.key} = {value} (the recipe has {allowed})"


def _training(settings: Settings) -> Iterator[str]:
    model = settings.model
    train = settings.train
    revision = f"@{shown(model.revision)}" if model.revision else ""
    weights = f"weights {model.sha256[:12]}…" if model.sha256 else "weights not pinned"
    passes = "1 pass" if train.local_epochs == 1 else f"{train.local_epochs} passes"
    yield f"  model     {shown(model.name)}{revision}, {weights}"
    yield f"  labels    {names_in_words(settings.data.label_names or ())}"
    yield (
        f"  training  up to {settings.num_rounds} rounds, each with {passes} over the "
        f"texts here; {train.optimizer}, step size {train.learning_rate:g}, "
        f"batches of {train.batch_size}"
    )


def _largest_site(plan: Plan, limits: Limits, here: Here) -> str:
    """Return how many texts the other sites may have, compared with this site."""
    if not plan.most_texts:
        return ""
    words = f"; up to {plan.most_texts} texts each"
    if here.sizes is None:
        return words
    most = limits.policy.max_size_ratio
    if plan.most_texts <= most * here.sizes.num_texts:
        return words
    ratio = plan.most_texts / here.sizes.num_texts
    return (
        f"{words}, {ratio:.3g} times as many as here: this site may decline rounds "
        f"(policy.max_size_ratio is {most:g})"
    )


def _costs(known: Known, limits: Limits, here: Here) -> Iterator[str]:
    rounds = known.settings.num_rounds
    texts = "texts were not read"
    if here.sizes is not None:
        texts = (
            f"{here.sizes.num_texts} texts to train on, "
            f"{here.sizes.num_held_out} held out"
        )
    yield (
        f"  this site {texts}; answers given so far: {here.num_answers} of "
        f"{limits.policy.max_total_answers}, for this plan up to {rounds} more"
    )
    if here.costs is not None:
        size = here.costs.bytes
        seconds = here.costs.seconds
        yield (
            f"  costs     a round: up to {size_in_words(size)} and about "
            f"{time_in_words(seconds)}; in all: up to {size_in_words(rounds * size)} "
            f"and about {time_in_words(rounds * seconds)}"
        )
    elif here.why_not:
        yield f"  costs     not known: {printable(here.why_not)}"


def _leaves(settings: Settings) -> Iterator[str]:
    form = settings.transforms.name
    yield "  once:        how many texts it trains on, and how many it holds out"
    yield f"  each round:  the trained weights ({form}), how many texts and steps,"
    yield "               the mean loss, the seconds it took"
    if settings.evaluation.where == "sites":
        yield (
            "               for each pair of true and predicted label the number of "
            "held-out texts; their summed loss"
        )
    yield "  or, instead: a code for the reason why it does not take part"


def _reveals(settings: Settings, limits: Limits, here: Here) -> Iterator[str]:
    uses_sgd = settings.train.optimizer == "sgd"
    if settings.train.frozen == "none":
        yield (
            "  WORDS        embeddings are trained: an update reveals which words the "
            "texts use"
        )
    if here.sizes is None:
        return
    influence = largest_influence(settings, max(1, here.sizes.num_texts))
    bound = "at most" if uses_sgd else "by its settings at most"
    yield (
        f"  one text:    {bound} {influence:.2g} times its even share of an update "
        f"({limits.policy.max_influence:g} is allowed)"
    )
    width = here.sizes.hidden_size
    if width is not None and uses_sgd and here.sizes.num_texts < 2 * width:
        yield (
            "  MEMBERSHIP   anybody who has a text can find out if it is in here: with "
            f"sgd, and fewer than {2 * width} texts"
        )


def _refusals(known: Known, limits: Limits, here: Here) -> list[str]:
    found = refusals_of(known.plan, known.settings, limits)
    return [words for _, _, words in (*found, *here.refusals)]


def _verdict(known: Known, limits: Limits, here: Here) -> Iterator[str]:
    refused = _refusals(known, limits, here)
    if refused:
        yield "The policy of this site refuses it: it cannot be approved as it is."
        lines = [f"NO  {printable(text, LONGEST_RULE)}" for text in refused]
        yield from first_lines(lines, _MOST_REFUSALS)
    elif here.costs is None:
        yield (
            "The policy of this site allows its settings. Its texts and model could not "
            "be checked."
        )
    else:
        yield "The policy of this site allows it."


def _next_step(known: Known, limits: Limits, here: Here) -> Iterator[str]:
    people = ", ".join(known.decision.people)
    if people:
        yield f"Approved by: {people}"
    if known.decision.why:
        yield f"Rejected because: {printable(known.decision.why)}"
    reject = f"reject {known.short} --why TEXT"
    if _refusals(known, limits, here):
        yield f"Next: wardround-site {reject}. Every setting: --all"
    elif known.decision.state == "approved":
        yield (
            f"To take the approval back: wardround-site revoke {known.short}. "
            "Every setting: --all"
        )
    else:
        signed = " --as NAME --key FILE" if limits.policy.approvals > 1 else ""
        yield (
            f"Next: wardround-site approve {known.short}{signed}, or {reject}. "
            "Every setting: --all"
        )
