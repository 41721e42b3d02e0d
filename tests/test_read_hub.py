"""The hub's own loading code, on folders in hub layout; no network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.reading import message, pairs, read, write

AG_LABELS = ("World", "Sports", "Business", "Sci/Tech")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in hub layout to be filled; the cache of `datasets` is elsewhere under tmp_path."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "hub" / "data").mkdir(parents=True)
    return tmp_path / "hub"


def fill(hub: Path, split: str, **columns: list[Any]) -> None:
    pq.write_table(pa.table(columns), hub / "data" / f"{split}-00000-of-00001.parquet")


def test_hub_folder_with_numbers_takes_the_declared_names(hub: Path) -> None:
    fill(hub, "train", text=["w", "t", "s"], label=[0, 3, 1])
    fill(hub, "test", text=["b"], label=[2])
    data = read(reader="hub", hub_name=str(hub), label_names=AG_LABELS)
    assert data.label_names == AG_LABELS
    assert pairs(data) == [("w", "World"), ("t", "Sci/Tech"), ("s", "Sports")]
    assert pairs(data, "test") == [("b", "Business")]
    assert data.findings == ("train: no example of 1 of 4 labels: Business",)


def test_hub_folder_with_class_names_of_its_own(hub: Path) -> None:
    import datasets

    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["neg", "pos", "mixed"]),
        }
    )
    for split in ("train", "test"):
        rows = {"text": [f"{split} 1", f"{split} 2"], "label": [1, 0]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(
            hub / "data" / f"{split}-0.parquet"
        )
    data = read(reader="hub", hub_name=str(hub))
    assert data.label_names == ("neg", "pos", "mixed")
    assert data.train.targets.tolist() == [1, 0]
    settings: dict[str, Any] = {"reader": "hub", "hub_name": str(hub)}
    translated = read(**settings, label_names=("no", "yes", "both"))
    assert translated.label_names[1] == "yes"
    for wrong in (("a", "b"), ("pos", "neg", "mixed")):
        said = message(**settings, label_names=wrong)
        assert "order: neg, pos, mixed" in said


def test_a_hub_data_set_without_a_test_split_is_split(hub: Path) -> None:
    fill(hub, "train", text=["a1", "a2", "b1", "b2"], label=["a", "a", "b", "b"])
    data = read(reader="hub", hub_name=str(hub))
    assert (len(data.train), len(data.test)) == (2, 2)


def test_hubs_ag_news_has_title_and_description_joined(hub: Path) -> None:
    fill(hub, "train", text=["title and body", "more"], label=[0, 1])
    fill(hub, "test", text=["t"], label=[0])
    settings: dict[str, Any] = {
        "reader": "hub",
        "hub_name": str(hub),
        "label_names": AG_LABELS,
    }
    data = read(**settings, text_columns=("title", "description"))
    assert data.train.texts[0] == "title and body"
    said = message(**settings, text_columns=("description",))
    assert "data.text_columns is [description]" in said
    assert "data.path=" in said


def test_a_hub_label_number_without_a_name_is_refused(hub: Path) -> None:
    fill(hub, "train", text=["x", "y"], label=[0, 2])
    said = message(reader="hub", hub_name=str(hub), label_names=("a", "b"))
    assert "split 'train', row 2: label number 2" in said
    assert "data.label_names" in said


def test_minus_one_from_the_hub_is_a_missing_label(hub: Path) -> None:
    fill(hub, "train", text=["x", "y"], label=[0, 1])
    fill(hub, "test", text=["x", "y"], label=[-1, -1])
    said = message(reader="hub", hub_name=str(hub), label_names=("a", "b"))
    assert said.startswith("test: 2 of 2 examples")
    assert "data.label_column" in said


def test_a_missing_column_or_split_of_the_hub_is_named(hub: Path) -> None:
    fill(hub, "train", sentence=["x"], label=[0])
    said = message(reader="hub", hub_name=str(hub), label_names=("a", "b"))
    assert "no column 'text'; it has: sentence, label" in said
    train = hub / "data" / "train-00000-of-00001.parquet"
    train.rename(hub / "data" / "test-00000-of-00001.parquet")
    assert "no split 'train'; it has: test" in message(reader="hub", hub_name=str(hub))


def test_a_broken_file_of_a_hub_folder_cannot_be_read(hub: Path) -> None:
    write(hub / "data" / "train-0.parquet", b"no parquet")
    assert "cannot be read" in message(reader="hub", hub_name=str(hub))


@pytest.mark.parametrize(
    ("local_reader", "form"),
    [
        ("imdb_folders", "data.path=<the folder aclImdb"),
        ("zhang_csv", "data.path=<the folder with train.csv and test.csv"),
        (None, "data.hub_name=<a folder in hub layout"),
    ],
)
def test_hub_out_of_reach_says_how_to_use_a_local_copy(
    monkeypatch: pytest.MonkeyPatch, local_reader: str | None, form: str
) -> None:
    import datasets

    def unreachable(name: str, revision: str | None) -> None:
        raise ConnectionError(f"Couldn't reach '{name}' at {revision}\nlong story")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    said = message(
        reader="hub", hub_name="some/set", hub_revision="v1", local_reader=local_reader
    )
    assert said.startswith("data.hub_name is some/set: the hub is out of reach (")
    assert "(Couldn't reach 'some/set' at v1)" in said
    assert form in said


def test_errors_of_every_library_behind_the_hub_are_explained(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import datasets
    import httpx
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    for error, what in [
        (datasets.exceptions.DatasetNotFoundError("gone"), "not found (gone)"),
        (datasets.exceptions.DatasetGenerationError("half"), "cannot be read (half)"),
        (httpx.ConnectTimeout("slow"), "out of reach (slow)"),
        (LocalEntryNotFoundError("no cache"), "(no cache)"),
        (OfflineModeIsEnabled("offline"), "out of reach (offline)"),
        (RuntimeError("scripts are not run"), "cannot be read (scripts are not run)"),
    ]:

        def load(name: str, revision: str | None, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(datasets, "load_dataset", load)
        assert what in message(reader="hub", hub_name="some/set")


def test_a_hub_folder_that_does_not_exist_is_not_found() -> None:
    assert "not found" in message(reader="hub", hub_name="/nowhere/at/all")


def test_a_path_is_read_by_the_local_reader(tmp_path: Path) -> None:
    for name in ("train", "test"):
        write(tmp_path / f"{name}.csv", f'"1","{name} good"\n"2","{name} bad"\n')
    settings: dict[str, Any] = {
        "reader": "hub",
        "hub_name": "never/asked",
        "path": str(tmp_path),
    }
    data = read(**settings, local_reader="zhang_csv", label_names=("good", "bad"))
    assert pairs(data) == [("train good", "good"), ("train bad", "bad")]
    assert "data.local_reader is missing" in message(**settings)
