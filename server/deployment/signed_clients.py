"""Real sites behind a SuperLink that is not trusted: only signed answers count.

The run's key signs the questions; a site's key signs its answers. An answer counts only if it
answers an open question and the site that was asked has signed it. If an answer is lost, the
question is asked again as a new attempt.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from math import inf

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import ConfigRecord

from wardround.common.credentials import fingerprint, pem_of, public_line
from wardround.common.errors import BadAnswer, NoAnswer, NotAuthentic, ObjectMissing
from wardround.common.provenance import Provenance
from wardround.common.wire.codec import check_answered
from wardround.common.wire.deadlines import LATE_SECONDS, MOST_ATTEMPTS
from wardround.common.wire.messages import HELLO, TRAIN
from wardround.common.wire.objects import (
    ENVELOPE,
    Object,
    content_of_records,
    read_content,
    read_signed,
    record_objects,
    sizes,
)
from wardround.common.wire.refusals import LOST
from wardround.common.wire.signing import (
    MODEL,
    TASK,
    Statement,
    check_answer,
    payload_digest,
    sign,
)
from wardround.server.deployment.audit import AnswerBook, provenance_of
from wardround.server.deployment.folder import RegisteredSite
from wardround.server.deployment.runtime_link import (
    OutgoingMessage,
    Reply,
    Runtime,
)
from wardround.server.record import RoundRecord
from wardround.server.rounds.clients import POLL_SECONDS, Answer, Request
from wardround.server.run_folder import RunFolder

_LOOK_SECONDS = 2.0
# A site that was killed may come back soon: its node goes offline and online again.
_OFFLINE_SECONDS = 15.0
_CLOSING_SECONDS = 5.0


@dataclass(frozen=True)
class RunKey:
    """The key that signs the questions of one run."""

    private: Ed25519PrivateKey
    envelope: str
    """Envelope in which the coordinator confirms the key."""
    plan: str
    """Envelope of the signed plan, sent with every greeting."""


@dataclass
class _Question:
    """A request to one site in one round, with all its attempts."""

    name: str
    """Name of the site."""
    signing_key: str
    """Signing key of the site, OpenSSH form."""
    request: Request
    kind: str
    round: int
    deadline: float
    """Time (`time.time()`) at which the wait ends."""
    asked: dict[str, Statement] = field(default_factory=dict)
    """Every attempt, by the SHA-256 of its statement."""
    message_ids: list[str] = field(default_factory=list)
    asked_at: float = 0.0
    """Time (`time.monotonic()`) of the last attempt."""
    online_since: str = ""
    """Time at which the node of the last attempt had come online; empty before the first."""
    is_lost: bool = True
    """True if it did not reach the site or its answer was lost: it has to be asked again."""
    offline_since: float | None = None
    """Time (`time.monotonic()`) at which the site was first found offline; None if it is online."""
    is_dropped: bool = False
    """True if the server does not wait for the answer any more."""

    def is_over(self) -> bool:
        """Return True if the server does not wait for it any more."""
        return self.is_dropped or time.time() >= self.deadline


class SignedClients:
    """`Clients` that accept only answers that the sites have signed."""

    approve_plans = True

    def __init__(
        self,
        runtime: Runtime,
        key: RunKey,
        sites: Mapping[str, RegisteredSite],
        registered: Callable[[], Collection[str]],
        ask_again_seconds: float,
        note_refused: Callable[[str, str], None] = lambda name, reason: None,
        book: AnswerBook | None = None,
    ) -> None:
        """Args:
        sites: the sites of the run as they were registered when it was submitted.
        registered: returns the names of the sites that are registered now; the others do not count.
        ask_again_seconds: time after which a site that has reconnected is asked again.
        note_refused: called with the site and the reason for every answer that does not count.
        book: keeps the signed statement of every answer.
        """
        self._runtime = runtime
        self._key = key
        self._sites = sites
        self._by_key = {pem_of(site.public_key): name for name, site in sites.items()}
        self._registered = registered
        self._ask_again_seconds = ask_again_seconds
        self._note_refused = note_refused
        self.most_bytes = 0.0
        self._sender = fingerprint(public_line(key.private))
        self._run = payload_digest(key.envelope)
        self._book = AnswerBook() if book is None else book
        self._attempts: dict[str, int] = {}
        self._arrived: dict[str, Reply] = {}
        self._outstanding: set[str] = set()
        self._notices: set[str] = set()
        self._claiming = threading.Lock()
        self._names: dict[int, str] = {}
        self._online: dict[str, str] = {}
        self._looked_at = 0.0

    def online(self) -> Mapping[int, str]:
        """As in `Clients`."""
        registered = self._registered()
        found = {}
        online = {}
        for node_id, node in self._runtime.nodes().items():
            name = self._by_key.get(node.key)
            if name is not None and name in registered:
                found[node_id] = name
                online[name] = node.since
        self._names |= found
        self._online = online
        self._looked_at = time.monotonic()
        return found

    def ask(
        self, requests: Iterable[Request], kind: str, round: int, timeout: float
    ) -> Iterator[Answer]:
        """As in `Clients`. While the caller works on an answer, the next one is fetched."""
        self.online()
        deadline = time.time() + timeout
        questions = [
            self._question(request, kind, round, deadline) for request in requests
        ]
        self._send(questions)
        return self._answers(questions)

    def _answers(self, questions: list[_Question]) -> Iterator[Answer]:
        thread = ThreadPoolExecutor(1)
        try:
            waits = [
                thread.submit(self._answer_to, question) for question in questions[:1]
            ]
            for question in questions[1:]:
                answer = waits.pop().result()
                waits.append(thread.submit(self._answer_to, question))
                yield answer
                del answer
            for wait in waits:
                yield wait.result()
        finally:
            for question in questions:
                question.is_dropped = True
            # A stopped run must write its status before Flower ends its process, so it does not
            # wait here.
            thread.shutdown(wait=False, cancel_futures=True)

    def tell(self, request: Request, kind: str, round: int) -> None:
        """As in `Clients`."""
        notice = self._question(request, kind, round, time.time() + LATE_SECONDS)
        self._send([notice])
        self._notices.update(notice.message_ids)

    def provenance_of(self, run: RunFolder, kept: RoundRecord) -> Provenance:
        """As in `Certifier`."""
        keys = {name: site.signing_key for name, site in self._sites.items()}
        return provenance_of(run, payload_digest(self._key.plan), keys, kept)

    def sign_provenance(self, provenance: Provenance) -> dict[str, str]:
        """As in `Certifier`."""
        return {
            "run": self._key.envelope,
            "statement": sign(MODEL, provenance, self._key.private),
        }

    def close(self) -> None:
        """Wait a moment until the last notices have arrived: the SuperLink drops them when the
        run ends."""
        until = time.monotonic() + _CLOSING_SECONDS
        while self._notices & self._outstanding and time.monotonic() < until:
            self._claim()
            time.sleep(POLL_SECONDS)

    def _question(
        self, request: Request, kind: str, round: int, deadline: float
    ) -> _Question:
        name = self._names[request.node_id]
        return _Question(
            name, self._sites[name].signing_key, request, kind, round, deadline
        )

    def _send(self, questions: Iterable[_Question]) -> None:
        """Send each question whose site is online, as a new attempt."""
        known: dict[int, Object] = {}
        sent = [question for question in questions if question.name in self._online]
        outgoing = [self._message(question, known) for question in sent]
        message_ids = self._runtime.push(outgoing) if outgoing else []
        for question, message_id in zip(sent, message_ids, strict=True):
            question.asked_at = time.monotonic()
            question.online_since = self._online[question.name]
            question.is_lost = not message_id  # "" if its node has just gone offline
            if message_id:
                question.message_ids.append(message_id)
                with self._claiming:
                    self._outstanding.add(message_id)

    def _message(
        self, question: _Question, known: dict[int, Object]
    ) -> OutgoingMessage:
        """Sign a new attempt. Args: known: objects that other messages share, by id in memory."""
        with self._claiming:
            attempt = self._attempts.get(question.name, 0) + 1
            self._attempts[question.name] = attempt
        records = record_objects(question.request.content, known)
        statement = Statement(
            version=1,
            run=self._run,
            round=question.round,
            attempt=attempt,
            kind=question.kind,
            sender=self._sender,
            receiver=fingerprint(question.signing_key),
            nonce=secrets.token_hex(16),
            answers="",
            records=sizes(records),
            expires=question.deadline,
            ledger=self._book.heads.get(question.signing_key, ""),
        )
        envelope = sign(TASK, statement, self._key.private)
        question.asked[payload_digest(envelope)] = statement
        envelopes = {"run": self._key.envelope, "statement": envelope}
        if question.kind == HELLO:
            envelopes["plan"] = self._key.plan
        signed = {ENVELOPE: ConfigRecord(envelopes)}  # type: ignore[arg-type]
        objects = record_objects(signed, known)  # type: ignore[arg-type]
        content = content_of_records(records | objects)
        ttl = question.deadline - time.time() + LATE_SECONDS
        return OutgoingMessage(
            question.request.node_id, question.kind, content, ttl, str(question.round)
        )

    def _answer_to(self, question: _Question) -> Answer:
        """Wait for an answer, fetch it and check it. Looks at least once, even after the
        deadline."""
        try:
            while True:
                self._claim()
                for message_id in question.message_ids:
                    reply = self._arrived.pop(message_id, None)
                    if reply is None:
                        continue
                    try:
                        return self._read(question, reply)
                    except ObjectMissing:
                        question.is_lost = True
                        # Its node may have just gone offline: look, so that no attempt is wasted.
                        self._looked_at = -inf
                if question.name not in self._registered():
                    return NoAnswer("it is not registered any more")
                if question.is_over():
                    return None
                if self._is_gone(question):
                    return NoAnswer("its node is not connected any more")
                if question.is_lost and len(question.asked) >= MOST_ATTEMPTS:
                    return NoAnswer(
                        f"its answer did not come through, {MOST_ATTEMPTS} times"
                    )
                if self._is_to_be_asked_again(question):
                    self._send([question])
                time.sleep(POLL_SECONDS)
        finally:
            with self._claiming:
                self._outstanding.difference_update(question.message_ids)

    def _is_to_be_asked_again(self, question: _Question) -> bool:
        """Return True if the answer is lost, or if the site has reconnected and not answered for
        long.

        A site that stayed connected is at work. If it were asked twice, it would do the work twice.
        """
        since = self._online.get(question.name)
        if since is None or len(question.asked) >= MOST_ATTEMPTS:
            return False
        has_reconnected = since != question.online_since
        has_waited = time.monotonic() - question.asked_at > self._ask_again_seconds
        return question.is_lost or (has_reconnected and has_waited)

    def _claim(self) -> None:
        """Claim every answer that has arrived, so that it counts even if its site goes offline."""
        with self._claiming:
            if not self._outstanding:
                return
            for reply in self._runtime.claim(self._outstanding):
                self._outstanding.discard(reply.to)
                self._arrived[reply.to] = reply

    def _read(self, question: _Question, reply: Reply) -> Answer:
        """Return an authentic answer. Raises ObjectMissing."""
        if reply.error:  # Flower's error: the node is offline, or the time is over
            raise ObjectMissing
        is_over = question.is_over

        def fetch(ids: Sequence[str]) -> Iterator[bytes]:
            return self._runtime.fetch(ids, is_over)

        try:
            names, envelopes = read_signed(
                self._runtime.content_of(reply, is_over), fetch
            )
            statement = check_answer(
                envelopes.get("statement", ""), question.signing_key, question.asked
            )
            # A small object can be named a thousand times, so the signed sizes do not limit the
            # memory.
            most_bytes = self.most_bytes if question.kind == TRAIN else 0
            content = read_content(names, statement.records, fetch, _room, most_bytes)
        except NotAuthentic as error:
            self._runtime.confirm(reply)  # so that the SuperLink deletes its objects
            self._note_refused(question.name, error.reason)
            return BadAnswer(f"its answer does not count: {error.reason}")
        self._book.keep(
            question.name, question.signing_key, envelopes["statement"], statement
        )
        self._runtime.confirm(reply)
        try:
            check_answered(content)
        except NoAnswer as declined:
            if declined.code == LOST:
                raise ObjectMissing from None
            return declined
        return content

    def _is_gone(self, question: _Question) -> bool:
        """Return True if the site has been offline for a while."""
        if time.monotonic() - self._looked_at > _LOOK_SECONDS:
            self.online()
        if question.name in self._online:
            question.offline_since = None
            return False
        question.offline_since = question.offline_since or time.monotonic()
        return time.monotonic() - question.offline_since > _OFFLINE_SECONDS


def _room(num_bytes: int) -> np.ndarray:
    return np.empty(num_bytes, dtype=np.uint8)
