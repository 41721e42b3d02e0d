"""Frames between two processes: bytes with their length before them, and descriptors."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from wardround.common.errors import ProcessGone

_HEADER_BYTES = 8
_PIECE_BYTES = 1 << 20
_MAX_DESCRIPTORS = 4


def send_frame(
    connection: socket.socket, payload: bytes, descriptors: Sequence[int] = ()
) -> None:
    """Send one frame. Raises ProcessGone."""
    length = len(payload)
    header = length.to_bytes(_HEADER_BYTES, "little")
    try:
        if descriptors:
            socket.send_fds(connection, [header], list(descriptors))
        else:
            connection.sendall(header)
        connection.sendall(payload)
    except OSError as error:
        raise ProcessGone(str(error)) from None


def receive_frame(connection: socket.socket) -> tuple[bytes, list[int]]:
    """Wait for one frame. Return its payload and the descriptors sent with it.

    Raises:
        ProcessGone: the other end has closed.
    """
    try:
        header, descriptors, _, _ = socket.recv_fds(
            connection, _HEADER_BYTES, _MAX_DESCRIPTORS
        )
        missing = _HEADER_BYTES - len(header)
        header += _receive_exactly(connection, missing)
        length = int.from_bytes(header, "little")
        payload = _receive_exactly(connection, length)
        return payload, list(descriptors)
    except OSError as error:
        raise ProcessGone(str(error)) from None


def _receive_exactly(connection: socket.socket, length: int) -> bytes:
    """Receive `length` bytes. Raises ProcessGone if the stream ends first."""
    received = bytearray()
    while len(received) < length:
        missing = length - len(received)
        piece = connection.recv(min(missing, _PIECE_BYTES))
        if not piece:
            raise ProcessGone("the stream ended")
        received += piece
    return bytes(received)
