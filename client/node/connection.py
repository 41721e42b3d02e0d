"""The connection of a site to its server: Flower's Fleet API over gRPC, TLS and the node key.

On the site's side, only this file uses Flower's private names. Flower's own client is not
used: it ends its process when the server refuses a call, it waits without a bound, and it
does not check the objects that it pulls. Here every call has a deadline, and every failure
is one of two exceptions. Pulled bytes are checked later (`common/wire/objects.py`).
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, partial
from math import inf, isfinite
from typing import TYPE_CHECKING, Any

import grpc  # type: ignore[import-untyped]
from flwr.app import RecordDict
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL as _BEAT
from flwr.proto import fleet_pb2 as fleet
from flwr.proto import message_pb2 as wire
from flwr.proto.fleet_pb2_grpc import FleetStub
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.runtime_version_compatibility import RuntimeVersionMetadata

from wardround.client.site_file import SiteFile, read_authority
from wardround.common.addresses import host_and_port
from wardround.common.credentials import NEW_KEYS, pem_of, public_line, read_private_key
from wardround.common.errors import Refused, Unreachable, Why
from wardround.common.wire.arrays import PIECE_BYTES
from wardround.common.wire.deadlines import LATE_SECONDS
from wardround.common.wire.objects import (
    Object,
    content_id,
    content_object,
    make_object,
    parts_in,
    wait_for_object,
)
from wardround.common.wire.window import in_order
from wardround.common.words import LONGEST_TEXT, printable, quoted

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

_MOST_MESSAGE_BYTES = PIECE_BYTES + 2**20
_CHANNEL = {
    "grpc.max_send_message_length": _MOST_MESSAGE_BYTES,
    "grpc.max_receive_message_length": _MOST_MESSAGE_BYTES,
    "grpc.keepalive_time_ms": 30_000,
    "grpc.keepalive_timeout_ms": 20_000,
    "grpc.initial_reconnect_backoff_ms": 500,
    "grpc.max_reconnect_backoff_ms": 5_000,
    "grpc.enable_retries": 0,
}
_CALL_SECONDS = 30.0
_PIECE_SECONDS = 180.0
_HEARTBEAT_SECONDS = 0.75 * _BEAT
_HEARTBEAT_CALL_SECONDS = 10.0
_SIGNED_FOR_SECONDS = 10.0  # time for which one signed time stamp is used
_IN_FLIGHT = 4
_LONGEST_PAUSE_SECONDS = 8.0
# Flower's codes of refusals, in the details of a status.
_OTHER_VERSION = 1001
_NOT_ACTIVATED = 2004


@dataclass(frozen=True)
class Letter:
    """A message as it was pulled: its claimed sender, and the id of its content."""

    written: bytes
    """Flower's PullMessagesResponse, which is kept on the disk."""

    @cached_property
    def _metadata(self) -> Any:
        response = fleet.PullMessagesResponse.FromString(self.written)
        return response.messages_list[0].metadata

    @property
    def kind(self) -> str:
        """The message type."""
        return str(self._metadata.message_type)

    @property
    def message_id(self) -> str:
        """The id of the message, which is the id of its object."""
        return str(self._metadata.message_id)

    @property
    def run_id(self) -> int:
        """Flower's number of the run."""
        return int(self._metadata.run_id)

    @property
    def node_id(self) -> int:
        """Flower's number of the node it was sent to."""
        return int(self._metadata.dst_node_id)

    @property
    def ends(self) -> float:
        """Seconds since 1970 until which the answer can be fetched; 0 if unknown."""
        metadata = self._metadata
        ends = float(metadata.created_at + metadata.ttl)
        return ends if isfinite(ends) else 0.0

    @property
    def seconds_left(self) -> float:
        """Seconds until its round is over, by this machine's clock."""
        return self.ends - LATE_SECONDS - time.time()

    def reply(self) -> wire.Message:
        """Make an answer to the message. Its content and id are set later."""
        asked = self._metadata
        now = time.time()
        metadata = wire.Metadata(
            run_id=asked.run_id,
            src_node_id=asked.dst_node_id,
            dst_node_id=asked.src_node_id,
            reply_to_message_id=asked.message_id,
            group_id=asked.group_id,
            created_at=now,
            ttl=max(1.0, self.ends - now),
            message_type=asked.message_type,
        )
        return wire.Message(metadata=metadata)


class Connection:
    """One site's connection to its server.

    Only the heartbeat may use it from another thread.
    """

    def __init__(self, site: SiteFile) -> None:
        """Read the site's key and authority. Raises ValueError if that fails."""
        read_authority(site)
        key = read_private_key(site.private_key, "node", "key.private", NEW_KEYS)
        self._key: EllipticCurvePrivateKey = key  # type: ignore[assignment]
        self._public = pem_of(public_line(key))
        self._target = host_and_port(*site.host_and_port)
        self._authority = site.ca.read_bytes()
        version = RuntimeVersionMetadata.from_local_component("SuperNode")
        self._version = version.append_to_grpc_metadata(None)
        self._headers: list[tuple[str, Any]] = []
        self._signed_at = -inf
        """Time (`time.monotonic()`) of the signature in the headers."""
        self._signing = threading.Lock()
        self._channel: Any = None
        self._stub: Any = None
        self.node = Node()

    def _credentials(self) -> list[tuple[str, Any]]:
        """Return the headers that identify a node: key, time, and signature of the time."""
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec

        with self._signing:
            if time.monotonic() - self._signed_at > _SIGNED_FOR_SECONDS:
                now = datetime.now(UTC).isoformat()
                algorithm = ec.ECDSA(hashes.SHA256())
                headers = {
                    "flwr-public-key-bin": self._public,
                    "flwr-timestamp": now,
                    "flwr-signature-bin": self._key.sign(now.encode(), algorithm),
                }
                self._headers = [*self._version, *headers.items()]
                self._signed_at = time.monotonic()
            return self._headers

    def open(self) -> None:
        """Open a new channel, in place of an older one. Nothing is sent yet."""
        self.close()
        credentials = grpc.ssl_channel_credentials(self._authority)
        self._channel = grpc.secure_channel(
            self._target, credentials, options=list(_CHANNEL.items())
        )
        self._stub = FleetStub(self._channel)
        self._signed_at = -inf

    def close(self) -> None:
        """Close the channel."""
        if self._channel is not None:
            self._channel.close()
        self._channel = None
        self._stub = None

    def __enter__(self) -> Connection:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def call(self, name: str, request: Any, seconds: float = _CALL_SECONDS) -> Any:
        """Make one call of the Fleet API. Raises Refused or Unreachable."""
        try:
            method = getattr(self._stub, name)
            return method(request, timeout=seconds, metadata=self._credentials())
        except grpc.RpcError as error:
            raise _explained(error) from None

    def ask_if_registered(self, seconds: float) -> None:
        """Check that the server knows this site's key. Nothing is activated.

        The call names no node, so the server refuses it. A server of Wardround gives the
        reason `other_node` if it knows the key.

        Raises:
            Refused or Unreachable: the server does not know the key, or another
                server answers.
        """
        try:
            nobody = fleet.PullMessagesRequest(node=Node(node_id=0))
            self.call("PullMessages", nobody, seconds)
        except Refused as refused:
            if refused.why != "other_node":
                raise

    def activate(self) -> None:
        """Come online. Raises Refused or Unreachable."""
        request = fleet.ActivateNodeRequest(
            public_key=self._public, heartbeat_interval=_BEAT
        )
        response = self.call("ActivateNode", request)
        self.node = Node(node_id=response.node_id)

    def leave(self, seconds: float = 5.0) -> None:
        """Go offline. Raises Refused or Unreachable."""
        self.call(
            "DeactivateNode",
            fleet.DeactivateNodeRequest(node_id=self.node.node_id),
            seconds,
        )

    def beat(self) -> None:
        """Send one heartbeat. Raises Refused or Unreachable."""
        request = SendNodeHeartbeatRequest(node=self.node, heartbeat_interval=_BEAT)
        response = self.call("SendNodeHeartbeat", request, _HEARTBEAT_CALL_SECONDS)
        if not response.success:
            raise Refused("other_node")

    def pull(self) -> Letter | None:
        """Return the next message, or None. The server counts it as delivered from now on."""
        request = fleet.PullMessagesRequest(node=self.node)
        response = self.call("PullMessages", request)
        if not response.messages_list:
            return None
        return Letter(response.SerializeToString())

    def content_of(self, letter: Letter, until: float) -> str:
        """Return the id of a message's content. Raises NotAuthentic, Refused or Unreachable."""
        fetch = partial(self.fetch, letter, until=until)
        return content_id(letter.message_id, fetch)

    def fetch(
        self, letter: Letter, ids: Sequence[str], until: float
    ) -> Iterator[bytes]:
        """Yield the contents of these objects, in this order. A few are fetched in advance.

        Args:
            until: deadline by `time.time()`. The call waits until then for a missing object.

        Raises:
            Refused or Unreachable.
        """

        def request_for(object_id: str) -> Any:
            return wire.PullObjectRequest(
                node=self.node, run_id=letter.run_id, object_id=object_id
            )

        requests = map(request_for, ids)
        for request, response in self._windowed("PullObject", requests, until):
            content = response.object_content
            if not response.object_available:
                pull = partial(self._again, "PullObject", request, until)
                content = wait_for_object(pull, lambda: time.time() >= until)
            if content is None:
                raise Refused("dropped", "an object of the message is not there")
            yield content

    def _windowed(
        self, name: str, requests: Iterable[Any], until: float
    ) -> Iterator[tuple[Any, Any]]:
        """Yield each request with its response, in order. `_IN_FLIGHT` requests run at a time."""
        method = getattr(self._stub, name)

        def start(request: Any) -> Any:
            headers = self._credentials()
            return method.future(request, timeout=_seconds(until), metadata=headers)

        for request, call in in_order(start, requests, _IN_FLIGHT):
            try:
                response = call.result()
            except grpc.RpcError as error:
                failed = _explained(error)
                if isinstance(failed, Refused):
                    raise failed from None
                response = self._again(name, request, until)
            yield request, response

    def _again(self, name: str, request: Any, until: float) -> Any:
        """Call until it succeeds. Raises Refused, or Unreachable after `until`."""
        pause = 0.5
        while True:
            try:
                return self.call(name, request, _seconds(until))
            except Unreachable:
                if time.time() + pause > until:
                    raise
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def push(self, letter: Letter, content: RecordDict, seconds: float) -> None:
        """Answer a message. Return when the server has the whole answer.

        Args:
            seconds: duration of the work.

        Raises:
            Refused or Unreachable.
        """
        until = letter.ends
        message = letter.reply()
        # As Flower writes it: the content is the one child.
        body = message.SerializeToString(deterministic=True)
        root = make_object("Message", body, [content_object(content)])
        message.metadata.message_id = root.object_id
        message.content.SetInParent()  # Flower wants it present, and empty
        request = fleet.PushMessagesRequest(
            node=self.node,
            messages_list=[message],
            message_object_trees=[root.tree(wire.ObjectTree)],
            clientapp_runtime_list=[seconds],
        )
        response = self._again("PushMessages", request, until)

        def pushed(part: Object) -> Any:
            return wire.PushObjectRequest(
                node=self.node,
                run_id=letter.run_id,
                session_id=response.session_id,
                object_id=part.object_id,
                object_content=part.write(),
            )

        requests = map(pushed, parts_in([root], response.objects_to_push))
        for _, stored in self._windowed("PushObject", requests, until):
            if not stored.stored:
                raise Refused(
                    "dropped", "the server did not keep an object of the answer"
                )

    def confirm(self, letter: Letter) -> None:
        """Tell the server that it may delete a message. Raises Refused or Unreachable."""
        request = wire.ConfirmMessageReceivedRequest(
            node=self.node, run_id=letter.run_id, message_object_id=letter.message_id
        )
        self.call("ConfirmMessageReceived", request)


class Heartbeat(threading.Thread):
    """Sends heartbeats from a thread of its own, also while a model is pushed."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(daemon=True, name="heartbeat")
        self._connection = connection
        self._over = threading.Event()
        self.refused: Refused | None = None
        """The server's refusal of the last heartbeat, if there was one."""

    def run(self) -> None:
        """Send heartbeats until `stop`."""
        while not self._over.wait(_HEARTBEAT_SECONDS):
            try:
                self._connection.beat()
            except Unreachable:  # the next heartbeat may succeed
                continue
            except Refused as refused:
                self.refused = refused
                return
            except Exception as error:  # a connection that is being closed
                self.refused = Refused("other_node", type(error).__name__)
                return

    def stop(self) -> None:
        """Send no more heartbeats."""
        self._over.set()
        self.join(_HEARTBEAT_CALL_SECONDS)


def _seconds(until: float) -> float:
    """Return the longest wait for one piece, in seconds."""
    left = until - time.time()
    return min(_PIECE_SECONDS, max(1.0, left))


_REASONS: dict[str, Why] = {
    "unknown_key": "unknown_key",
    "wrong_time": "wrong_time",
    "Invalid timestamp": "wrong_time",
    "other_node": "other_node",
    "Invalid node ID": "other_node",
}
_LOST = {
    "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "CANCELLED",
    "RESOURCE_EXHAUSTED",
    "UNKNOWN",
    "INTERNAL",
}


def _explained(error: Any) -> Refused | Unreachable:
    """Return Flower's error as one of two exceptions."""
    status = error.code().name
    details = str(error.details() or "")
    if status == "UNAUTHENTICATED":
        return Refused(_REASONS.get(details, "other"), printable(details))
    code, text = _flower_error(details)
    if code == _OTHER_VERSION:
        return Refused("version", text)
    if code == _NOT_ACTIVATED:
        return Refused("still_online")
    words = f"{status}: {quoted(text or details, LONGEST_TEXT)}"
    if status in _LOST:
        return Unreachable(words)
    return Refused("dropped", words)


def _flower_error(details: str) -> tuple[int, str]:
    """Return code and text of an error that Flower wrote as JSON; code 0 for others."""
    try:
        content = json.loads(details)
        code = int(content["code"])
        text = content.get("public_details") or content.get("public_message") or ""
        return code, printable(str(text))
    except (ValueError, KeyError, TypeError, RecursionError):
        return 0, ""
