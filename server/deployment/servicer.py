"""What a node may do with messages: fetch its questions, and answer each once, within bounds.

Bytes are counted for each question. One answer may have four times the bytes of the largest question
that its node was given in the run so far, and SPARE_BYTES more. The largest, since a question may be
a small difference from a model that the site still holds, while its answer may be a whole model. A
node is sent a whole model before its first difference, and an update takes at most twice the bytes of
a whole model (`Layout.most_update_bytes`), so that no honest answer is refused.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc  # type: ignore[import-untyped]
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL, SUPERLINK_NODE_ID, Status
from flwr.proto.fleet_pb2 import PushMessagesRequest, PushMessagesResponse
from flwr.proto.message_pb2 import Message, Metadata, PushObjectResponse
from flwr.server.superlink.fleet.grpc_rere.fleet_servicer import FleetServicer

from wardround.server.deployment.trees import ids_of

SPARE_BYTES = 64 * 2**20
UP_TO_DOWN = 4
"""How many times the bytes of its question an answer may have."""
MOST_QUESTIONS = 4
"""Of one run, that a node has in hand. A site works on one at a time; it is asked the same thing
three times at most, and may be sent a notice."""
MOST_SESSIONS = 16
"""How often a node may begin to push an answer to the same question."""


@dataclass
class PushedAnswer:
    """An answer that a node pushes."""

    root: str
    """The message's id."""
    session: str
    """Flower's name for the pushing of it."""
    missing: set[str]
    """Ids of the objects that this node has not pushed yet."""
    stored: set[str] = field(default_factory=set)
    """Ids of those that it has."""
    num_bytes: int = 0
    """Pushed so far."""


@dataclass
class Question:
    """A message that a node was given."""

    group: str
    kind: str
    ends: float
    """By `time.time()`; nobody waits for its answer any more from then on."""
    objects: frozenset[str]
    """Ids of what it consists of."""
    fetched: set[str] = field(default_factory=set)
    """Ids of those that the node has fetched."""
    num_bytes: int = 0
    """Of those."""
    num_sessions: int = 0
    """How often an answer to it was begun."""
    answer: PushedAnswer | None = None
    """The one that is being pushed, or was."""


@dataclass
class Account:
    """One node in one run."""

    questions: dict[str, Question] = field(default_factory=dict)
    """By their message's id, the newest last."""
    largest: int = 0
    """Bytes of the largest question that it has fetched."""
    lock: threading.RLock = field(default_factory=threading.RLock)
    """Calls of one node in one run wait for each other."""

    @property
    def most_bytes(self) -> int:
        """Of one answer."""
        return SPARE_BYTES + UP_TO_DOWN * self.largest

    def note_fetched(self, object_id: str, num_bytes: int) -> None:
        """The node was given an object of its questions."""
        for question in self.questions.values():
            if object_id in question.objects and object_id not in question.fetched:
                question.fetched.add(object_id)
                question.num_bytes += num_bytes
                self.largest = max(self.largest, question.num_bytes)

    def has(self, object_id: str) -> bool:
        """Whether an object belongs to a question of the node."""
        return any(
            object_id in question.objects for question in self.questions.values()
        )

    def answer_in(self, session: str) -> PushedAnswer | None:
        """The answer that is being pushed in a session."""
        for question in self.questions.values():
            if question.answer is not None and question.answer.session == session:
                return question.answer
        return None


class OwnMessages(FleetServicer):
    """Flower's servicer, for nodes that may touch their own messages and nothing else, within bounds.

    `KnownNodes` has made sure by then that a request's node is the one that sent it. What is handed on to
    Flower of an answer is written here: its sender's words go no further.
    """

    def __init__(self, refused: Callable[[int, str], None], **given: Any) -> None:
        """Args:
        refused: is told of every call that was refused: the node's id, and why.
        given: as Flower's servicer takes it.
        """
        super().__init__(**given)
        self._refused = refused
        self._accounts: dict[tuple[int, int], Account] = {}

    @property
    def _state(self) -> Any:
        return self.state_factory.state()

    def _account(self, request: Any, run_id: int) -> Account:
        """Of a node in a run; a stranger to the run has an empty one."""
        return self._accounts.get((request.node.node_id, run_id), Account())

    def _require(self, holds: bool, reason: str, request: Any, context: Any) -> None:
        """Abort the call, and count it, unless the condition holds."""
        if not holds:
            self._refused(request.node.node_id, reason)
            context.abort(grpc.StatusCode.PERMISSION_DENIED, reason)

    def ActivateNode(self, request: Any, context: Any) -> Any:
        """As Flower's; a node is found gone as soon as all others are, whatever it says."""
        request.heartbeat_interval = HEARTBEAT_DEFAULT_INTERVAL
        return super().ActivateNode(request, context)

    def SendNodeHeartbeat(self, request: Any, context: Any) -> Any:
        """As Flower's; the interval is the server's, as for `ActivateNode`."""
        request.heartbeat_interval = HEARTBEAT_DEFAULT_INTERVAL
        return super().SendNodeHeartbeat(request, context)

    def PullMessages(self, request: Any, context: Any) -> Any:
        """As Flower's; what the node is given it may fetch. Questions that are settled are passed over."""
        settled = self._state.message_ins_id_to_message_res_id
        response = super().PullMessages(request, context)
        while any(
            message.metadata.message_id in settled for message in response.messages_list
        ):
            response = super().PullMessages(request, context)
        for message, tree in zip(
            response.messages_list, response.message_object_trees, strict=True
        ):
            self._give(request.node.node_id, message.metadata, tree)
        return response

    def _give(self, node_id: int, metadata: Any, tree: Any) -> None:
        """Note a question that a node is given, and forget those before it that are over, or too many."""
        if (node_id, metadata.run_id) not in self._accounts:
            self._let_go_of_ended_runs()
        account = self._accounts.setdefault((node_id, metadata.run_id), Account())
        with account.lock:
            account.questions[metadata.message_id] = Question(
                group=metadata.group_id,
                kind=metadata.message_type,
                ends=metadata.created_at + metadata.ttl,
                objects=frozenset(ids_of(tree)),
            )
            newest = list(account.questions)[-MOST_QUESTIONS:]
            for message_id, question in list(account.questions.items()):
                if message_id not in newest or question.ends < time.time():
                    self._forget(question)
                    del account.questions[message_id]

    def _let_go_of_ended_runs(self) -> None:
        runs = {run_id for _, run_id in list(self._accounts)}
        states = self._state.get_run_status(runs) if runs else {}
        for run_id in runs:
            if run_id not in states or states[run_id].status == Status.FINISHED:
                self._state.cleanup_run(run_id)
                for key in [key for key in list(self._accounts) if key[1] == run_id]:
                    self._accounts.pop(key, None)

    def PullObject(self, request: Any, context: Any) -> Any:
        """As Flower's, of the node's own questions."""
        account = self._account(request, request.run_id)
        with account.lock:
            self._require(
                account.has(request.object_id), "not_its_own", request, context
            )
        response = super().PullObject(request, context)
        if response.object_available:
            with account.lock:
                account.note_fetched(request.object_id, len(response.object_content))
        return response

    def PushMessages(self, request: Any, context: Any) -> Any:
        """As Flower's, of one answer, by the node, to a question that it was given.

        An answer takes the place of one to the same question that is not whole yet; the same one goes on
        where it stopped. The node is told to push all that it has not pushed itself, also where others have
        pushed the same: else it could find out what they say.
        """
        is_one = len(request.messages_list) == len(request.message_object_trees) == 1
        self._require(is_one, "no_answer", request, context)
        said, tree = request.messages_list[0].metadata, request.message_object_trees[0]
        account = self._account(request, said.run_id)
        with account.lock:
            question = account.questions.get(said.reply_to_message_id)
            sender = (said.src_node_id, said.dst_node_id)
            is_own = sender == (request.node.node_id, SUPERLINK_NODE_ID)
            self._require(
                is_own and question is not None, "not_its_own", request, context
            )
            assert question is not None
            ids = _ids_within_bounds(tree)
            is_tree = bool(ids) and ids[0] == said.message_id
            self._require(is_tree, "no_answer", request, context)
            if question.answer is None or question.answer.root != said.message_id:
                self._begin(question, ids, request, context)
            answer = question.answer
            if answer is None:
                return PushMessagesResponse()  # nobody waits for it any more
            missing = [object_id for object_id in ids if object_id in answer.missing]
            return PushMessagesResponse(
                objects_to_push=missing, session_id=answer.session
            )

    def _begin(
        self, question: Question, ids: list[str], request: Any, context: Any
    ) -> None:
        """Have Flower take another answer than the one there was, which must not be whole."""
        root, before = ids[0], question.answer
        self._require(
            before is None or bool(before.missing), "answered", request, context
        )
        self._require(not self._is_message(root), "no_answer", request, context)
        question.num_sessions += 1
        self._require(
            question.num_sessions <= MOST_SESSIONS, "too_often", request, context
        )
        self._forget(question)
        session = (
            super().PushMessages(_rewritten(request, question), context).session_id
        )
        if self._is_message(root):
            question.answer = PushedAnswer(root, session, set(ids))
        else:
            self._state._cleanup_push_session(session, cleanup_messages=False)

    def _is_message(self, message_id: str) -> bool:
        """Whether there is a message of this id, of anybody."""
        return bool(self._state.object_store.is_message(message_id))

    def PushObject(self, request: Any, context: Any) -> Any:
        """As Flower's, of the node's own answers, as much as it may; the same piece twice is one."""
        account = self._account(request, request.run_id)
        with account.lock:
            answer = account.answer_in(request.session_id)
            self._require(answer is not None, "not_its_own", request, context)
            assert answer is not None
            if request.object_id in answer.stored:
                return PushObjectResponse(stored=True)
            is_part = request.object_id in answer.missing
            self._require(is_part, "not_its_own", request, context)
            num_bytes = answer.num_bytes + len(request.object_content)
            if num_bytes > account.most_bytes:
                self._give_up(account, answer)
            self._require(num_bytes <= account.most_bytes, "too_much", request, context)
            answer.num_bytes = num_bytes
            if not self._is_stored(request, context):
                self._give_up(account, answer)
                return PushObjectResponse(stored=False)
            answer.missing.remove(request.object_id)
            answer.stored.add(request.object_id)
            return PushObjectResponse(stored=True)

    def _is_stored(self, request: Any, context: Any) -> bool:
        """Whether an object is there now, pushed by this call or, the same, by another's."""
        if super().PushObject(request, context).stored:
            return True
        is_there = bool(self._state.object_store.get(request.object_id))
        return is_there and _sha256(request.object_content) == request.object_id

    def _give_up(self, account: Account, answer: PushedAnswer) -> None:
        """Let go of an answer of which a piece cannot be had; its server app sees that it is not there."""
        for question in account.questions.values():
            if question.answer is answer:
                question.answer = None
        self._drop(answer, with_message=False)

    def _forget(self, question: Question) -> None:
        """Let go of the answer to a question, and of the word that there was one."""
        if question.answer is not None:
            self._drop(question.answer, with_message=True)
            question.answer = None

    def _drop(self, answer: PushedAnswer, *, with_message: bool) -> None:
        """Let go of an answer's objects.

        Args:
            with_message: forget also that there was one, so that another may come.
        """
        state = self._state
        state._cleanup_push_session(answer.session, cleanup_messages=False)
        state.object_store.delete(answer.root)
        if with_message:
            state._on_push_session_expired({answer.root})

    def ConfirmMessageReceived(self, request: Any, context: Any) -> Any:
        """As Flower's, of the node's own questions."""
        is_own = (
            request.message_object_id
            in self._account(request, request.run_id).questions
        )
        self._require(is_own, "not_its_own", request, context)
        return super().ConfirmMessageReceived(request, context)


def _rewritten(request: Any, question: Question) -> PushMessagesRequest:
    """An answer as Flower is told of it.

    Of what its sender says, only who it is, what it answers, and the tree go on; all of that was checked.
    """
    said, now = request.messages_list[0].metadata, time.time()
    metadata = Metadata(
        run_id=said.run_id,
        message_id=said.message_id,
        src_node_id=said.src_node_id,
        dst_node_id=said.dst_node_id,
        reply_to_message_id=said.reply_to_message_id,
        group_id=question.group,
        message_type=question.kind,
        created_at=now,
        ttl=question.ends - now,
    )
    message = Message(metadata=metadata)
    message.content.SetInParent()  # empty, but there: Flower asks
    return PushMessagesRequest(
        node=request.node,
        messages_list=[message],
        message_object_trees=request.message_object_trees,
    )


def _ids_within_bounds(tree: Any) -> list[str]:
    """The ids of an answer's objects, its own first; empty for a tree that `ids_of` refuses."""
    try:
        return ids_of(tree)
    except ValueError:
        return []


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
