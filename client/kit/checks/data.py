"""Checks of the site's texts and labels. They open no connection."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wardround.client.kit.checks.findings import (
    SEE_ABOVE,
    Finding,
    NotChecked,
    listed,
    ok,
    problem,
    warning,
)
from wardround.client.kit.checks.subject import Subject
from wardround.common.data.sampling import hold_out
from wardround.common.data.tokens import token_ids
from wardround.common.errors import MissingColumn
from wardround.common.explain import nearest
from wardround.common.pretrained import in_cache, read_tokenizer
from wardround.common.tasks.label_names import alike
from wardround.common.words import quoted, shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MOST_TOKENISED = 2000
"""Texts, taken evenly from the file."""
_TOKENS_PER_WORD = 1.3
_MUCH_CUT = 0.2
_USUAL_LENGTH = 128
"""Tokens of a text, if the site does not know the run's `train.max_length`."""
_HELD_OUT = 0.2
"""The usual `data.test_fraction`; a plan may name another."""
_MOST_SHOWN = 20


def data(on: Subject) -> Finding:
    """Check that the whole file can be read."""
    path = on.site.data_path
    if isinstance(on.table, MissingColumn):
        return ok(f"{path} can be read, but a column is missing")
    if isinstance(on.table, ValueError):
        raise on.table
    message = f"{path}: {len(on.table.texts)} examples"
    num_opted_out = len(on.table.opted_out)
    if num_opted_out:
        message += f"; {num_opted_out} of them have opted out and take part in no round"
    remarks = "; ".join((*on.table.findings, *alike(sorted(on.label_counts))))
    if remarks:
        return warning(f"{message}; {remarks}", "Correct them in the file.")
    return ok(message)


def columns(on: Subject) -> Finding:
    """Check that the columns of site.yaml are in the file."""
    if isinstance(on.table, MissingColumn):
        raise on.table
    on.rows  # noqa: B018 - raises NotChecked if there are none
    texts = " + ".join(map(shown, on.site.text_columns))
    return ok(f"text is {texts}, label is {shown(on.site.label_column)}")


def labels(on: Subject) -> Finding:
    """Count the examples of each label; every example must have one."""
    unlabelled = [row for row, label in enumerate(on.rows.targets) if label is None]
    if unlabelled:
        first = on.rows.place(unlabelled[0])
        return problem(
            f"{len(unlabelled)} examples have no label, the first in {first}",
            "Label them or take them out.",
        )
    counts = on.label_counts
    most_common = counts.most_common(_MOST_SHOWN)
    message = ", ".join(f"{shown(label)} {count}" for label, count in most_common)
    if len(counts) > _MOST_SHOWN:
        message += f" and {len(counts) - _MOST_SHOWN} more labels"
    if len(counts) > max(_MOST_SHOWN, len(on.texts) // 2):
        return problem(
            message, "Almost every example has its own label: check data.label_column."
        )
    if len(counts) < 2:
        return warning(
            message,
            "There is nothing to learn from one label: check data.label_column.",
        )
    single = [label for label, count in counts.items() if count < 2]
    if single:
        return warning(
            message,
            f"Only one example each, so the test part gets none: {listed(single)}",
        )
    return ok(message)


def mapping(on: Subject) -> Finding:
    """Check that every label, after data.labels, is one of the consortium's."""
    mapped = dict(on.site.labels)
    known = on.options.labels
    named = {own: mapped.get(own, own) for own in on.label_counts}
    strange = [own for own, name in named.items() if known and name not in known]
    if strange:
        first = strange[0]
        return problem(
            f"not among the consortium's labels ({listed(known)}): {listed(strange)}",
            f"Map it: data.labels: {{{quoted(first)}: …}}.{nearest(named[first], known)}",
        )
    unused = [own for own in mapped if own not in named]
    if unused:
        return warning(
            f"data.labels maps labels that no example has: {listed(unused)}",
            "Correct their spelling, or take them out.",
        )
    pairs = [
        shown(own) if own == name else f"{shown(own)} -> {shown(name)}"
        for own, name in sorted(named.items())[:_MOST_SHOWN]
    ]
    message = ", ".join(pairs)
    if known:
        return ok(message)
    kept = [own for own in named if own not in mapped and own not in mapped.values()]
    if mapped and kept:
        message = f"these keep their own name: {listed(kept)}"
    return warning(
        f"{message}; not compared with the consortium's labels",
        "Ask the coordinator for the labels and check again with --labels a,b,c.",
    )


def empty(on: Subject) -> Finding:
    """Check that every example has a text."""
    rows = [row for row, text in enumerate(on.rows.texts) if not text]
    if not rows:
        return ok("every example has a text")
    message = (
        f"{len(rows)} of {len(on.rows.texts)} examples have no text, the first in "
        f"{on.rows.place(rows[0])}"
    )
    if on.site.drop_empty:
        return warning(f"{message}; they are left out (data.drop_empty)")
    return problem(message, "Complete them, or set data.drop_empty: true.")


def lengths(on: Subject) -> Finding:
    """Measure how many texts are longer than data.max_length.

    It counts tokens of the model's tokenizer if that is on this machine, and estimates
    them from words otherwise.
    """
    if not on.texts:
        raise NotChecked("no example has a text", SEE_ABOVE)
    limit = on.options.max_length or _USUAL_LENGTH
    step = max(1, len(on.texts) // _MOST_TOKENISED)
    sample = on.texts[::step][:_MOST_TOKENISED]
    tokenizer = _tokenizer(on)
    if tokenizer is None:
        counts = np.array([len(text.split()) * _TOKENS_PER_WORD for text in sample])
        source = f"estimated from the words of {len(sample)} texts; no tokenizer here"
    else:
        counts = np.array([len(ids) for ids in token_ids(sample, tokenizer)])
        source = f"{len(sample)} texts tokenised"
    share = float(np.mean(counts > limit))
    message = (
        f"{share:.0%} of the texts are longer than {limit} tokens and are cut; "
        f"median {int(np.median(counts))} tokens, longest {int(counts.max())} ({source})"
    )
    if share > _MUCH_CUT:
        return warning(
            message, "Tell the coordinator: train.max_length may be too low."
        )
    return warning(message) if tokenizer is None else ok(message)


def _tokenizer(on: Subject) -> PreTrainedTokenizerBase | None:
    """Load the model's tokenizer if it is on this machine; fetch nothing."""
    name = on.site.model or on.options.model
    if name is None:
        return None
    folder = Path(name) if Path(name).is_dir() else in_cache(str(name))
    if folder is None:
        return None
    try:
        return read_tokenizer(folder)
    except (OSError, ValueError):  # the check `model` reports it
        return None


def batch(on: Subject) -> Finding:
    """Check that there are enough examples for one batch."""
    number = len(on.texts)
    size = on.options.batch_size
    if number < 2:
        return problem(
            f"{number} example(s)",
            "A site needs at least one to train on and one to test on.",
        )
    if not _holds_out(on):
        return problem(
            f"{number} examples, of which none can be held out: each label keeps one for "
            "training",
            "Add examples of the labels that have few.",
        )
    if number < size:
        return warning(
            f"{number} examples, less than one batch of {size}",
            "It works, with short batches; the site's weight in the mean is small.",
        )
    return ok(f"{number} examples, {number // size} batches of {size}")


def _holds_out(on: Subject) -> bool:
    """Return whether a run holds out a text of this site, if it holds out the usual share."""
    numbers = {label: number for number, label in enumerate(sorted(on.label_counts))}
    rows = zip(on.rows.texts, on.rows.targets, strict=True)
    kinds = np.array([numbers[label] for text, label in rows if text and label])
    if len(kinds) == 0:  # the check `labels` reports it
        return True
    sites = np.zeros_like(kinds)
    try:
        hold_out(kinds, sites, (on.site.name,), _HELD_OUT, seed=0)
    except ValueError:
        return False
    return True
