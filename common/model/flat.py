"""The tensors that leave a client, in one flat buffer."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import ceil, prod, sqrt
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

# Every tensor starts on a 64-byte boundary, as PyTorch's own allocations do.
_ALIGNMENT = 16
_BLOCK = 1 << 18


@dataclass(frozen=True)
class Layout:
    """Names, shapes and places of the shared tensors in the flat buffer, in name order."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    offsets: tuple[int, ...]
    """First element of each tensor in the buffer."""
    size: int
    """Number of elements in the buffer, fp32; the gaps between tensors hold zeros."""
    base: str = ""
    """SHA-256 of the frozen tensors of the model; empty if there are none."""

    @classmethod
    def of(cls, shapes: dict[str, tuple[int, ...]], base: str = "") -> Layout:
        """Return a layout for tensors of these shapes."""
        names = sorted(shapes)
        offsets = []
        end = 0
        for name in names:
            offsets.append(end)
            num_blocks = ceil(prod(shapes[name]) / _ALIGNMENT)
            end += num_blocks * _ALIGNMENT
        in_order = tuple(tuple(shapes[name]) for name in names)
        return cls(tuple(names), in_order, tuple(offsets), end, base)

    @property
    def digest(self) -> str:
        """SHA-256 of names, shapes and base. Buffers with equal digests can be averaged."""
        parts: list[object] = [self.names, self.shapes]
        if self.base:
            parts.append(self.base)
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def places(self) -> dict[str, slice]:
        """Return the part of the buffer that each tensor takes, in name order."""
        places = {}
        starts = zip(self.names, self.offsets, self.num_elements(), strict=True)
        for name, start, length in starts:
            places[name] = slice(start, start + length)
        return places

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """Return a view into `flat`, (size,) fp32, for each name, in name order."""
        views = {}
        places = zip(self.places().items(), self.shapes, strict=True)
        for (name, place), shape in places:
            views[name] = flat[place].view(shape)
        return views

    def num_elements(self) -> tuple[int, ...]:
        """Return the number of elements of each tensor, in the order of `names`."""
        return tuple(prod(shape) for shape in self.shapes)

    def num_bytes(self) -> int:
        """Return the size of the buffer in bytes."""
        return self.size * 4

    def most_update_bytes(self) -> int:
        """Return a size in bytes that no form of an update exceeds (`common/wire/forms.py`)."""
        return 2 * self.num_bytes()


def flatten_model(
    model: nn.Module, device: torch.device, frozen: frozenset[str] = frozenset()
) -> tuple[Layout, Tensor]:
    """Move the model's shared tensors into one buffer; its parameters become views of it.

    All parameters and the floating-point buffers of the state dict are shared. If some parameters
    are frozen, only the other parameters are shared. Then loading global weights is one copy, and
    reading trained weights needs no copy.

    Returns:
        The layout, and the buffer: (layout.size,) fp32.
    """
    model.to(device)
    shared = _all_tensors(model)
    base = ""
    if frozen:
        trained = {name for name, _ in model.named_parameters()} - frozen
        others = sorted(shared.keys() - trained)
        base = _sha256((name, shared[name]) for name in others)
        shared = {name: shared[name] for name in trained}
    layout = Layout.of(_shapes(shared), base)
    flat = torch.zeros(layout.size, dtype=torch.float32, device=device)
    for name, view in layout.views(flat).items():
        view.copy_(shared[name].detach())
    move_model(model, layout, flat)
    return layout, flat


def move_model(model: nn.Module, layout: Layout, flat: Tensor) -> None:
    """Make the model's shared tensors views of `flat`, (layout.size,) fp32; keep its values."""
    tensors = _all_tensors(model)
    for name, view in layout.views(flat).items():
        tensors[name].data = view


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _all_tensors(model: nn.Module) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = dict(model.named_parameters())
    persistent = model.state_dict().keys()
    for name, tensor in model.named_buffers():
        if name in persistent and tensor.is_floating_point():
            tensors[name] = tensor
    return tensors


def tensors_to_flat(layout: Layout, tensors: dict[str, Tensor]) -> Tensor:
    """Inverse of `Layout.views`, on the CPU. Raises ValueError if names or shapes differ."""
    found = Layout.of(_shapes(tensors), layout.base)
    if found.digest != layout.digest:
        odd = sorted(set(found.names) ^ set(layout.names)) or "their shapes"
        raise ValueError(
            f"these tensors belong to another model; they differ in {odd}."
        )
    flat = torch.zeros(layout.size, dtype=torch.float32)
    for name, view in layout.views(flat).items():
        view.copy_(tensors[name])
    return flat


def distance(trained: Tensor, start: Tensor) -> float:
    """Return the L2 norm of (trained - start), both (P,) fp32, computed block by block."""
    squared = 0.0
    for first in range(0, len(trained), _BLOCK):
        block = slice(first, first + _BLOCK)
        delta = trained[block] - start[block]
        squared += torch.dot(delta, delta).item()
    return sqrt(squared)


def cosine(product: float, norms: float) -> float:
    """Return the cosine of two vectors; 0 if one of them is zero.

    Args:
        product: of the vectors.
        norms: product of their norms.
    """
    if not norms > 0:
        return 0.0
    return max(-1.0, min(1.0, product / norms))


def tensor_of(array: np.ndarray) -> Tensor:
    """Return a tensor on an array's memory. Never write to it: received arrays may be read-only."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="The given NumPy array is not writable"
        )
        return torch.from_numpy(array)


def model_sha256(layout: Layout, flat: Tensor) -> str:
    """Return the SHA-256 of the shared tensors in name order: name (UTF-8), then fp32 bytes (LE).

    If the model has frozen tensors, the SHA-256 of this base comes first.
    """
    return _sha256(layout.views(flat).items(), layout.base)


def files_sha256(paths: Sequence[Path]) -> str:
    """Return the `model_sha256` of a model that was saved whole, from its files of weights.

    For a model with adapters the hashes differ: the adapters are merged into the weights when it is
    saved.

    Raises:
        OSError, SafetensorError: a file cannot be read, or is damaged.
    """
    with ExitStack() as stack:
        files = [stack.enter_context(safe_open(path, framework="pt")) for path in paths]
        place = {name: file for file in files for name in file.keys()}  # noqa: SIM118 - no mapping

        def tensors() -> Iterator[tuple[str, Tensor]]:
            for name in sorted(place):
                tensor = place[name].get_tensor(name)
                if tensor.is_floating_point():
                    yield name, tensor

        return _sha256(tensors())


def _sha256(tensors: Iterable[tuple[str, Tensor]], first: str = "") -> str:
    digest = hashlib.sha256(first.encode())
    for name, tensor in tensors:
        digest.update(name.encode())
        array = tensor.detach().float().cpu().contiguous().numpy()
        digest.update(array.astype("<f4", copy=False).data)
    return digest.hexdigest()
