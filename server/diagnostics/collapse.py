"""Flags of a collapse: a condition of the task that held for several rounds in a row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from wardround.common.settings.tree import Settings
from wardround.common.tasks.health import Condition, Scored
from wardround.common.tasks.task import Task
from wardround.server.record import RoundRecord


@dataclass(frozen=True)
class Episode:
    """Rounds in a row in which one condition held."""

    kind: str
    """Name of the condition."""
    condition: Condition
    label: int
    """Number of the output at fault; 0 if it is none in particular."""
    first: int
    last: int

    def words(self, label_names: Sequence[str], is_up: bool) -> str:
        """Return for example `at chance since round 3: accuracy is not above …`."""
        label = label_name(label_names, self.label)
        reason = self.condition.words.format(label=label)
        when = f"since round {self.first}"
        if not is_up:
            when = in_rounds(self.first, self.last)
        return f"{self.kind} {when}: {reason}"


@dataclass(frozen=True)
class Collapse:
    """A flag: raised in one round, and up while one of its episodes lasts."""

    round: int
    """The round in which it was raised."""
    episodes: tuple[Episode, ...]
    """They are long enough and overlap; the first is the reason for the flag."""
    is_up: bool
    """True if one of them includes the last round of the run."""

    @property
    def first(self) -> int:
        """First round of all its episodes."""
        return min(episode.first for episode in self.episodes)

    @property
    def last(self) -> int:
        """Last round of all its episodes."""
        return _last_of(self.episodes)

    def words(self, label_names: Sequence[str]) -> str:
        """Return one line with the round, the reason, and the end if it is over."""
        reason = self.episodes[0]
        named = [reason]
        if reason.last < self.last:
            lasting = [one for one in self.episodes if one.last == self.last]
            named.append(lasting[0])
        parts = []
        for episode in named:
            is_up = self.is_up and episode.last == self.last
            parts.append(episode.words(label_names, is_up))
        if not self.is_up:
            parts.append(f"over since round {self.last + 1}")
        return f"collapse flagged in round {self.round}: {'; '.join(parts)}"

    def alarm(self, label_names: Sequence[str], settings: Settings) -> str:
        """Return `words`, and the next step while it is up (docs/collapse.md)."""
        words = self.words(label_names)
        if not self.is_up:
            return words
        return f"{words}. {_next_step(self.episodes[0].condition, settings)}"


def _next_step(condition: Condition, settings: Settings) -> str:
    """Return the next step against a collapse by this condition, under these settings."""
    train = settings.train
    if condition.is_divergence:
        return f"Lower train.learning_rate (now {train.learning_rate:g})."
    rate = train.head_learning_rate
    if rate is None:
        rate = train.learning_rate
    larger_steps = (
        "larger steps of the new head, for example "
        f"train.head_learning_rate={10 * rate:g} (now {rate:g})"
    )
    if train.draws_heads and settings.num_clients > 1:
        return (
            "Begin again with one head for all sites (train.head_init=shared), or with "
            f"{larger_steps}."
        )
    return (
        "It may end by itself, sooner with more steps a round (train.local_epochs) or "
        f"{larger_steps}."
    )


def label_name(label_names: Sequence[str], label: int) -> str:
    """Return the name of a label, or its number if the names are unknown."""
    return label_names[label] if label < len(label_names) else f"class {label}"


def in_rounds(first: int, last: int) -> str:
    """Return `in rounds 3 to 7`, or `in round 3`."""
    return f"in round {first}" if first == last else f"in rounds {first} to {last}"


def scored_rounds(records: Iterable[RoundRecord], task: Task) -> list[Scored]:
    """Return the rounds that have all numbers for the task's conditions."""
    scored = (
        task.scored(record.round, record.test.facts | record.diagnostics.facts)
        for record in records
        if record.test is not None
    )
    return [one for one in scored if one is not None]


def find_collapses(scored: Iterable[Scored], num_rounds: int) -> tuple[Collapse, ...]:
    """Return all flags of a run in order; the initial model, round 0, does not count.

    Args:
        scored: in the order of their rounds.
        num_rounds: number of rounds in a row for which a condition must hold.
    """
    trained = [one for one in scored if one.round > 0]
    episodes: list[Episode] = []
    for kind in trained[0].conditions if trained else ():
        for episode in find_episodes(trained, kind):
            if episode.last - episode.first + 1 >= num_rounds:
                episodes.append(episode)
    # The sort is stable: of those that begin together, the clearest sign stays first.
    episodes.sort(key=lambda episode: episode.first)
    groups: list[list[Episode]] = []
    for episode in episodes:
        raised = episode.first + num_rounds - 1
        if groups and raised <= _last_of(groups[-1]):
            groups[-1].append(episode)
        else:
            groups.append([episode])
    last_round = trained[-1].round if trained else 0
    collapses = []
    for group in groups:
        raised = group[0].first + num_rounds - 1
        is_up = _last_of(group) == last_round
        collapses.append(Collapse(raised, tuple(group), is_up))
    return tuple(collapses)


def _last_of(episodes: Iterable[Episode]) -> int:
    """Return the last round of all these episodes."""
    return max(episode.last for episode in episodes)


def find_episodes(scored: Sequence[Scored], kind: str) -> list[Episode]:
    """Return the longest episodes of this condition, each for one and the same class."""
    episodes: list[Episode] = []
    for one in scored:
        condition = one.conditions[kind]
        label = condition.finds(one)
        if label is None:
            continue
        before = episodes[-1] if episodes else None
        is_next = before and before.last == one.round - 1
        if before and is_next and before.label == label:
            episodes[-1] = replace(before, last=one.round)
        else:
            episodes.append(Episode(kind, condition, label, one.round, one.round))
    return episodes


def collapses_in(
    records: Iterable[RoundRecord], task: Task, num_rounds: int
) -> tuple[Collapse, ...]:
    """Return the flags of these rounds, as `find_collapses`."""
    return find_collapses(scored_rounds(records, task), num_rounds)


def standing_collapse(
    records: Iterable[RoundRecord], task: Task, num_rounds: int
) -> Collapse | None:
    """Return the flag that is up after the last of these rounds; None if there is none."""
    found = collapses_in(records, task, num_rounds)
    return found[-1] if found and found[-1].is_up else None
