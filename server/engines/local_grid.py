"""A Flower grid on this machine.

Without workers the clients take turns: a client runs when its reply is pulled. So one
update exists at a time, and tensors pass between server and client by reference. With
workers the clients run ahead, in their order.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from uuid import uuid4

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.constant import NOOP_FEDERATION_ID
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from wardround.common.errors import RunFailed, WorkerEnded
from wardround.common.wire.deadlines import seconds_left_of
from wardround.server.engines.pool import Job, WorkerPool

_SERVER = 1
_CLIENT_FAILED = 0  # Flower's error code for an unknown failure


class LocalGrid(Grid):
    """Runs a ClientApp for many nodes: one message at a time, or in the workers of a pool."""

    def __init__(
        self, client_app: ClientApp, num_clients: int, pool: WorkerPool | None = None
    ) -> None:
        self._app = client_app
        self._pool = pool
        self._run = Run.create_empty(run_id=1)
        self._run.federation_id = NOOP_FEDERATION_ID
        # Flower makes no message without this identity.
        TaskIdentity.task_id = 1
        TaskIdentity.run_id = self._run.run_id
        TaskIdentity.node_id = _SERVER
        self._waiting: dict[str, Message] = {}
        self.contexts: dict[int, Context] = {}
        """Context of each node by its id, in the order of the clients' numbers."""
        for client in range(num_clients):
            node_id = _SERVER + 1 + client
            self.contexts[node_id] = Context(
                1,
                node_id,
                {"partition-id": client, "num-partitions": num_clients},
                RecordDict(),
                {},
            )

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
        """Return all nodes, in the order of their clients' numbers."""
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Keep the messages until their replies are pulled. Those with tensors go to workers."""
        pushed: dict[str, Message] = {}
        for message in messages:
            message_id = str(uuid4())
            message.metadata.__dict__["_message_id"] = message_id
            pushed[message_id] = message
        if self._pool is not None:
            self._pool.open()
            jobs = {
                id: self._job(message)
                for id, message in pushed.items()
                if _is_for_worker(message)
            }
            if jobs:  # the workers drop the messages of the last round
                self._waiting = {
                    id: old
                    for id, old in self._waiting.items()
                    if not _is_for_worker(old)
                }
                self._pool.begin(jobs)
        self._waiting |= pushed
        return list(pushed)

    def _job(self, message: Message) -> Job:
        context = self.contexts[message.metadata.dst_node_id]
        return Job(
            message.metadata.message_type,
            int(context.node_config["partition-id"]),
            message.content,
        )

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies: run each client, or wait for it until its message expires."""
        replies: list[Message] = []
        for message_id in message_ids:
            message = self._waiting.get(message_id)
            if message is None:
                continue
            try:
                if self._pool is None or not _is_for_worker(message):
                    reply = self._app(
                        message, self.contexts[message.metadata.dst_node_id]
                    )
                else:
                    deadline = time.monotonic() + seconds_left_of(message)
                    content = self._pool.reply(message_id, deadline)
                    if content is None:
                        continue
                    reply = Message(content, reply_to=message)
            except WorkerEnded:
                reply = _failure(message, "its worker process ended before it was done")
            except RunFailed:
                raise
            except Exception as error:
                reply = _failure(message, f"{type(error).__name__}: {error}")
            del self._waiting[message_id]
            replies.append(reply)
        return replies

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Part of Flower's interface."""
        return self.pull_messages(self.push_messages(messages))


def _is_for_worker(message: Message) -> bool:
    """Return True for a message that carries tensors."""
    return bool(message.content.array_records)


def _failure(message: Message, reason: str) -> Message:
    return Message(Error(code=_CLIENT_FAILED, reason=reason), reply_to=message)
