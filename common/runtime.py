"""Device, precision and threads of a run, and its named streams of random numbers."""

from __future__ import annotations

import ctypes
import hashlib
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wardround.common.cgroups import cpu_quota, memory_left
from wardround.common.settings.tree import Settings

if TYPE_CHECKING:
    import torch


def stream_seed(seed: int, purpose: str, *, round: int = 0, client: int = 0) -> int:
    """Return a 63-bit seed of these arguments only: a resumed run draws the same numbers."""
    text = f"{seed}/{purpose}/{round}/{client}"
    digest = hashlib.sha256(text.encode()).digest()
    number = int.from_bytes(digest[:8], "little")
    return number >> 1


def numpy_stream(
    seed: int, purpose: str, *, round: int = 0, client: int = 0
) -> np.random.Generator:
    """Return a NumPy generator of the named stream."""
    own_seed = stream_seed(seed, purpose, round=round, client=client)
    return np.random.default_rng(own_seed)


@contextmanager
def torch_stream(
    seed: int,
    purpose: str,
    *,
    round: int = 0,
    client: int = 0,
    device: torch.device | None = None,
) -> Iterator[None]:
    """Set PyTorch's own generators to the named stream, and restore them afterwards.

    Dropout and the initialisers need it: they take no generator argument.
    """
    import torch

    devices = []
    kind = "cuda"
    if device is not None and device.type not in ("cpu", "meta"):
        devices = [device]
        kind = device.type
    own_seed = stream_seed(seed, purpose, round=round, client=client)
    with torch.random.fork_rng(devices, device_type=kind):
        torch.manual_seed(own_seed)
        yield


def resolve_device(name: str) -> torch.device:
    """Return the device of this name; `auto` is the first accelerator, or the CPU if there is none.

    Raises:
        ValueError: the device does not exist here. There is no silent fall-back.
    """
    import torch

    if name == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        if found is None:
            return torch.device("cpu")
        return torch.device(found.type, 0)
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        # PyTorch's second sentence is a long list.
        first_line = str(error).splitlines()[0]
        reason = first_line.partition(". ")[0]
        raise ValueError(
            f"device is '{name}', which this machine does not have ({reason}). "
            "Set device=cpu, or device=auto for the best that there is."
        ) from None
    if device.type == "meta":
        raise ValueError(
            "device is 'meta', which cannot compute. Set device=auto or device=cpu."
        )
    return device


def resolve_threads(threads: int | str) -> int:
    """Return the CPU threads of one client; `auto` is every CPU that this process may use.

    The limit of a container counts too: a quota of 1.5 CPUs is one thread.
    """
    if threads != "auto":
        return int(threads)
    if hasattr(os, "sched_getaffinity"):
        cpus = len(os.sched_getaffinity(0))
    else:
        cpus = os.cpu_count() or 1
    quota = cpu_quota()
    if quota is None:
        return cpus
    return max(1, min(cpus, int(quota)))


# Parameters of glibc's `mallopt` (malloc.h), and the largest value of the second.
_MMAP_THRESHOLD = -3
_TRIM_THRESHOLD = -1
_MOST_BYTES = 2**31 - 1
# Larger than the gradient of BERT-base's word embeddings (94 MB), smaller than a whole model.
_KEPT_BYTES = 128 << 20


def keep_freed_memory() -> None:
    """Let this process reuse the memory of freed tensors of up to 128 MiB.

    By default glibc returns blocks from 32 MiB on to the kernel, and requests them again, page by
    page, in every training step. Does nothing if the C library has no `mallopt`.
    """
    if os.name != "posix":
        return
    library = ctypes.CDLL(None)
    mallopt = getattr(library, "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _KEPT_BYTES)
        mallopt(_TRIM_THRESHOLD, _MOST_BYTES)


def available_memory() -> int | None:
    """Return the bytes that this process may still use; the limit of a container counts too.

    None if this machine does not tell.
    """
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return None
    free = None
    for line in text.splitlines():
        if line.startswith("MemAvailable:"):
            _, kibibytes, _ = line.split()
            free = int(kibibytes) * 1024
    left = memory_left()
    if free is None or left is None:
        return free
    return min(free, left)


def prepare(settings: Settings) -> torch.device:
    """Set the thread count and return the device. Raises ValueError as `resolve_device` does."""
    import torch

    keep_freed_memory()
    num_threads = resolve_threads(settings.threads)
    torch.set_num_threads(num_threads)
    return resolve_device(settings.device)


# Ways to compute attention that are faster than the model's own (docs/settings.md).
_FASTEST_ATTENTION = {("cpu", "bf16"): "eager"}


def resolve_attention(settings: Settings, device: torch.device) -> str | None:
    """Return `attn_implementation` of transformers; None leaves the choice to the model."""
    if settings.attention != "auto":
        return settings.attention
    key = (device.type, settings.precision)
    return _FASTEST_ATTENTION.get(key)


def precision_context(
    precision: str, device: torch.device
) -> AbstractContextManager[Any]:
    """Return autocast to bfloat16 for `bf16`, and a context without effect for `fp32`."""
    import torch

    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()
