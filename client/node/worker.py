"""The worker process of a site: libraries, model and texts stay in it, and the training happens there.

    connection process  --socket, tensors in shared memory-->  worker process

Whatever ends or hangs the worker costs one refused message; the connection to the server lives on.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from flwr.app import RecordDict

from wardround.common.errors import ProcessGone, Stopped
from wardround.common.process.shared_memory import bytes_of, create_memory, memory_for
from wardround.common.process.worker import (
    END_SECONDS,
    Facts,
    end_process,
    end_with,
    receive_message,
    send_message,
    serve,
    start_process,
)
from wardround.common.wire.codec import pack_refusal
from wardround.common.wire.contents import take_arrays
from wardround.common.wire.deadlines import KEPT_SECONDS
from wardround.common.wire.flat_arrays import table_of
from wardround.common.words import cleaned

_TICK = 0.2
_MARGIN_SECONDS = 5.0
_OUT_OF_MEMORY_SCORE = (
    "600"  # proc_pid_oom_score_adj(5): the worker goes before the connection does
)
# Fresh memory is dear: pages of 2 MiB are made 512 times as rarely. Threads that wait for each other sleep:
# spinning costs others on the machine, and sites that share one cost each other, several times the work.
TUNED = {"OMP_WAIT_POLICY": "passive", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


class Room:
    """Shared memory that a message's tensors are read into, and handed over in."""

    def __init__(self) -> None:
        self.descriptor = -1

    def __call__(self, num_bytes: int) -> np.ndarray:
        """Memory for `num_bytes`, (n,) uint8; once."""
        self.descriptor = create_memory(max(1, num_bytes))
        return bytes_of(self.descriptor)[:num_bytes]

    def close(self) -> None:
        """Let go of it here; a process that it was handed to keeps it."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self.descriptor = -1


class Worker:
    """The worker process, seen from the connection: started when needed, ended when idle or hanging."""

    def __init__(
        self,
        site_file: Path,
        say: Callable[[str], None],
        is_stopping: Callable[[], bool] = lambda: False,
        idle_seconds: float = KEPT_SECONDS,
    ) -> None:
        """Args: say: tells a person one line. is_stopping: whether to give up at once."""
        self._site_file, self._say, self._is_stopping = site_file, say, is_stopping
        self._idle_seconds = idle_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._last_used = time.monotonic()
        self.update_norm: float | None = None
        """Of the last answer, where that was an update: L2 norm of trained minus received tensors."""

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def start(self) -> None:
        """Start it if it is not there: it imports its libraries while nobody waits."""
        if self._process is not None and self._process.poll() is None:
            return
        self.end()
        path = os.environ.get("PYTHONPATH", "")
        self._process, self._socket = start_process(
            "wardround.client.node.worker",
            str(self._site_file),
            path=[path],
            env=TUNED | os.environ,
        )
        self._last_used = time.monotonic()

    def answer(
        self,
        kind: str,
        content: RecordDict,
        room: Room,
        seconds: float,
        order: dict[str, Any],
    ) -> RecordDict:
        """Have a message answered; a refusal where no answer comes within `seconds`, or the worker ends.

        Args:
            order: of a `client.site.Order`: what was approved, and is done whatever the message says.
            room: holds the content's arrays, if it has any.

        Raises:
            Stopped: a signal came meanwhile.
        """
        self.start()
        assert self._socket is not None
        rest, arrays = take_arrays(content)
        try:
            asked: Facts = {"kind": kind, "table": table_of(arrays), "order": order}
            memory = room.descriptor if arrays else None
            send_message(self._socket, asked, rest, memory)
            self._wait(seconds + _MARGIN_SECONDS)
            facts, answered = receive_message(self._socket)
            self.update_norm = facts["update_norm"]
            self._last_used = time.monotonic()
            return answered
        except TimeoutError:
            self._say(
                "the worker process hangs and is ended; the next message starts another"
            )
            self.end()
            return pack_refusal("hangs")
        except ProcessGone:
            how, code = self._how_it_ended()
            self._say(
                f"the worker process ended ({how}); the next message starts another"
            )
            self.end()
            return pack_refusal(code)

    def _wait(self, seconds: float) -> None:
        """Until it has something to say. Raises TimeoutError or Stopped."""
        assert self._socket is not None
        until = time.monotonic() + seconds
        while not select.select([self._socket], [], [], _TICK)[0]:
            if self._is_stopping():
                raise Stopped
            if time.monotonic() > until:
                raise TimeoutError

    def _how_it_ended(self) -> tuple[str, str]:
        """In words, and as a code of `REFUSALS`."""
        assert self._process is not None
        try:
            code = self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            return "it closed its socket", "ended"
        if code == -signal.SIGKILL:
            return "killed, as when memory runs out", "killed"
        return f"killed by signal {-code}" if code < 0 else f"exit code {code}", "ended"

    def rest_if_idle(self) -> None:
        """End it if nothing was asked of it for long; what it holds is let go."""
        if (
            self._process is not None
            and time.monotonic() - self._last_used > self._idle_seconds
        ):
            self._say(
                "the worker process was idle and is ended; the next message starts another"
            )
            self.end()

    def end(self) -> None:
        """Let it end, by force where it must be."""
        if self._process is not None and self._socket is not None:
            end_process(self._process, self._socket)
        self._process = self._socket = None


class _Cleaned(logging.Formatter):
    """Keeps what others wrote from moving a cursor: an error's text can hold words of a plan or of a file."""

    def format(self, record: logging.LogRecord) -> str:
        """One entry, its traceback too."""
        return cleaned(super().format(record))


def main(descriptor: int, site_file: Path) -> NoReturn:
    """Answer what comes through the socket, one message after the other, until it closes; never returns."""
    log = logging.StreamHandler()
    log.setFormatter(_Cleaned("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[log])
    with suppress(OSError):  # where the system has no such thing
        Path("/proc/self/oom_score_adj").write_text(
            _OUT_OF_MEMORY_SCORE, encoding="ascii"
        )
    connection = socket.socket(fileno=descriptor)
    end_with(connection)
    from wardround.client.round import answer, warm_up
    from wardround.client.site import Kept, Order, RealSite
    from wardround.client.site_file import load_site_file

    warm_up()
    kept = Kept()

    def work(facts: Facts, content: RecordDict) -> tuple[Facts, RecordDict, int | None]:
        kept.update_norm = None
        order = Order.from_dict(facts["order"])

        def open_site() -> RealSite:
            return RealSite(load_site_file(site_file), kept, order)

        rest, arrays = take_arrays(answer(facts["kind"], content, open_site))
        memory, table = memory_for(arrays)
        return {"table": table, "update_norm": kept.update_norm}, rest, memory

    serve(connection, work)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
