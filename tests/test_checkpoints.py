"""Foreign checkpoints and tokenizers: fitted to the run, or refused before anything is trained."""

from __future__ import annotations

import csv
import json
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.architectures import tokenizer_of_words, write_texts
from tests.support.door import CommandResult, wardround
from tests.support.site_lab import look, make_site
from tests.support.tiny import model_at
from wardround.common import files, model_files
from wardround.common.checkpoint_labels import names_in_config, order_of
from wardround.common.data.tokens import token_ids, tokenise
from wardround.common.errors import ModelNotLoaded
from wardround.common.model.build import build_model
from wardround.common.pretrained import read_tokenizer
from wardround.common.tasks.label import LABEL

MARKS = ("<pad>", "<unk>", "<s>", "</s>", "<mask>")


def write(
    folder: Path, kind: str = "bert", tokenizer: Any = None, **fields: Any
) -> Path:
    """Write a tiny classifier with its tokenizer."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    tokenizer = tokenizer or tokenizer_of_words(model_max_length=64)
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
        "pad_token_id": tokenizer.pad_token_id,
        "initializer_range": 0.2,
    }
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **sizes | fields)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def named(*names: str) -> dict[str, Any]:
    """Fields of a configuration with these labels."""
    return {
        "id2label": dict(enumerate(names)),
        "label2id": {name: number for number, name in enumerate(names)},
    }


def run(model: Path, *more: str) -> CommandResult:
    """Train for one round on texts with the labels `sick` and `well`; the folder is `run`."""
    texts = model.parent / "texts.csv"
    write_texts(texts)
    return wardround(
        "simulate",
        "model=hf",
        "model.label=tiny",
        f"model.name={model}",
        "data=files",
        f"data.path={texts}",
        "data.token_cache=null",
        "num_clients=2",
        "num_rounds=1",
        "threads=1",
        "train.max_length=32",
        f"run_dir={model.parent / 'run'}",
        *more,
    )


def refused(said: CommandResult, *parts: str) -> None:
    """The exit code is 2, and the message has these parts."""
    assert said.code == 2, said
    assert "Traceback" not in said.err
    for part in parts:
        assert part in said.err


# --- labels ------------------------------------------------------------------------------


def built(folder: Path, *label_names: str, head: str = "own") -> Any:
    return build_model(LABEL, model_at(folder, head=head), label_names, seed=0)


@pytest.mark.parametrize(
    ("own", "wanted"),
    [
        (("well", "sick"), ("sick", "well")),
        (("WELL", "Sick"), ("sick", "well")),
        (("gro\u00df", "klein", "u\u0308bel"), ("klein", "\u00fcbel", "gro\u00df")),
    ],
)
def test_a_trained_classifier_keeps_its_labels_by_name(
    own: tuple[str, ...], wanted: tuple[str, ...], tmp_path: Path
) -> None:
    folder = write(tmp_path / "m", **named(*own))
    same = built(folder, *own)
    found = built(folder, *wanted)
    order = order_of(own, wanted)
    assert order is not None
    assert not found.new_head
    for name in ("weight", "bias"):
        rows = getattr(same.model.classifier, name)[list(order)]
        assert torch.equal(getattr(found.model.classifier, name), rows)
    assert tuple(found.model.config.id2label.values()) == wanted


def test_capitals_count_if_names_differ_by_them_alone() -> None:
    assert order_of(("a", "A"), ("A", "a")) == (1, 0)
    assert order_of(("a", "A"), ("a", "b")) is None
    assert order_of(("NEG", "POS"), ("neg", "positive")) is None


def test_label_names_of_a_checkpoint_have_the_spelling_of_all_labels() -> None:
    """A composed letter, a sign that nobody sees, and two spaces make no other name."""
    own = ("Ro\u0308ntgen", "out\u200b  patient")
    assert order_of(own, ("out patient", "R\u00f6ntgen")) == (1, 0)


def test_outputs_are_read_by_number_and_placeholders_are_no_names() -> None:
    assert names_in_config({"id2label": {"1": "b", "0": "a"}}) == ("a", "b")
    assert names_in_config({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}) == ()
    assert names_in_config({}) == ()


def test_foreign_label_names_are_refused_with_the_way_out(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", **named("NEG", "POS"))
    refused(run(folder), '"NEG", "POS"', '"sick", "well"', "id2label", "model.head=new")
    done = run(folder, "model.head=new")
    assert done.code == 0, done.err
    site = make_site(tmp_path / "site", 9, tmp_path / "texts.csv", model=folder)
    found = look(site, "model", labels=("sick", "well"), max_length=32)["model"]
    assert found.state == "problem"
    assert '"NEG", "POS"' in found.message
    assert (
        look(site, "model", labels=("pos", "neg"), max_length=32)["model"].state == "ok"
    )


def test_another_number_of_labels_is_a_new_classifier_and_said_once(
    tmp_path: Path,
) -> None:
    done = run(write(tmp_path / "m", **named("x", "y", "z")))
    assert done.code == 0, done.err
    assert done.err.count("whose classifier is for 3 labels") == 1


# --- the task of the checkpoint ----------------------------------------------------------


@pytest.mark.parametrize(
    "old",
    [
        {"num_labels": 5, "problem_type": "multi_label_classification"},
        {"num_labels": 1, "problem_type": "regression"},
    ],
)
def test_the_old_task_does_not_survive(old: dict[str, Any], tmp_path: Path) -> None:
    done = run(write(tmp_path / "m", function_to_apply="sigmoid", **old))
    assert done.code == 0, done.err
    config = json.loads((tmp_path / "run/model/config.json").read_text())
    assert config["problem_type"] == "single_label_classification"
    assert "function_to_apply" not in config


# --- padding -----------------------------------------------------------------------------


def answers(folder: Path, texts: Sequence[str]) -> dict[str, str]:
    """The answer for each text, by its text."""
    said = wardround("predict", str(folder), *(f"--text={text}" for text in texts))
    assert said.code == 0, said.err
    return {row["text"]: row["sick"] for row in csv.DictReader(said.out.splitlines())}


@pytest.mark.parametrize(
    ("kind", "more"),
    [("bert", ()), ("fnet", ()), ("bert", ("train.attention_mask=false",))],
    ids=["left", "no mask", "mask off"],
)
def test_the_texts_beside_it_move_no_answer(
    kind: str, more: tuple[str, ...], tmp_path: Path
) -> None:
    fields = {"tpu_short_seq_length": 32} if kind == "fnet" else {}
    done = run(write(tmp_path / "m", kind, **fields), *more)
    assert done.code == 0, done.err
    texts = ["heart", "heart and lung was bad and good of the pain", "knee hip 1 2 3"]
    together = answers(tmp_path / "run", texts)
    assert len(set(together.values())) > 1
    for text in texts:
        assert answers(tmp_path / "run", [text]) == {text: together[text]}
    saved = json.loads((tmp_path / "run/model/tokenizer_config.json").read_text())
    assert saved["padding_side"] == "right"
    card = (tmp_path / "run/model/README.md").read_text()
    assert ('padding="max_length"' in card) == (kind == "fnet" or bool(more))


# --- tokenizer and model -----------------------------------------------------------------


def test_texts_longer_than_the_positions_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", tokenizer=tokenizer_of_words())
    refused(run(folder, "train.max_length=100"), "is 100", "at most 64")
    said = wardround("predict", str(folder), "--text", "pain " * 300)
    assert said.code == 0, said.err
    site = make_site(tmp_path / "site", 9, tmp_path / "texts.csv", model=folder)
    assert look(site, "model", max_length=64)["model"].state == "ok"
    found = look(site, "model", max_length=100)["model"]
    assert found.state == "problem"
    assert "at most 64" in found.message


@pytest.mark.parametrize(
    ("kind", "most"),
    [
        ("roberta", 63),
        ("mpnet", 62),
        ("nystromformer", 64),
        ("gpt2", 64),
        ("llama", None),
    ],
)
def test_positions_that_no_token_has_do_not_count(
    kind: str, most: int | None, tmp_path: Path
) -> None:
    fields = {"n_positions": 64} if kind == "gpt2" else {}
    folder = write(tmp_path / "m", kind, tokenizer=tokenizer_of_words(), **fields)
    found = read_tokenizer(folder).model_max_length
    assert found == most if most else found > 1_000_000


def test_a_model_of_few_lengths_is_refused_with_the_lengths_it_takes(
    tmp_path: Path,
) -> None:
    fields = {"segment_means_seq_len": 32, "num_landmarks": 8}
    folder = write(tmp_path / "m", "nystromformer", **fields)
    refused(run(folder), "train.attention_mask=false")
    off = "train.attention_mask=false"
    refused(run(folder, off, "train.max_length=16"), "is 16", "one of these: 32")
    done = run(folder, off)
    assert done.code == 0, done.err


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", vocab_size=30)
    highest = len(tokenizer_of_words()) - 1
    refused(run(folder), f"up to {highest}", "30 word vectors")
    refused(wardround("predict", str(folder), "--text=a"), "30 word vectors")
    site = make_site(tmp_path / "site", 9, tmp_path / "texts.csv", model=folder)
    found = look(site, "model")["model"]
    assert found.state == "problem"
    assert "30 word vectors" in found.message


def test_control_tokens_that_no_text_can_spell_need_no_vector(tmp_path: Path) -> None:
    """Gemma 3 for texts has a token for images, and no vector for it."""
    tokenizer = tokenizer_of_words(model_max_length=64)
    size = len(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    folder = write(tmp_path / "m", tokenizer=tokenizer, vocab_size=size)
    assert int(max(token_ids(["<image>"], read_tokenizer(folder))[0])) < size


# --- markers in texts --------------------------------------------------------------------


def of_words(folder: Path) -> Any:
    return tokenizer_of_words(model_max_length=64)


def of_pieces(folder: Path) -> Any:
    """A Unigram vocabulary whose markers are pieces like all others, as XLM-R's are."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    signs = "\u2581abcdefghijklmnopqrstuvwxyz</>[]"
    pieces = [(mark, 0.0) for mark in MARKS] + [(sign, -3.0) for sign in signs]
    core = Tokenizer(models.Unigram(pieces, unk_id=1))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)]
    )
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return PreTrainedTokenizerFast(
        tokenizer_object=core, **dict(zip(names, MARKS, strict=True))
    )


def in_python(folder: Path) -> Any:
    """A tokenizer without a Rust core."""
    from transformers import CanineTokenizer

    return CanineTokenizer()


@pytest.mark.parametrize("make", [of_words, of_pieces, in_python])
def test_a_text_cannot_spell_a_control_token(
    make: Callable[[Path], Any], tmp_path: Path
) -> None:
    make(tmp_path).save_pretrained(tmp_path)
    tokenizer = read_tokenizer(tmp_path)
    controls = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    usual = [number for number in tokenizer("")["input_ids"] if number in controls]
    marks = " ".join([*tokenizer.all_special_tokens, *MARKS, "[SEP]"])
    plain, spelled = token_ids(["the heart", f"a {marks} b"], tokenizer, 100)
    assert list(plain) == tokenizer("the heart")["input_ids"]
    assert [number for number in spelled.tolist() if number in controls] == usual
    assert len(spelled) > len(usual) + 2


def test_a_run_reads_markers_as_text(tmp_path: Path) -> None:
    """BART takes every `</s>` for an end, and refuses texts with different numbers of them."""
    folder = write(
        tmp_path / "m",
        "bart",
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        eos_token_id=3,
        decoder_start_token_id=3,
    )
    tokenizer = read_tokenizer(folder)
    found = tokenise(["a [SEP] b"], np.zeros(1, dtype=np.int64), tokenizer, 32)
    assert list(found.ids).count(3) == 1
    assert run(folder).code == 0
    assert answers(tmp_path / "run", ["heart [SEP] lung", "heart"])


# --- sentencepiece -----------------------------------------------------------------------


def write_pieces(file: Path) -> int:
    """Write a sentencepiece model; return its number of pieces."""
    from sentencepiece import sentencepiece_model_pb2 as form

    proto: Any = form.ModelProto()
    pieces = [("[PAD]", 3), ("[CLS]", 3), ("[SEP]", 3), ("[UNK]", 2)]
    pieces += [(sign, 1) for sign in "\u2581abcdefghijklmnopqrstuvwxyz"]
    for number, (piece, kind) in enumerate(pieces):
        entry = proto.pieces.add()
        entry.piece, entry.type, entry.score = piece, kind, -float(number)
    spec = proto.trainer_spec
    spec.model_type, spec.unk_id, spec.bos_id, spec.eos_id, spec.pad_id = 1, 3, 1, 2, 0
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.add_dummy_prefix = True
    file.write_bytes(proto.SerializeToString())
    return len(pieces)


@pytest.mark.parametrize(
    ("kind", "name"),
    [("deberta-v2", "spm.model"), ("xlm-roberta", "sentencepiece.bpe.model")],
)
def test_a_tokenizer_of_sentencepiece_alone_is_read(
    kind: str, name: str, tmp_path: Path
) -> None:
    folder = write(tmp_path / "m", kind, vocab_size=200, pooler_hidden_size=32)
    for file in (*folder.glob("tokenizer*"), *folder.glob("special*")):
        file.unlink()
    write_pieces(folder / name)
    assert len(token_ids(["heart"], read_tokenizer(folder))[0]) > 3
    done = run(folder)
    assert done.code == 0, done.err
    site = make_site(tmp_path / "site", 9, tmp_path / "texts.csv", model=folder)
    assert look(site, "model")["model"].state == "ok"


# --- adapters ----------------------------------------------------------------------------


def test_adapters_on_gpt2_are_merged_as_trained(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", "gpt2", n_positions=64)
    done = run(
        folder,
        "adapters=lora",
        "adapters.targets=[c_attn,c_proj]",
        "train.learning_rate=1",
    )
    assert done.code == 0, done.err
    history = (tmp_path / "run/history.jsonl").read_text().splitlines()
    loss = json.loads(history[-1])["test"]["loss"]
    assert loss != json.loads(history[0])["test"]["loss"]
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    base = AutoModelForSequenceClassification.from_pretrained(folder)
    adapted: Any = PeftModel.from_pretrained(base, str(tmp_path / "run/model/adapter"))
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run/model")
    ids = torch.tensor([[2, 8, 9, 3]])
    with torch.no_grad():
        torch.testing.assert_close(
            adapted.eval()(ids).logits, merged.eval()(ids).logits
        )


def test_a_damaged_model_of_sentencepiece_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", "deberta-v2", pooler_hidden_size=32)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    (folder / "spm.model").write_bytes(b"no pieces")
    said = run(folder)
    refused(said, "spm.model", "tokenizer.json")
    assert "pip install" not in said.err


def test_a_model_without_linear_layers_gets_no_adapters(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", "squeezebert", embedding_size=32)
    said = run(folder, "adapters=lora", "adapters.targets=[query]")
    refused(said, "adapters.targets")
    assert "has these: ." not in said.err


# --- access rights -----------------------------------------------------------------------


def test_weights_have_the_rights_of_the_files_beside_them(
    tmp_path: Path,
) -> None:
    done = run(write(tmp_path / "m"))
    assert done.code == 0, done.err
    written = list((tmp_path / "run").rglob("*.safetensors"))
    assert len(written) > 1
    for file in written:
        beside = next(
            other for other in file.parent.iterdir() if other.suffix == ".json"
        )
        assert stat.S_IMODE(file.stat().st_mode) == stat.S_IMODE(beside.stat().st_mode)


def test_a_file_that_may_not_be_read_is_not_called_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "m")

    def access(path: Path, mode: int) -> bool:
        return path.name != "model.safetensors"

    monkeypatch.setattr(os, "access", access)  # root may read everything
    with pytest.raises(
        ModelNotLoaded, match=r"model\.safetensors' may not be read.*chmod"
    ):
        model_files.read_model_files(folder)
    with pytest.raises(PermissionError):
        files.require_readable(folder / "model.safetensors")
