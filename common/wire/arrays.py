"""Flat arrays as Flower arrays: by reference inside one process, serialised for a network.

`take_arrays` and `dump_content` write a content in two parts, for another process or a file.

They travel in pieces, each of one chunk of Flower's. Flower joins the chunks of a large array,
copies them, and has NumPy read the copy: four times the model's size at once. Pieces are freed
one by one. This file does not import PyTorch, so a process that only forwards arrays starts
without it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from io import BytesIO
from math import inf
from typing import Any

import numpy as np
from flwr.app import Array as FlowerArray
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

_CHUNK_BYTES = 5 * 2**20  # Flower cuts what is longer into several chunks
_NUMPY_HEADER = 128  # bytes, for any one-dimensional array
_NUMPY = "numpy.ndarray"  # what Flower calls arrays in NumPy's file format
PIECE_BYTES = (_CHUNK_BYTES - _NUMPY_HEADER) // 8 * 8
"""Bytes of a full piece; the size of every element type that is sent divides it."""


@dataclass(frozen=True)
class Payload:
    """Tensors as they are sent, in a form of `common/wire/forms.py`."""

    form: str
    """Name of the form."""
    arrays: dict[str, np.ndarray]
    """Flat arrays, by the form's names."""

    @property
    def num_bytes(self) -> int:
        """Bytes of all arrays together."""
        return sum(array.nbytes for array in self.arrays.values())


class Array(FlowerArray):
    """A piece of a flat array. It is serialised only when it is sent over a network.

    Flower's own class serialises at once; inside one process that would copy every model twice
    per client. The name must stay `Array`: Flower writes it into the header of the serialised
    object.
    """

    whole: np.ndarray
    start: int

    def __init__(self, whole: np.ndarray, start: int = 0) -> None:
        """Args: whole: one-dimensional, contiguous. start: the piece's first element."""
        self.__dict__.update(
            dtype=str(whole.dtype),
            shape=(min(_piece(whole), len(whole) - start),),
            stype=_NUMPY,
            whole=whole,
            start=start,
        )

    @property
    def data(self) -> bytes:  # type: ignore[override]
        """A copy of the piece, in NumPy's file format."""
        return b"".join(self.parts())

    def parts(self) -> tuple[bytes, memoryview]:
        """Return the header and the numbers of `data`, without a copy."""
        piece = self.whole[self.start : self.start + self.shape[0]]
        header = BytesIO()
        np.lib.format.write_array_header_1_0(
            header, np.lib.format.header_data_from_array_1_0(piece)
        )
        return header.getvalue(), piece.data.cast("B")

    def __reduce__(self) -> tuple[Any, ...]:
        return Array, (self.whole, self.start)


def _piece(array: np.ndarray) -> int:
    """Return the number of elements of a full piece."""
    return PIECE_BYTES // array.dtype.itemsize


def to_record(arrays: dict[str, np.ndarray]) -> ArrayRecord:
    """Return a record of flat arrays that shares their memory."""
    record = ArrayRecord()
    for name, whole in arrays.items():
        for start in range(0, max(1, len(whole)), _piece(whole)):
            record[f"{name}.{start // _piece(whole):05d}"] = Array(whole, start)
    return record


def from_record(record: ArrayRecord, most_bytes: float = inf) -> dict[str, np.ndarray]:
    """Inverse of `to_record`. Pieces that came over a wire are removed from the record.

    Args:
        most_bytes: the largest size of all arrays together. Pieces with the same content are
            sent once, so a small message can hold a large array.

    Raises:
        ValueError: the arrays are larger than `most_bytes`.
        Exception: of any kind, if the record holds something else.
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
    for key in keys:  # each piece is freed once it is copied
        del record[key]
        piece = pieces.pop(0)
        whole[start : start + len(piece)] = piece
        start += len(piece)
    return whole


def read_piece(written: bytes | memoryview) -> np.ndarray:
    """Return a flat array in NumPy's file format, as a view of its bytes. Raises ValueError for
    anything else.

    (`np.load` would reserve memory for any size that the header claims.)
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


def take_arrays(content: RecordDict) -> tuple[RecordDict, dict[str, np.ndarray]]:
    """Split a content into its other records and its arrays; `{}` if it has no arrays."""
    records = content.array_records
    rest = {name: record for name, record in content.items() if name not in records}
    arrays = from_record(records["tensors"]) if records else {}
    return RecordDict(rest), arrays


def put_arrays(content: RecordDict, arrays: dict[str, np.ndarray]) -> None:
    """Inverse of `take_arrays`, in place."""
    if arrays:
        content["tensors"] = to_record(arrays)


def dump_content(words: dict[str, Any], content: RecordDict) -> bytes:
    """Write as JSON: the records of a content, without arrays and bytes, and other plain values."""
    configs = {name: dict(record) for name, record in content.config_records.items()}
    metrics = {name: dict(record) for name, record in content.metric_records.items()}
    return json.dumps({"words": words, "config": configs, "metric": metrics}).encode()


def load_content(written: bytes) -> tuple[dict[str, Any], RecordDict]:
    """Inverse of `dump_content`."""
    read = json.loads(written)
    content = RecordDict()
    for name, record in read["config"].items():
        content[name] = ConfigRecord(record)
    for name, record in read["metric"].items():
        content[name] = MetricRecord(record)
    return read["words"], content
