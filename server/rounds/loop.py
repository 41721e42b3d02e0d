"""The round loop: send the global tensors out, let every client train, average, look, repeat."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import RecordDict

from common.model.counts import Counts
from common.model.flat import Layout, model_sha256
from common.settings import Settings
from common.wire.forms import WHOLE
from common.wire.messages import (
    EVALUATE,
    NOTICE,
    TRAIN,
    Declined,
    Refused,
    is_lack,
    pack_notice,
    unpack_counts,
    unpack_update,
)
from server.diagnostics.updates import Head
from server.rounds.callbacks import Observer
from server.rounds.caps import NormBound, weights_of
from server.rounds.clients import Clients, Request, RunFailed
from server.rounds.evaluation import Evaluation
from server.rounds.fedavg import SumMemory, WeightedMean
from server.rounds.record import (
    LeftOut,
    Standing,
    Taken,
    add_clients,
    add_site_counts,
    add_test,
    check_finite,
    new_record,
    steps_so_far,
)
from server.rounds.roster import Member, Roster
from server.rounds.server_step import ServerStep
from server.rounds.tasks import Tasks
from server.rounds.validate import ExamplesChanged, check_counts, check_update, open_tensors

if TYPE_CHECKING:
    from torch import Tensor


class FederatedAveraging:
    """FedAvg over clients. It does not know where they run."""

    def __init__(
        self,
        settings: Settings,
        layout: Layout,
        num_labels: int,
        head: Head,
        evaluation: Evaluation | None,
        observers: Sequence[Observer],
        server_step: ServerStep | None = None,
    ) -> None:
        """Args: evaluation: the central test set; None where the sites evaluate."""
        self.settings = settings
        self.layout, self.num_labels = layout, num_labels
        self.head, self.evaluation = head, evaluation
        self.observers = observers
        self.server_step = server_step or ServerStep(settings)
        self._tasks = Tasks(settings, layout)
        self._norm_bound = NormBound(settings.strategy)
        self._are_sites_counting = settings.evaluation.where == "sites"
        self._left_out: list[LeftOut] = []
        """Of the round under way."""

    def run(self, clients: Clients, roster: Roster, standing: Standing) -> tuple[Tensor, str]:
        """Run the rounds that are left after `standing`.

        Returns:
            The last global tensors, and why the run ended, in words.

        Raises:
            RunFailed: a client failed or stayed away and `strategy.on_missing` is `fail`, or too few
                updates came to close a round.
        """
        if standing.is_shown:
            reasons = [observer.resumed(standing.round) for observer in self.observers]
            reason = next(filter(None, reasons), None)
        else:
            reason = self._show(standing)
        memory = SumMemory()
        self._norm_bound = NormBound(self.settings.strategy, standing.norms)
        while reason is None and standing.round < self.settings.num_rounds:
            after, counts = self._round(clients, roster, standing, memory)
            reason = self._measured_by_sites(standing, counts)
            standing = after
            self._save(standing)
            reason = reason or self._show(standing)
        if not standing.is_shown:
            counts = self._ask_for_counts(clients, roster.members(), standing)
            last_reason = self._measured_by_sites(standing, counts)
            reason = reason or last_reason
        return standing.tensors, reason or f"all {self.settings.num_rounds} rounds are done"

    def open(self, tensors: Tensor) -> Standing:
        """Round 0: the initial tensors, (P,) fp32 on the CPU."""
        standing = Standing(tensors, self._record(0, tensors, {}), {})
        self._save(standing)
        return standing

    def _round(
        self, clients: Clients, roster: Roster, standing: Standing, memory: SumMemory
    ) -> tuple[Standing, dict[str, Counts]]:
        """One round; returns where the run stands then, and the sites' counts for where it stood before."""
        started = time.perf_counter()
        self._left_out, self._tasks.num_bytes = [], 0
        number = standing.round + 1
        members = roster.members()
        weights = weights_of(members, self.settings.strategy)
        mean = WeightedMean(standing.tensors, memory)
        taken: list[Taken] = []
        counts: dict[str, Counts] = {}
        aggregate_seconds = 0.0
        scratch = np.empty(0, dtype=np.float32)
        sent = time.monotonic()
        for member, answer in self._exchange(clients, members, number, standing, TRAIN):
            folding = time.perf_counter()
            try:
                update = unpack_update(answer, 2 * self.layout.num_bytes())
                check_update(
                    update, number, self.layout, self.num_labels, member, is_counted=self._are_sites_counting
                )
                if update.payload.form != WHOLE and not len(scratch):  # made once, when it is needed
                    scratch = np.empty(self.layout.size, dtype=np.float32)
                trained = open_tensors(update, standing.tensors, scratch)
                trained, norm_received = self._norm_bound.apply(trained, standing.tensors)
            except ExamplesChanged as refusal:
                roster.forget(member)
                self._refuse(clients, number, member, refusal)
                continue
            except Refused as refusal:
                self._refuse(clients, number, member, refusal)
                continue
            mean.add(trained, weights[member.client])
            taken.append(
                Taken.of(update, trained, member.client, standing, self.head, norm_received, member.site)
            )
            if norm_received is not None:
                self._warn(
                    f"round {number}: {member.name}: its update was clipped (strategy.max_update_norm)"
                )
            self._tasks.note(member, update.holds, min(time.monotonic(), sent + max(0.0, update.seconds)))
            if update.test is not None:
                counts[member.name] = update.test
            aggregate_seconds += time.perf_counter() - folding
            self._tell_progress(number, members, member, len(taken))
        self._check_quorum(number, len(taken))
        folding = time.perf_counter()
        outcome = mean.finish()
        # Of the clients' mean, whatever the server makes of it.
        head_norm = self.head.update_norm(outcome.tensors, standing.tensors)
        tensors = self.server_step.apply(number, standing.tensors, outcome.tensors)
        aggregate_seconds += time.perf_counter() - folding
        train_seconds = time.perf_counter() - started - aggregate_seconds
        seconds = {"train": train_seconds, "aggregate": aggregate_seconds}
        record = self._record(number, tensors, seconds)
        has_shares = self.settings.strategy.max_share is not None
        down = self._tasks.num_bytes
        add_clients(record, taken, outcome, head_norm, self._left_out, down, has_shares=has_shares)
        self._norm_bound.close_round(agreement.update_norm for agreement in outcome.agreements)
        after = Standing(tensors, record, {**standing.total_steps, **steps_so_far([record])})
        self._tasks.add_step(after, standing)
        return after, counts

    def _exchange(
        self, clients: Clients, members: Sequence[Member], number: int, standing: Standing, kind: str
    ) -> Iterator[tuple[Member, RecordDict]]:
        """Send the tensors to all members and yield who answered what; the others are reported."""
        timeout = self.settings.strategy.round_timeout_seconds
        deadline = time.monotonic() + timeout
        for observer in self.observers:
            observer.before_round(number, [member.name for member in members])
        requests = self._tasks.requests(members, number, standing)
        for member, answer in zip(members, clients.ask(requests, kind, number, timeout), strict=True):
            if isinstance(answer, RecordDict) and is_lack(answer):
                self._tasks.note(member, "")
                request = self._tasks.requests([member], number, standing)
                (answer,) = clients.ask(request, kind, number, max(0.0, deadline - time.monotonic()))
            if answer is None:
                self._missing(number, member, f"no answer within {timeout:g} s")
            elif isinstance(answer, Refused):
                self._refuse(clients, number, member, answer)
            else:
                yield member, answer

    def _ask_for_counts(
        self, clients: Clients, members: Sequence[Member], standing: Standing
    ) -> dict[str, Counts]:
        """The sites' counts for the last model, which no training message carries any more."""
        number = standing.round
        counts = {}
        for member, answer in self._exchange(clients, members, number, standing, EVALUATE):
            try:
                found = unpack_counts(answer)
                check_counts(found, self.num_labels, member)
                counts[member.name] = found
            except Refused as refusal:
                self._refuse(clients, number, member, refusal)
        return counts

    def _refuse(self, clients: Clients, number: int, member: Member, refusal: Refused) -> None:
        """Count an answer as missing, and tell its client if that cannot know."""
        if not isinstance(refusal, Declined):
            clients.tell(Request(member.node_id, pack_notice(f"round {number}: {refusal}")), NOTICE, number)
        self._missing(number, member, str(refusal))

    def _missing(self, number: int, member: Member, why: str) -> None:
        text = f"round {number}: {member.name}: {why}"
        if self.settings.strategy.on_missing == "fail":
            raise RunFailed(text)
        self._left_out.append(LeftOut(member.client, why, member.site))
        self._warn(f"{text}; the round goes on without it")

    def _warn(self, text: str) -> None:
        for observer in self.observers:
            observer.warn(text)

    def _check_quorum(self, number: int, num_taken: int) -> None:
        if num_taken < self.settings.strategy.min_sites:
            raise RunFailed(
                f"round {number}: {num_taken} updates came, but strategy.min_sites asks for "
                f"{self.settings.strategy.min_sites}. Start the missing clients and run the same command "
                "again: it goes on from the last whole round."
            )

    def _record(self, number: int, tensors: Tensor, seconds: dict[str, float]) -> dict[str, Any]:
        started = time.perf_counter()
        with ThreadPoolExecutor(max_workers=1) as beside:
            version = beside.submit(model_sha256, self.layout, tensors)
            measured = None if self.evaluation is None else self.evaluation.measure(tensors)
        seconds = seconds | {"evaluate": time.perf_counter() - started}
        record = new_record(number, version.result(), seconds)
        if measured is not None:
            add_test(record, *measured)
        return record

    def _measured_by_sites(self, standing: Standing, counts: dict[str, Counts]) -> str | None:
        """Put the sites' counts into a record that waits for them."""
        if standing.is_shown:
            return None
        if not counts:
            raise RunFailed(f"round {standing.round}: no site sent counts of its held-out texts")
        add_site_counts(standing.record, counts)
        check_finite(standing.record, standing.round)
        return self._show(standing)

    def _save(self, standing: Standing) -> None:
        check_finite(standing.record, standing.round)
        for observer in self.observers:
            observer.after_average(standing.record, standing.tensors)

    def _show(self, standing: Standing) -> str | None:
        """Tell the observers of a measured round; the first reason to stop one of them gives, or None."""
        if standing.record["test"] is None:
            return None
        standing.is_shown = True
        reasons = [observer.after_round(standing.record) for observer in self.observers]
        return next(filter(None, reasons), None)

    def _tell_progress(self, number: int, members: Sequence[Member], last: Member, num_done: int) -> None:
        for observer in self.observers:
            observer.after_update(number, last.name, num_done, len(members))
