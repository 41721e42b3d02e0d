"""A flat tensor as Flower arrays: by reference inside one process, serialised where it meets a wire.

It travels in pieces of one chunk of Flower's each. One large array would be put together from its chunks,
copied, and read by NumPy as a whole, four times the model's size at once; pieces are let go one by one.
"""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from flwr.app import Array as FlowerArray
from flwr.app import ArrayRecord
from flwr.common.constant import FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE, SType

if TYPE_CHECKING:
    from torch import Tensor

_NUMPY_HEADER = 128  # bytes, for any one-dimensional array
PIECE = (FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE - _NUMPY_HEADER) // 4
"""Elements of a piece, fp32."""


class Array(FlowerArray):
    """A piece of a flat tensor that is serialised only when it meets a wire.

    Flower's own class serialises at birth; inside one process that would copy every model twice a client.
    The name must stay `Array`: Flower writes it into the header of the serialised object.
    """

    whole: Tensor
    start: int

    def __init__(self, whole: Tensor, start: int = 0) -> None:
        """Args: whole: (P,) on the CPU. start: first element of the piece."""
        self.__dict__.update(
            dtype=str(whole.dtype).removeprefix("torch."),
            shape=(min(PIECE, len(whole) - start),),
            stype=SType.NUMPY,
            whole=whole,
            start=start,
        )

    @property
    def data(self) -> bytes:  # type: ignore[override]
        """The piece in NumPy's file format, copied once."""
        piece, header = self.whole[self.start : self.start + PIECE].contiguous().numpy(), BytesIO()
        np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(piece))
        return b"".join((header.getvalue(), piece.data.cast("B")))

    def __reduce__(self) -> tuple[Any, ...]:
        return Array, (self.whole, self.start)


def to_record(tensor: Tensor) -> ArrayRecord:
    """A record of (P,) `tensor`, which shares its memory where that is on the CPU."""
    record, whole = ArrayRecord(), tensor.detach().cpu()
    for start in range(0, max(1, len(whole)), PIECE):
        record[_key(start // PIECE)] = Array(whole, start)
    return record


def from_record(record: ArrayRecord) -> Tensor:
    """Inverse of `to_record`; what came over a wire is taken out of the record.

    Raises:
        KeyError, ValueError or TypeError: it holds something else.
    """
    first = record[_key(0)]
    if isinstance(first, Array):
        return first.whole
    return torch.from_numpy(
        np.concatenate([_read(record.pop(_key(number))) for number in range(len(record))])
    )


def _key(number: int) -> str:
    return f"shared.{number:05d}"


def _read(array: FlowerArray) -> np.ndarray:
    """A piece, as a view of its bytes; `np.load` would make room for whatever size the header claims."""
    data = BytesIO(array.data[:_NUMPY_HEADER])
    if np.lib.format.read_magic(data) != (1, 0):
        raise ValueError("a piece of the tensors is not in version 1.0 of NumPy's file format")
    shape, _, dtype = np.lib.format.read_array_header_1_0(data)
    piece = np.frombuffer(array.data, dtype, offset=data.tell())
    if shape != piece.shape:
        raise ValueError(f"a piece of the tensors holds {len(piece)} numbers, and claims the shape {shape}")
    return piece
