"""Calls at the door: who may make which, how many at a time, and how long each may take.

A place is one call that is being served: from the time its caller is known until its answer is
taken. The arithmetic:

- A registered key has `Places.per_key` places: CALLS_PER_KEY, or fewer if there are so many keys that
  all of them together would need more than MOST_PLACES. No key can take a place of another's.
- The pool of threads has one for each of MOST_PLACES, and SPARE_THREADS more. Those are for calls
  that are refused before their body is read: a stranger's, or one too many. They wait for nothing.
- A place costs 18 MiB at most, so 144 MiB for each key that attacks: three times MOST_MESSAGE_BYTES,
  for the body as it came, the same as bytes, and the message that is made of them; or what is made of
  a message of _TREE_BYTES that holds nothing but empty parts of two bytes, each of which takes 60.

gRPC's own way with a method of one request is to wait on a thread of the pool until the body is
there, however long that takes, before anybody is asked. So here every method is served as one with a
stream of requests: of such a method a body is read when its handler asks for it.
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

from wardround.common.wire.arrays import PIECE_BYTES
from wardround.server.deployment.trees import MOST_OBJECTS

MOST_MESSAGE_BYTES = PIECE_BYTES + 2**20
CALLS_PER_KEY = 8
"""In flight. A site's program makes five: four pieces, and a heartbeat."""
MOST_PLACES = 1024
SPARE_THREADS = 64
MOST_CONNECTIONS = 768
"""Of all callers together: fewer than the 1,024 files that a process may have open by default."""
_STREAMS = 32  # calls over one connection
_API = "/flwr.proto.Fleet/"
_SMALL_BYTES = 4096
_TREE_BYTES = 72 * MOST_OBJECTS  # of the message that names an answer's objects
_SECONDS, _PIECE_SECONDS = (
    30.0,
    180.0,
)  # as long as a site's program waits for a call, or for a piece
_REMEMBERED = 4096
_LONGEST_TIME_STAMP = 64
_LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class Method:
    """What a method of the Fleet API may cost."""

    most_bytes: int = _SMALL_BYTES
    """Of the body."""
    body_seconds: float = _SECONDS
    """Until all of the body is here, from the time the caller is known."""
    answer_seconds: float = _SECONDS
    """From then on, until its answer has been taken."""
    speaks_for: Callable[[Any], object] = attrgetter("node.node_id")
    """Whom a request names as its sender: a node's id, or its public key."""


METHODS = {
    "ActivateNode": Method(speaks_for=attrgetter("public_key")),
    "DeactivateNode": Method(speaks_for=attrgetter("node_id")),
    "SendNodeHeartbeat": Method(),
    "PullMessages": Method(),
    "PullObject": Method(answer_seconds=_PIECE_SECONDS),
    "PushMessages": Method(_TREE_BYTES, body_seconds=_PIECE_SECONDS),
    "PushObject": Method(MOST_MESSAGE_BYTES, body_seconds=_PIECE_SECONDS),
    "ConfirmMessageReceived": Method(),
}
"""All that a site's program calls. Flower's API has four more, which nobody is served: RegisterNode and
UnregisterNode, since the coordinator registers sites; GetRun and GetFab, with which Flower's own nodes fetch
the code that they run, and which a site of ours never does."""


@dataclass(frozen=True)
class Caller:
    """A registered site's node."""

    name: str
    node_id: int


class Registry(Protocol):
    """Who is registered."""

    def caller(self, key: bytes) -> Caller | None:
        """Who has this public key (PEM)."""

    def num_keys(self) -> int:
        """How many are registered."""

    def count(self, name: str, reason: str) -> None:
        """One more call that was refused; `name` is empty for a stranger."""


@dataclass(eq=False)
class Place:
    """One call that is being served."""

    caller: Caller
    context: Any
    """gRPC's."""
    until: float
    """By `time.monotonic()`; then it is ended."""


class Places:
    """The calls that are being served: so many of each key, each for its time."""

    def __init__(
        self, num_keys: Callable[[], int], say_slow: Callable[[str], None]
    ) -> None:
        """Args:
        num_keys: how many are registered now.
        say_slow: is told the name of a caller whose call was ended, since its time was over.
        """
        self._num_keys, self._say_slow = num_keys, say_slow
        self._taken: set[Place] = set()
        self._num: Counter[int] = Counter()  # by node
        self._lock = threading.Lock()

    def per_key(self) -> int:
        """How many places each key has now."""
        return max(1, min(CALLS_PER_KEY, MOST_PLACES // max(1, self._num_keys())))

    def take(self, caller: Caller, context: Any, seconds: float) -> Place | None:
        """A place for a call, until gRPC is done with it; None if the caller has all its places in use."""
        most = self.per_key()
        place = Place(caller, context, time.monotonic() + seconds)
        with self._lock:
            if self._num[caller.node_id] >= most:
                return None
            self._num[caller.node_id] += 1
            self._taken.add(place)
        # Not at the end of our part: an answer that nobody takes costs memory until the call is over.
        if not context.add_callback(partial(self._free, place)):
            self._free(place)
        return place

    def _free(self, place: Place) -> None:
        with self._lock:
            if place not in self._taken:
                return
            self._taken.remove(place)
            self._num[place.caller.node_id] -= 1
            if not self._num[place.caller.node_id]:
                del self._num[place.caller.node_id]

    def end_the_slow(self) -> None:
        """End the calls whose time is over."""
        with self._lock:
            slow = [place for place in self._taken if place.until <= time.monotonic()]
        for place in slow:
            place.until = inf
            self._say_slow(place.caller.name)
            place.context.cancel()

    def watch(self) -> None:
        """End the slow calls from now on, in a thread of its own."""

        def run() -> None:
            while True:
                time.sleep(_LOOK_SECONDS)
                self.end_the_slow()

        threading.Thread(target=run, daemon=True, name="places").start()


class _SignedTime(NamedTuple):
    """What a node's headers say."""

    key: bytes
    """Public, PEM."""
    signature: bytes
    """Of the time, with that key."""
    time: str

    @classmethod
    def of(cls, headers: dict[str, Any]) -> _SignedTime | None:
        """None if a header is missing, or is nothing of the kind."""
        names = (PUBLIC_KEY_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER)
        found = cls(*map(headers.get, names))  # type: ignore[arg-type]
        are_given = isinstance(found.key, bytes) and isinstance(found.signature, bytes)
        if not are_given or not isinstance(found.time, str):
            return None
        return found if len(found.time) <= _LONGEST_TIME_STAMP else None

    def is_present(self) -> bool:
        """Whether the time is not long ago, nor to come."""
        try:
            ago = datetime.now(UTC) - datetime.fromisoformat(self.time)
        except (ValueError, TypeError, OverflowError):
            return False
        most = TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE
        least = -SYSTEM_TIME_TOLERANCE
        return timedelta(seconds=least) < ago < timedelta(seconds=most)


class KnownNodes(grpc.ServerInterceptor):  # type: ignore[misc]
    """Lets registered nodes through to what they may ask for; of others, nothing is read but the headers."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._seen: set[_SignedTime] = set()
        self.places = Places(
            registry.num_keys, lambda name: registry.count(name, "too_slow")
        )

    def intercept_service(
        self, continuation: Callable[[Any], Any], details: Any
    ) -> Any:
        """Serve each call of the API as one with a stream of requests, of which one is read."""
        handler = continuation(details)
        if handler is None or handler.unary_unary is None:
            return None
        return grpc.stream_unary_rpc_method_handler(
            partial(self._serve, details, handler),
            response_serializer=handler.response_serializer,
        )

    def _serve(
        self, details: Any, handler: Any, bodies: Iterator[bytes], context: Any
    ) -> Any:
        """Look who calls, then for a place, and only then at the body."""
        headers = dict(details.invocation_metadata)
        caller = self._known(headers, context)
        method = METHODS.get(str(details.method).removeprefix(_API))
        if method is None:
            self._refuse(
                context, caller.name, "not_offered", grpc.StatusCode.UNIMPLEMENTED
            )
        place = self.places.take(caller, context, method.body_seconds)
        if place is None:
            self._refuse(
                context,
                caller.name,
                "too_many_calls",
                grpc.StatusCode.RESOURCE_EXHAUSTED,
            )
        body = next(bodies, None)
        if (
            body is None
        ):  # its sender has hung up, or has nothing to say, or its time is over
            self._refuse(context, None, "no_body", grpc.StatusCode.INVALID_ARGUMENT)
        place.until = time.monotonic() + method.answer_seconds
        request = _parsed(body, method, handler.request_deserializer)
        if request is None:
            self._refuse(
                context, caller.name, "malformed", grpc.StatusCode.INVALID_ARGUMENT
            )
        sender = method.speaks_for(request)
        if sender not in (caller.node_id, headers[PUBLIC_KEY_HEADER]):
            # A site that looks before it joins asks in the name of no node: that is no offence.
            self._refuse(context, caller.name if sender else None, "other_node")
        return handler.unary_unary(request, context)

    def _known(self, headers: dict[str, Any], context: Any) -> Caller:
        """Flower's node authentication: the key is registered, and has signed a time not long ago."""
        signed = _SignedTime.of(headers)
        caller = self._registry.caller(signed.key) if signed else None
        if signed is None or caller is None or not self._is_good(signed):
            self._refuse(context, "", "unknown_key")
        if not signed.is_present():
            self._refuse(context, caller.name, "wrong_time")
        return caller

    def _is_good(self, signed: _SignedTime) -> bool:
        """Whether the key has signed the time; a signature that was good is remembered for a while."""
        if signed in self._seen:
            return True
        try:
            public: Any = load_pem_public_key(signed.key)
            public.verify(
                signed.signature, signed.time.encode("ascii"), ec.ECDSA(hashes.SHA256())
            )
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
        code: Any = grpc.StatusCode.UNAUTHENTICATED,
    ) -> NoReturn:
        """Abort a call. Args: name: of the caller, "" for a stranger's; None counts nothing."""
        if name is not None:
            self._registry.count(name, reason)
        context.abort(code, reason)
        raise AssertionError("abort raises")


def _parsed(body: bytes, method: Method, parse: Callable[[bytes], Any]) -> Any:
    """The request that a body holds; None if it holds none, or is larger than any can be."""
    if len(body) > method.most_bytes:
        return None
    try:
        return parse(body)
    except Exception:  # whatever the parser makes of bytes that somebody chose
        return None


def bounded_server(
    servicer_and_add_fn: tuple[Any, Callable[..., None]],
    server_address: str,
    certificates: tuple[bytes, bytes, bytes],
    interceptors: list[Any],
    **_unbounded: Any,
) -> Any:
    """A gRPC server over TLS, in place of Flower's. Who calls is looked at before all else."""
    options = [
        ("grpc.max_send_message_length", MOST_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MOST_MESSAGE_BYTES),
        ("grpc.max_concurrent_streams", _STREAMS),
        ("grpc.max_allowed_incoming_connections", MOST_CONNECTIONS),
        ("grpc.max_metadata_size", 16 * 1024),
        ("grpc.server_handshake_timeout_ms", 20_000),
        ("grpc.max_connection_idle_ms", 60_000),  # a site's heart beats every 22 s
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.so_reuseport", 0),
    ]
    first = [one for one in interceptors if isinstance(one, KnownNodes)]
    for known_nodes in first:
        known_nodes.places.watch()
    num_threads = MOST_PLACES + SPARE_THREADS
    server = grpc.server(
        ThreadPoolExecutor(num_threads, thread_name_prefix="call"),
        maximum_concurrent_rpcs=num_threads,
        options=options,
        interceptors=[*first, *(one for one in interceptors if one not in first)],
    )
    servicer, add = servicer_and_add_fn
    add(servicer, server)
    certificate, private_key = certificates[1:]
    credentials = grpc.ssl_server_credentials([(private_key, certificate)])
    port = server.add_secure_port(server_address, credentials)
    server.bound_address = f"{server_address.rpartition(':')[0]}:{port}"
    return server
