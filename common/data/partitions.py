"""The deal of training examples to simulated clients: one index array for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from wardround.common.data.sampling import pick_evenly, shares_of
from wardround.common.runtime import numpy_stream, stream_seed
from wardround.common.settings.data import PartitionSettings

Indices = np.ndarray  # (n_k,) int64, positions in the training set
SiteSizes = Sequence[tuple[str, int]]


def partition(
    settings: PartitionSettings,
    strata: np.ndarray,
    num_clients: int,
    seed: int,
    site_sizes: SiteSizes = (),
) -> list[Indices]:
    """Deal all N examples to `num_clients` clients, each example to exactly one of them.

    With `settings.drop_remainder`, N mod K examples are left out and all parts are equal.

    Args:
        strata: (N,) int64, `Task.strata` of the training set.
        site_sizes: name and number of examples of each site, in training order (`by_site` only).

    Raises:
        ValueError: there are fewer examples than clients, or a client would get none of them.
    """
    if num_clients > len(strata):
        raise ValueError(
            f"num_clients is {num_clients} but there are only {len(strata)} training examples. "
            "Every client needs at least one: lower num_clients or use more data."
        )
    parts = PARTITIONS[settings.name](settings, strata, num_clients, seed, site_sizes)
    for client, part in enumerate(parts):
        if len(part) == 0:
            raise ValueError(
                f"partition '{settings.name}' leaves client {client} of {num_clients} "
                "without examples. Lower num_clients, or make the partition less skewed "
                "(partition.alpha)."
            )
    return parts


def deal_held_out(
    how: PartitionSettings,
    num_texts: int,
    num_clients: int,
    test_sizes: Sequence[int] = (),
) -> list[Indices]:
    """Return the held-out texts of each client; a part can be empty.

    Args:
        num_texts: number of all held-out texts.
        test_sizes: number of them at each site, in their order (`by_site` only).
    """
    everyone = np.arange(num_texts)
    if how.name == "by_site" and test_sizes:
        return np.split(everyone, np.cumsum(test_sizes)[:-1])
    return np.array_split(everyone, num_clients)


def split_held_out(
    strata: np.ndarray, indices: Indices, fraction: float, seed: int
) -> tuple[Indices, Indices]:
    """Split held-out examples, evenly by stratum: one part chooses the best model, one is reported.

    Args:
        strata: (N,) int64, `Task.strata` of the whole test set.
        indices: (m,) int64, the held-out examples of one owner.
        fraction: share of them in the first part, in [0, 1); 0 leaves it empty.

    Returns:
        Validation and test part, each in the order of `indices`.

    Raises:
        ValueError: there is only one example to split.
    """
    if fraction == 0:
        return indices[:0], indices
    if len(indices) < 2:
        raise ValueError(
            f"evaluation.validation_fraction is {fraction}, but {len(indices)} held-out "
            "example(s) cannot be split in two. Hold out more (data.test_fraction), or "
            "set evaluation.validation_fraction=0."
        )
    total = min(max(1, int(len(indices) * fraction + 0.5)), len(indices) - 1)
    chosen = np.isin(
        indices, pick_evenly(indices, strata, total, numpy_stream(seed, "validation"))
    )
    return indices[chosen], indices[~chosen]


def deal_alike(
    parts: Sequence[Indices],
    train_strata: np.ndarray,
    strata: np.ndarray,
    indices: np.ndarray,
) -> list[Indices]:
    """Deal held-out examples so that each client gets its training share of each stratum.

    The method is that of largest remainders. If two are equal, the client with the lower number
    comes first. Examples of a stratum that nobody trains on go to no client.

    Args:
        parts: positions in `train_strata` of each client.
        indices: (M,) positions in `strata` of the examples to deal.
    """
    dealt: list[list[Indices]] = [[] for _ in parts]
    for stratum in np.unique(strata[indices]):
        rows = indices[strata[indices] == stratum]
        held = np.array(
            [np.count_nonzero(train_strata[part] == stratum) for part in parts]
        )
        if held.any():
            ends = np.cumsum(shares_of(held, len(rows)))
            for client, piece in enumerate(np.split(rows, ends[:-1])):
                dealt[client].append(piece)
    return [np.sort(np.concatenate([indices[:0], *pieces])) for pieces in dealt]


def _split_evenly(
    settings: PartitionSettings,
    strata: np.ndarray,
    num_clients: int,
    seed: int,
    sites: SiteSizes,
) -> list[Indices]:
    order = numpy_stream(seed, "partition").permutation(len(strata))
    return _consecutive(order, num_clients, settings.drop_remainder)


def _split_sorted(
    settings: PartitionSettings,
    strata: np.ndarray,
    num_clients: int,
    seed: int,
    sites: SiteSizes,
) -> list[Indices]:
    order = np.argsort(strata, kind="stable")
    return _consecutive(order, num_clients, settings.drop_remainder)


def _consecutive(
    order: np.ndarray, num_clients: int, drop_remainder: bool
) -> list[Indices]:
    """Cut into K consecutive parts.

    Their lengths differ by at most one. With `drop_remainder` they are equal.
    """
    if drop_remainder:
        order = order[: len(order) // num_clients * num_clients]
    return np.array_split(order, num_clients)


def _split_by_skew(
    settings: PartitionSettings,
    strata: np.ndarray,
    num_clients: int,
    seed: int,
    sites: SiteSizes,
) -> list[Indices]:
    """Deal each stratum in Dirichlet(alpha) proportions (Hsu et al. 2019, arXiv:1909.06335)."""
    from datasets import Dataset
    from flwr_datasets.partitioner import DirichletPartitioner

    partitioner = DirichletPartitioner(
        num_partitions=num_clients,
        partition_by="label",
        alpha=settings.alpha,
        min_partition_size=1,
        self_balancing=False,
        seed=stream_seed(seed, "partition") % 2**32,
    )
    partitioner.dataset = Dataset.from_dict(
        {"label": strata, "index": np.arange(len(strata))}
    )
    try:
        parts = [
            partitioner.load_partition(client)["index"] for client in range(num_clients)
        ]
    except ValueError as error:
        raise ValueError(
            f"partition.alpha is {settings.alpha}: no draw gave each of the "
            f"{num_clients} clients an example ({error}). Raise "
            "partition.alpha or lower num_clients."
        ) from None
    return [np.asarray(part, dtype=np.int64) for part in parts]


def _split_by_site(
    settings: PartitionSettings,
    strata: np.ndarray,
    num_clients: int,
    seed: int,
    sites: SiteSizes,
) -> list[Indices]:
    if not sites:
        raise ValueError(
            "partition is 'by_site' but the data name no sites. Use data=files with "
            "data.path set to a folder that holds one file per site."
        )
    if len(sites) != num_clients:
        raise ValueError(
            f"num_clients is {num_clients} but data.path holds {len(sites)} site files "
            f"({', '.join(name for name, _ in sites)}). Set num_clients={len(sites)}."
        )
    ends = np.cumsum([size for _, size in sites])
    return np.split(np.arange(len(strata)), ends[:-1])


Partitioner = Callable[
    [PartitionSettings, np.ndarray, int, int, SiteSizes], list[Indices]
]
PARTITIONS: dict[str, Partitioner] = {
    "iid": _split_evenly,
    "dirichlet": _split_by_skew,
    "label_sorted": _split_sorted,
    "by_site": _split_by_site,
}
