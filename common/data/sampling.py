"""Draws from examples: the same seed draws the same ones, evenly by their kind."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wardround.common.runtime import numpy_stream


def shares_of(counts: np.ndarray, total: int, keep: int = 0) -> np.ndarray:
    """Divide `total` in proportion to `counts` by largest remainder, (C,) int64.

    Each share is within one of `total * counts / sum(counts)`; of two equal remainders the one
    at the lower position counts more.

    Args:
        keep: number of each kind that no remainder may use.
    """
    shares, remainders = np.divmod(counts * total, max(int(counts.sum()), 1))
    left = total - int(shares.sum())
    by_remainder = np.argsort(-remainders, kind="stable")
    may_grow = shares[by_remainder] + 1 + keep <= counts[by_remainder]
    shares[by_remainder[may_grow][:left]] += 1
    return shares


def pick_evenly(
    rows: np.ndarray,
    kinds: np.ndarray,
    total: int,
    stream: np.random.Generator,
    keep: int = 0,
) -> np.ndarray:
    """Draw `total` of these rows evenly by their kind.

    Args:
        kinds: (N,) int64, by row.
        keep: number of each kind that is left.
    """
    shares = shares_of(np.bincount(kinds[rows]), total, keep)
    drawn = [
        stream.permutation(rows[kinds[rows] == kind])[:share]
        for kind, share in enumerate(shares)
    ]
    return np.concatenate([rows[:0], *drawn])


def hold_out(
    kinds: np.ndarray,
    sites: np.ndarray,
    site_names: Sequence[str],
    fraction: float,
    seed: int,
) -> np.ndarray:
    """Return the test set as a mask, (N,) bool: `fraction` of each site, evenly by kind.

    At least one example of each kind of a site stays in its training.

    Args:
        kinds: (N,) int64. sites: (N,) int64, ascending.
        site_names: () if there is only one.

    Raises:
        ValueError: there are too few examples.
    """
    held = np.zeros(len(kinds), dtype=bool)
    for site in range(int(sites[-1]) + 1):
        rows = np.flatnonzero(sites == site)
        total = min(int(len(rows) * fraction + 0.5), len(rows) - 1)
        # The name, not the position: the file of another site must change nothing here.
        purpose = f"hold_out.{site_names[site]}" if site_names else "hold_out"
        stream = numpy_stream(seed, purpose)
        held[pick_evenly(rows, kinds, total, stream, keep=1)] = True
    if not held.any():
        raise ValueError(
            f"data.test_fraction is {fraction}, but {len(kinds)} training examples are "
            "too few to hold out any and keep one of each label for training. Add "
            "examples, or set data.test_path=<file>."
        )
    return held


def draw(
    kinds: np.ndarray,
    sites: np.ndarray,
    total: int | None,
    seed: int,
    purpose: str,
    site_names: Sequence[str] = (),
) -> np.ndarray:
    """Draw `total` rows evenly by kind, and by site within a kind; return them ascending.

    Args:
        kinds: (N,) int64. sites: (N,) int64.
        total: None draws all.
        purpose: `train_examples` or `test_examples`, the setting that `total` comes from.
        site_names: if given, draw `total` rows of each site, or all that it has.

    Raises:
        ValueError: there are fewer rows, and no sites are named.
    """
    if total is None:
        return np.arange(len(kinds))
    drawn = []
    if site_names:
        for site, name in enumerate(site_names):
            rows = np.flatnonzero(sites == site)
            stream = numpy_stream(seed, f"{purpose}.{name}")
            drawn.append(pick_evenly(rows, kinds, min(total, len(rows)), stream))
        return np.sort(np.concatenate(drawn))
    if total > len(kinds):
        raise ValueError(
            f"data.{purpose} is {total}, but there are only {len(kinds)} examples. "
            f"Lower it, or set data.{purpose}=null to use all."
        )
    stream = numpy_stream(seed, purpose)
    for kind, share in enumerate(shares_of(np.bincount(kinds), total)):
        rows = np.flatnonzero(kinds == kind)
        drawn.append(pick_evenly(rows, sites, int(share), stream))
    return np.sort(np.concatenate(drawn))
