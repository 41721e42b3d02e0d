"""Labels as a source holds them: reading them, their order, and the check of every example."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from wardround.common.explain import nearest
from wardround.common.tasks.targets import (
    TargetColumns,
    TargetTable,
    describe,
    without_fraction,
)
from wardround.common.words import code_points, label_name, look_of


def label_column(
    name: str, label_map: Mapping[str, str] | None = None
) -> TargetColumns:
    """Return a column of labels.

    Args:
        label_map: names that replace labels of the column.
    """
    return TargetColumns(
        "data.label_column", (name,), partial(_parse, label_map or {}), holds_class=True
    )


def _parse(
    label_map: Mapping[str, str], values: Mapping[str, Any], place: str
) -> str | None:
    ((column, value),) = values.items()
    label = as_label(value, column, place)
    return label and label_map.get(label, label)


def as_label(value: Any, column: str, place: str) -> str | None:
    """Return the value of a label column as a name; None if it is missing.

    Raises:
        ValueError: it is neither a text, a truth value nor a whole number.
    """
    value = without_fraction(value)
    if value is None:
        return None
    if isinstance(value, str | int):
        return label_name(str(value)) or None
    found, _ = describe(value)
    raise ValueError(
        f"{place}: column '{column}' holds {found}; a label is a name or a whole number. "
        "Write it as text, or name another column in data.label_column."
    )


def find_label_names(
    declared: Sequence[str] | None,
    parts: Mapping[str, Sequence[TargetTable]],
    site_names: Sequence[str],
    column: str,
) -> tuple[str, ...]:
    """Return the labels in the order of their numbers.

    Args:
        declared: `data.label_names`; None finds them in the part `train`.
        parts: tables by the name of their part, `train` among them.
        column: column of the labels, for messages.

    Raises:
        ValueError: an example has no label, or one that is not among the names.
    """
    for part, tables in parts.items():
        _check_present(tables, part, column)
    names = declared or _labels_in_training(parts["train"], site_names)
    for part, tables in parts.items():
        _check_known(tables, part, names, is_declared=declared is not None)
    return tuple(names)


def check_declared(names: Sequence[str]) -> None:
    """Raise ValueError if `data.label_names` repeats a name or holds fewer than two."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(
            f"data.label_names holds '{twice[0]}' more than once. Name each label once."
        )
    if len(names) < 2:
        raise ValueError(
            f"data.label_names holds {len(names)} label(s); a classifier needs at least "
            "2. Name all labels."
        )


def alike(names: Sequence[str]) -> list[str]:
    """Return a remark for every group of labels that people may take for the same."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(look_of(name), []).append(name)
    return [
        f"labels look the same or are the same number: {' and '.join(map(code_points, group))}. "
        "If they are one label, write it in one way"
        for group in groups.values()
        if len(group) > 1
    ]


def numbered_by_name(labels: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Return class numbers in the sorted order of the label names, (N,) int64 from 0.

    A server chooses the order of the names, and the held-out texts must not depend on it:
    otherwise two plans would train on texts that differ by a few.

    Args:
        labels: (N,) int64, positions in `names`.
    """
    order = sorted(range(len(names)), key=lambda position: _sort_key(names[position]))
    ranks = np.empty(len(names), dtype=np.int64)
    ranks[order] = np.arange(len(names))
    numbers: np.ndarray = ranks[labels]
    return numbers


def _sort_key(name: str) -> tuple[bool, int, str]:
    """Sort names of digits by their number, before other names."""
    is_number = name.isdecimal()
    number = int(name) if is_number else 0
    return not is_number, number, name


def _labels_in_training(
    tables: Sequence[TargetTable], site_names: Sequence[str]
) -> tuple[str, ...]:
    """Return the labels of all tables, sorted; by number if all are whole numbers.

    Raises:
        ValueError: there are fewer than two, or a site lacks one that another has.
    """
    found = [
        {label for label in table.targets if label is not None} for table in tables
    ]
    names = sorted(set[str]().union(*found))
    if all(label.isdecimal() for label in names):
        names.sort(key=int)
    if len(names) < 2:
        raise ValueError(
            f"train: '{names[0]}' is the only label in {tables[0].name}; a classifier "
            "needs at least 2. Check data.label_column, or set data.label_names=[...] "
            "if other sites have the others."
        )
    for site, labels in zip(site_names, found if site_names else [], strict=True):
        missing = [name for name in names if name not in labels]
        if missing:
            raise ValueError(
                f"Label sets differ between sites: site '{site}' has no example of "
                f"{', '.join(missing)}; all sites together have {', '.join(names)}. "
                "Correct the labels. If they are right, set "
                f"data.label_names=[{','.join(names)}]"
            )
    return tuple(names)


def _wrong_rows(
    tables: Sequence[TargetTable], is_wrong: Callable[[str | None], bool]
) -> list[tuple[str | None, str]]:
    """Return label and place of every row with a wrong label."""
    return [
        (label, table.place(row))
        for table in tables
        for row, label in enumerate(table.targets)
        if is_wrong(label)
    ]


def _check_present(tables: Sequence[TargetTable], part: str, column: str) -> None:
    """Raise ValueError, with the number and the first place, if an example has no label."""
    wrong = _wrong_rows(tables, lambda label: label is None)
    if wrong:
        total = sum(len(table.targets) for table in tables)
        _, place = wrong[0]
        raise ValueError(
            f"{part}: {len(wrong)} of {total} examples have no label in '{column}', the "
            f"first in {place}. Label them or take them out; if the label is in another "
            "column, set data.label_column."
        )


def _check_known(
    tables: Sequence[TargetTable], part: str, names: Sequence[str], *, is_declared: bool
) -> None:
    """Raise ValueError, with the first place, if a label is not among the names.

    Args:
        is_declared: the names are `data.label_names`; otherwise those found in training.
    """
    known = set(names)
    wrong = _wrong_rows(tables, lambda label: label not in known)
    if not wrong:
        return
    label, place = wrong[0]
    if is_declared:
        rule = "data.label_names does not hold"
        step = "Correct the label, or add it to data.label_names."
    else:
        rule = "training never saw"
        step = (
            "Correct it, give training examples of it, or name all labels in "
            "data.label_names."
        )
    raise ValueError(
        f"{part}: {len(wrong)} example(s) carry a label that {rule}, the first "
        f"'{label}' in {place}. Known are: {', '.join(names)}."
        f"{nearest(str(label), names)} {step}"
    )
