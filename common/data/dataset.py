"""A data set from its source to its parts: read, checked, numbered, held out, drawn.

Messages name files and labels: they are for the person at this machine and must not cross the
wire.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from wardround.common.data.labels import (
    check_declared,
    find_label_names,
    numbered_by_name,
)
from wardround.common.data.opt_outs import (
    NO_LATE_OPT_OUTS,
    LateOptOuts,
    separate_opt_outs,
)
from wardround.common.data.sampling import draw, hold_out
from wardround.common.data.sources.readers import read_source
from wardround.common.data.sources.source import Source
from wardround.common.data.tables import Table
from wardround.common.data.texts import LabelledTexts, TextData
from wardround.common.settings.data import DataSettings


@dataclass(frozen=True)
class _Part:
    """Examples, and the sites that they belong to."""

    examples: LabelledTexts
    sites: np.ndarray
    """(N,) int64, number of each example's site."""

    def take(self, rows: np.ndarray) -> _Part:
        return _Part(self.examples.take(rows), self.sites[rows])


def read_texts(
    settings: DataSettings,
    seed: int,
    site: str | None = None,
    *,
    of_each_site: bool = False,
    late: LateOptOuts = NO_LATE_OPT_OUTS,
) -> TextData[LabelledTexts]:
    """Read a data set, hold out a test set if it has none, and draw as many examples as asked.

    The same settings, files and seed give the same examples in the same order. The held-out
    texts do not depend on `train_examples`, and a smaller draw is part of a larger one. Texts
    that have opted out change nothing in the other parts.

    Args:
        site: name of the one site that the file belongs to. Its held-out texts are the same as
            those that a folder with the files of all sites would hold out and draw for it, with
            `of_each_site`.
        of_each_site: draw `train_examples`, and `test_examples` if sites hold out their own,
            from every site separately; a site that has fewer gives all. With `site`, always.
        late: texts that are in the draws, and are left out of all parts afterwards.

    Raises:
        ValueError: something is wrong with the data; names it, its place, the rule and the next
            step.
    """
    if settings.label_names is not None:
        check_declared(settings.label_names)
    try:
        source = _rename(read_source(settings), site, dict(settings.label_map))
    except OSError as error:
        raise ValueError(
            f"{error.filename} cannot be read: {error.strerror}. Check its permissions."
        ) from None
    tables, findings = _drop_empty(source.train, "train", settings.drop_empty)
    test_tables, test_findings = _drop_empty(source.test, "test", settings.drop_empty)
    tables, out_tables = separate_opt_outs(tables, late)
    tables_of_parts = {"train": tables, "test": test_tables, "opted out": out_tables}
    names = find_label_names(
        settings.label_names, tables_of_parts, source.site_names, settings.label_column
    )
    if settings.label_names is None and source.label_names is not None:
        names = source.label_names

    train = _join(tables, names)
    test = _join(test_tables, names)
    is_held_out = not source.test
    if is_held_out:
        held = hold_out(
            numbered_by_name(train.examples.labels, names),
            train.sites,
            source.site_names,
            settings.test_fraction,
            seed if settings.split_seed is None else settings.split_seed,
        )
        test = train.take(np.flatnonzero(held))
        train = train.take(np.flatnonzero(~held))
    train = train.take(late.staying(train.examples, names))
    test = test.take(late.staying(test.examples, names))
    drawn_sites = source.site_names if of_each_site or site is not None else ()
    train = train.take(
        draw(
            train.examples.labels,
            train.sites,
            settings.train_examples,
            seed,
            "train_examples",
            drawn_sites,
        )
    )
    test_sites = drawn_sites if is_held_out else ()
    test = test.take(
        draw(
            test.examples.labels,
            test.sites if test_sites else np.zeros_like(test.sites),
            settings.test_examples,
            seed,
            "test_examples",
            test_sites,
        )
    )

    sizes = np.bincount(train.sites, minlength=len(tables)).tolist()
    test_sizes = np.bincount(test.sites, minlength=len(tables)).tolist()
    has_sites = bool(source.site_names)
    return TextData(
        train=train.examples.cut(settings.max_words),
        test=test.examples.cut(settings.max_words),
        label_names=names,
        site_sizes=tuple(zip(source.site_names, sizes, strict=True))
        if has_sites
        else (),
        test_sizes=tuple(test_sizes) if has_sites and is_held_out else (),
        opted_out=_join(out_tables, names).examples.cut(settings.max_words),
        opted_out_sizes=tuple(len(table.texts) for table in out_tables)
        if has_sites
        else (),
        findings=(
            *findings,
            *test_findings,
            *_remarks(train.examples, test.examples, names),
        ),
    )


def _rename(source: Source, site: str | None, label_map: dict[str, str]) -> Source:
    """Return the source under its site's name, its labels under the names all sites share."""

    def renamed(table: Table) -> Table:
        labels = [label and label_map.get(label, label) for label in table.labels]
        return replace(table, labels=labels)

    if label_map:
        train = tuple(map(renamed, source.train))
        source = replace(source, train=train, test=tuple(map(renamed, source.test)))
    return source if site is None else replace(source, site_names=(site,))


def _drop_empty(
    tables: Sequence[Table], part: str, drop: bool
) -> tuple[list[Table], list[str]]:
    """Return the tables without rows that have no text, and remarks for a person.

    Raises:
        ValueError: there are such rows and they are not to be dropped, or a table has no text.
    """
    findings = [finding for table in tables for finding in table.findings]
    filled = [[row for row, text in enumerate(table.texts) if text] for table in tables]
    total = sum(len(table.texts) for table in tables)
    num_empty = total - sum(map(len, filled))
    if not num_empty:
        return list(tables), findings
    if not drop:
        first = next(
            table.place(row)
            for table in tables
            for row, text in enumerate(table.texts)
            if not text
        )
        raise ValueError(
            f"{part}: {num_empty} of {total} examples have an empty or missing text, the "
            f"first in {first}. Complete them, or set data.drop_empty=true to leave them "
            "out."
        )
    for table, rows in zip(tables, filled, strict=True):
        if not rows:
            raise ValueError(
                f"{table.name}: no example has a text. Check data.text_columns and the "
                "file."
            )
    examples = "examples" if num_empty > 1 else "example"
    findings.append(f"{part}: {num_empty} {examples} with empty text left out")
    kept = [table.keep(rows) for table, rows in zip(tables, filled, strict=True)]
    return kept, findings


def _join(tables: Sequence[Table], names: Sequence[str]) -> _Part:
    """Return the examples of all tables, with the number of each one's table as its site."""
    number_of = {name: number for number, name in enumerate(names)}
    texts = [text for table in tables for text in table.texts if text is not None]
    labels = [
        number_of[label]
        for table in tables
        for label in table.labels
        if label is not None
    ]
    sizes = [len(table.texts) for table in tables]
    sites = np.repeat(np.arange(len(tables)), sizes)
    return _Part(LabelledTexts(texts, np.array(labels, dtype=np.int64)), sites)


def _remarks(
    train: LabelledTexts, test: LabelledTexts, names: Sequence[str]
) -> list[str]:
    """Return remarks about what is unusual in the parts, but no error."""
    remarks = []
    seen = set(train.labels.tolist())
    unseen = [name for number, name in enumerate(names) if number not in seen]
    if unseen:
        remarks.append(
            f"train: no example of {len(unseen)} of {len(names)} labels: "
            f"{', '.join(unseen)}"
        )
    known = set(train.texts)
    num_repeated = sum(text in known for text in test.texts)
    if num_repeated:
        remarks.append(
            f"test: {num_repeated} of {len(test.texts)} texts are also in train, word "
            "for word"
        )
    return remarks
