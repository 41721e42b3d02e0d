"""Tokenised texts, kept by a process between messages."""

from __future__ import annotations

from wardround.common.data.dataset import read_texts
from wardround.common.data.opt_outs import NO_LATE_OPT_OUTS, LateOptOuts
from wardround.common.data.texts import PARTS, TextData, TextsAndTargets
from wardround.common.data.token_cache import cache_folder
from wardround.common.data.tokens import TokenisedTexts, tokenise
from wardround.common.pretrained import load_tokenizer
from wardround.common.settings.data import DataSettings
from wardround.common.settings.model import ModelSettings
from wardround.common.settings.tree import Settings
from wardround.common.tasks.table import task_of

Corpus = TextData[TokenisedTexts]
"""All texts of a run as token ids."""
_Key = tuple[DataSettings, ModelSettings, int, int, str | None, bool, LateOptOuts]
_MOST_CORPORA = 2
_corpora: dict[_Key, Corpus] = {}  # newest last


def _key(settings: Settings, site: str | None, late: LateOptOuts) -> _Key:
    of_each_site = settings.partition.name == "by_site"
    max_length = settings.train.max_length
    return (
        settings.data,
        settings.model,
        max_length,
        settings.seed,
        site,
        of_each_site,
        late,
    )


def _read(settings: Settings, site: str | None, late: LateOptOuts) -> Corpus:
    of_each_site = settings.partition.name == "by_site"
    texts = read_texts(
        task_of(settings),
        settings.data,
        settings.seed,
        site,
        of_each_site=of_each_site,
        late=late,
    )
    tokenizer = load_tokenizer(settings.model)
    cache = cache_folder(settings.data.token_cache)
    max_length = settings.train.max_length
    tokenised = {}
    for name in PARTS:
        part: TextsAndTargets = getattr(texts, name)
        tokenised[name] = tokenise(
            part.texts, part.targets, tokenizer, max_length, cache
        )
    return Corpus(**vars(texts) | tokenised)


def open_corpus(
    settings: Settings, site: str | None = None, late: LateOptOuts = NO_LATE_OPT_OUTS
) -> Corpus:
    """Read and tokenise the texts of the run, or of one site, once in each process.

    Args:
        late: texts that have opted out since a plan was approved.

    Raises:
        ValueError: something is wrong with the data.
    """
    key = _key(settings, site, late)
    found = _corpora.get(key) or _read(settings, site, late)
    _keep(key, found)
    return found


def keep_corpus(settings: Settings, corpus: Corpus, site: str | None = None) -> None:
    """Let `open_corpus` return this one; the corpus unused for longest is dropped."""
    _keep(_key(settings, site, NO_LATE_OPT_OUTS), corpus)


def _keep(key: _Key, corpus: Corpus) -> None:
    _corpora.pop(key, None)
    _corpora[key] = corpus
    while len(_corpora) > _MOST_CORPORA:
        del _corpora[next(iter(_corpora))]


def forget_corpora() -> None:
    """Drop all kept texts; they are read again when they are needed."""
    _corpora.clear()
