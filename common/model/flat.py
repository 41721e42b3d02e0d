"""Which tensors leave a client, and the one flat buffer they live in."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod, sqrt
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

# Every tensor starts on a 64-byte boundary, as PyTorch's own allocations do.
_ALIGNMENT = 16
_BLOCK = 1 << 18


@dataclass(frozen=True)
class Layout:
    """Names and shapes of the shared tensors, in name order, and where each lies in the flat buffer."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    offsets: tuple[int, ...]
    """First element of each tensor in the buffer."""
    size: int
    """Elements of the buffer, fp32; the gaps between tensors hold zeros."""
    base: str = ""
    """SHA-256 of the frozen tensors beside which these are trained; empty where there are none."""

    @classmethod
    def of(cls, shapes: dict[str, tuple[int, ...]], base: str = "") -> Layout:
        """Lay tensors of these shapes out."""
        offsets, end = [], 0
        for name in sorted(shapes):
            offsets.append(end)
            end += -(-prod(shapes[name]) // _ALIGNMENT) * _ALIGNMENT
        names = tuple(sorted(shapes))
        return cls(
            names,
            tuple(tuple(shapes[name]) for name in names),
            tuple(offsets),
            end,
            base,
        )

    @property
    def digest(self) -> str:
        """SHA-256 of names, shapes and base: equal digests mean buffers that can be averaged."""
        parts = [self.names, self.shapes, *([self.base] if self.base else [])]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """Name -> view into `flat`, (size,) fp32, in name order."""
        return {
            name: flat[start : start + prod(shape)].view(shape)
            for name, shape, start in zip(
                self.names, self.shapes, self.offsets, strict=True
            )
        }

    def num_elements(self) -> tuple[int, ...]:
        """Numbers in each tensor, in the order of `names`."""
        return tuple(prod(shape) for shape in self.shapes)

    def num_bytes(self) -> int:
        """Bytes of the buffer."""
        return self.size * 4

    def most_update_bytes(self) -> int:
        """More than an update takes in any form of `common/wire/forms.py`."""
        return 2 * self.num_bytes()


def flatten_model(
    model: nn.Module, device: torch.device, frozen: frozenset[str] = frozenset()
) -> tuple[Layout, Tensor]:
    """Move the model's shared tensors into one buffer on `device`; its parameters become views of it.

    Shared are all parameters and the floating-point buffers of the state dict; where some parameters are
    frozen, the others. Loading global weights is then one copy, and handing over trained ones is none.

    Returns:
        The layout, and the buffer: (layout.size,) fp32.
    """
    model.to(device)
    shared = _all_tensors(model)
    base = ""
    if frozen:
        trained = {name for name, _ in model.named_parameters()} - frozen
        base = _sha256((name, shared[name]) for name in sorted(shared.keys() - trained))
        shared = {name: shared[name] for name in trained}
    layout = Layout.of(
        {name: tuple(tensor.shape) for name, tensor in shared.items()}, base
    )
    flat = torch.zeros(layout.size, dtype=torch.float32, device=device)
    for name, view in layout.views(flat).items():
        view.copy_(shared[name].detach())
    move_model(model, layout, flat)
    return layout, flat


def move_model(model: nn.Module, layout: Layout, flat: Tensor) -> None:
    """Make the model's shared tensors views of `flat`, (layout.size,) fp32, and its numbers the model's."""
    tensors = _all_tensors(model)
    for name, view in layout.views(flat).items():
        tensors[name].data = view


def _all_tensors(model: nn.Module) -> dict[str, Tensor]:
    persistent = model.state_dict().keys()
    return dict(model.named_parameters()) | {
        name: tensor
        for name, tensor in model.named_buffers()
        if name in persistent and tensor.is_floating_point()
    }


def tensors_to_flat(layout: Layout, tensors: dict[str, Tensor]) -> Tensor:
    """Inverse of `Layout.views`, on the CPU. Raises ValueError where names or shapes differ."""
    found = Layout.of(
        {name: tuple(tensor.shape) for name, tensor in tensors.items()}, layout.base
    )
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
    """L2 norm of (trained - start), both (P,) fp32, block by block."""
    squared = 0.0
    for first in range(0, len(trained), _BLOCK):
        delta = trained[first : first + _BLOCK] - start[first : first + _BLOCK]
        squared += torch.dot(delta, delta).item()
    return sqrt(squared)


def cosine(product: float, norms: float) -> float:
    """Of two vectors, from their product and that of their norms; 0 where one of them is zero."""
    return max(-1.0, min(1.0, product / norms)) if norms > 0 else 0.0


def tensor_of(array: np.ndarray) -> Tensor:
    """A tensor on an array's memory, to be read and never written: what was received may be read-only."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="The given NumPy array is not writable"
        )
        return torch.from_numpy(array)


def model_sha256(layout: Layout, flat: Tensor) -> str:
    """SHA-256 over the shared tensors in name order: name (UTF-8), then little-endian fp32 bytes.

    Where they stand beside frozen ones, that base's SHA-256 comes first.
    """
    return _sha256(layout.views(flat).items(), layout.base)


def files_sha256(paths: Sequence[Path]) -> str:
    """What `model_sha256` is for a model that was saved whole, from its files of weights alone.

    A model with adapters has another one: they are merged into the weights when it is saved.

    Raises:
        OSError, SafetensorError: a file cannot be read, or is damaged.
    """
    from safetensors import safe_open

    with ExitStack() as stack:
        files = [stack.enter_context(safe_open(path, framework="pt")) for path in paths]
        place = {name: file for file in files for name in file.keys()}  # noqa: SIM118 - it is no mapping

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
        digest.update(
            tensor.detach()
            .float()
            .cpu()
            .contiguous()
            .numpy()
            .astype("<f4", copy=False)
            .data
        )
    return digest.hexdigest()
