"""What a registered node may do at the server's door, told by what its calls are refused for."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.server.superlink.fleet.grpc_rere.fleet_servicer import FleetServicer

from server.deployment import fleet

OWN, ANSWER = "a" * 64, "b" * 64


class Aborted(Exception):
    """As gRPC ends a call."""


class Context:
    """Of one call."""

    def abort(self, code: object, reason: str) -> None:
        raise Aborted(reason)


@pytest.fixture
def door(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Flower's part says yes to everything; node 7 was given the question OWN in run 1."""
    for name, says in {
        "PullObject": SimpleNamespace(object_available=True, object_content=b"12345"),
        "PushMessages": SimpleNamespace(session_id="s"),
        "PushObject": SimpleNamespace(stored=True),
        "ConfirmMessageReceived": SimpleNamespace(),
    }.items():
        monkeypatch.setattr(FleetServicer, name, lambda self, request, context, says=says: says)
    monkeypatch.setattr(fleet, "_SPARE_BYTES", 10)
    counted: list[tuple[str, str]] = []
    registrar: Any = SimpleNamespace(
        count=lambda name, reason: counted.append((name, reason)), name_of=lambda node_id: f"site {node_id}"
    )
    made: Any = fleet.OwnMessages.__new__(fleet.OwnMessages)
    made._registrar, made._accounts, made.counted = registrar, {}, counted
    made._give_up = lambda session_id: None
    made._accounts[7, 1] = fleet._Account(messages={OWN}, objects={OWN})
    return made


def call(answer: Callable[[Any, Any], Any], node_id: int = 7, **fields: Any) -> str:
    """Why a call is refused; empty where it is not."""
    request = SimpleNamespace(node=SimpleNamespace(node_id=node_id), run_id=1, **fields)
    try:
        answer(request, Context())
    except Aborted as error:
        return str(error)
    return ""


def push(door: Any, node_id: int = 7, **changed: Any) -> str:
    """Push an answer to OWN."""
    facts = {
        "src_node_id": 7,
        "dst_node_id": 1,
        "run_id": 1,
        "reply_to_message_id": OWN,
        "message_id": ANSWER,
    }
    message = SimpleNamespace(metadata=SimpleNamespace(**(facts | changed)))
    tree = SimpleNamespace(object_id=ANSWER, children=[SimpleNamespace(object_id="c" * 64, children=[])])
    return call(door.PushMessages, node_id, messages_list=[message], message_object_trees=[tree])


def test_a_node_touches_its_own_messages_and_nothing_else(door: Any) -> None:
    assert call(door.PullObject, object_id=OWN) == ""
    assert call(door.PullObject, object_id=ANSWER) == "not_its_own"
    assert call(door.PullObject, node_id=8, object_id=OWN) == "not_its_own"
    assert call(door.ConfirmMessageReceived, message_object_id=OWN) == ""
    assert call(door.ConfirmMessageReceived, node_id=8, message_object_id=OWN) == "not_its_own"
    assert door.counted == [("site 7", "not_its_own"), ("site 8", "not_its_own"), ("site 8", "not_its_own")]


def test_an_answer_is_one_by_the_node_to_a_question_that_it_was_given(door: Any) -> None:
    assert push(door) == ""
    assert push(door, node_id=8) == "not_its_own"
    assert push(door, src_node_id=8) == "not_its_own"
    assert push(door, dst_node_id=8) == "not_its_own"
    assert push(door, reply_to_message_id=ANSWER) == "not_its_own"
    assert push(door, run_id=2) == "not_its_own"
    assert push(door, message_id="d" * 64) == "no_answer"
    assert call(door.PushMessages, messages_list=[], message_object_trees=[]) == "no_answer"


def test_an_answer_is_as_large_as_four_times_its_question_and_some_to_spare(door: Any) -> None:
    call(door.PullObject, object_id=OWN)  # 5 bytes: 10 + 4 * 5 = 30 may come back
    assert call(door.PushObject, session_id="s", object_content=b"1") == "not_its_own"  # no answer was begun
    push(door)
    assert call(door.PushObject, session_id="s", object_content=b"1" * 30) == ""
    assert call(door.PushObject, session_id="s", object_content=b"1") == "too_much"
