"""Labelled texts to learn from and to test on: read, checked, numbered, held out, drawn.

Messages name files and labels: they are for the person at this machine and must not cross the wire.
"""

from __future__ import annotations

import hmac
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np

from wardround.common.data.read import Table
from wardround.common.data.sources import READERS, Source
from wardround.common.explain import nearest

if TYPE_CHECKING:
    from wardround.common.settings.data import DataSettings


def cut_words(text: str, max_words: int | None) -> str:
    """The first `max_words` words of a text, cut at white space; None leaves it alone."""
    return text if max_words is None else " ".join(text.split()[:max_words])


@dataclass(frozen=True)
class LabelledTexts:
    """N examples, in the order of their source."""

    texts: list[str]
    """N texts, none of them empty."""
    labels: np.ndarray
    """(N,) int64, positions in `TextData.label_names`."""

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: np.ndarray) -> LabelledTexts:
        """The examples at these positions, in this order."""
        return LabelledTexts([self.texts[row] for row in rows], self.labels[rows])

    def cut(self, max_words: int | None) -> LabelledTexts:
        """The same examples with at most `max_words` words each; None leaves them alone."""
        cut = [cut_words(text, max_words) for text in self.texts]
        return LabelledTexts(cut, self.labels)


def digest_of_row(key: bytes, text: str | None, label: str | None) -> str:
    """A text and its label as a keyed hash, 16 hexadecimal digits; a guess needs the key to be checked."""
    row = json.dumps([text, label]).encode()
    return hmac.digest(key, row, "sha256").hex()[:16]


@dataclass(frozen=True)
class LateOptOuts:
    """Texts that have opted out since it was drawn which texts are held out."""

    key: bytes
    hashes: frozenset[str]
    """As `digest_of_row` gives them."""

    def holds(self, text: str | None, label: str | None) -> bool:
        """Whether it is one of them."""
        return bool(self.hashes) and digest_of_row(self.key, text, label) in self.hashes

    def staying(self, examples: LabelledTexts, names: Sequence[str]) -> np.ndarray:
        """Positions of the examples that have not opted out, (n,) int64. Args: names: of the labels."""
        rows = zip(examples.texts, examples.labels, strict=True)
        stays = (
            [not self.holds(text, names[label]) for text, label in rows]
            if self.hashes
            else []
        )
        return np.flatnonzero(stays) if stays else np.arange(len(examples))


NO_LATE_OPT_OUTS = LateOptOuts(b"", frozenset())
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class TextData(Generic[T]):
    """A data set ready to be dealt to clients, as texts or as token ids.

    Equal to itself alone: what is dealt from it is kept by it.
    """

    train: T
    test: T
    label_names: tuple[str, ...]
    """Labels in the order of their numbers."""
    site_sizes: tuple[tuple[str, int], ...]
    """Name and number of training examples of each site, in the order they stand in `train`; () unless
    `data.path` is a folder with one file for each site."""
    test_sizes: tuple[int, ...]
    """Number of held-out examples of each site, in the order they stand in `test`; () where the test set
    is nobody's own."""
    opted_out: T
    """Training texts that take part in no round, and are in none of the other parts."""
    opted_out_sizes: tuple[int, ...]
    """Number of them of each site, in the order they stand in `opted_out`; () as for `site_sizes`."""
    findings: tuple[str, ...]
    """What a person should be told, one sentence each."""


PARTS = ("train", "test", "opted_out")
"""Fields of `TextData` that hold texts."""


def read_texts(
    settings: DataSettings,
    seed: int,
    site: str | None = None,
    *,
    of_each_site: bool = False,
    late: LateOptOuts = NO_LATE_OPT_OUTS,
) -> TextData[LabelledTexts]:
    """Read a data set, hold out a test set where it has none, and draw as many examples as asked.

    Same settings, files and seed give the same examples in the same order. The held-out texts do not
    depend on `train_examples`, and a smaller draw is part of a larger one. Of texts that have opted out the
    other parts do not depend at all: they are as if those were not in the file.

    Args:
        site: name of the one site the file belongs to. Its held-out texts are then those that a folder of
            all sites' files would hold out and draw for it, with `of_each_site`.
        late: texts that the draws are made with, and that are left out of all parts afterwards.
        of_each_site: draw `train_examples`, and `test_examples` where sites hold out their own, from every
            site by itself; one that has fewer gives all. A site by itself always does.

    Raises:
        ValueError: anything is wrong with the data; names what, where, the rule and the next step.
    """
    if settings.label_names is not None:
        _check_declared(settings.label_names)
    try:
        source = _as_site(
            READERS[settings.reader](settings), site, dict(settings.label_map)
        )
    except OSError as error:
        raise ValueError(
            f"{error.filename} cannot be read: {error.strerror}. Check its permissions."
        ) from None
    tables, findings = _drop_empty(source.train, "train", settings.drop_empty)
    test_tables, test_findings = _drop_empty(source.test, "test", settings.drop_empty)
    tables, out_tables = _opted_out(tables, late)
    names = _label_names(settings, source, tables, test_tables, out_tables)
    train, test, opted_out = (
        _join(part, names) for part in (tables, test_tables, out_tables)
    )
    sites = np.repeat(np.arange(len(tables)), [len(table.texts) for table in tables])
    test_sites = np.zeros(len(test), dtype=np.int64)
    if not source.test:
        split_seed = seed if settings.split_seed is None else settings.split_seed
        kinds = numbered_by_name(train.labels, names)
        held = _hold_out(
            kinds, sites, source.site_names, settings.test_fraction, split_seed
        )
        train, test = (
            train.take(np.flatnonzero(~held)),
            train.take(np.flatnonzero(held)),
        )
        sites, test_sites = sites[~held], sites[held]
    staying, test_staying = late.staying(train, names), late.staying(test, names)
    train, sites = train.take(staying), sites[staying]
    test, test_sites = test.take(test_staying), test_sites[test_staying]
    names_of_sites = source.site_names if of_each_site or site is not None else ()
    kept = _draw(
        train.labels,
        sites,
        settings.train_examples,
        seed,
        "train_examples",
        names_of_sites,
    )
    train, sites = train.take(kept), sites[kept]
    test_owners = names_of_sites if not source.test else ()
    owned_by = test_sites if test_owners else np.zeros_like(test.labels)
    test_kept = _draw(
        test.labels,
        owned_by,
        settings.test_examples,
        seed,
        "test_examples",
        test_owners,
    )
    test, test_sites = test.take(test_kept), test_sites[test_kept]
    sizes = _sizes(sites, tables)
    return TextData(
        train.cut(settings.max_words),
        test.cut(settings.max_words),
        names,
        tuple(zip(source.site_names, sizes, strict=True)) if source.site_names else (),
        _sizes(test_sites, tables) if source.site_names and not source.test else (),
        opted_out.cut(settings.max_words),
        tuple(len(table.texts) for table in out_tables) if source.site_names else (),
        (*findings, *test_findings, *_remarks(train, test, names)),
    )


def _as_site(source: Source, site: str | None, label_map: dict[str, str]) -> Source:
    """The source under its site's name, its labels under the names all sites share."""

    def rename(tables: tuple[Table, ...]) -> tuple[Table, ...]:
        return tuple(
            replace(
                table,
                labels=[
                    label and label_map.get(label, label) for label in table.labels
                ],
            )
            for table in tables
        )

    if label_map:
        source = replace(source, train=rename(source.train), test=rename(source.test))
    return source if site is None else replace(source, site_names=(site,))


def _sizes(sites: np.ndarray, tables: Sequence[Table]) -> tuple[int, ...]:
    return tuple(np.bincount(sites, minlength=len(tables)).tolist())


def _drop_empty(
    tables: Sequence[Table], part: str, drop: bool
) -> tuple[list[Table], list[str]]:
    """Tables without the rows that have no text, and what to say about them."""
    findings = [finding for table in tables for finding in table.findings]
    filled = [[row for row, text in enumerate(table.texts) if text] for table in tables]
    total = sum(len(table.texts) for table in tables)
    empty = total - sum(len(rows) for rows in filled)
    if not empty:
        return list(tables), findings
    if not drop:
        first = next(
            t.place(row) for t in tables for row, text in enumerate(t.texts) if not text
        )
        raise ValueError(
            f"{part}: {empty} of {total} examples have an empty or missing text, the first in {first}. "
            "Complete them, or set data.drop_empty=true to leave them out."
        )
    for table, rows in zip(tables, filled, strict=True):
        if not rows:
            raise ValueError(
                f"{table.name}: no example has a text. Check data.text_columns and the file."
            )
    findings.append(
        f"{part}: {empty} example{'s' if empty > 1 else ''} with empty text left out"
    )
    return [
        table.keep(rows) for table, rows in zip(tables, filled, strict=True)
    ], findings


def _opted_out(
    tables: Sequence[Table], late: LateOptOuts
) -> tuple[list[Table], list[Table]]:
    """The tables of what takes part, and those of what does not; `late` texts are still among the former.

    Raises:
        ValueError: of a table nothing takes part.
    """
    out = [
        {
            row
            for row in table.opted_out
            if not late.holds(table.texts[row], table.labels[row])
        }
        for table in tables
    ]
    for table, rows in zip(tables, out, strict=True):
        if len(rows) == len(table.texts):
            raise ValueError(
                f"{table.name}: all {len(rows)} examples have opted out (data.opt_out_column). Such a site "
                "takes no part: do not join. In a simulation take the column's entries away and name the "
                "client in personalisation.opt_out_clients."
            )
    taking_part = [
        table.keep([row for row in range(len(table.texts)) if row not in rows])
        if rows
        else table
        for table, rows in zip(tables, out, strict=True)
    ]
    return taking_part, [
        table.keep(sorted(rows)) for table, rows in zip(tables, out, strict=True)
    ]


def _label_names(
    settings: DataSettings,
    source: Source,
    train: Sequence[Table],
    test: Sequence[Table],
    opted_out: Sequence[Table],
) -> tuple[str, ...]:
    """Labels in the order of their numbers; every example carries one of them."""
    parts = {"train": train, "test": test, "opted out": opted_out}
    for part, tables in parts.items():
        _check_present(tables, part, settings.label_column)
    is_declared = settings.label_names is not None
    names = settings.label_names or _labels_in_training(train, source.site_names)
    for part, tables in parts.items():
        _check_known(tables, part, names, declared=is_declared)
    return names if is_declared else source.label_names or names


def _join(tables: Sequence[Table], names: Sequence[str]) -> LabelledTexts:
    number = {name: position for position, name in enumerate(names)}
    texts = [text for table in tables for text in table.texts if text is not None]
    labels = [
        number[label] for table in tables for label in table.labels if label is not None
    ]
    return LabelledTexts(texts, np.array(labels, dtype=np.int64))


def _rows(
    tables: Sequence[Table], is_wrong: Callable[[str | None], bool]
) -> list[tuple[str | None, str]]:
    """Label and place of every row whose label is wrong."""
    return [
        (label, table.place(row))
        for table in tables
        for row, label in enumerate(table.labels)
        if is_wrong(label)
    ]


def _check_declared(names: Sequence[str]) -> None:
    """Raise ValueError if `data.label_names` repeats a name or holds fewer than two."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(
            f"data.label_names holds '{twice[0]}' more than once. Name each label once."
        )
    if len(names) < 2:
        raise ValueError(
            f"data.label_names holds {len(names)} label(s); a classifier needs at least 2. Name all labels."
        )


def _check_present(tables: Sequence[Table], part: str, column: str) -> None:
    """Raise ValueError, with how many and the first place, if an example has no label."""
    bare = _rows(tables, lambda label: label is None)
    if bare:
        total = sum(len(table.labels) for table in tables)
        raise ValueError(
            f"{part}: {len(bare)} of {total} examples have no label in '{column}', the first in "
            f"{bare[0][1]}. Label them or take them out; if the label stands elsewhere, set "
            "data.label_column."
        )


def _labels_in_training(
    tables: Sequence[Table], site_names: Sequence[str]
) -> tuple[str, ...]:
    """The labels of all tables, sorted; as numbers if all of them are whole numbers.

    Raises:
        ValueError: there are fewer than two, or a site lacks one that another has.
    """
    found = [{label for label in table.labels if label is not None} for table in tables]
    names = tuple(sorted(set[str]().union(*found)))
    if all(label.isdecimal() for label in names):
        names = tuple(sorted(names, key=int))
    if len(names) < 2:
        raise ValueError(
            f"train: '{names[0]}' is the only label in {tables[0].name}; a classifier needs at least 2. "
            "Check data.label_column, or set data.label_names=[...] if other sites hold the others."
        )
    for site, labels in zip(site_names, found if site_names else [], strict=True):
        missing = [name for name in names if name not in labels]
        if missing:
            raise ValueError(
                f"Label sets differ between sites: site '{site}' has no example of {', '.join(missing)}; "
                f"all sites together have {', '.join(names)}. Correct the labels, or, if this is how it "
                f"should be, set data.label_names=[{','.join(names)}]"
            )
    return names


def _check_known(
    tables: Sequence[Table], part: str, known: Sequence[str], *, declared: bool
) -> None:
    """Raise ValueError, with the first place, if an example carries a label that is not `known`.

    Args:
        declared: `known` is `data.label_names`; otherwise it is what training holds.
    """
    allowed = set(known)
    strange = _rows(tables, lambda label: label not in allowed)
    if not strange:
        return
    label, place = strange[0]
    if declared:
        rule, step = (
            "data.label_names does not hold",
            "Correct the label, or add it to data.label_names.",
        )
    else:
        rule = "training never saw"
        step = "Correct it, give training examples of it, or name all labels in data.label_names."
    raise ValueError(
        f"{part}: {len(strange)} example(s) carry a label that {rule}, the first '{label}' in {place}. "
        f"Known are: {', '.join(known)}.{nearest(str(label), known)} {step}"
    )


def _hold_out(
    labels: np.ndarray,
    sites: np.ndarray,
    site_names: Sequence[str],
    fraction: float,
    seed: int,
) -> np.ndarray:
    """(N,) bool, true for what goes to the test set: `fraction` of each site, evenly by label.

    Of every label a site has, at least one example stays in its training.

    Raises:
        ValueError: too few examples to hold out a single one.
    """
    from wardround.common.runtime import numpy_stream

    held = np.zeros(len(labels), dtype=bool)
    for site in range(int(sites[-1]) + 1):
        rows = np.flatnonzero(sites == site)
        total = min(int(len(rows) * fraction + 0.5), len(rows) - 1)
        # Named by the site: another site's file in the folder leaves this one's test texts alone.
        stream = numpy_stream(
            seed, f"hold_out.{site_names[site]}" if site_names else "hold_out"
        )
        held[pick_evenly(rows, labels, total, stream, keep=1)] = True
    if not held.any():
        raise ValueError(
            f"data.test_fraction is {fraction}, but {len(labels)} training examples are too few to hold out "
            "any, with one of each label left to learn from. Add examples, or set data.test_path=<file>."
        )
    return held


def _draw(
    labels: np.ndarray,
    sites: np.ndarray,
    total: int | None,
    seed: int,
    purpose: str,
    site_names: Sequence[str] = (),
) -> np.ndarray:
    """Rows of `total` examples in their old order: evenly by label, and by site within a label.

    Args:
        site_names: where given, `total` examples of each site, or all it has, whatever the others hold.

    Raises:
        ValueError: there are fewer, and no sites are named.
    """
    from wardround.common.runtime import numpy_stream

    if total is None:
        return np.arange(len(labels))
    if site_names:
        of_sites = [np.flatnonzero(sites == site) for site in range(len(site_names))]
        drawn = [
            pick_evenly(
                rows,
                labels,
                min(total, len(rows)),
                numpy_stream(seed, f"{purpose}.{name}"),
            )
            for name, rows in zip(site_names, of_sites, strict=True)
        ]
        return np.sort(np.concatenate(drawn))
    if total > len(labels):
        raise ValueError(
            f"data.{purpose} is {total}, but there are only {len(labels)} examples. "
            f"Lower it, or set data.{purpose}=null to use all."
        )
    stream = numpy_stream(seed, purpose)
    drawn = [
        pick_evenly(np.flatnonzero(labels == label), sites, int(size), stream)
        for label, size in enumerate(shares_of(np.bincount(labels), total))
    ]
    return np.sort(np.concatenate(drawn))


def numbered_by_name(labels: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Class numbers in the order of the labels' names, whatever order a run gives them.

    Which texts are held out must not depend on that order, for a server chooses it: two plans with two orders
    would train on texts that differ by a few.

    Args:
        labels: (N,) int64, positions in `names`.

    Returns:
        (N,) int64, from 0.
    """
    order = sorted(range(len(names)), key=lambda at: _place_of(names[at]))
    ranks = np.empty(len(names), dtype=np.int64)
    ranks[order] = np.arange(len(names))
    numbers: np.ndarray = ranks[labels]
    return numbers


def _place_of(name: str) -> tuple[bool, int, str]:
    """Sorts names of digits by their number, before the others; independent of the other names."""
    is_number = name.isdecimal()
    return not is_number, int(name) if is_number else 0, name


def pick_evenly(
    rows: np.ndarray,
    kinds: np.ndarray,
    total: int,
    stream: np.random.Generator,
    keep: int = 0,
) -> np.ndarray:
    """`total` of these rows, drawn evenly by their kind, `keep` of each kind left behind.

    Args:
        kinds: (N,) int64, by row.
    """
    shares = shares_of(np.bincount(kinds[rows]), total, keep)
    drawn = [
        stream.permutation(rows[kinds[rows] == kind])[:size]
        for kind, size in enumerate(shares)
    ]
    return np.concatenate([rows[:0], *drawn])


def shares_of(counts: np.ndarray, total: int, keep: int = 0) -> np.ndarray:
    """Deal `total` in proportion to `counts` by largest remainder, leaving `keep` of each behind.

    Whole numbers within one of `total * counts / sum(counts)`; ties go to the lower position.
    """
    shares, remainders = np.divmod(counts * total, max(int(counts.sum()), 1))
    left = total - int(shares.sum())
    by_remainder = np.argsort(-remainders, kind="stable")
    growing = by_remainder[shares[by_remainder] + 1 + keep <= counts[by_remainder]][
        :left
    ]
    shares[growing] += 1
    return shares


def _remarks(
    train: LabelledTexts, test: LabelledTexts, names: Sequence[str]
) -> list[str]:
    """What is odd about the parts together, yet no error."""
    remarks = []
    seen = set(train.labels.tolist())
    unseen = [name for number, name in enumerate(names) if number not in seen]
    if unseen:
        remarks.append(
            f"train: no example of {len(unseen)} of {len(names)} labels: {', '.join(unseen)}"
        )
    known = set(train.texts)
    repeated = sum(text in known for text in test.texts)
    if repeated:
        remarks.append(
            f"test: {repeated} of {len(test.texts)} texts also stand in train, word for word"
        )
    return remarks
