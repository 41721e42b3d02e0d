"""The main program of a site: connect, answer, and reconnect until it is told to stop."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from threading import Event
from typing import Any, Protocol

from wardround.client.node.connection import Connection, Heartbeat
from wardround.client.node.journal import Journal
from wardround.client.node.ledger import Ledger
from wardround.client.node.loop import Loop
from wardround.client.node.watched import WatchedFile
from wardround.client.node.worker import Worker
from wardround.client.site_file import SiteFile, signing_keys
from wardround.common.credentials import fingerprint, public_line
from wardround.common.errors import LedgerBehind, Refused, Stopped, Unreachable
from wardround.common.exits import ending_signals, leave_terminal
from wardround.common.words import printable

_LONGEST_WAIT_SECONDS = 60.0
_TICK_SECONDS = 0.2
_LEDGER_BEHIND = (
    "the server holds an answer of this site that is not in its ledger. Either an old "
    "copy of the state folder was restored, or the folder was made anew, or another "
    "machine uses this site's keys. Find out which, and if that was intended. Then: "
    "wardround-site ledger accept {missing}"
)


@dataclass(frozen=True)
class Verdict:
    """The decision after a connection has ended."""

    reason: str
    """Why it ended, in words."""
    is_final: bool = False
    """True if another try makes no sense."""
    is_soon: bool = False
    """True if the wait before the next try stays short."""


class Judge(Protocol):
    """Decides if another try makes sense."""

    def accepted(self) -> None:
        """Note that the server accepted this site's key."""

    def __call__(self, error: Refused | Unreachable) -> Verdict:
        """Decide what follows after this error."""


def say(text: str) -> None:
    """Print one line with the time. Line breaks in the text are removed."""
    now = f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S%z}"
    print(f"{now} {printable(text, None)}", flush=True)  # noqa: T201 - the terminal


def join(path: Path, site: SiteFile, judge: Judge, retry_seconds: float = 5.0) -> int:
    """Take part until a signal (exit code 0), or until no further try makes sense (1).

    Args:
        path: the file that `site` was read from.
        judge: decides after each lost connection.
        retry_seconds: first wait before another try. It doubles up to a minute. After a
            connection it is the first wait again.

    Raises:
        ValueError: a file of the site is wrong.
    """
    if site.model is not None:
        os.environ["HF_HUB_OFFLINE"] = "1"
    path = path.absolute()
    own_key = fingerprint(public_line(signing_keys(site)[0]))
    with (
        _signals() as stopping,
        Journal(site.state, own_key) as journal,
        Ledger(site.state, site.name, own_key) as ledger,
        Worker(path, say, stopping.is_set) as worker,
    ):
        worker.start()
        say(f"joining {site.server_address} as {site.name}")
        connection = Connection(site)
        file = WatchedFile(path, site, say)
        loop = Loop(
            site, connection, worker, journal, ledger, say, stopping.is_set, file
        )
        member = _Member(loop, connection, ledger, judge, stopping.is_set)
        reason = member.stay(retry_seconds)
    if reason is None:
        say("left; no process of this site is running")
        return 0
    say(f"ended: {reason}")
    return 1


@dataclass(frozen=True)
class _Member:
    """A site that takes part. It uses one connection after the other."""

    loop: Loop
    connection: Connection
    ledger: Ledger
    judge: Judge
    is_stopping: Callable[[], bool]

    def stay(self, first_wait: float) -> str | None:
        """Connect again and again. Returns why that ended, or None after a signal."""
        wait = first_wait
        while not self.is_stopping():
            try:
                with self.connection:
                    self._connect()
                    wait = first_wait
                    self._serve()
                return None
            except Stopped:
                return None
            except LedgerBehind as behind:
                return _LEDGER_BEHIND.format(missing=behind)
            except (Refused, Unreachable) as error:
                verdict = self.judge(error)
            if verdict.is_final:
                return verdict.reason
            if verdict.is_soon:
                wait = first_wait
            say(f"{verdict.reason}; trying again in {wait:.0f} s")
            self._wait(wait)
            wait = min(wait * 2, max(_LONGEST_WAIT_SECONDS, first_wait))
        return None

    def _connect(self) -> None:
        self.connection.activate()
        self.judge.accepted()
        say(f"connected to the server as node {self.connection.node.node_id}")

    def _serve(self) -> None:
        heartbeat = Heartbeat(self.connection)
        heartbeat.start()
        try:
            self.loop.serve(heartbeat)
        finally:
            heartbeat.stop()
            with suppress(Refused, Unreachable):
                self.connection.leave()

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self.is_stopping() and time.monotonic() < until:
            with suppress(OSError):  # the loop reports it once the site is connected
                self.ledger.sum_up()
            time.sleep(min(_TICK_SECONDS, max(0.0, until - time.monotonic())))


@contextmanager
def _signals() -> Iterator[Event]:
    """Yield an event that is set when a signal arrives that ends the program."""
    seen = Event()

    def note(number: int, _: Any) -> None:
        if number == signal.SIGHUP:
            leave_terminal()
        if not seen.is_set():
            say(f"{signal.Signals(number).name}: leaving")
        seen.set()

    old = {number: signal.signal(number, note) for number in ending_signals()}
    try:
        yield seen
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
