"""The round loop: send the global tensors, let every client train, average, measure, repeat."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from torch import Tensor

from wardround.common.errors import BadAnswer, ExamplesChanged, RunFailed
from wardround.common.model.flat import Layout, model_sha256
from wardround.common.settings.tree import Settings
from wardround.common.tasks.sums import Sums
from wardround.common.wire.arrays import Payload
from wardround.common.wire.codec import unpack_counts
from wardround.common.wire.messages import EVALUATE, TRAIN
from wardround.server.record import (
    ClientRecord,
    Diagnostics,
    LeftOutRecord,
    RoundRecord,
    Seconds,
    Traffic,
    TrainRecord,
)
from wardround.server.rounds.bounds import NormBound
from wardround.server.rounds.broadcast import Broadcast
from wardround.server.rounds.callbacks import Callback
from wardround.server.rounds.checks import check_finite
from wardround.server.rounds.clients import Clients
from wardround.server.rounds.cohort import Cohort
from wardround.server.rounds.evaluation import Evaluation
from wardround.server.rounds.intake import Intake, OpenUpdate, content_or_refusal
from wardround.server.rounds.mean import RoundMean, SumMemory, WeightedMean
from wardround.server.rounds.members import Member, mean_steps, weights_of
from wardround.server.rounds.server_step import ServerStep
from wardround.server.rounds.state import RoundState
from wardround.server.rounds.updates import (
    FoldedUpdate,
    Head,
    client_records,
    describe_updates,
)


@dataclass
class TrainedRound:
    """The results of one round's training."""

    updates: list[FoldedUpdate] = field(default_factory=list)
    """The updates in the mean, in the order of folding."""
    left_out: list[LeftOutRecord] = field(default_factory=list)
    counts: dict[str, Sums] = field(default_factory=dict)
    """By name of the site: counts on its held-out texts, of the model that it received."""
    train_seconds: float = 0.0
    fold_seconds: float = 0.0

    def add(self, member: Member, update: OpenUpdate, head_norm: float | None) -> None:
        """Note an update that is in the mean, and its counts."""
        message = update.message
        folded = FoldedUpdate(
            member=member,
            message=replace(message, payload=Payload(message.payload.form, {})),
            num_bytes=message.payload.num_bytes,
            head_norm=head_norm,
            norm_received=update.norm_received,
        )
        self.updates.append(folded)
        if message.test is not None:
            self.counts[member.name] = message.test

    @property
    def train_record(self) -> TrainRecord:
        """The mean loss over all examples; None in round 0, without training."""
        messages = [update.message for update in self.updates]
        num_examples = sum(message.num_examples for message in messages)
        summed_loss = sum(message.loss * message.num_examples for message in messages)
        loss = summed_loss / num_examples if num_examples else None
        return TrainRecord(loss=loss, num_examples=num_examples)


class FederatedAveraging:
    """FedAvg over clients. It works the same wherever they run."""

    def __init__(
        self,
        settings: Settings,
        clients: Clients,
        cohort: Cohort,
        head: Head,
        evaluation: Evaluation,
        callbacks: Callback,
        server_step: ServerStep,
    ) -> None:
        self.settings = settings
        self.strategy = settings.strategy
        self.cohort = cohort
        self.head = head
        self.evaluation = evaluation
        self.callbacks = callbacks
        self.server_step = server_step
        self.broadcast = Broadcast(clients, settings)
        self._memory = SumMemory()
        self._norm_bound = NormBound(settings.strategy)
        self._has_variates = settings.train.control_variates
        self._has_shares = self.strategy.max_share is not None or self._has_variates
        self._reason: str | None = None
        """The reason to end the run before another round, in words."""
        self._total_steps: dict[int, int] = {}
        """Optimiser steps of each client in the whole run so far."""

    def start(self, layout: Layout, tensors: Tensor) -> RoundState:
        """Return round 0: the initial tensors, (P,) fp32 on the CPU."""
        diagnostics = describe_updates(None, 0.0, 0.0, self.head.length(tensors))
        state = self._close_round(0, layout, tensors, TrainedRound(), [], diagnostics)
        self.callbacks.after_average(state.record, state.tensors)
        self._reason = self._after_round(state.record)
        return state

    def resume(self, history: Sequence[RoundRecord], last: RoundRecord) -> None:
        """Continue after `last`, the checkpoint's record.

        The history may lack this record, if the run was killed between the two writes.
        """
        is_in_history = any(record.round == last.round for record in history)
        for record in history if is_in_history else [*history, last]:
            self._count_clients(record.clients)
        if is_in_history:
            self._reason = self.callbacks.resumed(last.round)
        else:
            self.evaluation.waiting = last if last.test is None else None
            self._reason = self._after_round(last)

    def run(self, state: RoundState) -> tuple[Tensor, str]:
        """Run the rounds that are left after `state`, from `start` or after `resume`.

        Returns:
            The last global tensors, and why the run ended, in words.

        Raises:
            RunFailed: a client failed or stayed away and `strategy.on_missing` is
                `fail`, or too few updates came to close a round.
        """
        reason = self._reason
        while reason is None and state.round < self.settings.num_rounds:
            trained, mean = self._train(state)
            measured = self.evaluation.complete_waiting(trained.counts)
            reason = self._after_round(measured)
            state = self._average(state, trained, mean)
            self.callbacks.after_average(state.record, state.tensors)
            reason = self._after_round(state.record) or reason
        if self.evaluation.waiting is not None:
            # No further round brings the sites' counts for the last model.
            measured = self.evaluation.complete_waiting(self._ask_for_counts(state))
            reason = self._after_round(measured) or reason
        return (
            state.tensors,
            reason or f"all {self.settings.num_rounds} rounds are done",
        )

    def _train(self, state: RoundState) -> tuple[TrainedRound, RoundMean]:
        """Let every client train, and fold the updates in the order of the clients."""
        started = time.perf_counter()
        sent = time.monotonic()
        number = state.round + 1
        members = self.cohort.members()
        weights = weights_of(members, self.strategy)
        steps = self._mean_steps(state, members, weights)
        mean = WeightedMean(state.tensors, self._memory)
        intake = Intake(state, self.evaluation, self._norm_bound)
        trained = TrainedRound()
        self.broadcast.bytes_sent = 0
        self.callbacks.before_round(number, [member.name for member in members])
        answers = self.broadcast.ask(members, state, TRAIN, number, steps)
        for member, answer in answers:
            folding = time.perf_counter()
            try:
                update = intake.open(member, answer)
            except BadAnswer as refusal:
                trained.left_out.append(self._leave_out(number, member, refusal))
                continue
            weight = weights[member.client]
            mean.add(update.tensors, weight)
            self.server_step.note(number, update.tensors, weight)
            head_norm = self.head.update_norm(update.tensors, state.tensors)
            trained.add(member, update, head_norm)
            self._warn_of(number, member, update)
            answered = min(time.monotonic(), sent + update.message.seconds)
            self.broadcast.note_held(member, update.message.holds, answered)
            trained.fold_seconds += time.perf_counter() - folding
            num_done = len(trained.updates)
            self.callbacks.after_update(number, member.name, num_done, len(members))
        trained.train_seconds = time.perf_counter() - started - trained.fold_seconds
        if len(trained.updates) < self.strategy.min_sites:
            raise RunFailed(
                f"round {number}: {len(trained.updates)} updates came, but "
                f"strategy.min_sites asks for {self.strategy.min_sites}. Start the "
                "missing clients and run the same command again: it continues after the "
                "last whole round."
            )
        folding = time.perf_counter()
        outcome = mean.finish()
        trained.fold_seconds += time.perf_counter() - folding
        return trained, outcome

    def _mean_steps(
        self, state: RoundState, members: Sequence[Member], weights: Mapping[int, float]
    ) -> float:
        if not self._has_variates:
            return 0.0
        steps = mean_steps(state.record, members, weights)
        if steps == 0 and state.round > 0:
            number = state.round + 1
            self.callbacks.warn(f"round {number}: the control variates start anew")
        return steps

    def _warn_of(self, number: int, member: Member, update: OpenUpdate) -> None:
        if update.norm_received is not None:
            self.callbacks.warn(
                f"round {number}: {member.name}: its update was clipped "
                "(strategy.max_update_norm)"
            )
        if update.message.test is None and update.message.withheld:
            self.callbacks.warn(
                f"round {number}: {member.name} keeps its counts (its policy)"
            )

    def _average(
        self, state: RoundState, trained: TrainedRound, mean: RoundMean
    ) -> RoundState:
        """Make the server's step to the new global tensors, and close the round."""
        folding = time.perf_counter()
        number = state.round + 1
        check_finite(number, "the mean update's norm", mean.update_norm)
        # Before the server's step, which may overwrite the mean.
        head_norm = self.head.update_norm(mean.tensors, state.tensors)
        body_norm = self.head.body_norm(mean.tensors, state.tensors)
        tensors = self.server_step.apply(number, state.tensors, mean.tensors)
        trained.fold_seconds += time.perf_counter() - folding
        clients = client_records(
            trained.updates, mean, self._total_steps, self._has_shares
        )
        self._count_clients(clients)
        length = self.head.length(tensors)
        diagnostics = describe_updates(mean, head_norm, body_norm, length)
        after = self._close_round(
            number, state.layout, tensors, trained, clients, diagnostics
        )
        return replace(after, step=self.broadcast.step_from(state, after))

    def _count_clients(self, clients: Sequence[ClientRecord]) -> None:
        """Count the norms and the steps of a round for the rounds that follow."""
        norms = [client.update_norm for client in clients]
        self._norm_bound.close_round(norm for norm in norms if norm is not None)
        for client in clients:
            self._total_steps[client.client] = client.total_steps or 0

    def _close_round(
        self,
        number: int,
        layout: Layout,
        tensors: Tensor,
        trained: TrainedRound,
        clients: list[ClientRecord],
        diagnostics: Diagnostics,
    ) -> RoundState:
        """Measure the model, and make the round's record."""
        started = time.perf_counter()
        with ThreadPoolExecutor(max_workers=1) as beside:
            version = beside.submit(model_sha256, layout, tensors)
            measured = self.evaluation.measure(tensors)
        evaluate_seconds = time.perf_counter() - started
        record = RoundRecord(
            round=number,
            test=None,
            train=trained.train_record,
            clients=clients,
            diagnostics=diagnostics,
            seconds=Seconds(
                train=trained.train_seconds,
                aggregate=trained.fold_seconds,
                evaluate=evaluate_seconds,
                total=trained.train_seconds + trained.fold_seconds + evaluate_seconds,
            ),
            bytes=Traffic(
                down=self.broadcast.bytes_sent,
                up=sum(update.num_bytes for update in trained.updates),
            ),
            model_sha256=version.result(),
            left_out=trained.left_out,
        )
        self.evaluation.complete(record, measured)
        return RoundState(layout, tensors, record)

    def _ask_for_counts(self, state: RoundState) -> dict[str, Sums]:
        """Return the sites' counts for the last model. They come in separate messages."""
        members = self.cohort.members()
        counts: dict[str, Sums] = {}
        self.callbacks.before_round(state.round, [member.name for member in members])
        answers = self.broadcast.ask(members, state, EVALUATE, state.round)
        for member, answer in answers:
            try:
                found = unpack_counts(content_or_refusal(answer), self.evaluation.task)
                self.evaluation.check_sums(found, member)
                counts[member.name] = found
            except BadAnswer as refusal:
                self._leave_out(state.round, member, refusal)
        return counts

    def _leave_out(
        self, number: int, member: Member, refusal: BadAnswer
    ) -> LeftOutRecord:
        """Count an answer as missing.

        Raises:
            RunFailed: `strategy.on_missing` is `fail`.
        """
        if isinstance(refusal, ExamplesChanged):
            self.cohort.forget(member)
        self.broadcast.tell_refused(member, number, refusal)
        text = f"round {number}: {member.name}: {refusal}"
        if self.strategy.on_missing == "fail":
            raise RunFailed(text)
        self.callbacks.warn(f"{text}; the round goes on without it")
        return LeftOutRecord(
            client=member.client, reason=str(refusal), site=member.site
        )

    def _after_round(self, record: RoundRecord | None) -> str | None:
        """Call `after_round` if there is a record whose model is measured."""
        if record is None or record.test is None:
            return None
        return self.callbacks.after_round(record)
