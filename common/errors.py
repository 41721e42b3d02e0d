"""The errors of Wardround, in one tree.

    WardroundError
    +-- Failed               the work could not be finished
    |   +-- RunFailed        a run ended early
    +-- SiteRefusal          a site does not do what the server asks
    +-- MissingBase          a client no longer holds the tensors that a request builds on
    +-- BadAnswer            an answer is not what the server asked for
    |   +-- NoAnswer         the client gave no answer
    |   +-- ExamplesChanged  the client has other examples than it said
    +-- NotAuthentic         a signed message does not count
    +-- NotProven            a model folder differs from its provenance
    +-- Unreachable    the server does not answer in time
    +-- Refused        the server answers with an error
    +-- LedgerBehind         the server holds a line that this ledger lacks
    +-- ObjectMissing        a part of an answer did not arrive
    +-- ProcessGone          the other process has closed its socket (ConnectionError)
    +-- WorkerEnded          a worker process ended before it answered
    +-- Stopped              a signal ended the work
    +-- LossNotFinite        the training loss is not finite (ArithmeticError)
    +-- OtherVersion         another version of Wardround wrote this (ValueError)
    +-- ModelNotLoaded       a model folder cannot be loaded (ValueError)
    +-- MissingColumn        a file lacks a column (ValueError)
    +-- FolderInUse          another process uses the folder (ValueError)

Wrong settings and files of people raise plain ValueError. `common/explain.py` explains them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from wardround.common.words import cleaned, printable

DIVERGED = "training diverged"
"""Part of the text of every failure that a number which is not finite has caused."""

Reason = Literal[
    "unsigned", "forged", "misdirected", "replayed", "expired", "damaged", "unasked"
]
"""Why a signed message does not count."""
Why = Literal[
    "unknown_key",
    "wrong_time",
    "other_node",
    "version",
    "still_online",
    "dropped",
    "other",
]
"""Why the server refuses a call of a site."""


class WardroundError(Exception):
    """The base of all errors in this file."""


class Failed(WardroundError):
    """The work could not be finished. The text says what failed, where, and the next step."""


class RunFailed(Failed):
    """The run ended early. The text names the round, the client and the next step."""


class SiteRefusal(WardroundError):
    """A site does not do what the server asks. `code` and `key` may be sent, the text may not."""

    def __init__(self, code: str, key: str = "", words: str = "") -> None:
        """Create the refusal.

        Args:
            code: a key of `wire.refusals.REFUSALS`.
            key: the setting in question; empty for none.
            words: the reason, for people at the site.
        """
        super().__init__(words or code)
        self.code = code
        self.key = key


class MissingBase(WardroundError):
    """A client does not hold the tensors that a request builds on. The text is their version."""


class BadAnswer(WardroundError):
    """An answer is not the expected one. The text gives the reason; it may quote a client."""

    def __init__(self, text: str) -> None:
        """Make the text printable and short: it is shown in terminals, logs and files."""
        super().__init__(printable(text))


class NoAnswer(BadAnswer):
    """The client refused the request or failed, or its node has gone."""

    def __init__(self, text: str, code: str = "") -> None:
        """Create the error.

        Args:
            text: the reason, in words.
            code: a key of `wire.refusals.REFUSALS`, if the client gave one.
        """
        super().__init__(text)
        self.code = code


class ExamplesChanged(BadAnswer):
    """A client has other examples than it introduced itself with, for example a longer file."""


class NotAuthentic(WardroundError):
    """A signed message does not count. `reason` may be sent to the other side."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason: Reason = reason


@contextmanager
def damaged_if_unreadable() -> Iterator[None]:
    """Turn every error of a reader into NotAuthentic: a stranger chose the bytes."""
    try:
        yield
    except NotAuthentic:
        raise
    except Exception:
        raise NotAuthentic("damaged") from None


class NotProven(WardroundError):
    """A model folder differs from its provenance, or the provenance is incomplete."""

    def __init__(self, words: str) -> None:
        """Clean the text: it may repeat a foreign file."""
        super().__init__(cleaned(words))


class Unreachable(WardroundError):
    """The server did not answer in time. Another try may help."""


class Refused(WardroundError):
    """The server answered a call of this site with an error."""

    def __init__(self, why: Why, detail: str = "") -> None:
        super().__init__(detail or why)
        self.why: Why = why
        self.detail = detail


class LedgerBehind(WardroundError):
    """The server holds a line that this site's ledger lacks. The text is the line's hash."""


class ObjectMissing(WardroundError):
    """A part of an answer is missing: its sender could not send all of it."""


class ProcessGone(WardroundError, ConnectionError):
    """The other process has ended or has closed its socket."""


class WorkerEnded(WardroundError):
    """A worker process ended before it gave an answer."""


class Stopped(WardroundError):
    """A signal arrived while the worker was busy."""


class LossNotFinite(WardroundError, ArithmeticError):
    """The training loss became NaN or infinite."""


class OtherVersion(WardroundError, ValueError):
    """A version of Wardround that does not work with this one wrote an authentic message."""


class ModelNotLoaded(WardroundError, ValueError):
    """A model folder cannot be loaded. The text says why, and names the next step."""


class MissingColumn(WardroundError, ValueError):
    """A file can be read, but lacks a column."""


class FolderInUse(WardroundError, ValueError):
    """Another process runs in this folder and owns its files."""
