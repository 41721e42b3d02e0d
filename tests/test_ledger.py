"""The ledger of a site: its lines, its files, and how changes of them are found."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, RecordDict

from tests.support.nasty import NASTY, faults
from tests.support.site_lab import make_site
from tests.support.tiny import Make
from wardround.client.kit.cli import main
from wardround.client.node import ledger as ledgers
from wardround.client.node.journal import Journal
from wardround.client.node.ledger import (
    MOST_LINE_BYTES,
    PART_BYTES,
    SUM_SECONDS,
    Ledger,
)
from wardround.client.site_file import signing_keys, write_site_file
from wardround.common.credentials import fingerprint, new_key, public_line
from wardround.common.ledger import (
    AGAIN,
    FILE_NAME,
    OTHER_KIND,
    Contents,
    describe,
    parts_of,
    read_ledger,
)
from wardround.common.tasks.label import label_sums
from wardround.common.wire.arrays import to_record
from wardround.common.wire.codec import (
    FIELDS,
    pack_counts,
    pack_hello,
    pack_introduction,
    pack_missing_base,
    pack_notice,
    pack_refusal,
    pack_requests,
    pack_update,
)
from wardround.common.wire.forms import FORMS, encode, whole
from wardround.common.wire.messages import Introduction, TrainRequest, Update
from wardround.common.wire.objects import record_objects, sizes
from wardround.common.wire.signing import (
    ANSWER,
    Question,
    Statement,
    payload_digest,
    sign,
)
from wardround.server.cli import main as wardround
from wardround.server.deployment.audit import AnswerBook, Audit, audit

KEY: Any = new_key("signing")
OWN = fingerprint(public_line(KEY))
KIND = "train"
OLD = Path(__file__).parent / "data" / "old"
"""A state folder and a run folder that an earlier version wrote (commit 14d4ec1)."""
OLD_KEY = "SHA256:pMhu0t9fbX2ZPFkujhyBX6LEzVI7cboLjNkdAbULzTE"


def content() -> RecordDict:
    """Return an answer with a value that must not be in the ledger."""
    return RecordDict(
        {
            "update": ConfigRecord({"layout": "a secret", "round": 3}),
            "tensors": to_record({"shared": np.arange(5, dtype=np.float32)}),
        }
    )


def contents_of(records: RecordDict) -> Contents:
    """Return the description that a ledger has of these records."""
    return describe(records, sizes(record_objects(records, {})))


def question(attempt: int, round: int = 1) -> Question:
    """Return an authentic question."""
    statement = Statement(1, "f" * 64, round, attempt, KIND, "a", "b", "n", "", {}, 0.0)
    return Question(statement, f"{attempt:064x}", "key", 0.0, "e" * 64)


def answer(ledger: Ledger, book: AnswerBook, asked: Question) -> None:
    """Write the ledger, sign and send the answer, and let the server keep it."""
    line = ledger.leaves(KIND, asked, contents_of(content()), 0.5)
    question = asked.statement
    statement = Statement(
        version=1,
        run=question.run,
        round=question.round,
        attempt=question.attempt,
        kind=KIND,
        sender=OWN,
        receiver=question.sender,
        nonce="",
        answers=asked.digest,
        records=sizes(record_objects(content(), {})),
        expires=0.0,
        ledger=line,
    )
    envelope = sign(ANSWER, statement, KEY)
    book.keep("alpha", public_line(KEY), envelope, statement)
    ledger.left(payload_digest(envelope))


def ledger_in(folder: Path) -> Ledger:
    """Return the ledger of the site alpha."""
    return Ledger(folder, "alpha", OWN)


def three_rounds(folder: Path) -> Path:
    """Make a run folder with three answers and their ledger. Return the ledger's file."""
    book = AnswerBook(folder)
    with ledger_in(folder) as ledger:
        ledger.opened()
        for number in (1, 2, 3):
            ledger.came(KIND, question(number, number), Contents())
            answer(ledger, book, question(number, number))
    return folder / FILE_NAME


def kinds(path: Path) -> list[str]:
    """Return the kind of each line, in order."""
    return [entry.what for entry in read_ledger(path).values()]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Replace the ledger's clock. Return its time in seconds, which a test may change."""
    now = [1000.0]
    monkeypatch.setattr("wardround.client.node.ledger.time.monotonic", lambda: now[0])
    return now


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a few lines fill a file."""
    monkeypatch.setattr(ledgers, "PART_BYTES", 3000)
    monkeypatch.setattr(os, "fsync", lambda file: None)


# --- a line ---------------------------------------------------------------------------


def test_a_line_holds_types_and_sizes_and_no_value(tmp_path: Path) -> None:
    path = three_rounds(tmp_path)
    assert "secret" not in path.read_text()
    entries = read_ledger(path).values()
    leaves = next(entry for entry in entries if entry.what == "leaves")
    fields = {"layout": ("str", 8), "round": ("int", 1)}
    assert leaves.records["update"].fields == fields
    assert leaves.records["tensors"].fields == {"shared": ("float32", 20)}
    assert leaves.kind == KIND
    assert leaves.round == 1
    assert leaves.attempt == 1
    assert leaves.update_norm == 0.5


def test_a_line_names_every_record_that_this_version_sends(
    make_settings: Make,
) -> None:
    tensors = np.arange(8, dtype=np.float32)
    payloads = [whole(tensors), *(encode(form, tensors, tensors) for form in FORMS)]
    part = label_sums(0.5, np.eye(2, dtype=np.int64))
    counts = replace(part, validation=part)
    messages = [
        pack_hello(make_settings()),
        pack_introduction(Introduction(0, 1, 1)),
        pack_counts(counts),
    ]
    messages += [pack_refusal("late"), pack_missing_base("0" * 64), pack_notice("no")]
    for payload in payloads:
        request = TrainRequest(1, "layout", payload, make_settings())
        messages += pack_requests(request, [0])
        update = Update(1, "layout", payload, 1, 1, 0.5, 1.0, counts)
        messages.append(pack_update(update))
    for message in messages:
        contents = contents_of(message)
        assert list(contents.records) == list(message)
        assert contents.others is None
        for sent in contents.records.values():
            assert sent.others is None


def test_unknown_kinds_records_and_fields_are_counted_and_not_named(
    tmp_path: Path,
) -> None:
    words = [word for word in NASTY.values() if word]
    strange = RecordDict({word: ConfigRecord({word: 1}) for word in words})
    strange["update"] = ConfigRecord({"layout": "x", **dict.fromkeys(words, 0.5)})
    with ledger_in(tmp_path) as ledger:
        ledger.came(words[0], question(1), contents_of(strange))
    entry = list(read_ledger(tmp_path / FILE_NAME).values())[-1]
    update = entry.records["update"]
    assert entry.kind == OTHER_KIND
    assert list(entry.records) == ["update"]
    assert update.fields == {"layout": ("str", 1)}
    assert entry.others is not None
    assert update.others is not None
    assert entry.others.count == len(words)
    assert update.others.count == len(words)
    text = (tmp_path / FILE_NAME).read_text()
    assert not [word for word in words if json.dumps(word)[1:-1] in text]
    strange["one more"] = ConfigRecord()
    more = contents_of(strange).others
    assert more is not None
    assert more.count == len(words) + 1
    assert more.digest != entry.others.digest


def test_no_line_is_longer_than_the_limit(tmp_path: Path) -> None:
    """The largest message that can be signed has all fields and thousands of unknown ones."""
    strange = [f"{number:0300d}" for number in range(2000)]
    wide = RecordDict({name: ConfigRecord({"x": 1}) for name in strange})
    for name, fields in FIELDS.items():
        wide[name] = ConfigRecord({field: [0.5] for field in [*fields, *strange]})
    most = 2**53 - 1
    signed = dict.fromkeys(wide, ("f" * 64, most))
    kind = "x" * 2**20
    statement = Statement(1, "f" * 64, most, most, kind, "a", "b", "n", "", {}, 0.0)
    asked = Question(statement, "f" * 64, "key", 0.0, "e" * 64)
    with Ledger(tmp_path, "x" * 64, OWN) as ledger:
        before = ledger.path.stat().st_size
        ledger.came(kind, asked, describe(wide, signed))
        ledger.leaves(kind, asked, describe(wide, signed), 1.2345678901234567e-300)
    lines = ledger.path.read_bytes()[before:].splitlines()
    assert len(lines) == 2
    assert max(map(len, lines)) < MOST_LINE_BYTES


def test_a_salt_keeps_a_lines_content_from_being_guessed_by_its_hash(
    tmp_path: Path,
) -> None:
    """The hash leaves the site with every answer. Equal lines have different hashes."""
    salts = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        with ledger_in(tmp_path / name) as ledger:
            ledger.opened()
        entries = read_ledger(tmp_path / name / FILE_NAME).values()
        salts += [bytes.fromhex(entry.salt) for entry in entries]
    assert {len(salt) for salt in salts} == {16}
    assert len(set(salts)) == len(salts)


Lines = list[bytes]


def fourth(lines: Lines, old: bytes, new: bytes) -> Lines:
    """Return the lines with a change in the fourth."""
    return [*lines[:3], lines[3].replace(old, new), *lines[4:]]


def inserted(lines: Lines, line: bytes) -> Lines:
    """Return the lines with one more after the fourth."""
    return [*lines[:4], line, *lines[4:]]


CHANGES: dict[str, tuple[Callable[[Lines], Lines], int]] = {
    "a value is changed": (
        lambda lines: fourth(lines, b'"round":1', b'"round":2'),
        5,
    ),
    "a blank is added": (lambda lines: fourth(lines, b'"kind"', b' "kind"'), 4),
    "a line is cut out": (lambda lines: [*lines[:3], *lines[4:]], 4),
    "lines change places": (lambda lines: [lines[1], lines[0], *lines[2:]], 1),
    "a line is there twice": (lambda lines: inserted(lines, lines[3]), 5),
    "an empty object": (lambda lines: inserted(lines, b"{}\n"), 5),
    "NaN": (lambda lines: inserted(lines, b'{"update_norm":NaN}\n'), 5),
    "a deep object": (lambda lines: inserted(lines, b'{"records":' * 9999 + b"\n"), 5),
    "no text": (lambda lines: inserted(lines, b"\xff\x00\n"), 5),
}
"""A change of a ledger's lines, and the number of the line that shows it."""


@pytest.mark.parametrize("name", CHANGES)
def test_the_first_changed_line_is_named(tmp_path: Path, name: str) -> None:
    change, line = CHANGES[name]
    path = three_rounds(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(change(lines)))
    expected = rf"{FILE_NAME}, line {line}: "
    with pytest.raises(ValueError, match=expected):
        read_ledger(path)
    with pytest.raises(ValueError, match=expected), ledger_in(tmp_path):
        pass


def test_a_line_without_its_end_does_not_count(tmp_path: Path) -> None:
    path = three_rounds(tmp_path)
    whole_lines = path.read_bytes()
    path.write_bytes(whole_lines + b'{"number":12,"at"')
    with ledger_in(tmp_path) as ledger:
        assert path.read_bytes() == whole_lines
        ledger.opened()
    assert len(read_ledger(path)) == 12
    path.write_bytes(b'{"at":"half of the first line')
    with ledger_in(tmp_path):
        assert kinds(path) == ["begins"]


def test_a_line_that_cannot_be_written_is_not_in_the_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    with ledger_in(tmp_path) as ledger:
        monkeypatch.setattr(os, "write", lambda file, line: write(file, line[:20]))
        with pytest.raises(OSError, match="No space left"):
            ledger.accept("a" * 64)
        monkeypatch.undo()
        ledger.accept("b" * 64)
    entries = list(read_ledger(tmp_path / FILE_NAME).values())
    assert [entry.statement for entry in entries] == ["", "b" * 64]


def test_only_its_owner_can_read_the_ledger(tmp_path: Path) -> None:
    assert three_rounds(tmp_path).stat().st_mode & 0o777 == 0o600


# --- messages that do not count -------------------------------------------------------


def test_messages_that_do_not_count_are_one_line_an_hour(
    tmp_path: Path, clock: list[float]
) -> None:
    refusal = contents_of(pack_refusal("unsigned"))
    with ledger_in(tmp_path) as ledger:
        before = ledger.path.stat().st_size
        assert ledger.does_not_count("unsigned")
        for _ in range(10_000):
            assert not ledger.does_not_count("unsigned")
            assert ledger.leaves(KIND, None, refusal, None) == ""
            ledger.left("0" * 64)
        # The first message of a kind is reported at once.
        assert ledger.does_not_count("forged")
        ledger.sum_up()
        assert ledger.path.stat().st_size == before
        clock[0] += SUM_SECONDS
        ledger.sum_up()
        ledger.sum_up()
        assert kinds(ledger.path) == ["begins", "did_not_count"]
        last = list(read_ledger(ledger.path).values())[-1]
        assert last.counts == {"unsigned": 10_001, "forged": 1}
        assert ledger.does_not_count("unsigned")
        clock[0] += SUM_SECONDS - 1
        assert not ledger.does_not_count("unsigned")
        assert kinds(ledger.path) == ["begins", "did_not_count"]
    # The rest is written when the program ends.
    assert kinds(ledger.path) == ["begins", "did_not_count", "did_not_count"]
    last = list(read_ledger(ledger.path).values())[-1]
    assert last.counts == {"unsigned": 2}


def test_the_line_of_an_hour_is_written_before_later_lines(
    tmp_path: Path, clock: list[float]
) -> None:
    with ledger_in(tmp_path) as ledger:
        ledger.does_not_count("expired")
        ledger.came(KIND, question(1), Contents())
        ledger.leaves(KIND, question(1), contents_of(content()), None)
        clock[0] += SUM_SECONDS
        ledger.left("0" * 64)  # it always follows its answer
        ledger.came(KIND, question(2), Contents())
        ledger.does_not_count("expired")
        clock[0] += SUM_SECONDS
        ledger.does_not_count("expired")
        assert kinds(ledger.path)[1:] == [
            "came",
            "leaves",
            "left",
            "did_not_count",
            "came",
            "did_not_count",
        ]


def test_a_repeated_message_adds_no_line(tmp_path: Path) -> None:
    """The program that passes messages on can repeat an authentic one at any time."""
    refusal = contents_of(pack_refusal("lost"))
    for _ in range(2):  # the second time after a restart
        with ledger_in(tmp_path) as ledger:
            hashes = set()
            for _ in range(100):
                ledger.came(KIND, question(1), Contents())
                hashes.add(ledger.leaves(KIND, question(1), refusal, None))
                ledger.left("0" * 64)
            assert len(hashes) == 1
    entries = list(read_ledger(ledger.path).values())
    lines = ["begins", "came", "leaves", "left", "did_not_count", "did_not_count"]
    assert [entry.what for entry in entries] == lines
    assert [entry.counts for entry in entries[-2:]] == [{AGAIN: 198}, {AGAIN: 200}]


def test_another_answer_to_the_same_question_has_its_own_line(tmp_path: Path) -> None:
    late, lost = (contents_of(pack_refusal(code)) for code in ("late", "lost"))
    with ledger_in(tmp_path) as ledger:
        lines = {
            ledger.leaves(KIND, question(1), late, None),
            ledger.leaves(KIND, question(1), lost, None),
            ledger.leaves(KIND, question(2), lost, None),
        }
    assert len(lines) == 3


# --- several files --------------------------------------------------------------------


def many_parts(folder: Path, num_parts: int = 4) -> list[Path]:
    """Write a ledger of this many files, which `small_parts` makes small."""
    with ledger_in(folder) as ledger:
        number = 0
        while len(parts_of(ledger.path)) < num_parts:
            number += 1
            ledger.came(KIND, question(number), Contents())
            ledger.leaves(KIND, question(number), contents_of(content()), 0.5)
            ledger.left("0" * 64)
    return parts_of(folder / FILE_NAME)


@pytest.mark.usefixtures("small_parts")
def test_all_files_are_one_chain(tmp_path: Path) -> None:
    parts = many_parts(tmp_path)
    names = [part.name for part in parts]
    suffixes = ("", ".000002", ".000003", ".000004")
    assert names == [f"{FILE_NAME}{suffix}" for suffix in suffixes]
    assert names == sorted(names)
    for before, part in pairwise(parts):
        last = before.read_bytes().splitlines()[-1]
        first = json.loads(part.read_bytes().splitlines()[0])
        assert first["before"] == hashlib.sha256(last).hexdigest()
        assert first["what"] == "goes_on"
        assert first["site"] == "alpha"
        assert first["key"] == OWN
        assert first["number"] == json.loads(last)["number"] + 1
    entries = list(read_ledger(parts[0]).values())
    assert [entry.number for entry in entries] == list(range(1, len(entries) + 1))
    # The outcome of an answer follows it.
    for entry, after in pairwise(entries):
        assert (entry.what == "leaves") == (after.what == "left")


@pytest.mark.usefixtures("small_parts")
def test_old_files_are_never_changed(tmp_path: Path) -> None:
    old = {
        part: (part.read_bytes(), part.stat().st_mtime_ns)
        for part in many_parts(tmp_path)[:-1]
    }
    with ledger_in(tmp_path) as ledger:
        for number in range(1000, 1020):
            ledger.accept(f"{number:064x}")
    assert len(parts_of(ledger.path)) > 4
    assert {part: (part.read_bytes(), part.stat().st_mtime_ns) for part in old} == old


@pytest.mark.usefixtures("small_parts")
def test_a_start_reads_only_the_newest_file(tmp_path: Path) -> None:
    parts = many_parts(tmp_path, 60)
    total = sum(part.stat().st_size for part in parts)
    before = bytes_read()
    with ledger_in(tmp_path) as ledger:
        read = bytes_read() - before
        assert len(ledger) == len(read_ledger(ledger.path))
    # It reads the newest file, and the last line of the file before.
    assert read < 6 * ledgers.PART_BYTES
    assert total > 50 * ledgers.PART_BYTES
    # Without the fixture a file has at most 8 MiB.
    assert PART_BYTES <= 8 << 20


def bytes_read() -> int:
    """Return the number of bytes that this process has read."""
    words = Path("/proc/self/io").read_text().split()
    return int(words[words.index("rchar:") + 1])


@pytest.mark.usefixtures("small_parts")
def test_a_changed_or_missing_file_is_named(tmp_path: Path) -> None:
    one, two, three, four = many_parts(tmp_path)
    whole_file = two.read_bytes()
    two.write_bytes(whole_file.replace(b'"attempt":', b'"attempt":1', 1))
    with pytest.raises(ValueError, match=rf"{two.name}, line \d+: .*not follow"):
        read_ledger(one)
    two.unlink()
    missing = rf"{two.name}' is missing.*Restore it"
    with pytest.raises(ValueError, match=missing):
        read_ledger(one)
    with pytest.raises(ValueError, match=missing), ledger_in(tmp_path):
        pass
    two.write_bytes(whole_file)
    one.rename(tmp_path / "away")
    with pytest.raises(ValueError, match=f"{FILE_NAME}' is missing"):
        read_ledger(one)
    (tmp_path / "away").rename(one)
    # Every start reads the end of the file before the newest.
    last = three.read_bytes()
    three.write_bytes(b"".join(last.splitlines(keepends=True)[:-1]))
    with (
        pytest.raises(ValueError, match=rf"{four.name}, line 1: .*not follow"),
        ledger_in(tmp_path),
    ):
        pass
    three.write_bytes(last)
    with ledger_in(tmp_path):
        pass


@pytest.mark.usefixtures("small_parts")
def test_lines_are_known_for_a_limited_number_of_older_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [part.read_bytes().splitlines()[0] for part in many_parts(tmp_path)]
    firsts = [hashlib.sha256(line).hexdigest() for line in lines]
    with ledger_in(tmp_path) as ledger:
        assert [first in ledger for first in firsts] == [True, True, True, True]
        assert "0" * 64 not in ledger
        monkeypatch.setattr(ledgers, "_MOST_PARTS_BACK", 2)
        assert [first in ledger for first in firsts] == [False, True, True, True]


@pytest.mark.usefixtures("small_parts")
def test_an_accepted_missing_line_stays_accepted(tmp_path: Path) -> None:
    with ledger_in(tmp_path) as ledger:
        ledger.accept("5" * 64)
        assert "5" * 64 in ledger
    many_parts(tmp_path)
    with ledger_in(tmp_path) as ledger:
        assert "5" * 64 in ledger
        assert "6" * 64 not in ledger


@pytest.mark.usefixtures("small_parts")
def test_a_restored_copy_lacks_the_newest_line(tmp_path: Path) -> None:
    """The newest line is the one that the server holds."""
    parts = many_parts(tmp_path)
    newest = list(read_ledger(parts[0]))[-1]
    lines = parts[-2].read_bytes().splitlines(keepends=True)
    parts[-1].unlink()
    with ledger_in(tmp_path) as ledger:
        assert newest not in ledger
    parts[-2].write_bytes(b"".join(lines[:-3]))
    with ledger_in(tmp_path) as ledger:
        assert newest not in ledger
    for part in parts_of(parts[0]):
        part.unlink()
    with ledger_in(tmp_path) as ledger:
        assert newest not in ledger
    # The first line of a new ledger says that it is new.
    assert kinds(parts[0]) == ["begins"]


@pytest.mark.usefixtures("small_parts")
def test_a_disk_that_is_full_between_two_files_loses_no_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    with ledger_in(tmp_path) as ledger:
        while ledger.path.stat().st_size < ledgers.PART_BYTES:
            ledger.accept(os.urandom(32).hex())
        for broken in ("write", "fsync"):
            monkeypatch.setattr(os, broken, _full_disk)
            with pytest.raises(OSError, match="No space left"):
                ledger.accept("1" * 64)
            monkeypatch.setattr(os, "write", write)
            monkeypatch.setattr(os, "fsync", lambda file: None)
        ledger.accept("2" * 64)
    assert kinds(ledger.path)[-2:] == ["goes_on", "accepted"]
    # The program ended after the file was made and before its first line was complete.
    newest = parts_of(ledger.path)[-1]
    newest.write_bytes(newest.read_bytes()[:100])
    with ledger_in(tmp_path) as ledger:
        ledger.accept("3" * 64)
    assert kinds(ledger.path)[-2:] == ["goes_on", "accepted"]
    assert len(parts_of(ledger.path)) == 2


def _full_disk(*_: object) -> int:
    raise OSError(28, "No space left on device")


# --- the key of a ledger --------------------------------------------------------------


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("num_parts", [1, 4])
def test_a_ledger_of_another_key_is_not_continued(
    tmp_path: Path, num_parts: int
) -> None:
    parts = many_parts(tmp_path, num_parts)
    before = [part.read_bytes() for part in parts]
    other = fingerprint(public_line(new_key("signing")))
    expected = another_key("ledger", OWN, other)
    with pytest.raises(ValueError, match=expected), Ledger(tmp_path, "alpha", other):
        pass
    assert [part.read_bytes() for part in parts_of(parts[0])] == before
    with ledger_in(tmp_path) as ledger:
        ledger.opened()
    # The program ended after a further file was made, and before its first line was written.
    parts_of(parts[0])[-1].with_name(f"{FILE_NAME}.{num_parts + 1:06d}").touch()
    with pytest.raises(ValueError, match=expected), Ledger(tmp_path, "alpha", other):
        pass


def another_key(file: str, holder: str, own: str) -> str:
    """Return the pattern of the error about a file of another key."""
    return rf"{file} .*{re.escape(holder)}, .*{re.escape(own)}\. Restore that key"


def test_a_journal_of_another_key_is_not_continued(tmp_path: Path) -> None:
    with Journal(tmp_path, OWN) as journal:
        journal.count_refused("forged")
    before = (tmp_path / "journal.json").read_bytes()
    with (
        pytest.raises(ValueError, match=another_key("journal", OWN, OLD_KEY)),
        Journal(tmp_path, OLD_KEY),
    ):
        pass
    assert (tmp_path / "journal.json").read_bytes() == before
    with Journal(tmp_path, OWN) as journal:
        assert journal.refused == {"forged": 1}


def test_a_folder_of_another_key_is_left_unchanged(tmp_path: Path) -> None:
    """The journal of an earlier version holds no key."""
    state = copied(tmp_path, "state")
    for _ in range(2):
        with (
            Journal(state, OWN),
            pytest.raises(ValueError, match=another_key("ledger", OLD_KEY, OWN)),
            ledger_in(state),
        ):
            pass
    with Journal(state, OLD_KEY) as journal, Ledger(state, "alpha", OLD_KEY):
        journal.count_refused("forged")
    expected = another_key("journal", OLD_KEY, OWN)
    with pytest.raises(ValueError, match=expected), Journal(state, OWN):
        pass


def test_the_first_line_of_a_new_ledger_says_that_it_is_new(tmp_path: Path) -> None:
    with ledger_in(tmp_path):
        pass
    (entry,) = read_ledger(tmp_path / FILE_NAME).values()
    assert entry.what == "begins"
    assert entry.site == "alpha"
    assert entry.key == OWN
    assert entry.number == 1


# --- a ledger of an earlier version ---------------------------------------------------


def copied(folder: Path, name: str) -> Path:
    """Return a copy of one of the old folders."""
    return Path(shutil.copytree(OLD / name, folder / name))


def test_a_ledger_of_an_earlier_version_is_continued(tmp_path: Path) -> None:
    state, run_dir = copied(tmp_path, "state"), copied(tmp_path, "run")
    path = state / FILE_NAME
    old = path.read_bytes()
    assert audit(run_dir, [path]) == [Audit("alpha", 3, ())]
    with Journal(state, OLD_KEY) as journal, Ledger(state, "alpha", OLD_KEY) as ledger:
        assert journal.refused == {"unsigned": 1}
        assert len(ledger) == 16
        assert "5" * 64 in ledger
        ledger.opened()
        # The earlier version has received this question.
        ledger.came(KIND, question(1, 1), Contents())
        ledger.came(KIND, question(9, 9), Contents())
    assert path.read_bytes().startswith(old)
    added = path.read_bytes()[len(old) :].splitlines()
    last_old = hashlib.sha256(old.splitlines()[-1]).hexdigest()
    assert json.loads(added[0])["before"] == last_old
    assert kinds(path)[-3:] == ["opened", "came", "did_not_count"]
    assert audit(run_dir, [path]) == [Audit("alpha", 3, ())]
    for entry in read_ledger(path).values():
        assert faults(entry.in_words()) == []


@pytest.mark.usefixtures("small_parts")
def test_an_old_ledger_that_is_too_large_is_continued_in_a_new_file(
    tmp_path: Path,
) -> None:
    state = copied(tmp_path, "state")
    old = (state / FILE_NAME).read_bytes()
    with Ledger(state, "alpha", OLD_KEY) as ledger:
        ledger.opened()
    assert ledger.path.read_bytes() == old
    assert kinds(ledger.path)[-2:] == ["goes_on", "opened"]
    assert audit(copied(tmp_path, "run"), [ledger.path]) == [Audit("alpha", 3, ())]


# --- the audit: ledger and server's answers -------------------------------------------


def test_an_audit_of_an_honest_run_has_no_findings(tmp_path: Path) -> None:
    path = three_rounds(tmp_path)
    assert audit(tmp_path, [path]) == [Audit("alpha", 3, ())]


@pytest.mark.usefixtures("small_parts")
def test_an_audit_reads_all_files(tmp_path: Path) -> None:
    path = three_rounds(tmp_path)
    many_parts(tmp_path)
    assert audit(tmp_path, [path]) == [Audit("alpha", 3, ())]


def test_an_audit_names_an_answer_that_the_ledger_lacks(tmp_path: Path) -> None:
    path = three_rounds(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    # The lines of the third round are cut off. No later line shows that.
    path.write_bytes(b"".join(lines[:8]))
    assert len(read_ledger(path)) == 8
    (found,) = audit(tmp_path, [path])
    assert found.num_answers == 2
    (finding,) = found.findings
    assert finding.startswith("the ledger lacks an answer")
    assert finding.endswith("train, round 3, attempt 3")


def test_an_audit_names_an_answer_that_the_server_lacks(tmp_path: Path) -> None:
    path = three_rounds(tmp_path)
    file = tmp_path / "answers.jsonl"
    answers = file.read_text().splitlines(keepends=True)
    file.write_text("".join([answers[0], answers[2]]))
    (found,) = audit(tmp_path, [path])
    finding = found.findings[0]
    assert finding.startswith("the server lacks an answer")
    assert "line 7 of the ledger" in finding
    assert "train, round 2" in finding


def test_a_changed_answer_of_the_server_is_named(tmp_path: Path) -> None:
    path = three_rounds(tmp_path)
    file = tmp_path / "answers.jsonl"
    answers = file.read_text().splitlines()
    other = json.loads(answers[1]) | {"key": public_line(new_key("signing"))}
    file.write_text("\n".join([answers[0], json.dumps(other), answers[2]]) + "\n")
    with pytest.raises(ValueError, match=r"answers\.jsonl, line 2: "):
        audit(tmp_path, [path])


def test_the_server_finds_the_newest_answer_of_each_key_again(tmp_path: Path) -> None:
    path = three_rounds(tmp_path)
    entries = read_ledger(path)
    newest = [line for line, entry in entries.items() if entry.what == "leaves"][-1]
    first = (tmp_path / "answers.jsonl").read_text().splitlines()[0]
    key = json.loads(first)["key"]
    assert dict(AnswerBook(tmp_path).heads) == {key: newest}


# --- the commands ---------------------------------------------------------------------


def run(monkeypatch: pytest.MonkeyPatch, door: Callable[[], None], *words: str) -> int:
    """Run a command line. Return its exit code."""
    monkeypatch.setattr("sys.argv", ["a program", *words])
    with pytest.raises(SystemExit) as end:
        door()
    return int(end.value.code or 0)


@pytest.mark.usefixtures("small_parts")
def test_the_commands_show_verify_and_export_the_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = make_site(tmp_path, 9092, tmp_path / "texts.csv")
    write_site_file(facts, tmp_path / "site.yaml")
    monkeypatch.setattr("tests.test_ledger.KEY", signing_keys(facts)[0])
    monkeypatch.setattr("tests.test_ledger.OWN", fingerprint(public_line(KEY)))
    site = ("--site", str(tmp_path / "site.yaml"))
    state = tmp_path / "state"
    state.mkdir(exist_ok=True)
    path = three_rounds(state)
    assert len(parts_of(path)) > 1
    assert run(monkeypatch, main, "ledger", "show", "--last", "2", *site) == 0
    shown = capsys.readouterr().out
    assert "train, round 3, run ffffffff: tensors (" in shown
    assert "length of the update 0.5" in shown
    assert run(monkeypatch, main, "ledger", "accept", "5" * 64, *site) == 0
    assert run(monkeypatch, main, "ledger", "accept", "no hash", *site) == 2
    assert run(monkeypatch, main, "ledger", "verify", *site) == 0
    lines = read_ledger(path)
    verified = capsys.readouterr().out
    assert f"{len(lines)} lines in {len(parts_of(path))} files" in verified
    assert list(lines)[-1] in verified
    exported = str(tmp_path / "exported.jsonl")
    assert run(monkeypatch, main, "ledger", "export", exported, *site) == 0
    assert run(monkeypatch, main, "ledger", "export", exported, *site) == 2
    assert read_ledger(Path(exported)) == lines
    assert run(monkeypatch, wardround, "audit", str(state), "--ledger", exported) == 0
    assert run(monkeypatch, wardround, "audit", str(state), "--ledger", str(path)) == 0
    with ledger_in(state) as ledger:
        assert "5" * 64 in ledger
    whole_file = Path(exported).read_bytes().splitlines(keepends=True)
    Path(exported).write_bytes(b"".join(whole_file[:6]))
    assert run(monkeypatch, wardround, "audit", str(state), "--ledger", exported) == 1
    assert "alpha: the ledger lacks an answer" in capsys.readouterr().out


def hostile(path: Path, word: str, key: str) -> Path:
    """Write a ledger whose lines follow each other and hold this word wherever they can."""
    record = {"digest": word, "num_bytes": 1, "fields": {word: [word, 1]}}
    message = {"kind": word, "records": {word: record}}
    facts: list[dict[str, Any]] = [
        {"what": "opened", "site": word, "key": key},
        {"what": "came", **message, "reason": word},
        {"what": "came", **message, "run": word, "round": 1},
        {"what": "leaves", **message, "run": word, "round": 10**30},
        {"what": "stayed", "reason": word},
        {"what": "left", "statement": word},
        {"what": "accepted", "statement": word},
        {"what": "opened", "site": word, "key": word, "plan": word, "question": word},
    ]
    before, lines = "0" * 64, []
    for number, fact in enumerate(facts, 1):
        entry = {"number": number, "at": word, "before": before}
        entry |= {key: value for key, value in fact.items() if value != ""}
        line = json.dumps(entry, sort_keys=True, separators=(",", ":")).encode("ascii")
        before = hashlib.sha256(line).hexdigest()
        lines.append(line + b"\n")
    path.write_bytes(b"".join(lines))
    return path


@pytest.mark.parametrize("name", NASTY)
def test_a_hostile_ledger_cannot_move_the_cursor_or_imitate_a_line(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_dir = copied(tmp_path, "run")
    path = hostile(tmp_path / "st_marys.jsonl", NASTY[name], OLD_KEY)
    words = ("audit", str(run_dir), "--ledger", str(path))
    assert run(monkeypatch, wardround, *words) == 1
    audited = capsys.readouterr().out.splitlines()
    assert len(audited) == 2
    site_file = tmp_path / "site.yaml"
    write_site_file(make_site(tmp_path, 9092, tmp_path / "texts.csv"), site_file)
    (tmp_path / "state").mkdir()
    shutil.copy(path, tmp_path / "state" / FILE_NAME)
    assert run(monkeypatch, main, "ledger", "show", "--site", str(site_file)) == 0
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 8
    for line in [*audited, *shown]:
        assert faults(line, 500) == []
        assert "     " not in line.lstrip()
