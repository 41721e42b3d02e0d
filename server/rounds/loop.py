"""The round loop: send the global tensors out, let every client train, average, measure, repeat."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from flwr.app import RecordDict

from wardround.common.errors import BadAnswer, ExamplesChanged, RunFailed
from wardround.common.model.flat import Layout, model_sha256
from wardround.common.settings.tree import Settings
from wardround.common.tasks.sums import Sums
from wardround.common.wire.codec import unpack_counts, unpack_update
from wardround.common.wire.forms import WHOLE
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
from wardround.server.rounds.checks import (
    check_counts,
    check_finite,
    check_update,
    open_tensors,
)
from wardround.server.rounds.clients import Clients
from wardround.server.rounds.control_variates import mean_steps
from wardround.server.rounds.evaluation import Evaluation
from wardround.server.rounds.mean import SumMemory, WeightedMean
from wardround.server.rounds.members import Member, weights_of
from wardround.server.rounds.server_step import ServerStep
from wardround.server.rounds.state import RoundState
from wardround.server.rounds.updates import Head, cosines_to_others, describe_updates

if TYPE_CHECKING:
    from torch import Tensor

    from wardround.server.rounds.cohort import Cohort


@dataclass
class Answers:
    """What came of one round's training."""

    mean: WeightedMean | None = None
    """None in round 0, for which nobody trains."""
    clients: list[ClientRecord] = field(default_factory=list)
    """Whose updates are in the mean, in the order they were folded in."""
    left_out: list[LeftOutRecord] = field(default_factory=list)
    counts: dict[str, Sums] = field(default_factory=dict)
    """Of the sites' held-out texts, for the model they were sent, by name."""
    fold_seconds: float = 0.0
    train_seconds: float = 0.0


class FederatedAveraging:
    """FedAvg over clients. It does not know where they run."""

    def __init__(
        self,
        settings: Settings,
        clients: Clients,
        cohort: Cohort,
        head: Head,
        evaluation: Evaluation,
        callbacks: Sequence[Callback],
        server_step: ServerStep,
    ) -> None:
        self.settings, self.strategy = settings, settings.strategy
        self.cohort, self.head, self.evaluation = cohort, head, evaluation
        self.callbacks, self.server_step = callbacks, server_step
        self.broadcast = Broadcast(clients, settings)
        self._memory = SumMemory()
        self._norm_bound = NormBound(settings.strategy)
        self._has_variates = settings.train.control_variates
        self._tells_shares = self.strategy.max_share is not None or self._has_variates
        self._ended: str | None = None
        """Why no round is to be run any more, in words."""
        self._total_steps: dict[int, int] = {}
        """Optimiser steps of each client in the whole run so far."""

    def start(self, layout: Layout, tensors: Tensor) -> RoundState:
        """Round 0: the initial tensors, (P,) fp32 on the CPU."""
        told = describe_updates(None, 0.0, 0.0, self.head.length(tensors))
        state = self._new_state(0, layout, tensors, Answers(), told)
        self._tell(Callback.after_average, state.record, state.tensors)
        self._ended = self._show(state.record)
        return state

    def resume(self, history: Sequence[RoundRecord], last: RoundRecord) -> None:
        """Go on after `last`, the checkpoint's record, which need not stand in the history yet."""
        is_told = any(record.round == last.round for record in history)
        for record in history if is_told else [*history, last]:
            self._norm_bound.close_round(
                client.update_norm or 0.0 for client in record.clients
            )
            self._total_steps |= {
                client.client: client.total_steps or 0 for client in record.clients
            }
        if is_told:
            self._ended = self._tell(Callback.resumed, last.round)
        else:
            self.evaluation.waiting = last if last.test is None else None
            self._ended = self._show(last)

    def run(self, state: RoundState) -> tuple[Tensor, str]:
        """Run the rounds that are left after `state`, from `start` or after `resume`.

        Returns:
            The last global tensors, and why the run ended, in words.

        Raises:
            RunFailed: a client failed or stayed away and `strategy.on_missing` is `fail`, or too few
                updates came to close a round.
        """
        reason = self._ended
        while reason is None and state.round < self.settings.num_rounds:
            answers = self._train(state)
            reason = self._show(self.evaluation.hear(answers.counts))
            state = self._average(state, answers)
            self._tell(Callback.after_average, state.record, state.tensors)
            reason = self._show(state.record) or reason
        if (
            self.evaluation.waiting is not None
        ):  # no round will bring the sites' counts of the last model
            reason = (
                self._show(self.evaluation.hear(self._ask_for_counts(state))) or reason
            )
        return (
            state.tensors,
            reason or f"all {self.settings.num_rounds} rounds are done",
        )

    def _train(self, state: RoundState) -> Answers:
        """Have every client train, and fold in what comes back, in client order."""
        started = time.perf_counter()
        sent, number, layout = time.monotonic(), state.round + 1, state.layout
        members = self.cohort.members()
        weights = weights_of(members, self.strategy)
        if self._has_variates:
            state.mean_steps = mean_steps(state.record, members, weights)
            if number > 1 and state.mean_steps == 0:
                self._tell(
                    Callback.warn, f"round {number}: the control variates start anew"
                )
        answers = Answers(mean := WeightedMean(state.tensors, self._memory))
        self.broadcast.bytes_sent = 0
        scratch = np.empty(0, dtype=np.float32)
        self._tell(Callback.before_round, number, [member.name for member in members])
        for member, answer in self.broadcast.ask(members, state, TRAIN, number):
            folding = time.perf_counter()
            try:
                update = unpack_update(_content(answer), layout.most_update_bytes())
                check_update(update, number, layout, member)
                self.evaluation.check(update, member)
                if update.payload.form != WHOLE and not len(
                    scratch
                ):  # made once, when it is needed
                    scratch = np.empty(layout.size, dtype=np.float32)
                trained = open_tensors(update, state.tensors, scratch)
                trained, norm_received = self._norm_bound.apply(trained, state.tensors)
            except BadAnswer as refusal:
                answers.left_out.append(self._leave_out(number, member, refusal))
                continue
            mean.add(trained, weights[member.client])
            self.server_step.note(number, trained, weights[member.client])
            answers.clients.append(
                ClientRecord(
                    client=member.client,
                    num_examples=update.num_examples,
                    loss=update.loss,
                    seconds=update.seconds,
                    num_bytes=update.payload.num_bytes,
                    num_steps=update.num_steps,
                    total_steps=self._total_steps.get(member.client, 0)
                    + update.num_steps,
                    head_norm=self.head.update_norm(trained, state.tensors),
                    norm_received=norm_received,
                    site=member.site,
                    uncorrected=bool(update.uncorrected) or None,
                    update_norm=None,  # these are known when the round closes
                    cosine_to_mean=None,
                    cosine_to_others=None,
                )
            )
            if norm_received is not None:
                self._tell(
                    Callback.warn,
                    f"round {number}: {member.name}: its update was clipped (strategy.max_update_norm)",
                )
            self.broadcast.note(
                member, update.holds, min(time.monotonic(), sent + update.seconds)
            )
            if update.test is not None:
                answers.counts[member.name] = update.test
            elif update.withheld:
                self._tell(
                    Callback.warn,
                    f"round {number}: {member.name} keeps its counts (its policy)",
                )
            answers.fold_seconds += time.perf_counter() - folding
            self._tell(
                Callback.after_update,
                number,
                member.name,
                len(answers.clients),
                len(members),
            )
        answers.train_seconds = time.perf_counter() - started - answers.fold_seconds
        if len(answers.clients) < self.strategy.min_sites:
            raise RunFailed(
                f"round {number}: {len(answers.clients)} updates came, but strategy.min_sites asks for "
                f"{self.strategy.min_sites}. Start the missing clients and run the same command again: it "
                "goes on from the last whole round."
            )
        return answers

    def _average(self, state: RoundState, answers: Answers) -> RoundState:
        """Close the round: the mean, the server's step to the new global tensors, and the record."""
        folding = time.perf_counter()
        number, clients = state.round + 1, answers.clients
        assert answers.mean is not None
        outcome = answers.mean.finish()
        answers.mean = (
            None  # and with it what the clients started from: a model's worth of memory
        )
        check_finite(number, "the mean update's norm", outcome.update_norm)
        # Of the clients' mean, whatever the server makes of it.
        head_norm = self.head.update_norm(outcome.tensors, state.tensors)
        body_norm = self.head.body_norm(outcome.tensors, state.tensors)
        tensors = self.server_step.apply(number, state.tensors, outcome.tensors)
        answers.fold_seconds += time.perf_counter() - folding
        agreements = zip(
            outcome.agreements, cosines_to_others(outcome), outcome.weights, strict=True
        )
        for client, (agreement, to_others, weight) in zip(
            clients, agreements, strict=True
        ):
            client.update_norm, client.cosine_to_mean = (
                agreement.update_norm,
                agreement.cosine_to_mean,
            )
            client.cosine_to_others = to_others
            client.share = weight / sum(outcome.weights) if self._tells_shares else None
        self._norm_bound.close_round(
            agreement.update_norm for agreement in outcome.agreements
        )
        self._total_steps |= {
            client.client: client.total_steps or 0 for client in clients
        }
        diagnostics = describe_updates(
            outcome, head_norm, body_norm, self.head.length(tensors)
        )
        after = self._new_state(number, state.layout, tensors, answers, diagnostics)
        after.step = self.broadcast.step_from(state, after)
        return after

    def _new_state(
        self,
        number: int,
        layout: Layout,
        tensors: Tensor,
        answers: Answers,
        diagnostics: Diagnostics,
    ) -> RoundState:
        """Measure the model, and write the round down."""
        started = time.perf_counter()
        with ThreadPoolExecutor(max_workers=1) as beside:
            version = beside.submit(model_sha256, layout, tensors)
            measured = self.evaluation.measure(tensors)
        spent = (
            answers.train_seconds,
            answers.fold_seconds,
            time.perf_counter() - started,
        )
        clients = answers.clients
        num_examples = sum(client.num_examples or 0 for client in clients)
        summed_loss = sum(
            (client.loss or 0.0) * (client.num_examples or 0) for client in clients
        )
        mean_loss = summed_loss / num_examples if num_examples else None
        record = RoundRecord(
            round=number,
            test=None,
            train=TrainRecord(loss=mean_loss, num_examples=num_examples),
            clients=clients,
            diagnostics=diagnostics,
            seconds=Seconds(
                train=spent[0], aggregate=spent[1], evaluate=spent[2], total=sum(spent)
            ),
            bytes=Traffic(
                down=self.broadcast.bytes_sent,
                up=sum(client.num_bytes or 0 for client in clients),
            ),
            model_sha256=version.result(),
            left_out=answers.left_out,
        )
        self.evaluation.enter(record, measured)
        return RoundState(layout, tensors, record)

    def _ask_for_counts(self, state: RoundState) -> dict[str, Sums]:
        """The sites' counts for the last model, which no training message carries any more."""
        members, counts = self.cohort.members(), {}
        self._tell(
            Callback.before_round, state.round, [member.name for member in members]
        )
        for member, answer in self.broadcast.ask(members, state, EVALUATE, state.round):
            try:
                found = unpack_counts(_content(answer))
                check_counts(
                    found, self.evaluation.num_labels, self.evaluation.num_parts, member
                )
                counts[member.name] = found
            except BadAnswer as refusal:
                self._leave_out(state.round, member, refusal)
        return counts

    def _leave_out(
        self, number: int, member: Member, refusal: BadAnswer
    ) -> LeftOutRecord:
        """Count an answer as missing. Raises RunFailed where none may be."""
        if isinstance(refusal, ExamplesChanged):
            self.cohort.forget(member)
        self.broadcast.tell_refused(member, number, refusal)
        text = f"round {number}: {member.name}: {refusal}"
        if self.strategy.on_missing == "fail":
            raise RunFailed(text)
        self._tell(Callback.warn, f"{text}; the round goes on without it")
        return LeftOutRecord(
            client=member.client, reason=str(refusal), site=member.site
        )

    def _tell(self, event: Callable[..., str | None], *facts: object) -> str | None:
        """Call a method of `Callback` on all of them; the first reason to stop that one gives, or None."""
        reasons = [
            getattr(callback, event.__name__)(*facts) for callback in self.callbacks
        ]
        return next(filter(None, reasons), None)

    def _show(self, record: RoundRecord | None) -> str | None:
        """Tell of a round if it is measured; as `_tell`."""
        return (
            self._tell(Callback.after_round, record) if record and record.test else None
        )


def _content(answer: RecordDict | BadAnswer) -> RecordDict:
    """Raises BadAnswer where there is none."""
    if isinstance(answer, BadAnswer):
        raise answer
    return answer
