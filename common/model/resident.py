"""What one process keeps between messages: the tokenised texts, and one model in one flat buffer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from common.data.texts import read_texts
from common.data.token_cache import cache_folder
from common.data.tokens import TokenisedTexts, tokenise
from common.model.build import Classifier, build_classifier, load_tokenizer
from common.model.flat import Layout, flatten_model, move_model
from common.runtime import prepare, resolve_attention
from common.settings import DataSettings, ModelSettings, Settings

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Corpus:
    """All texts of a run as token ids."""

    train: TokenisedTexts
    test: TokenisedTexts
    label_names: tuple[str, ...]
    site_sizes: tuple[tuple[str, int], ...]
    test_sizes: tuple[int, ...]
    findings: tuple[str, ...]


@dataclass(frozen=True)
class Workplace:
    """The resident model. Its `flat` buffer is scratch space: load it before every use."""

    classifier: Classifier
    layout: Layout
    flat: Tensor  # (layout.size,) fp32 on `device`; the model's parameters are views of it
    device: torch.device

    def load(self, tensors: Tensor) -> None:
        """Make `tensors`, (layout.size,) fp32 on any device, the model's weights."""
        self.flat.copy_(tensors)


_Key = tuple[DataSettings, ModelSettings, int, int, str | None, bool]
_MOST_CORPORA = 2
_corpora: dict[_Key, Corpus] = {}  # newest last


def _key(settings: Settings, site: str | None) -> _Key:
    of_each_site = settings.partition.name == "by_site"
    return settings.data, settings.model, settings.train.max_length, settings.seed, site, of_each_site


def _read(settings: Settings, site: str | None) -> Corpus:
    of_each_site = settings.partition.name == "by_site"
    texts = read_texts(settings.data, settings.seed, site, of_each_site=of_each_site)
    tokenizer, cache = load_tokenizer(settings.model), cache_folder(settings.data.token_cache)
    train, test = (
        tokenise(part.texts, part.labels, tokenizer, settings.train.max_length, cache)
        for part in (texts.train, texts.test)
    )
    return Corpus(train, test, texts.label_names, texts.site_sizes, texts.test_sizes, texts.findings)


def open_corpus(settings: Settings, site: str | None = None) -> Corpus:
    """Read and tokenise the run's texts, or those of one site, once per process.

    Raises:
        ValueError: for bad data.
    """
    found = _corpora.get(_key(settings, site))
    keep_corpus(settings, found or _read(settings, site), site)
    return _corpora[_key(settings, site)]


def keep_corpus(settings: Settings, corpus: Corpus, site: str | None = None) -> None:
    """What `open_corpus` shall give from now on, in this process; the longest unused one is let go."""
    _corpora.pop(_key(settings, site), None)
    _corpora[_key(settings, site)] = corpus
    while len(_corpora) > _MOST_CORPORA:
        del _corpora[next(iter(_corpora))]


def forget_corpora() -> None:
    """Read all texts anew when they are needed next."""
    _corpora.clear()


_kept: tuple[tuple[object, ...], Workplace] | None = None


def open_workplace(settings: Settings, label_names: tuple[str, ...], *, fresh: bool = False) -> Workplace:
    """The resident model of this process; built if it is not there, or if `fresh` is asked for.

    A fresh one holds the initial weights; a resident one holds whatever was trained last.

    Raises:
        ValueError: the model or the device does not exist.
    """
    global _kept
    device = prepare(settings)
    attention = resolve_attention(settings, device)
    key = (settings.model, label_names, settings.seed, device, attention)
    if fresh or _kept is None or _kept[0] != key:
        _kept = None  # let go of the old model before the new one is built
        classifier = build_classifier(settings.model, label_names, settings.seed, attention)
        layout, flat = flatten_model(classifier.model, device)
        _kept = (key, Workplace(classifier, layout, flat, device))
    _require_new_head(settings, _kept[1].classifier)
    return _kept[1]


def _require_new_head(settings: Settings, classifier: Classifier) -> None:
    train = settings.train
    if not classifier.new_head and (train.head_learning_rate is not None or train.head_warmup_rounds):
        raise ValueError(
            f"train.head_learning_rate is {train.head_learning_rate} and train.head_warmup_rounds is "
            f"{train.head_warmup_rounds}, but '{settings.model.name}' brings its whole head, so that none of "
            "it is new. Set them to null and 0, or name a model without a trained head."
        )


def house_model(flat: Tensor) -> None:
    """Move the resident model into `flat`, (layout.size,) fp32 on its device; its weights are lost."""
    global _kept
    assert _kept is not None, "no model is resident"
    key, workplace = _kept
    if workplace.flat is not flat:
        move_model(workplace.classifier.model, workplace.layout, flat)
        _kept = (key, replace(workplace, flat=flat))
