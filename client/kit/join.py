"""Take part: check the site, connect, answer, keep at it, and end on what never heals."""

from __future__ import annotations

import os
import signal
import ssl
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

from wardround.client.kit.checks import (
    Finding,
    Options,
    Subject,
    finding_of,
    run_checks,
)
from wardround.client.node.connection import Connection, Heartbeat, Refused, Unreachable
from wardround.client.node.journal import Journal
from wardround.client.node.ledger import Ledger
from wardround.client.node.loop import LedgerBehind, Loop
from wardround.client.node.watched import WatchedFile
from wardround.client.node.worker import Stopped, Worker
from wardround.client.site_file import SiteFile, signing_keys
from wardround.common.credentials import fingerprint, public_line
from wardround.common.words import LONGEST_TEXT, printable, quoted

# A network that is down at boot comes up; a server that is down comes back. These do not end `join`.
HEALING = frozenset({"address", "tcp"})
_STILL_ONLINE = "the server still counts this site as online, which ends a minute after an unclean stop"
_TWICE = "; by now it must be another machine or process that uses this site's key"
_TWICE_SECONDS = 180.0
# A site may be let in again under the same key.
_FORGOTTEN_SECONDS = 900.0
_LONGEST_WAIT = 60.0
_BEHIND = (
    "the server holds an answer of this site that is not in its ledger: an old copy of the state folder was "
    "put back, it was made anew, or another machine uses this site's keys. Find out which, and whether that "
    "was meant to be. Then: wardround-site ledger accept {missing}"
)
_TICK = 0.2


def say(text: str) -> None:
    """One line with the time, for a person or a journal; words of others in it make no second one."""
    now = f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S%z}"
    print(f"{now} {printable(text, None)}", flush=True)  # noqa: T201 - the terminal


class Verdict(NamedTuple):
    """What is to be done after a connection has ended."""

    reason: str
    is_final: bool = False
    """Whether another try makes no sense."""
    is_soon: bool = False
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
    lasting = [
        finding
        for finding in findings
        if finding.state == "problem" and finding.check not in HEALING
    ]
    if lasting:
        say(
            f"not ready: {', '.join(finding.check for finding in lasting)}. Nothing was started."
        )
        return 1
    if site.model is not None:
        os.environ["HF_HUB_OFFLINE"] = "1"
    path = path.expanduser().absolute()
    own = fingerprint(public_line(signing_keys(site)[0]))
    with (
        _signals() as stopping,
        Journal(site.state, own) as journal,
        Ledger(site.state, site.name, own) as ledger,
        Worker(path, say, stopping.is_set) as worker,
    ):
        worker.start()
        say(f"joining {site.server_address} as {site.name}")
        file = WatchedFile(path, site, say)
        reason = _take_part(
            site, worker, (journal, ledger, file), stopping.is_set, retry_seconds
        )
    if reason is None:
        say("left; no process of this site is running")
        return 0
    say(f"ended: {reason}")
    return 1


def _take_part(
    site: SiteFile,
    worker: Worker,
    files: tuple[Journal, Ledger, WatchedFile],
    is_stopping: Callable[[], bool],
    first_wait: float,
) -> str | None:
    """Make one connection after the other. Returns why that ended, or None where a signal asked for it."""
    connection = Connection(site)
    journal, ledger, file = files
    loop = Loop(site, connection, worker, journal, ledger, say, is_stopping, file)
    judge, wait = Judge(site), first_wait
    while not is_stopping():
        try:
            with connection:
                connection.activate()
                judge.accepted()
                wait = first_wait
                say(f"connected to the server as node {connection.node.node_id}")
                _serve(loop, connection)
            return None
        except Stopped:
            return None
        except LedgerBehind as behind:
            return _BEHIND.format(missing=behind)
        except (Refused, Unreachable) as error:
            verdict = judge(error)
        if verdict.is_final:
            return verdict.reason
        wait = first_wait if verdict.is_soon else wait
        say(f"{verdict.reason}; trying again in {wait:.0f} s")
        until = time.monotonic() + wait
        while not is_stopping() and time.monotonic() < until:
            with suppress(OSError):  # the loop says so, once it is connected
                ledger.sum_up()
            time.sleep(min(_TICK, max(0.0, until - time.monotonic())))
        wait = min(wait * 2, max(_LONGEST_WAIT, first_wait))
    return None


def _serve(loop: Loop, connection: Connection) -> None:
    heartbeat = Heartbeat(connection)
    heartbeat.start()
    try:
        loop.serve(heartbeat)
    finally:
        heartbeat.stop()
        with suppress(Refused, Unreachable):
            connection.leave()


class Judge:
    """Says whether another try makes sense, from what the server said and from a look at the way to it."""

    def __init__(self, site: SiteFile, timeout_seconds: float = 5.0) -> None:
        self._site, self._options = site, Options(timeout_seconds=timeout_seconds)
        self._was_accepted = False
        self._refused_since: float | None = None

    def accepted(self) -> None:
        """The server took this site's key."""
        self._was_accepted, self._refused_since = True, None

    def __call__(self, error: Refused | Unreachable) -> Verdict:
        """What to do about it."""
        return (
            self._lost(error)
            if isinstance(error, Unreachable)
            else self._refused(error)
        )

    def _lost(self, error: Unreachable) -> Verdict:
        on = Subject(self._site, self._options)
        if on.link.unreached is not None:
            why = on.link.unreached.strerror or on.link.unreached
            return Verdict(f"the server cannot be reached ({why})")
        if _is_broken_off(on.link.handshake.error):
            return Verdict(
                "the server, or what stands before it, broke the TLS greeting off"
            )
        for finding in (finding_of(check, on) for check in ("certificate", "tls")):
            if finding.state == "problem":
                return Verdict(f"{finding.message}. {finding.next_step}", is_final=True)
        return Verdict(f"the connection was lost ({error})")

    def _refused(self, refused: Refused) -> Verdict:
        match refused.why:
            case "version":
                step = "Install the version of Flower that the coordinator names."
                return Verdict(
                    f"the server says: {quoted(refused.detail, LONGEST_TEXT)}. {step}",
                    is_final=True,
                )
            case "wrong_time":
                return Verdict(
                    "the server refuses this machine's time; correct its clock (NTP)"
                )
            case "unknown_key":
                if self._was_accepted and self._refused_for() < _FORGOTTEN_SECONDS:
                    return Verdict(
                        "the server does not know this site's key any more",
                        is_soon=True,
                    )
                finding = finding_of("registered", Subject(self._site, self._options))
                return Verdict(f"{finding.message}. {finding.next_step}", is_final=True)
            case "still_online":
                is_twice = self._refused_for() > _TWICE_SECONDS
                return Verdict(
                    _STILL_ONLINE + (_TWICE if is_twice else ""), is_soon=True
                )
        self._refused_since = None
        if refused.why == "other_node":
            return Verdict(
                "the server was restarted and wants this site to connect anew",
                is_soon=True,
            )
        return Verdict(f"the server said no: {quoted(str(refused), LONGEST_TEXT)}")

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

    old = {
        number: signal.signal(number, note)
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield seen
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
