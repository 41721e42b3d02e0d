"""Who takes part: waits for the clients, greets them, and knows them by number and name."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from flwr.serverapp import Grid

from common.counts import MOST_COUNTED
from common.messages import HELLO, Card, Refused, pack_hello, unpack_card
from common.settings import Settings
from server.exchange import Request, RunFailed, ask

_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Member:
    """One client of the run."""

    client: int
    """Its number, from 0; sites are numbered in the order of their names."""
    name: str
    """How messages call it: `client 3`, or the name a site was registered with."""
    node_id: int
    num_examples: int


class Roster:
    """The clients of a run. Sites that come late, or come back, are let in at the next round."""

    def __init__(self, grid: Grid, settings: Settings, sites: Mapping[int, str]) -> None:
        """Args: sites: names of the registered sites by node id; empty in a simulation.

        Raises:
            ValueError: not as many sites as clients.
        """
        if sites and len(sites) != settings.num_clients:
            raise ValueError(
                f"num_clients is {settings.num_clients} but {len(sites)} sites are registered "
                f"({', '.join(sorted(sites.values()))}). Set num_clients={len(sites)}."
            )
        self._grid, self._settings = grid, settings
        self._names = dict(sites)
        self._numbers = {name: number for number, name in enumerate(sorted(sites.values()))}
        self._members: dict[int, Member] = {}  # by node id

    def gather(self) -> None:
        """Wait until all clients are connected and greeted.

        Raises:
            RunFailed: at `strategy.wait_seconds` clients are missing, or one refused, and
                `strategy.on_missing` is `fail`; or fewer than `strategy.min_sites` are there.
        """
        strategy = self._settings.strategy
        deadline = time.monotonic() + strategy.wait_seconds
        while len(self._online()) < self._settings.num_clients and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        missing = self._settings.num_clients - len(self._online())
        needed = self._settings.num_clients if strategy.on_missing == "fail" else strategy.min_sites
        if len(self._online()) < needed:
            raise RunFailed(
                f"only {len(self._online())} of {self._settings.num_clients} clients connected within "
                f"strategy.wait_seconds={strategy.wait_seconds:g}{self._absent()}. Start the missing "
                f"{missing}, or set num_clients={max(1, len(self._online()))}."
            )
        refusals = self._greet()
        if refusals and strategy.on_missing == "fail":
            raise RunFailed("; ".join(refusals))
        if len(self._members) < needed:
            raise RunFailed(f"only {len(self._members)} clients can take part: {'; '.join(refusals)}")

    def members(self) -> list[Member]:
        """The clients of the next round, by number; newcomers are greeted first."""
        if len(self._members) < self._settings.num_clients and set(self._online()) - set(self._members):
            self._greet()
        return sorted(self._members.values(), key=lambda member: member.client)

    def _online(self) -> list[int]:
        """Node ids of connected clients; of real sites, only those that were registered."""
        node_ids = sorted(self._grid.get_node_ids())
        if self._names:
            return [node_id for node_id in node_ids if node_id in self._names]
        return node_ids[: self._settings.num_clients]

    def _absent(self) -> str:
        online = set(self._online())
        names = [name for node_id, name in sorted(self._names.items()) if node_id not in online]
        return f" (missing: {', '.join(sorted(names))})" if names else ""

    def _greet(self) -> list[str]:
        """Say hello to everyone new; returns why some cannot take part."""
        newcomers = [node_id for node_id in self._online() if node_id not in self._members]
        hello = pack_hello(self._settings.for_sites())
        timeout = self._settings.strategy.round_timeout_seconds
        requests = [Request(node_id, hello) for node_id in newcomers]
        refusals = []
        replies = ask(self._grid, requests, HELLO, 0, timeout)
        for node_id, reply in zip(newcomers, replies, strict=True):
            name = self._names.get(node_id, f"node {node_id}")
            if reply is None:
                refusals.append(f"{name} did not introduce itself within {timeout:g} s")
                continue
            try:
                self._add(node_id, unpack_card(reply))
            except Refused as refusal:
                refusals.append(f"{name} cannot take part: {refusal}")
        return refusals

    def _add(self, node_id: int, card: Card) -> None:
        name = self._names.get(node_id, f"client {card.client}")
        client = self._numbers.get(name, card.client)
        if not 1 <= card.num_examples <= MOST_COUNTED:
            raise Refused(f"it says it has {card.num_examples} examples")
        if not 0 <= client < self._settings.num_clients:
            raise Refused(f"it says it is client {client} of {self._settings.num_clients}")
        if any(member.client == client for member in self._members.values()):
            raise Refused(f"another node is client {client} already")
        self._members[node_id] = Member(client, name, node_id, card.num_examples)
