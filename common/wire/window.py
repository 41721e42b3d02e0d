"""Makes a few calls at the same time, and returns their results in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")


class Cancellable(Protocol):
    """A call in progress."""

    def cancel(self) -> object:
        """Cancel the call, if it has not ended."""


C = TypeVar("C", bound=Cancellable)


def in_order(
    start: Callable[[T], C], items: Iterable[T], most: int
) -> Iterator[tuple[T, C]]:
    """Start a call for each item; yield each item with its call, in order.

    Args:
        start: starts the call for an item and returns at once.
        most: number of calls in progress at the same time.
    """
    calls = deque[tuple[T, C]]()
    try:
        for item in items:
            call = start(item)
            calls.append((item, call))
            if len(calls) < most:
                continue
            yield calls.popleft()
        while calls:
            yield calls.popleft()
    finally:
        for _, call in calls:
            call.cancel()
