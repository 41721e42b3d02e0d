"""Ask every site something and take the answers in site order, never waiting without a bound."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from common.messages import HELLO, Refused, pack_hello, unpack_card
from common.settings import Settings

_POLL_SECONDS = 0.05


class RunFailed(Exception):
    """The run cannot go on. The text names the round, the client and the next step."""


@dataclass(frozen=True)
class Member:
    """One client of the run."""

    client: int
    node_id: int
    num_examples: int


@dataclass(frozen=True)
class Reply:
    """What came back from one node; `message` is None when nothing did within the bound."""

    node_id: int
    message: Message | None


def ask(
    grid: Grid, node_ids: Sequence[int], content: RecordDict, kind: str, group: str, timeout: float
) -> Iterator[Reply]:
    """Send `content` to all nodes, then yield one reply per node, in the order of `node_ids`.

    A reply is pulled only when its turn has come: those that are early wait where they are, so no more
    than one is held here, and sums over them do not depend on who was fastest.

    Args:
        timeout: seconds from sending until the last reply is given up.
    """
    deadline = time.monotonic() + timeout
    requests = [Message(content, node_id, kind, ttl=timeout, group_id=group) for node_id in node_ids]
    message_ids = list(grid.push_messages(requests))
    if len(message_ids) != len(node_ids):
        raise RunFailed(
            f"round {group}: {len(node_ids) - len(message_ids)} of {len(node_ids)} messages could not be "
            "sent; a node left between joining and sending. Start the run again."
        )
    for node_id, message_id in zip(node_ids, message_ids, strict=True):
        yield Reply(node_id, _wait_for(grid, message_id, deadline))


def _wait_for(grid: Grid, message_id: str, deadline: float) -> Message | None:
    """The reply to one message; asks at least once, also past the deadline."""
    while True:
        found = list(grid.pull_messages([message_id]))
        if found:
            return found[0]
        if time.monotonic() >= deadline:
            return None
        time.sleep(_POLL_SECONDS)


def gather_members(grid: Grid, settings: Settings) -> list[Member]:
    """Wait for the clients to connect, greet them, and put them into the order of their numbers.

    Raises:
        RunFailed: not enough clients within `strategy.wait_seconds`, or one of them refuses, or two of
            them have the same number.
    """
    node_ids = _wait_for_nodes(grid, settings)
    members: dict[int, Member] = {}
    hello = pack_hello(settings)
    for reply in ask(grid, node_ids, hello, HELLO, "0", settings.strategy.round_timeout_seconds):
        if reply.message is None:
            raise RunFailed(f"node {reply.node_id} did not introduce itself in time; see that client's log.")
        try:
            card = unpack_card(reply.message)
        except Refused as refusal:
            raise RunFailed(f"node {reply.node_id} cannot take part: {refusal}") from None
        if card.client in members:
            raise RunFailed(f"two nodes say they are client {card.client}; give each client its own number.")
        members[card.client] = Member(card.client, reply.node_id, card.num_examples)
    return [members[client] for client in sorted(members)]


def _wait_for_nodes(grid: Grid, settings: Settings) -> list[int]:
    deadline = time.monotonic() + settings.strategy.wait_seconds
    while True:
        node_ids = list(grid.get_node_ids())
        if len(node_ids) >= settings.num_clients:
            return sorted(node_ids)[: settings.num_clients]
        if time.monotonic() >= deadline:
            raise RunFailed(
                f"only {len(node_ids)} of {settings.num_clients} clients connected within "
                f"strategy.wait_seconds={settings.strategy.wait_seconds:g}. Start the missing clients, or "
                f"set num_clients={max(1, len(node_ids))}."
            )
        time.sleep(_POLL_SECONDS)
