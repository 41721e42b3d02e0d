"""The one door that sites knock at: Flower's Fleet API, for callers that may be up to anything.

    python -m server.deployment.fleet FOLDER [options of flower-superlink]

runs Flower's SuperLink in this process with three of its parts replaced: who may call (`KnownNodes`), what a
caller may do (`OwnMessages`), and how much it may send at once (`bounded_server`). Who is registered is read
from `sites.json` whenever that changes; what is known of each site stands in `fleet.json`.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache, partial
from pathlib import Path
from typing import Any, NoReturn

import grpc  # type: ignore[import-untyped]
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from flwr.common import constant as flower
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest, RegisterNodeFleetRequest
from flwr.server.superlink.fleet.grpc_rere.fleet_servicer import FleetServicer
from flwr.server.superlink.linkstate.in_memory_linkstate import InMemoryLinkState
from flwr.supercore.date import now
from flwr.superlink.cli.flower_superlink import flower_superlink

from common.credentials import pem_of
from common.files import write_json
from common.wire.arrays import PIECE_BYTES
from common.wire.objects import is_id
from server.deployment.folder import RegisteredSite, ServerFolder

MOST_MESSAGE_BYTES = PIECE_BYTES + 2**20
SLOTS = 64
"""Calls that are served at the same time."""
_STREAMS = 32  # of them, over one connection
_METHODS = "/flwr.proto.Fleet/"
_SERVER = 1  # Flower's number of the SuperLink itself
_MOST_OBJECTS = 1 << 18
_SPARE_BYTES, _UP_TO_DOWN = 64 * 2**20, 4
_LOOK_SECONDS = 0.25
_REMEMBERED = 4096
_UP_SECONDS = 120.0


@dataclass(frozen=True)
class Caller:
    """A registered site's node."""

    name: str
    node_id: int


class Registrar(threading.Thread):
    """Lets nodes in and out as `sites.json` says, and writes down what is known of them."""

    def __init__(self, folder: ServerFolder, state: InMemoryLinkState, say: Callable[[str], None]) -> None:
        super().__init__(daemon=True, name="registrar")
        self._folder, self._state, self._say = folder, state, say
        self._sites: dict[str, RegisteredSite] = {}
        self._callers: dict[bytes, Caller] = {}
        self._refused: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._written: dict[str, Any] = {}
        self._trouble = ""
        self.look()

    def run(self) -> None:
        """For as long as the process lives; what goes wrong is said once, and tried again."""
        while True:
            time.sleep(_LOOK_SECONDS)
            try:
                self.look()
                self._trouble = ""
            except Exception as error:  # a torn file, a full disk: the sites at work are not its victims
                if str(error) != self._trouble:
                    self._say(f"the sites' files: {type(error).__name__}: {error}")
                self._trouble = str(error)

    def caller(self, key: bytes) -> Caller | None:
        """Who has this public key (PEM)."""
        return self._callers.get(key)

    def count(self, name: str, reason: str) -> None:
        """One more call that was refused; `name` is empty for a stranger."""
        self._refused[name][reason] += 1

    def name_of(self, node_id: int) -> str:
        """The site of a node; empty for a node that is not let in any more."""
        return next((caller.name for caller in list(self._callers.values()) if caller.node_id == node_id), "")

    def look(self) -> None:
        """Once. Raises OSError or ValueError."""
        sites = self._folder.sites()
        if sites != self._sites:
            self._register(sites)
            self._sites = sites
        told = self._told()
        if told != self._written:
            write_json(self._folder.fleet_file, told)
            self._written = told

    def _register(self, sites: dict[str, RegisteredSite]) -> None:
        wanted = {pem_of(site.public_key): name for name, site in sites.items()}
        for key, caller in list(self._callers.items()):
            if wanted.get(key) != caller.name:
                self._forget(key, caller)
        for key, name in wanted.items():
            if key not in self._callers:
                node_id = self._state.create_node(flower.NOOP_FLWR_AID, flower.NOOP_ACCOUNT_NAME, key, 0)
                self._callers[key] = Caller(name, node_id)

    def _forget(self, key: bytes, caller: Caller) -> None:
        del self._callers[key]
        self._state.delete_node(flower.NOOP_FLWR_AID, caller.node_id)
        self._state.node_public_key_to_node_id.pop(key, None)  # so that it can be let in again
        self._refused.pop(caller.name, None)

    def _told(self) -> dict[str, Any]:
        nodes = {node.node_id: node for node in self._state.get_node_info()}
        told = {
            caller.name: {
                "status": nodes[caller.node_id].status,
                "online_since": nodes[caller.node_id].last_activated_at,
                "offline_at": nodes[caller.node_id].last_deactivated_at,
                "refused": dict(self._refused[caller.name]),
            }
            for caller in self._callers.values()
        }
        return {"sites": told, "strangers": dict(self._refused[""])}


class KnownNodes(grpc.ServerInterceptor):  # type: ignore[misc]
    """Lets registered nodes through to what they may ask for; of others, nothing is read but the headers."""

    def __init__(self, registrar: Registrar) -> None:
        self._registrar = registrar
        self._seen: dict[tuple[bytes, str, bytes], None] = {}

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        """Flower's node authentication: the key is registered, and has signed a time that is not long ago."""
        if not str(details.method).startswith(_METHODS):
            return continuation(details)
        headers: Any = dict(details.invocation_metadata)
        names = (flower.PUBLIC_KEY_HEADER, flower.SIGNATURE_HEADER, flower.TIMESTAMP_HEADER)
        key, signature, time_stamp = map(headers.get, names)
        are_given = isinstance(key, bytes) and isinstance(signature, bytes) and isinstance(time_stamp, str)
        caller = self._registrar.caller(key) if are_given else None
        if caller is None or not self._has_signed(key, time_stamp, signature):
            return self._refuse("", "unknown_key")
        if not _is_present(time_stamp):
            return self._refuse(caller.name, "wrong_time")
        handler = continuation(details)
        if handler is None or handler.unary_unary is None:
            return handler
        return grpc.unary_unary_rpc_method_handler(
            partial(self._answer, handler.unary_unary, key, caller),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _answer(
        self, answer: Callable[[Any, Any], Any], key: bytes, caller: Caller, request: Any, context: Any
    ) -> Any:
        """Let the caller speak for itself only."""
        if isinstance(request, ActivateNodeRequest | RegisterNodeFleetRequest):
            is_own = request.public_key == key
        else:
            is_own = getattr(request, "node", request).node_id == caller.node_id
        if not is_own:
            # A site that looks before it joins asks in the name of no node: that is no offence.
            if not (isinstance(request, PullMessagesRequest) and not request.node.node_id):
                self._registrar.count(caller.name, "other_node")
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "other_node")
        return answer(request, context)

    def _has_signed(self, key: bytes, text: str, signature: bytes) -> bool:
        """Whether the key has signed the text; a signature that was good is remembered for a while."""
        if (key, text, signature) in self._seen:
            return True
        try:
            public: Any = load_pem_public_key(key)
            public.verify(signature, text.encode("ascii"), ec.ECDSA(hashes.SHA256()))
        except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError):
            return False
        if len(self._seen) >= _REMEMBERED:
            self._seen = {}
        self._seen[key, text, signature] = None
        return True

    def _refuse(self, name: str, reason: str) -> Any:
        self._registrar.count(name, reason)

        def abort(_: Iterator[Any], context: Any) -> NoReturn:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, reason)
            raise AssertionError("abort raises")

        # Of a stream nothing is read before it is asked for: the body stays where it is.
        return grpc.stream_unary_rpc_method_handler(abort)


def _is_present(time_stamp: str) -> bool:
    try:
        ago = now() - datetime.fromisoformat(time_stamp)
    except (ValueError, TypeError, OverflowError):
        return False
    most, least = flower.TIMESTAMP_TOLERANCE + flower.SYSTEM_TIME_TOLERANCE, -flower.SYSTEM_TIME_TOLERANCE
    return timedelta(seconds=least) < ago < timedelta(seconds=most)


@dataclass
class _Account:
    """What one node was given, and has given, in one run."""

    messages: set[str] = field(default_factory=set)
    """Questions it was given."""
    objects: set[str] = field(default_factory=set)
    """What belongs to them."""
    pulled: dict[str, int] = field(default_factory=dict)
    """Bytes of each object it has fetched."""
    pushed: dict[str, int] = field(default_factory=dict)
    """Bytes of every answer so far, by the session in which it is pushed."""

    @property
    def most_bytes(self) -> int:
        """Of one answer: it is about as large as its question, and may be written in another form."""
        return _SPARE_BYTES + _UP_TO_DOWN * sum(self.pulled.values())


class OwnMessages(FleetServicer):
    """Flower's servicer, for nodes that may touch their own messages and nothing else, within bounds.

    `KnownNodes` has made sure by then that a request's node is the one that sent it.
    """

    def __init__(self, registrar: Registrar, **given: Any) -> None:
        super().__init__(**given)
        self._registrar = registrar
        self._accounts: dict[tuple[int, int], _Account] = {}

    def _account(self, request: Any, run_id: int) -> _Account:
        """Of a node in a run; a stranger to the run has an empty one."""
        return self._accounts.get((request.node.node_id, run_id), _Account())

    def _require(self, holds: bool, reason: str, request: Any, context: Any) -> None:
        """Abort the call, and count it, unless the condition holds."""
        if not holds:
            self._registrar.count(self._registrar.name_of(request.node.node_id), reason)
            context.abort(grpc.StatusCode.PERMISSION_DENIED, reason)

    def PullMessages(self, request: Any, context: Any) -> Any:
        """As Flower's; what the node is given it may fetch. Questions that are settled are passed over."""
        state: Any = self.state_factory.state()
        settled = state.message_ins_id_to_message_res_id
        response = super().PullMessages(request, context)
        while any(message.metadata.message_id in settled for message in response.messages_list):
            response = super().PullMessages(request, context)
        for message, tree in zip(response.messages_list, response.message_object_trees, strict=True):
            node_id, run_id = request.node.node_id, message.metadata.run_id
            if (node_id, run_id) not in self._accounts:
                self._let_go_of_ended_runs()
            account = self._accounts.setdefault((node_id, run_id), _Account())
            account.messages.add(message.metadata.message_id)
            account.objects.update(_ids_of(tree))
        return response

    def _let_go_of_ended_runs(self) -> None:
        runs = {run_id for _, run_id in self._accounts}
        states = self.state_factory.state().get_run_status(runs) if runs else {}
        ended = {run for run in runs if run not in states or states[run].status == "finished"}
        for key in [key for key in self._accounts if key[1] in ended]:
            del self._accounts[key]

    def PullObject(self, request: Any, context: Any) -> Any:
        """As Flower's, of the node's own messages."""
        account = self._account(request, request.run_id)
        self._require(request.object_id in account.objects, "not_its_own", request, context)
        response = super().PullObject(request, context)
        if response.object_available:
            account.pulled[request.object_id] = len(response.object_content)
        return response

    def PushMessages(self, request: Any, context: Any) -> Any:
        """As Flower's, of one answer, by the node, to a question that it was given."""
        is_one = len(request.messages_list) == len(request.message_object_trees) == 1
        self._require(is_one, "no_answer", request, context)
        metadata, tree = request.messages_list[0].metadata, request.message_object_trees[0]
        account = self._account(request, metadata.run_id)
        is_own = (metadata.src_node_id, metadata.dst_node_id) == (request.node.node_id, _SERVER)
        is_asked = metadata.reply_to_message_id in account.messages
        self._require(is_own and is_asked, "not_its_own", request, context)
        ids = _ids_of(tree)
        is_tree = metadata.message_id == tree.object_id and all(map(is_id, ids))
        self._require(is_tree and len(ids) <= _MOST_OBJECTS, "no_answer", request, context)
        response = super().PushMessages(request, context)
        account.pushed[response.session_id] = 0
        return response

    def PushObject(self, request: Any, context: Any) -> Any:
        """As Flower's, of the node's own answers, as much as it may."""
        account = self._account(request, request.run_id)
        self._require(request.session_id in account.pushed, "not_its_own", request, context)
        account.pushed[request.session_id] += len(request.object_content)
        is_bounded = account.pushed[request.session_id] <= account.most_bytes
        if not is_bounded:
            self._give_up(request.session_id)
        self._require(is_bounded, "too_much", request, context)
        response = super().PushObject(request, context)
        if not response.stored:
            self._give_up(request.session_id)
        return response

    def _give_up(self, session_id: str) -> None:
        """Let go of an answer of which a piece cannot be had: the server app sees that it is not there."""
        state: Any = self.state_factory.state()
        session = state._object_push_sessions.get(session_id)
        if session is not None:
            roots = list(session.root_object_ids)
            state._cleanup_push_session(session_id, cleanup_messages=False)
            for root in roots:
                state.object_store.delete(root)

    def ConfirmMessageReceived(self, request: Any, context: Any) -> Any:
        """As Flower's, of the node's own messages."""
        is_own = request.message_object_id in self._account(request, request.run_id).messages
        self._require(is_own, "not_its_own", request, context)
        return super().ConfirmMessageReceived(request, context)


def _ids_of(tree: Any) -> list[str]:
    """Every object of a tree, itself first."""
    found = [tree]
    for node in found:  # which grows meanwhile
        found.extend(node.children)
    return [node.object_id for node in found]


def bounded_server(
    servicer_and_add_fn: tuple[Any, Callable[..., None]],
    server_address: str,
    certificates: tuple[bytes, bytes, bytes],
    interceptors: list[Any],
    **_unbounded: Any,
) -> Any:
    """A gRPC server over TLS that holds SLOTS calls of one piece each, whoever knocks.

    It holds SLOTS messages of MOST_MESSAGE_BYTES at once; more callers are told to come back.
    """
    options = [
        ("grpc.max_send_message_length", MOST_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MOST_MESSAGE_BYTES),
        ("grpc.max_concurrent_streams", _STREAMS),
        ("grpc.max_metadata_size", 16 * 1024),
        ("grpc.server_handshake_timeout_ms", 20_000),
        ("grpc.max_connection_idle_ms", 300_000),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.so_reuseport", 0),
    ]
    server = grpc.server(
        ThreadPoolExecutor(SLOTS), maximum_concurrent_rpcs=SLOTS, options=options, interceptors=interceptors
    )
    servicer, add = servicer_and_add_fn
    add(servicer, server)
    certificate, private_key = certificates[1:]
    port = server.add_secure_port(server_address, grpc.ssl_server_credentials([(private_key, certificate)]))
    server.bound_address = f"{server_address.rpartition(':')[0]}:{port}"
    return server


def replace_parts(folder: ServerFolder, say: Callable[[str], None]) -> None:
    """Put the three parts in the place of Flower's own, before its SuperLink is made."""
    superlink = sys.modules[flower_superlink.__module__]  # its package has a function of the same name

    @cache
    def registrar(state_factory: Any) -> Registrar:
        made = Registrar(folder, state_factory.state(), say)
        made.start()
        return made

    def own_messages(state_factory: Any, **given: Any) -> OwnMessages:
        return OwnMessages(registrar(state_factory), state_factory=state_factory, **given)

    parts: dict[str, Callable[..., Any]] = {
        "NodeAuthServerInterceptor": lambda state_factory: KnownNodes(registrar(state_factory)),
        "FleetServicer": own_messages,
        "generic_create_grpc_server": bounded_server,
    }
    for name, part in parts.items():
        assert hasattr(superlink, name), f"Flower's SuperLink has no {name} any more"
        setattr(superlink, name, part)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201 - the terminal


def _say_when_up(folder: ServerFolder) -> None:
    from server.deployment.superlink import is_up

    until = time.monotonic() + _UP_SECONDS
    while time.monotonic() < until:
        if is_up(folder):
            num_sites = len(folder.sites())
            _say(f"the server is up; {num_sites} {'site' if num_sites == 1 else 'sites'} may connect")
            return
        time.sleep(_LOOK_SECONDS)


def main(path: str, *options: str) -> None:
    """Serve until a signal comes."""
    folder = ServerFolder(Path(path))
    if "--insecure" not in options:
        os.umask(0o077)
        replace_parts(folder, _say)
    threading.Thread(target=_say_when_up, args=(folder,), daemon=True).start()
    sys.argv = ["flower-superlink", *options]
    flower_superlink()


if __name__ == "__main__":
    main(*sys.argv[1:])
