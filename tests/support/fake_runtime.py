"""A SuperLink in this process for a server app, and the sites behind it."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.support.wires import (
    Draft,
    Objects,
    Packed,
    Wire,
    draft_of,
    metadata_of,
    objects_of,
)
from wardround.common.credentials import fingerprint, new_key, pem_of, public_line
from wardround.common.errors import ObjectMissing
from wardround.common.wire.objects import read_signed
from wardround.common.wire.signing import (
    ANSWER,
    RUN,
    TASK,
    RunStatement,
    Statement,
    digest,
    open_envelope,
    read_statement,
    sign,
)
from wardround.server.deployment.folder import RegisteredSite
from wardround.server.deployment.runtime_link import (
    OnlineNode,
    OutgoingMessage,
    Reply,
    Runtime,
)
from wardround.server.deployment.signed_clients import RunKey


@dataclass(frozen=True)
class Asked:
    """A question that reached a site."""

    message_id: str
    parcel: OutgoingMessage
    statement: Statement
    digest: str


class FakeSite:
    """A registered site with its keys."""

    def __init__(self, name: str, node_id: int) -> None:
        self.name, self.node_id = name, node_id
        self.node_key: Any = new_key("node")
        self.key: Any = new_key("signing")
        self.registered = RegisteredSite(
            public_line(self.node_key), public_line(self.key), ""
        )
        """The site in the server's register."""

    def draft(self, asked: Asked, packed: Packed) -> Draft:
        """Return an honest answer that is not signed yet."""
        question = asked.statement
        metadata = metadata_of(
            question.kind, self.node_id, 1, reply_to_message_id=asked.message_id
        )
        return draft_of(
            packed,
            metadata,
            payload_type=ANSWER,
            key=self.key,
            statement={
                "version": 1,
                "run": question.run,
                "round": question.round,
                "attempt": question.attempt,
                "kind": question.kind,
                "sender": fingerprint(self.registered.signing_key),
                "receiver": question.sender,
                "nonce": "",
                "answers": asked.digest,
                "expires": question.expires,
            },
        )


@dataclass
class FakeRuntime(Runtime):
    """A stand-in for Flower's SuperLink. A test decides how sites behave."""

    sites: Collection[FakeSite]
    behave: Callable[[Asked], Wire | Reply | None]
    """Returns the answer that is delivered to a question."""
    online: set[int] = field(default_factory=set)
    since: str = "2026-01-01"
    """The time at which the nodes came online."""
    asked: list[Asked] = field(default_factory=list)
    confirmed: list[str] = field(default_factory=list)
    objects: Objects = field(default_factory=dict)
    replies: dict[str, Reply] = field(default_factory=dict)
    """Answers that are delivered and not claimed yet, by the id of their question."""
    waiting: Callable[[], None] = lambda: None
    """Called before an object is sent; a slow site waits here."""

    def __post_init__(self) -> None:
        self.online |= {site.node_id for site in self.sites}

    def nodes(self) -> dict[int, OnlineNode]:
        """As in `Runtime`."""
        return {
            site.node_id: OnlineNode(pem_of(site.registered.public_key), self.since)
            for site in self.sites
            if site.node_id in self.online
        }

    def push(self, parcels: Sequence[OutgoingMessage]) -> list[str]:
        """As in `Runtime`. A node that is offline gets no message."""
        return [
            self._push(parcel) if parcel.node_id in self.online else ""
            for parcel in parcels
        ]

    def _push(self, parcel: OutgoingMessage) -> str:
        objects = objects_of([parcel.content])
        _, said = read_signed(
            parcel.content.object_id,
            lambda ids: (objects[object_id] for object_id in ids),
        )
        run = read_statement(RunStatement, open_envelope_unchecked(said["run"]))
        payload = open_envelope(said["statement"], TASK, [run.key])
        message_id = f"message {len(self.asked)}"
        asked = Asked(
            message_id, parcel, read_statement(Statement, payload), digest(payload)
        )
        self.asked.append(asked)
        self.deliver(message_id, self.behave(asked))
        return message_id

    def deliver(self, to: str, answer: Wire | Reply | None) -> None:
        """Let an answer arrive."""
        if isinstance(answer, Wire):
            self.objects |= answer.objects
            answer = Reply(to, answer.message.metadata.message_id, "")
        if answer is not None:
            self.replies[to] = answer

    def claim(self, message_ids: Iterable[str]) -> list[Reply]:
        """As in `Runtime`."""
        found = [self.replies.pop(message_id, None) for message_id in list(message_ids)]
        return [reply for reply in found if reply is not None]

    def fetch(self, ids: Sequence[str], is_over: Callable[[], bool]) -> Iterator[bytes]:
        """As in `Runtime`."""
        for object_id in ids:
            self.waiting()
            content = self.objects.get(object_id)
            if content is None:
                raise ObjectMissing
            yield content

    def confirm(self, reply: Reply) -> None:
        """As in `Runtime`."""
        self.confirmed.append(reply.to)


def open_envelope_unchecked(envelope: str) -> bytes:
    """Return the payload of an envelope without a check of its signature."""
    import base64
    import json

    return base64.b64decode(json.loads(envelope)["payload"])


def make_run_key() -> RunKey:
    """Return the key of a run that a coordinator has signed."""
    coordinator: Any = new_key("signing")
    private: Any = new_key("signing")
    now = time.time()
    run = RunStatement("a run", public_line(private), now - 60, now + 3600, "0" * 64)
    return RunKey(private, sign(RUN, run, coordinator), "")
