"""Processes of one machine: started with a socket, and sharing memory.

Frames are length-prefixed bytes with file descriptors beside them. Shared memory is nameless, and gone with
the last process that holds it.
"""

from __future__ import annotations

import mmap
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress

import numpy as np

from wardround.common.places import IMPORT_ROOT

END_SECONDS = 10.0
"""What a process has to end by itself."""
_HEADER = 8
_MOST_DESCRIPTORS = 4


class Gone(ConnectionError):
    """The other end has closed, or its process has ended."""


def send_frame(
    connection: socket.socket, payload: bytes, descriptors: Sequence[int] = ()
) -> None:
    """Send one frame. Raises Gone."""
    header = len(payload).to_bytes(_HEADER, "little")
    try:
        if descriptors:
            socket.send_fds(connection, [header], list(descriptors))
        else:
            connection.sendall(header)
        connection.sendall(payload)
    except OSError as error:
        raise Gone(str(error)) from None


def receive_frame(connection: socket.socket) -> tuple[bytes, list[int]]:
    """Wait for one frame; returns its payload and the descriptors sent with it. Raises Gone."""
    try:
        header, descriptors, _, _ = socket.recv_fds(
            connection, _HEADER, _MOST_DESCRIPTORS
        )
        header += _exactly(connection, _HEADER - len(header))
        return _exactly(connection, int.from_bytes(header, "little")), list(descriptors)
    except OSError as error:
        raise Gone(str(error)) from None


def _exactly(connection: socket.socket, length: int) -> bytes:
    """Raises Gone where the stream ends first."""
    received = bytearray()
    while len(received) < length:
        piece = connection.recv(min(length - len(received), 1 << 20))
        if not piece:
            raise Gone("the stream ended")
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


Table = list[tuple[str, str, int]]
"""Name, type and length of flat arrays that lie one after the other, each on a 64-byte boundary."""


def create(num_bytes: int) -> int:
    """A file descriptor of fresh memory. It is no file: nothing stays behind, not even after kill -9."""
    fd = os.memfd_create("wardround")
    os.ftruncate(fd, num_bytes)
    return fd


def memory_for(arrays: dict[str, np.ndarray]) -> tuple[int, Table]:
    """Flat arrays in fresh memory: its descriptor, and what lies in it."""
    fd = create(max(1, table_bytes(table_of(arrays))))
    return fd, write_arrays(bytes_of(fd), arrays)


def bytes_of(fd: int) -> np.ndarray:
    """The memory behind `fd`, (n,) uint8; it stays for as long as the array does."""
    return np.frombuffer(mmap.mmap(fd, 0), dtype=np.uint8)


def write_arrays(memory: np.ndarray, arrays: dict[str, np.ndarray]) -> Table:
    """Put flat arrays into `memory`, (n,) uint8; what lies there already is not copied."""
    start = 0
    for array in arrays.values():
        place = memory[start : start + array.nbytes]
        if array.nbytes and place.ctypes.data != array.ctypes.data:
            place[:] = array.view(np.uint8)
        start += _aligned(array.nbytes)
    return table_of(arrays)


def table_of(arrays: dict[str, np.ndarray]) -> Table:
    """What lies in a memory that holds these flat arrays."""
    return [(name, str(array.dtype), len(array)) for name, array in arrays.items()]


def read_arrays(memory: np.ndarray, table: Table) -> dict[str, np.ndarray]:
    """Inverse of `write_arrays`; the arrays are views."""
    arrays, start = {}, 0
    for name, kind, length in table:
        end = start + length * np.dtype(kind).itemsize
        arrays[name] = memory[start:end].view(kind)
        start = _aligned(end)
    return arrays


def padded_arrays(arrays: dict[str, np.ndarray]) -> Iterator[memoryview | bytes]:
    """The bytes of flat arrays as `read_arrays` reads them, piece by piece."""
    for array in arrays.values():
        yield array.view(np.uint8).data
        yield bytes(_aligned(array.nbytes) - array.nbytes)


def table_bytes(table: Table) -> int:
    """Of the memory that what a table lists takes."""
    return sum(_aligned(length * np.dtype(kind).itemsize) for _, kind, length in table)


def _aligned(num_bytes: int) -> int:
    """So many bytes, up to the next boundary."""
    return -(-num_bytes // 64) * 64
