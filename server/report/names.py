"""Names and lists as readers see them."""

from __future__ import annotations

from collections.abc import Iterable

DISPLAY_NAMES = {
    "bert": "BERT",
    "albert": "ALBERT",
    "distilbert": "DistilBERT",
    "minilm": "MiniLM",
    "imdb": "IMDB",
    "yelp_full": "Yelp-Full",
    "ag_news": "AG News",
    "bbc_news": "BBC News",
    "spooky_author": "Spooky Author",
}


def display_name(label: str) -> str:
    """Return the name of a model or data set for readers."""
    return DISPLAY_NAMES.get(label, label)


def joined(items: Iterable[object]) -> str:
    """Return `a, b and c`."""
    texts = [str(item) for item in items]
    if len(texts) < 2:
        return "".join(texts)
    return f"{', '.join(texts[:-1])} and {texts[-1]}"
