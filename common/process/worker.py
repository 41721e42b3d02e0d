"""Worker processes: how one is started and ended, and the messages it answers.

    program  --socket, arrays in shared memory-->  worker process

A message is a few JSON values, a content, and at most one piece of shared memory
that holds the content's arrays.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from threading import Thread
from typing import TYPE_CHECKING, Any, NoReturn

from wardround.common.errors import ProcessGone
from wardround.common.places import IMPORT_ROOT
from wardround.common.process.frames import receive_frame, send_frame
from wardround.common.process.shared_memory import bytes_of
from wardround.common.wire.arrays import dump_content, load_content, put_arrays
from wardround.common.wire.flat_arrays import read_arrays

if TYPE_CHECKING:
    from flwr.app import RecordDict

END_SECONDS = 10.0
"""Time that a process gets to end by itself."""

Facts = dict[str, Any]
"""JSON values of a message. `table` lists the arrays in its shared memory."""


def send_message(
    connection: socket.socket,
    facts: Facts,
    content: RecordDict,
    memory: int | None = None,
) -> None:
    """Send a message.

    Args:
        content: its arrays are not sent.
        memory: descriptor of the shared memory that holds the arrays, if there are any.

    Raises:
        ProcessGone: the other end has closed.
    """
    descriptors = [] if memory is None else [memory]
    send_frame(connection, dump_content(facts, content), descriptors)


def receive_message(connection: socket.socket) -> tuple[Facts, RecordDict]:
    """Wait for a message. Its arrays are views of the shared memory.

    Raises:
        ProcessGone: the other end has closed.
    """
    payload, descriptors = receive_frame(connection)
    facts, content = load_content(payload)
    for descriptor in descriptors:
        memory = bytes_of(descriptor)
        put_arrays(content, read_arrays(memory, facts["table"]))
        os.close(descriptor)
    return facts, content


def serve(
    connection: socket.socket,
    answer: Callable[[Facts, RecordDict], tuple[Facts, RecordDict, int | None]],
) -> NoReturn:
    """Answer one message after the other, until the other end closes; never return.

    Args:
        answer: the arguments of `send_message`; the memory is closed afterwards.
    """
    with suppress(ProcessGone):
        while True:
            facts, content, memory = answer(*receive_message(connection))
            send_message(connection, facts, content, memory)
            if memory is not None:
                os.close(memory)
            del content  # the memory of its arrays is free while this process waits
    # There is nothing to tidy up, and PyTorch needs long to leave.
    os._exit(0)


def end_with(connection: socket.socket) -> None:
    """End this process as soon as the other end closes, even during training."""

    def wait_and_exit() -> None:
        watch = select.poll()
        watch.register(connection, select.POLLRDHUP | select.POLLHUP | select.POLLERR)
        watch.poll()
        os._exit(0)

    Thread(target=wait_and_exit, daemon=True).start()


def start_process(
    module: str,
    *arguments: str,
    path: Iterable[str],
    env: Mapping[str, str] = os.environ,
) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Run one of our modules with a socket's descriptor and `arguments`.

    Args:
        path: folders, besides ours, in which the process looks for packages.

    Returns:
        The process, and the other end of its socket.
    """
    ours, theirs = socket.socketpair()
    folders = [str(IMPORT_ROOT), *filter(None, path)]
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, str(theirs.fileno()), *arguments],
            pass_fds=[theirs.fileno()],
            process_group=0,  # Ctrl-C in a terminal is for the starting process alone
            stdin=subprocess.DEVNULL,
            env={**env, "PYTHONPATH": os.pathsep.join(folders)},
        )
    return process, ours


def end_process(process: subprocess.Popen[bytes], connection: socket.socket) -> None:
    """End a process, and all that it forked, by closing its socket; else by force."""
    connection.close()
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        # It is killed already; only the kernel can keep it now.
        with suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)
