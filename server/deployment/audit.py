"""The signed answers of a run: kept beside its history, and compared with the sites' own
ledgers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from wardround.common.credentials import fingerprint
from wardround.common.errors import NotAuthentic
from wardround.common.files import append_line
from wardround.common.ledger import Entry, known_kind, read_ledger, told_of
from wardround.common.provenance import Provenance
from wardround.common.wire.messages import NOTICE, TRAIN
from wardround.common.wire.signing import (
    ANSWER,
    Statement,
    digest,
    open_envelope,
    read_statement,
)
from wardround.common.words import printable, shown
from wardround.server.record import RoundRecord
from wardround.server.run_folder import RunFolder

FILE_NAME = "answers.jsonl"
_LONGEST_NUMBER = 20


@dataclass
class AnswerBook:
    """Keeps every authentic answer: site, key, and the signed statement."""

    run_dir: Path | None = None
    """The run folder; None keeps only the newest answer of each site, in memory."""
    heads: dict[str, str] = field(default_factory=dict)
    """Hash of the newest ledger line that came with an answer, by the site's public signing key."""

    def __post_init__(self) -> None:
        """Read the run's file. Raises ValueError if it was changed."""
        if self.run_dir is not None:
            for answer in _read_answers(self.run_dir):
                self.heads[answer.key] = answer.statement.ledger

    def keep(self, site: str, key: str, envelope: str, statement: Statement) -> None:
        """Add an answer.

        Args:
            key: public key with which the envelope was verified, OpenSSH form.

        Raises:
            OSError: the file cannot be written.
        """
        if self.run_dir is not None:
            answer = {"site": site, "key": key, "envelope": envelope}
            line = json.dumps(answer)
            append_line(self.run_dir / FILE_NAME, line + "\n")
        self.heads[key] = statement.ledger


def provenance_of(
    run: RunFolder, plan: str, sites: Mapping[str, str], kept: RoundRecord
) -> Provenance:
    """Return the provenance of the model after the round `kept`, without the hashes of its files.

    Args:
        plan: SHA-256 of the plan.
        sites: public signing keys by name.

    Raises:
        ValueError: the answers in the folder were changed.
    """
    assert kept.model_sha256 is not None, "every round's model is hashed"
    used = {
        (record.round, client.site)
        for record in run.history()
        if record.round <= kept.round
        for client in record.clients
    }
    # A round that was repeated after a restart counts as it was done last.
    newest = {}
    for answer in _read_answers(run.path):
        place = (answer.statement.round, answer.site)
        if answer.statement.kind == TRAIN and place in used:
            newest[place] = answer.digest
    updates = [(number, site, found) for (number, site), found in newest.items()]
    fingerprints = {name: fingerprint(key) for name, key in sorted(sites.items())}
    return Provenance(
        version=2,
        plan=plan,
        sites=fingerprints,
        model_sha256=kept.model_sha256,
        updates=tuple(sorted(updates)),
        round=kept.round,
    )


@dataclass(frozen=True)
class _Answer:
    """One line of the run's file."""

    site: str
    key: str
    """Public key of the site, OpenSSH form."""
    statement: Statement
    digest: str
    """SHA-256 of the statement."""


def _read_answers(run_dir: Path) -> Iterator[_Answer]:
    """Yield the answers of a run.

    Raises:
        ValueError: a line is not signed with the key in it; names the first one.
    """
    path = run_dir / FILE_NAME
    if not path.exists():
        return
    # The server app ended while it wrote a line without an end: that answer did not count.
    text = path.read_text(encoding="ascii", errors="replace")
    lines = text.split("\n")[:-1]
    for number, line in enumerate(lines, 1):
        try:
            content = json.loads(line)
            key = content["key"]
            payload = open_envelope(content["envelope"], ANSWER, [key])
            statement = read_statement(Statement, payload)
            yield _Answer(content["site"], key, statement, digest(payload))
        except (ValueError, KeyError, TypeError, NotAuthentic):
            raise ValueError(
                f"{path}, line {number}: it is not signed with the key in it. The file was "
                f"changed, or the "
                "disk is damaged."
            ) from None


@dataclass(frozen=True)
class Audit:
    """The comparison of one ledger with a run."""

    site: str
    """Name of the site in its ledger, made printable."""
    num_answers: int
    """Number of answers that are equal in both."""
    findings: tuple[str, ...]
    """The first answer that differs, the first that the ledger lacks, the first that the server
    lacks."""


def audit(run_dir: Path, ledgers: Sequence[Path]) -> list[Audit]:
    """Compare the signed answers of a run with the ledgers of its sites.

    Raises:
        ValueError: the run holds no signed answers, or a file was changed; names the line.
    """
    answers = list(_read_answers(run_dir))
    if not answers:
        raise ValueError(
            f"RUN_DIR is '{run_dir}', which holds no signed answers ({FILE_NAME}). Give the "
            f"folder of a "
            "run that was submitted to sites."
        )
    return [_compare(path, read_ledger(path), answers) for path in ledgers]


def _compare(
    path: Path,
    entries: Mapping[str, Entry],
    answers: Sequence[_Answer],
) -> Audit:
    holders = [entry for entry in entries.values() if entry.key]
    if not holders:
        raise ValueError(
            f"{path} names no site: it has no line about a start of `wardround-site join`."
        )
    keys = {entry.key for entry in holders}
    of_site = [
        answer.statement for answer in answers if fingerprint(answer.key) in keys
    ]
    different = []
    not_in_ledger = []
    num_same = 0
    for statement in of_site:
        entry = entries.get(statement.ledger)
        if entry is None:
            not_in_ledger.append(
                f"the ledger lacks an answer that the server has: {_words(statement)}"
            )
        elif not _is_same(entry, statement):
            different.append(
                f"line {entry.number} of the ledger differs from the server's {_words(statement)}"
            )
        else:
            num_same += 1
    runs = {statement.run for statement in of_site}
    # A question that was asked several times needs only one answer.
    done = {
        (statement.run, statement.round, known_kind(statement.kind))
        for statement in of_site
    }
    not_at_server = [
        f"the server lacks an answer that was sent: line {entry.number} of the ledger, "
        f"{_words(entry)} (it came too late, "
        "or was removed)"
        for entry, after in pairwise(entries.values())
        if (entry.what, after.what) == ("leaves", "left")
        and entry.run in runs
        and entry.kind != NOTICE
        and (entry.run, entry.round, entry.kind) not in done
    ]
    lists = (different, not_in_ledger, not_at_server)
    findings = tuple(found[0] for found in lists if found)
    return Audit(shown(holders[-1].site), num_same, findings)


def _is_same(entry: Entry, statement: Statement) -> bool:
    return (
        entry.what == "leaves"
        and entry.kind == known_kind(statement.kind)
        and entry.run == statement.run
        and entry.round == statement.round
        and entry.attempt == statement.attempt
        and entry.question == statement.answers
        and entry.contents.signed() == told_of(statement.records)
    )


def _words(of: Statement | Entry) -> str:
    """Name an answer, made printable: a ledger may hold any text."""
    round = printable(str(of.round), _LONGEST_NUMBER)
    attempt = printable(str(of.attempt), _LONGEST_NUMBER)
    return f"answer to {shown(of.kind)}, round {round}, attempt {attempt}"
