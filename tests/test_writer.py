"""Files written beside the work: in order, all of them, and no failure is lost."""

from __future__ import annotations

import time

import pytest

from wardround.common.files import Writer


def test_writes_keep_their_order_and_leaving_waits_for_them() -> None:
    written: list[int] = []

    def slowly(number: int) -> None:
        time.sleep(0.05 if number == 0 else 0.0)
        written.append(number)

    with Writer() as writer:
        for number in range(4):
            writer.write(slowly, number)
    assert written == [0, 1, 2, 3]


def full() -> None:
    """A disk that is full."""
    raise OSError(28, "No space left on device", "history.jsonl")


def test_a_write_that_failed_is_raised_where_it_is_waited_for() -> None:
    writer = Writer()
    writer.write(full)
    with pytest.raises(OSError, match="No space left"):
        writer.wait()
    writer.wait()  # told once


def test_the_last_write_is_not_lost() -> None:
    with pytest.raises(OSError, match="No space left"), Writer() as writer:
        writer.write(full)


def diverge(writer: Writer) -> None:
    """A run that ends while a write of it fails."""
    writer.write(full)
    raise ValueError("diverged")


def test_what_ended_the_run_is_not_hidden_by_a_write() -> None:
    with pytest.raises(ValueError, match="diverged"), Writer() as writer:
        diverge(writer)
