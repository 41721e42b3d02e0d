"""A hostile registered site: it trains like the others, signs with its own key, and lies."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
from flwr.app import RecordDict
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import ObjectTree, PushObjectRequest

from tests.e2e.processes import PATIENCE, wait_for
from wardround.client.answers import SiteAnswer
from wardround.client.node.connection import Connection, Heartbeat, Letter
from wardround.client.node.journal import Journal
from wardround.client.node.ledger import Ledger
from wardround.client.node.loop import Loop
from wardround.client.node.worker import Room, Worker
from wardround.client.round import answer
from wardround.client.site import Kept, RealSite
from wardround.client.site_file import load_site_file, signing_keys
from wardround.common.credentials import fingerprint, public_line
from wardround.common.errors import Refused, Unreachable
from wardround.common.tasks.label import LABEL
from wardround.common.wire.arrays import Payload
from wardround.common.wire.codec import pack_update, unpack_notice, unpack_update
from wardround.common.wire.forms import whole
from wardround.common.wire.messages import NOTICE, TRAIN, Update
from wardround.common.wire.objects import Object, make_object
from wardround.common.wire.signing import Question

Tamper = Callable[[str, RecordDict], RecordDict]
"""What becomes of an honest answer to a message of some type."""


class HostileSite(Loop):
    """A site's loop in this process, with an answer of its own."""

    def __init__(self, site_file: Path, tamper: Tamper) -> None:
        site = load_site_file(site_file)
        self.said: list[str] = []
        self.is_over = Event()
        self.connection = Connection(site)
        self.tamper, self._file, self._kept = tamper, site_file, Kept()
        self.letters: list[Letter] = []
        self.pushed: list[RecordDict] = []
        """Signed contents of its answers, newest last."""
        self.push_honestly: Callable[[Letter, RecordDict, float], None] = (
            self.connection.push
        )
        self.push: Callable[[Letter, RecordDict, float], None] = self.push_honestly
        """How an answer is sent; a test may put another way in its place."""
        own = fingerprint(public_line(signing_keys(site)[0]))
        self._journal_of_it = Journal(site.state, own)
        self._ledger_of_it = Ledger(site.state, site.name, own)
        worker = Worker(site_file, self.said.append)  # never started
        self.connection.push = self._push  # type: ignore[method-assign]
        super().__init__(
            *(site, self.connection, worker, self._journal_of_it, self._ledger_of_it),
            *(self.said.append, self.is_over.is_set),
        )

    def _handle(self, letter: Letter) -> None:
        self.letters.append(letter)
        super()._handle(letter)

    def _push(self, letter: Letter, content: RecordDict, seconds: float) -> None:
        try:
            self.push(letter, content, seconds)
        finally:
            self.pushed.append(content)

    def _work(
        self,
        letter: Letter,
        content: RecordDict,
        room: Room,
        question: Question,
        told: str,
    ) -> SiteAnswer:
        if letter.kind == NOTICE:
            self.said.append(unpack_notice(content))
            return SiteAnswer(RecordDict())
        order = self._ordered(question, told)
        honest = answer(
            letter.kind,
            content,
            lambda: RealSite(load_site_file(self._file), self._kept, order),
        )
        return SiteAnswer(self.tamper(letter.kind, honest.content))

    def _activate(self) -> bool:
        try:
            self.connection.activate()
        except (Refused, Unreachable):
            return False
        return True

    def run(self) -> None:
        """Take part until `is_over`."""
        with self._journal_of_it, self._ledger_of_it, self.connection as connection:
            wait_for(self._activate, PATIENCE, "the server to take the site's key")
            heartbeat = Heartbeat(connection)
            heartbeat.start()
            try:
                while not self.is_over.is_set():
                    with suppress(Refused, Unreachable):
                        self.serve(heartbeat)
            finally:
                heartbeat.stop()
                with suppress(Refused, Unreachable):
                    connection.leave()


@contextmanager
def hostile_site(site_file: Path, tamper: Tamper) -> Iterator[HostileSite]:
    """At work in a thread; gone afterwards."""
    site = HostileSite(site_file, tamper)
    thread = Thread(target=site.run, daemon=True)
    thread.start()
    try:
        yield site
    finally:
        site.is_over.set()
        thread.join(60)


def honest(kind: str, content: RecordDict) -> RecordDict:
    """No tampering."""
    return content


def push_objects(
    connection: Connection, letter: Letter, inner: Object, pause: float = 0.0
) -> None:
    """Answer with any object in place of a content, `pause` seconds before each piece of it."""
    message = letter.reply()
    root = make_object(
        "Message", message.SerializeToString(deterministic=True), [inner]
    )
    message.metadata.message_id = root.object_id
    message.content.SetInParent()
    tree = ObjectTree(object_id=root.object_id, children=[inner.tree(ObjectTree)])
    request = PushMessagesRequest(
        node=connection.node,
        messages_list=[message],
        message_object_trees=[tree],
        clientapp_runtime_list=[1],
    )
    response = connection.call("PushMessages", request)
    parts = {
        part.object_id: part
        for part in root.walk()
        if part.object_id in response.objects_to_push
    }
    for part in parts.values():
        time.sleep(pause)
        connection.call(
            "PushObject",
            PushObjectRequest(
                node=connection.node,
                run_id=letter.run_id,
                session_id=response.session_id,
                object_id=part.object_id,
                object_content=part.write(),
            ),
        )


def num_numbers(payload: Payload) -> int:
    """Of the whole tiny model."""
    if payload.form == "whole":
        return len(payload.arrays["shared"])
    return len(payload.arrays["steps"]) // int(
        payload.arrays["widths"][0]
    )  # a tiny model is one block


def _cut(payload: Payload) -> Payload:
    arrays = {name: array[:-1] for name, array in payload.arrays.items()}
    return dataclasses.replace(payload, form="exact", arrays=arrays)


Changes = dict[str, Any]
"""New values of some fields of an update."""


def _filled(update: Update, value: float, times: int = 1) -> Changes:
    size = times * num_numbers(update.payload)
    return {"payload": whole(np.full(size, value, np.float32))}


LIES: tuple[tuple[str, Callable[[Update], Changes]], ...] = (
    ("not finite", lambda u: _filled(u, np.nan)),
    ("names or shapes", lambda u: {"layout": "0" * 64}),
    ("names or shapes", lambda u: _filled(u, 0.0, times=2)),
    ("of the global model", lambda u: {"payload": _cut(u.payload)}),
    ("claims -", lambda u: {"num_examples": -u.num_examples}),
    ("claims 0 examples", lambda u: {"num_examples": 0}),
    ("claims 1000000000000 examples", lambda u: {"num_examples": 10**12}),
    ("belongs to round", lambda u: {"round": u.round - 1}),
    ("no counts", lambda u: {"test": None}),
)
"""Why an update must be refused, and what is changed in an honest one."""


def lying(kind: str, honest: RecordDict) -> RecordDict:
    """Another lie each round."""
    if kind != TRAIN:
        return honest
    update = unpack_update(honest, LABEL)
    _, lie = LIES[(update.round - 1) % len(LIES)]
    return pack_update(dataclasses.replace(update, **lie(update)))
