"""A Flower grid on this machine. The only file that touches Flower's private names.

Without workers the clients take turns: a client runs when its reply is pulled, so one update exists at a time
and tensors go from server to client and back by reference. With workers they run ahead, in their order.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from uuid import uuid4

import numpy as np
from flwr.app import Context, Error, Message, RecordDict
from flwr.app.message import make_message
from flwr.clientapp import ClientApp
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.serverapp import Grid
from flwr.supercore.constant import NOOP_FEDERATION_ID
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from common.wire.messages import put_arrays, seconds_left_of, take_arrays
from server.engines.pool import WorkerPool

Arrays = dict[str, np.ndarray]
_SERVER = 1
_CLIENT_FAILED = 0  # Flower's error code for an unknown failure


class LocalClients:
    """A ClientApp, and what Flower tells it about each of `num_clients` nodes."""

    def __init__(self, client_app: ClientApp, num_clients: int) -> None:
        self._app = client_app
        self.contexts: dict[int, Context] = {}
        """By node id, in the order of the clients' numbers."""
        for client in range(num_clients):
            node_id = _SERVER + 1 + client
            self.contexts[node_id] = Context(
                1, node_id, {"partition-id": client, "num-partitions": num_clients}, RecordDict(), {}
            )

    def answer(self, message: Message) -> Message:
        """Run the client the message is for."""
        try:
            return self._app(message, self.contexts[message.metadata.dst_node_id])
        except Exception as error:
            return _failure(message, f"{type(error).__name__}: {error}")

    def answer_job(self, job: bytes, arrays: Arrays) -> tuple[bytes, Arrays]:
        """The same in a worker process, where the arrays lie in shared memory."""
        message = message_from_proto(ProtoMessage.FromString(job))
        put_arrays(message.content, arrays)
        return _written(self.answer(message))


class LocalGrid(Grid):
    """Runs a ClientApp for `num_clients` nodes: one message at a time, or in the workers of a pool."""

    def __init__(self, client_app: ClientApp, num_clients: int, pool: WorkerPool | None = None) -> None:
        self._clients = LocalClients(client_app, num_clients)
        self._run = Run.create_empty(run_id=1)
        self._run.federation_id = NOOP_FEDERATION_ID
        # A message cannot be made without knowing who makes it.
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, self._run.run_id, _SERVER
        self._waiting: dict[str, Message] = {}
        self._pool = pool

    def set_run(self, run: Run) -> None:
        """Part of Flower's interface."""
        self._run = run

    @property
    def run(self) -> Run:
        """Part of Flower's interface."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Part of Flower's interface."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """All nodes, in the order of their clients' numbers."""
        return list(self._clients.contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Keep the messages until their replies are asked for; what carries tensors goes to the workers."""
        jobs: dict[str, bytes] = {}
        pushed: dict[str, Message] = {}
        arrays: Arrays = {}
        for message in messages:
            message_id = str(uuid4())
            message.metadata.__dict__["_message_id"] = message_id
            pushed[message_id] = message
            if self._pool is not None:
                jobs[message_id], arrays = _written(message)  # the messages of a round share their arrays
        if self._pool is not None and arrays:
            # Nobody works any more on what was sent before.
            self._waiting = {id: old for id, old in self._waiting.items() if not old.content.array_records}
            self._pool.begin(arrays, jobs)
        elif self._pool is not None:
            self._pool.open()  # the workers get ready while this process goes on
        self._waiting |= pushed
        return list(pushed)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies that are asked for: each client is run, or waited for until its message expires."""
        replies: list[Message] = []
        for message_id in message_ids:
            message = self._waiting.get(message_id)
            if message is None:
                continue
            if self._pool is None or not message.content.array_records:
                del self._waiting[message_id]
                replies.append(self._clients.answer(message))
            elif (found := self._worker_reply(self._pool, message_id, message)) is not None:
                replies.append(found)
        return replies

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Part of Flower's interface."""
        return self.pull_messages(self.push_messages(messages))

    def _worker_reply(self, pool: WorkerPool, message_id: str, message: Message) -> Message | None:
        """What a worker answered; None where the message expires first."""
        reply = pool.reply(message_id, time.monotonic() + seconds_left_of(message))
        if reply is None:
            return None
        del self._waiting[message_id]
        if reply.written is None:
            return _failure(message, "its worker process ended before it was done")
        answer = message_from_proto(ProtoMessage.FromString(reply.written))
        put_arrays(answer.content, reply.arrays)
        return answer


def _failure(message: Message, reason: str) -> Message:
    return Message(Error(code=_CLIENT_FAILED, reason=reason), reply_to=message)


def _written(message: Message) -> tuple[bytes, Arrays]:
    """A message without its arrays as bytes, and the arrays if it has any."""
    if message.has_error():
        return message_to_proto(message).SerializeToString(), {}
    rest, arrays = take_arrays(message.content)
    return message_to_proto(make_message(message.metadata, content=rest)).SerializeToString(), arrays
