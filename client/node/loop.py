"""What a site does while it takes part: pull a question, find it authentic, have it answered, sign, push."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from math import inf
from typing import TypeVar

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
from wardround.common.wire.refusals import LOST
from wardround.common.wire.signing import (
    ANSWER,
    Question,
    Statement,
    check_question,
    payload_digest,
    sign,
)
from wardround.common.words import LONGEST_TEXT, quoted, shown

# Between questions whether there is something: soon after a task, in the round of the last one, else.
_SOON_PAUSE, _ROUND_PAUSE, _IDLE_PAUSE = 0.25, 0.5, 2.0
_SOON_SECONDS = 600.0
_DISK_PAUSE = 1.0
_TIDY_SECONDS = 60.0
_ENVELOPE_SECONDS = 60.0
_KINDS = (HELLO, TRAIN, EVALUATE)
T = TypeVar("T")


class Loop:
    """One site at work over one connection."""

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
        """Args:
        file: of the site, which may change meanwhile; None for a site that has none.

        Raises:
            ValueError: the site's signing key or the coordinator's cannot be read.
        """
        self._connection, self._worker, self._journal = connection, worker, journal
        self._ledger = ledger
        self._say, self._is_stopping = say, is_stopping
        self._site, self._site_file = site, file
        self._key, self._coordinator = signing_keys(site)
        self._own, self._name = fingerprint(public_line(self._key)), site.name
        self._plans, self._limits = (
            Plans(site, self._coordinator),
            limits_of(site, self._key),
        )
        self._answers = Answers(site.state)
        self._told_of = ""
        self._is_open = False
        self._tidied = -inf
        self._last_task, self._round_ends = time.monotonic(), 0.0
        self._heartbeat: Heartbeat | None = None

    def serve(self, heartbeat: Heartbeat) -> None:
        """Answer messages until a signal comes.

        Raises:
            Refused or Unreachable: the connection has to be made anew.
            Stopped: a signal came while something could not be done.
            LedgerBehind: the ledger is an old copy, or another machine uses this site's key.
        """
        self._heartbeat = heartbeat
        if not self._is_open:
            self._note(self._ledger.opened)
            self._is_open = True
        if self._journal.in_hand:
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
            self._last_task, self._round_ends = (
                time.monotonic(),
                letter.ends - LATE_SECONDS,
            )
            self._note(partial(self._journal.take, letter.written))
            self._handle(letter)

    def _pause(self) -> float:
        if time.monotonic() - self._last_task < _SOON_SECONDS:
            return _SOON_PAUSE
        return _ROUND_PAUSE if time.time() < self._round_ends else _IDLE_PAUSE

    def _tidy(self) -> None:
        """Now and then, remove what was kept of plans that are over, or not to be executed any more."""
        if time.monotonic() - self._tidied < _TIDY_SECONDS:
            return
        self._tidied = time.monotonic()
        for plan in self._answers.plans():
            known = self._plans.get(plan)
            if known is None or known.is_over(time.time()):
                self._note(partial(self._answers.end, plan))

    def _go_on(self) -> None:
        """Take up the message that was in hand when this program ended, if it was sent to this node."""
        letter = Letter(self._journal.in_hand)
        if (
            letter.node_id == self._connection.node.node_id
            and letter.ends > time.time()
        ):
            self._say("going on with the message that was in hand")
            self._handle(letter)
        else:
            self._note(self._journal.put_down)

    def _note(self, write: Callable[[], T]) -> T:
        """Write into journal or ledger, and wait where that fails: what is not noted is not answered."""
        was_told = False
        while True:
            try:
                return write()
            except OSError as error:
                if not was_told:
                    self._say(
                        f"{error.filename}: {error.strerror}; nothing is answered until then"
                    )
                was_told = True
            self._sleep(_DISK_PAUSE)
            if self._is_stopping():
                raise Stopped
            if self._heartbeat is not None and self._heartbeat.refused is not None:
                raise self._heartbeat.refused

    def _handle(self, letter: Letter) -> None:
        """One message from its first byte to the end of its answer."""
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
        except (
            Exception
        ) as error:  # whatever it was in that message, it costs that message
            self._count(letter, "damaged", f" ({type(error).__name__})")
        self._note(self._journal.put_down)

    def _count(self, letter: Letter, reason: Reason, why: str = "") -> None:
        """A message does not count: it stands in the numbers of journal and ledger.

        The first of each reason in an hour is told at once; the ledger's line tells of the others.
        """
        is_first = self._note(partial(self._ledger.does_not_count, reason))
        self._note(partial(self._journal.count_refused, reason))
        if is_first:
            self._say(
                f"a message of type {shown(letter.kind)} does not count and is refused: {reason}{why}. "
                "More of them within an hour are only counted (state/journal.json)"
            )

    def _send(self, letter: Letter, content: RecordDict, seconds: float) -> None:
        """Push an answer that the ledger tells of, and note its outcome. Raises Refused or Unreachable."""
        try:
            self._connection.push(letter, content, seconds)
        except Exception as error:
            self._note(partial(self._ledger.stayed, type(error).__name__))
            raise
        envelope = str(content.config_records[ENVELOPE]["statement"])
        self._note(partial(self._ledger.left, payload_digest(envelope)))

    def _answer(self, letter: Letter) -> RecordDict | None:
        """The signed answer to a message; None where it must not have one."""
        room = Room()
        question: Question | None = None
        try:
            soon = min(
                letter.ends, time.time() + _ENVELOPE_SECONDS
            )  # nobody has signed for this wait yet
            read = partial(self._connection.fetch, letter, until=soon)
            names, envelopes = read_signed(
                self._connection.content_of(letter, soon), read
            )
            question = check_question(
                envelopes, self._coordinator, self._own, letter.kind
            )
            if (
                question.statement.ledger
                and question.statement.ledger not in self._ledger
            ):
                raise LedgerBehind(question.statement.ledger)
            if self._journal.was_begun(question):
                return self._signed(pack_refusal(LOST), question, letter)
            until = min(letter.ends, question.statement.expires + LATE_SECONDS)
            fetch = partial(self._connection.fetch, letter, until=until)
            # Nothing tells yet how large the model is; but what does not fit here cannot be trained either.
            free = available_memory() if letter.kind in (TRAIN, EVALUATE) else 0
            content = read_content(
                names,
                question.statement.records,
                fetch,
                room,
                inf if free is None else free,
            )
            asked = describe(content, question.statement.records)
            self._note(partial(self._ledger.came, letter.kind, question, asked))
            self._note(partial(self._journal.begin, question))
            told = envelopes.get("plan", "")
            found = self._work(letter, content, room, question, told)
            return self._signed(found.content, question, letter, found.update_norm)
        except NotAuthentic as error:
            self._count(letter, error.reason)
            return self._signed(pack_refusal(error.reason), question, letter)
        except (Refused, Unreachable, Stopped, LedgerBehind):
            raise
        except Exception as error:  # silence would cost the whole round
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
        told: str,
    ) -> SiteAnswer:
        """Args: told: the signed plan that came along; empty for none."""
        if letter.kind == NOTICE:
            self._say(
                f"the server says: {quoted(unpack_notice(content), LONGEST_TEXT)}"
            )
            return SiteAnswer(RecordDict())
        if letter.kind not in _KINDS:
            return SiteAnswer(pack_refusal("unknown_kind"))
        if letter.seconds_left <= 0:
            self._say("a message came after its round was over, and is left undone")
            return SiteAnswer(pack_refusal("late"))
        try:
            self._heed_site_file()
            order = self._ordered(question, told)
        except SiteRefusal as no:
            if (
                text := f"a message of type {shown(letter.kind)} is refused: {no}"
            ) != self._told_of:
                self._say(text)
            self._told_of = (
                text  # a server that waits for a decision asks again and again
            )
            return SiteAnswer(pack_refusal(no.code, no.key))
        self._told_of = ""
        if letter.kind == HELLO:
            return self._worker.answer(
                letter.kind, content, room, letter.seconds_left, order.to_dict()
            )
        return self._answered_once(letter, content, room, order)

    def _answered_once(
        self, letter: Letter, content: RecordDict, room: Room, order: Order
    ) -> SiteAnswer:
        """The answer to a round: the one that was stored for it, or a new one, which is stored."""
        begun = Begun(
            model=str(content.config_records["task"]["version"]),
            data=self._data_now(order),
        )
        begin = partial(
            self._answers.begin,
            *(order.plan, letter.kind, order.round, begun),
            floor=self._journal.last_round_before(order.plan),
            most=self._site.policy.max_total_answers,
        )
        try:
            stored = self._note(begin)
        except SiteRefusal as no:
            self._say(
                f"round {order.round} of plan {order.plan[:12]} is not answered: {no}"
            )
            return SiteAnswer(pack_refusal(no.code, no.key))
        if stored is not None:
            self._say(f"the stored answer to round {order.round} is sent again")
            return stored
        found = self._worker.answer(
            letter.kind, content, room, letter.seconds_left, order.to_dict()
        )
        keep = partial(self._answers.keep, order.plan, letter.kind, order.round)
        self._note(partial(keep, found.content, found.update_norm))
        return found

    def _data_now(self, order: Order) -> str:
        """SHA-256 of the file of texts; that of the approval if it is not there: nothing is trained then."""
        try:
            return file_sha256(self._site.data_path)
        except OSError:
            return order.data

    def _heed_site_file(self) -> None:
        """Go by the policy as the site's file says it now. Raises SiteRefusal if the file is wrong."""
        if self._site_file is None:
            return
        self._site = self._site_file.now()
        try:
            self._limits = limits_of(self._site, self._key)
        except ValueError as error:  # its invitation
            raise SiteRefusal("bad_input", words=str(error)) from None

    def _ordered(self, question: Question, told: str) -> Order:
        """What is to be done, of a plan that was approved. Raises SiteRefusal, or NotAuthentic of `told`."""
        if told and self._note(partial(self._plans.add, told)) != question.plan:
            raise NotAuthentic("forged")
        known = self._note(
            partial(executed, self._plans, question.plan, self._site, self._limits)
        )
        decision = known.decision
        approved = partial(
            self._ledger.approved,
            question.plan,
            decision.at,
            decision.by,
            decision.people,
        )
        self._note(approved)
        said = question.statement
        first = 1 if said.kind == TRAIN else 0
        if not first <= said.round <= known.settings.num_rounds:
            raise SiteRefusal("beyond_plan")
        if said.kind == EVALUATE and known.settings.evaluation.where != "sites":
            raise SiteRefusal("policy", "evaluation.where")
        return Order(
            plan=question.plan,
            settings=known.settings,
            client=sorted(known.plan.sites).index(self._name),
            round=said.round,
            age=said.round - 1 if said.kind == TRAIN else said.round,
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
        """A content with its envelope, once the ledger tells of it on the disk.

        Without a question that was found authentic it answers none, and the ledger counts it only.
        """
        asked = question.statement if question else None
        records = sizes(record_objects(content, {}))
        leaves = partial(
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
            ledger=self._note(leaves),
        )
        content[ENVELOPE] = ConfigRecord(
            {"statement": sign(ANSWER, statement, self._key)}
        )
        return content

    def _sleep(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._is_stopping() and time.monotonic() < until:
            time.sleep(min(0.1, max(0.0, until - time.monotonic())))
