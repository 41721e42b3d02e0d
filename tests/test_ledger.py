"""The ledger of a site: what it says, what it does not, and what becomes of a changed one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, RecordDict

from client.kit.cli import main
from client.site_file import write_site_file
from common.credentials import fingerprint, new_key, public_line
from common.ledger import FILE_NAME, Ledger, describe, read_ledger
from common.wire.arrays import to_record
from common.wire.objects import record_objects, sizes
from common.wire.signing import ANSWER, Question, Statement, payload_digest, sign
from server.cli import main as wardround
from server.deployment.audit import AnswerBook, audit
from tests.support.site_lab import make_site

KEY: Any = new_key("signing")
KIND = "train"


def content() -> RecordDict:
    """An answer that holds what must not be told."""
    return RecordDict(
        {
            "update": ConfigRecord({"layout": "a secret", "round": 3, "shares": [0.25, 0.5]}),
            "tensors": to_record({"whole": np.arange(5, dtype=np.float32)}),
        }
    )


def question(attempt: int, round: int = 1) -> Question:
    """As the site found it authentic."""
    said = Statement(1, "f" * 64, round, attempt, KIND, "a", "b", "n", "", {}, 0.0)
    return Question(said, f"{attempt:064x}", "key", 0.0, "the plan")


def answer(ledger: Ledger, book: AnswerBook, asked: Question) -> None:
    """Write down, sign, send, and have it kept by the server."""
    records = sizes(record_objects(content(), {}))
    line = ledger.leaves(KIND, asked, describe(content(), records), 0.5)
    said = asked.statement
    own, digest = fingerprint(public_line(KEY)), asked.digest
    statement = Statement(
        *(1, said.run, said.round, said.attempt, KIND, own, said.sender, "", digest, records, 0.0, line)
    )
    envelope = sign(ANSWER, statement, KEY)
    book.keep("alpha", public_line(KEY), envelope, statement)
    ledger.left(payload_digest(envelope))


def three_rounds(folder: Path) -> Path:
    """A run folder with three answers, and the ledger that tells of them; returns the ledger's file."""
    book = AnswerBook(folder)
    with Ledger(folder) as ledger:
        ledger.opened("alpha", fingerprint(public_line(KEY)))
        for number in (1, 2, 3):
            ledger.came(KIND, question(number, number), {})
            answer(ledger, book, question(number, number))
    return folder / FILE_NAME


def test_it_tells_types_and_sizes_and_no_value(tmp_path: Path) -> None:
    three_rounds(tmp_path)
    text = (tmp_path / FILE_NAME).read_text()
    assert "secret" not in text
    leaves = next(entry for entry in read_ledger(tmp_path / FILE_NAME).values() if entry.what == "leaves")
    assert leaves.records["update"].fields == {
        "layout": ("str", 8),
        "round": ("int", 1),
        "shares": ("list of float", 2),
    }
    assert leaves.records["tensors"].fields == {"whole": ("float32", 20)}
    assert (leaves.kind, leaves.round, leaves.attempt, leaves.update_norm) == (KIND, 1, 1, 0.5)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda lines: [*lines[:2], lines[2].replace(b'"round":1', b'"round":2'), *lines[3:]], 4),
        (lambda lines: [*lines[:2], lines[2].replace(b'"kind"', b' "kind"'), *lines[3:]], 3),
        (lambda lines: [*lines[:3], *lines[4:]], 4),
        (lambda lines: [lines[1], lines[0], *lines[2:]], 1),
        (lambda lines: [*lines[:4], lines[3], *lines[4:]], 5),
        (lambda lines: [*lines[:4], b"{}\n", *lines[4:]], 5),
    ],
    ids=["a value", "a blank", "cut out", "in another order", "twice", "no line"],
)
def test_the_first_line_that_was_changed_is_named(tmp_path: Path, change: Any, line: int) -> None:
    path = three_rounds(tmp_path)
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))
    with pytest.raises(ValueError, match=f"line {line}: "):
        read_ledger(path)
    with pytest.raises(ValueError, match=f"line {line}: "), Ledger(tmp_path):
        pass


def test_a_line_without_its_end_was_never_written(tmp_path: Path) -> None:
    path = three_rounds(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"number":11,"at"')
    with Ledger(tmp_path) as ledger:
        assert path.read_bytes() == whole
        ledger.opened("alpha", "key")
    assert len(read_ledger(path)) == 11


def test_what_cannot_be_written_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    with Ledger(tmp_path) as ledger:
        ledger.opened("alpha", "key")
        monkeypatch.setattr(os, "write", lambda file, line: write(file, line[:20]))
        with pytest.raises(OSError, match="No space left"):
            ledger.left("a" * 64)
        monkeypatch.undo()
        ledger.left("b" * 64)
    assert [entry.statement for entry in read_ledger(tmp_path / FILE_NAME).values()] == ["", "b" * 64]


def test_others_cannot_read_it(tmp_path: Path) -> None:
    assert three_rounds(tmp_path).stat().st_mode & 0o777 == 0o600


def test_an_audit_finds_the_same_in_both(tmp_path: Path) -> None:
    path = three_rounds(tmp_path)
    (found,) = audit(tmp_path, [path])
    assert (found.site, found.num_answers, found.findings) == ("alpha", 3, ())


def test_an_audit_names_what_the_ledger_lacks(tmp_path: Path) -> None:
    path = three_rounds(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:7]))  # the third round is cut off: nothing follows it
    assert len(read_ledger(path)) == 7
    (found,) = audit(tmp_path, [path])
    assert found.num_answers == 2
    assert found.findings == ("the ledger lacks what the server has: answer to train, round 3, attempt 3",)


def test_an_audit_names_what_the_server_lacks(tmp_path: Path) -> None:
    path = three_rounds(tmp_path)
    answers = (tmp_path / "answers.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "answers.jsonl").write_text("".join([answers[0], answers[2]]))
    (found,) = audit(tmp_path, [path])
    assert found.findings[0].startswith(
        "the server lacks what left: line 6 of the ledger, answer to train, round 2"
    )


def test_a_statement_that_was_changed_is_named(tmp_path: Path) -> None:
    path = three_rounds(tmp_path)
    answers = (tmp_path / "answers.jsonl").read_text().splitlines()
    other = json.loads(answers[1]) | {"key": public_line(new_key("signing"))}
    (tmp_path / "answers.jsonl").write_text("\n".join([answers[0], json.dumps(other), answers[2]]) + "\n")
    with pytest.raises(ValueError, match=r"answers.jsonl, line 2: "):
        audit(tmp_path, [path])


def test_the_book_goes_on_where_it_was(tmp_path: Path) -> None:
    path = three_rounds(tmp_path)
    newest = [found for found, entry in read_ledger(path).items() if entry.what == "leaves"][-1]
    (head,) = AnswerBook(tmp_path).heads.items()
    assert head == (json.loads((tmp_path / "answers.jsonl").read_text().splitlines()[0])["key"], newest)


def run(monkeypatch: pytest.MonkeyPatch, door: Any, *words: str) -> int:
    """A command line; returns its exit code."""
    monkeypatch.setattr("sys.argv", ["a program", *words])
    with pytest.raises(SystemExit) as end:
        door()
    return int(end.value.code or 0)


def test_the_commands_say_what_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_site_file(make_site(tmp_path, 9092, tmp_path / "texts.csv"), tmp_path / "site.yaml")
    site = ("--site", str(tmp_path / "site.yaml"))
    (tmp_path / "state").mkdir(exist_ok=True)
    three_rounds(tmp_path / "state")
    assert run(monkeypatch, main, "ledger", "show", "--last", "2", *site) == 0
    shown = capsys.readouterr().out
    assert "about to leave: train, round 3, run ffffffff: tensors (" in shown
    assert "length of the update 0.5" in shown
    assert run(monkeypatch, main, "ledger", "accept", "5" * 64, *site) == 0
    assert run(monkeypatch, main, "ledger", "accept", "no hash", *site) == 2
    assert run(monkeypatch, main, "ledger", "verify", *site) == 0
    assert "11 lines, each follows the one before" in capsys.readouterr().out
    exported = str(tmp_path / "exported.jsonl")
    assert run(monkeypatch, main, "ledger", "export", exported, *site) == 0
    assert run(monkeypatch, main, "ledger", "export", exported, *site) == 2
    assert run(monkeypatch, wardround, "audit", str(tmp_path / "state"), "--ledger", exported) == 0
    with Ledger(tmp_path / "state") as ledger:
        assert "5" * 64 in ledger
    lines = Path(exported).read_bytes().splitlines(keepends=True)
    Path(exported).write_bytes(b"".join(lines[:6]))
    assert run(monkeypatch, wardround, "audit", str(tmp_path / "state"), "--ledger", exported) == 1
    assert "alpha: the ledger lacks what the server has" in capsys.readouterr().out
