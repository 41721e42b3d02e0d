"""The files that decide a model's results: their hashes, in one folder, in parts, from a hub."""

from __future__ import annotations

import json
import os
import subprocess
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from transformers import BertModel

from tests.support.hostile_models import (
    bring_adapter,
    change_json,
    change_tokenizer,
    copy_of,
)
from tests.support.site_lab import look, make_site
from tests.support.tiny import model_at, write_model
from wardround.common import pretrained
from wardround.common.files import file_sha256
from wardround.common.model.build import build_model
from wardround.common.model_files import TOKENIZER_FILES, check_folder, read_model_files
from wardround.common.pretrained import (
    in_cache,
    load_tokenizer,
    locate,
    model_digest,
    read_tokenizer,
    weights_digest,
)
from wardround.common.settings.model import ModelSettings
from wardround.common.tasks.label import LABEL

LABELS = ("a", "b")


def settings_of(folder: Path | str) -> ModelSettings:
    """Of the model in a folder, or of a hub id."""
    return model_at(folder)


def test_the_digest_is_that_of_the_lines_of_sha256sum(tiny_model: Path) -> None:
    """So that a publisher without this program can name it."""
    names = [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert read_model_files(tiny_model).names == tuple(names)
    lines = subprocess.run(
        ["sha256sum", *names], cwd=tiny_model, capture_output=True, check=True
    ).stdout
    whole = subprocess.run(
        ["sha256sum"], input=lines, capture_output=True, check=True
    ).stdout.decode()
    assert model_digest(settings_of(tiny_model)) == whole.split()[0]
    weights = lines.decode().splitlines()[1].split()[0]
    assert weights_digest(settings_of(tiny_model)) == weights


def test_the_weights_alone_do_not_tell_of_another_tokenizer(
    tiny_model: Path, tiny_texts: Path, tmp_path: Path
) -> None:
    same, other = (copy_of(tiny_model, tmp_path / name) for name in ("same", "other"))
    change_tokenizer(other)
    texts = [
        load_tokenizer(settings_of(folder))("the goal")["input_ids"]
        for folder in (same, other)
    ]
    assert texts[0] != texts[1]
    assert weights_digest(settings_of(same)) == weights_digest(settings_of(other))
    assert model_digest(settings_of(same)) == model_digest(settings_of(tiny_model))
    assert model_digest(settings_of(same)) != model_digest(settings_of(other))
    for folder in (same, other):
        found = look(make_site(tmp_path, 9092, tiny_texts, model=folder), "model")[
            "model"
        ]
        assert found.state == "ok"
        assert f"sha256:{weights_digest(settings_of(folder))}" in found.message
        assert f"files:{model_digest(settings_of(folder))}" in found.message


@pytest.mark.parametrize("kind", ["bert", "albert", "distilbert", "llama", "qwen2"])
def test_files_without_a_hash_change_nothing(kind: str, tmp_path: Path) -> None:
    """Files beside those of the list change neither the hash, nor a weight, nor a token."""
    bare = write_model(tmp_path / "bare", kind)
    full = copy_of(bare, tmp_path / "full")
    beside = {
        "README.md": "words",
        "train.py": "raise SystemExit",
        "pytorch_model.bin": "a pickle",
        "model.fp16.safetensors": "other weights",
        "generation_config.json": '{"max_length": 5}',
        "chat_template.jinja": "{{ messages }}",
        "modules.json": "[]",
        "vocab-src.json": "{}",
        "tokenizer.4.0.json": "{}",
        "config.4.0.0.json": "{}",
    }
    for name, content in beside.items():
        (full / name).write_text(content)
    (full / "onnx").mkdir()
    (full / "onnx" / "config.json").write_text("{}")
    assert model_digest(settings_of(full)) == model_digest(settings_of(bare))
    one, other = (
        build_model(LABEL, settings_of(folder), LABELS, seed=0)
        for folder in (bare, full)
    )
    assert one.new_head == other.new_head
    for name, tensor in one.model.state_dict().items():
        assert torch.equal(tensor, other.model.state_dict()[name]), name
    text = "the doctor said a nurse was new"
    assert one.tokenizer(text)["input_ids"] == other.tokenizer(text)["input_ids"]


def test_every_file_of_the_list_changes_the_digest(
    tiny_model: Path, tmp_path: Path
) -> None:
    folder = copy_of(tiny_model, tmp_path / "model")
    seen = {model_digest(settings_of(folder))}
    for name in (
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors",
    ):
        (folder / name).write_bytes((folder / name).read_bytes() + b"\n")
        seen.add(model_digest(settings_of(folder)))
    for name in sorted(TOKENIZER_FILES - {"tokenizer.json", "tokenizer_config.json"}):
        (folder / name).write_text("{}")
        seen.add(model_digest(settings_of(folder)))
    assert len(seen) == 1 + 4 + len(TOKENIZER_FILES) - 2
    (folder / "bpe.codes").unlink()
    assert model_digest(settings_of(folder)) not in seen


def test_a_file_is_read_again_only_if_it_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_text("one")
    reads: list[Path] = []
    original = Path.open

    def counted(self: Path, *mode: Any, **more: Any) -> Any:
        reads.append(self)
        return original(self, *mode, **more)

    monkeypatch.setattr(Path, "open", counted)
    first = file_sha256(file)
    assert file_sha256(file) == first
    assert len(reads) == 1
    with original(file, "w") as out:
        out.write("two")
    # As somebody does who hides the change: same size, same time.
    os.utime(file, ns=(0, 0))
    second = file_sha256(file)
    assert second != first
    with original(file, "w") as out:
        out.write("six")
    os.utime(file, ns=(0, 0))
    assert file_sha256(file) not in (first, second)


# --- weights in several files --------------------------------------------------------


@pytest.fixture
def in_parts(tmp_path: Path, tiny_model: Path) -> Path:
    """The tiny model, with weights in several files."""
    folder = copy_of(tiny_model, tmp_path / "parts")
    encoder = BertModel.from_pretrained(tiny_model)
    (folder / "model.safetensors").unlink()
    encoder.save_pretrained(folder, max_shard_size="10KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    return folder


def test_weights_in_parts_have_one_hash_with_the_rest(
    in_parts: Path, tiny_model: Path, tiny_texts: Path, tmp_path: Path
) -> None:
    files = read_model_files(in_parts)
    assert "model.safetensors.index.json" in files.names
    assert len(files.weights()) == len(list(in_parts.glob("model-*.safetensors")))
    assert weights_digest(settings_of(in_parts)) is None
    one, other = (
        build_model(LABEL, settings_of(f), LABELS, seed=0)
        for f in (in_parts, tiny_model)
    )
    for name, tensor in one.model.state_dict().items():
        assert torch.equal(tensor, other.model.state_dict()[name]), name
    before = model_digest(settings_of(in_parts))
    part = in_parts / files.weights()[0]
    part.write_bytes(part.read_bytes()[:-1] + b"\x01")
    assert model_digest(settings_of(in_parts)) != before
    found = look(make_site(tmp_path, 9092, tiny_texts, model=in_parts), "model")[
        "model"
    ]
    assert (found.state, "several files" in found.message) == ("ok", True)


def test_an_index_names_parts_of_this_folder_only(in_parts: Path) -> None:
    index = in_parts / "model.safetensors.index.json"
    named = json.loads(index.read_text())
    for odd in (
        "../evil.safetensors",
        "/evil.safetensors",
        "evil.bin",
        "model-1-of-2.safetensors",
    ):
        changed = named | {"weight_map": named["weight_map"] | {"x": odd}}
        index.write_text(json.dumps(changed))
        with pytest.raises(
            ValueError, match=r"as a part of the weights.*save_pretrained"
        ):
            model_digest(settings_of(in_parts))
    index.write_text(json.dumps(named))
    next(iter(sorted(in_parts.glob("model-*.safetensors")))).unlink()
    with pytest.raises(
        ValueError, match=r"a part of the weights\. Copy the whole folder"
    ):
        model_digest(settings_of(in_parts))


# --- tokenizers ----------------------------------------------------------------------


def test_a_tokenizer_that_reads_other_files_is_refused(
    tiny_model: Path, tmp_path: Path
) -> None:
    folder = copy_of(tiny_model, tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]
    (folder / "vocab.txt").write_text("\n".join(words))
    for name in ("word_shape.json", "word_pronunciation.json"):
        (folder / name).write_text(
            json.dumps({word: number for number, word in enumerate(words)})
        )
    change_json(folder / "config.json", model_type="roc_bert")
    change_json(folder / "tokenizer_config.json", tokenizer_class="RoCBertTokenizer")
    with pytest.raises(
        ValueError, match=r"reads word_pronunciation\.json.*with a tokenizer\.json"
    ):
        read_tokenizer(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("gguf_file", "other.gguf"),
        ("spm_file", "other.model"),
        ("init_inputs", ["other.txt"]),
    ],
)
def test_a_key_that_names_another_file_is_refused(
    key: str, value: Any, tiny_model: Path, tmp_path: Path
) -> None:
    folder = copy_of(tiny_model, tmp_path / "model")
    change_json(folder / "tokenizer_config.json", **{key: value})
    with pytest.raises(ValueError, match=f"the key '{key}'|cannot be loaded"):
        read_tokenizer(folder)


def test_a_key_that_older_versions_left_is_none_of_these(
    tiny_model: Path, tmp_path: Path
) -> None:
    folder = copy_of(tiny_model, tmp_path / "model")
    left = {
        "special_tokens_map_file": "/root/.cache/map.json",
        "tokenizer_file": "/root/tokenizer.json",
    }
    change_json(
        folder / "tokenizer_config.json",
        **left,
        vocab_file="/root/vocab.txt",
        init_inputs=[],
    )
    text = "the goal"
    assert (
        read_tokenizer(folder)(text)["input_ids"]
        == read_tokenizer(tiny_model)(text)["input_ids"]
    )


def test_json_that_is_none_is_refused_in_words(
    tiny_model: Path, tmp_path: Path
) -> None:
    folder = copy_of(tiny_model, tmp_path / "model")
    for content in ("[]", "{", "[" * 100_000):
        (folder / "config.json").write_text(content)
        with pytest.raises(
            ValueError,
            match=r"config\.json' (cannot be read as JSON|holds no JSON object)",
        ):
            check_folder(folder)


# --- a hub ---------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub's cache on this machine, which holds some/model; returns its snapshot."""
    store = tmp_path / "hub" / "models--some--model"
    snapshot = store / "snapshots" / ("1" * 40)
    snapshot.parent.mkdir(parents=True)
    copy_of(tiny_model, snapshot)
    (store / "refs").mkdir()
    (store / "refs" / "main").write_text("1" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    pretrained._fetched.cache_clear()
    return snapshot


def test_a_hub_model_is_its_folder_in_the_cache(hub: Path, tiny_model: Path) -> None:
    settings = settings_of("some/model")
    assert locate(settings) == in_cache("some/model") == hub
    assert model_digest(settings) == model_digest(settings_of(tiny_model))
    pinned = ModelSettings(**vars(settings) | {"revision": "1" * 40})
    assert locate(pinned) == hub
    bring_adapter(hub)
    with pytest.raises(
        ValueError, match=r"model\.name is 'some/model': .*adapter_config\.json"
    ):
        build_model(LABEL, settings, LABELS, seed=0)


def test_a_hub_model_in_the_cache_is_a_finding_with_both_hashes(
    hub: Path, tiny_texts: Path, tmp_path: Path
) -> None:
    site = make_site(tmp_path, 9092, tiny_texts)
    found = look(site, "model", "lengths", model="some/model")
    assert found["model"].state == "ok"
    assert f"files:{model_digest(settings_of('some/model'))}" in found["model"].message
    assert "48 texts tokenised" in found["lengths"].message
    bring_adapter(hub)
    assert look(site, "model", model="some/model")["model"].state == "problem"


def test_a_hub_gives_files_of_the_list_and_once(
    hub: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path
) -> None:
    asked: list[list[str]] = []

    def download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append(allow_patterns)
        return str(hub)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    settings = settings_of("some/model")
    build_model(LABEL, settings, LABELS, seed=0)
    assert model_digest(settings) == model_digest(settings_of(tiny_model))
    (patterns,) = asked

    def is_fetched(name: str) -> bool:
        return any(fnmatch(name, pattern) for pattern in patterns)

    for name in (
        "config.json",
        "model.safetensors",
        "model-00001-of-00002.safetensors",
        "vocab.txt",
    ):
        assert is_fetched(name)
    code = (
        "evil.py",
        "pytorch_model.bin",
        "adapter_model.safetensors",
        "onnx/model.safetensors",
    )
    assert [name for name in code if is_fetched(name)] == []
    # What would make the folder be refused is looked for.
    assert is_fetched("adapter_config.json")


def test_a_hub_out_of_reach_leaves_the_cache(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    original = huggingface_hub.snapshot_download

    def download(name: str, **more: Any) -> str:
        if not more.get("local_files_only"):
            raise LocalEntryNotFoundError("no network")
        return str(original(name, **more))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert locate(settings_of("some/model")) == hub
    with pytest.raises(
        ValueError, match=r"model\.name is 'no/model'.*set model\.name=<that folder>"
    ):
        locate(settings_of("no/model"))
