"""Wrong texts and labels on the command line: exit code 2, and no file changed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.door import changed, contents, tiny, wardround
from tests.support.tiny import write_texts


@dataclass(frozen=True)
class Finished:
    """A finished run. Its data files lie beside it, and tests may spoil them."""

    folder: Path
    overrides: list[str]


@pytest.fixture(scope="module")
def only_run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Return one run for all tests. No test may change it."""
    folder = tmp_path_factory.mktemp("finished")
    train = write_texts(folder / "train.csv", 24, 0)
    test = write_texts(folder / "test.csv", 9, 1)
    overrides = tiny(tiny_model, train, test, folder / "run")
    said = wardround("simulate", *overrides)
    assert said.code == 0, said.err
    return Finished(folder, overrides)


@pytest.fixture
def finished(only_run: Finished) -> Iterator[Finished]:
    """Yield the run. Its data files are restored afterwards."""
    kept = {path: path.read_bytes() for path in only_run.folder.glob("*.csv")}
    yield only_run
    for path, content in kept.items():
        path.write_bytes(content)


HEADER = "text,label\n"
ROWS = "".join(
    f"{text},{label}\n"
    for text, label in [("goal team", "sport"), ("bank loan", "money")] * 4
)

WINDOWS = "Set data.encoding=windows-1252"

# One row for each mistake: file, content, and key, place and next step in the message.
SPOILED: dict[str, tuple[str, bytes | None, list[str]]] = {
    "missing file": (
        "train.csv",
        None,
        ["train.csv does not exist", "Correct data.path."],
    ),
    "missing test file": (
        "test.csv",
        None,
        ["test.csv does not exist", "Correct data.test_path."],
    ),
    "missing column": (
        "train.csv",
        f"texts,label\n{ROWS}".encode(),
        [
            "train.csv has no column 'text'",
            "texts, label",
            "Nearest: 'texts'",
            "Set data.text_columns",
        ],
    ),
    "missing label column": (
        "test.csv",
        f"text,topic\n{ROWS}".encode(),
        ["test.csv has no column 'label'", "text, topic", "Set data.label_column"],
    ),
    "no byte": ("train.csv", b"", ["train.csv is empty (0 bytes)"]),
    "header alone": (
        "train.csv",
        HEADER.encode(),
        ["train.csv is empty: it holds no example"],
    ),
    "too many fields": (
        "train.csv",
        f"{HEADER}{ROWS}one, two,sport\n".encode(),
        ["train.csv, line 10: 3 fields", "double quotes"],
    ),
    "open quote": (
        "train.csv",
        f'{HEADER}"goal,sport\n{ROWS}'.encode(),
        ["train.csv, line 2: ", "line 10", "Close every quote"],
    ),
    "not UTF-8": (
        "train.csv",
        f"{HEADER}{ROWS}caf\xe9,money\n".encode("latin-1"),
        ["train.csv is not UTF-8: byte 0xe9", "line 10;", "Windows-1252", WINDOWS],
    ),
    "as Excel writes it": (
        "train.csv",
        'text;label\n"caf\xe9, open";money\n'.encode("cp1252"),
        ["Windows-1252", f"{WINDOWS} 'data.delimiter=\";\"'"],
    ),
    "empty text": (
        "train.csv",
        f"{HEADER}{ROWS},sport\n  ,money\n".encode(),
        [
            "train: 2 of 10 examples",
            "train.csv, line 10",
            "data.drop_empty=true",
        ],
    ),
    "empty test text": (
        "test.csv",
        f"{HEADER}{ROWS},sport\n".encode(),
        [
            "test: 1 of 9 examples",
            "test.csv, line 10",
            "data.drop_empty=true",
        ],
    ),
    "no label": (
        "train.csv",
        f"{HEADER}{ROWS}goal,\n".encode(),
        [
            "train: 1 of 9 examples have no label in 'label'",
            "train.csv, line 10",
            "set data.label_column",
        ],
    ),
    "one label": (
        "train.csv",
        f"{HEADER}a,sport\nb,sport\n".encode(),
        ["'sport' is the only label", "data.label_names=[...]"],
    ),
    "unknown label": (
        "test.csv",
        f"{HEADER}goal,sport\nbank,moneys\n".encode(),
        [
            "test: 1 example",
            "'moneys'",
            "test.csv, line 3",
            "Nearest: 'money'",
            "data.label_names",
        ],
    ),
}


@pytest.mark.parametrize("mistake", SPOILED)
def test_a_spoiled_file_is_refused_and_the_run_kept(
    mistake: str, finished: Finished
) -> None:
    name, content, words = SPOILED[mistake]
    before = contents(finished.folder / "run")
    if content is None:
        (finished.folder / name).unlink()
    else:
        (finished.folder / name).write_bytes(content)
    said = wardround("simulate", *changed(finished.overrides, "num_rounds=3"))
    assert said.code == 2, said
    assert said.err.startswith("error: ")
    assert [word for word in words if word not in said.err] == []
    assert said.out == ""
    assert contents(finished.folder / "run") == before


def test_empty_texts_are_left_out_and_counted_if_asked(
    tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "train.csv").write_text(f"{HEADER}{ROWS},sport\n  ,money\n")
    (tmp_path / "test.csv").write_text(f"{HEADER}{ROWS},sport\n")
    overrides = tiny(
        tiny_model, tmp_path / "train.csv", tmp_path / "test.csv", tmp_path / "run"
    )
    said = wardround("simulate", *overrides, "data.drop_empty=true")
    assert said.code == 0, said.err
    assert "train: 2 examples with empty text left out" in said.err
    assert "test: 1 example with empty text left out" in said.err
    # 10 and 9 rows less 2 and 1.
    assert said.err.count("left out") == 2
    history = (tmp_path / "run" / "history.jsonl").read_text().splitlines()
    assert '"train": {"loss": null, "num_examples": 0}' in history[0]
    assert '"num_examples": 8}' in history[0]


# --- one file a site ------------------------------------------------------------------


def by_site(model: Path, folder: Path, num_clients: int, **sites: str) -> list[str]:
    """Return overrides of a run over a folder with one file for each site (name -> rows)."""
    (folder / "sites").mkdir()
    for name, rows in sites.items():
        (folder / "sites" / f"{name}.csv").write_text(HEADER + rows)
    (folder / "test.csv").write_text(HEADER + ROWS)
    overrides = tiny(model, folder / "sites", folder / "test.csv", folder / "run")
    return changed(overrides, "partition=by_site", f"num_clients={num_clients}")


def test_label_sets_that_differ_between_sites_are_refused(
    tiny_model: Path, tmp_path: Path
) -> None:
    overrides = by_site(
        tiny_model, tmp_path, 2, north=ROWS, south="goal,sport\nteam,sport\n"
    )
    said = wardround("simulate", *overrides)
    assert said.code == 2
    assert "site 'south' has no example of money" in said.err
    assert "set data.label_names=[money,sport]" in said.err
    assert not (tmp_path / "run").exists()
    # The next step in the message works.
    agreed = wardround("simulate", *overrides, "data.label_names=[money,sport]")
    assert agreed.code == 0, agreed.err


@pytest.mark.parametrize("num_clients", [1, 3])
def test_another_number_of_clients_than_sites_is_refused(
    tiny_model: Path, tmp_path: Path, num_clients: int
) -> None:
    overrides = by_site(tiny_model, tmp_path, num_clients, north=ROWS, south=ROWS)
    said = wardround("simulate", *overrides)
    assert said.code == 2
    assert f"num_clients is {num_clients} but data.path holds 2" in said.err
    assert "(north, south)" in said.err
    assert "Set num_clients=2" in said.err
    assert not (tmp_path / "run").exists()
    assert wardround("simulate", *changed(overrides, "num_clients=2")).code == 0
