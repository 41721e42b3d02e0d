"""Flower's SuperLink in this process, without a network, between nodes and a server app."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, cast

from flwr.app import ConfigRecord, RecordDict
from flwr.common.constant import NOOP_ACCOUNT_NAME, NOOP_FLWR_AID
from flwr.proto import fleet_pb2 as fleet
from flwr.proto import message_pb2 as wire
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import PullAppMessagesRequest, PushAppMessagesRequest
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, NOOP_FEDERATION_ID, TaskType
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.servicer.runtime import runtime_handlers as server_app

from wardround.common.wire.objects import Object, content_object, make_object
from wardround.server.deployment.servicer import OwnMessages
from wardround.server.deployment.trees import TreeStores

SERVER = 1
"""Flower's number of the SuperLink."""


class Aborted(Exception):
    """The server has ended a call."""


class Context:
    """The context of one call."""

    def abort(self, code: object, reason: str) -> None:
        """Raise Aborted."""
        raise Aborted(reason)


class Lab:
    """One run that is under way, and its nodes."""

    def __init__(self) -> None:
        stores: Any = TreeStores()
        states = LinkStateFactory(
            FLWR_IN_MEMORY_DB_NAME, NoOpFederationManager(), stores
        )
        self.state = cast(Any, states.state())
        self.refused: list[tuple[int, str]] = []
        self.door: Any = OwnMessages(
            lambda node_id, reason: self.refused.append((node_id, reason)),
            state_factory=states,
            objectstore_factory=stores,
            enable_supernode_auth=True,
        )
        facts: list[Any] = [None, None, None, {}, NOOP_FEDERATION_ID, None, None]
        self.run_id = self.state.create_run(*facts, TaskType.SERVER_APP)
        (self._task,) = self.state.task_store.values()
        assert self.state.claim_task(self._task.task_id)
        assert self.state.activate_task(self._task.task_id)

    def node(self, key: bytes) -> int:
        """Add a node that is online. Return its number."""
        node_id = self.state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, key, 0)
        assert self.state.activate_node(node_id, 30.0)
        return int(node_id)

    def ask(
        self,
        node_id: int,
        content: Object | None = None,
        seconds: float = 60.0,
        kind: str = "train",
    ) -> str:
        """Let the server app ask a node a question. Return the id of the message."""
        metadata = wire.Metadata(
            run_id=self.run_id,
            src_node_id=SERVER,
            dst_node_id=node_id,
            group_id="1",
            created_at=time.time(),
            ttl=seconds,
            message_type=kind,
        )
        written = wire.Message(metadata=metadata).SerializeToString(deterministic=True)
        root = make_object(
            "Message", written, [small() if content is None else content]
        )
        metadata.message_id = root.object_id
        message = wire.Message(metadata=metadata)
        message.content.SetInParent()
        request = PushAppMessagesRequest(
            messages_list=[message], message_object_trees=[root.tree(wire.ObjectTree)]
        )
        response = server_app.push_messages(request, self.state, self._task)
        wanted = set(response.objects_to_push)
        parts = {part.object_id: part for part in root.walk()}
        for object_id, part in parts.items():
            if object_id not in wanted:
                continue
            written = part.write()
            pushed = self._object(SERVER, response.session_id, object_id, written)
            assert server_app.push_object(pushed, self.state, self._task).stored
        return root.object_id

    def claim(self, question: str) -> Any:
        """Let the server app ask for the reply to a question. Return Flower's response."""
        request = PullAppMessagesRequest(message_ids=[question])
        return server_app.pull_messages(request, self.state, self._task)

    def read(self, object_id: str) -> Any:
        """Let the server app fetch an object. Return Flower's response."""
        request = wire.PullObjectRequest(
            node=Node(node_id=SERVER), run_id=self.run_id, object_id=object_id
        )
        return server_app.pull_object(request, self.state, self._task)

    def _object(
        self, node_id: int, session: str, object_id: str, content: bytes
    ) -> Any:
        return wire.PushObjectRequest(
            node=Node(node_id=node_id),
            run_id=self.run_id,
            session_id=session,
            object_id=object_id,
            object_content=content,
        )

    def call(self, name: str, request: Any) -> Any:
        """Make a call of a node. Raises Aborted."""
        return getattr(self.door, name)(request, Context())

    def pull(self, node_id: int) -> Any:
        """Let a node ask for a question. Return Flower's response."""
        return self.call(
            "PullMessages", fleet.PullMessagesRequest(node=Node(node_id=node_id))
        )

    def fetch(self, node_id: int, object_id: str) -> Any:
        """Let a node fetch an object. Return Flower's response."""
        request = wire.PullObjectRequest(
            node=Node(node_id=node_id), run_id=self.run_id, object_id=object_id
        )
        return self.call("PullObject", request)

    def confirm(self, node_id: int, question: str) -> Any:
        """Let a node confirm that it has received a question."""
        request = wire.ConfirmMessageReceivedRequest(
            node=Node(node_id=node_id), run_id=self.run_id, message_object_id=question
        )
        return self.call("ConfirmMessageReceived", request)

    def begin(self, node_id: int, question: str, tree: Any, **changed: Any) -> Any:
        """Let a node begin its answer with the tree of objects. Return Flower's response.

        Args:
            changed: fields of the message's metadata.
        """
        facts: dict[str, Any] = {
            "run_id": self.run_id,
            "src_node_id": node_id,
            "dst_node_id": SERVER,
            "reply_to_message_id": question,
            "message_id": tree.object_id,
            "group_id": "1",
            "message_type": "train",
            "created_at": time.time(),
            "ttl": 10.0,
        }
        message = wire.Message(metadata=wire.Metadata(**(facts | changed)))
        message.content.SetInParent()
        request = fleet.PushMessagesRequest(
            node=Node(node_id=node_id),
            messages_list=[message],
            message_object_trees=[tree],
        )
        return self.call("PushMessages", request)

    def push(self, node_id: int, session: str, part: Object) -> Any:
        """Let a node push one object of its answer. Return Flower's response."""
        request = self._object(node_id, session, part.object_id, part.write())
        return self.call("PushObject", request)

    def answer(self, node_id: int, question: str, root: Object) -> str:
        """Let a node push a whole answer. Return the session."""
        response = self.begin(node_id, question, root.tree(wire.ObjectTree))
        for part in {part.object_id: part for part in root.walk()}.values():
            if part.object_id in response.objects_to_push:
                assert self.push(node_id, response.session_id, part).stored
        return str(response.session_id)

    def why(self, action: Callable[[], Any]) -> str:
        """Return the reason for which a call is refused; empty if it is accepted."""
        try:
            action()
        except Aborted as error:
            return str(error)
        return ""


def small(word: str = "") -> Object:
    """Return a content with one small record."""
    return content_object(RecordDict({"task": ConfigRecord({"word": word})}))


def blob(letter: str, num_bytes: int, children: Sequence[Object] = ()) -> Object:
    """Return an object of about this number of bytes."""
    return make_object("ConfigRecord", letter.encode() * num_bytes, children)


def reply(*parts: Object) -> Object:
    """Return a message of these objects."""
    return make_object("Message", b"", parts)


def tree(object_id: str, *children: Any) -> Any:
    """Return Flower's tree of objects."""
    return wire.ObjectTree(object_id=object_id, children=children)


def name(number: int) -> str:
    """Return an id in the form of object ids."""
    return f"{number:064x}"


def num_nodes(root: Any) -> int:
    """Return the number of nodes of a tree. A repeated node counts each time."""
    found = [root]
    for node in found:  # the list grows in this loop
        found.extend(node.children)
    return len(found)
