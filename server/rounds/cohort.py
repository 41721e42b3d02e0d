"""Who takes part in a run: waits for the clients, greets them, and knows them by number and name."""

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

# Between questions whether people have decided: a decision takes minutes to days.
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 20.0
_NEWCOMER_SECONDS = 10.0  # a round waits so long for one who may have nothing to say


@dataclass(frozen=True)
class _Hello:
    """Who was asked to introduce themselves, and what they answer."""

    newcomers: dict[int, str]
    answers: Iterator[Answer]
    timeout: float


class Cohort:
    """The clients that take part. Sites that come late, or come back, are let in at the next round."""

    def __init__(
        self,
        clients: Clients,
        settings: Settings,
        sites: Mapping[str, int | None] | None = None,
        note: Callable[[Mapping[str, Mapping[str, str]]], None] = lambda approvals: (
            None
        ),
    ) -> None:
        """Args:
        sites: the most examples each may claim (None for no bound) by name; none in a simulation.
        note: is told what each site said to the plan, as `RunFolder.write_approvals` takes it.

        Raises:
            ValueError: not as many sites as clients.
        """
        self._most_examples = dict(sites or {})
        if sites and len(sites) != settings.num_clients:
            raise ValueError(
                f"num_clients is {settings.num_clients} but {len(sites)} sites are registered "
                f"({', '.join(sorted(sites))}). Set num_clients={len(sites)}."
            )
        self._clients, self._settings = clients, settings
        self.simulated_sites: Sequence[str] = ()
        """Names of a simulation's clients, in the order of their numbers, where they are sites."""
        self._numbers = {
            name: number for number, name in enumerate(sorted(self._most_examples))
        }
        self._members: dict[int, Member] = {}  # by node id
        self._invited: _Hello | None = None
        self._note = note
        self._said: dict[str, dict[str, str]] = {}
        """What each site said when it was greeted last, by name."""
        self._num_calls = 0
        self._silences: dict[int, tuple[int, int]] = {}
        """Of nodes that did not introduce themselves: rounds to wait, and until which round."""

    def invite(self) -> None:
        """Greet all clients, if all are connected already, and wait for none of them: `gather` does."""
        online = self._online()
        if len(online) == self._settings.num_clients:
            self._invited = self._say_hello(
                online, self._settings.strategy.wait_seconds
            )

    def gather(self) -> None:
        """Wait until all clients are connected and greeted, and their people have decided on the plan.

        Raises:
            RunFailed: at `strategy.wait_seconds` clients are missing, or one refused, and
                `strategy.on_missing` is `fail`; or fewer than `strategy.min_sites` are there.
        """
        strategy, num_clients = self._settings.strategy, self._settings.num_clients
        deadline = time.monotonic() + strategy.wait_seconds
        while (
            len(online := self._online()) < num_clients and time.monotonic() < deadline
        ):
            time.sleep(POLL_SECONDS)
        needed = num_clients if strategy.on_missing == "fail" else strategy.min_sites
        if len(online) < needed:
            absent = ", ".join(sorted(set(self._numbers) - set(online.values())))
            raise RunFailed(
                f"only {len(online)} of {num_clients} clients connected within strategy.wait_seconds="
                f"{strategy.wait_seconds:g}{absent and f' (missing: {absent})'}. Start the missing "
                f"{num_clients - len(online)}, or set num_clients={max(1, len(online))}."
            )
        refusals = self._welcome(
            self._invited or self._say_hello(online, strategy.wait_seconds)
        )
        pause = _FIRST_PAUSE
        while (undecided := self._undecided()) and time.monotonic() < deadline:
            if strategy.on_missing == "fail" and len(undecided) < len(refusals):
                break  # somebody has said no: the others need not decide
            time.sleep(min(pause, max(0.0, deadline - time.monotonic())))
            pause = min(2 * pause, _LONGEST_PAUSE)
            asked = {
                node: name for node, name in self._online().items() if name in undecided
            }
            self._welcome(
                self._say_hello(asked, max(_FIRST_PAUSE, deadline - time.monotonic()))
            )
            refusals = [said["words"] for said in self._said.values() if said["words"]]
        if refusals and strategy.on_missing == "fail":
            raise RunFailed("; ".join(refusals))
        if len(self._members) < needed:
            raise RunFailed(
                f"only {len(self._members)} clients can take part: {'; '.join(refusals)}"
            )

    def _undecided(self) -> set[str]:
        """Names of the sites whose people have not decided on the plan."""
        return {name for name, said in self._said.items() if said["code"] == PENDING}

    def members(self) -> list[Member]:
        """The clients of the next round, by number, without those of a simulation that have opted out.

        Newcomers are greeted first, which takes 10 s at most. One that has to read its texts first needs
        longer, and is let in two rounds later. One that stays silent is greeted ever more rarely, after 2, 4,
        8 rounds.
        """
        self._num_calls += 1
        if len(self._members) < self._settings.num_clients:
            newcomers = {
                node: name
                for node, name in self._online().items()
                if node not in self._members
                and self._silences.get(node, (0, 0))[1] <= self._num_calls
            }
            timeout = min(
                _NEWCOMER_SECONDS, self._settings.strategy.round_timeout_seconds
            )
            self._welcome(self._say_hello(newcomers, timeout))
            for node in newcomers.keys() - self._members.keys():
                pause = 2 * self._silences.get(node, (1, 0))[0]
                self._silences[node] = (pause, self._num_calls + pause)
        opted_out = self._settings.personalisation.opt_out_clients
        taking_part = (
            member
            for member in self._members.values()
            if member.client not in opted_out
        )
        return sorted(taking_part, key=lambda member: member.client)

    def forget(self, member: Member) -> None:
        """Have a client introduce itself anew before the next round: its examples have changed."""
        self._members.pop(member.node_id, None)

    def _online(self) -> dict[int, str]:
        """Connected clients by node id, with their names; of real sites, only those of this run."""
        online = self._clients.online()
        if self._numbers:
            return {
                node_id: name
                for node_id, name in online.items()
                if name in self._numbers
            }
        return dict(sorted(online.items())[: self._settings.num_clients])

    def _say_hello(self, newcomers: Mapping[int, str], timeout: float) -> _Hello:
        hello = pack_hello(
            None if self._clients.approve_plans else self._settings.for_sites()
        )
        requests = [Request(node_id, hello) for node_id in newcomers]
        return _Hello(
            dict(newcomers), self._clients.ask(requests, HELLO, 0, timeout), timeout
        )

    def _welcome(self, hello: _Hello) -> list[str]:
        """Let those in who introduce themselves; returns why some cannot take part."""
        refusals = []
        for (node_id, site), answer in zip(
            hello.newcomers.items(), hello.answers, strict=True
        ):
            name = site or f"node {node_id}"
            code = words = ""
            try:
                if answer is None:
                    code, words = (
                        "silent",
                        f"{name} did not introduce itself within {hello.timeout:g} s",
                    )
                elif isinstance(answer, BadAnswer):
                    raise answer
                else:
                    self._add(node_id, site, unpack_introduction(answer))
            except BadAnswer as refusal:
                code = refusal.code if isinstance(refusal, NoAnswer) else ""
                code, words = code or "refused", f"{name} cannot take part: {refusal}"
            refusals += [words] if words else []
            if site and self._numbers:
                self._said[site] = {"code": code, "words": words}
        if self._said:
            self._note(self._said)
        return refusals

    def _add(self, node_id: int, site: str, card: Introduction) -> None:
        client, num_clients = (
            self._numbers.get(site, card.client),
            self._settings.num_clients,
        )
        if client < 0 and not self._numbers and not self._settings.engine.is_simulated:
            # A node without a name, on a server whose keys are off: it gets the lowest number that is free.
            taken = {member.client for member in self._members.values()}
            client = min(set(range(num_clients)) - taken, default=-1)
        self._check_claims(site, card)
        if not 0 <= client < num_clients:
            raise BadAnswer(f"it says it is client {client} of {num_clients}")
        called = site or (
            self.simulated_sites[client] if self.simulated_sites else None
        )
        # A site's node has a new number where it was registered again; clients of a simulation have theirs.
        self._members = {
            node: member
            for node, member in self._members.items()
            if not site or member.name != site
        }
        if any(member.client == client for member in self._members.values()):
            raise BadAnswer(f"another node is client {client} already")
        name = called or f"client {client}"
        most = self._most_examples.get(site)
        self._members[node_id] = Member(
            client, name, node_id, card.num_examples, card.num_held_out, most, called
        )

    def _check_claims(self, site: str, card: Introduction) -> None:
        """Refuse a client that claims more texts than there can be, or than its site is registered for.

        With `strategy.on_excess=clip` an update's weight is lowered to the bound. Counts of held-out texts
        cannot be lowered: nobody but the site knows which texts they are of. So more of those are refused
        either way.
        """
        claimed, held_out = card.num_examples, card.num_held_out
        if not (1 <= claimed <= MOST_COUNTED and 0 <= held_out <= MOST_COUNTED):
            raise BadAnswer(
                f"it says it has {claimed} examples, and {held_out} held out"
            )
        most = self._most_examples.get(site)
        if most is None:
            return
        if claimed > most and self._settings.strategy.on_excess == "refuse":
            raise BadAnswer(
                f"it says it has {claimed} examples, but is registered with {most} at most"
            )
        if held_out > most:
            raise BadAnswer(
                f"it says it holds out {held_out} examples, but is registered with {most} at most"
            )
