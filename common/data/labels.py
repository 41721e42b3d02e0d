"""Which labels there are, in which order, and whether every example carries one of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from common.data.tables import Table
from common.errors import nearest


def check_declared(names: Sequence[str] | None) -> None:
    """Raise ValueError if `data.label_names` repeats a name or holds fewer than two."""
    if names is None:
        return
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"data.label_names holds '{twice[0]}' more than once. Name each label once.")
    if len(names) < 2:
        raise ValueError(
            f"data.label_names holds {len(names)} label(s); a classifier needs at least 2. Name all labels."
        )


def check_present(tables: Sequence[Table], part: str, column: str) -> None:
    """Raise ValueError, with how many and the first place, if an example has no label."""
    bare = [table.place(row) for table in tables for row, label in enumerate(table.labels) if label is None]
    if bare:
        total = sum(len(table.labels) for table in tables)
        raise ValueError(
            f"{part}: {len(bare)} of {total} examples have no label in '{column}', the first in {bare[0]}. "
            "Label them or take them out; if the label stands elsewhere, set data.label_column."
        )


def labels_in_training(tables: Sequence[Table], site_names: Sequence[str]) -> tuple[str, ...]:
    """The labels of all tables, sorted; as numbers if all of them are whole numbers.

    Raises:
        ValueError: there are fewer than two, or a site lacks one that another has.
    """
    found = [{label for label in table.labels if label is not None} for table in tables]
    union: set[str] = set().union(*found)
    if all(label.isdecimal() for label in union):
        names = tuple(sorted(union, key=lambda label: (int(label), label)))
    else:
        names = tuple(sorted(union))
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


def check_known(tables: Sequence[Table], part: str, known: Sequence[str], *, declared: bool) -> None:
    """Raise ValueError, with the first place, if an example carries a label that is not `known`.

    Args:
        declared: `known` is `data.label_names`; otherwise it is what training holds.
    """
    allowed = set(known)
    strange = [
        (label, table.place(row))
        for table in tables
        for row, label in enumerate(table.labels)
        if label is not None and label not in allowed
    ]
    if not strange:
        return
    label, place = strange[0]
    rule, step = (
        ("data.label_names does not hold", "Correct the label, or add it to data.label_names.")
        if declared
        else (
            "training never saw",
            "Correct it, give training examples of it, or name all labels in data.label_names.",
        )
    )
    raise ValueError(
        f"{part}: {len(strange)} example(s) carry a label that {rule}, the first '{label}' in {place}. "
        f"Known are: {', '.join(known)}.{nearest(label, known)} {step}"
    )


def label_numbers(tables: Sequence[Table], names: Sequence[str]) -> np.ndarray:
    """(N,) int64: the position of each example's label in `names`, table after table."""
    number = {name: position for position, name in enumerate(names)}
    return np.array(
        [number[label] for table in tables for label in table.labels if label is not None], dtype=np.int64
    )
