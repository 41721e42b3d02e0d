"""What sites have signed, kept beside a run's history, and compared with their own ledgers afterwards."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from wardround.common.credentials import fingerprint
from wardround.common.errors import NotAuthentic
from wardround.common.files import named
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
    """Every answer that was authentic, whatever became of it: site, key, and the signed statement."""

    run_dir: Path | None = None
    """None keeps the newest of each site in memory only."""
    heads: dict[str, str] = field(default_factory=dict)
    """By a site's public signing key: hash of the newest line of its ledger that an answer came with."""

    def __post_init__(self) -> None:
        """Raises ValueError where the run's file is not what was written."""
        if self.run_dir is not None:
            self.heads = {
                key: statement.ledger
                for _, key, statement in _read_answers(self.run_dir)
            }

    def keep(self, site: str, key: str, envelope: str, statement: Statement) -> None:
        """Add one.

        Args:
            key: public, OpenSSH form, under which the envelope was found good.

        Raises:
            OSError: it cannot be kept.
        """
        if self.run_dir is not None:
            path = self.run_dir / FILE_NAME
            line = json.dumps({"site": site, "key": key, "envelope": envelope}) + "\n"
            with named(path), path.open("a", encoding="ascii") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        self.heads[key] = statement.ledger


def provenance_of(
    run: RunFolder, plan: str, sites: Mapping[str, str], kept: RoundRecord
) -> Provenance:
    """What a run's folder tells of the model after the round `kept`; its files are not in it yet.

    Args:
        plan: its SHA-256.
        sites: public signing keys by name.

    Raises:
        ValueError: the answers in the folder are not what was written.
    """
    assert kept.model_sha256 is not None, "every round's model is hashed"
    taken = {
        (record.round, client.site)
        for record in run.history()
        if record.round <= kept.round
        for client in record.clients
    }
    # A round that was done again, after a restart, counts as it was done last.
    newest = {
        (statement.round, site): statement_digest
        for site, _, statement, statement_digest in _read_lines(run.path)
        if statement.kind == TRAIN and (statement.round, site) in taken
    }
    updates = tuple(
        (number, site, found) for (number, site), found in sorted(newest.items())
    )
    prints = {name: fingerprint(key) for name, key in sorted(sites.items())}
    return Provenance(2, plan, prints, kept.model_sha256, updates, kept.round)


def _read_answers(run_dir: Path) -> Iterator[tuple[str, str, Statement]]:
    """Site, public key and statement of each line. Raises ValueError as `_read_lines` does."""
    return ((site, key, statement) for site, key, statement, _ in _read_lines(run_dir))


def _read_lines(run_dir: Path) -> Iterator[tuple[str, str, Statement, str]]:
    """Site, public key, statement and its SHA-256 of each line.

    Raises:
        ValueError: names the first line that was not signed with the key beside it.
    """
    path = run_dir / FILE_NAME
    if not path.exists():
        return
    # A line without its end was being written when the server app ended: that answer was not taken.
    lines = path.read_text(encoding="ascii", errors="replace").split("\n")[:-1]
    for number, line in enumerate(lines, 1):
        try:
            content = json.loads(line)
            payload = open_envelope(content["envelope"], ANSWER, [content["key"]])
            yield (
                content["site"],
                content["key"],
                read_statement(Statement, payload),
                digest(payload),
            )
        except (ValueError, KeyError, TypeError, NotAuthentic):
            raise ValueError(
                f"{path}, line {number}: it is not signed with the key that stands there. Somebody has "
                "changed this file, or a disk is damaged."
            ) from None


@dataclass(frozen=True)
class Audit:
    """What came of comparing one ledger with a run."""

    site: str
    """As its ledger names it, fit to be printed."""
    num_answers: int
    """That are in both, word for word."""
    findings: tuple[str, ...]
    """The first answer that differs, the first that the ledger lacks, the first that the server lacks."""


def audit(run_dir: Path, ledgers: Sequence[Path]) -> list[Audit]:
    """Compare what the server of a run holds of these sites with what they wrote down themselves.

    Raises:
        ValueError: the run holds no signed answers, or a file is not what was written there; names the line.
    """
    answers = list(_read_answers(run_dir))
    if not answers:
        raise ValueError(
            f"RUN_DIR is '{run_dir}', which holds no signed answers of sites ({FILE_NAME})."
        )
    return [_compare(path, read_ledger(path), answers) for path in ledgers]


def _compare(
    path: Path,
    entries: Mapping[str, Entry],
    answers: Sequence[tuple[str, str, Statement]],
) -> Audit:
    holders = [entry for entry in entries.values() if entry.key]
    if not holders:
        raise ValueError(
            f"{path} does not say whose ledger it is: it holds no start of `join`."
        )
    keys = {entry.key for entry in holders}
    of_site = [statement for _, key, statement in answers if fingerprint(key) in keys]
    differ, lacking, num_same = [], [], 0
    for statement in of_site:
        entry = entries.get(statement.ledger)
        if entry is None:
            lacking.append(f"the ledger lacks what the server has: {_words(statement)}")
        elif not _is_same(entry, statement):
            differ.append(
                f"line {entry.number} of the ledger tells of another answer: {_words(statement)}"
            )
        else:
            num_same += 1
    runs = {statement.run for statement in of_site}
    # A question that is asked again needs one answer only.
    done = {(said.run, said.round, known_kind(said.kind)) for said in of_site}
    hidden = [
        f"the server lacks what left: line {entry.number} of the ledger, {_words(entry)} (it came too late, "
        "or was put away)"
        for entry, after in pairwise(entries.values())
        if (entry.what, after.what) == ("leaves", "left")
        and entry.run in runs
        and entry.kind != NOTICE
        and (entry.run, entry.round, entry.kind) not in done
    ]
    findings = tuple(found[0] for found in (differ, lacking, hidden) if found)
    return Audit(shown(holders[-1].site), num_same, findings)


def _is_same(entry: Entry, statement: Statement) -> bool:
    told = entry.contents.signed()
    ours = (
        entry.what,
        entry.kind,
        entry.run,
        entry.round,
        entry.attempt,
        entry.question,
        told,
    )
    kind = known_kind(statement.kind)
    theirs = (
        kind,
        statement.run,
        statement.round,
        statement.attempt,
        statement.answers,
    )
    return ours == ("leaves", *theirs, told_of(statement.records))


def _words(of: Statement | Entry) -> str:
    """Which answer; the words of a ledger may be anybody's."""
    round, attempt = (
        printable(str(number), _LONGEST_NUMBER) for number in (of.round, of.attempt)
    )
    return f"answer to {shown(of.kind)}, round {round}, attempt {attempt}"
