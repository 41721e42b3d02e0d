"""Files as hospital systems export them: other delimiters, other encodings, and the messages
if the settings do not name them."""

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
    """Return a CSV whose texts are quoted, with commas and semicolons in them."""
    rows = [f'"{text}"{delimiter}{label}' for text, label in UMLAUTS * copies]
    return "\r\n".join([header.replace(",", delimiter), *rows, ""]).encode(encoding)


def settings(**changes: Any) -> DataSettings:
    """Return settings of reader `files`."""
    return DataSettings(**(DEFAULTS | changes))


@pytest.fixture
def test_csv(tmp_path: Path) -> str:
    """Write a test set with `;` in Windows-1252. Return its path."""
    return write(tmp_path / "held" / "test.csv", exported(";", "cp1252"))


# --- files that are read --------------------------------------------------------------


@pytest.mark.parametrize(
    ("sign", "delimiter"),
    [(";", ";"), ("\t", "tab"), ("\t", "\t"), ("\t", r"\t"), ("|", "|"), (",", None)],
)
@pytest.mark.parametrize(
    "encoding", ["windows-1252", "cp1252", "utf-16", "utf-16-le", "UTF_8", "utf-8-sig"]
)
def test_a_csv_is_read_in_the_form_of_the_settings(
    tmp_path: Path, sign: str, delimiter: str | None, encoding: str
) -> None:
    path = write(tmp_path / "a.csv", exported(sign, encoding))
    test = write(tmp_path / "held" / "t.csv", exported(sign, encoding))
    data = read(path=path, test_path=test, delimiter=delimiter, encoding=encoding)
    assert pairs(data) == UMLAUTS


def test_utf8_may_have_a_byte_order_mark(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", codecs.BOM_UTF8 + exported(",", "utf-8"))
    test = write(tmp_path / "held" / "t.csv", exported(",", "utf-8"))
    assert pairs(read(path=path, test_path=test, encoding="utf-8")) == UMLAUTS


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16"])
def test_a_jsonl_file_can_have_another_encoding(tmp_path: Path, encoding: str) -> None:
    rows = [{"text": text, "label": label} for text, label in UMLAUTS]
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    path, test = (
        write(tmp_path / part / "a.jsonl", lines.encode(encoding))
        for part in ("train", "test")
    )
    assert pairs(read(path=path, test_path=test, encoding=encoding)) == UMLAUTS


def test_errors_name_the_right_line_in_another_form(tmp_path: Path) -> None:
    text = 'text;label\r\n"zwei\r\nZeilen ä";a\r\nx;y;z\r\n'
    path = write(tmp_path / "a.csv", text.encode("utf-16"))
    error = message(path=path, delimiter=";", encoding="utf-16")
    assert "a.csv, line 4: 3 fields" in error
    assert "Put fields that hold ';' in" in error
    path = write(tmp_path / "b.csv", 'text;label\nä;a\n"open;a\ny;b\n'.encode("cp1252"))
    error = message(path=path, delimiter=";", encoding="cp1252")
    assert "b.csv, line 3: " in error
    assert "Close every quote" in error


# --- settings that are refused --------------------------------------------------------


@pytest.mark.parametrize("delimiter", ["", ";;", '"', "'", "\n", "\r", "\0", "tabs"])
def test_a_delimiter_that_is_not_one_usable_character_is_refused(
    delimiter: str,
) -> None:
    with pytest.raises(ValueError, match=r"^data\.delimiter is .* tab.* null") as error:
        settings(path="a.csv", delimiter=delimiter)
    assert str(error.value).startswith(f"data.delimiter is {delimiter!r}")


@pytest.mark.parametrize(
    "encoding", ["", "rot13", "base64", "hex", "undefined", "idna", "latin-99", "a\0b"]
)
def test_an_encoding_that_is_not_for_texts_is_refused(encoding: str) -> None:
    with pytest.raises(ValueError, match=r"windows-1252.*null for UTF-8") as error:
        settings(path="a.csv", encoding=encoding)
    assert str(error.value).startswith(f"data.encoding is {encoding!r}")


def test_a_misspelled_encoding_is_refused_and_the_nearest_named() -> None:
    with pytest.raises(ValueError, match="Nearest: 'windows_1252'"):
        FileForm(encoding="windows1252x")


def test_a_setting_without_an_effect_is_refused(tmp_path: Path) -> None:
    jsonl = write(tmp_path / "a.jsonl", '{"text": "x", "label": "a"}\n')
    error = message(path=jsonl, delimiter=";")
    assert error.startswith("data.delimiter is ';'")
    assert "JSONL" in error
    assert error.endswith("Set data.delimiter=null.")
    parquet = write(tmp_path / "a.parquet", b"PAR1")
    error = message(path=parquet, delimiter=";")
    assert "PARQUET" in error
    assert error.endswith("Set data.delimiter=null.")
    error = message(path=parquet, encoding="cp1252")
    assert "PARQUET" in error
    assert error.endswith("Set data.encoding=null.")
    expected = r"'hub'.*Set data=files, or data\.encoding=null"
    with pytest.raises(ValueError, match=expected):
        settings(reader="hub", encoding="cp1252")


def test_in_a_folder_the_delimiter_is_used_for_the_csv_files(
    tmp_path: Path, test_csv: str
) -> None:
    write(tmp_path / "sites" / "a.csv", exported(";", "cp1252"))
    rows = [json.dumps({"text": text, "label": label}) for text, label in UMLAUTS]
    write(tmp_path / "sites" / "b.jsonl", "\n".join(rows))
    sites = str(tmp_path / "sites")
    data = read(path=sites, test_path=test_csv, delimiter=";", encoding="cp1252")
    assert data.site_sizes == (("a", 2), ("b", 2))
    assert pairs(data) == UMLAUTS * 2


# --- guesses --------------------------------------------------------------------------

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
def test_a_simulation_names_the_settings_for_the_file(
    tmp_path: Path, looks: str
) -> None:
    content, encoding, delimiter = ROWS[looks]
    path = write(tmp_path / "a.csv", content)
    words = [] if encoding is None else [f"data.encoding={encoding}"]
    if delimiter is not None:
        word = f"data.delimiter={delimiter}"
        words.append(f"'{word}'" if '"' in word else word)
    assert message(path=path).endswith(f"{looks}. Set {' '.join(words)}")
    # These settings work if a person pastes them.
    pasted = [word.strip("'") for word in words]
    form = compose(["data=files", f"data.path={path}", *pasted]).settings.data
    test = write(tmp_path / "held" / "t.csv", content)
    data = read(
        path=path, test_path=test, delimiter=form.delimiter, encoding=form.encoding
    )
    assert pairs(data) == UMLAUTS


@pytest.mark.parametrize("looks", ROWS)
def test_a_site_names_the_settings_for_the_file(tmp_path: Path, looks: str) -> None:
    content, encoding, delimiter = ROWS[looks]
    lines = [] if encoding is None else [f"data.encoding: {encoding}"]
    lines += [] if delimiter is None else [f"data.delimiter: {delimiter}"]
    path = Path(write(tmp_path / "letters.csv", content))
    site = make_site(tmp_path, 9092, path)
    findings = look(site, *DATA_CHECKS)
    (found,) = [finding for finding in findings.values() if finding.state == "problem"]
    assert found.message.endswith(looks)
    assert found.next_step == f"Set {' and '.join(lines)} in site.yaml"
    # These settings work if they are written into the site file.
    write_site_file(site, tmp_path / "site.yaml")
    written = (tmp_path / "site.yaml").read_text()
    for line in lines:
        key, _, value = line.removeprefix("data.").partition(": ")
        assert f"  {key}: null\n" in written
        written = written.replace(f"  {key}: null\n", f"  {key}: {value}\n")
    (tmp_path / "site.yaml").write_text(written)
    corrected = look(
        load_site_file(tmp_path / "site.yaml"), "data", "columns", "labels"
    )
    assert corrected["data"].state == "ok", corrected
    assert corrected["columns"].state == "ok", corrected
    assert corrected["labels"].message == "a 1, b 1"


def test_an_error_about_the_form_holds_no_text(tmp_path: Path) -> None:
    error = message(path=write(tmp_path / "a.csv", exported(";", "cp1252")))
    assert not any(word in error for text, _ in UMLAUTS for word in text.split())


def test_no_other_form_is_guessed_if_the_given_one_fits(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "a.csv", exported(",", "cp1252", "Text,label")))
    # Latin-1 and Windows-1252 both fit. The column is missing for another reason.
    assert looks_like(path, FileForm(encoding="latin-1"), ("text", "label")) is None
    assert "Nearest: 'Text'" in message(path=str(path), encoding="latin-1")


def test_an_error_about_wrong_settings_names_the_right_ones(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", exported(",", "utf-8"))
    error = message(path=path, delimiter=";", encoding="utf-16")
    assert "is not UTF-16: " in error
    assert error.endswith("Set data.encoding=utf-8 'data.delimiter=\",\"'")


def test_bytes_of_no_known_encoding_give_no_guess(tmp_path: Path) -> None:
    # 0x81 is no character of Windows-1252. In UTF-8 it is never alone.
    path = write(tmp_path / "a.csv", b"text,label\n\x81,a\n")
    error = message(path=path)
    assert "is not UTF-8: byte 0x81 at offset 11, line 2." in error
    assert "looks like" not in error
    assert "set data.encoding" in error


def test_another_delimiter_is_named_if_columns_are_missing_too(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "Befund;Fach;Datum\nx;y;z\n")
    error = message(path=path)
    assert "has no column 'text'" in error
    assert "';' between columns" in error
    # With this delimiter only the names of the columns are wrong.
    error = message(path=path, delimiter=";")
    assert "has no column 'text'" in error
    assert "Befund, Fach, Datum." in error


def test_quotes_in_the_header_are_no_broken_row(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", '"text";"label"\n"x, y";"a"\n')
    error = message(path=path)
    assert "';' between columns" in error
    assert "Close every quote" not in error


def test_a_semicolon_needs_no_quotes_beside_those_of_the_shell() -> None:
    words = ["data=files", "data.path=a.csv", "data.delimiter=;"]
    assert compose(words).settings.data.delimiter == ";"


# --- the form of a site's own file ----------------------------------------------------


def test_a_site_reads_its_own_file_in_its_own_form(
    make_settings: Make, tiny_model: Path, tmp_path: Path
) -> None:
    """The coordinator's test set has another form. Sites do not learn about it."""
    own = Path(write(tmp_path / "own.csv", exported("\t", "utf-16", copies=3)))
    at_server = make_settings(
        "engine=deployment",
        f"data.path={own}",
        "data.label_names=[a,b]",
        'data.delimiter=";"',
        "data.encoding=cp1252",
    )
    sent = Settings.from_json(at_server.for_sites().to_json())
    assert sent.data.delimiter is None
    assert sent.data.encoding is None
    site = make_site(
        tmp_path, 9092, own, model=tiny_model, delimiter="tab", encoding="utf-16"
    )
    here = RealSite(site).localise(sent).data
    assert here.delimiter == "tab"
    assert here.encoding == "utf-16"
    read_here = read_texts(LABEL, here, seed=0, site="st_marys")
    assert set(pairs(read_here) + pairs(read_here, "test")) == set(UMLAUTS)
    # A form that a server sends all the same is not used.
    formless = RealSite(replace(site, delimiter=None, encoding=None))
    here = formless.localise(at_server).data
    assert here.delimiter is None
    assert here.encoding is None


def test_settings_of_earlier_versions_have_the_usual_form(make_settings: Make) -> None:
    values = make_settings().to_dict()
    del values["data"]["delimiter"]
    del values["data"]["encoding"]
    data = Settings.from_dict(values).data
    assert data.delimiter is None
    assert data.encoding is None


def test_a_site_setting_without_an_effect_is_a_problem(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "a.jsonl", '{"text": "x", "label": "a"}\n'))
    found = look(make_site(tmp_path, 9092, path, delimiter=";"), "data")["data"]
    assert found.state == "problem"
    assert "data.delimiter is ';'" in found.message
    assert "JSONL" in found.message
    assert found.next_step == "Remove data.delimiter from site.yaml."


def test_a_jsonl_file_of_a_site_in_another_encoding_is_a_problem(
    tmp_path: Path,
) -> None:
    row = json.dumps({"text": "Übel", "label": "a"}, ensure_ascii=False)
    path = Path(write(tmp_path / "a.jsonl", f"{row}\n".encode("cp1252")))
    found = look(make_site(tmp_path, 9092, path), "data")["data"]
    assert found.state == "problem"
    assert found.next_step == "Set data.encoding: windows-1252 in site.yaml"
    unmarked = look(make_site(tmp_path, 9092, path, encoding="utf-16"), "data")["data"]
    assert unmarked.state == "problem"
    assert "is not UTF-16" in unmarked.message
