"""Whether a run has collapsed: predictions in one class, accuracy at chance, or a loss that blows up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import log, sqrt

from wardround.common.settings.tree import Settings
from wardround.server.record import RoundRecord

SINGLE_CLASS_SHARE = 0.95
"""Predictions sit in one class where it has at least this share of them, and the true labels do not."""
CHANCE_ERRORS = 2.0
"""Binomial standard errors by which accuracy has to exceed the largest class's share to be above chance."""
DIVERGED_LOSS = 10.0
"""A loss is that of a diverged model above this multiple of ln C, the loss of an even guess."""


def chance_limit(largest_class_share: float, num_examples: int) -> float:
    """Highest accuracy that is still chance: the share plus CHANCE_ERRORS x sqrt(p (1 - p) / n)."""
    spread = sqrt(largest_class_share * (1 - largest_class_share) / num_examples)
    return largest_class_share + CHANCE_ERRORS * spread


@dataclass(frozen=True)
class Look:
    """What is judged of one measured round."""

    round: int
    accuracy: float
    loss: float
    num_examples: int
    shares: tuple[float, ...]
    """Share of the test predictions in each class."""
    largest_class_share: float
    """Of the true labels: the accuracy of always guessing that class."""

    @classmethod
    def of(cls, record: RoundRecord) -> Look | None:
        """What a record tells; None where it tells nothing of predictions."""
        test, told = record.test, record.diagnostics
        if (
            test is None
            or test.accuracy is None
            or test.loss is None
            or test.num_examples is None
        ):
            return None
        if told.predicted_shares is None or told.largest_class_share is None:
            return None
        return cls(
            round=record.round,
            accuracy=test.accuracy,
            loss=test.loss,
            num_examples=test.num_examples,
            shares=tuple(told.predicted_shares),
            largest_class_share=told.largest_class_share,
        )

    @property
    def chance_limit(self) -> float:
        """Highest accuracy that still counts as chance."""
        return chance_limit(self.largest_class_share, self.num_examples)


def _diverged(look: Look) -> int | None:
    return 0 if look.loss > DIVERGED_LOSS * log(len(look.shares)) else None


def _single_class(look: Look) -> int | None:
    share = max(look.shares)
    is_single = share >= SINGLE_CLASS_SHARE > look.largest_class_share
    return look.shares.index(share) if is_single else None


def _at_chance(look: Look) -> int | None:
    return 0 if look.accuracy <= look.chance_limit else None


CONDITIONS: dict[str, Callable[[Look], int | None]] = {
    "diverged": _diverged,
    "single class": _single_class,
    "at chance": _at_chance,
}
"""None where a round is sound; the most telling condition first. A single class has its label's number."""

_WORDS = {
    "diverged": f"the test loss is over {DIVERGED_LOSS:g} times that of an even guess",
    "single class": f"at least {SINGLE_CLASS_SHARE:.0%} of the test predictions are '{{label}}'",
    "at chance": "accuracy is not above the largest class's share of the test set",
}


@dataclass(frozen=True)
class Spell:
    """Rounds in a row in which one condition held."""

    kind: str
    """A key of CONDITIONS."""
    label: int
    """Number of the single class; 0 otherwise."""
    first: int
    last: int

    def words(self, label_names: Sequence[str], is_up: bool) -> str:
        """For example `at chance since round 3: accuracy is not above …`."""
        name = label_name(label_names, self.label)
        when = f"since round {self.first}" if is_up else stretch(self.first, self.last)
        return f"{self.kind} {when}: {_WORDS[self.kind].format(label=name)}"


@dataclass(frozen=True)
class Collapse:
    """A flag: raised once, and up while one of its spells goes on."""

    round: int
    """The round it was raised in."""
    spells: tuple[Spell, ...]
    """Those that held for long enough and overlap; the first is why it was raised."""
    is_up: bool
    """Whether it still held in the last round there is."""

    @property
    def first(self) -> int:
        """First round of all its spells."""
        return min(spell.first for spell in self.spells)

    @property
    def last(self) -> int:
        """Last round of all its spells."""
        return max(spell.last for spell in self.spells)

    def words(self, label_names: Sequence[str]) -> str:
        """One line that names the round and the reason, and says when it is over."""
        told = [self.spells[0]]
        if told[0].last < self.last:
            told.append(next(spell for spell in self.spells if spell.last == self.last))
        reasons = [
            spell.words(label_names, self.is_up and spell.last == self.last)
            for spell in told
        ]
        over = [] if self.is_up else [f"over since round {self.last + 1}"]
        return f"collapse flagged in round {self.round}: {'; '.join([*reasons, *over])}"

    def alarm(self, label_names: Sequence[str], settings: Settings) -> str:
        """Those words, and while it is up what to try (docs/collapse.md)."""
        words = self.words(label_names)
        return (
            f"{words}. {what_to_try(self.spells[0].kind, settings)}"
            if self.is_up
            else words
        )


def what_to_try(kind: str, settings: Settings) -> str:
    """The next step against a collapse of this kind, as far as the run's settings leave one."""
    train = settings.train
    if kind == "diverged":
        return f"Lower train.learning_rate (now {train.learning_rate:g})."
    rate = (
        train.learning_rate
        if train.head_learning_rate is None
        else train.head_learning_rate
    )
    if train.draws_heads and settings.num_clients > 1:
        return (
            "Begin again with one head for all sites (train.head_init=shared), or with larger steps of the "
            f"new head, for example train.head_learning_rate={10 * rate:g} (now {rate:g})."
        )
    return (
        "It may end by itself, sooner with more steps a round (train.local_epochs), or with larger ones of "
        f"the new head, for example train.head_learning_rate={10 * rate:g} (now {rate:g})."
    )


def label_name(label_names: Sequence[str], label: int) -> str:
    """Its name, or its number where names are not known."""
    return label_names[label] if label < len(label_names) else f"class {label}"


def stretch(first: int, last: int) -> str:
    """`in rounds 3 to 7`, or `in round 3`."""
    return f"in round {first}" if first == last else f"in rounds {first} to {last}"


def looks_of(records: Iterable[RoundRecord]) -> list[Look]:
    """Looks at those records that have something to look at."""
    return [look for record in records if (look := Look.of(record)) is not None]


def find_collapses(looks: Iterable[Look], num_rounds: int) -> tuple[Collapse, ...]:
    """All flags of a run in the order they were raised; the initial model, round 0, does not count.

    Args:
        looks: in the order of their rounds.
        num_rounds: rounds in a row for which a condition has to hold.
    """
    trained = [look for look in looks if look.round > 0]
    order = list(CONDITIONS)
    spells = [
        spell
        for kind in CONDITIONS
        for spell in find_spells(trained, kind)
        if spell.last - spell.first + 1 >= num_rounds
    ]
    spells.sort(key=lambda spell: (spell.first, order.index(spell.kind)))
    groups: list[list[Spell]] = []
    for spell in spells:
        raised = spell.first + num_rounds - 1
        if groups and raised <= max(other.last for other in groups[-1]):
            groups[-1].append(spell)
        else:
            groups.append([spell])
    now = trained[-1].round if trained else 0
    return tuple(
        Collapse(
            group[0].first + num_rounds - 1,
            tuple(group),
            max(spell.last for spell in group) == now,
        )
        for group in groups
    )


def collapses_in(
    records: Iterable[RoundRecord], num_rounds: int
) -> tuple[Collapse, ...]:
    """Return all flags of these rounds, as `find_collapses` does."""
    return find_collapses(looks_of(records), num_rounds)


def find_spells(looks: Sequence[Look], kind: str) -> list[Spell]:
    """The longest stretches of rounds in which the condition held, for one and the same class."""
    spells: list[Spell] = []
    for look in looks:
        label = CONDITIONS[kind](look)
        if label is None:
            continue
        before = spells[-1] if spells else None
        if before and (before.last, before.label) == (look.round - 1, label):
            spells[-1] = Spell(kind, label, before.first, look.round)
        else:
            spells.append(Spell(kind, label, look.round, look.round))
    return spells


def standing_collapse(
    records: Iterable[RoundRecord], num_rounds: int
) -> Collapse | None:
    """The flag that is up after the last of these rounds; None where the run is sound."""
    found = collapses_in(records, num_rounds)
    return found[-1] if found and found[-1].is_up else None
