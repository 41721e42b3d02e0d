"""The moments of a run at which other code is called."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from wardround.server.record import RoundRecord


class Callback:
    """Does nothing; subclasses override the moments that they need."""

    def resumed(self, last_round: int) -> str | None:
        """The run continues after `last_round`. A returned text is the reason to end the run."""
        return None

    def before_round(self, round: int, names: Sequence[str]) -> None:
        """The tensors are about to be sent to the clients with these names."""

    def after_update(
        self, round: int, name: str, num_done: int, num_clients: int
    ) -> None:
        """One more client's update is in the mean of this round."""

    def after_average(self, record: RoundRecord, tensors: Tensor) -> None:
        """There are new global tensors, (P,) fp32, valid until the next call.

        The record's `test` may be None.
        """

    def after_round(self, record: RoundRecord) -> str | None:
        """A round is complete and measured. A returned text is the reason to end the run."""
        return None

    def warn(self, text: str) -> None:
        """A person should read this text."""


class Callbacks(Callback):
    """Calls several callbacks, in their order. The first reason to end the run counts."""

    def __init__(self, *callbacks: Callback) -> None:
        self._callbacks = callbacks

    def resumed(self, last_round: int) -> str | None:
        return _first([one.resumed(last_round) for one in self._callbacks])

    def before_round(self, round: int, names: Sequence[str]) -> None:
        for one in self._callbacks:
            one.before_round(round, names)

    def after_update(
        self, round: int, name: str, num_done: int, num_clients: int
    ) -> None:
        for one in self._callbacks:
            one.after_update(round, name, num_done, num_clients)

    def after_average(self, record: RoundRecord, tensors: Tensor) -> None:
        for one in self._callbacks:
            one.after_average(record, tensors)

    def after_round(self, record: RoundRecord) -> str | None:
        return _first([one.after_round(record) for one in self._callbacks])

    def warn(self, text: str) -> None:
        for one in self._callbacks:
            one.warn(text)


def _first(reasons: Iterable[str | None]) -> str | None:
    return next(filter(None, reasons), None)
