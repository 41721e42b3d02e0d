"""A plan in plain words, for the people who decide: one screen, and under `--all` everything it holds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import islice

from wardround.client.kit.costs import Here
from wardround.client.peers import roster_in_words
from wardround.client.plans import Known
from wardround.client.policy import Limits, Line, lines_of, refusals_of
from wardround.client.sizes import largest_influence
from wardround.common.recipes import recipes
from wardround.common.settings import Settings
from wardround.common.wire.signing import Plan
from wardround.common.words import printable, printable_day, shown

_LONGEST_RULE = 600
_MOST_NAMES, _MOST_DEVIATIONS, _MOST_REFUSALS, _MOST_DIFFERENCES = 8, 2, 3, 2
STATES = {
    "pending": "waits for your decision",
    "approved": "approved",
    "rejected": "rejected",
    "revoked": "approval revoked",
}


def table(known: Sequence[Known]) -> str:
    """All plans, newest last, a line each. The server's words in it can imitate no line of ours."""
    lines = [
        f"{plan.short}  {printable_day(plan.plan.not_before)}  {STATES[plan.decision.state]:<24}"
        f"{shown(plan.settings.model.short_name)} on {shown(plan.settings.data.short_name)}, "
        f"{plan.settings.num_rounds} rounds, {len(plan.plan.sites)} sites"
        for plan in known
    ]
    return "\n".join(lines) or "This site was told of no plan."


def describe(
    known: Known,
    before: Known | None,
    limits: Limits,
    here: Here | None = None,
) -> Iterator[str]:
    """What a person needs to decide, on one screen: at most 40 lines.

    The server's words in it can imitate no line of ours.

    Args:
        before: the plan to compare it with; None for no comparison.
        here: what the plan meets at this site.
    """
    here = here or Here()
    plan = known.plan
    yield f"Plan {known.short}, signed by the coordinator: {STATES[known.decision.state]}"
    yield from _recipe(known.settings)
    yield from _training(known.settings)
    yield from _costs(known, limits, here)
    yield f"  good      from {printable_day(plan.not_before)} to {printable_day(plan.not_after)}"
    differing = [told for told, is_here in _code(plan.code) if not is_here]
    if differing:
        yield f"  versions  the coordinator's: {', '.join(differing)}"
    yield "Who takes part"
    yield f"  sites     {_some(sorted(plan.sites))}; this one is {limits.site}{_largest(plan, limits, here)}"
    yield from roster_in_words(plan, limits, _MOST_NAMES)
    yield "What leaves this site, and what it can tell"
    yield from _leaves(known.settings)
    yield from _tells(known.settings, limits, here)
    yield from _verdict(known, limits, here)
    if before is not None:
        differences = _differences(known, before) or ["nothing differs but its days"]
        yield f"Against plan {before.short}, {STATES[before.decision.state]}"
        yield from _first(differences, _MOST_DIFFERENCES)
    yield from _next_step(known, limits, here)


def describe_all(
    known: Known,
    before: Known | None,
    limits: Limits,
    here: Here | None = None,
) -> Iterator[str]:
    """Everything a plan holds, and what the policy says to each setting."""
    here = here or Here()
    plan = known.plan
    yield ""
    yield "Everything"
    yield f"  SHA-256   {known.digest}"
    yield f"  follows   {f'plan {plan.parent[:12]}' if plan.parent else 'no other plan'}"
    yield f"  code      {', '.join(told for told, _ in _code(plan.code))}"
    for name, key in sorted(plan.sites.items()):
        yield f"  key       {shown(key)}, of {shown(name)}"
    for text in _deviations(known.settings):
        yield f"  not as the recipe says: {text}"
    for words in _refusals(known, limits, here):
        yield f"  NO  {printable(words, _LONGEST_RULE)}"
    told = lines_of(known.settings, limits)
    for line in told:
        if line.is_allowed and line.rule.kind in ("bounded", "listed"):
            yield f"  ok  {_rule(line)}"
    for kind, words in (("fixed", "not the server's to say"), ("harmless", "harmless")):
        yield f"  {words}:"
        for line in told:
            if line.is_allowed and line.rule.kind == kind:
                yield f"      {_rule(line)}"
    if before is not None:
        yield f"  against plan {before.short}:"
        yield from (f"      {text}" for text in _differences(known, before))


def _recipe(settings: Settings) -> Iterator[str]:
    name = settings.recipe
    if not name:
        yield "  recipe    no recipe: its settings are the coordinator's own choice (--all shows them)"
        return
    recipe = recipes().get(name)
    if recipe is None:
        yield f"  recipe    {shown(name)}, which this installation does not know"
        return
    found = list(_deviations(settings))
    number = (
        "no deviation"
        if not found
        else f"{len(found)} deviation{'s' if len(found) > 1 else ''}:"
    )
    yield f"  recipe    {name} with {number}  ({recipe.words})"
    yield from _first(found, _MOST_DEVIATIONS, indent=12)


def _deviations(settings: Settings) -> Iterator[str]:
    recipe = recipes().get(settings.recipe)
    if recipe is not None:
        for deviation in recipe.deviations(settings):
            value = _value(deviation.value)
            yield f"{deviation.key} = {value} (the recipe says {printable(deviation.allowed)})"


def _training(settings: Settings) -> Iterator[str]:
    model, train = settings.model, settings.train
    revision = f"@{shown(model.revision)}" if model.revision else ""
    weights = f"weights {model.sha256[:12]}…" if model.sha256 else "weights not pinned"
    yield f"  model     {shown(model.name)}{revision}, {weights}"
    yield f"  labels    to tell apart: {_some(settings.data.label_names or ())}"
    passes = "1 pass" if train.local_epochs == 1 else f"{train.local_epochs} passes"
    yield (
        f"  training  in up to {settings.num_rounds} rounds, each with {passes} over the texts "
        f"here; {train.optimizer}, step size {train.learning_rate:g}, batches of {train.batch_size}"
    )


def _largest(plan: Plan, limits: Limits, here: Here) -> str:
    """How many texts the other sites may have, and whether this site's bound provides for so many."""
    if not plan.most_texts:
        return ""
    words = f"; up to {plan.most_texts} texts each"
    if (
        here.sizes is None
        or plan.most_texts <= limits.policy.max_size_ratio * here.sizes.num_texts
    ):
        return words
    ratio = plan.most_texts / here.sizes.num_texts
    return (
        f"{words}, {ratio:.3g} times as many as here: this site may decline rounds "
        f"(policy.max_size_ratio is {limits.policy.max_size_ratio:g})"
    )


def _costs(known: Known, limits: Limits, here: Here) -> Iterator[str]:
    rounds = known.settings.num_rounds
    texts = "texts not looked at"
    if here.sizes is not None:
        texts = f"{here.sizes.num_texts} texts to train on, {here.sizes.num_held_out} held out"
    given = f"{here.num_answers} of {limits.policy.max_total_answers}"
    yield f"  this site {texts}; answers given so far: {given}, for this plan up to {rounds} more"
    if here.costs is not None:
        size, seconds = here.costs.bytes, here.costs.seconds
        yield (
            f"  costs     a round: up to {_size(size)} and about {_time(seconds)}; "
            f"in all: up to {_size(rounds * size)} and about {_time(rounds * seconds)}"
        )
    elif here.why_not:
        yield f"  costs     not known: {printable(here.why_not)}"


def _leaves(settings: Settings) -> Iterator[str]:
    yield "  once:        how many texts it trains on, and how many it holds out"
    yield f"  each round:  the trained weights ({settings.transforms.name}), how many texts and steps,"
    yield "               the mean loss, the seconds it took"
    if settings.evaluation.where == "sites":
        yield "               how many held-out texts of each label were taken for which; their summed loss"
    yield "  or, instead: a code that says why not"


def _tells(settings: Settings, limits: Limits, here: Here) -> Iterator[str]:
    if settings.train.frozen == "none":
        yield "  WORDS        embeddings are trained: an update tells which words the texts use"
    if here.sizes is None:
        return
    most = limits.policy.max_influence
    influence = largest_influence(settings, max(1, here.sizes.num_texts))
    exactly = (
        "at most" if settings.train.optimizer == "sgd" else "by its settings at most"
    )
    yield f"  one text:    {exactly} {influence:.2g} times its even share of an update ({most:g} is allowed)"
    width = here.sizes.hidden_size
    if (
        width is not None
        and settings.train.optimizer == "sgd"
        and here.sizes.num_texts < 2 * width
    ):
        yield (
            f"  MEMBERSHIP   who holds a text can tell whether it is in here: with sgd, and fewer than "
            f"{2 * width} texts"
        )


def _refusals(known: Known, limits: Limits, here: Here) -> list[str]:
    found = [words for _, _, words in refusals_of(known.plan, known.settings, limits)]
    return [*found, *here.refusals]


def _verdict(known: Known, limits: Limits, here: Here) -> Iterator[str]:
    refused = _refusals(known, limits, here)
    if not refused and here.costs is not None:
        yield "The policy of this site allows it."
        return
    if not refused:
        yield "The policy of this site allows its settings; its texts and model could not be looked at."
        return
    yield "The policy of this site refuses it: it cannot be approved as it is."
    words = (f"NO  {printable(text, _LONGEST_RULE)}" for text in refused)
    yield from _first(list(words), _MOST_REFUSALS)


def _next_step(known: Known, limits: Limits, here: Here) -> Iterator[str]:
    people = ", ".join(known.decision.people)
    if people:
        yield f"Approved by: {people}"
    if known.decision.why:
        yield f"Rejected because: {printable(known.decision.why)}"
    if _refusals(known, limits, here):
        yield f"Next: wardround-site reject {known.short} --why TEXT. Every setting: --all"
    elif known.decision.state == "approved":
        yield f"To take the approval back: wardround-site revoke {known.short}. Every setting: --all"
    else:
        signed = " --as NAME --key FILE" if limits.policy.approvals > 1 else ""
        yield (
            f"Next: wardround-site approve {known.short}{signed}, or reject {known.short} --why TEXT. "
            "Every setting: --all"
        )


def _first(texts: Sequence[str], most: int, indent: int = 2) -> Iterator[str]:
    """The first lines of a list; the last one says how many more there are."""
    for text in texts[:most]:
        yield f"{' ' * indent}{text}"
    if len(texts) > most:
        yield f"{' ' * indent}and {len(texts) - most} more (--all)"


def _size(number: float) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.3g} MB"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _differences(known: Known, before: Known) -> list[str]:
    ours, theirs = known.settings.flat(), before.settings.flat()
    found = [
        f"{key}: {_value(theirs[key])} -> {_value(ours[key])}"
        for key in ours
        if ours[key] != theirs[key]
    ]
    for word, more, fewer in (("joined", known, before), ("left", before, known)):
        names = sorted(more.plan.sites.keys() - fewer.plan.sites.keys())
        found += [f"{word}: {_some(names)}"] if names else []
    same = known.plan.sites.keys() & before.plan.sites.keys()
    found += [
        f"another key: {shown(name)}"
        for name in sorted(same)
        if known.plan.sites[name] != before.plan.sites[name]
    ]
    if known.plan.code != before.plan.code:
        then, now = (
            ", ".join(told for told, _ in _code(one.plan.code))
            for one in (before, known)
        )
        found.append(f"code: {then} -> {now}")
    return found


def _code(code: Mapping[str, str]) -> Iterator[tuple[str, bool]]:
    """Each package that a plan names, in words, and whether this version of it is installed here."""
    for name, wanted in code.items():
        try:
            here = version(name)
        except (
            PackageNotFoundError,
            ValueError,
        ):  # ValueError for a name that no package can have
            here = "not installed"
        told = f"{shown(name)} {shown(wanted)}"
        yield (told, True) if here == wanted else (f"{told} (HERE {here})", False)


def _rule(line: Line) -> str:
    return f"{line.key} = {_value(line.value)}: {printable(line.words, _LONGEST_RULE)}"


def _value(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, tuple):
        return _some(map(str, value)) or "()"
    return shown(str(value))


def _some(words: Iterable[str]) -> str:
    """The first few of a list of names."""
    names = list(words)
    told = ", ".join(map(shown, islice(names, _MOST_NAMES)))
    more = len(names) - _MOST_NAMES
    return f"{told} and {more} more" if more > 0 else told


def compared_with(known: Known, all_plans: Sequence[Known]) -> Known | None:
    """The plan that another is held against: its parent, else the one approved last before it."""
    others = [plan for plan in all_plans if plan.digest != known.digest]
    parents = [plan for plan in others if plan.digest == known.plan.parent]
    older = [
        plan
        for plan in others
        if plan.decision.state == "approved"
        and plan.plan.not_before <= known.plan.not_before
    ]
    return next(iter(parents), older[-1] if older else None)
