"""A TCP relay on loopback. It counts the bytes of a connection, and cuts it like a network."""

from __future__ import annotations

import selectors
import socket
import threading
from types import TracebackType

_CHUNK = 1 << 20
_TICK = 0.05


class Relay:
    """Listens on a free port and passes everything on to `target`; use it as a context.

    While it is cut, nothing passes and nothing is closed. This is the hard case: no side can tell
    a dead network from a quiet one.
    """

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._door = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._door.getsockname()[1]
        self.sent, self.received = 0, 0
        """Bytes from the dialling side to the target, and back."""
        self._is_cut = threading.Event()
        self._is_over = threading.Event()
        self._peers: dict[socket.socket, socket.socket] = {}
        self._dialled: set[socket.socket] = set()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def cut(self) -> None:
        """Let nothing through from now on."""
        self._is_cut.set()

    def mend(self) -> None:
        """Let everything through again, what has waited first."""
        self._is_cut.clear()

    def __enter__(self) -> Relay:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_over.set()
        self._thread.join(10)
        for open_socket in (self._door, *self._peers):
            open_socket.close()

    def _serve(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._door, selectors.EVENT_READ)
            while not self._is_over.is_set():
                if self._is_cut.is_set():
                    self._is_over.wait(_TICK)
                    continue
                for key, _ in selector.select(_TICK):
                    assert isinstance(key.fileobj, socket.socket)
                    if key.fileobj is self._door:
                        self._connect(selector)
                    elif key.fileobj in self._peers:
                        self._pass_on(key.fileobj, selector)

    def _connect(self, selector: selectors.BaseSelector) -> None:
        dialled, _ = self._door.accept()
        try:
            answered = socket.create_connection(self._target, 5)
        except OSError:
            dialled.close()
            return
        for one, other in ((dialled, answered), (answered, dialled)):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            one.settimeout(30)
            self._peers[one] = other
            selector.register(one, selectors.EVENT_READ)
        self._dialled.add(dialled)

    def _pass_on(self, source: socket.socket, selector: selectors.BaseSelector) -> None:
        target = self._peers[source]
        try:
            data = source.recv(_CHUNK)
            target.sendall(data)
        except OSError:
            data = b""
        if source in self._dialled:
            self.sent += len(data)
        else:
            self.received += len(data)
        if data:
            return
        for one in (source, target):
            selector.unregister(one)
            self._peers.pop(one)
            self._dialled.discard(one)
            one.close()
