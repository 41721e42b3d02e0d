"""Twelve architectures of different families: the same answers everywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import architectures
from benchmarks.architectures import Trial, page, try_out
from wardround.common.model.padding import HIDES_PADDING


def of_bytes() -> Any:
    """A byte-level BPE without merges, as RoBERTa's and GPT-2's."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    marks = ("<pad>", "<unk>", "<s>", "</s>")
    signs = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {entry: number for number, entry in enumerate([*marks, *signs])}
    core = Tokenizer(models.BPE(vocab, [], unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.ByteLevel()
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        unk_token="<unk>",
        cls_token="<s>",
        sep_token="</s>",
        padding_side="left",
        model_max_length=64,
    )


def of_pieces() -> Any:
    """A tokenizer read from a model of sentencepiece."""
    from transformers import AutoTokenizer

    from tests.test_checkpoints import write_pieces

    folder = Path("pieces")
    folder.mkdir()
    write_pieces(folder / "spm.model")
    (folder / "config.json").write_text('{"model_type": "deberta-v2"}')
    return AutoTokenizer.from_pretrained(folder, model_max_length=64)


def of_signs() -> Any:
    """CANINE's own: a token for each sign."""
    from transformers import CanineTokenizer

    return CanineTokenizer(model_max_length=64)


FAMILIES: dict[str, Callable[[], Any] | None] = {
    "albert": None,
    "roberta": of_bytes,
    "deberta-v2": of_pieces,
    "fnet": None,  # without an attention mask
    "convbert": None,
    "nystromformer": None,
    "canine": of_signs,
    "llama": None,
    "gpt2": of_bytes,
    "opt": None,
    "bart": None,
    "t5": None,
}


@pytest.mark.parametrize("kind", FAMILIES)
def test_all_ways_to_an_answer_agree(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make = FAMILIES[kind]
    found = try_out(kind, make() if make else None)
    assert (found.outcome, found.reason) == ("equal", "")
    if found.padding != "-":
        assert (found.padding == "hidden") == (kind in HIDES_PADDING)


def test_the_page_has_a_row_for_each_result() -> None:
    trials = [
        Trial("bert", "equal", shift=0.0),
        Trial("fnet", "refused", "a | b\nc", shift=0.1),
    ]
    written = page(trials)
    assert "| `bert` | equal | hidden |  |" in written
    assert "| `fnet` | refused | visible | a / b c |" in written
    assert "1 equal, 1 refused" in written


def test_every_architecture_is_listed() -> None:
    listed = architectures.PAGE.read_text(encoding="utf-8")
    assert all(f"| `{kind}` |" in listed for kind in architectures.kinds())
