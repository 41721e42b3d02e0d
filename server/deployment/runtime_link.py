"""The SuperLink as a server app reaches it: messages pushed, replies claimed, objects fetched when wanted."""

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
    """When it came online."""


@dataclass(frozen=True)
class OutgoingMessage:
    """What is sent to one node."""

    node_id: int
    kind: str
    content: Object
    """A RecordDict."""
    ttl: float
    group: str


@dataclass(frozen=True)
class Reply:
    """A reply that has been delivered, not fetched yet."""

    to: str
    """Id of the message it answers."""
    message_id: str
    error: str
    """What Flower says in place of a reply; empty where there is one."""


class Runtime:
    """Flower's Runtime API, for the run that a grid belongs to."""

    def __init__(self, grid: HttpGrid) -> None:
        self._api = grid._runtime_client
        self._own: dict[str, Any] = {"node": grid.node, "run_id": grid.run.run_id}
        self._pool = ThreadPoolExecutor(_IN_FLIGHT)

    def nodes(self) -> dict[int, OnlineNode]:
        """The nodes that are online, by node id."""
        return {
            node.node_id: OnlineNode(node.public_key, node.last_activated_at)
            for node in self._api.GetNodes(GetNodesRequest()).nodes
            if node.status == NodeStatus.ONLINE
        }

    def push(self, parcels: Sequence[OutgoingMessage]) -> list[str]:
        """Send; returns the messages' ids, "" for one that could not be sent. What they share goes once."""
        written = [_written(parcel) for parcel in parcels]
        messages = PushAppMessagesRequest(
            messages_list=[message for message, _ in written],
            message_object_trees=[root.tree(proto.ObjectTree) for _, root in written],
        )
        response = self._api.PushMessages(messages)
        wanted = set(response.objects_to_push)
        parts = {
            part.object_id: part
            for _, root in written
            for part in root.walk()
            if part.object_id in wanted
        }

        def store(part: Object) -> None:
            request = proto.PushObjectRequest(
                **self._own, session_id=response.session_id
            )
            request.object_id, request.object_content = part.object_id, part.write()
            self._api.PushObject(request)

        for _ in self._ahead(store, parts.values()):
            pass
        return list(response.message_ids)

    def claim(self, message_ids: Iterable[str]) -> list[Reply]:
        """The replies to these messages that have come. Each is given once."""
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
        """Object id of a reply's content. Raises NotAuthentic or ObjectMissing."""
        return content_id(reply.message_id, partial(self.fetch, is_over=is_over))

    def fetch(self, ids: Sequence[str], is_over: Callable[[], bool]) -> Iterator[bytes]:
        """The contents of these objects, a few ahead of what is asked for.

        Args:
            is_over: whether to wait no longer for what is still on its way.

        Raises:
            ObjectMissing: one is not there by then, or will never be.
        """

        def pull(object_id: str) -> bytes:
            request = proto.PullObjectRequest(**self._own, object_id=object_id)
            content = wait_for_object(partial(self._api.PullObject, request), is_over)
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


def _written(parcel: OutgoingMessage) -> tuple[proto.Message, Object]:
    """A message as Flower writes it: without content, which the one child of its root stands for."""
    message = message_to_proto(
        Message(
            RecordDict(),
            parcel.node_id,
            parcel.kind,
            ttl=parcel.ttl,
            group_id=parcel.group,
        )
    )
    message.metadata.message_id = ""
    body = proto.Message(metadata=message.metadata).SerializeToString(
        deterministic=True
    )
    root = make_object("Message", body, [parcel.content])
    message.metadata.message_id = root.object_id
    return message, root
