"""Checks, held-out texts and draws of texts that were read."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.reading import message, pairs, read, write
from wardround.common.data.sampling import shares_of
from wardround.common.tasks.label_names import numbered_by_name


def table(path: Path, rows: list[tuple[str, str]]) -> str:
    """Write a CSV of (text, label) rows; return its path."""
    lines = [f'"{text}",{label}' for text, label in rows]
    return write(path, "\n".join(["text,label", *lines]) + "\n")


def labelled(**counts: int) -> list[tuple[str, str]]:
    """`labelled(a=2, b=1)` is a0, a1, b0 with their labels."""
    return [
        (f"{label}{n}", label) for label, count in counts.items() for n in range(count)
    ]


def of_sites(folder: Path, **sizes: int) -> None:
    """Write a file for each site: `n` texts of label a, and `n` of label b."""
    for site, size in sizes.items():
        rows = [(f"{site}{n}{label}", label) for n in range(size) for label in "ab"]
        table(folder / f"{site}.csv", rows)


# --- empty texts ----------------------------------------------------------------------

GAPS = [
    ("x", "a"),
    ("", "a"),
    (" ", "b"),
    ("y", "b"),
    ("", "a"),
    ("z", "a"),
    ("w", "b"),
]


def test_empty_texts_are_counted_and_the_first_is_placed(tmp_path: Path) -> None:
    said = message(path=table(tmp_path / "a.csv", GAPS))
    assert said.startswith("train: 3 of 7 examples ")
    assert "a.csv, line 3." in said
    assert "data.drop_empty=true" in said


def test_empty_texts_are_dropped_and_reported_if_asked(tmp_path: Path) -> None:
    test = table(tmp_path / "t" / "t.csv", [("u", "a"), ("", "b")])
    data = read(path=table(tmp_path / "a.csv", GAPS), test_path=test, drop_empty=True)
    assert pairs(data) == [("x", "a"), ("y", "b"), ("z", "a"), ("w", "b")]
    assert data.findings == (
        "train: 3 examples with empty text left out",
        "test: 1 example with empty text left out",
    )


def test_texts_are_cut_to_their_first_words(tmp_path: Path) -> None:
    rows = [
        ("one  two\tthree", "a"),
        ("four", "b"),
        ("five six", "a"),
        ("seven eight", "b"),
    ]
    path = table(tmp_path / "a.csv", rows)
    test = table(tmp_path / "t" / "t.csv", [("x y z", "b")])
    data = read(path=path, test_path=test, max_words=2)
    assert data.train.texts == ["one two", "four", "five six", "seven eight"]
    assert data.test.texts == ["x y"]
    assert pairs(read(path=path, test_path=test))[0] == ("one  two\tthree", "a")


def test_places_stay_right_after_empty_texts_are_dropped(tmp_path: Path) -> None:
    path = table(tmp_path / "a.csv", [*GAPS, ("v", "")])
    said = message(path=path, drop_empty=True)
    assert said.startswith("train: 1 of 5 examples have no label in 'label'")
    assert "a.csv, line 9." in said


def test_a_site_without_any_text_is_refused(tmp_path: Path) -> None:
    table(tmp_path / "n.csv", labelled(a=1, b=1))
    table(tmp_path / "s.csv", [("", "a"), ("", "b")])
    said = message(path=str(tmp_path), drop_empty=True)
    assert "s.csv: no example has a text" in said
    assert "data.text_columns" in said


# --- labels ---------------------------------------------------------------------------


def test_labels_are_numbered_in_declared_order(tmp_path: Path) -> None:
    path = table(tmp_path / "a.csv", labelled(a=2, b=2))
    assert read(path=path).label_names == ("a", "b")
    data = read(path=path, label_names=("b", "a"))
    assert data.label_names == ("b", "a")
    train = data.train
    numbers = {
        text[0]: number for text, number in zip(train.texts, train.targets, strict=True)
    }
    assert numbers == {"a": 1, "b": 0}


def test_missing_labels_are_counted_and_the_first_is_placed(tmp_path: Path) -> None:
    said = message(path=table(tmp_path / "a.csv", [("x", "a"), ("y", ""), ("z", " ")]))
    assert said.startswith("train: 2 of 3 examples have no label in 'label'")
    assert "a.csv, line 3." in said


def test_fewer_than_two_labels_are_refused(tmp_path: Path) -> None:
    path = table(tmp_path / "a.csv", labelled(a=4))
    assert "'a' is the only label" in message(path=path)
    assert "at least 2" in message(path=path, label_names=("a",))


def test_a_label_named_twice_is_refused(tmp_path: Path) -> None:
    path = table(tmp_path / "a.csv", labelled(a=2, b=2))
    said = message(path=path, label_names=("a", "b", "a"))
    assert "data.label_names holds 'a' more than once" in said


def test_a_label_that_only_the_test_has_is_refused(tmp_path: Path) -> None:
    path = table(tmp_path / "a.csv", labelled(sport=1, money=1))
    test = table(tmp_path / "t.csv", [("x", "sport"), ("y", "sports")])
    said = message(path=path, test_path=test)
    assert said.startswith("test: 1 example(s) ")
    assert "training never saw" in said
    assert "'sports' in " in said
    assert "t.csv, line 3." in said
    assert "Known are: money, sport. Nearest: 'sport'." in said


def test_a_declared_label_that_only_the_test_has_is_a_finding(tmp_path: Path) -> None:
    path = table(tmp_path / "a.csv", labelled(a=1, b=1))
    test = table(tmp_path / "t.csv", labelled(c=1))
    data = read(path=path, test_path=test, label_names=("a", "b", "c"))
    assert data.findings == ("train: no example of 1 of 3 labels: c",)
    assert data.test.targets.tolist() == [2]


def test_a_label_that_is_not_declared_is_refused(tmp_path: Path) -> None:
    path = table(tmp_path / "a.csv", labelled(a=1, b=1, c=2))
    said = message(path=path, label_names=("a", "b"))
    assert said.startswith("train: 2 example(s) ")
    assert "data.label_names does not hold" in said
    assert "'c' in " in said
    assert "a.csv, line 4." in said


def test_sites_with_different_labels_need_declared_labels(tmp_path: Path) -> None:
    table(tmp_path / "north.csv", labelled(a=2, b=2))
    table(tmp_path / "south.csv", labelled(b=4))
    said = message(path=str(tmp_path))
    assert "site 'south' has no example of a;" in said
    assert "data.label_names=[a,b]" in said
    data = read(path=str(tmp_path), label_names=("a", "b"))
    assert data.site_sizes == (("north", 2), ("south", 2))


# --- hold-out -------------------------------------------------------------------------


def test_shares_are_rounded_by_largest_remainder() -> None:
    # 10 of (5, 3, 12) of 20: 2.5, 1.5, 6; the tie goes to the first.
    assert shares_of(np.array([5, 3, 12]), 10).tolist() == [3, 1, 6]
    # 2 of (1, 1, 2): 0.5, 0.5, 1; one of each must stay, so the single ones cannot go.
    assert shares_of(np.array([1, 1, 2]), 2, keep=1).tolist() == [0, 0, 1]
    assert shares_of(np.array([0, 4]), 4).tolist() == [0, 4]


def test_hold_out_is_even_by_label_and_keeps_the_order(tmp_path: Path) -> None:
    rows = labelled(a=20, b=10, c=5)
    data = read(path=table(tmp_path / "a.csv", rows), test_fraction=0.2)
    held = set(pairs(data, "test"))
    assert Counter(label for _, label in held) == {"a": 4, "b": 2, "c": 1}
    assert pairs(data) == [row for row in rows if row not in held]
    assert pairs(data, "test") == [row for row in rows if row in held]


def test_hold_out_follows_the_seed_alone(tmp_path: Path) -> None:
    path = table(tmp_path / "a.csv", labelled(a=50, b=50))
    once = read(path=path).test.texts
    assert read(path=path).test.texts == once
    assert read(path=path, seed=8).test.texts != once
    assert read(path=path, train_examples=10).test.texts == once


def test_hold_out_does_not_depend_on_the_order_of_the_labels(tmp_path: Path) -> None:
    """A server chooses the order: two plans would train on texts that differ by a few."""
    path = table(tmp_path / "a.csv", labelled(a=30, b=30, c=6, d=7))
    once = read(path=path, label_names=("a", "b", "c", "d"))
    for names in (
        ("a", "b", "d", "c"),
        ("d", "c", "b", "a"),
        ("a", "2", "b", "c", "10", "d"),
    ):
        assert read(path=path, label_names=names).test.texts == once.test.texts
    numbers = numbered_by_name(np.array([0, 1, 2, 3]), ("b", "10", "a", "9"))
    assert numbers.tolist() == [3, 1, 2, 0]


def test_hold_out_leaves_one_of_each_label_to_learn_from(tmp_path: Path) -> None:
    data = read(path=table(tmp_path / "a.csv", labelled(a=9, b=1)), test_fraction=0.9)
    # 9 of 10 asked: 8.1 and 0.9; b stays, so a gives 8, and no more than all but one.
    assert sorted(data.train.targets.tolist()) == [0, 1]
    said = message(path=table(tmp_path / "b.csv", labelled(a=1, b=1)))
    assert said.startswith("data.test_fraction is ")
    assert "2 training examples" in said
    assert "data.test_path=" in said


def test_texts_are_held_out_within_each_site(tmp_path: Path) -> None:
    of_sites(tmp_path, east=10, north=5)
    data = read(path=str(tmp_path), test_fraction=0.2)
    assert data.site_sizes == (("east", 16), ("north", 8))
    assert [text[:4] for text in data.train.texts] == ["east"] * 16 + ["nort"] * 8
    assert Counter((text[:4], text[-1]) for text in data.test.texts) == {
        ("east", "a"): 2,
        ("east", "b"): 2,
        ("nort", "a"): 1,
        ("nort", "b"): 1,
    }


def test_another_site_leaves_a_sites_test_texts_alone(tmp_path: Path) -> None:
    table(tmp_path / "north.csv", labelled(a=20, b=20))
    alone = read(path=str(tmp_path)).test.texts
    rows = [(f"east {text}", label) for text, label in labelled(a=3, b=3)]
    table(tmp_path / "east.csv", rows)
    together = read(path=str(tmp_path)).test.texts
    assert [text for text in together if "east" not in text] == alone


# --- drawing --------------------------------------------------------------------------


def test_draws_are_even_by_label_and_keep_the_order(tmp_path: Path) -> None:
    rows = labelled(a=60, b=30, c=10)
    test_rows = [(f"t{text}", label) for text, label in labelled(a=5, b=5)]
    settings: dict[str, Any] = {
        "path": table(tmp_path / "a.csv", rows),
        "test_path": table(tmp_path / "t.csv", test_rows),
    }
    data = read(**settings, train_examples=25, test_examples=4)
    # 25 of (60, 30, 10): 15, 7.5, 2.5; the tie goes to the first.
    assert Counter(label for _, label in pairs(data)) == {"a": 15, "b": 8, "c": 2}
    assert Counter(label for _, label in pairs(data, "test")) == {"a": 2, "b": 2}
    assert pairs(data) == [row for row in rows if row in set(pairs(data))]
    assert pairs(data) == pairs(read(**settings, train_examples=25))
    assert pairs(data) != pairs(read(**settings, train_examples=25, seed=8))
    assert set(pairs(data)) < set(pairs(read(**settings, train_examples=50)))


def test_draws_keep_the_shares_of_sites(tmp_path: Path) -> None:
    of_sites(tmp_path, east=12, north=4)
    # A hidden folder is no site.
    test = table(tmp_path / ".t" / "t.csv", labelled(a=1, b=1))
    data = read(path=str(tmp_path), test_path=test, train_examples=8)
    # 4 of each label; within a label 12 to 4, so 3 to 1.
    assert data.site_sizes == (("east", 6), ("north", 2))
    assert [text[:4] for text in data.train.texts] == ["east"] * 6 + ["nort"] * 2


@pytest.mark.parametrize(
    ("key", "available"), [("train_examples", 2), ("test_examples", 2)]
)
def test_more_examples_than_there_are_are_refused(
    tmp_path: Path, key: str, available: int
) -> None:
    path = table(tmp_path / "a.csv", labelled(a=2, b=2))
    said = message(path=path, **{key: 3})
    assert f"data.{key} is 3" in said
    assert f"only {available} examples" in said


# --- findings and errors --------------------------------------------------------------


def test_texts_in_both_parts_are_a_finding(tmp_path: Path) -> None:
    test = table(tmp_path / "t.csv", [("a0", "a"), ("new", "b"), ("b0", "a")])
    data = read(path=table(tmp_path / "a.csv", labelled(a=1, b=1)), test_path=test)
    (finding,) = data.findings
    assert finding.startswith("test: 2 of 3 texts are also in train")


def test_a_file_without_permission_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = table(tmp_path / "a.csv", labelled(a=2, b=2))

    def refuse(self: Path, *args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    assert "a.csv cannot be read: Permission denied" in message(path=path)


def test_importing_the_data_set_imports_no_heavy_package() -> None:
    code = (
        "import sys, wardround.common.data.dataset; "
        "heavy = {'torch', 'flwr', 'hydra', 'datasets', 'pyarrow', 'transformers'}; "
        "heavy |= {'wardround.client', 'wardround.server'}; "
        "sys.exit(sorted(heavy & set(sys.modules)) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
