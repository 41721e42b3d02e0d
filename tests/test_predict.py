"""`wardround predict`: its input, its output, and its refusals."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.support.door import CommandResult, run_dir_of, wardround
from tests.support.tiny import TOPICS
from wardround.server.labelled_files import kept_names


@pytest.fixture
def run(learned_run: tuple[list[str], CommandResult]) -> Path:
    """A finished run's folder."""
    return run_dir_of(learned_run[0])


def rows(said: CommandResult) -> list[dict[str, str]]:
    """Return the printed lines, by column."""
    assert said.code == 0, said.err
    return list(csv.DictReader(said.out.splitlines(keepends=True)))


def test_texts_get_a_label_and_probabilities_that_add_up(run: Path) -> None:
    words = ("--text", "goal, match", "--text", 'a "new" nurse')
    found = rows(wardround("predict", str(run), *words))
    assert list(found[0]) == ["text", "label", *sorted(TOPICS)]
    assert [row["text"] for row in found] == ["goal, match", 'a "new" nurse']
    assert [row["label"] for row in found] == ["sport", "health"]
    for row in found:
        probabilities = {label: float(row[label]) for label in TOPICS}
        # Three values rounded to four digits.
        assert sum(probabilities.values()) == pytest.approx(1, abs=2e-4)
        assert probabilities[row["label"]] == max(probabilities.values())


def test_a_text_has_the_same_label_alone_and_among_others(
    run: Path, tmp_path: Path
) -> None:
    texts = [f"{'goal ' * length}nurse" for length in range(40)]
    (tmp_path / "many.csv").write_text(
        "text\n" + "".join(f"{text}\n" for text in texts)
    )
    together = rows(
        wardround("predict", str(run), "--file", str(tmp_path / "many.csv"))
    )
    assert [row["text"] for row in together] == texts
    for number in (0, 31, 32, 39):
        (alone,) = rows(wardround("predict", str(run), "--text", texts[number]))
        assert [float(alone[label]) for label in TOPICS] == pytest.approx(
            [float(together[number][label]) for label in TOPICS], abs=2e-4
        )


def test_the_column_of_texts_can_be_named(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "letters.csv"
    words = ("--file", str(file), "--column", "body")
    # With the byte order mark that spreadsheets write, and a line break inside a field.
    file.write_text('\ufeffid,body\n1,"goal\nteam"\n2,bank loan\n', encoding="utf-8")
    found = rows(wardround("predict", str(run), *words))
    assert list(found[0]) == ["id", "body", "label", *sorted(TOPICS)]
    assert [row["id"] for row in found] == ["1", "2"]
    assert [row["body"] for row in found] == ["goal\nteam", "bank loan"]
    first = rows(wardround("predict", str(run), "--text", "new", *words))
    assert [row["body"] for row in first] == ["new", "goal\nteam", "bank loan"]
    assert [row["id"] for row in first] == ["", "1", "2"]


def test_all_columns_of_a_file_are_kept(run: Path, tmp_path: Path) -> None:
    """Negative numbers stay numbers; a text that begins like a formula gets its mark."""
    file = tmp_path / "letters.csv"
    file.write_text("change,text,note\n-1.50,goal match,=1+1\n007,nurse,\n")
    found = rows(wardround("predict", str(run), "--file", str(file)))
    assert list(found[0]) == ["change", "text", "note", "label", *sorted(TOPICS)]
    kept = [(row["change"], row["text"], row["note"]) for row in found]
    assert kept == [("-1.50", "goal match", "'=1+1"), ("007", "nurse", "")]
    assert [row["label"] for row in found] == ["sport", "health"]


def test_a_file_of_json_objects_keeps_their_keys(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "letters.jsonl"
    given: list[dict[str, Any]] = [
        {"id": 1, "body": "goal match", "tags": ["a", "b"]},
        {"body": "é nurse", "known": None},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in given))
    words = ("predict", str(run), "--file", str(file), "--column", "body")
    said = wardround(*words)
    assert said.code == 0, said.err
    found = [json.loads(line) for line in said.out.splitlines()]
    added = ["label", *sorted(TOPICS)]
    for row, before, label in zip(found, given, ("sport", "health"), strict=True):
        assert list(row) == [*before, *added]
        assert {key: row[key] for key in before} == before
        assert row["label"] == label
        assert sum(row[name] for name in TOPICS) == pytest.approx(1, abs=2e-4)


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_column_with_the_name_of_an_answer_gets_another_name(
    run: Path, tmp_path: Path, ending: str
) -> None:
    file = tmp_path / f"letters.{ending}"
    file.write_text(
        "text,label\ngoal match,x\n"
        if ending == "csv"
        else '{"text": "goal match", "label": "x"}\n'
    )
    words = ("predict", str(run), "--file", str(file))
    said = wardround(*words)
    assert said.code == 0, said.err
    assert "'label'" in said.err
    assert "'file_label'" in said.err
    if ending == "csv":
        (row,) = csv.DictReader(said.out.splitlines())
    else:
        row = json.loads(said.out)
    assert list(row) == ["text", "file_label", "label", *sorted(TOPICS)]
    assert (row["file_label"], row["label"]) == ("x", "sport")


def test_a_name_for_a_kept_column_is_free() -> None:
    columns = ["label", "file_label", "text"]
    names = kept_names(columns, ["label", "sport"])
    assert names == ["file_file_label", "file_label", "text"]


def test_a_line_of_json_without_a_text(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "letters.jsonl"
    for line, words in (
        ('{"body": "a"}', ["line 2 has no column 'text'", "--column"]),
        ('{"text": 7}', ["line 2: text is no text but 7", "double quotes"]),
        ("text", ["line 2: not valid JSON"]),
    ):
        file.write_text(f'{{"text": "goal"}}\n{line}\n')
        said = wardround("predict", str(run), "--file", str(file))
        assert (said.code, said.out) == (2, "")
        assert [word for word in words if word not in said.err] == []


def test_texts_are_cut_to_the_words_the_model_was_trained_on(
    run: Path, tmp_path: Path
) -> None:
    short = tmp_path / "short"
    shutil.copytree(run, short)
    file = short / "model" / "wardround.json"
    settings = json.loads(file.read_text())
    settings["data"]["max_words"] = 2
    file.write_text(json.dumps(settings))
    (short / "settings.json").write_text("of another run")
    words = ("--text", "goal  match nurse", "--text", "goal match")
    (whole, cut) = rows(wardround("predict", str(short), *words))
    assert whole == cut | {"text": "goal  match nurse"}
    (uncut,) = rows(wardround("predict", str(run), "--text", "goal  match nurse"))
    assert uncut != whole
    # Earlier versions wrote no settings into the model's folder.
    file.unlink()
    (short / "settings.json").write_text(json.dumps(settings))
    (old,) = rows(wardround("predict", str(short), "--text", "goal  match nurse"))
    assert old == whole


def test_run_folder_and_model_folder_give_the_same_labels(
    run: Path, tmp_path: Path
) -> None:
    shutil.copytree(run / "model", tmp_path / "moved")
    asked = [
        wardround("predict", str(folder), "--text", "bank")
        for folder in (run, run / "model")
    ]
    asked.append(wardround("predict", str(tmp_path / "moved"), "--text", "bank"))
    assert {said.out for said in asked} == {asked[0].out}
    assert asked[0].code == 0


# One row for each mistake: the file's bytes, more arguments, and facts of the message.
WRONG_FILES: dict[str, tuple[bytes | None, list[str], list[str]]] = {
    "column": (b"body\na\n", [], ["no column 'text'", "body", "--column"]),
    "named column": (
        b"text\na\n",
        ["--column", "txt"],
        ["no column 'txt'", "Nearest: 'text'"],
    ),
    "not UTF-8": (
        "text\ncafé\n".encode("latin-1"),
        [],
        ["byte 0xe9", "line 2", "--encoding=windows-1252"],
    ),
    "open quote": (
        b'text\n"a\n',
        [],
        ["f.csv, line 2", "Close every quote"],
    ),
    "too many fields": (
        b"text\na,b\n",
        [],
        ["line 2: 2 fields, but the first row has 1"],
    ),
    "no file": (None, [], ["--file", "f.csv does not exist"]),
    "no byte": (b"", [], ["f.csv", "0 bytes"]),
    "no row": (b"text\n", [], ["nothing to label", "--text", "--file"]),
    "workbook": (
        b"PK\x03\x04",
        [],
        ["is a damaged ZIP archive; --file reads .csv, .jsonl"],
    ),
    "semicolons": (
        b"text;more\na;b\n",
        [],
        ["with ';' between columns", '--delimiter=";"'],
    ),
    "delimiter": (b"text\na\n", ["--delimiter", "xy"], ["--delimiter is 'xy'"]),
}


@pytest.mark.parametrize("mistake", WRONG_FILES)
def test_a_file_with_a_mistake_is_refused_with_its_place(
    mistake: str, run: Path, tmp_path: Path
) -> None:
    content, more, facts = WRONG_FILES[mistake]
    if content is not None:
        (tmp_path / "f.csv").write_bytes(content)
    said = wardround("predict", str(run), "--file", str(tmp_path / "f.csv"), *more)
    assert (said.code, said.out) == (2, "")
    assert [fact for fact in facts if fact not in said.err] == []


def test_a_command_without_texts_is_refused(run: Path) -> None:
    said = wardround("predict", str(run))
    assert (said.code, said.out) == (2, "")
    assert "--text" in said.err
    assert "--file" in said.err


def test_a_device_that_does_not_exist_is_refused(run: Path) -> None:
    said = wardround("predict", str(run), "--text", "a", "--device", "cuda:99")
    assert (said.code, said.out) == (2, "")
    assert "device is 'cuda:99'" in said.err


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "not_there"):
        said = wardround("predict", str(folder), "--text", "a")
        assert said.code == 2
        assert f"'{folder}' holds no model" in said.err
        assert "model/config.json" in said.err


@pytest.mark.parametrize("part", ["gate.safetensors", "local/model.safetensors"])
def test_a_damaged_mixture_is_named(run: Path, tmp_path: Path, part: str) -> None:
    for expert in ("local", "global"):
        shutil.copytree(run / "model", tmp_path / expert)
    width = json.loads((run / "model" / "config.json").read_text())["hidden_size"]
    gate = {"0.weight": torch.ones(2, width), "0.bias": torch.ones(2)}
    gate |= {"2.weight": torch.ones(1, 2), "2.bias": torch.ones(1)}
    save_file(gate, tmp_path / "gate.safetensors")
    assert wardround("predict", str(tmp_path), "--text", "a").code == 0
    (tmp_path / part).write_bytes((tmp_path / part).read_bytes()[:-8])
    said = wardround("predict", str(tmp_path), "--text", "a")
    assert said.code == 2
    folder = (tmp_path / part).parent
    assert f"'{folder}' holds a model that cannot be loaded" in said.err


@pytest.mark.parametrize(
    ("damage", "fact"),
    [
        ("gone", "lacks model.safetensors"),
        ("cut", "holds a model that cannot be loaded"),
        ("pickled", "with model.safetensors"),
    ],
)
def test_a_model_without_weights_is_refused(
    run: Path, tmp_path: Path, damage: str, fact: str
) -> None:
    shutil.copytree(run / "model", tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-8])
    else:
        weights.unlink()
    if damage == "pickled":  # no pickle is ever read
        torch.save({}, tmp_path / "model" / "pytorch_model.bin")
    said = wardround("predict", str(tmp_path / "model"), "--text", "a")
    assert said.code == 2
    assert fact in said.err


def test_an_encoder_without_a_trained_classifier_is_refused(tiny_model: Path) -> None:
    said = wardround("predict", str(tiny_model), "--text", "a")
    assert (said.code, said.out) == (2, "")
    assert f"'{tiny_model}' holds no trained classifier" in said.err
    assert "wardround simulate model=hf" in said.err
