"""Limits on calls to the server: which callers and methods, how many at a time, and for how long.

A place is one call in progress, from the check of its caller until its answer has been taken. The
arithmetic:

- A registered key has `Places.per_key` places: CALLS_PER_KEY, or fewer if all keys together would
  need more than MOST_PLACES. No key can use the places of another key.
- The thread pool has MOST_PLACES threads and SPARE_THREADS more. The spare threads serve calls that
  are refused before their body is read: from an unknown key, or above the limit. They never wait.
- A place needs at most 18 MiB, so a key that attacks costs 144 MiB. Either it holds a message three
  times (MOST_MESSAGE_BYTES as received, as bytes and parsed), or a parsed message of _TREE_BYTES
  that consists of empty parts, where two bytes become 60.

For a method with a single request, gRPC holds a thread of the pool until the whole body has
arrived, without a time limit, before any check of the caller. So every method is served here as one
with a stream of requests: then gRPC reads a body only when the handler asks for it.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from math import inf
from operator import attrgetter
from typing import Any, NamedTuple, NoReturn, Protocol

import grpc  # type: ignore[import-untyped]
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from flwr.common.constant import (
    PUBLIC_KEY_HEADER,
    SIGNATURE_HEADER,
    SYSTEM_TIME_TOLERANCE,
    TIMESTAMP_HEADER,
    TIMESTAMP_TOLERANCE,
)
from grpc import StatusCode

from wardround.common.wire.arrays import PIECE_BYTES
from wardround.server.deployment.trees import MOST_OBJECTS

MOST_MESSAGE_BYTES = PIECE_BYTES + 2**20
CALLS_PER_KEY = 8
"""Calls in progress at the same time. A site's program makes five: four objects and a heartbeat."""
MOST_PLACES = 1024
SPARE_THREADS = 64
MOST_CONNECTIONS = 768
"""Limit for all callers together: below the 1,024 files that a process may open by default."""
_STREAMS = 32  # calls over one connection
_API = "/flwr.proto.Fleet/"
_SMALL_BYTES = 4096
_TREE_BYTES = 72 * MOST_OBJECTS  # of the message that names an answer's objects
# As long as a site's program waits for a call, or for an object.
_SECONDS = 30.0
_PIECE_SECONDS = 180.0
_REMEMBERED = 4096
_LONGEST_TIME_STAMP = 64
_LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class Method:
    """The limits of a method of the Fleet API."""

    most_bytes: int = _SMALL_BYTES
    """Limit on the size of the body."""
    body_seconds: float = _SECONDS
    """Time for the whole body to arrive, after the check of the caller."""
    answer_seconds: float = _SECONDS
    """Time from then on until the answer has been taken."""
    sender: Callable[[Any], object] = attrgetter("node.node_id")
    """Returns the sender that a request names: a node's id, or its public key."""


METHODS = {
    "ActivateNode": Method(sender=attrgetter("public_key")),
    "DeactivateNode": Method(sender=attrgetter("node_id")),
    "SendNodeHeartbeat": Method(),
    "PullMessages": Method(),
    "PullObject": Method(answer_seconds=_PIECE_SECONDS),
    "PushMessages": Method(_TREE_BYTES, body_seconds=_PIECE_SECONDS),
    "PushObject": Method(MOST_MESSAGE_BYTES, body_seconds=_PIECE_SECONDS),
    "ConfirmMessageReceived": Method(),
}
"""The methods that a site's program calls. The server refuses the other four of Flower's API:
RegisterNode and UnregisterNode, because the coordinator registers sites; GetRun and GetFab, with
which Flower's own nodes fetch code to run. Sites of this program never fetch code."""


@dataclass(frozen=True)
class Caller:
    """A registered site's node."""

    name: str
    node_id: int


class Registry(Protocol):
    """The registered keys."""

    def caller(self, key: bytes) -> Caller | None:
        """Return the owner of this public key (PEM); None if it is not registered."""

    def num_keys(self) -> int:
        """Return the number of registered keys."""

    def count(self, name: str, reason: str) -> None:
        """Count a refused call; `name` is empty for an unknown key."""


@dataclass(eq=False)
class Place:
    """One call in progress."""

    caller: Caller
    context: Any
    """gRPC's context of the call."""
    until: float
    """Time (`time.monotonic()`) at which the call is cancelled."""


class Places:
    """The calls in progress: a limited number for each key, each for a limited time."""

    def __init__(
        self, num_keys: Callable[[], int], note_slow: Callable[[str], None]
    ) -> None:
        """Args:
        num_keys: returns the number of keys that are registered now.
        note_slow: called with the caller's name if a call is cancelled because its time is over.
        """
        self._num_keys = num_keys
        self._note_slow = note_slow
        self._taken: set[Place] = set()
        self._num: Counter[int] = Counter()  # by node
        self._lock = threading.Lock()

    def per_key(self) -> int:
        """Return the number of places that each key has now."""
        num_keys = max(1, self._num_keys())
        even_share = MOST_PLACES // num_keys
        return max(1, min(CALLS_PER_KEY, even_share))

    def take(self, caller: Caller, context: Any, seconds: float) -> Place | None:
        """Take a place until gRPC has finished the call; None if all places of the caller are in
        use."""
        most = self.per_key()
        until = time.monotonic() + seconds
        place = Place(caller, context, until)
        with self._lock:
            num_taken = self._num[caller.node_id]
            if num_taken >= most:
                return None
            self._num[caller.node_id] += 1
            self._taken.add(place)
        # Freed by gRPC, not by our handler: an answer that is not taken needs memory until the call
        # ends.
        free = partial(self._free, place)
        is_open = context.add_callback(free)
        if not is_open:
            free()
        return place

    def _free(self, place: Place) -> None:
        with self._lock:
            if place not in self._taken:
                return
            self._taken.remove(place)
            node_id = place.caller.node_id
            self._num[node_id] -= 1
            if not self._num[node_id]:
                del self._num[node_id]

    def end_the_slow(self) -> None:
        """Cancel the calls whose time is over."""
        with self._lock:
            now = time.monotonic()
            slow = [place for place in self._taken if place.until <= now]
        for place in slow:
            place.until = inf
            self._note_slow(place.caller.name)
            place.context.cancel()

    def watch(self) -> None:
        """Start a thread that cancels slow calls."""

        def run() -> None:
            while True:
                time.sleep(_LOOK_SECONDS)
                self.end_the_slow()

        thread = threading.Thread(target=run, name="places")
        thread.daemon = True
        thread.start()


class _SignedTime(NamedTuple):
    """A node's key with the time that it signed, from the headers of a call."""

    key: bytes
    """Public key, PEM."""
    signature: bytes
    """Signature of the time with that key."""
    time: str

    @classmethod
    def of(cls, headers: dict[str, Any]) -> _SignedTime | None:
        """Read the headers; None if one is missing or malformed."""
        names = (PUBLIC_KEY_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER)
        values = map(headers.get, names)
        found = cls(*values)  # type: ignore[arg-type]
        if not isinstance(found.key, bytes):
            return None
        if not isinstance(found.signature, bytes):
            return None
        if not isinstance(found.time, str):
            return None
        if len(found.time) > _LONGEST_TIME_STAMP:
            return None
        return found

    def is_recent(self) -> bool:
        """Return True if the time is close to now."""
        try:
            signed_at = datetime.fromisoformat(self.time)
            now = datetime.now(UTC)
            ago = now - signed_at
        except (ValueError, TypeError, OverflowError):
            return False
        least = timedelta(seconds=-SYSTEM_TIME_TOLERANCE)
        most = timedelta(seconds=TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE)
        return least < ago < most


class KnownNodes(grpc.ServerInterceptor):  # type: ignore[misc]
    """Lets registered nodes call the methods they need. Of other callers only the headers are
    read."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._seen: set[_SignedTime] = set()

        def note_slow(name: str) -> None:
            registry.count(name, "too_slow")

        self.places = Places(registry.num_keys, note_slow)

    def intercept_service(
        self, continuation: Callable[[Any], Any], details: Any
    ) -> Any:
        """Serve each method as one with a stream of requests, and read one request of it."""
        handler = continuation(details)
        if handler is None or handler.unary_unary is None:
            return None
        serve = partial(self._serve, details, handler)
        return grpc.stream_unary_rpc_method_handler(
            serve, response_serializer=handler.response_serializer
        )

    def _serve(
        self, details: Any, handler: Any, bodies: Iterator[bytes], context: Any
    ) -> Any:
        """Check the caller, then take a place, and only then read the body."""
        headers = dict(details.invocation_metadata)
        caller = self._authenticate(headers, context)
        name = caller.name
        method_name = str(details.method).removeprefix(_API)
        method = METHODS.get(method_name)
        if method is None:
            self._refuse(context, name, "not_offered", StatusCode.UNIMPLEMENTED)
        place = self.places.take(caller, context, method.body_seconds)
        if place is None:
            self._refuse(context, name, "too_many_calls", StatusCode.RESOURCE_EXHAUSTED)
        body = next(bodies, None)
        if body is None:  # the caller has hung up or sent no body, or its time is over
            self._refuse(context, None, "no_body", StatusCode.INVALID_ARGUMENT)
        now = time.monotonic()
        place.until = now + method.answer_seconds
        request = _parsed(body, method, handler.request_deserializer)
        if request is None:
            self._refuse(context, name, "malformed", StatusCode.INVALID_ARGUMENT)
        sender = method.sender(request)
        key = headers[PUBLIC_KEY_HEADER]
        own_names = (caller.node_id, key)
        if sender not in own_names:
            # A site that checks its connection before it joins names no node. That is not counted.
            counted = name if sender else None
            self._refuse(context, counted, "other_node")
        return handler.unary_unary(request, context)

    def _authenticate(self, headers: dict[str, Any], context: Any) -> Caller:
        """Do Flower's node authentication: a registered key has signed a recent time."""
        signed = _SignedTime.of(headers)
        if signed is None:
            self._refuse(context, "", "unknown_key")
        caller = self._registry.caller(signed.key)
        if caller is None or not self._is_valid(signed):
            self._refuse(context, "", "unknown_key")
        if not signed.is_recent():
            self._refuse(context, caller.name, "wrong_time")
        return caller

    def _is_valid(self, signed: _SignedTime) -> bool:
        """Return True if the key has signed the time. Valid signatures are remembered for a
        while."""
        if signed in self._seen:
            return True
        try:
            public: Any = load_pem_public_key(signed.key)
            written = signed.time.encode("ascii")
            algorithm = ec.ECDSA(hashes.SHA256())
            public.verify(signed.signature, written, algorithm)
        except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError):
            return False
        if len(self._seen) >= _REMEMBERED:
            self._seen = set()
        self._seen.add(signed)
        return True

    def _refuse(
        self,
        context: Any,
        name: str | None,
        reason: str,
        code: Any = StatusCode.UNAUTHENTICATED,
    ) -> NoReturn:
        """Count and abort a call.

        Args:
            name: the caller's; "" if the key is unknown; None does not count the call.
        """
        if name is not None:
            self._registry.count(name, reason)
        context.abort(code, reason)
        raise AssertionError("abort raises")


def _parsed(body: bytes, method: Method, parse: Callable[[bytes], Any]) -> Any:
    """Return the request in a body; None if it is malformed or too large."""
    if len(body) > method.most_bytes:
        return None
    try:
        return parse(body)
    except Exception:  # an attacker chose the bytes: the parser may raise anything
        return None


def bounded_server(
    servicer_and_add_fn: tuple[Any, Callable[..., None]],
    server_address: str,
    certificates: tuple[bytes, bytes, bytes],
    interceptors: list[Any],
    **_unbounded: Any,
) -> Any:
    """Return a gRPC server over TLS, in place of Flower's. It checks the caller first."""
    options = [
        ("grpc.max_send_message_length", MOST_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MOST_MESSAGE_BYTES),
        ("grpc.max_concurrent_streams", _STREAMS),
        ("grpc.max_allowed_incoming_connections", MOST_CONNECTIONS),
        ("grpc.max_metadata_size", 16 * 1024),
        ("grpc.server_handshake_timeout_ms", 20_000),
        ("grpc.max_connection_idle_ms", 60_000),  # sites send a heartbeat every 22 s
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.so_reuseport", 0),
    ]
    first = [one for one in interceptors if isinstance(one, KnownNodes)]
    others = [one for one in interceptors if one not in first]
    for known_nodes in first:
        known_nodes.places.watch()
    num_threads = MOST_PLACES + SPARE_THREADS
    threads = ThreadPoolExecutor(num_threads, thread_name_prefix="call")
    server = grpc.server(
        threads,
        maximum_concurrent_rpcs=num_threads,
        options=options,
        interceptors=[*first, *others],
    )
    servicer, add = servicer_and_add_fn
    add(servicer, server)
    _, certificate, private_key = certificates
    pair = (private_key, certificate)
    credentials = grpc.ssl_server_credentials([pair])
    port = server.add_secure_port(server_address, credentials)
    host, _, _ = server_address.rpartition(":")
    server.bound_address = f"{host}:{port}"
    return server
