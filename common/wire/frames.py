"""Length-prefixed bytes over a local socket, with file descriptors beside them."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Sequence

_HEADER = 8
_MOST_DESCRIPTORS = 4


class Gone(ConnectionError):
    """The other end has closed, or its process has ended."""


def send_frame(connection: socket.socket, payload: bytes, descriptors: Sequence[int] = ()) -> None:
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
        header, descriptors, _, _ = socket.recv_fds(connection, _HEADER, _MOST_DESCRIPTORS)
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
