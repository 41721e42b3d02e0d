"""Files as hospital systems export them: other delimiters, other encodings, and what is said where one is
not told of them."""

from __future__ import annotations

import codecs
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.reading import DEFAULTS, message, pairs, read, write
from tests.support.site_lab import look, make_site
from tests.support.tiny import Make
from wardround.client.kit.checks.table import DATA_CHECKS
from wardround.client.site import RealSite
from wardround.client.site_file import load_site_file, write_site_file
from wardround.common.data.dataset import read_texts
from wardround.common.data.file_guesses import looks_like
from wardround.common.file_form import FileForm
from wardround.common.settings.data import DataSettings
from wardround.common.settings.tree import Settings
from wardround.common.tasks.label import LABEL
from wardround.server.compose import compose

UMLAUTS = [("Grüße, Übelkeit", "a"), ("Fieber; Müdigkeit €", "b")]


def exported(
    delimiter: str, encoding: str, header: str = "text,label", copies: int = 1
) -> bytes:
    """A CSV whose texts are quoted; comma and semicolon stand in them."""
    rows = [f'"{text}"{delimiter}{label}' for text, label in UMLAUTS * copies]
    return "\r\n".join([header.replace(",", delimiter), *rows, ""]).encode(encoding)


def settings(**changes: Any) -> DataSettings:
    """Settings of reader `files`."""
    return DataSettings(**(DEFAULTS | changes))


@pytest.fixture
def test_csv(tmp_path: Path) -> str:
    """In the form the run's other files are in: `;`, Windows-1252."""
    return write(tmp_path / "held" / "test.csv", exported(";", "cp1252"))


# --- what is read -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sign", "delimiter"),
    [(";", ";"), ("\t", "tab"), ("\t", "\t"), ("\t", r"\t"), ("|", "|"), (",", None)],
)
@pytest.mark.parametrize(
    "encoding", ["windows-1252", "cp1252", "utf-16", "utf-16-le", "UTF_8", "utf-8-sig"]
)
def test_csv_is_read_as_it_is_said_to_be_written(
    tmp_path: Path, sign: str, delimiter: str | None, encoding: str
) -> None:
    path = write(tmp_path / "a.csv", exported(sign, encoding))
    test = write(tmp_path / "held" / "t.csv", exported(sign, encoding))
    assert (
        pairs(read(path=path, test_path=test, delimiter=delimiter, encoding=encoding))
        == UMLAUTS
    )


def test_utf8_that_is_named_may_have_a_mark(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", codecs.BOM_UTF8 + exported(",", "utf-8"))
    test = write(tmp_path / "held" / "t.csv", exported(",", "utf-8"))
    assert pairs(read(path=path, test_path=test, encoding="utf-8")) == UMLAUTS


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16"])
def test_jsonl_has_an_encoding_too(tmp_path: Path, encoding: str) -> None:
    lines = "\n".join(
        json.dumps({"text": t, "label": n}, ensure_ascii=False) for t, n in UMLAUTS
    )
    path, test = (
        write(tmp_path / part / "a.jsonl", lines.encode(encoding))
        for part in ("train", "test")
    )
    assert pairs(read(path=path, test_path=test, encoding=encoding)) == UMLAUTS


def test_errors_keep_their_lines_in_another_form(tmp_path: Path) -> None:
    text = 'text;label\r\n"zwei\r\nZeilen ä";a\r\nx;y;z\r\n'
    path = write(tmp_path / "a.csv", text.encode("utf-16"))
    said = message(path=path, delimiter=";", encoding="utf-16")
    assert (
        "a.csv, line 4: 3 fields, but the first row has 2. Put fields that hold ';' in"
        in said
    )
    path = write(tmp_path / "b.csv", 'text;label\nä;a\n"open;a\ny;b\n'.encode("cp1252"))
    said = message(path=path, delimiter=";", encoding="cp1252")
    assert "b.csv, line 3: the row that starts here is broken" in said
    assert "Close every quote" in said


# --- what is refused at birth -----------------------------------------------------------------------------


@pytest.mark.parametrize("delimiter", ["", ";;", '"', "'", "\n", "\r", "\0", "tabs"])
def test_delimiter_is_one_sensible_character(delimiter: str) -> None:
    with pytest.raises(ValueError, match=r"data\.delimiter is .* one character.*"):
        settings(path="a.csv", delimiter=delimiter)


@pytest.mark.parametrize(
    "encoding", ["", "rot13", "base64", "hex", "undefined", "idna", "latin-99", "a\0b"]
)
def test_encoding_is_one_of_texts(encoding: str) -> None:
    with pytest.raises(
        ValueError, match=r"data\.encoding is .* not a text encoding.*windows-1252"
    ):
        settings(path="a.csv", encoding=encoding)


def test_an_encoding_with_a_slip_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="Nearest: 'windows_1252'"):
        FileForm(encoding="windows1252x")


def test_a_setting_that_would_do_nothing_is_refused(tmp_path: Path) -> None:
    jsonl = write(tmp_path / "a.jsonl", '{"text": "x", "label": "a"}\n')
    said = message(path=jsonl, delimiter=";")
    assert said == (
        "data.delimiter is ';', but it is for CSV files, and JSONL has no delimiter. "
        "Set data.delimiter=null."
    )
    parquet = write(tmp_path / "a.parquet", b"PAR1")
    assert "PARQUET has no delimiter" in message(path=parquet, delimiter=";")
    assert "PARQUET has no encoding. Set data.encoding=null." in message(
        path=parquet, encoding="cp1252"
    )
    with pytest.raises(
        ValueError,
        match=r"reader 'hub'.*Set data=files, or data\.encoding=null",
    ):
        settings(reader="hub", encoding="cp1252")


def test_in_a_folder_the_delimiter_is_that_of_the_csv_files(
    tmp_path: Path, test_csv: str
) -> None:
    write(tmp_path / "sites" / "a.csv", exported(";", "cp1252"))
    rows = "\n".join(
        json.dumps({"text": text, "label": label}) for text, label in UMLAUTS
    )
    write(tmp_path / "sites" / "b.jsonl", rows)
    data = read(
        path=str(tmp_path / "sites"),
        test_path=test_csv,
        delimiter=";",
        encoding="cp1252",
    )
    assert data.site_sizes == (("a", 2), ("b", 2))
    assert pairs(data) == UMLAUTS * 2


# --- what is guessed --------------------------------------------------------------------------------------

ROWS = {
    "Windows-1252 with ';' between columns": (
        exported(";", "cp1252"),
        "windows-1252",
        '";"',
    ),
    "Windows-1252": (exported(",", "cp1252"), "windows-1252", None),
    "UTF-8 with ';' between columns": (exported(";", "utf-8-sig"), None, '";"'),
    "UTF-8 with a tab between columns": (exported("\t", "utf-8"), None, "tab"),
    "UTF-8 with '|' between columns": (exported("|", "utf-8"), None, '"|"'),
    "UTF-16 with a tab between columns": (exported("\t", "utf-16"), "utf-16", "tab"),
    "UTF-16-LE with ';' between columns": (
        exported(";", "utf-16-le"),
        "utf-16-le",
        '";"',
    ),
    "UTF-16-BE": (exported(",", "utf-16-be"), "utf-16-be", None),
}


@pytest.mark.parametrize("looks", ROWS)
def test_a_simulation_is_told_what_to_set(tmp_path: Path, looks: str) -> None:
    content, encoding, delimiter = ROWS[looks]
    path = write(tmp_path / "a.csv", content)
    words = [] if encoding is None else [f"data.encoding={encoding}"]
    if delimiter is not None:
        words.append(
            f"'data.delimiter={delimiter}'"
            if '"' in delimiter
            else f"data.delimiter={delimiter}"
        )
    said = message(path=path)
    assert said.endswith(f"; the file looks like {looks}. Set {' '.join(words)}")
    # What it names works, as a person would paste it.
    pasted = [word.strip("'") for word in words]
    told = compose(["data=files", f"data.path={path}", *pasted]).settings.data
    test = write(tmp_path / "held" / "t.csv", content)
    data = read(
        path=path, test_path=test, delimiter=told.delimiter, encoding=told.encoding
    )
    assert pairs(data) == UMLAUTS


@pytest.mark.parametrize("looks", ROWS)
def test_a_site_is_told_what_to_set(tmp_path: Path, looks: str) -> None:
    content, encoding, delimiter = ROWS[looks]
    lines = [] if encoding is None else [f"data.encoding: {encoding}"]
    lines += [] if delimiter is None else [f"data.delimiter: {delimiter}"]
    path = Path(write(tmp_path / "letters.csv", content))
    site = make_site(tmp_path, 9092, path)
    findings = look(site, *DATA_CHECKS)
    (found,) = [finding for finding in findings.values() if finding.state == "problem"]
    assert found.message.endswith(f"; the file looks like {looks}")
    assert found.next_step == f"Set {' and '.join(lines)} in site.yaml"
    # What it names works, written into the file of the site.
    write_site_file(site, tmp_path / "site.yaml")
    written = (tmp_path / "site.yaml").read_text()
    for line in lines:
        key, _, value = line.removeprefix("data.").partition(": ")
        assert f"  {key}: null\n" in written
        written = written.replace(f"  {key}: null\n", f"  {key}: {value}\n")
    (tmp_path / "site.yaml").write_text(written)
    righted = look(load_site_file(tmp_path / "site.yaml"), "data", "columns", "labels")
    assert (righted["data"].state, righted["columns"].state) == ("ok", "ok"), righted
    assert righted["labels"].message == "a 1, b 1"


def test_no_text_stands_in_what_is_said(tmp_path: Path) -> None:
    said = message(path=write(tmp_path / "a.csv", exported(";", "cp1252")))
    assert not any(word in said for text, _ in UMLAUTS for word in text.split())


def test_what_is_said_wins_where_it_fits(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "a.csv", exported(",", "cp1252", "Text,label")))
    # Latin-1 and Windows-1252 both fit; the column is missing for another reason.
    assert looks_like(path, FileForm(encoding="latin-1"), ("text", "label")) is None
    assert "Nearest: 'Text'" in message(path=str(path), encoding="latin-1")


def test_a_wrong_setting_is_taken_back(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", exported(",", "utf-8"))
    said = message(path=path, delimiter=";", encoding="utf-16")
    assert "is not UTF-16: UTF-16 stream does not start with BOM" in said
    assert said.endswith("Set data.encoding=utf-8 'data.delimiter=\",\"'")


def test_bytes_of_no_known_encoding_are_no_guess(tmp_path: Path) -> None:
    # 0x81 is no character of Windows-1252, and stands alone in no UTF-8.
    path = write(tmp_path / "a.csv", b"text,label\n\x81,a\n")
    assert message(path=path).endswith(
        "is not UTF-8: byte 0x81 at offset 11, line 2. Ask the person who exported it for its encoding, and set "
        "data.encoding to that."
    )


def test_another_delimiter_is_told_though_other_columns_are_missing(
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "a.csv", "Befund;Fach;Datum\nx;y;z\n")
    assert (
        "has no column 'text'; the file looks like UTF-8 with ';' between columns"
        in message(path=path)
    )
    # Then the names are wrong, and nothing else.
    assert "it has: Befund, Fach, Datum." in message(path=path, delimiter=";")


def test_quotes_in_the_header_are_no_broken_row(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", '"text";"label"\n"x, y";"a"\n')
    said = message(path=path)
    assert "with ';' between columns" in said
    assert "Close every quote" not in said


def test_a_semicolon_needs_no_quotes_beside_those_of_the_shell() -> None:
    words = ["data=files", "data.path=a.csv", "data.delimiter=;"]
    assert compose(words).settings.data.delimiter == ";"


# --- whose file it is -------------------------------------------------------------------------------------


def test_a_site_reads_its_own_file_in_its_own_form(
    make_settings: Make, tiny_model: Path, tmp_path: Path
) -> None:
    """The coordinator's central test set is written in another way, of which sites learn nothing."""
    own = Path(write(tmp_path / "own.csv", exported("\t", "utf-16", copies=3)))
    at_server = make_settings(
        "engine=deployment",
        f"data.path={own}",
        "data.label_names=[a,b]",
        'data.delimiter=";"',
        "data.encoding=cp1252",
    )
    sent = Settings.from_json(at_server.for_sites().to_json())
    assert (sent.data.delimiter, sent.data.encoding) == (None, None)
    site = make_site(
        tmp_path, 9092, own, model=tiny_model, delimiter="tab", encoding="utf-16"
    )
    here = RealSite(site).localise(sent).data
    assert (here.delimiter, here.encoding) == ("tab", "utf-16")
    read_here = read_texts(LABEL, here, seed=0, site="st_marys")
    assert set(pairs(read_here) + pairs(read_here, "test")) == set(UMLAUTS)
    # A server that says it nevertheless is not heard.
    plain = (
        RealSite(replace(site, delimiter=None, encoding=None)).localise(at_server).data
    )
    assert (plain.delimiter, plain.encoding) == (None, None)


def test_folders_of_earlier_versions_are_read(make_settings: Make) -> None:
    told = make_settings().to_dict()
    del told["data"]["delimiter"], told["data"]["encoding"]
    data = Settings.from_dict(told).data
    assert (data.delimiter, data.encoding) == (None, None)


def test_a_site_whose_setting_does_nothing(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "a.jsonl", '{"text": "x", "label": "a"}\n'))
    found = look(make_site(tmp_path, 9092, path, delimiter=";"), "data")["data"]
    assert (found.state, "JSONL has no delimiter" in found.message) == ("problem", True)
    assert found.next_step == "Remove data.delimiter from site.yaml."


def test_jsonl_of_a_site_in_another_encoding(tmp_path: Path) -> None:
    row = json.dumps({"text": "Übel", "label": "a"}, ensure_ascii=False)
    path = Path(write(tmp_path / "a.jsonl", f"{row}\n".encode("cp1252")))
    found = look(make_site(tmp_path, 9092, path), "data")["data"]
    assert (found.state, found.next_step) == (
        "problem",
        "Set data.encoding: windows-1252 in site.yaml",
    )
    unmarked = look(make_site(tmp_path, 9092, path, encoding="utf-16"), "data")["data"]
    assert (unmarked.state, "is not UTF-16" in unmarked.message) == ("problem", True)
