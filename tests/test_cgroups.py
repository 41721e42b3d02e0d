"""Limits of containers: CPUs and memory, in both versions of control groups."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from wardround.common import cgroups
from wardround.common.cgroups import cpu_quota, memory_left
from wardround.common.runtime import available_memory, resolve_threads

GIB = 2**30


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Control groups in a folder of the test, in which this process has none yet."""
    root = tmp_path / "cgroup"
    root.mkdir()
    monkeypatch.setattr(cgroups, "_ROOT", root)
    own = tmp_path / "own"
    own.write_text("")
    monkeypatch.setattr(cgroups, "_OWN", own)
    return root


def enter(root: Path, *lines: str) -> None:
    """Put this process into groups, as /proc/self/cgroup lists them."""
    (root.parent / "own").write_text("\n".join(lines) + "\n")


def write(folder: Path, **files: str) -> None:
    """Write the files of a group; `__` in a name is a dot."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(f"{text}\n")


def test_without_groups_there_is_no_limit(root: Path) -> None:
    assert cpu_quota() is None
    assert memory_left() is None


QUOTAS = {"50000 100000": 0.5, "150000 100000": 1.5, "max 100000": None}


@pytest.mark.parametrize(("text", "quota"), QUOTAS.items())
def test_quota_of_version_2(root: Path, text: str, quota: float | None) -> None:
    enter(root, "0::/")
    write(root, cpu__max=text)
    assert cpu_quota() == quota


@pytest.mark.parametrize(("quota", "cpus"), [("50000", 0.5), ("-1", None)])
def test_quota_of_version_1(root: Path, quota: str, cpus: float | None) -> None:
    enter(root, "4:cpu,cpuacct:/job", "0::/")
    write(
        root / "cpu,cpuacct" / "job",
        cpu__cfs_quota_us=quota,
        cpu__cfs_period_us="100000",
    )
    assert cpu_quota() == cpus


def test_the_smallest_limit_of_all_enclosing_groups_counts(root: Path) -> None:
    enter(root, "0::/site.slice/wardround.service")
    write(root / "site.slice", cpu__max="100000 100000", memory__max=str(4 * GIB))
    write(root / "site.slice", memory__current=str(3 * GIB))
    write(root / "site.slice" / "wardround.service", cpu__max="400000 100000")
    assert cpu_quota() == 1
    assert memory_left() == GIB


def test_a_path_of_the_host_is_looked_up_at_the_root(root: Path) -> None:
    """Docker with version 1: the file names the host's path, which is not mounted."""
    enter(root, "4:cpu:/docker/0123abcd")
    write(root / "cpu", cpu__cfs_quota_us="200000", cpu__cfs_period_us="100000")
    assert cpu_quota() == 2


def test_cached_files_count_as_free(root: Path) -> None:
    enter(root, "0::/")
    write(root, memory__max="1000", memory__current="990")
    write(root, memory__stat="anon 500\nactive_file 200\ninactive_file 250")
    assert memory_left() == 460
    assert available_memory() == 460


def test_cached_files_count_as_free_in_version_1(root: Path) -> None:
    enter(root, "5:memory:/")
    write(root / "memory", memory__limit_in_bytes="1000", memory__usage_in_bytes="990")
    write(
        root / "memory", memory__stat="total_active_file 200\ntotal_inactive_file 250"
    )
    assert memory_left() == 460


@pytest.mark.parametrize(
    ("quota", "threads"), [("50000", 1), ("250000", 2), ("max", 8)]
)
def test_automatic_threads_are_at_most_the_quota(
    root: Path, monkeypatch: pytest.MonkeyPatch, quota: str, threads: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    enter(root, "0::/")
    write(root, cpu__max=f"{quota} 100000")
    assert resolve_threads("auto") == threads
    assert resolve_threads(5) == 5
