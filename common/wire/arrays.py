"""Flat arrays as Flower arrays: by reference inside one process, serialised where they meet a wire.

They travel in pieces of one chunk of Flower's each. A large array would be put together from its chunks,
copied, and read by NumPy as a whole, four times the model's size at once; pieces are let go one by one.
Nothing here needs PyTorch: a process that only passes arrays on starts without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from math import inf
from typing import Any

import numpy as np
from flwr.app import Array as FlowerArray
from flwr.app import ArrayRecord

_CHUNK_BYTES = 5 * 2**20  # Flower cuts what is longer into several chunks
_NUMPY_HEADER = 128  # bytes, for any one-dimensional array
_NUMPY = "numpy.ndarray"  # what Flower calls arrays in NumPy's file format
PIECE_BYTES = (_CHUNK_BYTES - _NUMPY_HEADER) // 8 * 8
"""Bytes of a whole piece: a whole number of elements of any type that travels."""


@dataclass(frozen=True)
class Payload:
    """Tensors on their way, in one of the forms of `common/wire/forms.py`."""

    form: str
    """Row of the table of forms."""
    arrays: dict[str, np.ndarray]
    """Flat arrays, by names the form gives them."""

    @property
    def num_bytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self.arrays.values())


class Array(FlowerArray):
    """A piece of a flat array that is serialised only when it meets a wire.

    Flower's own class serialises at birth; inside one process that would copy every model twice a client.
    The name must stay `Array`: Flower writes it into the header of the serialised object.
    """

    whole: np.ndarray
    start: int

    def __init__(self, whole: np.ndarray, start: int = 0) -> None:
        """Args: whole: one dimension, contiguous. start: first element of the piece."""
        self.__dict__.update(
            dtype=str(whole.dtype),
            shape=(min(_piece(whole), len(whole) - start),),
            stype=_NUMPY,
            whole=whole,
            start=start,
        )

    @property
    def data(self) -> bytes:  # type: ignore[override]
        """The piece in NumPy's file format, copied once."""
        return b"".join(self.parts())

    def parts(self) -> tuple[bytes, memoryview]:
        """The same as header and numbers, not copied."""
        piece, header = self.whole[self.start : self.start + self.shape[0]], BytesIO()
        np.lib.format.write_array_header_1_0(
            header, np.lib.format.header_data_from_array_1_0(piece)
        )
        return header.getvalue(), piece.data.cast("B")

    def __reduce__(self) -> tuple[Any, ...]:
        return Array, (self.whole, self.start)


def _piece(array: np.ndarray) -> int:
    """Elements of a whole piece."""
    return PIECE_BYTES // array.dtype.itemsize


def to_record(arrays: dict[str, np.ndarray]) -> ArrayRecord:
    """A record of flat arrays, which shares their memory."""
    record = ArrayRecord()
    for name, whole in arrays.items():
        for start in range(0, max(1, len(whole)), _piece(whole)):
            record[f"{name}.{start // _piece(whole):05d}"] = Array(whole, start)
    return record


def from_record(record: ArrayRecord, most_bytes: float = inf) -> dict[str, np.ndarray]:
    """Inverse of `to_record`; what came over a wire is taken out of the record.

    Args:
        most_bytes: of all arrays together. Pieces with the same content travel once, so that a small
            message can hold a large array.

    Raises:
        Exception: of any kind; it holds something else. ValueError: more than `most_bytes`.
    """
    names = dict.fromkeys(key.rpartition(".")[0] for key in record)
    arrays: dict[str, np.ndarray] = {}
    for name in names:
        arrays[name] = _joined(record, name, most_bytes)
        most_bytes -= arrays[name].nbytes
    return arrays


def _joined(record: ArrayRecord, name: str, most_bytes: float) -> np.ndarray:
    keys = [key for key in record if key.rpartition(".")[0] == name]
    if keys != [f"{name}.{number:05d}" for number in range(len(keys))]:
        raise ValueError("the pieces of an array are not numbered from 0")
    first = record[keys[0]]
    if isinstance(first, Array):
        return first.whole
    pieces = [read_piece(record[key].data) for key in keys]
    if len({piece.dtype for piece in pieces}) > 1:
        raise ValueError("the pieces of an array are of different types")
    if sum(piece.nbytes for piece in pieces) > most_bytes:
        raise ValueError("its arrays are larger than the model")
    whole = np.empty(sum(map(len, pieces)), dtype=pieces[0].dtype)
    start = 0
    for key in keys:  # each is let go once it is copied
        del record[key]
        piece = pieces.pop(0)
        whole[start : start + len(piece)] = piece
        start += len(piece)
    return whole


def read_piece(written: bytes | memoryview) -> np.ndarray:
    """A flat array in NumPy's file format, as a view of its bytes. Raises ValueError for anything else.

    (`np.load` would make room for whatever size the header claims.)
    """
    head = BytesIO(bytes(written[:_NUMPY_HEADER]))
    if np.lib.format.read_magic(head) != (1, 0):
        raise ValueError(
            "a piece of the tensors is not in version 1.0 of NumPy's file format"
        )
    shape, _, dtype = np.lib.format.read_array_header_1_0(head)
    if dtype.hasobject:
        raise ValueError("a piece of the tensors holds objects")
    piece = np.frombuffer(written, dtype, offset=head.tell())
    if shape != piece.shape:
        raise ValueError(
            f"a piece of the tensors holds {len(piece)} numbers, and claims the shape {shape}"
        )
    return piece
