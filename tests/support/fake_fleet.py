"""A server for tests. It speaks Flower's Fleet API over TLS, and a test decides its answers."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import grpc  # type: ignore[import-untyped]
import numpy as np
from flwr.app import ConfigRecord, RecordDict
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    DeactivateNodeRequest,
    DeactivateNodeResponse,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.fleet_pb2_grpc import FleetServicer, add_FleetServicer_to_server
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest, SendNodeHeartbeatResponse
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ConfirmMessageReceivedResponse,
    Message,
    Metadata,
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
    PushObjectResponse,
)

from tests.e2e.processes import wait_for
from wardround.common.credentials import fingerprint, new_key, public_line
from wardround.common.wire.deadlines import LATE_SECONDS
from wardround.common.wire.messages import HELLO
from wardround.common.wire.objects import (
    ENVELOPE,
    Object,
    content_of_records,
    make_object,
    parse,
    read_content,
    read_signed,
    record_objects,
    sizes,
)
from wardround.common.wire.signing import (
    PLAN,
    RUN,
    TASK,
    Plan,
    RunStatement,
    Statement,
    check_answer,
    payload_digest,
    sign,
)
from wardround.server.deployment.certificates import Pair

NODE, RUN_ID = 7, 11


@dataclass
class Sent:
    """A question that was put into the queue, and its answer."""

    message: Message
    statement: Statement
    digest: str
    reply: Message | None = None
    is_confirmed: bool = False


@dataclass
class FakeFleet(FleetServicer):
    """The server of one site. A test can change its behaviour at any time."""

    coordinator: Any = field(default_factory=lambda: new_key("signing"))
    refusal: str = ""
    """Details of UNAUTHENTICATED in answer to every call; empty for an honest answer."""
    code: int = 0
    """Flower's error code in answer to every call; 0 for none."""
    before_object: Callable[[str], None] = lambda object_id: None
    """Called before an object is sent; a slow server waits here."""
    calls: list[tuple[str, Any, dict[str, Any]]] = field(default_factory=list)
    """Method, request and metadata of every call."""
    objects: dict[str, bytes] = field(default_factory=dict)
    sent: list[Sent] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.run_key: Any = new_key("signing")
        self.plan_envelope = self.run_envelope = ""
        self.make_plan({}, {})
        self._queue: list[Sent] = []
        self._attempt = 0
        self._lock = threading.Lock()

    def make_plan(
        self, settings: dict[str, Any], sites: dict[str, str], **changed: Any
    ) -> None:
        """Sign a plan, and sign the run's key again with it.

        Args:
            sites: names and public signing keys.
            changed: fields of the plan.
        """
        now = time.time()
        roster = {name: fingerprint(key) for name, key in sites.items()}
        plan = replace(
            Plan(1, settings, roster, now - 60, now + 3600, {}, ""), **changed
        )
        self.plan_envelope = sign(PLAN, plan, self.coordinator)
        digest = payload_digest(self.plan_envelope)
        run = RunStatement(
            "a run", public_line(self.run_key), now - 60, now + 3600, digest
        )
        self.run_envelope = sign(RUN, run, self.coordinator)

    def _note(self, name: str, request: Any, context: Any) -> None:
        self.calls.append((name, request, dict(context.invocation_metadata())))
        if self.refusal:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, self.refusal)
        if self.code:
            details = f'{{"code": {self.code}, "public_message": "no", "public_details": null}}'
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, details)

    def ActivateNode(
        self, request: ActivateNodeRequest, context: Any
    ) -> ActivateNodeResponse:
        self._note("ActivateNode", request, context)
        return ActivateNodeResponse(node_id=NODE)

    def DeactivateNode(
        self, request: DeactivateNodeRequest, context: Any
    ) -> DeactivateNodeResponse:
        self._note("DeactivateNode", request, context)
        return DeactivateNodeResponse()

    def SendNodeHeartbeat(
        self, request: SendNodeHeartbeatRequest, context: Any
    ) -> SendNodeHeartbeatResponse:
        self._note("SendNodeHeartbeat", request, context)
        return SendNodeHeartbeatResponse(success=True)

    def PullMessages(
        self, request: PullMessagesRequest, context: Any
    ) -> PullMessagesResponse:
        self._note("PullMessages", request, context)
        if request.node.node_id != NODE:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "other_node")
        with self._lock:
            found = [self._queue.pop(0).message] if self._queue else []
        return PullMessagesResponse(messages_list=found)

    def PullObject(
        self, request: PullObjectRequest, context: Any
    ) -> PullObjectResponse:
        self._note("PullObject", request, context)
        self.before_object(request.object_id)
        content = self.objects.get(request.object_id)
        return PullObjectResponse(
            object_found=content is not None,
            object_available=bool(content),
            object_content=content or b"",
        )

    def PushMessages(
        self, request: PushMessagesRequest, context: Any
    ) -> PushMessagesResponse:
        self._note("PushMessages", request, context)
        (message,) = request.messages_list
        for sent in self.sent:
            if sent.message.metadata.message_id == message.metadata.reply_to_message_id:
                sent.reply = message
        wanted = list(_ids(request.message_object_trees[0]))
        return PushMessagesResponse(objects_to_push=wanted, session_id="session")

    def PushObject(
        self, request: PushObjectRequest, context: Any
    ) -> PushObjectResponse:
        self._note("PushObject", request, context)
        self.objects[request.object_id] = request.object_content
        return PushObjectResponse(stored=True)

    def ConfirmMessageReceived(
        self, request: ConfirmMessageReceivedRequest, context: Any
    ) -> ConfirmMessageReceivedResponse:
        self._note("ConfirmMessageReceived", request, context)
        for sent in self.sent:
            if sent.message.metadata.message_id == request.message_object_id:
                sent.is_confirmed = True
        return ConfirmMessageReceivedResponse()

    def _unasked(self, request: Any, context: Any) -> Any:
        self._note(type(request).__name__, request, context)
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "no site asks for this")

    RegisterNode = UnregisterNode = GetRun = GetFab = _unasked

    def ask(
        self,
        kind: str,
        content: RecordDict,
        site_key: str,
        *,
        change: Callable[[Statement], Statement] = lambda statement: statement,
        key: Any = None,
        after: Callable[[dict[str, Object]], Mapping[str, Object]] = lambda records: (
            records
        ),
        envelope: Callable[[dict[str, str]], dict[str, str] | None] = lambda said: said,
        mutate: Callable[[dict[str, bytes]], None] = lambda objects: None,
        seconds: float = 60.0,
    ) -> Sent:
        """Put a question into the queue.

        Args:
            site_key: public signing key of the receiver.
            change: changes the statement before it is signed.
            key: signs in place of the run's key.
            after: changes the records after they were signed.
            envelope: changes the envelope; if it returns None, there is no envelope.
            mutate: changes the contents of objects, by id, on their way.
            seconds: time until the round is over.
        """
        self._attempt += 1
        records = record_objects(content, {})
        statement = change(
            Statement(
                version=1,
                run=payload_digest(self.run_envelope),
                round=1,
                attempt=self._attempt,
                kind=kind,
                sender=fingerprint(public_line(self.run_key)),
                receiver=fingerprint(site_key),
                nonce=secrets.token_hex(16),
                answers="",
                records=sizes(records),
                expires=time.time() + seconds,
            )
        )
        signed = sign(TASK, statement, key or self.run_key)
        plan = {"plan": self.plan_envelope} if kind == HELLO else {}
        said = envelope({"run": self.run_envelope, "statement": signed} | plan)
        travelling = dict(after(records))
        if said is not None:
            written = RecordDict({ENVELOPE: ConfigRecord(said)})  # type: ignore[arg-type]
            travelling |= record_objects(written, {})
        inner = content_of_records(travelling)
        return self._send(
            kind, inner, statement, payload_digest(signed), mutate, seconds
        )

    def again(self, sent: Sent) -> Sent:
        """Put the same message into the queue again."""
        repeated = replace(sent, reply=None, is_confirmed=False)
        self.sent.insert(0, repeated)
        with self._lock:
            self._queue.append(repeated)
        return repeated

    def _send(
        self,
        kind: str,
        inner: Object,
        statement: Statement,
        digest: str,
        mutate: Callable[[dict[str, bytes]], None],
        seconds: float,
    ) -> Sent:
        metadata = Metadata(
            run_id=RUN_ID,
            src_node_id=1,
            dst_node_id=NODE,
            group_id="1",
            created_at=time.time(),
            ttl=seconds + LATE_SECONDS,
            message_type=kind,
        )
        body = Message(metadata=metadata).SerializeToString(deterministic=True)
        root = make_object("Message", body, [inner])
        metadata.message_id = root.object_id
        objects = {part.object_id: part.write() for part in root.walk()}
        mutate(objects)
        self.objects |= objects
        sent = Sent(Message(metadata=metadata), statement, digest)
        self.sent.append(sent)
        with self._lock:
            self._queue.append(sent)
        return sent

    def answer(self, sent: Sent, site_key: str, seconds: float = 60.0) -> RecordDict:
        """Return the site's answer. It must be authentic."""
        reply = self.reply(sent, seconds)
        names, envelope = read_signed(self._content_of(reply), self._fetch)
        questions = {sent.digest: sent.statement}
        statement = check_answer(envelope["statement"], site_key, questions)
        return read_content(names, statement.records, self._fetch, _room)

    def refusal_of(self, sent: Sent, seconds: float = 60.0) -> str:
        """Return the code with which the site refused a question; signatures do not matter."""
        reply = self.reply(sent, seconds)

        def read() -> str:
            try:
                names, _ = read_signed(self._content_of(reply), self._fetch)
                return str(ConfigRecord.inflate(self.objects[names["refusal"]])["code"])
            except KeyError:
                # The confirmation of another copy of the same message came first.
                return ""

        return wait_for(read, seconds, "the objects of an answer")

    def reply(self, sent: Sent, seconds: float = 60.0) -> Message:
        """Wait for the whole answer. Return its message."""
        wait_for(lambda: sent.is_confirmed, seconds, "an answer")
        assert sent.reply is not None
        return sent.reply

    def _content_of(self, reply: Message) -> str:
        return parse(self.objects[reply.metadata.message_id], "Message")[1][0]

    def _fetch(self, ids: Any) -> Iterator[bytes]:
        return (self.objects[object_id] for object_id in ids)


def _room(num_bytes: int) -> np.ndarray:
    return np.empty(num_bytes, dtype=np.uint8)


def _ids(tree: Any) -> Iterator[str]:
    yield tree.object_id
    for child in tree.children:
        yield from _ids(child)


@contextmanager
def fleet_server(pair: Pair, fleet: FakeFleet) -> Iterator[int]:
    """Serve it on loopback. Yield its port."""
    server = grpc.server(ThreadPoolExecutor(8))
    add_FleetServicer_to_server(fleet, server)
    credentials = grpc.ssl_server_credentials(
        [(pair.key.read_bytes(), pair.certificate.read_bytes())]
    )
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        yield int(port)
    finally:
        server.stop(0).wait()
