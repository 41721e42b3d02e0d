"""Files written beside the work: in their order, by one thread, and never further behind than one round."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any


class Writer:
    """A queue of writes; a context manager, which waits for the last of them."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._writes: list[Future[Any]] = []

    def write(self, write: Callable[..., Any], *arguments: Any) -> None:
        """Have `write(*arguments)` called after all that was asked for before."""
        self._writes.append(self._thread.submit(write, *arguments))

    def wait(self) -> None:
        """Return once everything is written. Raises what a write raised: OSError."""
        while self._writes:
            self._writes.pop(0).result()

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True)
        if error is None:
            self.wait()
