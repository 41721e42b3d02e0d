"""Checks of the site's texts: readable, columns, labels, empty texts, lengths, enough of them.

Nothing here opens a connection; a test runs these checks with sockets forbidden.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from client.kit.findings import Finding, from_error
from client.kit.texts import SiteTexts
from common.data.read import Table
from common.errors import nearest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_TOKENISED = 2000  # texts, taken evenly from the file
_TOKENS_PER_WORD = 1.3
_MUCH_CUT = 0.2
_FEW_OF_A_LABEL = 2


def check_data(texts: SiteTexts) -> Finding:
    """The file can be read, whole."""
    if isinstance(texts.header, ValueError):
        return from_error("data", texts.header)
    if texts.missing:
        return Finding("data", "ok", f"{texts.path} can be read; its rows were not, for want of a column")
    if isinstance(texts.table, ValueError):
        return from_error("data", texts.table)
    return Finding("data", "ok", f"{texts.path}: {len(texts.table.texts)} examples")


def check_columns(texts: SiteTexts) -> Finding:
    """The columns of the site file are there."""
    if isinstance(texts.header, ValueError):
        return _skipped("columns")
    if texts.missing:
        name = texts.missing[0]
        if texts.other_form:
            said = f"{texts.path.name} has no column '{name}'; {texts.other_form}"
            return from_error("columns", ValueError(said))
        said = f"{texts.path.name} has no column '{name}'; it has: {', '.join(texts.header)}"
        step = f"Correct data.text_columns or data.label_column.{nearest(name, texts.header)}"
        return Finding("columns", "problem", said, step)
    columns = " + ".join(texts.site.text_columns)
    return Finding("columns", "ok", f"text is {columns}, label is {texts.site.label_column}")


def check_labels(texts: SiteTexts) -> Finding:
    """Every example has a label; how many there are of each."""
    if not _readable(texts):
        return _skipped("labels")
    assert isinstance(texts.table, Table)
    bare = [row for row, label in enumerate(texts.table.labels) if label is None]
    if bare:
        said = f"{len(bare)} examples have no label, the first in {texts.table.place(bare[0])}"
        return Finding("labels", "problem", said, "Label them or take them out.")
    counts = texts.label_counts
    said = ", ".join(f"{label} {count}" for label, count in counts.most_common(20))
    said += f" and {len(counts) - 20} more labels" if len(counts) > 20 else ""
    if len(counts) > max(20, len(texts.texts) // 2):
        return Finding(
            "labels", "problem", said, "Almost every example has its own: check data.label_column."
        )
    if len(counts) < 2:
        return Finding("labels", "warning", said, "One label teaches little: check data.label_column.")
    few = [label for label, count in counts.items() if count < _FEW_OF_A_LABEL]
    if few:
        return Finding("labels", "warning", said, f"Of {', '.join(few)} none can be held out for testing.")
    return Finding("labels", "ok", said)


def check_mapping(texts: SiteTexts) -> Finding:
    """Every label, under the name it gets here, is one of the consortium's."""
    if not _readable(texts):
        return _skipped("mapping")
    mapping, known = dict(texts.site.labels), texts.options.labels
    named = {own: mapping.get(own, own) for own in texts.label_counts}
    if known:
        strange = [own for own, name in named.items() if name not in known]
        if strange:
            said = f"not among the consortium's labels ({', '.join(known)}): {', '.join(strange)}"
            step = f'Map it: data.labels: {{"{strange[0]}": …}}.{nearest(named[strange[0]], known)}'
            return Finding("mapping", "problem", said, step)
    unused = [own for own in mapping if own not in texts.label_counts]
    if unused:
        said = f"data.labels maps labels that no example has: {', '.join(unused)}"
        return Finding("mapping", "warning", said, "Correct their spelling, or take them out.")
    said = ", ".join(own if own == name else f"{own} -> {name}" for own, name in sorted(named.items())[:20])
    if known:
        return Finding("mapping", "ok", said)
    kept = [own for own in named if own not in mapping and own not in mapping.values()]
    if mapping and kept:
        said = f"these keep their own name: {', '.join(kept)}"
    step = "Ask the coordinator for the labels and check again with --labels a,b,c."
    return Finding("mapping", "warning", f"{said}; not compared with the consortium's labels", step)


def check_empty(texts: SiteTexts) -> Finding:
    """Every example has a text."""
    if not _readable(texts):
        return _skipped("empty")
    assert isinstance(texts.table, Table)
    empty = [row for row, text in enumerate(texts.table.texts) if not text or text.isspace()]
    if not empty:
        return Finding("empty", "ok", "every example has a text")
    said = f"{len(empty)} of {len(texts.table.texts)} examples have none, the first in "
    said += texts.table.place(empty[0])
    if texts.site.drop_empty:
        return Finding("empty", "warning", f"{said}; they are left out (data.drop_empty)")
    return Finding("empty", "problem", said, "Complete them, or set data.drop_empty: true.")


def check_lengths(texts: SiteTexts) -> Finding:
    """How many texts are longer than the model is given; counted with its own tokenizer if that is here."""
    if not _readable(texts) or not texts.texts:
        return _skipped("lengths")
    step = max(1, len(texts.texts) // _TOKENISED)
    sample, limit = texts.texts[::step][:_TOKENISED], texts.options.max_length
    tokenizer = _tokenizer(texts)
    if tokenizer is None:
        lengths = np.array([len(text.split()) * _TOKENS_PER_WORD for text in sample])
        how = f"estimated from words; no tokenizer here, {len(sample)} texts looked at"
    else:
        lengths = np.array([len(ids) for ids in tokenizer(sample, verbose=False)["input_ids"]])
        how = f"{len(sample)} texts tokenised"
    cut = float(np.mean(lengths > limit))
    said = f"{cut:.0%} of the texts are longer than {limit} tokens and are cut; half have at most "
    said += f"{int(np.median(lengths))}, the longest {int(lengths.max())} ({how})"
    if cut > _MUCH_CUT:
        return Finding("lengths", "warning", said, "Tell the coordinator: train.max_length may be too low.")
    return Finding("lengths", "ok" if tokenizer is not None else "warning", said)


def _tokenizer(texts: SiteTexts) -> PreTrainedTokenizerBase | None:
    """The model's tokenizer if it is on this machine; nothing is fetched."""
    name = texts.site.model or texts.options.model
    if name is None:
        return None
    from transformers import AutoTokenizer

    from common.pretrained import quietly

    try:
        with quietly():
            found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                str(name), local_files_only=True, trust_remote_code=False
            )
    except (OSError, ValueError, KeyError):  # the finding `model` says why
        return None
    return found


def check_batch(texts: SiteTexts) -> Finding:
    """Enough examples for one batch."""
    if not _readable(texts):
        return _skipped("batch")
    number, size = len(texts.texts), texts.options.batch_size
    if number < 2:
        return Finding(
            "batch", "problem", f"{number} example(s)", "A site needs one to train on, one to test on."
        )
    if number < size:
        step = "It works, with short batches; the site's weight in the mean is small."
        return Finding("batch", "warning", f"{number} examples, less than one batch of {size}", step)
    return Finding("batch", "ok", f"{number} examples, {number // size} batches of {size}")


def _readable(texts: SiteTexts) -> bool:
    return isinstance(texts.header, list) and not texts.missing and isinstance(texts.table, Table)


def _skipped(check: str) -> Finding:
    return Finding(
        check, "warning", "not checked: the file could not be read", "See the findings above first."
    )
