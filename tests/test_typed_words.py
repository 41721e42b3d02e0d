"""Words of a command line mean what a person typed."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from wardround.server.compose import compose
from wardround.server.typed_words import as_typed

TEXTS = {
    "home folder": ("data.path=/~x/a.csv", "/~x/a.csv"),
    "umlaut": ("data.path=Zürich/Ärzte.csv", "Zürich/Ärzte.csv"),
    "space": ("data.path=my letters.csv", "my letters.csv"),
    "brackets": ("data.path=letters [1] (new).csv", "letters [1] (new).csv"),
    "braces": ("data.path={a}.csv", "{a}.csv"),
    "equals sign": ("data.path=year=2026/a.csv", "year=2026/a.csv"),
    "both quotes": ('data.path=O\'Neil "x".csv', 'O\'Neil "x".csv'),
    "backslash": ("data.path=C:\\letters\\", "C:\\letters\\"),
    "exponent": ("data.path=1E50", "1E50"),
    "word for true": ("data.path=true", "true"),
    "hash": ("data.path=#1.csv", "#1.csv"),
    "semicolon": ("data.path=a;b", "a;b"),
    "own quotes": ("data.path='a, b.csv'", "a, b.csv"),
    "comma in quotes": ('data.path="a,b.csv"', "a,b.csv"),
}


@pytest.mark.parametrize(("word", "path"), TEXTS.values(), ids=TEXTS)
def test_a_text_is_read_as_it_was_typed(word: str, path: str) -> None:
    assert compose(["data=files", word]).settings.data.path == path


LISTS = {
    "codes like numbers": ("[1E50,1E51]", ("1E50", "1E51")),
    "words of YAML": ("[true, no, 007]", ("true", "no", "007")),
    "umlaut": ("[Überweisung,Arztbrief]", ("Überweisung", "Arztbrief")),
    "apostrophe inside": ("[it's,that]", ("it's", "that")),
    "comma in quotes": ("['a, b',c]", ("a, b", "c")),
    "null in quotes": ('["null",c]', ("null", "c")),
    "brackets inside": ("[a(b),c]", ("a(b)", "c")),
}


@pytest.mark.parametrize(("value", "labels"), LISTS.values(), ids=LISTS)
def test_a_list_of_texts_is_read_as_it_was_typed(
    value: str, labels: tuple[str, ...]
) -> None:
    settings = compose(["data=files", "data.path=a.csv", f"data.label_names={value}"])
    assert settings.settings.data.label_names == labels


def test_pairs_of_texts() -> None:
    word = "data.label_map=[[1E50,Röntgen],['a, b',c]]"
    settings = compose(["data=files", "data.path=a.csv", word]).settings
    assert settings.data.label_map == (("1E50", "Röntgen"), ("a, b", "c"))


def refusal(*words: str) -> str:
    """Return the message that refuses these words."""
    with pytest.raises(ValueError, match=r".") as caught:
        compose(["data=files", *words])
    return str(caught.value)


UNCHANGED = [
    "train.learning_rate=1e-3",
    "num_clients=1,4",
    "model=bert,albert",
    "~data.path",
    "data.path=null",
    "data.path=",
    "data.path=${run_dir}/a.csv",
    "data.path=choice(a,b)",
    "hydra.launcher.x=Zürich",
]


@pytest.mark.parametrize("word", UNCHANGED)
def test_other_words_are_left_to_hydra(word: str) -> None:
    assert as_typed([word]) == [word]


def test_twice_is_as_once() -> None:
    words = [word for word, _ in TEXTS.values()]
    once = as_typed(words)
    assert as_typed(once) == once


def test_a_quote_that_is_not_closed_is_refused_with_the_word_to_paste() -> None:
    said = refusal("data.path='a.csv")
    assert "data.path='a.csv" in said
    pasted = shlex.split(said.rpartition("for the shell: ")[2])
    assert compose(["data=files", *pasted]).settings.data.path == "'a.csv"


def test_a_comma_in_a_text_is_refused_with_the_word_to_paste() -> None:
    said = refusal("data.path=a,b.csv")
    assert "wardround sweep" in said
    pasted = shlex.split(said.rpartition(" as ")[2])
    assert compose(["data=files", *pasted]).settings.data.path == "a,b.csv"


def test_a_tilde_is_the_home_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    words = ["data=files", "data.path=~/a.csv", "run_dir=~/run"]
    words += ["model=hf", "model.name=~/model", "data.token_cache=~/cache"]
    settings = compose(words).settings
    assert settings.data.path == f"{tmp_path}/a.csv"
    assert settings.data.token_cache == f"{tmp_path}/cache"
    assert settings.model.name == f"{tmp_path}/model"
    assert settings.run_dir == f"{tmp_path}/run"


def test_a_tilde_without_a_home_folder_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", fail)
    said = refusal("data.path=~/a.csv")
    assert "~/a.csv" in said
    assert "Write the whole path" in said
