"""Signed statements: sender, receiver, round and type of a message, and the SHA-256 of its records.

    coordinator's key  signs  a plan            (`Plan`, from `wardround submit`; sites approve it)
    coordinator's key  signs  a run's key       (`RunStatement`, of one submission of a plan)
    the run's key      signs  every question    (`Statement` of type TASK)
    a site's key       signs  every answer      (`Statement` of type ANSWER)

Envelopes are DSSE 1.0 (github.com/secure-systems-lab/dsse, protocol.md) with Ed25519 (RFC 8032).
Parties are named by the fingerprints of their keys: Flower's node and run numbers change when the
server starts again. Flower's routing delivers messages, but proves nothing about them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter

from wardround.common.credentials import check_public_line, fingerprint, public_line
from wardround.common.errors import NotAuthentic, OtherVersion, damaged_if_unreadable
from wardround.common.versions import NAME, advice, installed, work_together
from wardround.common.words import printable

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_LONGEST_VERSION = 40
PLAN = "application/vnd.wardround.plan+json"
RUN = "application/vnd.wardround.run+json"
TASK = "application/vnd.wardround.task+json"
ANSWER = "application/vnd.wardround.answer+json"
MODEL = "application/vnd.wardround.model+json"
INVITATION = "application/vnd.wardround.invitation+json"
REGISTRATION = "application/vnd.wardround.registration+json"
ROTATION = "application/vnd.wardround.rotation+json"
CLOCK_SECONDS = 300.0
"""The largest difference that the clocks of two machines may have."""
Reason = Literal[
    "unsigned", "forged", "misdirected", "replayed", "expired", "damaged", "unasked"
]
_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
# Signed values are stored, shown to people and used in paths, so their form is checked strictly.
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Sha256OrEmpty = Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]
Whole = Annotated[int, Field(ge=0, lt=2**53)]
Seconds = Annotated[float, Field(ge=0, lt=2**37)]
"""Seconds since 1970, up to the year 6325."""


@dataclass(frozen=True)
class RunStatement:
    """The coordinator's statement that a key signs the questions of one run."""

    __pydantic_config__ = _STRICT

    name: str
    """Random for each submission."""
    key: str
    """The run's public key, OpenSSH form."""
    not_before: Seconds
    """Seconds since 1970, as `not_after`."""
    not_after: Seconds
    plan: Sha256
    """SHA-256 of the plan that these questions belong to."""


@dataclass(frozen=True)
class Plan:
    """The work that a run asks of its sites. A site executes only plans that it approved."""

    __pydantic_config__ = _STRICT

    version: Literal[1, 2]
    settings: dict[str, Any]
    """`Settings.for_sites()` as plain values. Requests to train carry no settings."""
    sites: dict[str, str]
    """The sites that take part: name, and fingerprint of the key that signs the site's answers."""
    not_before: Seconds
    """Seconds since 1970, as `not_after`."""
    not_after: Seconds
    code: dict[str, str]
    """Versions to install at the sites, by package. Nothing proves the server's own versions."""
    parent: Sha256OrEmpty
    """SHA-256 of the plan that this one continues; empty for none."""
    most_texts: int = 0
    """The largest number of training texts of a site; 0 if a site has no bound."""


@dataclass(frozen=True)
class Statement:
    """The signed facts of a question or of an answer."""

    __pydantic_config__ = _STRICT

    version: Literal[1]
    run: Sha256OrEmpty
    """SHA-256 of the run's statement; empty in an answer to a message that does not count."""
    round: Whole
    attempt: Whole
    """Number of this question to the site in this run, from 1. Each repetition has a new one."""
    kind: str
    """Message type, as in `common/wire/messages.py`."""
    sender: str
    """Fingerprint of the key that signs."""
    receiver: str
    """Fingerprint of the receiver's signing key."""
    nonce: str
    """Random in a question; empty in an answer."""
    answers: Sha256OrEmpty
    """In an answer, the SHA-256 of the question's statement; empty in a question."""
    records: dict[str, tuple[Sha256, Whole]]
    """All records of the message: Flower's object id, a SHA-256 of the whole record, and bytes."""
    expires: float
    """End of the wait for an answer, in seconds since 1970."""
    ledger: Sha256OrEmpty = ""
    """In an answer, the hash of its line in the site's ledger. In a question, the newest such
    hash that the server has from this site; empty for none."""


Signed = TypeVar("Signed", Plan, RunStatement, Statement)


def sign(payload_type: str, statement: object, *keys: Ed25519PrivateKey) -> str:
    """Return an envelope of a statement (a dataclass), signed with each key."""
    return with_signatures(unsigned(payload_type, statement), *keys)


def unsigned(payload_type: str, statement: object) -> str:
    """Return an envelope of a statement (a dataclass) without a signature."""
    values = asdict(statement)  # type: ignore[call-overload]
    payload = json.dumps(values, sort_keys=True).encode()
    return _envelope(payload_type, payload, [])


def with_signatures(envelope: str, *keys: Ed25519PrivateKey) -> str:
    """Return the same envelope, signed with exactly these keys.

    Args:
        envelope: an envelope of this program. Read any other with `read_envelope` first.
    """
    content = json.loads(envelope)
    payload_type = content["payloadType"]
    payload = base64.b64decode(content["payload"])
    signed = _signed_bytes(payload_type, payload)
    signatures = []
    for key in keys:
        name = fingerprint(public_line(key))
        signature = _text(key.sign(signed))
        signatures.append({"keyid": name, "sig": signature})
    return _envelope(payload_type, payload, signatures)


def _envelope(
    payload_type: str, payload: bytes, signatures: list[dict[str, str]]
) -> str:
    content = {
        "payloadType": payload_type,
        "payload": _text(payload),
        "signatures": signatures,
    }
    return json.dumps(content, sort_keys=True)


def is_signed(envelope: str) -> bool:
    """Return whether an envelope of this program has a signature of any key."""
    return bool(json.loads(envelope)["signatures"])


def open_envelope(envelope: str, payload_type: str, keys: Collection[str]) -> bytes:
    """Return the payload, if one of these public keys (OpenSSH form) has signed it.

    Raises:
        NotAuthentic: it is not an envelope of this type, or no key of these has signed it.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.serialization import load_ssh_public_key

    payload, signatures = read_envelope(envelope, payload_type)
    signed = _signed_bytes(payload_type, payload)
    for key in keys:
        try:
            name = fingerprint(check_public_line(key, "signing"))
            signature = signatures[name]
            public: Any = load_ssh_public_key(key.encode())
            public.verify(signature, signed)
        # This key has not signed, is no key, or the signature is of another payload.
        except (KeyError, ValueError, InvalidSignature):
            continue
        return payload
    raise NotAuthentic("forged")


def read_envelope(envelope: str, payload_type: str) -> tuple[bytes, dict[str, bytes]]:
    """Return the payload and the unchecked signatures, by the fingerprints of their keys.

    Raises:
        NotAuthentic: it is no envelope of this type.
    """
    with damaged_if_unreadable():
        content = json.loads(envelope)
        claimed = content["payloadType"]
        payload = base64.b64decode(content["payload"], validate=True)
        signatures = {}
        for item in content["signatures"]:
            key = str(item["keyid"])
            signatures[key] = base64.b64decode(item["sig"])
    if claimed != payload_type:
        raise NotAuthentic("forged")
    return payload, signatures


def read_statement(kind: type[Signed], payload: bytes) -> Signed:
    """Return the statement in a payload. Raises NotAuthentic if it holds something else."""
    with damaged_if_unreadable():
        found: Signed = _ADAPTERS[kind].validate_json(payload)
        return found


_ADAPTERS: dict[type, TypeAdapter[Any]] = {
    Plan: TypeAdapter(Plan),
    RunStatement: TypeAdapter(RunStatement),
    Statement: TypeAdapter(Statement),
}


def digest(payload: bytes) -> str:
    """Return the SHA-256, hexadecimal."""
    return hashlib.sha256(payload).hexdigest()


def payload_digest(envelope: str) -> str:
    """Return the SHA-256 of the payload of an envelope of this program."""
    content = json.loads(envelope)
    return digest(base64.b64decode(content["payload"]))


@dataclass(frozen=True)
class Question:
    """An authentic question."""

    statement: Statement
    digest: str
    """SHA-256 of the statement; the answer repeats it."""
    run_key: str
    """The public key that signed it, in OpenSSH form."""
    run_ends: float
    """End of the run's questions, in seconds since 1970."""
    plan: str
    """SHA-256 of its plan."""


def check_question(
    envelopes: Mapping[str, str],
    coordinator: str,
    receiver: str,
    kind: str,
    now: float | None = None,
) -> Question:
    """Check that a question is the coordinator's, for this site, and has not expired.

    Args:
        envelopes: `run` and `statement`, as received.
        coordinator: public key, OpenSSH form.
        receiver: fingerprint of this site's key.
        kind: type of the received message.

    Raises:
        NotAuthentic: `forged`, `damaged`, `misdirected` or `expired`.
    """
    now = time.time() if now is None else now
    run_payload = open_envelope(envelopes.get("run", ""), RUN, [coordinator])
    run = read_statement(RunStatement, run_payload)
    payload = open_envelope(envelopes.get("statement", ""), TASK, [run.key])
    statement = read_statement(Statement, payload)
    if statement.run != digest(run_payload):
        raise NotAuthentic("forged")
    if statement.sender != fingerprint(run.key):
        raise NotAuthentic("forged")
    if statement.receiver != receiver or statement.kind != kind:
        raise NotAuthentic("misdirected")
    first = run.not_before - CLOCK_SECONDS
    last = min(run.not_after, statement.expires) + CLOCK_SECONDS
    if not first <= now <= last:
        raise NotAuthentic("expired")
    return Question(
        statement=statement,
        digest=digest(payload),
        run_key=run.key,
        run_ends=run.not_after,
        plan=run.plan,
    )


def open_plan(envelope: str, coordinator: str) -> tuple[Plan, str]:
    """Return a plan that the coordinator has signed, and its SHA-256.

    Raises:
        NotAuthentic: `forged` or `damaged`.
        OtherVersion: the coordinator's version of Wardround does not work with this one.
    """
    payload = open_envelope(envelope, PLAN, [coordinator])
    theirs = _version_of(payload)
    if not work_together(theirs, installed()):
        raise OtherVersion(advice(theirs))
    try:
        return read_statement(Plan, payload), digest(payload)
    except NotAuthentic:
        if theirs == installed():
            raise
        raise OtherVersion(advice(theirs)) from None


def _version_of(payload: bytes) -> str:
    """Return the version of Wardround that made a plan. Raises NotAuthentic."""
    with damaged_if_unreadable():
        plan = json.loads(payload)
        found = plan["code"].get(NAME, installed())
        return printable(str(found), _LONGEST_VERSION)


def check_answer(
    envelope: str,
    sender_key: str,
    asked: Mapping[str, Statement],
    now: float | None = None,
) -> Statement:
    """Check that an answer comes from the site that was asked, and belongs to an open question.

    Args:
        sender_key: public key of that site, OpenSSH form.
        asked: the open questions to this site, by the SHA-256 of their statements.

    Raises:
        NotAuthentic: `forged`, `damaged`, `unasked`, `misdirected` or `expired`.
    """
    now = time.time() if now is None else now
    payload = open_envelope(envelope, ANSWER, [sender_key])
    answer = read_statement(Statement, payload)
    question = asked.get(answer.answers)
    if question is None:
        raise NotAuthentic("unasked")
    if answer.sender != fingerprint(sender_key):
        raise NotAuthentic("misdirected")
    if answer.receiver != question.sender:
        raise NotAuthentic("misdirected")
    answered = (answer.run, answer.round, answer.attempt, answer.kind)
    if answered != (question.run, question.round, question.attempt, question.kind):
        raise NotAuthentic("forged")
    if now > answer.expires + CLOCK_SECONDS:
        raise NotAuthentic("expired")
    return answer


def _signed_bytes(payload_type: str, payload: bytes) -> bytes:
    """Return the bytes that are signed: DSSE's pre-authentication encoding."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
