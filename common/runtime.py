"""The machine under a run: device, precision, threads, and named streams of random numbers."""

from __future__ import annotations

import ctypes
import hashlib
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wardround.common.settings.tree import Settings

if TYPE_CHECKING:
    import torch


def stream_seed(seed: int, purpose: str, *, round: int = 0, client: int = 0) -> int:
    """A 63-bit seed that depends on nothing but its arguments, so a resumed run draws the same numbers."""
    text = f"{seed}/{purpose}/{round}/{client}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def numpy_stream(
    seed: int, purpose: str, *, round: int = 0, client: int = 0
) -> np.random.Generator:
    """A NumPy generator of the named stream."""
    return np.random.default_rng(stream_seed(seed, purpose, round=round, client=client))


@contextmanager
def torch_stream(
    seed: int,
    purpose: str,
    *,
    round: int = 0,
    client: int = 0,
    device: torch.device | None = None,
) -> Iterator[None]:
    """Put PyTorch's own generators on the named stream, and back where they were on leaving.

    Needed for what takes no generator argument: dropout and the initialisers.
    """
    import torch

    devices = (
        [device] if device is not None and device.type not in ("cpu", "meta") else []
    )
    kind = devices[0].type if devices else "cuda"
    with torch.random.fork_rng(devices, device_type=kind):
        torch.manual_seed(stream_seed(seed, purpose, round=round, client=client))
        yield


def resolve_device(name: str) -> torch.device:
    """The device `name` stands for; `auto` is the first accelerator, or the CPU where there is none.

    Raises:
        ValueError: the device does not exist here. Nothing falls back in silence.
    """
    import torch

    if name == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        return torch.device(found.type, 0) if found is not None else torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = (
            str(error).splitlines()[0].partition(". ")[0]
        )  # PyTorch's second sentence is a long list
        raise ValueError(
            f"device is '{name}', which this machine does not have ({reason}). "
            "Set device=cpu, or device=auto for whatever there is."
        ) from None
    if device.type == "meta":
        raise ValueError(
            "device is 'meta', which cannot compute. Set device=auto or device=cpu."
        )
    return device


def resolve_threads(threads: int | str) -> int:
    """CPU threads for one client; `auto` is every CPU this process may use."""
    if threads != "auto":
        return int(threads)
    return (
        len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count() or 1
    )


# Parameters of glibc's `mallopt` (malloc.h), and the most bytes that the second takes.
_MMAP_THRESHOLD, _TRIM_THRESHOLD, _MOST_BYTES = -3, -1, 2**31 - 1
# Above the gradient of BERT-base's word embeddings (94 MB), below a whole model: that is given back.
_KEPT_BYTES = 128 << 20


def keep_freed_memory() -> None:
    """Have this process use the memory of freed tensors of up to 128 MiB again.

    glibc alone gives blocks from 32 MiB on back to the kernel and gets them anew, page by page, in every
    training step. Does nothing where the C library has no `mallopt`.
    """
    mallopt = (
        getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    )
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _KEPT_BYTES)
        mallopt(_TRIM_THRESHOLD, _MOST_BYTES)


_GROUP = Path("/sys/fs/cgroup")


def available_memory() -> int | None:
    """Bytes this process may still take: free in the machine, or less where a container is limited."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    free = next(
        (
            int(line.split()[1]) * 1024
            for line in lines
            if line.startswith("MemAvailable:")
        ),
        None,
    )

    def told(name: str) -> str:
        return (_GROUP / f"memory.{name}").read_text(encoding="ascii")

    try:  # the limit is the word `max` where there is none
        limit, kinds = (
            int(told("max")),
            dict(line.split() for line in told("stat").splitlines()),
        )
        # Copies of files, which are given up for whatever asks for memory.
        cached = int(kinds["active_file"]) + int(kinds["inactive_file"])
        return free and min(free, limit - int(told("current")) + cached)
    except (OSError, ValueError, KeyError):
        return free


def prepare(settings: Settings) -> torch.device:
    """Set the thread count and return the device. Raises ValueError as `resolve_device` does."""
    import torch

    keep_freed_memory()
    torch.set_num_threads(resolve_threads(settings.threads))
    return resolve_device(settings.device)


# Where one way to compute attention is known to be faster than the model's own (docs/settings.md).
_FASTEST_ATTENTION = {("cpu", "bf16"): "eager"}


def resolve_attention(settings: Settings, device: torch.device) -> str | None:
    """What transformers calls `attn_implementation`; None leaves the choice to the model."""
    if settings.attention != "auto":
        return settings.attention
    return _FASTEST_ATTENTION.get((device.type, settings.precision))


def precision_context(
    precision: str, device: torch.device
) -> AbstractContextManager[Any]:
    """Autocast to bfloat16 for `bf16`, nothing for `fp32`."""
    import torch

    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()
