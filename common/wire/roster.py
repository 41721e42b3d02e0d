"""The roster of a plan: its sites by name, each with the fingerprint of its signing key."""

from __future__ import annotations

import json
from collections.abc import Mapping

from wardround.common.credentials import sha256_text


def roster_fingerprint(roster: Mapping[str, str]) -> str:
    """`SHA256:…` over the pairs of name and fingerprint, sorted by name, as JSON in UTF-8.

    Everybody who holds the same roster sees the same fingerprint, so that hospitals can compare
    it by telephone.
    """
    pairs = sorted(roster.items())
    return sha256_text(
        json.dumps(pairs, ensure_ascii=False, separators=(",", ":")).encode()
    )


def names_with_one_key(roster: Mapping[str, str]) -> list[str]:
    """The names of the first key that stands in the roster more than once, sorted; else empty.

    One key under two names is one party that is counted twice.
    """
    names: dict[str, list[str]] = {}
    for name, key in sorted(roster.items()):
        names.setdefault(key, []).append(name)
    return next((found for found in names.values() if len(found) > 1), [])
