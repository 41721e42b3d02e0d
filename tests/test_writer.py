"""Files written in the background: all are written, in order, and every failure is raised."""

from __future__ import annotations

import errno
import time

import pytest

from wardround.common.files import Writer


def test_writes_keep_their_order_and_the_end_waits_for_them() -> None:
    written: list[int] = []

    def slowly(number: int) -> None:
        time.sleep(0.05 if number == 0 else 0.0)
        written.append(number)

    with Writer() as writer:
        for number in range(4):
            writer.write(slowly, number)
    assert written == [0, 1, 2, 3]


def full() -> None:
    """Fail like a full disk."""
    raise OSError(errno.ENOSPC, "No space left on device", "history.jsonl")


def test_a_failed_write_is_raised_at_the_next_wait() -> None:
    writer = Writer()
    writer.write(full)
    with pytest.raises(OSError, match=r"history\.jsonl") as failed:
        writer.wait()
    assert failed.value.errno == errno.ENOSPC
    writer.wait()  # raised once


def test_the_last_write_is_not_lost() -> None:
    with pytest.raises(OSError, match=r"history\.jsonl") as failed, Writer() as writer:
        writer.write(full)
    assert failed.value.errno == errno.ENOSPC


def diverge(writer: Writer) -> None:
    """Fail like a run that ends while its write fails."""
    writer.write(full)
    raise ValueError("diverged")


def test_a_failed_write_does_not_hide_the_error_of_the_run() -> None:
    with pytest.raises(ValueError, match="diverged"), Writer() as writer:
        diverge(writer)
