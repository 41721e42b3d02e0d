"""The ledger of a site: what it says, what it does not, and what becomes of a changed one."""

from __future__ import annotations

import hashlib
import json
import os
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
from wardround.server.deployment.audit import AnswerBook, audit

KEY: Any = new_key("signing")
OWN = fingerprint(public_line(KEY))
KIND = "train"
OLD = Path(__file__).parent / "data" / "old"
"""A state folder and a run folder as commit 14d4ec1 wrote them."""
OLD_KEY = "SHA256:pMhu0t9fbX2ZPFkujhyBX6LEzVI7cboLjNkdAbULzTE"


def content() -> RecordDict:
    """An answer that holds what must not be told."""
    return RecordDict(
        {
            "update": ConfigRecord({"layout": "a secret", "round": 3}),
            "tensors": to_record({"shared": np.arange(5, dtype=np.float32)}),
        }
    )


def told(of: RecordDict) -> Contents:
    """What a ledger tells of it."""
    return describe(of, sizes(record_objects(of, {})))


def question(attempt: int, round: int = 1) -> Question:
    """As the site found it authentic."""
    said = Statement(1, "f" * 64, round, attempt, KIND, "a", "b", "n", "", {}, 0.0)
    return Question(said, f"{attempt:064x}", "key", 0.0, "e" * 64)


def answer(ledger: Ledger, book: AnswerBook, asked: Question) -> None:
    """Write down, sign, send, and have it kept by the server."""
    line = ledger.leaves(KIND, asked, told(content()), 0.5)
    said = asked.statement
    records = sizes(record_objects(content(), {}))
    facts = (
        said.run,
        said.round,
        said.attempt,
        KIND,
        OWN,
        said.sender,
        "",
        asked.digest,
        records,
    )
    statement = Statement(1, *facts, 0.0, line)
    envelope = sign(ANSWER, statement, KEY)
    book.keep("alpha", public_line(KEY), envelope, statement)
    ledger.left(payload_digest(envelope))


def ledger_in(folder: Path) -> Ledger:
    """That of the site alpha."""
    return Ledger(folder, "alpha", OWN)


def three_rounds(folder: Path) -> Path:
    """Make a run folder with three answers and their ledger; return the ledger's file."""
    book = AnswerBook(folder)
    with ledger_in(folder) as ledger:
        ledger.opened()
        for number in (1, 2, 3):
            ledger.came(KIND, question(number, number), Contents())
            answer(ledger, book, question(number, number))
    return folder / FILE_NAME


def kinds(path: Path) -> list[str]:
    """What its lines tell of, in order."""
    return [entry.what for entry in read_ledger(path).values()]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The ledger's clock: one number, in seconds, to be changed."""
    now = [1000.0]
    monkeypatch.setattr("wardround.client.node.ledger.time.monotonic", lambda: now[0])
    return now


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few lines fill a file."""
    monkeypatch.setattr(ledgers, "PART_BYTES", 3000)
    monkeypatch.setattr(os, "fsync", lambda file: None)


# --- what a line says -----------------------------------------------------------------


def test_it_tells_types_and_sizes_and_no_value(tmp_path: Path) -> None:
    path = three_rounds(tmp_path)
    assert "secret" not in path.read_text()
    leaves = next(
        entry for entry in read_ledger(path).values() if entry.what == "leaves"
    )
    assert leaves.records["update"].fields == {
        "layout": ("str", 8),
        "round": ("int", 1),
    }
    assert leaves.records["tensors"].fields == {"shared": ("float32", 20)}
    assert (leaves.kind, leaves.round, leaves.attempt, leaves.update_norm) == (
        KIND,
        1,
        1,
        0.5,
    )


def test_it_names_all_that_this_version_sends(make_settings: Make) -> None:
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
        messages += pack_requests(
            TrainRequest(1, "layout", payload, make_settings()), [0]
        )
        messages.append(
            pack_update(Update(1, "layout", payload, 1, 1, 0.5, 1.0, counts))
        )
    for message in messages:
        contents = told(message)
        assert list(contents.records) == list(message)
        assert contents.others is None
        assert [sent.others for sent in contents.records.values()] == [None] * len(
            message
        )


def test_unknown_kinds_records_and_fields_are_counted_and_not_named(
    tmp_path: Path,
) -> None:
    words = [word for word in NASTY.values() if word]
    strange = RecordDict({word: ConfigRecord({word: 1}) for word in words})
    strange["update"] = ConfigRecord({"layout": "x", **dict.fromkeys(words, 0.5)})
    with ledger_in(tmp_path) as ledger:
        ledger.came(words[0], question(1), told(strange))
    entry = list(read_ledger(tmp_path / FILE_NAME).values())[-1]
    update = entry.records["update"]
    assert (entry.kind, list(entry.records)) == (OTHER_KIND, ["update"])
    assert update.fields == {"layout": ("str", 1)}
    assert entry.others is not None
    assert update.others is not None
    assert (entry.others.count, update.others.count) == (len(words), len(words))
    text = (tmp_path / FILE_NAME).read_text()
    assert not [word for word in words if json.dumps(word)[1:-1] in text]
    strange["one more"] = ConfigRecord()
    more = told(strange).others
    assert more is not None
    assert (more.count, more.digest != entry.others.digest) == (len(words) + 1, True)


def test_no_line_is_longer_than_its_cap(tmp_path: Path) -> None:
    """The largest message that can be signed: all fields, and thousands of unknown ones."""
    strange = [f"{number:0300d}" for number in range(2000)]
    wide = RecordDict({name: ConfigRecord({"x": 1}) for name in strange})
    for name, fields in FIELDS.items():
        wide[name] = ConfigRecord({field: [0.5] for field in [*fields, *strange]})
    most = 2**53 - 1
    signed = dict.fromkeys(wide, ("f" * 64, most))
    said = Statement(1, "f" * 64, most, most, "x" * 2**20, "a", "b", "n", "", {}, 0.0)
    asked = Question(said, "f" * 64, "key", 0.0, "e" * 64)
    with Ledger(tmp_path, "x" * 64, OWN) as ledger:
        before = ledger.path.stat().st_size
        ledger.came(said.kind, asked, describe(wide, signed))
        ledger.leaves(said.kind, asked, describe(wide, signed), 1.2345678901234567e-300)
    lines = ledger.path.read_bytes()[before:].splitlines()
    assert len(lines) == 2
    assert max(map(len, lines)) < MOST_LINE_BYTES


def test_from_a_lines_hash_nobody_can_try_out_what_it_says(tmp_path: Path) -> None:
    """It leaves the site with every answer; equal lines have different hashes."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        with ledger_in(tmp_path / name) as ledger:
            ledger.opened()
    ledgers_of = [
        read_ledger(tmp_path / name / FILE_NAME).values() for name in ("one", "two")
    ]
    salts = [bytes.fromhex(entry.salt) for entries in ledgers_of for entry in entries]
    assert [len(salt) for salt in salts] == [16] * len(salts)
    assert len(set(salts)) == len(salts)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            lambda lines: [
                *lines[:3],
                lines[3].replace(b'"round":1', b'"round":2'),
                *lines[4:],
            ],
            5,
        ),
        (
            lambda lines: [
                *lines[:3],
                lines[3].replace(b'"kind"', b' "kind"'),
                *lines[4:],
            ],
            4,
        ),
        (lambda lines: [*lines[:3], *lines[4:]], 4),
        (lambda lines: [lines[1], lines[0], *lines[2:]], 1),
        (lambda lines: [*lines[:4], lines[3], *lines[4:]], 5),
        (lambda lines: [*lines[:4], b"{}\n", *lines[4:]], 5),
        (lambda lines: [*lines[:4], b'{"update_norm":NaN}\n', *lines[4:]], 5),
        (lambda lines: [*lines[:4], b'{"records":' * 9999 + b"\n", *lines[4:]], 5),
        (lambda lines: [*lines[:4], b"\xff\x00\n", *lines[4:]], 5),
    ],
    ids=[
        "a value",
        "a blank",
        "cut out",
        "in another order",
        "twice",
        "no line",
        "NaN",
        "deep",
        "no text",
    ],
)
def test_the_first_line_that_was_changed_is_named(
    tmp_path: Path, change: Any, line: int
) -> None:
    path = three_rounds(tmp_path)
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))
    with pytest.raises(ValueError, match=f"line {line}: "):
        read_ledger(path)
    with pytest.raises(ValueError, match=f"line {line}: "), ledger_in(tmp_path):
        pass


def test_a_line_without_its_end_was_never_written(tmp_path: Path) -> None:
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


def test_what_cannot_be_written_is_not_there(
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


def test_others_cannot_read_it(tmp_path: Path) -> None:
    assert three_rounds(tmp_path).stat().st_mode & 0o777 == 0o600


# --- messages that do not count -------------------------------------------------------


def test_what_does_not_count_is_one_line_an_hour(
    tmp_path: Path, clock: list[float]
) -> None:
    refusal = told(pack_refusal("unsigned"))
    with ledger_in(tmp_path) as ledger:
        before = ledger.path.stat().st_size
        assert ledger.does_not_count("unsigned")
        for _ in range(10_000):
            assert not ledger.does_not_count("unsigned")
            assert ledger.leaves(KIND, None, refusal, None) == ""
            ledger.left("0" * 64)
        assert ledger.does_not_count("forged")  # the first of its kind is said at once
        ledger.sum_up()
        assert ledger.path.stat().st_size == before
        clock[0] += SUM_SECONDS
        ledger.sum_up()
        ledger.sum_up()
        assert kinds(ledger.path) == ["begins", "did_not_count"]
        assert list(read_ledger(ledger.path).values())[-1].counts == {
            "unsigned": 10_001,
            "forged": 1,
        }
        assert ledger.does_not_count("unsigned")
        clock[0] += SUM_SECONDS - 1
        assert not ledger.does_not_count("unsigned")
        assert kinds(ledger.path) == ["begins", "did_not_count"]
    # And at the latest when the program ends.
    assert kinds(ledger.path) == ["begins", "did_not_count", "did_not_count"]
    assert list(read_ledger(ledger.path).values())[-1].counts == {"unsigned": 2}


def test_the_hour_is_written_before_anything_that_is_later(
    tmp_path: Path, clock: list[float]
) -> None:
    with ledger_in(tmp_path) as ledger:
        ledger.does_not_count("expired")
        ledger.came(KIND, question(1), Contents())
        ledger.leaves(KIND, question(1), told(content()), None)
        clock[0] += SUM_SECONDS
        ledger.left("0" * 64)  # stands with its answer, whatever the time
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


def test_a_message_that_is_repeated_costs_no_line(tmp_path: Path) -> None:
    """Whoever passes messages on can repeat an authentic one as often as it likes."""
    for _ in range(2):  # over a restart, too
        with ledger_in(tmp_path) as ledger:
            hashes = set()
            for _ in range(100):
                ledger.came(KIND, question(1), Contents())
                hashes.add(
                    ledger.leaves(KIND, question(1), told(pack_refusal("lost")), None)
                )
                ledger.left("0" * 64)
            assert len(hashes) == 1
    entries = list(read_ledger(ledger.path).values())
    lines = ["begins", "came", "leaves", "left", "did_not_count", "did_not_count"]
    assert [entry.what for entry in entries] == lines
    assert [entry.counts for entry in entries[-2:]] == [{AGAIN: 198}, {AGAIN: 200}]


def test_another_answer_to_the_same_question_has_its_own_line(tmp_path: Path) -> None:
    with ledger_in(tmp_path) as ledger:
        lines = {
            ledger.leaves(KIND, question(1), told(pack_refusal("late")), None),
            ledger.leaves(KIND, question(1), told(pack_refusal("lost")), None),
            ledger.leaves(KIND, question(2), told(pack_refusal("lost")), None),
        }
    assert len(lines) == 3


# --- several files --------------------------------------------------------------------


def many_parts(folder: Path, num_parts: int = 4) -> list[Path]:
    """A ledger of that many files, which `small_parts` makes small."""
    with ledger_in(folder) as ledger:
        number = 0
        while len(parts_of(ledger.path)) < num_parts:
            number += 1
            ledger.came(KIND, question(number), Contents())
            ledger.leaves(KIND, question(number), told(content()), 0.5)
            ledger.left("0" * 64)
    return parts_of(folder / FILE_NAME)


@pytest.mark.usefixtures("small_parts")
def test_all_files_are_one_chain(tmp_path: Path) -> None:
    parts = many_parts(tmp_path)
    assert [part.name for part in parts] == [
        FILE_NAME,
        f"{FILE_NAME}.000002",
        f"{FILE_NAME}.000003",
        f"{FILE_NAME}.000004",
    ]
    assert [part.name for part in parts] == sorted(part.name for part in parts)
    for before, part in pairwise(parts):
        last = before.read_bytes().splitlines()[-1]
        first = json.loads(part.read_bytes().splitlines()[0])
        assert first["before"] == hashlib.sha256(last).hexdigest()
        assert (first["what"], first["site"], first["key"]) == ("goes_on", "alpha", OWN)
        assert first["number"] == json.loads(last)["number"] + 1
    entries = list(read_ledger(parts[0]).values())
    assert [entry.number for entry in entries] == list(range(1, len(entries) + 1))
    for entry, after in pairwise(entries):  # an answer and its outcome stand together
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
def test_a_start_reads_the_newest_file_only(tmp_path: Path) -> None:
    parts = many_parts(tmp_path, 60)
    total = sum(part.stat().st_size for part in parts)
    before = bytes_read()
    with ledger_in(tmp_path) as ledger:
        read = bytes_read() - before
        assert len(ledger) == len(read_ledger(ledger.path))
    assert (
        read < 6 * ledgers.PART_BYTES
    )  # the newest, and the last line of the one before
    assert total > 50 * ledgers.PART_BYTES
    assert PART_BYTES <= 8 << 20  # what that is outside of this test


def bytes_read() -> int:
    """By this process so far."""
    words = Path("/proc/self/io").read_text().split()
    return int(words[words.index("rchar:") + 1])


@pytest.mark.usefixtures("small_parts")
def test_a_file_that_was_changed_taken_away_or_put_in_is_named(tmp_path: Path) -> None:
    one, two, three, four = many_parts(tmp_path)
    whole_file = two.read_bytes()
    two.write_bytes(whole_file.replace(b'"attempt":', b'"attempt":1', 1))
    with pytest.raises(ValueError, match=rf"{two.name}, line \d+: it does not follow"):
        read_ledger(one)
    two.unlink()
    for look in (lambda: read_ledger(one), lambda: ledger_in(tmp_path).__enter__()):
        with pytest.raises(ValueError, match=f"{two.name}' is missing"):
            look()
    two.write_bytes(whole_file)
    one.rename(tmp_path / "away")
    with pytest.raises(ValueError, match=f"{FILE_NAME}' is missing"):
        read_ledger(one)
    (tmp_path / "away").rename(one)
    # The end of the file before the newest is looked at in every start.
    last = three.read_bytes()
    three.write_bytes(b"".join(last.splitlines(keepends=True)[:-1]))
    with (
        pytest.raises(ValueError, match=f"{four.name}, line 1: it does not follow"),
        ledger_in(tmp_path),
    ):
        pass
    three.write_bytes(last)
    with ledger_in(tmp_path):
        pass


@pytest.mark.usefixtures("small_parts")
def test_a_line_of_an_older_file_is_known_so_many_files_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = many_parts(tmp_path)
    firsts = [
        hashlib.sha256(part.read_bytes().splitlines()[0]).hexdigest() for part in parts
    ]
    with ledger_in(tmp_path) as ledger:
        assert [found in ledger for found in firsts] == [True] * 4
        assert "0" * 64 not in ledger
        monkeypatch.setattr(ledgers, "_MOST_PARTS_BACK", 2)
        assert [found in ledger for found in firsts] == [False, True, True, True]


@pytest.mark.usefixtures("small_parts")
def test_a_missing_line_that_was_accepted_stays_so(tmp_path: Path) -> None:
    with ledger_in(tmp_path) as ledger:
        ledger.accept("5" * 64)
        assert "5" * 64 in ledger
    many_parts(tmp_path)
    with ledger_in(tmp_path) as ledger:
        assert "5" * 64 in ledger
        assert "6" * 64 not in ledger


@pytest.mark.usefixtures("small_parts")
def test_a_restored_copy_lacks_the_newest_line(tmp_path: Path) -> None:
    """Of one file or of several: what the server hands back is not in it."""
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
    assert kinds(parts[0]) == ["begins"]  # it was made anew, and says so


@pytest.mark.usefixtures("small_parts")
def test_a_disk_that_fills_up_between_two_files_costs_nothing(
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
    # Killed after the file was made and before its first line was whole.
    newest = parts_of(ledger.path)[-1]
    newest.write_bytes(newest.read_bytes()[:100])
    with ledger_in(tmp_path) as ledger:
        ledger.accept("3" * 64)
    assert kinds(ledger.path)[-2:] == ["goes_on", "accepted"]
    assert len(parts_of(ledger.path)) == 2


def _full_disk(*_: object) -> int:
    raise OSError(28, "No space left on device")


# --- whose it is ----------------------------------------------------------------------


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("num_parts", [1, 4])
def test_a_ledger_of_another_key_is_not_continued(
    tmp_path: Path, num_parts: int
) -> None:
    parts = many_parts(tmp_path, num_parts)
    before = [part.read_bytes() for part in parts]
    other = fingerprint(public_line(new_key("signing")))
    with pytest.raises(ValueError, match="Restore that key") as refused:
        Ledger(tmp_path, "alpha", other).__enter__()
    assert f"belongs to the key {OWN}, " in str(refused.value)
    assert other in str(refused.value)
    assert [part.read_bytes() for part in parts_of(parts[0])] == before
    with ledger_in(tmp_path) as ledger:
        ledger.opened()
    # Killed after a further file was made, and before its first line was written.
    parts_of(parts[0])[-1].with_name(f"{FILE_NAME}.{num_parts + 1:06d}").touch()
    with pytest.raises(ValueError, match="Restore that key"):
        Ledger(tmp_path, "alpha", other).__enter__()


def test_a_journal_of_another_key_is_not_continued(tmp_path: Path) -> None:
    with Journal(tmp_path, OWN) as journal:
        journal.count_refused("forged")
    before = (tmp_path / "journal.json").read_bytes()
    with (
        pytest.raises(ValueError, match="belongs to the key") as refused,
        Journal(tmp_path, OLD_KEY),
    ):
        pass
    assert f"the key {OWN}, " in str(refused.value)
    assert (tmp_path / "journal.json").read_bytes() == before
    with Journal(tmp_path, OWN) as journal:
        assert journal.refused == {"forged": 1}


def test_a_folder_of_another_key_is_left_as_it_was(tmp_path: Path) -> None:
    """Also one of an earlier version, whose journal does not say whose it is."""
    state = copied(tmp_path, "state")
    for _ in range(2):
        with (
            Journal(state, OWN),
            pytest.raises(ValueError, match="belongs to the key"),
            ledger_in(state),
        ):
            pass
    with Journal(state, OLD_KEY) as journal, Ledger(state, "alpha", OLD_KEY):
        journal.count_refused("forged")
    with pytest.raises(ValueError, match="belongs to the key"), Journal(state, OWN):
        pass


def test_a_new_ledger_says_so_in_its_first_line(tmp_path: Path) -> None:
    with ledger_in(tmp_path):
        pass
    (entry,) = read_ledger(tmp_path / FILE_NAME).values()
    assert (entry.what, entry.site, entry.key, entry.number) == (
        "begins",
        "alpha",
        OWN,
        1,
    )


# --- a ledger of commit 14d4ec1 -------------------------------------------------------


def copied(folder: Path, name: str) -> Path:
    """A copy of one of the old folders."""
    return Path(shutil.copytree(OLD / name, folder / name))


def test_a_ledger_of_an_earlier_version_goes_on(tmp_path: Path) -> None:
    state, run_dir = copied(tmp_path, "state"), copied(tmp_path, "run")
    path = state / FILE_NAME
    old = path.read_bytes()
    (found,) = audit(run_dir, [path])
    assert (found.site, found.num_answers, found.findings) == ("alpha", 3, ())
    with Journal(state, OLD_KEY) as journal, Ledger(state, "alpha", OLD_KEY) as ledger:
        assert journal.refused == {"unsigned": 1}
        assert (len(ledger), "5" * 64 in ledger) == (16, True)
        ledger.opened()
        ledger.came(
            KIND, question(1, 1), Contents()
        )  # came before, under the earlier version
        ledger.came(KIND, question(9, 9), Contents())
    assert path.read_bytes().startswith(old)
    added = path.read_bytes()[len(old) :].splitlines()
    assert (
        json.loads(added[0])["before"]
        == hashlib.sha256(old.splitlines()[-1]).hexdigest()
    )
    assert kinds(path)[-3:] == ["opened", "came", "did_not_count"]
    (found,) = audit(run_dir, [path])
    assert (found.num_answers, found.findings) == (3, ())
    assert all(faults(entry.in_words()) == [] for entry in read_ledger(path).values())


@pytest.mark.usefixtures("small_parts")
def test_an_old_ledger_that_is_too_large_is_closed_by_the_next_line(
    tmp_path: Path,
) -> None:
    state = copied(tmp_path, "state")
    old = (state / FILE_NAME).read_bytes()
    with Ledger(state, "alpha", OLD_KEY) as ledger:
        ledger.opened()
    assert ledger.path.read_bytes() == old
    assert kinds(ledger.path)[-2:] == ["goes_on", "opened"]
    (found,) = audit(copied(tmp_path, "run"), [ledger.path])
    assert (found.num_answers, found.findings) == (3, ())


# --- compared with the server's answers -----------------------------------------------


def test_an_audit_finds_the_same_in_both(tmp_path: Path) -> None:
    path = three_rounds(tmp_path)
    (found,) = audit(tmp_path, [path])
    assert (found.site, found.num_answers, found.findings) == ("alpha", 3, ())


@pytest.mark.usefixtures("small_parts")
def test_an_audit_reads_all_files(tmp_path: Path) -> None:
    path = three_rounds(tmp_path)
    many_parts(tmp_path)
    (found,) = audit(tmp_path, [path])
    assert (found.num_answers, found.findings) == (3, ())


def test_an_audit_names_what_the_ledger_lacks(tmp_path: Path) -> None:
    path = three_rounds(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(
        b"".join(lines[:8])
    )  # the third round is cut off: nothing follows it
    assert len(read_ledger(path)) == 8
    (found,) = audit(tmp_path, [path])
    assert found.num_answers == 2
    assert found.findings == (
        "the ledger lacks an answer that the server has: answer to train, round 3, attempt 3",
    )


def test_an_audit_names_what_the_server_lacks(tmp_path: Path) -> None:
    path = three_rounds(tmp_path)
    answers = (tmp_path / "answers.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "answers.jsonl").write_text("".join([answers[0], answers[2]]))
    (found,) = audit(tmp_path, [path])
    assert found.findings[0].startswith(
        "the server lacks an answer that was sent: line 7 of the ledger, answer to train, round 2"
    )


def test_a_statement_that_was_changed_is_named(tmp_path: Path) -> None:
    path = three_rounds(tmp_path)
    answers = (tmp_path / "answers.jsonl").read_text().splitlines()
    other = json.loads(answers[1]) | {"key": public_line(new_key("signing"))}
    (tmp_path / "answers.jsonl").write_text(
        "\n".join([answers[0], json.dumps(other), answers[2]]) + "\n"
    )
    with pytest.raises(ValueError, match=r"answers.jsonl, line 2: "):
        audit(tmp_path, [path])


def test_the_book_goes_on_where_it_was(tmp_path: Path) -> None:
    path = three_rounds(tmp_path)
    newest = [
        found for found, entry in read_ledger(path).items() if entry.what == "leaves"
    ][-1]
    (head,) = AnswerBook(tmp_path).heads.items()
    assert head == (
        json.loads((tmp_path / "answers.jsonl").read_text().splitlines()[0])["key"],
        newest,
    )


# --- the commands ---------------------------------------------------------------------


def run(monkeypatch: pytest.MonkeyPatch, door: Callable[[], None], *words: str) -> int:
    """A command line; returns its exit code."""
    monkeypatch.setattr("sys.argv", ["a program", *words])
    with pytest.raises(SystemExit) as end:
        door()
    return int(end.value.code or 0)


@pytest.mark.usefixtures("small_parts")
def test_the_commands_say_what_left(
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
    assert "about to leave: train, round 3, run ffffffff: tensors (" in shown
    assert "length of the update 0.5" in shown
    assert run(monkeypatch, main, "ledger", "accept", "5" * 64, *site) == 0
    assert run(monkeypatch, main, "ledger", "accept", "no hash", *site) == 2
    assert run(monkeypatch, main, "ledger", "verify", *site) == 0
    lines = read_ledger(path)
    said = capsys.readouterr().out
    assert f"{len(lines)} lines in {len(parts_of(path))} files" in said
    assert list(lines)[-1] in said
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
    assert (
        "alpha: the ledger lacks an answer that the server has"
        in capsys.readouterr().out
    )


def hostile(path: Path, word: str, key: str) -> Path:
    """A ledger whose lines follow each other, and that says this wherever it can say anything."""
    record = {"digest": word, "num_bytes": 1, "fields": {word: [word, 1]}}
    facts: list[dict[str, Any]] = [
        {"what": "opened", "site": word, "key": key},
        {"what": "came", "kind": word, "reason": word, "records": {word: record}},
        {
            "what": "came",
            "kind": word,
            "run": word,
            "round": 1,
            "records": {word: record},
        },
        {
            "what": "leaves",
            "kind": word,
            "run": word,
            "round": 10**30,
            "records": {word: record},
        },
        {"what": "stayed", "reason": word},
        {"what": "left", "statement": word},
        {"what": "accepted", "statement": word},
        {"what": "opened", "site": word, "key": word, "plan": word, "question": word},
    ]
    before, lines = "0" * 64, []
    for number, fact in enumerate(facts, 1):
        told = {"number": number, "at": word, "before": before} | {
            k: v for k, v in fact.items() if v != ""
        }
        line = json.dumps(told, sort_keys=True, separators=(",", ":")).encode("ascii")
        before = hashlib.sha256(line).hexdigest()
        lines.append(line + b"\n")
    path.write_bytes(b"".join(lines))
    return path


@pytest.mark.parametrize("name", NASTY)
def test_a_hostile_ledger_moves_no_cursor_and_imitates_no_line(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_dir = copied(tmp_path, "run")
    path = hostile(tmp_path / "st_marys.jsonl", NASTY[name], OLD_KEY)
    assert (
        run(monkeypatch, wardround, "audit", str(run_dir), "--ledger", str(path)) == 1
    )
    audited = capsys.readouterr().out.splitlines()
    assert len(audited) == 2
    site = make_site(tmp_path, 9092, tmp_path / "texts.csv")
    write_site_file(site, tmp_path / "site.yaml")
    (tmp_path / "state").mkdir()
    shutil.copy(path, tmp_path / "state" / FILE_NAME)
    assert (
        run(monkeypatch, main, "ledger", "show", "--site", str(tmp_path / "site.yaml"))
        == 0
    )
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 8
    for line in [*audited, *shown]:
        assert faults(line, 500) == []
        assert "     " not in line.lstrip()
