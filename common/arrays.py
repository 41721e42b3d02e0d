"""A flat tensor as a Flower array: by reference inside one process, serialised where it meets a wire."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from flwr.app import Array as FlowerArray
from flwr.app import ArrayRecord
from flwr.common.constant import SType

if TYPE_CHECKING:
    from torch import Tensor

_KEY = "shared"


class Array(FlowerArray):
    """A Flower array that is serialised only when it meets a wire.

    Flower's own class serialises at birth; inside one process that would copy every model twice a client.
    The name must stay `Array`: Flower writes it into the header of the serialised object.
    """

    tensor: Tensor

    def __init__(self, tensor: Tensor) -> None:
        self.__dict__.update(
            dtype=str(tensor.dtype).removeprefix("torch."),
            shape=tuple(tensor.shape),
            stype=SType.NUMPY,
            tensor=tensor,
        )

    @property
    def data(self) -> bytes:  # type: ignore[override]
        """The array in NumPy's file format, copied once."""
        array, header = self.tensor.contiguous().numpy(), BytesIO()
        np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
        return b"".join((header.getvalue(), array.data.cast("B")))

    def __reduce__(self) -> tuple[Any, ...]:
        return Array, (self.tensor,)


def to_record(tensor: Tensor) -> ArrayRecord:
    """A record of one array, which shares the tensor's memory where that is on the CPU."""
    record = ArrayRecord()
    record[_KEY] = Array(tensor.detach().cpu())
    return record


def from_record(record: ArrayRecord) -> Tensor:
    """Inverse of `to_record`. Raises KeyError, ValueError or TypeError where it holds something else."""
    array = record[_KEY]
    return array.tensor if isinstance(array, Array) else torch.from_numpy(array.numpy())
