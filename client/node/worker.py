"""The worker process of a site: it trains, and keeps libraries, model and texts.

    connection process  --socket, tensors in shared memory-->  worker process

If the worker ends or hangs, one message is refused; the connection to the server stays.
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

from wardround.client.answers import SiteAnswer
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
from wardround.common.wire.arrays import take_arrays
from wardround.common.wire.codec import pack_refusal
from wardround.common.wire.deadlines import KEPT_SECONDS
from wardround.common.wire.flat_arrays import table_of
from wardround.common.words import cleaned

_TICK_SECONDS = 0.2
_MARGIN_SECONDS = 5.0
# proc_pid_oom_score_adj(5): the kernel ends the worker before the connection.
_OUT_OF_MEMORY_SCORE = "600"
# Fresh memory is slow: with pages of 2 MiB it is made 512 times less often. Waiting
# threads sleep: spinning slows other processes of the machine down several times.
TUNED = {"OMP_WAIT_POLICY": "passive", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


class Room:
    """Shared memory for the tensors of one message."""

    def __init__(self) -> None:
        self.descriptor = -1

    def __call__(self, num_bytes: int) -> np.ndarray:
        """Create the memory, (num_bytes,) uint8. Call it once."""
        self.descriptor = create_memory(max(1, num_bytes))
        return bytes_of(self.descriptor)[:num_bytes]

    def close(self) -> None:
        """Release the memory here. A process that received it keeps it."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self.descriptor = -1


class Worker:
    """The worker process, as the connection process uses it.

    The process is started when it is needed, and ended when it is idle or hangs.
    """

    def __init__(
        self,
        site_file: Path,
        say: Callable[[str], None],
        is_stopping: Callable[[], bool] = lambda: False,
        idle_seconds: float = KEPT_SECONDS,
    ) -> None:
        """Prepare the worker; nothing is started yet.

        Args:
            say: prints one line for people.
            is_stopping: returns True if the program must stop at once.
        """
        self._site_file = site_file
        self._say = say
        self._is_stopping = is_stopping
        self._idle_seconds = idle_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._last_used = time.monotonic()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def start(self) -> None:
        """Start the process if it does not run. It imports its libraries at once."""
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
    ) -> SiteAnswer:
        """Let the worker answer a message.

        The answer is a refusal if none arrives within `seconds`, or if the worker ends.

        Args:
            order: a `client.site.Order` as a dict: the approved work, which replaces the
                settings of the message.
            room: holds the content's arrays, if it has any.

        Raises:
            Stopped: a signal arrived meanwhile.
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
            self._last_used = time.monotonic()
            return SiteAnswer(answered, facts["update_norm"])
        except TimeoutError:
            self._say(
                "the worker process hangs and is ended; the next message starts another"
            )
            self.end()
            return SiteAnswer(pack_refusal("hangs"))
        except ProcessGone:
            how, code = self._how_it_ended()
            self._say(
                f"the worker process ended ({how}); the next message starts another"
            )
            self.end()
            return SiteAnswer(pack_refusal(code))

    def _wait(self, seconds: float) -> None:
        """Wait for the answer. Raises TimeoutError or Stopped."""
        assert self._socket is not None
        until = time.monotonic() + seconds
        while not select.select([self._socket], [], [], _TICK_SECONDS)[0]:
            if self._is_stopping():
                raise Stopped
            if time.monotonic() > until:
                raise TimeoutError

    def _how_it_ended(self) -> tuple[str, str]:
        """Return how the process ended, in words and as a code of `REFUSALS`."""
        assert self._process is not None
        try:
            code = self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            return "it closed its socket", "ended"
        if code == -signal.SIGKILL:
            return "killed, perhaps for lack of memory", "killed"
        if code < 0:
            return f"killed by signal {-code}", "ended"
        return f"exit code {code}", "ended"

    def rest_if_idle(self) -> None:
        """End the process if it was idle for long. Its memory is free then."""
        if (
            self._process is not None
            and time.monotonic() - self._last_used > self._idle_seconds
        ):
            self._say(
                "the worker process was idle and is ended; the next message starts one"
            )
            self.end()

    def end(self) -> None:
        """End the process, by force if necessary."""
        if self._process is not None and self._socket is not None:
            end_process(self._process, self._socket)
        self._process = None
        self._socket = None


class _Cleaned(logging.Formatter):
    """Removes control characters, because an error's text can quote a plan or a file."""

    def format(self, record: logging.LogRecord) -> str:
        """Format one entry, with its traceback."""
        return cleaned(super().format(record))


def main(descriptor: int, site_file: Path) -> NoReturn:
    """Answer one message after the other, until the socket closes."""
    log = logging.StreamHandler()
    log.setFormatter(_Cleaned("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[log])
    with suppress(OSError):  # not every system has this file
        Path("/proc/self/oom_score_adj").write_text(
            _OUT_OF_MEMORY_SCORE, encoding="ascii"
        )
    connection = socket.socket(fileno=descriptor)
    end_with(connection)
    # The connection process imports this module too, and must not load these.
    from wardround.client.round import answer, warm_up
    from wardround.client.site import Kept, Order, RealSite
    from wardround.client.site_file import load_site_file

    warm_up()
    kept = Kept()

    def work(facts: Facts, content: RecordDict) -> tuple[Facts, RecordDict, int | None]:
        order = Order.from_dict(facts["order"])

        def open_site() -> RealSite:
            return RealSite(load_site_file(site_file), kept, order)

        found = answer(facts["kind"], content, open_site)
        rest, arrays = take_arrays(found.content)
        memory, table = memory_for(arrays)
        return {"table": table, "update_norm": found.update_norm}, rest, memory

    serve(connection, work)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
