"""The clients that take part in a run: waits for them, greets them and numbers them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from wardround.common.errors import BadAnswer, NoAnswer, RunFailed
from wardround.common.settings.tree import Settings
from wardround.common.tasks.sums import MOST_COUNTED
from wardround.common.wire.codec import pack_hello, unpack_introduction
from wardround.common.wire.messages import HELLO, Introduction
from wardround.common.wire.refusals import PENDING
from wardround.server.rounds.clients import POLL_SECONDS, Answer, Clients, Request
from wardround.server.rounds.members import Member

# Pauses between requests to a site whose people decide; that takes minutes to days.
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 20.0
_NEWCOMER_SECONDS = 10.0
"""The time that a round waits for newcomers to answer."""

Decisions = Mapping[str, Mapping[str, str]]
"""Each site's answer to the plan, as `RunFolder.approvals` returns them."""


@dataclass(frozen=True)
class _Hello:
    """A greeting that was sent to some nodes, and their answers."""

    nodes: dict[int, str]
    """Node ids, with the names of their sites."""
    answers: Iterator[Answer]
    timeout: float


@dataclass
class _Silence:
    """A node that did not introduce itself."""

    pause: int
    """Number of rounds in which it is not greeted."""
    until: int
    """The round in which it is greeted again; each call of `members` is one round."""


class Cohort:
    """The clients that take part. Sites that come late, or again, join at the next round."""

    def __init__(
        self,
        clients: Clients,
        settings: Settings,
        sites: Mapping[str, int | None] | None = None,
        write_decisions: Callable[[Decisions], None] | None = None,
        simulated_sites: Sequence[str] = (),
    ) -> None:
        """Args:
        sites: the largest number of examples of each registered site, by name (None if
            there is no limit); None or empty in a simulation.
        write_decisions: is called with each site's answer to the plan.
        simulated_sites: the names of a simulation's clients, in the order of their
            numbers, if the clients are sites.

        Raises:
            ValueError: the number of sites is not the number of clients.
        """
        self._most_examples = dict(sites or {})
        if sites and len(sites) != settings.num_clients:
            raise ValueError(
                f"num_clients is {settings.num_clients} but {len(sites)} sites are "
                f"registered ({', '.join(sorted(sites))}). Set num_clients={len(sites)}."
            )
        self._clients = clients
        self._settings = settings
        self._simulated_sites = simulated_sites
        names = sorted(self._most_examples)
        self._numbers = {name: number for number, name in enumerate(names)}
        self._members: dict[int, Member] = {}
        """By node id."""
        self._invited: _Hello | None = None
        self._write_decisions = write_decisions
        self._decisions: dict[str, dict[str, str]] = {}
        """By name of the site: `code` and `words` of its answer to the last greeting."""
        self._num_calls = 0
        self._silences: dict[int, _Silence] = {}
        """By node id."""

    def invite(self) -> None:
        """Greet all clients if all are connected; do not wait for them, as `gather` does."""
        online = self._online()
        if len(online) == self._settings.num_clients:
            wait_seconds = self._settings.strategy.wait_seconds
            self._invited = self._greet(online, wait_seconds)

    def gather(self) -> None:
        """Wait until all clients are connected and greeted, and their people have decided.

        Raises:
            RunFailed: at `strategy.wait_seconds` clients are missing, or one refused,
                and `strategy.on_missing` is `fail`; or fewer than `strategy.min_sites`
                take part.
        """
        strategy = self._settings.strategy
        deadline = time.monotonic() + strategy.wait_seconds
        must_be_all = strategy.on_missing == "fail"
        needed = self._settings.num_clients if must_be_all else strategy.min_sites
        online = self._wait_online(deadline, needed)
        hello = self._invited or self._greet(online, strategy.wait_seconds)
        refusals = self._welcome(hello)
        pause = _FIRST_PAUSE
        while (undecided := self._undecided()) and time.monotonic() < deadline:
            if must_be_all and len(undecided) < len(refusals):
                break  # one site has refused: no decision of others can help
            time.sleep(min(pause, max(0.0, deadline - time.monotonic())))
            pause = min(2 * pause, _LONGEST_PAUSE)
            asked = {
                node: name for node, name in self._online().items() if name in undecided
            }
            seconds_left = max(_FIRST_PAUSE, deadline - time.monotonic())
            self._welcome(self._greet(asked, seconds_left))
            words = [decision["words"] for decision in self._decisions.values()]
            refusals = list(filter(None, words))
        if refusals and must_be_all:
            raise RunFailed("; ".join(refusals))
        if len(self._members) < needed:
            raise RunFailed(
                f"only {len(self._members)} clients can take part: "
                f"{'; '.join(refusals)}"
            )

    def _wait_online(self, deadline: float, needed: int) -> dict[int, str]:
        """Wait until all clients are connected. Raises RunFailed if too few are."""
        num_clients = self._settings.num_clients
        online = self._online()
        while len(online) < num_clients and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
            online = self._online()
        if len(online) >= needed:
            return online
        absent = ", ".join(sorted(set(self._numbers) - set(online.values())))
        missing = f" (missing: {absent})" if absent else ""
        wait_seconds = self._settings.strategy.wait_seconds
        raise RunFailed(
            f"only {len(online)} of {num_clients} clients connected within "
            f"strategy.wait_seconds={wait_seconds:g}{missing}. Start the missing "
            f"{num_clients - len(online)}, or set num_clients={max(1, len(online))}."
        )

    def _undecided(self) -> set[str]:
        """Return the sites whose people have not decided on the plan."""
        return {
            name
            for name, decision in self._decisions.items()
            if decision["code"] == PENDING
        }

    def members(self) -> list[Member]:
        """Return the clients of the next round, by number.

        Clients of a simulation that have opted out are left out. Newcomers are greeted
        first, for at most 10 s. A newcomer that has to read its texts first needs longer,
        and joins two rounds later. One that does not answer is greeted less and less
        often: after 2, 4, 8 rounds.
        """
        self._num_calls += 1
        if len(self._members) < self._settings.num_clients:
            self._greet_newcomers()
        opted_out = self._settings.personalisation.opt_out_clients
        taking_part = (
            member
            for member in self._members.values()
            if member.client not in opted_out
        )
        return sorted(taking_part, key=lambda member: member.client)

    def _greet_newcomers(self) -> None:
        newcomers = {
            node: name
            for node, name in self._online().items()
            if node not in self._members and not self._is_paused(node)
        }
        round_seconds = self._settings.strategy.round_timeout_seconds
        timeout = min(_NEWCOMER_SECONDS, round_seconds)
        self._welcome(self._greet(newcomers, timeout))
        for node in newcomers.keys() - self._members.keys():
            before = self._silences.get(node)
            pause = 2 if before is None else 2 * before.pause
            self._silences[node] = _Silence(pause, self._num_calls + pause)

    def _is_paused(self, node: int) -> bool:
        silence = self._silences.get(node)
        return silence is not None and silence.until > self._num_calls

    def forget(self, member: Member) -> None:
        """Let a client introduce itself again before the next round.

        The number of its examples has changed.
        """
        self._members.pop(member.node_id, None)

    def _online(self) -> dict[int, str]:
        """Return connected clients by node id, with names. Of sites, only those of this run."""
        online = self._clients.online()
        if not self._numbers:
            return dict(sorted(online.items())[: self._settings.num_clients])
        return {
            node_id: name for node_id, name in online.items() if name in self._numbers
        }

    def _greet(self, nodes: Mapping[int, str], timeout: float) -> _Hello:
        has_plan = self._clients.approve_plans
        content = pack_hello(None if has_plan else self._settings.for_sites())
        requests = [Request(node_id, content) for node_id in nodes]
        answers = self._clients.ask(requests, HELLO, 0, timeout)
        return _Hello(dict(nodes), answers, timeout)

    def _welcome(self, hello: _Hello) -> list[str]:
        """Add the clients that introduce themselves; return why others cannot take part."""
        refusals = []
        pairs = zip(hello.nodes.items(), hello.answers, strict=True)
        for (node_id, site), answer in pairs:
            name = site or f"node {node_id}"
            code = ""
            words = ""
            try:
                if answer is None:
                    code = "silent"
                    words = (
                        f"{name} did not introduce itself within {hello.timeout:g} s"
                    )
                elif isinstance(answer, BadAnswer):
                    raise answer
                else:
                    self._add(node_id, site, unpack_introduction(answer))
            except BadAnswer as refusal:
                given_code = refusal.code if isinstance(refusal, NoAnswer) else ""
                code = given_code or "refused"
                words = f"{name} cannot take part: {refusal}"
            if words:
                refusals.append(words)
            if site and self._numbers:
                self._decisions[site] = {"code": code, "words": words}
        if self._decisions and self._write_decisions is not None:
            self._write_decisions(self._decisions)
        return refusals

    def _add(self, node_id: int, site: str, card: Introduction) -> None:
        """Make a client a member. Raises BadAnswer."""
        self._check_claims(site, card)
        client = self._number_of(site, card)
        known_site = site or None
        if not site and self._simulated_sites:
            known_site = self._simulated_sites[client]
        if site:
            # A site that was registered again has a new node id.
            self._members = {
                node: member
                for node, member in self._members.items()
                if member.name != site
            }
        if any(member.client == client for member in self._members.values()):
            raise BadAnswer(f"another node is already client {client}")
        self._members[node_id] = Member(
            client=client,
            name=known_site or f"client {client}",
            node_id=node_id,
            num_examples=card.num_examples,
            num_held_out=card.num_held_out,
            most_examples=self._most_examples.get(site),
            site=known_site,
        )

    def _number_of(self, site: str, card: Introduction) -> int:
        """Return the number of a client. Raises BadAnswer if the run has no such number."""
        num_clients = self._settings.num_clients
        client = self._numbers.get(site, card.client)
        is_simulated = self._settings.engine.is_simulated
        if client < 0 and not self._numbers and not is_simulated:
            # A node without a name, at a server without keys: the lowest free number.
            taken = {member.client for member in self._members.values()}
            client = min(set(range(num_clients)) - taken, default=-1)
        if not 0 <= client < num_clients:
            raise BadAnswer(
                f"it reports number {client}; the run has {num_clients} clients, from 0"
            )
        return client

    def _check_claims(self, site: str, card: Introduction) -> None:
        """Refuse a client with more texts than possible, or than its registration allows.

        With `strategy.on_excess=clip` an update's weight is lowered to the bound. Counts
        of held-out texts cannot be lowered, since only the site can select the texts. So
        too many held-out texts are refused in any case.
        """
        claimed = card.num_examples
        held_out = card.num_held_out
        if not (1 <= claimed <= MOST_COUNTED and 0 <= held_out <= MOST_COUNTED):
            raise BadAnswer(f"it reports {claimed} examples, and {held_out} held out")
        most = self._most_examples.get(site)
        if most is None:
            return
        if claimed > most and self._settings.strategy.on_excess == "refuse":
            raise BadAnswer(
                f"it reports {claimed} examples, but its registration allows at most {most}"
            )
        if held_out > most:
            raise BadAnswer(
                f"it reports {held_out} held-out examples, but its registration allows at "
                f"most {most}"
            )
