"""Flower's SuperLink in this process, without a network, between fake nodes and a server app."""

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
    """As gRPC ends a call."""


class Context:
    """Of one call."""

    def abort(self, code: object, reason: str) -> None:
        """Raise."""
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
        self.run_id = self.state.create_run(
            *(None, None, None, {}, NOOP_FEDERATION_ID, None, None, TaskType.SERVER_APP)
        )
        (self._task,) = self.state.task_store.values()
        assert self.state.claim_task(self._task.task_id)
        assert self.state.activate_task(self._task.task_id)

    def node(self, key: bytes) -> int:
        """A node that is online."""
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
        """The server app asks a node something; returns the message's id."""
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
        parts = {
            part.object_id: part for part in root.walk() if part.object_id in wanted
        }
        for part in parts.values():
            pushed = self._object(
                SERVER, response.session_id, part.object_id, part.write()
            )
            assert server_app.push_object(pushed, self.state, self._task).stored
        return root.object_id

    def claim(self, question: str) -> Any:
        """The server app asks for the reply to a question; Flower's response."""
        request = PullAppMessagesRequest(message_ids=[question])
        return server_app.pull_messages(request, self.state, self._task)

    def read(self, object_id: str) -> Any:
        """The server app fetches an object; Flower's response."""
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
        """One call of a node's. Raises Aborted."""
        return getattr(self.door, name)(request, Context())

    def pull(self, node_id: int) -> Any:
        """A node looks for a question; Flower's response."""
        return self.call(
            "PullMessages", fleet.PullMessagesRequest(node=Node(node_id=node_id))
        )

    def fetch(self, node_id: int, object_id: str) -> Any:
        """A node fetches an object; Flower's response."""
        request = wire.PullObjectRequest(
            node=Node(node_id=node_id), run_id=self.run_id, object_id=object_id
        )
        return self.call("PullObject", request)

    def confirm(self, node_id: int, question: str) -> Any:
        """A node has done with a question."""
        request = wire.ConfirmMessageReceivedRequest(
            node=Node(node_id=node_id), run_id=self.run_id, message_object_id=question
        )
        return self.call("ConfirmMessageReceived", request)

    def begin(self, node_id: int, question: str, tree: Any, **changed: Any) -> Any:
        """A node says what its answer consists of; Flower's response.

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
        """A node pushes one object of its answer; Flower's response."""
        request = self._object(node_id, session, part.object_id, part.write())
        return self.call("PushObject", request)

    def answer(self, node_id: int, question: str, root: Object) -> str:
        """A node pushes a whole answer; returns the session."""
        response = self.begin(node_id, question, root.tree(wire.ObjectTree))
        for part in {part.object_id: part for part in root.walk()}.values():
            if part.object_id in response.objects_to_push:
                assert self.push(node_id, response.session_id, part).stored
        return str(response.session_id)

    def why(self, action: Callable[[], Any]) -> str:
        """Why a call is refused; empty if it is not."""
        try:
            action()
        except Aborted as error:
            return str(error)
        return ""


def small(word: str = "") -> Object:
    """A content with one small record."""
    return content_object(RecordDict({"task": ConfigRecord({"word": word})}))


def blob(letter: str, num_bytes: int, children: Sequence[Object] = ()) -> Object:
    """An object of about so many bytes."""
    return make_object("ConfigRecord", letter.encode() * num_bytes, children)


def reply(*parts: Object) -> Object:
    """A message of these objects."""
    return make_object("Message", b"", parts)


def tree(object_id: str, *children: Any) -> Any:
    """Flower's tree of objects."""
    return wire.ObjectTree(object_id=object_id, children=children)


def name(number: int) -> str:
    """An id that could be an object's."""
    return f"{number:064x}"


def num_nodes(root: Any) -> int:
    """Of a tree, each as often as it stands there."""
    found = [root]
    for node in found:  # which grows meanwhile
        found.extend(node.children)
    return len(found)
