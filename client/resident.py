"""A site's resident process: libraries, model and texts stay in it while Flower's processes come and go.

    flwr-clientapp  --socket-->  wardround-site join  --hands the socket on-->  client/resident_process.py
    (one a message, no PyTorch)  (starts and ends it)                           (does the work)

Tensors go through shared memory. The socket lies in a folder that only the site's user may enter.
"""

from __future__ import annotations

import json
import logging
import os
import select
import selectors
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

from flwr.app import RecordDict

from common.frames import receive_frame, send_frame
from common.messages import KEPT_SECONDS, pack_refusal, put_arrays, read_content, take_arrays, write_content
from common.shared_memory import bytes_of, memory_for, read_arrays

log = logging.getLogger(__name__)

ADDRESS = "WARDROUND_RESIDENT"
"""Environment variable that tells Flower's processes where the socket is."""
_ROOT = Path(__file__).resolve().parent.parent
_WORDS_BYTES = 4
_GREETING_SECONDS = 10.0  # between connecting and saying whose code it is
_END_SECONDS = 10.0
_TICK = 1.0
_MARGIN_SECONDS = 60.0  # for an answer, past the time in which somebody waits for it


def send_content(connection: socket.socket, words: dict[str, Any], content: RecordDict) -> None:
    """Send a content, its arrays through shared memory, with a few words beside it. Raises Gone."""
    rest, arrays = take_arrays(content)
    memory, table = memory_for(arrays)
    try:
        head = json.dumps(words | {"table": table}).encode()
        length = len(head).to_bytes(_WORDS_BYTES, "little")
        send_frame(connection, length + head + write_content(rest), [memory])
    finally:
        os.close(memory)


def receive_content(connection: socket.socket) -> tuple[dict[str, Any], RecordDict]:
    """Inverse of `send_content`; the arrays are views of the memory. Raises Gone."""
    written, (memory,) = receive_frame(connection)
    end = _WORDS_BYTES + int.from_bytes(written[:_WORDS_BYTES], "little")
    words = json.loads(written[_WORDS_BYTES:end])
    content = read_content(written[end:])
    put_arrays(content, read_arrays(bytes_of(memory), words.pop("table")))
    os.close(memory)
    return words, content


@dataclass(frozen=True)
class Resident:
    """The way to the resident process, for the process of one message."""

    path: Path

    @classmethod
    def of_this_site(cls) -> Resident | None:
        """None where `wardround-site join` started none, or did not start this process."""
        path = os.environ.get(ADDRESS)
        return Resident(Path(path)) if path else None

    def answer(self, kind: str, content: RecordDict, site_file: Path, seconds: float) -> RecordDict:
        """Hand a message over and wait for the answer, for `seconds` at most; a refusal where none comes."""
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(seconds)
                connection.connect(str(self.path))
                send_frame(connection, f"{seconds:.0f} {_ROOT}".encode())
                send_content(connection, {"kind": kind, "site_file": str(site_file)}, content)
                return receive_content(connection)[1]
        except OSError as error:
            log.error("the resident process gave no answer (%s); its last lines stand above", error)
            return pack_refusal("its resident process gave no answer; see the client's own log")


class Keeper:
    """Starts the resident process when it is needed, and ends it; a context manager, at work in a thread."""

    def __init__(self, say: Callable[[str], None], idle_seconds: float = KEPT_SECONDS) -> None:
        """Args: say: tells a person one line.

        Raises:
            OSError: no socket can be made here.
        """
        if not hasattr(os, "memfd_create"):
            raise OSError("this system has no memory that processes can share without a name")
        self._say, self._idle_seconds = say, idle_seconds
        self._folder = Path(tempfile.mkdtemp(prefix="wardround-"))  # for this user alone
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self._folder / "resident"))
        self._listener.listen()
        self._ours, self._theirs = socket.socketpair()  # closing one end wakes the thread
        self._thread = Thread(target=self._run, daemon=True)
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._code = ""
        self._deadlines: deque[float] = deque()
        """Of the messages under way, which are answered one after the other."""
        self._last_used = time.monotonic()

    @property
    def environment(self) -> dict[str, str]:
        """What Flower's processes have to be told."""
        return {ADDRESS: str(self._folder / "resident")}

    def __enter__(self) -> Keeper:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ours.close()
        self._thread.join(2 * _END_SECONDS + _GREETING_SECONDS)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector, self._listener, self._theirs:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._theirs, selectors.EVENT_READ)
            while True:
                ready = {key.fileobj for key, _ in selector.select(_TICK)}
                if self._theirs in ready:
                    self._end()
                    return
                if self._listener in ready:
                    self._accept()
                self._note_answers()
                is_idle = time.monotonic() - self._last_used > self._idle_seconds
                if self._deadlines and time.monotonic() > self._deadlines[0]:
                    self._say("the resident process hangs and is ended; the next message starts another")
                    self._end()
                elif self._process is not None and is_idle and not self._deadlines:
                    self._say("the resident process was idle and is ended; the next message starts another")
                    self._end()

    def _accept(self) -> None:
        try:
            with self._listener.accept()[0] as connection:
                connection.settimeout(_GREETING_SECONDS)
                seconds, _, code = receive_frame(connection)[0].decode().partition(" ")
                connection.settimeout(None)  # both processes share the flag that a timeout sets
                self._hand_on(code, float(seconds), connection)
        except (OSError, ValueError) as error:
            self._say(f"a message could not be handed to the resident process: {error}")

    def _hand_on(self, code: str, seconds: float, connection: socket.socket) -> None:
        """Give the connection of one message to the process that runs the same code as its sender."""
        if self._process is None or self._process.poll() is not None or code != self._code:
            self._end()
            self._start(code)
        assert self._control is not None
        send_frame(self._control, b"a message", [connection.fileno()])
        self._last_used = time.monotonic()
        self._deadlines.append(self._last_used + seconds + _MARGIN_SECONDS)

    def _note_answers(self) -> None:
        """Count what was answered since the last look, and see whether the process is still there."""
        while self._control is not None and select.select([self._control], [], [], 0)[0]:
            try:
                answered = len(self._control.recv(64))
            except OSError:  # it was killed before it had read what it was sent
                answered = 0
            if answered == 0:
                self._say("the resident process has ended; the next message starts another")
                self._end()
                return
            for _ in range(min(answered, len(self._deadlines))):
                self._deadlines.popleft()
            self._last_used = time.monotonic()

    def _start(self, code: str) -> None:
        self._control, theirs = socket.socketpair()
        self._control.settimeout(_END_SECONDS)
        path = os.pathsep.join(filter(None, [code, os.environ.get("PYTHONPATH")]))
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "client.resident_process", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                process_group=0,  # Ctrl-C in a terminal is for `join` alone
                stdin=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": path},
            )
        self._code = code

    def _end(self) -> None:
        """The process ends when its socket closes."""
        if self._process is None:
            return
        if self._control is not None:
            self._control.close()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            with suppress(subprocess.TimeoutExpired):  # only the kernel can keep it now
                self._process.wait(_END_SECONDS)
        self._process = self._control = None
        self._deadlines.clear()
