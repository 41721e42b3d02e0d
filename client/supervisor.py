"""Keep one child process alive: start it, pass its lines on, start it again, and leave no process behind."""

from __future__ import annotations

import ctypes
import math
import os
import re
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal

_LONGEST_WAIT = 60.0
_GRACE_SECONDS = 15.0  # Flower gives itself 5 to say good-bye to the server
# What a SuperNode writes when it ends, and when its heartbeat has died; after both it may stay, dead to the
# server, for ever.
_LAST_WORDS = ("SuperNode terminated gracefully", "Exception in thread")
_CLEAN_UP_SECONDS = 5.0  # for what the child started, before and after SIGKILL
_TICK = 0.2
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Ended:
    """How a child ended."""

    returncode: int
    lines: tuple[str, ...]
    """The last lines it wrote, without colours."""
    connected: bool
    """Whether it had reached the server this time."""


@dataclass(frozen=True)
class Verdict:
    """What is to be done after a child has ended."""

    action: Literal["restart", "end"]
    reason: str
    soon: bool = False
    """Whether the wait before the next start stays short."""


class Supervisor:
    """Runs `command()` again and again until a verdict or a signal ends it."""

    def __init__(
        self,
        command: Callable[[], Sequence[str]],
        environment: dict[str, str],
        judge: Callable[[Ended], Verdict],
        say: Callable[[str], None],
        *,
        retry_seconds: float = 5.0,
        connected_mark: str = "SuperNode ID:",
        last_words: Sequence[str] = _LAST_WORDS,
        grace_seconds: float = _GRACE_SECONDS,
    ) -> None:
        """Args:
        command: gives the command line of each start anew.
        judge: says whether a child that ended is started again.
        say: tells a person one line.
        retry_seconds: first wait before a restart; doubles up to a minute, and starts over once connected.
        connected_mark: what the child writes when it has reached the server.
        last_words: what the child writes when nothing is to be expected of it any more.
        grace_seconds: how long it may live on after its last words, or after a signal.
        """
        self._command, self._environment, self._judge, self._say = command, environment, judge, say
        self._first_wait, self._mark = retry_seconds, connected_mark
        self._last_words, self._grace = tuple(last_words), grace_seconds
        self._signal: int | None = None

    def run(self) -> Verdict | None:
        """Until the end. Returns why, or None where a signal asked for it."""
        wait = self._first_wait
        with self._signals():
            while True:
                ended = self._run_once()
                if self._signal is not None:
                    return None
                verdict = self._judge(ended)
                if verdict.action == "end":
                    return verdict
                wait = self._first_wait if ended.connected or verdict.soon else wait
                self._say(f"{verdict.reason}; starting again in {wait:.0f} s")
                if not self._sleep(wait):
                    return None
                wait = min(wait * 2, max(_LONGEST_WAIT, self._first_wait))

    def _run_once(self) -> Ended:
        """One child, from its start to the end of its last descendant."""
        child = subprocess.Popen(
            list(self._command()),
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a group of its own: Ctrl-C reaches us alone, and the group ends whole
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )
        lines: deque[str] = deque(maxlen=60)
        connected = False
        try:
            for line in self._lines(child):
                lines.append(line)
                if self._mark in line:
                    connected = True
        finally:
            end_group(child)
        return Ended(child.returncode, tuple(lines), connected)

    def _lines(self, child: subprocess.Popen[bytes]) -> Iterator[str]:
        """Whole lines until the child ends; its own children may hold the pipe open for longer."""
        assert child.stdout is not None
        os.set_blocking(child.stdout.fileno(), False)
        pending, asked, deadline = b"", False, math.inf
        with selectors.DefaultSelector() as selector, child.stdout:
            selector.register(child.stdout, selectors.EVENT_READ)
            while True:
                if self._signal is not None and not asked:
                    asked, deadline = True, time.monotonic() + self._grace
                    child.send_signal(signal.SIGTERM)
                is_late = time.monotonic() > deadline
                over = child.poll() is not None or is_late
                received = child.stdout.read() if selector.select(0 if over else _TICK) else None
                *whole, pending = (pending + (received or b"")).split(b"\n")
                for line in whole:
                    yield (text := self._passed_on(line))
                    if deadline == math.inf and any(words in text for words in self._last_words):
                        deadline = time.monotonic() + self._grace
                if received == b"" and not over:  # closed its output, and lives
                    time.sleep(_TICK)
                if over and (is_late or not received):
                    if pending:
                        yield self._passed_on(pending)
                    if child.poll() is None:
                        self._say(f"the node did not end within {self._grace:g} s and is killed")
                    return

    def _passed_on(self, line: bytes) -> str:
        text = _COLOURS.sub("", line.decode("utf-8", errors="replace")).rstrip()
        if text:
            self._say(f"  | {text}")
        return text

    def _sleep(self, seconds: float) -> bool:
        """Wait; False if a signal came."""
        until = time.monotonic() + seconds
        while self._signal is None and time.monotonic() < until:
            time.sleep(min(_TICK, max(0.0, until - time.monotonic())))
        return self._signal is None

    @contextmanager
    def _signals(self) -> Iterator[None]:
        def note(number: int, _: Any) -> None:
            if self._signal is None:
                self._say(f"{signal.Signals(number).name}: telling the node to leave")
            self._signal = number

        old = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)


def _end_with_parent() -> None:
    """In a new child: be told to end when the parent dies, even by SIGKILL (prctl(2), Linux)."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def end_group(child: subprocess.Popen[bytes]) -> None:
    """End the child and everything it started, politely first; returns when nothing of it is left."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, number)
        except ProcessLookupError:
            break
        until = time.monotonic() + _CLEAN_UP_SECONDS
        while _lives(child) and time.monotonic() < until:
            time.sleep(0.05)
        if not _lives(child):
            break
    with suppress(subprocess.TimeoutExpired):  # killed already; only the kernel can keep it now
        child.wait(_CLEAN_UP_SECONDS)


def _lives(child: subprocess.Popen[bytes]) -> bool:
    """Whether anything of the child's group is left; what has ended and was left to us is buried."""
    child.poll()
    try:
        while os.waitpid(-child.pid, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
    try:
        os.killpg(child.pid, 0)
    except ProcessLookupError:
        return False
    return True
