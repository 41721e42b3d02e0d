"""Flower's servicer with bounds: a node fetches its own questions and answers each of them once.

An answer may have four times the bytes of the largest question that its node has fetched in the
run, and SPARE_BYTES more. The largest question counts because a later one may be a small difference
from a model that the site still holds, while its answer may be a whole model. Every node gets a
whole model before its first difference, and an update takes at most twice the bytes of a whole
model (`Layout.most_update_bytes`). So no honest answer is refused.
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

from wardround.common.wire.deadlines import MOST_ATTEMPTS
from wardround.server.deployment.trees import ids_of

SPARE_BYTES = 64 * 2**20
UP_TO_DOWN = 4
"""Limit on the bytes of an answer, as a multiple of the bytes of its question."""
MOST_QUESTIONS = MOST_ATTEMPTS + 1
"""Open questions of a node in one run. A site works on one question, which is asked again at most
MOST_ATTEMPTS times in all; and it may be sent a notice."""
MOST_SESSIONS = 16
"""Limit on how often a node may start to push an answer to the same question."""


@dataclass
class PushedAnswer:
    """An answer that a node pushes."""

    root: str
    """The message's id."""
    session: str
    """Flower's name of the push session."""
    missing: set[str]
    """Ids of the objects that this node has not pushed yet."""
    stored: set[str] = field(default_factory=set)
    """Ids of the objects that it has pushed."""
    num_bytes: int = 0
    """Bytes pushed so far."""


@dataclass
class SentQuestion:
    """A message that was sent to a node."""

    group: str
    kind: str
    ends: float
    """Time (`time.time()`) after which the server does not wait for its answer."""
    objects: frozenset[str]
    """Ids of its objects."""
    fetched: set[str] = field(default_factory=set)
    """Ids of the objects that the node has fetched."""
    num_bytes: int = 0
    """Bytes of the objects that the node has fetched."""
    num_sessions: int = 0
    """Number of push sessions for answers to it."""
    answer: PushedAnswer | None = None
    """The answer that the node pushes or has pushed."""


@dataclass
class Account:
    """The messages of one node in one run."""

    questions: dict[str, SentQuestion] = field(default_factory=dict)
    """Questions by message id, the newest last."""
    largest: int = 0
    """Bytes of the largest question that the node has fetched."""
    lock: threading.RLock = field(default_factory=threading.RLock)
    """Held during a call, so that calls of one node in one run do not overlap."""

    @property
    def most_bytes(self) -> int:
        """Limit on the bytes of one answer."""
        return SPARE_BYTES + UP_TO_DOWN * self.largest

    def note_fetched(self, object_id: str, num_bytes: int) -> None:
        """Count an object that the node has fetched."""
        for question in self.questions.values():
            if object_id in question.objects and object_id not in question.fetched:
                question.fetched.add(object_id)
                question.num_bytes += num_bytes
                self.largest = max(self.largest, question.num_bytes)

    def has(self, object_id: str) -> bool:
        """Return True if the object belongs to a question of the node."""
        return any(
            object_id in question.objects for question in self.questions.values()
        )

    def answer_in(self, session: str) -> PushedAnswer | None:
        """Return the answer that is pushed in a session; None if there is none."""
        for question in self.questions.values():
            if question.answer is not None and question.answer.session == session:
                return question.answer
        return None


class OwnMessages(FleetServicer):
    """Flower's servicer for nodes that may use only their own messages, within bounds.

    `KnownNodes` has already checked that the node in a request is its sender. The metadata of an
    answer are written here for Flower: nothing that its sender wrote in them is passed on.
    """

    def __init__(self, refused: Callable[[int, str], None], **options: Any) -> None:
        """Args:
        refused: called with the node's id and the reason for every refused call.
        options: the arguments of Flower's servicer.
        """
        super().__init__(**options)
        self._refused = refused
        self._accounts: dict[tuple[int, int], Account] = {}

    @property
    def _state(self) -> Any:
        return self.state_factory.state()

    def _account(self, request: Any, run_id: int) -> Account:
        """Return the account of a node in a run; an empty one for a node without questions."""
        return self._accounts.get((request.node.node_id, run_id), Account())

    def _require(self, holds: bool, reason: str, request: Any, context: Any) -> None:
        """Count and abort the call unless the condition holds."""
        if not holds:
            self._refused(request.node.node_id, reason)
            context.abort(grpc.StatusCode.PERMISSION_DENIED, reason)

    def ActivateNode(self, request: Any, context: Any) -> Any:
        """Do as Flower does, with the server's heartbeat interval and not the node's.

        So a node that has gone is noticed as early as any other.
        """
        request.heartbeat_interval = HEARTBEAT_DEFAULT_INTERVAL
        return super().ActivateNode(request, context)

    def SendNodeHeartbeat(self, request: Any, context: Any) -> Any:
        """Do as Flower does, but with the server's interval. See `ActivateNode`."""
        request.heartbeat_interval = HEARTBEAT_DEFAULT_INTERVAL
        return super().SendNodeHeartbeat(request, context)

    def PullMessages(self, request: Any, context: Any) -> Any:
        """Do as Flower does, skip answered questions, and let the node fetch the objects of the
        others."""
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
        """Note a question that a node receives; forget older ones that are over or too many."""
        if (node_id, metadata.run_id) not in self._accounts:
            self._forget_ended_runs()
        account = self._accounts.setdefault((node_id, metadata.run_id), Account())
        with account.lock:
            account.questions[metadata.message_id] = SentQuestion(
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

    def _forget_ended_runs(self) -> None:
        runs = {run_id for _, run_id in list(self._accounts)}
        states = self._state.get_run_status(runs) if runs else {}
        for run_id in runs:
            if run_id not in states or states[run_id].status == Status.FINISHED:
                self._state.cleanup_run(run_id)
                for key in [key for key in list(self._accounts) if key[1] == run_id]:
                    self._accounts.pop(key, None)

    def PullObject(self, request: Any, context: Any) -> Any:
        """Do as Flower does, for objects of the node's own questions."""
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
        """Do as Flower does, for one answer of the node to one of its questions.

        An answer replaces an incomplete one to the same question. The same answer continues where
        it stopped. The node must push every object that it has not pushed itself, even if another
        node has pushed the same one. Otherwise it could find out what others have answered.
        """
        is_one = len(request.messages_list) == len(request.message_object_trees) == 1
        self._require(is_one, "no_answer", request, context)
        metadata = request.messages_list[0].metadata
        tree = request.message_object_trees[0]
        account = self._account(request, metadata.run_id)
        with account.lock:
            question = account.questions.get(metadata.reply_to_message_id)
            direction = (metadata.src_node_id, metadata.dst_node_id)
            is_own = direction == (request.node.node_id, SUPERLINK_NODE_ID)
            self._require(
                is_own and question is not None, "not_its_own", request, context
            )
            assert question is not None
            ids = _ids_within_bounds(tree)
            is_tree = bool(ids) and ids[0] == metadata.message_id
            self._require(is_tree, "no_answer", request, context)
            if question.answer is None or question.answer.root != metadata.message_id:
                self._begin(question, ids, request, context)
            answer = question.answer
            if answer is None:
                return PushMessagesResponse()  # the server does not wait for it
            missing = [object_id for object_id in ids if object_id in answer.missing]
            return PushMessagesResponse(
                objects_to_push=missing, session_id=answer.session
            )

    def _begin(
        self, question: SentQuestion, ids: list[str], request: Any, context: Any
    ) -> None:
        """Start a new answer in Flower. An answer before it must be incomplete; it is dropped."""
        root = ids[0]
        before = question.answer
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
        """Return True if any node has a message with this id."""
        return bool(self._state.object_store.is_message(message_id))

    def PushObject(self, request: Any, context: Any) -> Any:
        """Do as Flower does, for the node's own answers within its limit of bytes.

        An object that the node pushes twice counts once.
        """
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
        """Return True if the object is now stored, by this call or, with the same content, by
        another."""
        if super().PushObject(request, context).stored:
            return True
        is_there = bool(self._state.object_store.get(request.object_id))
        return is_there and _sha256(request.object_content) == request.object_id

    def _give_up(self, account: Account, answer: PushedAnswer) -> None:
        """Drop an answer with an object that cannot be stored. The server app finds it missing."""
        for question in account.questions.values():
            if question.answer is answer:
                question.answer = None
        self._drop(answer, with_message=False)

    def _forget(self, question: SentQuestion) -> None:
        """Drop the answer to a question and the message that announced it."""
        if question.answer is not None:
            self._drop(question.answer, with_message=True)
            question.answer = None

    def _drop(self, answer: PushedAnswer, *, with_message: bool) -> None:
        """Delete an answer's objects.

        Args:
            with_message: delete its message too, so that another answer can come.
        """
        state = self._state
        state._cleanup_push_session(answer.session, cleanup_messages=False)
        state.object_store.delete(answer.root)
        if with_message:
            state._on_push_session_expired({answer.root})

    def ConfirmMessageReceived(self, request: Any, context: Any) -> Any:
        """Do as Flower does, for the node's own questions."""
        account = self._account(request, request.run_id)
        is_own = request.message_object_id in account.questions
        self._require(is_own, "not_its_own", request, context)
        return super().ConfirmMessageReceived(request, context)


def _rewritten(request: Any, question: SentQuestion) -> PushMessagesRequest:
    """Return the request for Flower. It keeps only the checked fields: ids, sender, receiver and
    tree."""
    sent = request.messages_list[0].metadata
    now = time.time()
    metadata = Metadata(
        run_id=sent.run_id,
        message_id=sent.message_id,
        src_node_id=sent.src_node_id,
        dst_node_id=sent.dst_node_id,
        reply_to_message_id=sent.reply_to_message_id,
        group_id=question.group,
        message_type=question.kind,
        created_at=now,
        ttl=question.ends - now,
    )
    message = Message(metadata=metadata)
    message.content.SetInParent()  # Flower needs a content, even an empty one
    return PushMessagesRequest(
        node=request.node,
        messages_list=[message],
        message_object_trees=request.message_object_trees,
    )


def _ids_within_bounds(tree: Any) -> list[str]:
    """Return the ids of an answer's objects, its root first; empty for a tree that `ids_of`
    refuses."""
    try:
        return ids_of(tree)
    except ValueError:
        return []


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
