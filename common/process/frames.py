"""Processes of one machine that talk over a socket, in frames.

A frame is length-prefixed bytes, with file descriptors beside them.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

from wardround.common.errors import ProcessGone
from wardround.common.places import IMPORT_ROOT

END_SECONDS = 10.0
"""What a process has to end by itself."""
_HEADER = 8
_MOST_DESCRIPTORS = 4


def send_frame(
    connection: socket.socket, payload: bytes, descriptors: Sequence[int] = ()
) -> None:
    """Send one frame. Raises ProcessGone."""
    header = len(payload).to_bytes(_HEADER, "little")
    try:
        if descriptors:
            socket.send_fds(connection, [header], list(descriptors))
        else:
            connection.sendall(header)
        connection.sendall(payload)
    except OSError as error:
        raise ProcessGone(str(error)) from None


def receive_frame(connection: socket.socket) -> tuple[bytes, list[int]]:
    """Wait for one frame; returns its payload and the descriptors sent with it. Raises ProcessGone."""
    try:
        header, descriptors, _, _ = socket.recv_fds(
            connection, _HEADER, _MOST_DESCRIPTORS
        )
        header += _exactly(connection, _HEADER - len(header))
        return _exactly(connection, int.from_bytes(header, "little")), list(descriptors)
    except OSError as error:
        raise ProcessGone(str(error)) from None


def _exactly(connection: socket.socket, length: int) -> bytes:
    """Raises ProcessGone where the stream ends first."""
    received = bytearray()
    while len(received) < length:
        piece = connection.recv(min(length - len(received), 1 << 20))
        if not piece:
            raise ProcessGone("the stream ended")
        received += piece
    return bytes(received)


def end_with(connection: socket.socket) -> None:
    """End this process the moment the other end closes, also in the middle of training."""
    watch = select.poll()
    watch.register(connection, select.POLLRDHUP | select.POLLHUP | select.POLLERR)
    watch.poll()
    os._exit(0)


def start_process(
    module: str,
    *arguments: str,
    path: Iterable[str],
    env: Mapping[str, str] = os.environ,
) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Run a module of ours with a socket's descriptor and `arguments`; returns it and the other end.

    Args:
        path: where it looks for packages besides ours.
    """
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, str(theirs.fileno()), *arguments],
            pass_fds=[theirs.fileno()],
            process_group=0,  # Ctrl-C in a terminal is for the process that starts it alone
            stdin=subprocess.DEVNULL,
            env={
                **env,
                "PYTHONPATH": os.pathsep.join([str(IMPORT_ROOT), *filter(None, path)]),
            },
        )
    return process, ours


def end_process(process: subprocess.Popen[bytes], connection: socket.socket) -> None:
    """It ends, with all that it forked, when its socket closes; by force where it must be."""
    connection.close()
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with suppress(
            subprocess.TimeoutExpired
        ):  # killed already; only the kernel can keep it now
            process.wait(END_SECONDS)
