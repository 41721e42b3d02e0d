"""The files that decide a model's results: hashes, weights in parts, tokenizers, a hub."""

from __future__ import annotations

import json
import os
import re
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
from wardround.common.errors import ModelNotLoaded
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
    """Return settings of the model in a folder, or of a hub id."""
    return model_at(folder)


def test_the_digest_is_that_of_the_lines_of_sha256sum(tiny_model: Path) -> None:
    """A publisher can compute it without this program."""
    names = [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert read_model_files(tiny_model).names == tuple(names)

    def sha256sum(*files: str, lines: bytes = b"") -> bytes:
        words = ["sha256sum", *files]
        done = subprocess.run(
            words, input=lines, cwd=tiny_model, capture_output=True, check=True
        )
        return done.stdout

    lines = sha256sum(*names)
    digest = sha256sum(lines=lines).decode().split()[0]
    assert model_digest(settings_of(tiny_model)) == digest
    weights = lines.decode().splitlines()[1].split()[0]
    assert weights_digest(settings_of(tiny_model)) == weights


def test_another_tokenizer_changes_the_digest_of_the_model_only(
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
        site = make_site(tmp_path, 9092, tiny_texts, model=folder)
        found = look(site, "model")["model"]
        assert found.state == "ok"
        assert f"sha256:{weights_digest(settings_of(folder))}" in found.message
        assert f"files:{model_digest(settings_of(folder))}" in found.message


@pytest.mark.parametrize("kind", ["bert", "albert", "distilbert", "llama", "qwen2"])
def test_files_that_are_not_hashed_change_nothing(kind: str, tmp_path: Path) -> None:
    """Other files in the folder change no hash, no weight and no token."""
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
    # A person who hides a change keeps size and time of the file.
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
    """Return a folder with the tiny model, with weights in several files."""
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
    site = make_site(tmp_path, 9092, tiny_texts, model=in_parts)
    found = look(site, "model")["model"]
    assert found.state == "ok"
    assert "several files" in found.message


def test_an_index_that_names_other_files_is_refused(in_parts: Path) -> None:
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
        expected = rf"{re.escape(repr(odd))}.*save_pretrained"
        with pytest.raises(ValueError, match=expected):
            model_digest(settings_of(in_parts))
    index.write_text(json.dumps(named))
    part = min(in_parts.glob("model-*.safetensors"))
    part.unlink()
    expected = rf"{re.escape(part.name)}.*Copy the whole folder"
    with pytest.raises(ValueError, match=expected):
        model_digest(settings_of(in_parts))


# --- tokenizers ----------------------------------------------------------------------


def test_a_tokenizer_that_reads_other_files_is_refused(
    tiny_model: Path, tmp_path: Path
) -> None:
    folder = copy_of(tiny_model, tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]
    (folder / "vocab.txt").write_text("\n".join(words))
    numbers = json.dumps({word: number for number, word in enumerate(words)})
    for name in ("word_shape.json", "word_pronunciation.json"):
        (folder / name).write_text(numbers)
    change_json(folder / "config.json", model_type="roc_bert")
    change_json(folder / "tokenizer_config.json", tokenizer_class="RoCBertTokenizer")
    expected = r"word_pronunciation\.json.*tokenizer\.json"
    with pytest.raises(ModelNotLoaded, match=expected):
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
    with pytest.raises(ModelNotLoaded, match=f"the key '{key}'|cannot be loaded"):
        read_tokenizer(folder)


def test_paths_that_older_versions_wrote_are_ignored(
    tiny_model: Path, tmp_path: Path
) -> None:
    folder = copy_of(tiny_model, tmp_path / "model")
    paths = {
        "special_tokens_map_file": "/root/.cache/map.json",
        "tokenizer_file": "/root/tokenizer.json",
        "vocab_file": "/root/vocab.txt",
    }
    change_json(folder / "tokenizer_config.json", **paths, init_inputs=[])
    ids = read_tokenizer(folder)("the goal")["input_ids"]
    assert ids == read_tokenizer(tiny_model)("the goal")["input_ids"]


def test_a_config_that_is_no_json_object_is_refused(
    tiny_model: Path, tmp_path: Path
) -> None:
    folder = copy_of(tiny_model, tmp_path / "model")
    for content in ("[]", "{", "[" * 100_000):
        (folder / "config.json").write_text(content)
        with pytest.raises(ModelNotLoaded, match=r"config\.json' .*JSON"):
            check_folder(folder)


# --- a hub ---------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a hub's cache on this machine with some/model. Return its snapshot."""
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
    expected = r"model\.name is 'some/model': .*adapter_config\.json"
    with pytest.raises(ValueError, match=expected):
        build_model(LABEL, settings, LABELS, seed=0)


def test_a_site_shows_both_hashes_of_a_hub_model_in_the_cache(
    hub: Path, tiny_texts: Path, tmp_path: Path
) -> None:
    site = make_site(tmp_path, 9092, tiny_texts)
    found = look(site, "model", "lengths", model="some/model")
    assert found["model"].state == "ok"
    assert f"files:{model_digest(settings_of('some/model'))}" in found["model"].message
    assert "48 texts tokenised" in found["lengths"].message
    bring_adapter(hub)
    assert look(site, "model", model="some/model")["model"].state == "problem"


def test_only_listed_files_of_a_hub_are_fetched_once(
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
    # This file is fetched too, so that its folder is refused.
    assert is_fetched("adapter_config.json")


def test_without_the_hub_a_model_comes_from_the_cache(
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
    expected = r"model\.name is 'no/model'.*set model\.name=<that folder>"
    with pytest.raises(ValueError, match=expected):
        locate(settings_of("no/model"))
