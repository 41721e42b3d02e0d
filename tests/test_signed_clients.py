"""Questions to real sites: which answers count, and when a question is repeated."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Timer

import numpy as np
import pytest
from flwr.app import RecordDict

from tests.support.fake_runtime import Asked, FakeRuntime, FakeSite, make_run_key
from tests.support.wires import SMALL, Wire, is_small_content, pack
from wardround.common.errors import BadAnswer, NoAnswer
from wardround.common.wire.arrays import to_record
from wardround.common.wire.codec import pack_refusal
from wardround.common.wire.messages import HELLO, TRAIN
from wardround.common.wire.refusals import LOST
from wardround.server.deployment.runtime_link import Reply
from wardround.server.deployment.signed_clients import SignedClients
from wardround.server.rounds.clients import Answer, Request


@dataclass
class Sites:
    """Two sites, the server's view of them, and its notes."""

    one: FakeSite
    two: FakeSite
    runtime: FakeRuntime
    clients: SignedClients
    registered: set[str]
    noted: list[tuple[str, str]]

    def honest(self, asked: Asked) -> Wire:
        """Return the answer of the site that was asked."""
        site = self.one if asked.parcel.node_id == self.one.node_id else self.two
        return site.draft(asked, SMALL).seal()

    def attempts_of(self, node_id: int) -> list[int]:
        """Return the attempt of each question to a node."""
        return [
            asked.statement.attempt
            for asked in self.runtime.asked
            if asked.parcel.node_id == node_id
        ]

    def ask(
        self,
        behave: Callable[[Asked], Wire | Reply | None],
        seconds: float = 5.0,
        kind: str = TRAIN,
    ) -> list[Answer]:
        """Ask both sites in one round."""
        self.runtime.behave = behave
        requests = [
            Request(site.node_id, RecordDict()) for site in (self.one, self.two)
        ]
        return list(self.clients.ask(requests, kind, 1, seconds))


LINK = "wardround.server.deployment.signed_clients"


@pytest.fixture
def sites(monkeypatch: pytest.MonkeyPatch) -> Sites:
    """Two sites, online and registered."""
    monkeypatch.setattr(f"{LINK}._OFFLINE_SECONDS", 0.3)
    monkeypatch.setattr(f"{LINK}._LOOK_SECONDS", 0.0)
    one, two = FakeSite("one", 7), FakeSite("two", 8)
    noted: list[tuple[str, str]] = []
    registered = {"one", "two"}
    runtime = FakeRuntime([one, two], lambda asked: None)
    clients = SignedClients(
        runtime,
        make_run_key(),
        {"one": one.registered, "two": two.registered},
        registered=lambda: frozenset(registered),
        ask_again_seconds=0.5,
        note_refused=lambda name, reason: noted.append((name, reason)),
    )
    clients.most_bytes = 1024
    assert dict(clients.online()) == {7: "one", 8: "two"}
    return Sites(one, two, runtime, clients, registered, noted)


def test_answers_come_in_the_order_of_the_questions(sites: Sites) -> None:
    found = sites.ask(sites.honest)
    assert len(found) == 2
    for answer in found:
        assert isinstance(answer, RecordDict)
        assert is_small_content(answer)
    assert [asked.statement.attempt for asked in sites.runtime.asked] == [1, 1]
    assert sorted(sites.runtime.confirmed) == ["message 0", "message 1"]


def test_an_answer_in_the_name_of_another_site_does_not_count(sites: Sites) -> None:
    first, second = sites.ask(lambda asked: sites.one.draft(asked, SMALL).seal())
    assert isinstance(first, RecordDict)
    assert isinstance(second, BadAnswer)
    assert sites.noted == [("two", "forged")]
    # It is deleted at the server all the same.
    assert sorted(sites.runtime.confirmed) == ["message 0", "message 1"]


def test_a_piece_with_a_thousand_names_reserves_no_memory(
    sites: Sites, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pieces with the same content are sent once: 64 MiB of zeros take a few hundred bytes."""
    rooms: list[int] = []
    monkeypatch.setattr(f"{LINK}._room", rooms.append)
    zeros = to_record({"shared": np.zeros(1 << 24, np.float32)})
    bomb = pack(RecordDict({"tensors": zeros}))

    def behave(asked: Asked) -> Wire:
        # A greeting asks for no tensors, so even few are refused.
        draft = sites.one.draft(asked, bomb if asked.statement.kind == TRAIN else SMALL)
        draft.sizes["tensors"] = 1 << 30
        return draft.seal()

    for kind in (TRAIN, HELLO):
        answer, _ = sites.ask(behave, kind=kind)
        assert isinstance(answer, BadAnswer), kind
    assert rooms == []
    assert sites.noted.count(("one", "damaged")) == 2


def test_an_answer_to_another_question_does_not_count(sites: Sites) -> None:
    old: list[Wire] = []

    def replay(asked: Asked) -> Wire:
        old.append(sites.honest(asked))
        return old[0]

    first, second = sites.ask(replay)
    assert isinstance(first, RecordDict)
    assert isinstance(second, BadAnswer)
    assert sites.noted[0][0] == "two"


def test_a_lost_answer_is_asked_for_again_as_a_new_attempt(sites: Sites) -> None:
    lost = pack(pack_refusal(LOST))

    def behave(asked: Asked) -> Wire:
        if asked.parcel.node_id == sites.one.node_id and asked.statement.attempt < 3:
            return sites.one.draft(asked, lost).seal()
        return sites.honest(asked)

    assert all(isinstance(answer, RecordDict) for answer in sites.ask(behave))
    assert sites.attempts_of(7) == [1, 2, 3]


def test_after_three_lost_answers_a_site_counts_as_missing(sites: Sites) -> None:
    def behave(asked: Asked) -> Wire | Reply:
        is_one = asked.parcel.node_id == sites.one.node_id
        return Reply(asked.message_id, "0" * 64, "") if is_one else sites.honest(asked)

    first, second = sites.ask(behave)
    assert isinstance(first, NoAnswer)
    assert "3 times" in str(first)
    assert isinstance(second, RecordDict)


def test_no_attempt_is_wasted_on_a_node_that_has_just_gone(
    sites: Sites, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flower reports that the node has gone, after the list of online nodes was read."""
    monkeypatch.setattr(f"{LINK}._LOOK_SECONDS", 1.0)
    monkeypatch.setattr(f"{LINK}._OFFLINE_SECONDS", 5.0)

    def behave(asked: Asked) -> Wire | Reply:
        if asked.parcel.node_id == sites.two.node_id or asked.statement.attempt > 1:
            return sites.honest(asked)
        sites.runtime.online.discard(sites.one.node_id)
        Timer(1.5, lambda: sites.runtime.online.add(sites.one.node_id)).start()
        return Reply(asked.message_id, "", "Node Unavailable")

    answers = sites.ask(behave, seconds=20.0)
    assert all(isinstance(answer, RecordDict) for answer in answers)
    assert sites.attempts_of(7) == [1, 2]


def test_the_newest_line_of_a_sites_ledger_goes_with_the_next_question(
    sites: Sites,
) -> None:
    def behave(asked: Asked) -> Wire:
        site = sites.one if asked.parcel.node_id == sites.one.node_id else sites.two
        draft = site.draft(asked, SMALL)
        draft.statement["ledger"] = f"{site.node_id:064x}"
        return draft.seal()

    sites.ask(behave)
    sites.ask(behave)
    lines = [asked.statement.ledger for asked in sites.runtime.asked]
    assert lines == ["", "", f"{7:064x}", f"{8:064x}"]


def test_a_delivered_answer_counts_although_its_site_has_gone(sites: Sites) -> None:
    def behave(asked: Asked) -> Wire:
        sites.runtime.online.discard(asked.parcel.node_id)
        return sites.honest(asked)

    assert all(isinstance(answer, RecordDict) for answer in sites.ask(behave))


def test_a_site_that_leaves_before_it_is_asked_does_not_end_the_run(
    sites: Sites,
) -> None:
    sites.runtime.online.discard(sites.one.node_id)
    first, second = sites.ask(sites.honest)
    assert isinstance(first, NoAnswer)
    assert "not connected" in str(first)
    assert isinstance(second, RecordDict)


def test_a_site_whose_node_was_gone_for_a_moment_is_asked_again(sites: Sites) -> None:
    def behave(asked: Asked) -> Wire | Reply:
        if asked.parcel.node_id == sites.one.node_id and asked.statement.attempt == 1:
            return Reply(asked.message_id, "", "Error: Node Unavailable")
        return sites.honest(asked)

    assert all(isinstance(answer, RecordDict) for answer in sites.ask(behave))


def test_a_silent_site_that_stays_connected_is_asked_once(sites: Sites) -> None:
    def behave(asked: Asked) -> Wire | None:
        if asked.parcel.node_id == sites.one.node_id:
            return None
        return sites.honest(asked)

    first, second = sites.ask(behave, seconds=1.5)
    assert first is None
    assert isinstance(second, RecordDict)
    assert len(sites.runtime.asked) == 2


def test_a_silent_site_that_has_reconnected_is_asked_again(sites: Sites) -> None:
    def behave(asked: Asked) -> Wire | None:
        if asked.parcel.node_id == sites.one.node_id and asked.statement.attempt == 1:
            sites.runtime.since = "2026-01-02"
            return None
        return sites.honest(asked)

    assert all(isinstance(answer, RecordDict) for answer in sites.ask(behave))


def test_the_answer_of_an_unregistered_site_does_not_count(sites: Sites) -> None:
    def behave(asked: Asked) -> Wire | None:
        sites.registered.discard("one")
        if asked.parcel.node_id == sites.one.node_id:
            return None
        return sites.honest(asked)

    first, second = sites.ask(behave)
    assert isinstance(first, NoAnswer)
    assert "not registered" in str(first)
    assert isinstance(second, RecordDict)


def test_nothing_waits_past_the_end_of_a_round(sites: Sites) -> None:
    started = time.monotonic()
    assert sites.ask(lambda asked: None, seconds=0.5) == [None, None]
    assert time.monotonic() - started < 5
    late = list(sites.clients.ask([Request(7, RecordDict())], HELLO, 1, 0.0))
    assert late == [None]
