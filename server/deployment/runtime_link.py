"""The server app's connection to the SuperLink: push messages, claim replies, fetch objects."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from flwr.app import Message, RecordDict
from flwr.common.serde import message_to_proto
from flwr.proto import message_pb2 as proto
from flwr.proto.runtime_pb2 import (
    GetNodesRequest,
    PullAppMessagesRequest,
    PushAppMessagesRequest,
)
from flwr.supercore.constant import NodeStatus
from flwr.superlink.grid import HttpGrid

from wardround.common.errors import ObjectMissing
from wardround.common.wire.objects import (
    Object,
    content_id,
    make_object,
    parts_in,
    wait_for_object,
)
from wardround.common.wire.window import in_order

T = TypeVar("T")
_IN_FLIGHT = 3


@dataclass(frozen=True)
class OnlineNode:
    """A node that is connected."""

    key: bytes
    """Public key, PEM."""
    since: str
    """Time at which it came online."""


@dataclass(frozen=True)
class OutgoingMessage:
    """A message to one node."""

    node_id: int
    kind: str
    content: Object
    """A RecordDict."""
    ttl: float
    group: str


@dataclass(frozen=True)
class Reply:
    """A reply that has arrived. Its content is not fetched yet."""

    to: str
    """Id of the message that it answers."""
    message_id: str
    error: str
    """Flower's error in place of a reply; empty if there is a reply."""


class Runtime:
    """Flower's Runtime API for the run of a grid."""

    def __init__(self, grid: HttpGrid) -> None:
        self._api = grid._runtime_client
        self._own: dict[str, Any] = {"node": grid.node, "run_id": grid.run.run_id}
        self._pool = ThreadPoolExecutor(_IN_FLIGHT)

    def nodes(self) -> dict[int, OnlineNode]:
        """Return the nodes that are online, by node id."""
        response = self._api.GetNodes(GetNodesRequest())
        online = {}
        for node in response.nodes:
            if node.status == NodeStatus.ONLINE:
                found = OnlineNode(node.public_key, node.last_activated_at)
                online[node.node_id] = found
        return online

    def push(self, outgoing: Sequence[OutgoingMessage]) -> list[str]:
        """Send messages; return their ids, "" for one that could not be sent.

        An object that several messages share is sent once.
        """
        messages = []
        roots = []
        for one in outgoing:
            message, root = _written(one)
            messages.append(message)
            roots.append(root)
        request = PushAppMessagesRequest(
            messages_list=messages,
            message_object_trees=[root.tree(proto.ObjectTree) for root in roots],
        )
        response = self._api.PushMessages(request)
        parts = parts_in(roots, response.objects_to_push)

        def store(part: Object) -> None:
            request = proto.PushObjectRequest(
                **self._own,
                session_id=response.session_id,
                object_id=part.object_id,
                object_content=part.write(),
            )
            self._api.PushObject(request)

        for _ in self._ahead(store, parts):
            pass
        return list(response.message_ids)

    def claim(self, message_ids: Iterable[str]) -> list[Reply]:
        """Return the replies to these messages that have arrived. Each is returned once."""
        response = self._api.PullMessages(
            PullAppMessagesRequest(message_ids=message_ids)
        )
        return [
            Reply(
                to=message.metadata.reply_to_message_id,
                message_id=message.metadata.message_id,
                error=message.error.reason if message.HasField("error") else "",
            )
            for message in response.messages_list
        ]

    def content_of(self, reply: Reply, is_over: Callable[[], bool]) -> str:
        """Return the object id of a reply's content. Raises NotAuthentic or ObjectMissing."""
        fetch = partial(self.fetch, is_over=is_over)
        return content_id(reply.message_id, fetch)

    def fetch(self, ids: Sequence[str], is_over: Callable[[], bool]) -> Iterator[bytes]:
        """Yield the contents of these objects; a few are fetched ahead.

        Args:
            is_over: returns True if an object that has not arrived is not to be waited for.

        Raises:
            ObjectMissing: an object has not arrived by then, or never will.
        """

        def pull(object_id: str) -> bytes:
            request = proto.PullObjectRequest(**self._own, object_id=object_id)
            pull_once = partial(self._api.PullObject, request)
            content = wait_for_object(pull_once, is_over)
            if content is None:
                raise ObjectMissing
            return content

        return self._ahead(pull, ids)

    def confirm(self, reply: Reply) -> None:
        """Let the SuperLink forget a reply."""
        request = proto.ConfirmMessageReceivedRequest(
            **self._own, message_object_id=reply.message_id
        )
        self._api.ConfirmMessageReceived(request)

    def _ahead(self, work: Callable[[Any], T], items: Iterable[Any]) -> Iterator[T]:
        """Yield the result of `work` for each item, in order; a few are fetched ahead."""

        def start(item: Any) -> Future[T]:
            return self._pool.submit(work, item)

        for _, call in in_order(start, items, _IN_FLIGHT):
            yield call.result()


def _written(outgoing: OutgoingMessage) -> tuple[proto.Message, Object]:
    """Return a message in Flower's form and its object tree.

    The message itself has no content; its content is the only child of the tree's root.
    """
    message = message_to_proto(
        Message(
            RecordDict(),
            outgoing.node_id,
            outgoing.kind,
            ttl=outgoing.ttl,
            group_id=outgoing.group,
        )
    )
    message.metadata.message_id = ""
    body = proto.Message(metadata=message.metadata).SerializeToString(
        deterministic=True
    )
    root = make_object("Message", body, [outgoing.content])
    message.metadata.message_id = root.object_id
    return message, root
