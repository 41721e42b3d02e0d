"""Every partition deals every example exactly once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wardround.common.data.partitions import partition
from wardround.common.settings.data import PartitionSettings

IID = PartitionSettings("iid", None, False)
SORTED = PartitionSettings("label_sorted", None, False)


@given(
    num_examples=st.integers(1, 300),
    num_clients=st.integers(1, 40),
    num_labels=st.integers(1, 6),
    seed=st.integers(0, 2**40),
    chosen=st.sampled_from([IID, SORTED]),
    drop=st.booleans(),
)
def test_even_partitions_cover_every_example_once(
    num_examples: int,
    num_clients: int,
    num_labels: int,
    seed: int,
    chosen: PartitionSettings,
    drop: bool,
) -> None:
    labels = np.random.default_rng(seed).integers(0, num_labels, num_examples)
    chosen = PartitionSettings(chosen.name, None, drop)
    if num_clients > num_examples:
        with pytest.raises(ValueError, match=f"num_clients.*{num_clients}"):
            partition(chosen, labels, num_clients, seed)
        return
    parts = partition(chosen, labels, num_clients, seed)
    sizes = [len(part) for part in parts]
    dealt = np.concatenate(parts)
    assert len(parts) == num_clients
    assert len(set(dealt.tolist())) == len(dealt)
    if drop:
        assert set(sizes) == {num_examples // num_clients}
    else:
        assert sorted(dealt.tolist()) == list(range(num_examples))
        assert max(sizes) - min(sizes) <= 1


@settings(max_examples=10, deadline=None)
@given(
    num_clients=st.integers(1, 8),
    seed=st.integers(0, 2**40),
    alpha=st.sampled_from([0.3, 1.0, 100.0]),
)
def test_dirichlet_covers_every_example_once(
    num_clients: int, seed: int, alpha: float
) -> None:
    labels = np.arange(200) % 4
    parts = partition(
        PartitionSettings("dirichlet", alpha, False), labels, num_clients, seed
    )
    assert sorted(np.concatenate(parts).tolist()) == list(range(200))
    assert min(len(part) for part in parts) >= 1


def test_a_small_alpha_skews_labels() -> None:
    labels = np.arange(2000) % 4

    def largest_share(alpha: float) -> float:
        parts = partition(PartitionSettings("dirichlet", alpha, False), labels, 5, 3)
        shares = [
            np.bincount(labels[part], minlength=4).max() / len(part) for part in parts
        ]
        return float(np.mean(shares))

    # 100 labels in 4 equal classes: a fair deal has a largest share of about 1/4.
    assert largest_share(1000.0) < 0.35 < 0.5 < largest_share(0.1)


def test_label_sorted_gives_each_client_few_labels() -> None:
    labels = np.array([2, 0, 1, 2, 0, 1])
    parts = partition(SORTED, labels, 3, 0)
    assert [labels[part].tolist() for part in parts] == [[0, 0], [1, 1], [2, 2]]


def test_iid_depends_on_the_seed_only() -> None:
    labels = np.zeros(50, dtype=np.int64)
    first, again, other = (partition(IID, labels, 3, seed) for seed in (1, 1, 2))
    assert [part.tolist() for part in first] == [part.tolist() for part in again]
    assert [part.tolist() for part in first] != [part.tolist() for part in other]


def test_by_site_follows_the_files() -> None:
    by_site = PartitionSettings("by_site", None, False)
    labels = np.zeros(6, dtype=np.int64)
    sizes = [("a", 1), ("b", 3), ("c", 2)]
    parts = partition(by_site, labels, 3, 0, sizes)
    assert [part.tolist() for part in parts] == [[0], [1, 2, 3], [4, 5]]
    with pytest.raises(ValueError, match=r"num_clients is 2 .* Set num_clients=3"):
        partition(by_site, labels, 2, 0, sizes)
    with pytest.raises(ValueError, match=r"partition is 'by_site' .* Use data=files"):
        partition(by_site, labels, 2, 0)


def test_a_dirichlet_partition_refuses_equal_parts() -> None:
    with pytest.raises(ValueError, match="drop_remainder=false"):
        PartitionSettings("dirichlet", 0.5, True)
