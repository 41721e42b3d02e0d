"""The labels of a checkpoint's own classifier: their names, and the run's order of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from wardround.common.words import label_name, quoted

_NO_NAME = re.compile(r"LABEL_\d+")
_MOST_SHOWN = 10


def names_in_config(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the label names in a `config.json`, in the order of the outputs.

    Empty if there are none: transformers writes LABEL_0, LABEL_1 and so on if nobody named them.
    """
    found = config.get("id2label")
    if not isinstance(found, dict):
        return ()
    try:
        numbers = sorted(found, key=int)
    except ValueError:
        return ()
    names = tuple(str(found[number]) for number in numbers)
    return () if all(map(_NO_NAME.fullmatch, names)) else names


def order_of(own: Sequence[str], label_names: Sequence[str]) -> tuple[int, ...] | None:
    """Return for each label of the run the output with its name; None if a name has no partner.

    Names are compared in one spelling, see `label_name`, without capitals if that leaves them
    distinct.
    """
    for form in (label_name, _without_capitals):
        places = {form(name): place for place, name in enumerate(own)}
        wanted = [form(name) for name in label_names]
        if len(places) == len(own) and set(places) == set(wanted):
            return tuple(places[name] for name in wanted)
    return None


def _without_capitals(name: str) -> str:
    return label_name(label_name(name).casefold())


def check_names(own: Sequence[str], label_names: Sequence[str]) -> None:
    """Refuse a classifier for as many labels with other names. Raises ValueError."""
    if not own or len(own) != len(label_names) or order_of(own, label_names):
        return
    raise ValueError(
        f"its classifier has the labels {_listed(own)}, and the run has {_listed(label_names)}. "
        "If they mean the same, write the names of the run into id2label of its config.json. If "
        "they do not, set model.head=new for a new classifier."
    )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(map(quoted, names[:_MOST_SHOWN]))
    more = len(names) - _MOST_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown
