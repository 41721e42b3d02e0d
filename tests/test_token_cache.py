"""Token ids on the disk: found for the same input only, never in part, and bounded in size."""

from __future__ import annotations

import logging
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.runs import history
from tests.support.site_lab import make_site
from tests.support.tiny import Make, write_model
from wardround.client.site import RealSite
from wardround.common.data import token_cache, tokens
from wardround.common.data.corpus import forget_corpora, open_corpus
from wardround.common.data.token_cache import cache_folder
from wardround.common.data.tokens import TokenisedTexts, tokenise
from wardround.common.settings.tree import Settings
from wardround.server.engines.run_memory import corpus_from_memory, corpus_to_memory
from wardround.server.engines.simulate import simulate

TEXTS = ["the goal", "a bank said profit", "fever"]
# Lengths of the texts with [CLS] and [SEP]: 4, 6, 3; so 13 ids. N and starts take 8 * 5 bytes,
# the seal 32.
NUM_BYTES = 8 * 5 + 4 * 13 + 32


def load(model: Path) -> Any:
    """A tokenizer that was not used yet."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model)


def cut(
    tokenizer: Any, cache: Path | None, texts: list[str] = TEXTS, max_length: int = 8
) -> TokenisedTexts:
    """Return the texts as token ids."""
    return tokenise(texts, np.arange(len(texts)), tokenizer, max_length, cache)


def same(one: TokenisedTexts, other: TokenisedTexts) -> bool:
    """Return whether every array is the same, with its dtype."""
    return one.pad_id == other.pad_id and all(
        np.array_equal(getattr(one, name), getattr(other, name))
        and getattr(one, name).dtype == getattr(other, name).dtype
        for name in ("ids", "starts", "targets")
    )


def files(cache: Path) -> list[Path]:
    """Return all files of a cache."""
    return sorted(cache.iterdir())


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A folder that does not exist yet."""
    return tmp_path / "new" / "tokens"


@pytest.fixture
def no_cutting(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Fail if the tokenizer is used from now on."""

    def refuse(*_: object) -> None:
        raise AssertionError("tokenised again")

    monkeypatch.setattr(tokens, "_cut", refuse)
    return monkeypatch


def test_texts_are_tokenised_once_and_then_read(
    tiny_model: Path, cache: Path, request: pytest.FixtureRequest
) -> None:
    tokenizer = load(tiny_model)
    plain = cut(tokenizer, None)
    first = cut(tokenizer, cache)
    assert plain.starts.tolist() == [0, 4, 10, 13]
    request.getfixturevalue("no_cutting")
    # A tokenizer that has cut to a length before, and one that has not, are the same.
    for again in (cut(tokenizer, cache), cut(load(tiny_model), cache)):
        assert same(again, first)
        assert same(again, plain)
        assert not again.ids.flags.writeable
    (file,) = files(cache)
    assert file.stat().st_size == NUM_BYTES


def test_an_empty_list_of_texts_can_be_cached(tiny_model: Path, cache: Path) -> None:
    for _ in range(2):
        assert cut(load(tiny_model), cache, []).starts.tolist() == [0]


def test_any_change_of_the_ids_makes_a_new_file(
    tiny_model: Path, cache: Path, tmp_path: Path
) -> None:
    cut(load(tiny_model), cache)
    others = (
        (TEXTS, 7),
        (TEXTS[::-1], 8),
        (["the goala", " bank said profit", "fever"], 8),
        ([*TEXTS[:2], "fever today"], 8),
    )
    for number, (texts, max_length) in enumerate(others, start=2):
        cut(load(tiny_model), cache, texts, max_length)
        assert len(files(cache)) == number
    model = write_model(tmp_path / "model", "bert")
    words = (model / "tokenizer.json").read_text()
    (model / "tokenizer.json").write_text(words.replace('"goal"', '"gaol"'))
    known = cut(load(tiny_model), cache)
    unknown = cut(load(model), cache)
    assert len(files(cache)) == len(others) + 2
    assert known.ids[2] == load(tiny_model).vocab["goal"]
    assert unknown.ids[2] == load(model).unk_token_id


@pytest.mark.parametrize("library", ["transformers", "tokenizers"])
def test_another_version_of_a_library_makes_a_new_file(
    tiny_model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    cut(load(tiny_model), cache)
    monkeypatch.setattr(
        token_cache, "version", lambda name: "0" if name == library else version(name)
    )
    cut(load(tiny_model), cache)
    assert len(files(cache)) == 2


@pytest.mark.parametrize("length", [0, 1, 31, 40, NUM_BYTES - 1])
def test_a_file_cut_short_is_made_anew(
    tiny_model: Path, cache: Path, length: int
) -> None:
    plain = cut(load(tiny_model), cache)
    whole = files(cache)[0].read_bytes()
    files(cache)[0].write_bytes(whole[:length])
    assert same(cut(load(tiny_model), cache), plain)
    assert files(cache)[0].read_bytes() == whole


@pytest.mark.parametrize("position", [0, 8, 60, NUM_BYTES - 1])
def test_a_damaged_file_is_made_anew(
    tiny_model: Path, cache: Path, position: int
) -> None:
    plain = cut(load(tiny_model), cache)
    whole = files(cache)[0].read_bytes()
    damaged = bytearray(whole)
    damaged[position] ^= 1
    files(cache)[0].write_bytes(damaged)
    assert same(cut(load(tiny_model), cache), plain)
    assert files(cache)[0].read_bytes() == whole


def test_only_the_owner_can_read_the_cache(tiny_model: Path, cache: Path) -> None:
    before = os.umask(0)
    try:
        cut(load(tiny_model), cache)
    finally:
        os.umask(before)
    assert cache.stat().st_mode & 0o777 == 0o700
    assert files(cache)[0].stat().st_mode & 0o777 == 0o600


def test_the_files_that_were_unused_for_longest_are_removed(
    tiny_model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load(tiny_model)
    for number, length in enumerate((6, 7, 8)):
        cut(tokenizer, cache, max_length=length)
        newest = max(files(cache), key=lambda file: file.stat().st_mtime_ns)
        os.utime(newest, (number, number))
    cut(tokenizer, cache, max_length=6)  # used again: no longer the oldest
    left_over = cache / ".killed.part"
    left_over.touch()
    os.utime(left_over, (0, 0))
    monkeypatch.setattr(token_cache, "MOST_BYTES", 3 * NUM_BYTES)
    cut(tokenizer, cache, max_length=9)
    kept = files(cache)
    assert len(kept) == 3
    monkeypatch.setattr(token_cache, "MOST_BYTES", 1)
    for length in (6, 8, 9):  # read, so nothing is written and nothing removed
        cut(tokenizer, cache, max_length=length)
    assert files(cache) == kept
    cut(tokenizer, cache, max_length=10)  # larger than the bound: it stays alone
    assert len(files(cache)) == 1


def test_a_folder_that_cannot_be_written_is_a_warning_only(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING):
        made = cut(load(tiny_model), tmp_path / "file" / "tokens")
    assert same(made, cut(load(tiny_model), None))
    assert "tokens" in caplog.text
    assert "Not a directory" in caplog.text


def test_the_place_of_the_cache_follows_setting_and_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache")
    assert cache_folder("auto") == Path("/var/cache/wardround/tokens")
    # The XDG Base Directory Specification ignores these.
    for unset in ("", "relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", unset)
        assert cache_folder("auto") == Path("/home/ada/.cache/wardround/tokens")
    assert cache_folder(None) is None


def test_a_single_word_is_refused_as_folder(make_settings: Make) -> None:
    with pytest.raises(ValueError, match=r"data\.token_cache is 'off'\. .*auto, null"):
        make_settings("data.token_cache=off")


def hashes(settings: Settings) -> list[str]:
    """Return the model hash of every round of a run that reads its texts anew."""
    forget_corpora()
    simulate(settings)
    return [line["model_sha256"] for line in history(Path(settings.run_dir))]


def test_a_run_with_the_cache_is_the_same_bit_for_bit(
    make_settings: Make, cache: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    def run(name: str, setting: str) -> list[str]:
        return hashes(
            make_settings(f"run_dir={tmp_path / name}", f"data.token_cache={setting}")
        )

    without, cold = run("without", "null"), run("cold", str(cache))
    request.getfixturevalue("no_cutting")
    assert len(files(cache)) == 2  # training and test
    assert without == cold == run("warm", str(cache))
    assert len(without) == 4


def test_workers_share_the_mapped_ids(make_settings: Make, cache: Path) -> None:
    settings = make_settings(f"data.token_cache={cache}")
    for _ in range(2):
        forget_corpora()
        corpus = open_corpus(settings)
    shared, facts = corpus_to_memory(corpus)
    assert same(corpus_from_memory(shared, facts).train, corpus.train)
    os.close(shared)


def test_a_site_keeps_token_ids_only_if_its_own_file_says_so(
    make_settings: Make, tmp_path: Path
) -> None:
    theirs = f"data.token_cache={tmp_path / 'theirs'}"
    deployed = make_settings(theirs, "engine=deployment", "data.label_names=[a,b]")
    sent = deployed.for_sites()
    assert sent.data.token_cache is None
    texts = tmp_path / "texts.csv"
    site = make_site(tmp_path, 9092, texts)
    assert RealSite(site).localise(sent).data.token_cache is None
    willing = make_site(tmp_path, 9092, texts, token_cache=tmp_path / "ours")
    assert RealSite(willing).localise(sent).data.token_cache == str(tmp_path / "ours")
