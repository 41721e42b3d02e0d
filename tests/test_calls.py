"""Calls of sites over gRPC and TLS: who is served, how many calls at a time, how long."""

from __future__ import annotations

import base64
import socket
import ssl
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto import fleet_pb2 as fleet
from flwr.proto import message_pb2 as wire
from flwr.proto.fleet_pb2_grpc import FleetStub, add_FleetServicer_to_server
from flwr.proto.node_pb2 import Node

from tests.e2e.processes import wait_for
from wardround.client.node.connection import _CALL_SECONDS, _IN_FLIGHT, _PIECE_SECONDS
from wardround.common.credentials import new_key, pem_of, public_line
from wardround.server.deployment import calls
from wardround.server.deployment.calls import (
    CALLS_PER_KEY,
    METHODS,
    MOST_PLACES,
    Caller,
    KnownNodes,
    Places,
)
from wardround.server.deployment.certificates import (
    Pair,
    issue_server_certificate,
    make_authority,
)

SECONDS = 3.0
"""Time that the body of a call may take in these tests."""
CONNECTIONS = 6
_METHOD = "/flwr.proto.Fleet/PullMessages"


class Key:
    """The key of a site. The server may know it or not."""

    def __init__(self, node_id: int) -> None:
        self.node_id, self._private = node_id, new_key("node")
        self.public = pem_of(public_line(self._private))

    def headers(self, **changed: Any) -> list[tuple[str, Any]]:
        """Return the headers of a call with this key."""
        now = datetime.now(UTC).isoformat()
        private: Any = self._private
        values = {
            "flwr-public-key-bin": self.public,
            "flwr-timestamp": now,
            "flwr-signature-bin": private.sign(now.encode(), ec.ECDSA(hashes.SHA256())),
        }
        return list((values | changed).items())


@dataclass
class Door:
    """A server with two registered keys, whose answers have any size."""

    port: int
    authority: bytes
    known: KnownNodes
    keys: list[Key]
    counted: Counter[tuple[str, str]] = field(default_factory=Counter)

    def channel(self) -> Any:
        """Return a new connection, which shares nothing with others."""
        credentials = grpc.ssl_channel_credentials(self.authority)
        unshared = [("grpc.use_local_subchannel_pool", 1)]
        return grpc.secure_channel(
            f"localhost:{self.port}", credentials, options=unshared
        )

    def call(
        self, name: str, request: Any, key: Key, seconds: float = 10.0
    ) -> tuple[str, str]:
        """Return the status of a call, and the reason."""
        with self.channel() as channel:
            try:
                getattr(FleetStub(channel), name)(
                    request, timeout=seconds, metadata=key.headers()
                )
            except grpc.RpcError as error:
                return error.code().name, error.details()
        return "OK", ""

    def pull(self, key: Key) -> tuple[str, str]:
        """Make an honest call. Return its status and the reason."""
        request = fleet.PullMessagesRequest(node=Node(node_id=key.node_id))
        return self.call("PullMessages", request, key)

    def num_taken(self) -> int:
        """Return the number of calls that are being served."""
        return len(self.known.places._taken)


class Answers:
    """A servicer that accepts every call."""

    num_bytes = 0

    def __getattr__(self, name: str) -> Any:
        """Answer any other method."""
        return lambda request, context: fleet.DeactivateNodeResponse()

    def PullMessages(self, request: Any, context: Any) -> Any:
        """Answer without messages."""
        return fleet.PullMessagesResponse()

    def PullObject(self, request: Any, context: Any) -> Any:
        """Answer with `num_bytes` bytes."""
        return wire.PullObjectResponse(object_content=bytes(self.num_bytes))


@pytest.fixture
def door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Door]:
    """Yield a running server."""
    quick = {
        name: replace(row, body_seconds=SECONDS, answer_seconds=SECONDS)
        for name, row in METHODS.items()
    }
    monkeypatch.setattr(calls, "METHODS", quick)
    monkeypatch.setattr(calls, "_LOOK_SECONDS", 0.1)
    monkeypatch.setattr(calls, "MOST_CONNECTIONS", CONNECTIONS)
    authority, server_pair = (
        Pair(tmp_path / f"{name}.crt", tmp_path / f"{name}.key") for name in "as"
    )
    make_authority(authority)
    issue_server_certificate(authority, server_pair, ["localhost"])
    keys = [Key(7), Key(8)]
    counted: Counter[tuple[str, str]] = Counter()

    class Registry:
        def caller(self, key: bytes) -> Caller | None:
            found = {
                one.public: Caller(f"site {one.node_id}", one.node_id) for one in keys
            }
            return found.get(key)

        def num_keys(self) -> int:
            return len(keys)

        def count(self, name: str, reason: str) -> None:
            counted[name, reason] += 1

    known = KnownNodes(Registry())
    certificates = (
        b"",
        server_pair.certificate.read_bytes(),
        server_pair.key.read_bytes(),
    )
    parts = (Answers(), add_FleetServicer_to_server)
    server = calls.bounded_server(parts, "127.0.0.1:0", certificates, [known])
    port = int(server.bound_address.rpartition(":")[2])
    server.start()
    try:
        yield Door(port, authority.certificate.read_bytes(), known, keys, counted)
    finally:
        server.stop(0).wait()


def open_calls(channel: Any, key: Key, number: int) -> list[Any]:
    """Begin calls that send no body. Return gRPC's futures."""
    never = threading.Event()

    def nothing() -> Iterator[bytes]:
        never.wait(60)
        yield b""

    method = channel.stream_unary(_METHOD)
    return [method.future(nothing(), metadata=key.headers()) for _ in range(number)]


def test_calls_without_a_body_take_only_places_of_their_key_for_a_short_time(
    door: Door,
) -> None:
    mallory, honest = door.keys
    with door.channel() as channel:
        opened = open_calls(channel, mallory, 3 * CALLS_PER_KEY)
        ends = Counter(wait_to_end(one) for one in opened)
        assert ends["RESOURCE_EXHAUSTED"] == 2 * CALLS_PER_KEY
        # The server has ended all calls.
        assert ends.total() == 3 * CALLS_PER_KEY
    # The caller learns of the end a moment before the server has freed the place.
    wait_for(lambda: door.num_taken() == 0, SECONDS, "the places to be free")
    assert door.counted["site 7", "too_many_calls"] == 2 * CALLS_PER_KEY
    assert door.counted["site 7", "too_slow"] == CALLS_PER_KEY
    assert door.pull(mallory) == ("OK", "")
    assert door.pull(honest) == ("OK", "")


def wait_to_end(call: Any) -> str:
    """Return the status of a call, which ends soon after its time."""
    error: Any = call.exception(timeout=SECONDS + 20)
    return str(error.code().name)


def test_a_key_whose_places_are_all_taken_does_not_hinder_others(door: Door) -> None:
    mallory, honest = door.keys
    with door.channel() as channel:
        opened = open_calls(channel, mallory, 4 * CALLS_PER_KEY)
        wait_for(
            lambda: door.num_taken() == CALLS_PER_KEY, SECONDS, "the calls to be taken"
        )
        assert door.pull(mallory) == ("RESOURCE_EXHAUSTED", "too_many_calls")
        assert door.pull(honest) == ("OK", "")
        for one in opened:
            one.cancel()
        wait_for(lambda: door.num_taken() == 0, SECONDS, "the places to be free")
    assert door.pull(mallory) == ("OK", "")
    # A caller who hangs up has not sent a malformed body.
    assert door.counted["site 7", "malformed"] == 0


def test_an_answer_that_is_not_read_takes_a_place_for_a_short_time(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller gives the server no window to send it in."""
    monkeypatch.setattr(Answers, "num_bytes", 5 * 2**20)
    mallory, honest = door.keys
    with SlowReader(door, mallory) as reader:
        for _ in range(CALLS_PER_KEY):
            reader.ask(
                "PullObject", wire.PullObjectRequest(node=Node(node_id=mallory.node_id))
            )
        wait_for(lambda: door.num_taken() == CALLS_PER_KEY, 5, "the calls to be taken")
        assert door.pull(mallory) == ("RESOURCE_EXHAUSTED", "too_many_calls")
        assert door.pull(honest) == ("OK", "")
        wait_for(lambda: door.num_taken() == 0, SECONDS + 5, "the calls to be ended")
        assert door.counted["site 7", "too_slow"] == CALLS_PER_KEY


class SlowReader:
    """A caller that speaks enough HTTP/2 to ask, and lets no answer through."""

    _WINDOW = b"\x00\x04" + struct.pack(">I", 0)  # the initial window size is 0

    def __init__(self, door: Door, key: Key) -> None:
        connection = greeted(door)
        assert connection is not None
        self._socket = connection
        self._key, self._stream = key, 1
        self._socket.sendall(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(4, 0, 0, self._WINDOW)
        )

    def __enter__(self) -> SlowReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ask(self, name: str, request: Any) -> None:
        """Make a call with its body. Its answer is not read."""
        headers = [
            (":method", "POST"),
            (":scheme", "https"),
            (":path", f"/flwr.proto.Fleet/{name}"),
            (":authority", "localhost"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            *self._key.headers(),
        ]
        block = b"".join(_header(name, value) for name, value in headers)
        body = request.SerializeToString()
        message = b"\x00" + struct.pack(">I", len(body)) + body
        self._socket.sendall(
            _frame(1, 4, self._stream, block) + _frame(0, 1, self._stream, message)
        )
        self._stream += 2


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Return a frame of HTTP/2 (RFC 9113, section 4.1)."""
    return (
        struct.pack(">I", len(payload))[1:]
        + struct.pack(">BBI", kind, flags, stream)
        + payload
    )


def _header(name: str, value: str | bytes) -> bytes:
    """Return a header field that is not indexed (RFC 7541, section 6.2.2)."""
    if isinstance(value, bytes):
        value = base64.b64encode(value).decode()
    return b"\x00" + _text(name.encode()) + _text(value.encode())


def _text(text: bytes) -> bytes:
    """Return a string without Huffman coding (RFC 7541, sections 5.1 and 5.2)."""
    if len(text) < 127:
        return bytes([len(text)]) + text
    left, coded = len(text) - 127, b"\x7f"
    while left >= 128:
        coded += bytes([left % 128 + 128])
        left //= 128
    return coded + bytes([left]) + text


@pytest.mark.parametrize("name", ["RegisterNode", "UnregisterNode", "GetRun", "GetFab"])
def test_methods_that_no_site_needs_are_not_offered(door: Door, name: str) -> None:
    key = door.keys[0]
    with door.channel() as channel:
        method = channel.unary_unary(f"/flwr.proto.Fleet/{name}")
        with pytest.raises(grpc.RpcError) as error:
            method(b"", timeout=10, metadata=key.headers())
    assert error.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert door.counted["site 7", "not_offered"] == 1


def test_a_body_that_is_too_large_or_no_message_is_refused(door: Door) -> None:
    """Millions of empty parts in a message of megabytes would take a hundred times its size."""
    key = door.keys[0]
    with door.channel() as channel:
        for name, body in (
            ("PullMessages", b"\x12\x00" * 3000),
            ("PushMessages", b"\x12\x00" * 1_000_000),
            ("PullMessages", b"\xff" * 10),
        ):
            method = channel.unary_unary(f"/flwr.proto.Fleet/{name}")
            with pytest.raises(grpc.RpcError) as error:
                method(body, timeout=10, metadata=key.headers())
            assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
            assert error.value.details() == "malformed"
        empty = channel.stream_unary(_METHOD)
        with pytest.raises(grpc.RpcError) as error:
            empty(iter(()), timeout=10, metadata=key.headers())
        assert error.value.details() == "no_body"
    assert door.counted["site 7", "malformed"] == 3


def test_a_caller_speaks_only_for_itself_and_signs_the_current_time(door: Door) -> None:
    one, other = door.keys
    stranger = Key(9)
    asks = fleet.PullMessagesRequest(node=Node(node_id=other.node_id))
    assert door.call("PullMessages", asks, one) == ("UNAUTHENTICATED", "other_node")
    activates = fleet.ActivateNodeRequest(public_key=other.public)
    assert door.call("ActivateNode", activates, one) == (
        "UNAUTHENTICATED",
        "other_node",
    )
    leaves = fleet.DeactivateNodeRequest(node_id=other.node_id)
    assert door.call("DeactivateNode", leaves, one) == ("UNAUTHENTICATED", "other_node")
    # A site sends a request without a node to see if it is registered.
    empty = fleet.PullMessagesRequest()
    assert door.call("PullMessages", empty, one) == ("UNAUTHENTICATED", "other_node")
    assert door.pull(stranger) == ("UNAUTHENTICATED", "unknown_key")
    with door.channel() as channel:
        for changed, why in (
            ({"flwr-timestamp": datetime.now(UTC).isoformat() + "0"}, "unknown_key"),
            ({"flwr-timestamp": "x" * 2000}, "unknown_key"),
            ({"flwr-signature-bin": b"x"}, "unknown_key"),
        ):
            with pytest.raises(grpc.RpcError) as error:
                channel.unary_unary(_METHOD)(
                    b"", timeout=10, metadata=one.headers(**changed)
                )
            assert error.value.details() == why
    assert door.counted["site 7", "other_node"] == 3
    assert door.counted["", "unknown_key"] == 4


def test_connections_beyond_the_limit_are_refused(door: Door) -> None:
    """Each costs a file and memory before the caller has identified itself."""
    opened = [greeted(door) for _ in range(2 * CONNECTIONS)]
    assert sum(one is not None for one in opened) == CONNECTIONS
    assert door.pull(door.keys[0])[0] == "UNAVAILABLE"
    for one in opened:
        if one is not None:
            one.close()
    wait_for(
        lambda: door.pull(door.keys[0]) == ("OK", ""), 20, "a connection to be free"
    )


def greeted(door: Door) -> ssl.SSLSocket | None:
    """Return a connection after its TLS handshake; None if the server refuses it."""
    context = ssl.create_default_context(cadata=door.authority.decode())
    context.set_alpn_protocols(["h2"])
    plain = socket.create_connection(("127.0.0.1", door.port), timeout=10)
    try:
        return context.wrap_socket(plain, server_hostname="localhost")
    except OSError:
        plain.close()
        return None


class Context:
    """The context of a call that goes on."""

    def add_callback(self, callback: Any) -> bool:
        """Accept the callback. It is never called."""
        return True


@pytest.mark.parametrize(
    ("num_keys", "per_key"),
    [(0, 8), (1, 8), (100, 8), (128, 8), (129, 7), (200, 5), (1024, 1), (5000, 1)],
)
def test_each_key_has_its_own_places_for_any_number_of_keys(
    num_keys: int, per_key: int
) -> None:
    places = Places(lambda: num_keys, lambda name: None)
    assert places.per_key() == per_key
    if num_keys <= MOST_PLACES:
        assert num_keys * per_key <= MOST_PLACES
    for node_id in range(min(num_keys, 200)):
        caller = Caller("", node_id)
        taken = [places.take(caller, Context(), 1.0) for _ in range(per_key + 1)]
        assert [place is not None for place in taken] == [True] * per_key + [False]


def test_a_call_that_has_ended_takes_no_place() -> None:
    class Over(Context):
        def add_callback(self, callback: Any) -> bool:
            return False

    places = Places(lambda: 1, lambda name: None)
    for _ in range(20):
        assert places.take(Caller("", 7), Over(), 1.0) is not None
    assert places._taken == set()


def test_a_site_that_sends_pieces_has_enough_places() -> None:
    assert _IN_FLIGHT + 1 < CALLS_PER_KEY


def test_the_server_waits_at_least_as_long_as_a_site() -> None:
    """The server does not end a piece for which its site still waits."""
    for name, method in METHODS.items():
        assert method.body_seconds >= _CALL_SECONDS, name
        assert method.answer_seconds >= _CALL_SECONDS, name
    for name in ("PushMessages", "PushObject"):
        assert METHODS[name].body_seconds >= _PIECE_SECONDS
    assert METHODS["PullObject"].answer_seconds >= _PIECE_SECONDS
