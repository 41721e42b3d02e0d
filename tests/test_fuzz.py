"""Both sides read 10,000 messages that differ from the signed ones, and refuse them."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from flwr.app import ConfigRecord, RecordDict
from flwr.proto.fleet_pb2 import PullMessagesResponse
from flwr.proto.node_pb2 import Node
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.fake_runtime import Asked, FakeRuntime, FakeSite, make_run_key
from tests.support.mutations import COURIERS, SIGNERS
from tests.support.site_lab import WIDE, make_site
from tests.support.tiny import Make
from tests.support.wires import (
    SMALL,
    Dice,
    Draft,
    Objects,
    Wire,
    draft_of,
    is_small_content,
    metadata_of,
    pack,
    public_of,
)
from wardround.client.answers import SiteAnswer
from wardround.client.node import journal as journal_module
from wardround.client.node.connection import Connection, Heartbeat, Letter
from wardround.client.node.journal import Journal
from wardround.client.node.ledger import Ledger
from wardround.client.node.loop import Loop
from wardround.client.node.worker import Room, Worker
from wardround.client.site import Order
from wardround.client.site_file import signing_keys
from wardround.common.credentials import fingerprint, new_key, public_line
from wardround.common.errors import BadAnswer, NoAnswer, Reason, Refused
from wardround.common.tasks.label import LABEL
from wardround.common.wire.arrays import dump_content, take_arrays
from wardround.common.wire.codec import (
    pack_refusal,
    unpack_counts,
    unpack_introduction,
    unpack_update,
)
from wardround.common.wire.messages import HELLO, TRAIN
from wardround.common.wire.objects import ENVELOPE
from wardround.common.wire.signing import ANSWER, PLAN, TASK, Plan, open_envelope, sign
from wardround.server.deployment.signed_clients import SignedClients
from wardround.server.rounds.clients import Answer, Request

pytestmark = [pytest.mark.long, pytest.mark.slow]

NUM_MESSAGES = 5_000
"""Number of messages against each side."""
NODE = 7
REASONS = set(get_args(Reason))
Change = tuple[tuple[str, str], bytes]
"""Rows of `tests/support/mutations.py`, and the bytes that decide their choices."""
ROWS = [
    *(("", courier) for courier in COURIERS),
    *((signer, "") for signer in SIGNERS),
    *((signer, courier) for signer, courier in zip(SIGNERS, COURIERS, strict=False)),
]
CHANGES = st.tuples(st.sampled_from(ROWS), st.binary(min_size=20, max_size=20))
# The same messages each time, so that a failure can be repeated.
FUZZ = settings(
    max_examples=NUM_MESSAGES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def changed(draft: Draft, change: Change, others: Sequence[Wire]) -> Wire:
    """Return the message after this change. `others` are messages that a courier may use."""
    (signer, courier), drawn = change
    dice = Dice(drawn)
    if signer:
        SIGNERS[signer](draft, dice)
    wire = draft.seal()
    if courier:
        COURIERS[courier](wire, dice, others)
    return wire


# --- the site -------------------------------------------------------------------------


class Courier(Connection):
    """A connection without a server; it returns one message after the other."""

    def __init__(self) -> None:
        self.node = Node(node_id=NODE)
        self.queue: list[Wire] = []
        self.objects: Objects = {}
        self.pushed: list[RecordDict] = []
        self.num_fetched = 0
        """Number of bytes."""

    def pull(self) -> Letter | None:
        """As in `Connection`."""
        wire = self.queue.pop(0)
        self.objects = wire.objects
        response = PullMessagesResponse(messages_list=[wire.message])
        return Letter(response.SerializeToString())

    def fetch(
        self, letter: Letter, ids: Sequence[str], until: float
    ) -> Iterator[bytes]:
        """As in `Connection`."""
        for object_id in ids:
            if object_id not in self.objects:
                raise Refused("dropped", "an object of the message is not there")
            self.num_fetched += len(self.objects[object_id])
            yield self.objects[object_id]

    def push(self, letter: Letter, content: RecordDict, seconds: float) -> None:
        """As in `Connection`."""
        letter.reply().SerializeToString()
        self.pushed.append(content)

    def confirm(self, letter: Letter) -> None:
        """As in `Connection`."""


class FakeWorker(Worker):
    """Keeps its messages, and does the part of `Worker` that runs in this process."""

    def __init__(self) -> None:
        self.given: list[RecordDict] = []

    def answer(
        self,
        kind: str,
        content: RecordDict,
        room: Room,
        seconds: float,
        order: dict[str, Any],
    ) -> SiteAnswer:
        """As in `Worker`."""
        json.dumps(order)
        self.given.append(RecordDict(dict(content)))
        rest, _ = take_arrays(content)
        dump_content({"kind": kind}, rest)
        return SiteAnswer(RecordDict({"card": ConfigRecord({"client": -1})}))

    def rest_if_idle(self) -> None:
        """As in `Worker`."""


def _answered_each_time(
    loop: Loop, letter: Letter, content: RecordDict, room: Room, order: Order
) -> SiteAnswer:
    return loop._worker.answer(
        letter.kind, content, room, letter.seconds_left, order.to_dict()
    )


@dataclass
class SiteWorld:
    """The loop of a site between a courier and a worker, with the keys of its runs."""

    site_key: Any
    coordinator: Any
    courier: Courier
    worker: FakeWorker
    journal: Journal
    loop: Loop
    rooms: list[int]
    """Bytes of memory that were reserved for tensors."""
    plan: str
    """SHA-256 of the plan that its policy approves."""
    run_key: Any = field(default_factory=lambda: new_key("signing"))
    num_sent: int = 0

    def draft(self, run: str = "a run", **facts: Any) -> Draft:
        """Draft a new question, not signed yet."""
        self.num_sent += 1
        now = time.time()
        public = public_of(self.run_key)
        draft = draft_of(
            SMALL,
            metadata_of(TRAIN, 1, NODE),
            payload_type=TASK,
            key=self.run_key,
            statement={
                "version": 1,
                "run": "",
                "round": 1,
                "attempt": self.num_sent,
                "kind": TRAIN,
                "sender": fingerprint(public),
                "receiver": fingerprint(public_of(self.site_key)),
                "nonce": "0" * 32,
                "answers": "",
                "expires": now + 60,
            },
            run={
                "name": run,
                "key": public,
                "not_before": 1.7e9,
                "not_after": 4e9,
                "plan": self.plan,
            },
            coordinator=self.coordinator,
        )
        draft.statement |= facts
        return draft

    def send(self, wire: Wire) -> str:
        """Return the outcome of a message: the reason of its refusal, `work`, or `dropped`."""
        self.courier.queue.append(wire)
        self.loop.serve(Heartbeat(self.courier))
        assert self.journal.current == b""
        if not self.courier.pushed:
            return "dropped"
        answer = self.courier.pushed.pop()
        statement = str(answer.config_records[ENVELOPE]["statement"])
        open_envelope(statement, ANSWER, [public_of(self.site_key)])
        refusal = answer.config_records.get("refusal")
        return "work" if refusal is None else str(refusal["code"])

    def others(self) -> list[Wire]:
        """Return messages with a valid signature that must not count now."""
        answered = self.draft().seal()
        assert self.send(answered) == "work"
        stranger = self.draft()
        stranger.coordinator = new_key("signing")
        other_run = self.draft()
        other_run.key = new_key("signing")
        return [
            answered,
            stranger.seal(),
            other_run.seal(),
            self.draft(receiver=fingerprint(public_line(new_key("signing")))).seal(),
            self.draft(expires=time.time() - 301).seal(),
            self.draft(kind="evaluate").seal(),
        ]


@pytest.fixture
def site(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make_settings: Make,
    tiny_texts: Path,
    tiny_model: Path,
) -> Iterator[SiteWorld]:
    """Yield a site that waits for messages."""
    rooms: list[int] = []

    class Measured(Room):
        def __call__(self, num_bytes: int) -> np.ndarray:
            rooms.append(num_bytes)
            return super().__call__(num_bytes)

    monkeypatch.setattr("wardround.client.node.loop.Room", Measured)
    # Other tests cover the disk. Here every note must be possible to write.
    monkeypatch.setattr(
        journal_module,
        "write_json",
        lambda path, note: json.dumps(note, allow_nan=False),
    )
    coordinator: Any = new_key("signing")
    (tmp_path / "coordinator.pub").write_text(
        public_line(coordinator), encoding="ascii"
    )
    policy = replace(WIDE, max_days=10_000)
    facts = make_site(tmp_path, 9092, tiny_texts, model=tiny_model, policy=policy)
    # One round is answered again each time. Other tests cover the stored answer.
    monkeypatch.setattr(Loop, "_answered_once", _answered_each_time)
    words = (
        "engine=deployment",
        "data.label_names=[health,money,sport]",
        "num_clients=1",
        "num_rounds=1",
        "train.last_batch=even",
    )
    values = make_settings(*words).for_sites().to_dict()
    own = fingerprint(public_line(signing_keys(facts)[0]))
    ends = 1.7e9 + 86_400 * 10_000
    statement = Plan(1, values, {facts.name: own}, 1.7e9, ends, {}, "")
    plan = sign(PLAN, statement, coordinator)
    courier, worker = Courier(), FakeWorker()
    monkeypatch.setattr(os, "fsync", lambda file: None)
    with (
        Journal(facts.state, own) as journal,
        Ledger(facts.state, facts.name, own) as ledger,
    ):
        loop = Loop(
            facts,
            courier,
            worker,
            journal,
            ledger,
            lambda text: None,
            lambda: not courier.queue,
        )
        known = loop._plans.add(plan)
        yield SiteWorld(
            loop._key, coordinator, courier, worker, journal, loop, rooms, known
        )


def test_the_site_accepts_the_unchanged_message(
    site: SiteWorld,
) -> None:
    assert site.send(site.draft().seal()) == "work"
    (given,) = site.worker.given
    assert is_small_content(given)
    # There are 8 fp32, 3 int8 and 0 fp16 numbers; each array begins at a multiple of 64 bytes.
    assert site.rooms == [128]
    assert site.journal.refused == {}


def test_a_site_reserves_no_more_memory_than_it_has(
    site: SiteWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The message has 35 bytes of tensors.
    monkeypatch.setattr("wardround.client.node.loop.available_memory", lambda: 34)
    assert site.send(site.draft().seal()) == "damaged"
    assert site.rooms == []
    monkeypatch.setattr("wardround.client.node.loop.available_memory", lambda: 35)
    assert site.send(site.draft().seal()) == "work"
    greeting = site.draft(kind=HELLO)  # a greeting may not have tensors
    greeting.metadata.message_type = HELLO
    site.rooms.clear()
    assert site.send(greeting.seal()) == "damaged"
    assert site.rooms == []


def test_no_change_to_a_message_gets_past_the_site(site: SiteWorld) -> None:
    others = site.others()
    seen = Counter[str]()
    num_files = len(list(Path("/proc/self/fd").iterdir()))

    @FUZZ
    @given(CHANGES)
    def fuzz(change: Change) -> None:
        by_signer = change[0][0] != ""
        draft = site.draft(f"run {site.num_sent % 64}") if by_signer else site.draft()
        site.worker.given.clear()
        site.rooms.clear()
        outcome = site.send(changed(draft, change, others))
        seen[outcome] += 1
        assert outcome in SITE_OUTCOMES
        for content in site.worker.given:
            if not by_signer:
                assert is_small_content(content)
            else:
                assert list(content) == list(draft.records)
        assert sum(site.rooms) <= max(0, draft.signed_bytes) + 64 * 50
        assert len(site.worker.given) <= 1

    fuzz()
    assert seen.total() >= NUM_MESSAGES
    assert len(list(Path("/proc/self/fd").iterdir())) <= num_files + 2


SITE_OUTCOMES = {
    "work",
    "dropped",
    "lost",
    "late",
    "unknown_kind",
    "plan_unknown",
    "beyond_plan",
    "out_of_order",
    *REASONS,
}


# --- the server -----------------------------------------------------------------------


@dataclass
class ServerWorld:
    """The server, a courier, and a site whose second answer is always honest."""

    sites: list[FakeSite]
    runtime: FakeRuntime
    clients: SignedClients
    noted: list[tuple[str, str]]
    rooms: list[int]

    def ask(self, change: Callable[[Draft, Asked], Wire]) -> Answer:
        """Return the server's result for an answer to one question."""
        site = self.sites[0]
        num_asked = len(self.runtime.asked)

        def behave(asked: Asked) -> Wire:
            self.runtime.objects.clear()
            draft = site.draft(asked, SMALL)
            if len(self.runtime.asked) == num_asked + 1:
                return change(draft, asked)
            return draft.seal()

        self.runtime.behave = behave
        (answer,) = self.clients.ask(
            [Request(site.node_id, RecordDict())], TRAIN, 1, 60.0
        )
        return answer

    def others(self) -> list[Wire]:
        """Return messages with a valid signature that must not count now."""
        found: list[Wire] = []

        def keep(draft: Draft, asked: Asked) -> Wire:
            by_other = self.sites[1].draft(asked, SMALL)
            unasked = self.sites[0].draft(asked, pack(pack_refusal("forged")))
            unasked.statement |= {
                "run": "",
                "round": 0,
                "attempt": 0,
                "receiver": "",
                "answers": "",
            }
            found.extend([draft.seal(), by_other.seal(), unasked.seal()])
            return found[0]

        assert isinstance(self.ask(keep), RecordDict)
        return found


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> ServerWorld:
    """Return a server with two sites. It asks one of them."""
    rooms: list[int] = []
    noted: list[tuple[str, str]] = []

    def measured(num_bytes: int) -> np.ndarray:
        rooms.append(num_bytes)
        return np.empty(num_bytes, dtype=np.uint8)

    monkeypatch.setattr("wardround.server.deployment.signed_clients._room", measured)
    monkeypatch.setattr("wardround.server.deployment.signed_clients.POLL_SECONDS", 0.0)
    sites = [FakeSite("a", 7), FakeSite("b", 8)]
    runtime = FakeRuntime(sites, lambda asked: None)
    clients = SignedClients(
        runtime,
        make_run_key(),
        {site.name: site.registered for site in sites},
        lambda: ["a", "b"],
        ask_again_seconds=30.0,
        note_refused=lambda name, reason: noted.append((name, reason)),
    )
    clients.most_bytes = 1024
    return ServerWorld(sites, runtime, clients, noted, rooms)


def test_the_server_accepts_the_unchanged_answer(
    server: ServerWorld,
) -> None:
    answer = server.ask(lambda draft, asked: draft.seal())
    assert isinstance(answer, RecordDict)
    assert is_small_content(answer)
    assert server.rooms == [128]
    assert (len(server.runtime.asked), server.noted) == (1, [])


def test_no_change_to_an_answer_gets_past_the_server(server: ServerWorld) -> None:
    others = server.others()
    seen = Counter[str]()

    @FUZZ
    @given(CHANGES)
    def fuzz(change: Change) -> None:
        (signer, courier), _ = change
        signed = 0

        def behave(draft: Draft, asked: Asked) -> Wire:
            nonlocal signed
            now = [server.sites[1].draft(asked, SMALL).seal()] if courier else []
            wire = changed(draft, change, [*others, *now])
            signed = draft.signed_bytes
            return wire

        server.noted.clear()
        server.rooms.clear()
        answer = server.ask(behave)
        if isinstance(answer, RecordDict):
            seen["taken"] += 1
            assert signer or is_small_content(answer)
            assert server.noted == []
            with pytest.raises(BadAnswer):
                unpack_update(answer, LABEL)
            with pytest.raises(BadAnswer):
                unpack_introduction(answer)
            with pytest.raises(BadAnswer):
                unpack_counts(answer, LABEL)
        elif isinstance(answer, NoAnswer):
            seen["declined"] += 1
            assert signer
        else:
            assert isinstance(answer, BadAnswer)
            ((name, reason),) = server.noted
            assert name == "a"
            assert reason in REASONS
            assert str(answer).endswith(f": {reason}")
            seen[reason] += 1
        assert sum(server.rooms) <= max(0, signed) + 64 * 50

    fuzz()
    assert seen.total() >= NUM_MESSAGES
