"""The roster of a plan: the fingerprint of each site's signing key, by name."""

from __future__ import annotations

import json
from collections.abc import Mapping

from wardround.common.credentials import sha256_text


def roster_fingerprint(roster: Mapping[str, str]) -> str:
    """Return `SHA256:…` of the pairs of name and fingerprint, sorted by name, as JSON in UTF-8.

    The same roster gives the same fingerprint, so hospitals can compare it by telephone.
    """
    pairs = sorted(roster.items())
    return sha256_text(
        json.dumps(pairs, ensure_ascii=False, separators=(",", ":")).encode()
    )


def names_with_one_key(roster: Mapping[str, str]) -> list[str]:
    """Return the sorted names of the first key that occurs more than once in the roster, or `[]`.

    One key under two names is one party that is counted twice.
    """
    names: dict[str, list[str]] = {}
    for name, key in sorted(roster.items()):
        names.setdefault(key, []).append(name)
    return next((found for found in names.values() if len(found) > 1), [])
