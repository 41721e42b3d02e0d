"""Texts that take part in no round."""

from __future__ import annotations

import hmac
import json
from collections.abc import Sequence
from dataclasses import dataclass

from wardround.common.data.tables import Table
from wardround.common.tasks.targets import Target


def digest_of_row(key: bytes, text: str | None, target: Target) -> str:
    """Return a keyed hash of a text and its target, 16 hexadecimal digits.

    Without the key nobody can check a guess of the text.
    """
    row = json.dumps([text, target]).encode()
    return hmac.digest(key, row, "sha256").hex()[:16]


@dataclass(frozen=True)
class LateOptOuts:
    """Texts that have opted out since the held-out texts were drawn."""

    key: bytes
    hashes: frozenset[str]
    """As `digest_of_row` returns them."""

    def holds(self, text: str | None, target: Target) -> bool:
        """Return whether this text has opted out late."""
        return (
            bool(self.hashes) and digest_of_row(self.key, text, target) in self.hashes
        )


NO_LATE_OPT_OUTS = LateOptOuts(b"", frozenset())


def separate_opt_outs(
    tables: Sequence[Table], late: LateOptOuts
) -> tuple[list[Table], list[Table]]:
    """Return the tables of the rows that take part, and those of the rows that opted out.

    Texts of `late` still take part.

    Raises:
        ValueError: all rows of a table have opted out.
    """
    taking_part = []
    opted_out = []
    for table in tables:
        out = {
            row
            for row in table.opted_out
            if not late.holds(table.texts[row], table.targets[row])
        }
        if len(out) == len(table.texts):
            raise ValueError(
                f"{table.name}: all {len(out)} examples have opted out "
                "(data.opt_out_column). Such a site takes no part: do not join. In a "
                "simulation, empty the column and name the client in "
                "personalisation.opt_out_clients."
            )
        stays = [row for row in range(len(table.texts)) if row not in out]
        taking_part.append(table.keep(stays) if out else table)
        opted_out.append(table.keep(sorted(out)))
    return taking_part, opted_out
