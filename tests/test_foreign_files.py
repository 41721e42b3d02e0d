"""Files that are almost right: read, or refused with file, line and next step; never misread."""

from __future__ import annotations

import gzip
import json
import zipfile
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.door import CommandResult, run_dir_of, wardround
from tests.support.reading import message, pairs, read, write
from tests.support.site_lab import look, make_site
from tests.support.tiny import Make
from wardround.common.data.file_guesses import looks_like, misread
from wardround.common.file_form import FileForm
from wardround.server.engines.simulate import simulate

ROWS = "x,a\ny,b\nz,a\nw,b\n"
LETTERS = [f"Größe und Übelkeit {number},{'ab'[number % 2]}" for number in range(59)]


def rows_of(path: str, **changes: Any) -> list[tuple[str, str]]:
    """Return all examples of a file, sorted."""
    data = read(path=path, **changes)
    return sorted(pairs(data) + pairs(data, "test"))


ALL = [("w", "b"), ("x", "a"), ("y", "b"), ("z", "a")]

# --- encodings --------------------------------------------------------------------------


def test_one_wrong_byte_in_a_utf8_file_names_its_line(tmp_path: Path) -> None:
    lines = "\n".join(["text,label", *LETTERS, ""]).encode()
    path = write(tmp_path / "a.csv", lines + b"Gr\xf6\xdfe,a\n")
    said = message(path=path)
    assert "not UTF-8: byte 0xf6" in said
    assert "59 of 60 lines" in said
    assert "but not line 61" in said
    assert "windows-1252" not in said.lower()


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_site_hears_of_the_line_too(tmp_path: Path, suffix: str) -> None:
    good = {
        ".csv": "text,label\n" + "Ärger,a\n" * 3,
        ".jsonl": '{"text": "Ärger", "label": "a"}\n' * 4,
    }
    path = Path(write(tmp_path / f"a{suffix}", good[suffix].encode() + b"\xc4rger\n"))
    found = look(make_site(tmp_path, 9092, path), "data")["data"]
    assert (found.state, "but not line 5" in found.message) == ("problem", True)
    assert "Write these lines again" in found.message + found.next_step


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Больной жалуется на боли", "cp1251"),
        ("Больной жалуется на боли", "koi8-r"),
        ("głowa i żółć bolała", "cp1250"),
        ("Größe über alles", "mac_roman"),
        ("Größe äber älles", "cp850"),
        ("头痛发热咳嗽", "gbk"),
        ("Πονοκέφαλος και πυρετός", "iso8859-7"),
    ],
)
def test_windows_1252_is_not_advised_if_it_reads_badly(
    tmp_path: Path, text: str, encoding: str
) -> None:
    content = f"text,label\n{text},a\n{text},b\n".encode(encoding)
    said = message(path=write(tmp_path / "a.csv", content))
    assert "looks like" not in said
    assert "Ask the person who exported it for its encoding" in said


@pytest.mark.parametrize(
    "text", ["L’été « déjà » créée", "Fièvre à 37°C, œdème", "Übelkeit, Füße", "£5"]
)
def test_windows_1252_is_advised_if_it_reads_well(tmp_path: Path, text: str) -> None:
    content = f'text,label\n"{text}",a\n'.encode("cp1252")
    said = message(path=write(tmp_path / "a.csv", content))
    assert said.endswith("looks like Windows-1252. Set data.encoding=windows-1252")


@pytest.mark.parametrize("encoding", ["windows-1252", "latin-1", "cp1251"])
def test_utf8_is_not_read_as_another_encoding(tmp_path: Path, encoding: str) -> None:
    path = write(tmp_path / "a.csv", "\n".join(["text,label", *LETTERS, ""]))
    said = message(path=path, encoding=encoding)
    assert f"is UTF-8, but data.encoding is {encoding}." in said
    assert said.endswith("Set data.encoding=null.")
    found = look(make_site(tmp_path, 9092, Path(path), encoding=encoding), "data")
    assert found["data"].next_step == "Remove data.encoding from site.yaml."


def test_an_encoding_of_many_bytes_can_happen_to_be_utf8() -> None:
    assert misread("联通".encode("gbk"), FileForm(encoding="gbk")) is None


def test_utf16_that_is_set_for_a_utf8_file_is_taken_back(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "a.csv", "text,label\nÜbel,a\n"))
    said = looks_like(path, FileForm(encoding="utf-16-le"), ("text", "label"))
    assert said == "the file looks like UTF-8. Set data.encoding=utf-8"


# --- signs of spreadsheets --------------------------------------------------------------


@pytest.mark.parametrize("encoding", [None, "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("sign", [";", "\t", ","])
def test_excels_line_gives_the_delimiter(
    tmp_path: Path, sign: str, encoding: str | None
) -> None:
    text = f"sep={sign}\r\n" + ("text,label\n" + ROWS).replace(",", sign)
    path = write(tmp_path / "a.csv", text.encode(encoding or "utf-8"))
    assert rows_of(path, encoding=encoding) == ALL


def test_lines_are_counted_below_excels_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "sep=;\ntext;label\nx;a\nx;y;z\n")
    assert "a.csv, line 4: 3 fields" in message(path=path)
    said = message(path=path, delimiter="|")
    assert "begins with Excel's line sep=;" in said
    assert said.endswith("Set data.delimiter=null.")


def test_other_line_ends_spaces_and_empty_columns(tmp_path: Path) -> None:
    for number, text in enumerate(
        (
            f"text,label\n{ROWS}".replace("\n", "\r"),
            f"text,label\n{ROWS}".replace("\n", ",,\n"),
            f"text,label\n{ROWS}".replace("\n", ",\n").replace("label,", "label"),
            f"text , label\n{ROWS}".replace(",", ", "),
            f"t\u200bext,label\n{ROWS}",
        )
    ):
        assert rows_of(write(tmp_path / f"{number}.csv", text)) == ALL
    lines = [json.dumps({"text": text, "label": label}) for text, label in ALL]
    assert rows_of(write(tmp_path / "a.jsonl", "\r".join(lines))) == ALL


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"Export 2024\n\ntext,label\n{ROWS}", "Delete the lines above line 3"),
        ("Export;\n;\ntext;label\nx;a\n", "Delete the lines above line 3"),
        ('"text,label"\n"x,a"\n', "every line is in quotes as a whole"),
        ('"text,""label"""\n"x,""a"""\n', "every line is in quotes as a whole"),
        (f"text,label\n{ROWS}text,label\n{ROWS}", "line 6: this line is the header"),
        (f"text,label\n{ROWS},\n", "1 of 5 examples have an empty or missing text"),
    ],
)
def test_a_spreadsheets_leftovers_are_named(
    tmp_path: Path, text: str, words: str
) -> None:
    assert words in message(path=write(tmp_path / "a.csv", text))


def test_other_kinds_of_files_are_named_with_any_ending(tmp_path: Path) -> None:
    for inside, kind in (
        ("xl/workbook.xml", "an Excel workbook"),
        ("content.xml", "an OpenDocument file"),
        ("a.csv", "packed with ZIP"),
    ):
        for ending in (".csv", ".jsonl", ".parquet", ".xlsx"):
            path = tmp_path / f"a{ending}"
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("mimetype", "x")
                archive.writestr(inside, "x")
            assert kind in message(path=str(path))
    for content, kind in (
        (gzip.compress(b"text,label\n"), "packed with gzip"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Excel workbook"),
        (b"<html><table>", "HTML or XML"),
        (b"ARROW1\0\0", "an Arrow or Feather file"),
        (b"BZh91AY&SY", "packed with bzip2"),
        (b"%PDF-1.7", "a PDF"),
        (b"PAR1", "a Parquet file. Rename it"),
    ):
        said = message(path=write(tmp_path / "b.csv", content))
        assert f"b.csv is {kind}" in said


@pytest.mark.parametrize(
    ("ending", "words"),
    [(".tsv", "tab"), (".json", "jq"), (".ndjson", ".jsonl"), (".pq", ".parquet")],
)
def test_other_endings_have_a_next_step(
    tmp_path: Path, ending: str, words: str
) -> None:
    assert (
        words in message(path=write(tmp_path / f"a{ending}", "text\n")).split(". ")[1]
    )


# --- rows, of every reader --------------------------------------------------------------


def test_half_a_character_becomes_a_sign_that_tokenizers_take(tmp_path: Path) -> None:
    lines = [json.dumps({"text": text, "label": label}) for text, label in ALL]
    lines[1] = '{"text": "x\\ud83d", "label": "a\\udc00"}'
    lines[2] = '{"text": "y\\u0000", "label": "b"}'
    path = write(tmp_path / "a.jsonl", "\n".join(lines))
    data = read(path=path, label_names=("a", "a\ufffd", "b"))
    found = sorted(pairs(data) + pairs(data, "test"))
    assert found[1:3] == [("x\ufffd", "a\ufffd"), ("y\ufffd", "b")]
    (finding,) = [words for words in data.findings if "U+FFFD" in words]
    assert "2 text(s)" in finding
    assert "line 2" in finding
    told = look(make_site(tmp_path, 9092, Path(path)), "data")["data"]
    assert (told.state, "U+FFFD" in told.message) == ("warning", True)


def test_predict_takes_half_a_character(
    learned_run: tuple[list[str], CommandResult], tmp_path: Path
) -> None:
    run = str(run_dir_of(learned_run[0]))
    path = write(tmp_path / "a.jsonl", '{"text": "bank \\ud83d"}\n{"text": ""}\n')
    said = wardround("predict", run, "--file", path, "--text", "loan \udcff")
    assert said.code == 0, said.err
    texts = [json.loads(line)["text"] for line in said.out.splitlines()]
    assert texts == ["loan \ufffd", "bank \ufffd", ""]


def test_predict_reads_files_in_other_forms(
    learned_run: tuple[list[str], CommandResult], tmp_path: Path
) -> None:
    run = str(run_dir_of(learned_run[0]))
    path = write(tmp_path / "a.csv", "text;x\nÄrger;1\n".encode("cp1252"))
    form = ("--delimiter", ";", "--encoding", "windows-1252")
    said = wardround("predict", run, "--file", path, *form)
    assert said.code == 0, said.err
    assert said.out.splitlines()[1].startswith("Ärger,")


def test_a_column_twice_is_refused_by_every_reader(tmp_path: Path) -> None:
    names = ["text", "text", "label"]
    table = pa.table([pa.array(["x"]), pa.array(["y"]), pa.array(["a"])], names=names)
    pq.write_table(table, tmp_path / "a.parquet")
    write(tmp_path / "a.csv", "text,text\u200b,label\nx,y,a\n")
    for name in ("a.parquet", "a.csv"):
        said = message(path=str(tmp_path / name))
        assert "2 columns are called 'text'. Rename all except one" in said
    twice = write(tmp_path / "a.jsonl", '{"text": "x", "text": "y", "label": "a"}')
    assert "line 1: the object holds 'text' twice" in message(path=twice)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (pa.array([b"x"]), "binary data (bytes) instead of a text. Decode it"),
        (pa.array([["x"]]), "a list (list) instead of a text. Join its items"),
        (pa.array([{"a": "x"}]), "nested fields (dict) instead of a text"),
        (pa.array([1]), "a number (int) instead of a text"),
        (pa.array([0], pa.timestamp("s")), "datetime instead of a text"),
        (pa.array([Decimal("1.5")]), "a number (Decimal) instead of a text"),
    ],
)
def test_a_text_column_of_another_type_gets_advice_for_its_type(
    tmp_path: Path, values: pa.Array, words: str
) -> None:
    pq.write_table(pa.table({"text": values, "label": ["a"]}), tmp_path / "a.parquet")
    said = message(path=str(tmp_path / "a.parquet"))
    assert "a.parquet, row 1: column 'text' holds " in said
    assert words in said
    assert "data.text_columns" in said


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (pa.array(["a", "b"], pa.large_string()), ("a", "b")),
        (pa.array(["a", "b"]).dictionary_encode(), ("a", "b")),
        (pa.array([1, 2], pa.uint8()), ("1", "2")),
        (pa.array([Decimal(1), Decimal(2)], pa.decimal128(38, 0)), ("1", "2")),
        (pa.array([True, False]), ("False", "True")),
    ],
)
def test_labels_of_other_types_of_parquet(
    tmp_path: Path, values: pa.Array, names: tuple[str, ...]
) -> None:
    table = pa.table(
        {
            "text": pa.chunked_array([pa.array(list("wxyz")).dictionary_encode()]),
            "label": pa.chunked_array([values, values]),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    assert read(path=str(tmp_path / "a.parquet")).label_names == names


def test_bytes_of_parquet_that_are_no_text_name_their_row(tmp_path: Path) -> None:
    raw = pa.array([b"x", b"\xff"])
    texts = pa.StringArray.from_buffers(2, raw.buffers()[1], raw.buffers()[2])
    pq.write_table(
        pa.table({"text": texts, "label": ["a", "b"]}), tmp_path / "a.parquet"
    )
    said = message(path=str(tmp_path / "a.parquet"))
    assert "a.parquet, row 2: column 'text' holds bytes that are not UTF-8" in said


def test_json_that_is_no_line_of_one_object(tmp_path: Path) -> None:
    for text in ('[{"text": "x"}]', '[\n{"text": "x"}\n]'):
        said = message(path=write(tmp_path / "a.jsonl", text))
        assert "a.jsonl, line 1" in said
        assert "jq -c '.[]'" in said
    deep = message(path=write(tmp_path / "a.jsonl", "[" * 100_000))
    assert "line 1: too many nested brackets" in deep
    large = message(path=write(tmp_path / "a.jsonl", '{"label": ' + "1" * 5000 + "}"))
    assert "line 1: not valid JSON" in large


# --- labels that look alike -------------------------------------------------------------

ALIKE = [
    ("P\u00e9diatrie", "Pe\u0301diatrie"),
    ("Pflege", "Pfl\u200bege"),
    ("Pflege", "Pflege\ufeff"),
    ("Innere Medizin", "Innere\u00a0Medizin"),
]


@pytest.mark.parametrize(("name", "other"), ALIKE)
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_spellings_that_nobody_tells_apart_are_one_label(
    tmp_path: Path, name: str, other: str, suffix: str
) -> None:
    labels = [name, other, "z", "z"]
    path = tmp_path / f"a{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.table({"text": list("abcd"), "label": labels}), path)
    elif suffix == ".jsonl":
        rows = zip("abcd", labels, strict=True)
        lines = [json.dumps({"text": text, "label": label}) for text, label in rows]
        write(path, "\n".join(lines))
    else:
        write(path, "text,label\n" + "".join(f"t,{label}\n" for label in labels))
    data = read(path=str(path))
    assert data.label_names == (name, "z")
    (finding,) = [words for words in data.findings if "written in 2 ways" in words]
    assert "<U+" in finding
    # Names that are declared are read in the same way.
    site = make_site(tmp_path, 9092, path)
    assert look(site, "mapping", labels=(name, "z"))["mapping"].state == "ok"
    assert look(site, "data")["data"].state == "warning"


@pytest.mark.parametrize(("name", "other"), [("1", "01"), ("1", "1.0"), ("ja", "Ja")])
def test_labels_that_people_take_for_the_same_are_told(
    tmp_path: Path, name: str, other: str
) -> None:
    rows = "".join(f"t{row},{label}\n" for row, label in enumerate([name, other] * 2))
    path = write(tmp_path / "a.csv", f"text,label\n{rows}")
    data = read(path=path)
    assert set(data.label_names) == {name, other}
    assert any(f"'{name}'" in words for words in data.findings)
    found = look(make_site(tmp_path, 9092, Path(path)), "data")["data"]
    assert (found.state, "look the same" in found.message) == ("warning", True)


# --- folders ----------------------------------------------------------------------------


def test_a_folder_of_save_to_disk_is_named(tmp_path: Path) -> None:
    import datasets

    rows = datasets.Dataset.from_dict({"text": ["x"], "label": ["a"]})
    datasets.DatasetDict({"train": rows}).save_to_disk(tmp_path / "saved")
    for folder in (tmp_path / "saved", tmp_path / "saved" / "train"):
        for said in (
            message(reader="hub", hub_name=str(folder)),
            message(path=str(folder)),
        ):
            assert "was written by save_to_disk" in said
            assert "to_parquet" in said


def test_parts_of_one_data_set_are_no_sites(tmp_path: Path) -> None:
    for names in (
        ("train.csv", "test.csv", "validation.csv"),
        ("train-00000-of-00001.csv", "test-00000-of-00001.csv"),
        ("part-00000.csv", "part-00001.csv"),
    ):
        folder = tmp_path / names[0]
        for name in names:
            write(folder / name, f"text,label\n{ROWS}")
        said = message(path=str(folder))
        assert "would be read as" in said
        assert "data.path" in said.rpartition(". ")[2]


def test_a_folder_of_csv_files_is_no_hub_layout(tmp_path: Path) -> None:
    write(tmp_path / "hub" / "train.csv", f"text,label\n{ROWS}")
    said = message(reader="hub", hub_name=str(tmp_path / "hub"))
    assert "holds no Parquet file" in said
    assert "data=files" in said


# --- sites with few texts ---------------------------------------------------------------


@pytest.mark.parametrize("rows", ["x,a\ny,b\n", "x,a\ny,b\nz,a\n"])
def test_a_site_that_can_hold_out_nothing_is_told(tmp_path: Path, rows: str) -> None:
    path = Path(write(tmp_path / "a.csv", f"text,label\n{rows}"))
    found = look(make_site(tmp_path, 9092, path), "batch")["batch"]
    can_hold_out = rows.count("\n") > 2
    assert found.state == ("warning" if can_hold_out else "problem")
    assert ("none can be held out" in found.message) == (not can_hold_out)


def test_an_empty_held_out_part_names_its_site_before_training(
    make_settings: Make, tmp_path: Path
) -> None:
    for name, copies in (("large", 8), ("tiny", 1)):
        rows = "".join(f"bank {row},a\ntraining {row},b\n" for row in range(copies))
        write(tmp_path / "sites" / f"{name}.csv", f"text,label\n{rows}")
    settings = make_settings(
        f"data.path={tmp_path / 'sites'}",
        "partition=by_site",
        "num_clients=2",
        "data.test_path=null",
        "evaluation.where=sites",
        "data.split_seed=1",
        f"run_dir={tmp_path / 'run'}",
    )
    with pytest.raises(ValueError, match="site 'tiny' holds out 0 texts") as caught:
        simulate(settings)
    assert "evaluation.where=server" in str(caught.value)


# --- more signs -------------------------------------------------------------------------


def test_files_of_sites_have_names_that_differ(tmp_path: Path) -> None:
    for name in ("Pe\u0301diatrie.csv", "P\u00e9diatrie.csv"):
        write(tmp_path / "alike" / name, f"text,label\n{ROWS}")
    assert "two files for site" in message(path=str(tmp_path / "alike"))
    folder = tmp_path / "bytes"
    write(folder / "a.csv", f"text,label\n{ROWS}")
    try:
        (folder / "b\udcff.csv").write_text(f"text,label\n{ROWS}")
    except OSError:  # this file system allows only UTF-8
        return
    said = message(path=str(folder))
    assert "the name of file 'b\ufffd.csv' is not UTF-8" in said
    assert said.endswith("Rename the file.")


def test_a_file_that_ends_in_nul_bytes_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", f"text,label\n{ROWS}" + "\0" * 99)
    assert "a.csv, line 6: the row holds NUL bytes" in message(path=path)


def test_utf32_is_told_apart_from_utf16(tmp_path: Path) -> None:
    content = f"text,label\n{ROWS}".encode("utf-32")
    path = write(tmp_path / "a.csv", content)
    assert message(path=path).endswith("looks like UTF-32. Set data.encoding=utf-32")
    assert rows_of(path, encoding="utf-32") == ALL


def test_texts_that_were_garbled_earlier_are_told(tmp_path: Path) -> None:
    garbled = "Übel".encode().decode("cp1252")
    path = write(tmp_path / "a.csv", f"text,label\n{ROWS}{garbled},a\nÜber,b\n")
    (finding,) = [
        words for words in read(path=path).findings if "windows-1252" in words
    ]
    assert "1 text(s)" in finding
    assert "line 6" in finding
    found = look(make_site(tmp_path, 9092, Path(path)), "data")["data"]
    assert found.state == "warning"
