"""The loop of a site: pull a question, check it, have it answered, sign and push the answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from math import inf
from typing import ParamSpec, TypeVar

from flwr.app import ConfigRecord, RecordDict

from wardround.client.answers import Answers, Begun, SiteAnswer
from wardround.client.decisions import executed, limits_of
from wardround.client.node.connection import Connection, Heartbeat, Letter
from wardround.client.node.journal import Journal
from wardround.client.node.ledger import Ledger
from wardround.client.node.watched import WatchedFile
from wardround.client.node.worker import Room, Worker
from wardround.client.plans import Plans
from wardround.client.site import Order
from wardround.client.site_file import SiteFile, signing_keys
from wardround.common.credentials import fingerprint, public_line
from wardround.common.errors import (
    LedgerBehind,
    NotAuthentic,
    Reason,
    Refused,
    SiteRefusal,
    Stopped,
    Unreachable,
)
from wardround.common.files import file_sha256
from wardround.common.ledger import describe
from wardround.common.runtime import available_memory
from wardround.common.wire.codec import pack_refusal, unpack_notice
from wardround.common.wire.deadlines import LATE_SECONDS
from wardround.common.wire.messages import EVALUATE, HELLO, NOTICE, TRAIN
from wardround.common.wire.objects import (
    ENVELOPE,
    read_content,
    read_signed,
    record_objects,
    sizes,
)
from wardround.common.wire.refusals import LOST, PENDING
from wardround.common.wire.signing import (
    ANSWER,
    Question,
    Statement,
    check_question,
    payload_digest,
    sign,
)
from wardround.common.words import LONGEST_TEXT, quoted, shown

# Pauses between pulls: soon after a task; during the round of the last task; otherwise.
_SOON_PAUSE, _ROUND_PAUSE, _IDLE_PAUSE = 0.25, 0.5, 2.0
_SOON_SECONDS = 600.0
_DISK_PAUSE = 1.0
_TIDY_SECONDS = 60.0
_ENVELOPE_SECONDS = 60.0
_KINDS = (HELLO, TRAIN, EVALUATE)
P = ParamSpec("P")
T = TypeVar("T")


class Loop:
    """Answers the messages of one site over one connection."""

    def __init__(
        self,
        site: SiteFile,
        connection: Connection,
        worker: Worker,
        journal: Journal,
        ledger: Ledger,
        say: Callable[[str], None],
        is_stopping: Callable[[], bool],
        file: WatchedFile | None = None,
    ) -> None:
        """Prepare the loop.

        Args:
            file: the site's file, which may change meanwhile; None if there is none.

        Raises:
            ValueError: the site's signing key or the coordinator's cannot be read.
        """
        self._connection = connection
        self._worker = worker
        self._journal = journal
        self._ledger = ledger
        self._say = say
        self._is_stopping = is_stopping
        self._site = site
        self._site_file = file
        self._key, self._coordinator = signing_keys(site)
        self._own = fingerprint(public_line(self._key))
        self._name = site.name
        self._plans = Plans(site, self._coordinator)
        self._limits = limits_of(site, self._key)
        self._answers = Answers(site.state)
        self._last_refusal = ""
        self._is_open = False
        self._tidied = -inf
        self._last_task = time.monotonic()
        self._round_ends = 0.0
        self._heartbeat: Heartbeat | None = None

    def serve(self, heartbeat: Heartbeat) -> None:
        """Answer messages until a signal arrives.

        Raises:
            Refused or Unreachable: the site must connect again.
            Stopped: a signal arrived while the loop was waiting.
            LedgerBehind: the ledger is an old copy, or another machine uses this
                site's key.
        """
        self._heartbeat = heartbeat
        if not self._is_open:
            self._note(self._ledger.opened)
            self._is_open = True
        if self._journal.current:
            self._go_on()
        while not self._is_stopping():
            if heartbeat.refused is not None:
                raise heartbeat.refused
            letter = self._connection.pull()
            if letter is None:
                self._note(self._ledger.sum_up)
                self._worker.rest_if_idle()
                self._tidy()
                self._sleep(self._pause())
                continue
            self._last_task = time.monotonic()
            self._round_ends = letter.ends - LATE_SECONDS
            self._note(self._journal.take, letter.written)
            self._handle(letter)

    def _pause(self) -> float:
        if time.monotonic() - self._last_task < _SOON_SECONDS:
            return _SOON_PAUSE
        return _ROUND_PAUSE if time.time() < self._round_ends else _IDLE_PAUSE

    def _tidy(self) -> None:
        """Once a minute, delete the answers of plans that are over."""
        if time.monotonic() - self._tidied < _TIDY_SECONDS:
            return
        self._tidied = time.monotonic()
        for plan in self._answers.plans():
            known = self._plans.get(plan)
            if known is None or known.is_over(time.time()):
                self._note(self._answers.end, plan)

    def _go_on(self) -> None:
        """Continue the message from before the restart, if it was sent to this node."""
        letter = Letter(self._journal.current)
        is_ours = letter.node_id == self._connection.node.node_id
        if is_ours and letter.ends > time.time():
            self._say("continuing the interrupted message")
            self._handle(letter)
        else:
            self._note(self._journal.put_down)

    def _note(self, write: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        """Write to the disk, again and again until that succeeds.

        A message is answered only after it is noted.
        """
        was_reported = False
        while True:
            try:
                return write(*arguments, **named)
            except OSError as error:
                if not was_reported:
                    self._say(
                        f"{error.filename}: {error.strerror}. Nothing is answered until this "
                        "file can be written"
                    )
                was_reported = True
            self._sleep(_DISK_PAUSE)
            if self._is_stopping():
                raise Stopped
            if self._heartbeat is not None and self._heartbeat.refused is not None:
                raise self._heartbeat.refused

    def _handle(self, letter: Letter) -> None:
        """Answer one message."""
        started = time.monotonic()
        try:
            content = self._answer(letter)
            if content is not None:
                self._send(letter, content, time.monotonic() - started)
            self._connection.confirm(letter)
        except Refused as refused:
            if refused.why != "dropped":
                raise
            self._say(f"a message of type {shown(letter.kind)} was given up: {refused}")
        except (Unreachable, Stopped, LedgerBehind):
            raise
        except Exception as error:  # it costs this message alone
            self._count(letter, "damaged", f" ({type(error).__name__})")
        self._note(self._journal.put_down)

    def _count(self, letter: Letter, reason: Reason, why: str = "") -> None:
        """Add a message that does not count to the numbers in journal and ledger.

        The first of each reason in an hour is printed at once.
        """
        is_first = self._note(self._ledger.does_not_count, reason)
        self._note(self._journal.count_refused, reason)
        if is_first:
            self._say(
                f"a message of type {shown(letter.kind)} does not count and is refused: "
                f"{reason}{why}. More of them within an hour are only counted "
                "(state/journal.json)"
            )

    def _send(self, letter: Letter, content: RecordDict, seconds: float) -> None:
        """Push an answer, and note the outcome. Raises Refused or Unreachable."""
        try:
            self._connection.push(letter, content, seconds)
        except Exception as error:
            self._note(self._ledger.stayed, type(error).__name__)
            raise
        envelope = str(content.config_records[ENVELOPE]["statement"])
        self._note(self._ledger.left, payload_digest(envelope))

    def _answer(self, letter: Letter) -> RecordDict | None:
        """Return the signed answer to a message."""
        room = Room()
        question: Question | None = None
        try:
            # The wait is short: the question is not authentic yet.
            soon = min(letter.ends, time.time() + _ENVELOPE_SECONDS)
            read = partial(self._connection.fetch, letter, until=soon)
            names, envelopes = read_signed(
                self._connection.content_of(letter, soon), read
            )
            question = check_question(
                envelopes, self._coordinator, self._own, letter.kind
            )
            newest = question.statement.ledger
            if newest and newest not in self._ledger:
                raise LedgerBehind(newest)
            if self._journal.was_begun(question):
                return self._signed(pack_refusal(LOST), question, letter)
            until = min(letter.ends, question.statement.expires + LATE_SECONDS)
            fetch = partial(self._connection.fetch, letter, until=until)
            # The size of the model is not known yet. It must fit into the free memory.
            free = available_memory() if letter.kind in (TRAIN, EVALUATE) else 0
            content = read_content(
                names,
                question.statement.records,
                fetch,
                room,
                inf if free is None else free,
            )
            asked = describe(content, question.statement.records)
            self._note(self._ledger.came, letter.kind, question, asked)
            self._note(self._journal.begin, question)
            plan = envelopes.get("plan", "")
            found = self._work(letter, content, room, question, plan)
            return self._signed(found.content, question, letter, found.update_norm)
        except NotAuthentic as error:
            self._count(letter, error.reason)
            return self._signed(pack_refusal(error.reason), question, letter)
        except (Refused, Unreachable, Stopped, LedgerBehind):
            raise
        except Exception as error:  # without an answer the whole round would wait
            if question is None:
                self._count(letter, "damaged", f" ({type(error).__name__})")
            else:
                self._say(
                    f"a message cannot be answered: {type(error).__name__}: {error}"
                )
            return self._signed(pack_refusal("failed"), question, letter)
        finally:
            room.close()

    def _work(
        self,
        letter: Letter,
        content: RecordDict,
        room: Room,
        question: Question,
        plan: str,
    ) -> SiteAnswer:
        """Do the work of a message. Return the answer.

        Args:
            plan: the signed plan that came with the message; empty if there is none.
        """
        if letter.kind == NOTICE:
            self._say(
                f"the server says: {quoted(unpack_notice(content), LONGEST_TEXT)}"
            )
            return SiteAnswer(RecordDict())
        if letter.kind not in _KINDS:
            return SiteAnswer(pack_refusal("unknown_kind"))
        if letter.seconds_left <= 0:
            self._say("a message arrived after its round was over, and is not answered")
            return SiteAnswer(pack_refusal("late"))
        try:
            self._read_site_file()
            order = self._ordered(question, plan)
        except SiteRefusal as no:
            # A server that waits for a decision asks again and again.
            text = str(no)
            if no.code != PENDING:
                text = f"a message of type {shown(letter.kind)} is refused: {no}"
            if text != self._last_refusal:
                self._say(text)
            self._last_refusal = text
            return SiteAnswer(pack_refusal(no.code, no.key))
        self._last_refusal = ""
        if letter.kind == HELLO:
            return self._ask_worker(letter, content, room, order)
        return self._answered_once(letter, content, room, order)

    def _answered_once(
        self, letter: Letter, content: RecordDict, room: Room, order: Order
    ) -> SiteAnswer:
        """Return the stored answer to a round, or compute and store one."""
        begun = Begun(
            model=str(content.config_records["task"]["version"]),
            data=self._data_now(order),
        )
        try:
            stored = self._note(
                self._answers.begin,
                order.plan,
                letter.kind,
                order.round,
                begun,
                floor=self._journal.last_round_before(order.plan),
                most=self._site.policy.max_total_answers,
            )
        except SiteRefusal as no:
            self._say(
                f"round {order.round} of plan {order.plan[:12]} is not answered: {no}"
            )
            return SiteAnswer(pack_refusal(no.code, no.key))
        if stored is not None:
            self._say(f"the stored answer to round {order.round} is sent again")
            return stored
        found = self._ask_worker(letter, content, room, order)
        self._note(
            self._answers.keep,
            order.plan,
            letter.kind,
            order.round,
            found.content,
            found.update_norm,
        )
        return found

    def _ask_worker(
        self, letter: Letter, content: RecordDict, room: Room, order: Order
    ) -> SiteAnswer:
        return self._worker.answer(
            letter.kind, content, room, letter.seconds_left, order.to_dict()
        )

    def _data_now(self, order: Order) -> str:
        """Return the SHA-256 of the data file.

        If the file is missing, return the hash of the approval: then the worker refuses.
        """
        try:
            return file_sha256(self._site.data_path)
        except OSError:
            return order.data

    def _read_site_file(self) -> None:
        """Use the policy in the site's file. Raises SiteRefusal if the file is wrong."""
        if self._site_file is None:
            return
        self._site = self._site_file.now()
        try:
            self._limits = limits_of(self._site, self._key)
        except ValueError as error:  # the invitation is damaged
            raise SiteRefusal("bad_input", words=str(error)) from None

    def _ordered(self, question: Question, plan: str) -> Order:
        """Return the approved work of a question. Raises SiteRefusal or NotAuthentic."""
        if plan and self._note(self._plans.add, plan) != question.plan:
            raise NotAuthentic("forged")
        known = self._note(
            executed, self._plans, question.plan, self._site, self._limits
        )
        decision = known.decision
        self._note(
            self._ledger.approved,
            question.plan,
            decision.at,
            decision.by,
            decision.people,
        )
        asked = question.statement
        first = 1 if asked.kind == TRAIN else 0
        if not first <= asked.round <= known.settings.num_rounds:
            raise SiteRefusal("beyond_plan")
        if asked.kind == EVALUATE and known.settings.evaluation.where != "sites":
            raise SiteRefusal("policy", "evaluation.where")
        return Order(
            plan=question.plan,
            settings=known.settings,
            client=sorted(known.plan.sites).index(self._name),
            round=asked.round,
            age=asked.round - first,
            data=decision.data,
            most_texts=known.plan.most_texts,
        )

    def _signed(
        self,
        content: RecordDict,
        question: Question | None,
        letter: Letter,
        update_norm: float | None = None,
    ) -> RecordDict:
        """Note a content in the ledger, then add its signed envelope.

        Args:
            question: None if the message is not authentic. The ledger only counts it.
        """
        asked = question.statement if question else None
        records = sizes(record_objects(content, {}))
        line = self._note(
            self._ledger.leaves,
            letter.kind,
            question,
            describe(content, records),
            update_norm,
        )
        statement = Statement(
            version=1,
            run=asked.run if asked else "",
            round=asked.round if asked else 0,
            attempt=asked.attempt if asked else 0,
            kind=letter.kind,
            sender=self._own,
            receiver=asked.sender if asked else "",
            nonce="",
            answers=question.digest if question else "",
            records=records,
            expires=letter.ends,
            ledger=line,
        )
        content[ENVELOPE] = ConfigRecord(
            {"statement": sign(ANSWER, statement, self._key)}
        )
        return content

    def _sleep(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._is_stopping() and time.monotonic() < until:
            left = until - time.monotonic()
            time.sleep(min(0.1, max(0.0, left)))
