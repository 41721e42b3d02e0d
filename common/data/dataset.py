"""A data set from its source to its parts: read, checked, encoded, held out, drawn.

Messages name files and targets: they are for the person at this machine and must not cross the
wire.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wardround.common.data.opt_outs import (
    NO_LATE_OPT_OUTS,
    LateOptOuts,
    separate_opt_outs,
)
from wardround.common.data.sampling import draw, hold_out
from wardround.common.data.sources.readers import read_source
from wardround.common.data.tables import Table
from wardround.common.data.texts import TextData, TextsAndTargets
from wardround.common.settings.data import DataSettings
from wardround.common.tasks.task import Task


@dataclass(frozen=True)
class _Part:
    """Examples, and the sites that they belong to."""

    examples: TextsAndTargets
    sites: np.ndarray
    """(N,) int64, number of each example's site."""
    stays: np.ndarray
    """(N,) bool, false for a text that has opted out late."""

    def take(self, rows: np.ndarray) -> _Part:
        return _Part(self.examples.take(rows), self.sites[rows], self.stays[rows])

    def staying(self) -> _Part:
        return self.take(np.flatnonzero(self.stays))


def read_texts(
    task: Task,
    settings: DataSettings,
    seed: int,
    site: str | None = None,
    *,
    of_each_site: bool = False,
    late: LateOptOuts = NO_LATE_OPT_OUTS,
) -> TextData[TextsAndTargets]:
    """Read a data set, hold out a test set if it has none, and draw as many examples as asked.

    The same settings, files and seed give the same examples in the same order. The held-out
    texts do not depend on `train_examples`, and a smaller draw is part of a larger one. Texts
    that have opted out change nothing in the other parts.

    Args:
        task: gives the targets, and the groups by which texts are drawn.
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
    target = task.target_columns(settings)
    try:
        source = read_source(settings, target)
    except OSError as error:
        raise ValueError(
            f"{error.filename} cannot be read: {error.strerror}. Check its permissions."
        ) from None
    site_names = source.site_names if site is None else (site,)
    tables, findings = _drop_empty(source.train, "train", settings.drop_empty)
    test_tables, test_findings = _drop_empty(source.test, "test", settings.drop_empty)
    tables, out_tables = separate_opt_outs(tables, late)
    tables_of_parts = {"train": tables, "test": test_tables, "opted out": out_tables}
    names = task.output_names(settings, tables_of_parts, site_names, source.label_names)

    train = _join(tables, task, names, late)
    test = _join(test_tables, task, names, late)
    is_held_out = not source.test
    if is_held_out:
        held = hold_out(
            task.strata_by_name(train.examples.targets, names),
            train.sites,
            site_names,
            settings.test_fraction,
            seed if settings.split_seed is None else settings.split_seed,
        )
        test = train.take(np.flatnonzero(held))
        train = train.take(np.flatnonzero(~held))
    train = train.staying()
    test = test.staying()
    drawn_sites = site_names if of_each_site or site is not None else ()
    train = train.take(
        draw(
            task.strata(train.examples.targets),
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
            task.strata(test.examples.targets),
            test.sites if test_sites else np.zeros_like(test.sites),
            settings.test_examples,
            seed,
            "test_examples",
            test_sites,
        )
    )

    sizes = np.bincount(train.sites, minlength=len(tables)).tolist()
    test_sizes = np.bincount(test.sites, minlength=len(tables)).tolist()
    has_sites = bool(site_names)
    opted_out = _join(out_tables, task, names, late)
    return TextData(
        train=train.examples.cut(settings.max_words),
        test=test.examples.cut(settings.max_words),
        label_names=names,
        site_sizes=tuple(zip(site_names, sizes, strict=True)) if has_sites else (),
        test_sizes=tuple(test_sizes) if has_sites and is_held_out else (),
        opted_out=opted_out.examples.cut(settings.max_words),
        opted_out_sizes=tuple(len(table.texts) for table in out_tables)
        if has_sites
        else (),
        findings=(
            *findings,
            *test_findings,
            *(
                f"train: {remark}"
                for remark in task.remarks(train.examples.targets, names)
            ),
            *_repeated(train.examples, test.examples),
        ),
    )


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


def _join(
    tables: Sequence[Table], task: Task, names: Sequence[str], late: LateOptOuts
) -> _Part:
    """Return the examples of all tables, with the number of each one's table as its site."""
    texts = [text for table in tables for text in table.texts if text is not None]
    targets = [target for table in tables for target in table.targets]
    stays = [
        not late.holds(text, target)
        for text, target in zip(texts, targets, strict=True)
    ]
    sizes = [len(table.texts) for table in tables]
    return _Part(
        TextsAndTargets(texts, task.encode(targets, names)),
        sites=np.repeat(np.arange(len(tables)), sizes),
        stays=np.array(stays, dtype=bool),
    )


def _repeated(train: TextsAndTargets, test: TextsAndTargets) -> list[str]:
    """Return a remark if test texts are in the training too."""
    known = set(train.texts)
    num_repeated = sum(text in known for text in test.texts)
    if not num_repeated:
        return []
    return [
        f"test: {num_repeated} of {len(test.texts)} texts are also in train, word for word"
    ]
