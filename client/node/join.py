"""Take part: check the site, connect, answer, keep at it, and end on what never heals."""

from __future__ import annotations

import os
import signal
import ssl
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from threading import Event
from typing import Any, Literal

from client.kit.checks import run_checks
from client.kit.checks_network import check_certificate, check_registered, check_tls
from client.kit.findings import Finding, Options
from client.kit.link import Link
from client.kit.site_file import SiteFile
from client.node.connection import Connection, Heartbeat, Refused, Unreachable
from client.node.journal import Journal
from client.node.loop import Loop
from client.node.worker import Stopped, Worker

# A network that is down at boot comes up; a server that is down comes back. These do not end `join`.
HEALING = frozenset({"address", "tcp"})
_STILL_ONLINE = "the server still counts this site as online, which ends a minute after an unclean stop"
_TWICE_SECONDS = 180.0
# A site may be let in again under the same key.
_FORGOTTEN_SECONDS = 900.0
_LONGEST_WAIT = 60.0
_TICK = 0.2


def say(text: str) -> None:
    """One line with the time, for a person or a journal."""
    print(f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S%z} {text}", flush=True)  # noqa: T201 - the terminal


@dataclass(frozen=True)
class Verdict:
    """What is to be done after a connection has ended."""

    action: Literal["retry", "end"]
    reason: str
    soon: bool = False
    """Whether the wait before the next try stays short."""


def join(
    path: Path,
    site: SiteFile,
    show: Callable[[Sequence[Finding]], None],
    skip: Collection[str] = (),
    retry_seconds: float = 5.0,
) -> int:
    """Run until a signal, which gives 0, or until it makes no sense to go on, which gives 1.

    Args:
        retry_seconds: first wait before another try; doubles up to a minute, starts over once connected.

    Raises:
        ValueError: `skip` names no check, or a file of the site is not what it should be.
    """
    findings = run_checks(site, Options(), skip)
    show(findings)
    lasting = [finding for finding in findings if finding.state == "problem" and finding.check not in HEALING]
    if lasting:
        say(f"not ready: {', '.join(finding.check for finding in lasting)}. Nothing was started.")
        return 1
    if site.model is not None:
        os.environ["HF_HUB_OFFLINE"] = "1"
    with (
        _signals() as stopping,
        Journal(site.state) as journal,
        Worker(path.expanduser().absolute(), say, stopping.is_set) as worker,
    ):
        worker.start()
        say(f"joining {site.server_address} as {site.name}")
        reason = _Session(site, worker, journal, stopping.is_set, retry_seconds).run()
    if reason is None:
        say("left; no process of this site is running")
        return 0
    say(f"ended: {reason}")
    return 1


class _Session:
    """One connection after the other, until a verdict or a signal ends it."""

    def __init__(
        self,
        site: SiteFile,
        worker: Worker,
        journal: Journal,
        is_stopping: Callable[[], bool],
        retry_seconds: float,
    ) -> None:
        self._connection = Connection(site)
        self._loop = Loop(site, self._connection, worker, journal, say, is_stopping)
        self._judge, self._is_stopping, self._first_wait = Judge(site), is_stopping, retry_seconds

    def run(self) -> str | None:
        """Why it ended, or None where a signal asked for it."""
        wait = self._first_wait
        while not self._is_stopping():
            try:
                self._connect_and_serve()
                return None
            except Stopped:
                return None
            except (Refused, Unreachable) as error:
                was_connected = self._judge.is_accepted_anew()
                verdict = self._judge(error)
            if verdict.action == "end":
                return verdict.reason
            wait = self._first_wait if was_connected or verdict.soon else wait
            say(f"{verdict.reason}; trying again in {wait:.0f} s")
            self._sleep(wait)
            wait = min(wait * 2, max(_LONGEST_WAIT, self._first_wait))
        return None

    def _connect_and_serve(self) -> None:
        with self._connection as connection:
            connection.activate()
            self._judge.accepted()
            say(f"connected to the server as node {connection.node.node_id}")
            heartbeat = Heartbeat(connection)
            heartbeat.start()
            try:
                self._loop.serve(heartbeat)
            finally:
                heartbeat.stop()
                with suppress(Refused, Unreachable):
                    connection.leave()

    def _sleep(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._is_stopping() and time.monotonic() < until:
            time.sleep(min(_TICK, max(0.0, until - time.monotonic())))


class Judge:
    """Says whether another try makes sense, from what the server said and from a look at the way to it."""

    def __init__(self, site: SiteFile, timeout_seconds: float = 5.0) -> None:
        self._site, self._timeout = site, timeout_seconds
        self._was_accepted = self._is_new = False
        self._refused_since: float | None = None

    def accepted(self) -> None:
        """The server took this site's key."""
        self._was_accepted, self._is_new, self._refused_since = True, True, None

    def is_accepted_anew(self) -> bool:
        """Whether it did since this was asked last."""
        is_new, self._is_new = self._is_new, False
        return is_new

    def __call__(self, error: Refused | Unreachable) -> Verdict:
        """What to do about it."""
        return self._lost(error) if isinstance(error, Unreachable) else self._refused(error)

    def _lost(self, error: Unreachable) -> Verdict:
        link = Link(self._site, self._timeout)
        if link.reached is not None:
            return Verdict("retry", f"the server cannot be reached ({link.reached.strerror or link.reached})")
        if _is_broken_off(link.handshake.error):
            return Verdict("retry", "the server, or what stands before it, broke the TLS greeting off")
        for check in (check_certificate, check_tls):
            finding = check(link)
            if finding.state == "problem":
                return Verdict("end", f"{finding.message}. {finding.next_step}")
        return Verdict("retry", f"the connection was lost ({error})")

    def _refused(self, refused: Refused) -> Verdict:
        if refused.why == "version":
            step = "Install the version of Flower that the coordinator names."
            return Verdict("end", f"{refused.detail} {step}")
        if refused.why == "wrong_time":
            return Verdict("retry", "the server refuses this machine's time; correct its clock (NTP)")
        if refused.why == "unknown_key":
            if self._was_accepted and self._refused_for() < _FORGOTTEN_SECONDS:
                return Verdict("retry", "the server does not know this site's key any more", soon=True)
            finding = check_registered(Link(self._site, self._timeout))
            return Verdict("end", f"{finding.message}. {finding.next_step}")
        if refused.why == "still_online":
            twice = self._refused_for() > _TWICE_SECONDS
            more = "; by now it must be another machine or process that uses this site's key" if twice else ""
            return Verdict("retry", _STILL_ONLINE + more, soon=True)
        self._refused_since = None
        if refused.why == "other_node":
            return Verdict("retry", "the server was restarted and wants this site to connect anew", soon=True)
        return Verdict("retry", f"the server said no ({refused})")

    def _refused_for(self) -> float:
        """Seconds since the server first said no."""
        now = time.monotonic()
        self._refused_since = self._refused_since or now
        return now - self._refused_since


def _is_broken_off(error: OSError | None) -> bool:
    """Whether a handshake ended without a word about certificates, as while a server starts or ends."""
    if error is None or error.filename is not None:
        return False
    return isinstance(error, ssl.SSLEOFError) or not isinstance(error, ssl.SSLError)


@contextmanager
def _signals() -> Iterator[Event]:
    """Set once a signal has asked to leave."""
    seen = Event()

    def note(number: int, _: Any) -> None:
        if not seen.is_set():
            say(f"{signal.Signals(number).name}: leaving")
        seen.set()

    old = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield seen
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
