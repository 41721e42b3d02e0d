"""The calls that a registered node may make at the server, and the reasons of refusals."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import pytest
from flwr.proto import fleet_pb2, heartbeat_pb2
from flwr.proto import message_pb2 as wire
from flwr.proto.node_pb2 import Node

from tests.support.superlink_lab import Lab, blob, name, num_nodes, reply, small, tree
from wardround.common.tasks.label import label_sums
from wardround.common.wire.codec import pack_requests, pack_update
from wardround.common.wire.forms import FORMS, encode, whole
from wardround.common.wire.messages import TrainRequest, Update
from wardround.common.wire.objects import Object, content_object
from wardround.server.deployment import servicer
from wardround.server.deployment.trees import (
    MOST_DEPTH,
    MOST_OBJECTS,
    TreeStore,
    ids_of,
)

UNKNOWN = name(1)


@pytest.fixture
def lab() -> Lab:
    """Return a run that is under way."""
    return Lab()


@pytest.fixture
def site(lab: Lab) -> int:
    """Return the number of an honest node of the run."""
    return lab.node(b"site")


@pytest.fixture
def mallory(lab: Lab) -> int:
    """Return the number of a node that attacks."""
    return lab.node(b"mallory")


def asked(lab: Lab, node_id: int, content: Object | None = None, **facts: Any) -> str:
    """Ask a node a question, and let it pull the question. Return its id."""
    question = lab.ask(node_id, content, **facts)
    (message,) = lab.pull(node_id).messages_list
    assert message.metadata.message_id == question
    return question


def doubling(depth: int) -> Any:
    """Return a tree that names one object twice at each level: it stands for 2^depth objects."""
    node = tree(name(depth))
    for number in reversed(range(depth)):
        node = tree(name(number), node, tree(node.object_id))
    return node


def test_a_node_reaches_only_its_own_messages(
    lab: Lab, site: int, mallory: int
) -> None:
    own = asked(lab, site)
    assert lab.fetch(site, own).object_available
    assert lab.why(lambda: lab.fetch(site, UNKNOWN)) == "not_its_own"
    assert lab.why(lambda: lab.fetch(mallory, own)) == "not_its_own"
    assert lab.why(lambda: lab.confirm(mallory, own)) == "not_its_own"
    assert lab.why(lambda: lab.confirm(site, own)) == ""
    assert lab.refused == [
        (site, "not_its_own"),
        (mallory, "not_its_own"),
        (mallory, "not_its_own"),
    ]


def test_a_node_answers_only_its_own_questions_for_itself(
    lab: Lab, site: int, mallory: int
) -> None:
    own, answer = asked(lab, site), tree(name(7), tree(name(8)))

    def begin(node_id: int, question: str, **changed: Any) -> str:
        return lab.why(lambda: lab.begin(node_id, question, answer, **changed))

    assert begin(site, own, src_node_id=mallory) == "not_its_own"
    assert begin(site, own, dst_node_id=mallory) == "not_its_own"
    assert begin(site, own, run_id=lab.run_id + 1) == "not_its_own"
    assert begin(mallory, own) == "not_its_own"
    assert begin(site, UNKNOWN) == "not_its_own"
    assert begin(site, own, message_id=name(9)) == "no_answer"
    nothing = fleet_pb2.PushMessagesRequest(node=Node(node_id=site))
    assert lab.why(lambda: lab.call("PushMessages", nothing)) == "no_answer"
    two = fleet_pb2.PushMessagesRequest(
        node=Node(node_id=site),
        messages_list=[wire.Message()] * 2,
        message_object_trees=[answer] * 2,
    )
    assert lab.why(lambda: lab.call("PushMessages", two)) == "no_answer"
    assert begin(site, own) == ""


NUMBERS = range(1, MOST_OBJECTS + 1)
HOSTILE_TREES = {
    "doubled 30 times": doubling(30),
    "doubled twice": doubling(2),
    "too many objects": tree(name(0), *(tree(name(number)) for number in NUMBERS)),
    "one leaf too often": tree(name(0), *(tree(name(1)) for _ in NUMBERS)),
    "a parent twice": tree(
        name(0), tree(name(1), tree(name(2))), tree(name(1), tree(name(2)))
    ),
    "its own child": tree(name(0), tree(name(0))),
    "no id": tree(name(0), tree("no id")),
    "large letters": tree(name(0), tree(name(10).upper())),
    "empty": tree(""),
}


@pytest.mark.parametrize("kind", HOSTILE_TREES)
def test_a_hostile_tree_is_refused_in_a_bounded_time(
    lab: Lab, mallory: int, kind: str
) -> None:
    """Flower's store builds a tree again for each reader: 30 doublings are 2^30 objects."""
    question = asked(lab, mallory)
    started = time.monotonic()
    why = lab.why(lambda: lab.begin(mallory, question, HOSTILE_TREES[kind]))
    assert why == "no_answer"
    assert time.monotonic() - started < 5


def test_a_tree_that_is_deeper_than_a_message_of_tensors_is_refused() -> None:
    deep = tree(name(0))
    for number in range(1, MOST_DEPTH):
        deep = tree(name(number), deep)
    assert len(ids_of(deep)) == MOST_DEPTH
    with pytest.raises(ValueError, match="deep"):
        ids_of(tree(name(99), deep))


def test_the_tree_of_a_message_is_within_the_bounds() -> None:
    """Pieces with the same content are the same object."""
    zeros = np.zeros(4 * 2**20, np.float32)
    update = Update(1, "", whole(zeros), 1, 1, 0.0, 0.0, None)
    content = content_object(pack_update(update))
    written = content.tree(wire.ObjectTree)
    assert set(ids_of(written)) == {part.object_id for part in content.walk()}


def test_trees_of_several_answers_are_kept_apart(
    lab: Lab, site: int, mallory: int
) -> None:
    """Each is small. In one graph for all they would multiply to 40 * 40 * 40 objects."""
    wide = range(40)
    below = tree(name(100), *(tree(name(200 + number)) for number in wide))
    middle = tree(name(101), *(tree(name(100)) for _ in wide))
    above = tree(name(102), *(tree(name(101)) for _ in wide))
    for number, part in enumerate((below, middle, above)):
        question = asked(lab, mallory)
        lab.begin(mallory, question, tree(name(1000 + number), part))
    (found,) = lab.claim(question).message_object_trees
    assert num_nodes(found) == num_nodes(tree(name(1002), above))


def test_a_tree_cannot_change_the_tree_of_another_message(
    lab: Lab, site: int, mallory: int
) -> None:
    """An attacker who knew the first model could claim that its record has no pieces."""
    model = content_object(pack_requests(task(np.ones(3, np.float32)), [0])[0])
    (record,) = (part for part in model.children if part.children)
    poisoned = asked(lab, mallory, small("hello"))
    lab.begin(mallory, poisoned, tree(name(5), tree(record.object_id)))
    asked(lab, site, model)
    for part in model.walk():
        assert lab.fetch(site, part.object_id).object_available


def test_a_dropped_answer_does_not_delete_a_message_of_another_node(
    lab: Lab, site: int, mallory: int
) -> None:
    """The dropped answer named that message as a part of itself."""
    others = asked(lab, site)
    own = asked(lab, mallory)
    assert lab.why(lambda: lab.begin(mallory, own, tree(others))) == "no_answer"
    lab.begin(mallory, own, tree(name(5), tree(others)))
    lab.begin(mallory, own, tree(name(6)))  # it replaces the answer before
    assert lab.fetch(site, others).object_available


def test_a_node_does_not_learn_what_others_have_pushed(
    lab: Lab, site: int, mallory: int
) -> None:
    """Small records can be guessed. A list of missing objects would confirm the guess."""
    secret = blob("s", 10)
    lab.answer(site, asked(lab, site), reply(secret))
    guess = reply(secret, blob("x", 1))
    own = asked(lab, mallory)
    response = lab.begin(mallory, own, guess.tree(wire.ObjectTree))
    assert set(response.objects_to_push) == {part.object_id for part in guess.walk()}
    session = response.session_id
    assert lab.push(mallory, session, secret).stored
    wrong = Object(blob("x", 1).object_id, 0, (), lambda: b"something else")
    assert not lab.push(mallory, session, wrong).stored
    # The wrong object has ended the answer.
    assert lab.why(lambda: lab.push(mallory, session, guess)) == "not_its_own"


def test_the_id_of_an_object_is_not_enough_to_push_it(
    lab: Lab, site: int, mallory: int
) -> None:
    secret = blob("s", 10)
    lab.answer(site, asked(lab, site), reply(secret))
    own = asked(lab, mallory)
    session = lab.begin(mallory, own, tree(name(5), tree(secret.object_id))).session_id
    unknown = Object(secret.object_id, 0, (), lambda: b"its id alone is known")
    assert not lab.push(mallory, session, unknown).stored


def task(tensors: np.ndarray) -> TrainRequest:
    """Return the question of a round."""
    return TrainRequest(1, "", whole(tensors))


def test_an_answer_that_is_too_large_for_its_question_is_refused(
    lab: Lab, site: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servicer, "SPARE_BYTES", 1000)
    question = asked(lab, site, small("q" * 200))
    largest = 0
    for object_id in (question, small("q" * 200).object_id):
        largest += len(lab.fetch(site, object_id).object_content)
    lab.fetch(site, question)  # a piece that is fetched again counts once
    fits = 1000 + 4 * largest - 100  # the heads of objects take a few bytes of it
    large, too_large = blob("a", fits), blob("b", 100)
    answer = reply(large, too_large).tree(wire.ObjectTree)
    session = lab.begin(site, question, answer).session_id
    assert lab.push(site, session, large).stored
    assert lab.why(lambda: lab.push(site, session, too_large)) == "too_much"
    assert lab.why(lambda: lab.push(site, session, too_large)) == "not_its_own"


def test_the_bound_of_an_answer_does_not_grow_with_the_rounds(
    lab: Lab, site: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servicer, "SPARE_BYTES", 0)
    for number in range(20):
        content = small(f"{number:0500d}")
        question = asked(lab, site, content)
        ids = [question, *(part.object_id for part in content.walk())]
        fetched = [lab.fetch(site, object_id) for object_id in ids]
        num_bytes = sum(len(piece.object_content) for piece in fetched)
    large = blob("a", 5 * num_bytes)
    session = lab.begin(site, question, reply(large).tree(wire.ObjectTree)).session_id
    assert lab.why(lambda: lab.push(site, session, large)) == "too_much"


def test_a_small_difference_may_be_answered_with_a_whole_model(
    lab: Lab, site: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A site that has the last model receives a small step, and may answer with all tensors."""
    monkeypatch.setattr(servicer, "SPARE_BYTES", 0)
    tensors = np.arange(1000, dtype=np.float32)
    model = content_object(pack_requests(task(tensors), [0])[0])
    asked(lab, site, model)
    for part in model.walk():
        lab.fetch(site, part.object_id)
    step = asked(lab, site, small("a small step"))
    update = Update(2, "", whole(tensors[::-1].copy()), 1, 1, 0.0, 0.0, None)
    lab.answer(site, step, reply(content_object(pack_update(update))))


@pytest.mark.parametrize("form", ["whole", *FORMS])
@pytest.mark.parametrize("size", [0, 1, 5000, 3_000_000])
def test_no_honest_update_is_larger_than_an_answer_may_be(form: str, size: int) -> None:
    """The largest update has twice the bytes of the model, in any form, and a little more."""
    base = np.random.default_rng(0).standard_normal(size).astype(np.float32)
    largest = content_object(pack_requests(task(base), [0])[0]).num_bytes
    moved = [base, -base, base * np.float32(1.001), base[::-1].copy()]
    for trained in moved:
        payload = whole(trained) if form == "whole" else encode(form, trained, base)
        counts = label_sums(1.0, np.full((50, 50), 2**40, np.int64))
        update = Update(1, "0" * 64, payload, 2**40, 2**40, 0.1, 0.1, counts, "0" * 64)
        num_bytes = content_object(pack_update(update)).num_bytes
        assert num_bytes <= 2 * largest + 2**18
    assert servicer.UP_TO_DOWN >= 2
    assert servicer.SPARE_BYTES >= 2**18


def test_a_new_answer_replaces_an_incomplete_one(lab: Lab, site: int) -> None:
    question = asked(lab, site)
    first, second = reply(blob("a", 10)), reply(blob("b", 10))
    old = lab.begin(site, question, first.tree(wire.ObjectTree)).session_id
    assert lab.push(site, old, first.children[0]).stored
    lab.answer(site, question, second)
    assert lab.why(lambda: lab.push(site, old, first)) == "not_its_own"
    assert not lab.read(first.children[0].object_id).object_found
    (message,) = lab.claim(question).messages_list
    assert message.metadata.message_id == second.object_id
    # A complete answer is not replaced.
    written = first.tree(wire.ObjectTree)
    assert lab.why(lambda: lab.begin(site, question, written)) == "answered"
    assert lab.read(second.object_id).object_available


def test_an_answer_can_be_begun_only_a_few_times(lab: Lab, site: int) -> None:
    question = asked(lab, site)

    def begin(number: int) -> str:
        answer = tree(name(100 + number))
        return lab.why(lambda: lab.begin(site, question, answer))

    for number in range(servicer.MOST_SESSIONS):
        assert begin(number) == ""
    assert begin(servicer.MOST_SESSIONS) == "too_often"


def test_a_repeated_call_continues_the_answer(lab: Lab, site: int) -> None:
    """The response to the first call may have been lost."""
    question = asked(lab, site)
    root = reply(blob("a", 10), blob("b", 10))
    written = root.tree(wire.ObjectTree)
    session = lab.begin(site, question, written).session_id
    assert lab.push(site, session, root.children[0]).stored
    assert lab.push(site, session, root.children[0]).stored
    again = lab.begin(site, question, written)
    assert again.session_id == session
    assert set(again.objects_to_push) == {root.object_id, root.children[1].object_id}
    for part in (root.children[1], root):
        assert lab.push(site, session, part).stored
    assert list(lab.begin(site, question, written).objects_to_push) == []
    (message,) = lab.claim(question).messages_list
    assert message.metadata.message_id == root.object_id


@pytest.mark.parametrize(
    "changed",
    [
        {"created_at": math.nan, "ttl": math.nan},
        {"created_at": math.inf, "ttl": math.inf},
        {"created_at": -1e300, "ttl": 1e300},
        {"group_id": "g" * 10**5},
        {"message_type": "query.another"},
        {"src_task_id": 2**63, "dst_task_id": 2**63},
    ],
)
def test_the_server_writes_the_metadata_of_an_answer_itself(
    lab: Lab, site: int, changed: dict[str, Any]
) -> None:
    question = asked(lab, site)
    honest = {
        "run_id": lab.run_id,
        "src_node_id": site,
        "dst_node_id": 1,
        "reply_to_message_id": question,
        "message_id": name(7),
        "message_type": "train",
        "created_at": time.time(),
        "ttl": 10.0,
    }
    message = wire.Message(metadata=wire.Metadata(**(honest | changed)))
    message.content.SetInParent()
    request = fleet_pb2.PushMessagesRequest(
        node=Node(node_id=site),
        messages_list=[message],
        message_object_trees=[tree(name(7))],
        clientapp_runtime_list=[math.nan] * 1000,
    )
    lab.call("PushMessages", request)
    (message,) = lab.claim(question).messages_list
    stored = message.metadata
    assert stored.group_id == "1"
    assert stored.message_type == "train"
    assert 0 < stored.ttl <= 60
    assert abs(stored.created_at - time.time()) < 60
    assert stored.src_task_id == 0
    assert stored.dst_task_id == 0
    (run,) = lab.state.get_run_info(run_ids=[lab.run_id])
    assert run.clientapp_runtime == 0


def test_a_node_cannot_lengthen_the_time_until_it_counts_as_offline(
    lab: Lab, site: int
) -> None:
    beat = heartbeat_pb2.SendNodeHeartbeatRequest(
        node=Node(node_id=site), heartbeat_interval=1800.0
    )
    lab.call("SendNodeHeartbeat", beat)
    lab.state.deactivate_node(site)
    activate = fleet_pb2.ActivateNodeRequest(
        public_key=b"site", heartbeat_interval=math.inf
    )
    lab.call("ActivateNode", activate)
    (node,) = lab.state.get_node_info(node_ids=[site])
    assert node.online_until - time.time() <= 2 * 30


def test_old_questions_and_answers_are_deleted(lab: Lab, site: int) -> None:
    """Questions, and answers that the server app never reads, do not accumulate."""
    questions = []
    for number in range(servicer.MOST_QUESTIONS + 3):
        question = asked(lab, site, small(str(number)))
        lab.answer(site, question, reply(blob(str(number), 100)))
        questions.append(question)
    account = lab.door._accounts[site, lab.run_id]
    assert list(account.questions) == questions[-servicer.MOST_QUESTIONS :]
    for number in range(3):
        assert not lab.read(blob(str(number), 100).object_id).object_found
    expired = asked(lab, site, seconds=0.3)
    time.sleep(0.4)
    asked(lab, site)
    assert expired not in account.questions


def test_an_ended_run_leaves_nothing_behind(lab: Lab, site: int) -> None:
    lab.answer(site, asked(lab, site), reply(blob("a", 100)))
    store: TreeStore = lab.state.object_store
    assert len(store) > 0
    lab.state.finish_task(lab._task.task_id, "completed", "")
    lab.door._forget_ended_runs()
    assert len(store) == 0
    assert lab.door._accounts == {}
