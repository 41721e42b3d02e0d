"""Flower's object format, written and read one piece at a time.

A message travels as a tree of objects: message, RecordDict, records, arrays, chunks. Each is
`<type> <ids of its children, with commas> <length of its body>`, a zero byte, and the body; its id is the
SHA-256 of all that, so the id of a record stands for everything the record holds. Flower's own reader
fetches a whole tree before it looks at anything, and checks no hash. This one fetches what was signed and
nothing else, checks every piece as it comes, and puts the tensors where they are wanted.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, TypeVar

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from wardround.common.errors import NotAuthentic
from wardround.common.wire.arrays import Array, read_piece, to_record
from wardround.common.wire.flat_arrays import ArrayTable, read_arrays, table_bytes

ENVELOPE = "envelope"
"""The record that holds the signed statement about the others."""
_SMALL: dict[str, Any] = {"ConfigRecord": ConfigRecord, "MetricRecord": MetricRecord}
_MOST_SMALL_BYTES = 1 << 20
_MOST_PIECES = 1 << 16
_LONGEST_PAUSE = 1.0
_ID_DIGITS = frozenset("0123456789abcdef")
_DTYPES = frozenset({"uint8", "int8", "uint16", "int32", "float16", "float32"})
"""Of what travels (`common/wire/forms.py`)."""

T = TypeVar("T")
Fetch = Callable[[Sequence[str]], Iterator[bytes]]
"""Gives the contents of objects, in the order of their ids."""


@dataclass(frozen=True)
class Object:
    """One object that can be written out again and again."""

    object_id: str
    num_bytes: int
    """Of itself and, as often as they occur, of all objects below it."""
    children: tuple[Object, ...]
    write: Callable[[], bytes]

    def walk(self) -> Iterator[Object]:
        """Itself and all below it, children first."""
        for child in self.children:
            yield from child.walk()
        yield self

    def tree(self, make: Callable[..., T]) -> T:
        """Its id and those below it; `make` is Flower's ObjectTree, a private name that others may know.

        An object that is a child more than once, as pieces with the same content are, stands there once.
        """
        children = {child.object_id: child for child in self.children}.values()
        return make(
            object_id=self.object_id, children=[child.tree(make) for child in children]
        )


def make_object(kind: str, body: bytes, children: Sequence[Object] = ()) -> Object:
    """An object whose content is small enough to be kept."""
    ids = dict.fromkeys(child.object_id for child in children)
    content = _head(kind, list(ids), len(body)) + body
    num_bytes = len(content) + sum(child.num_bytes for child in children)
    return Object(
        hashlib.sha256(content).hexdigest(), num_bytes, tuple(children), lambda: content
    )


def content_object(content: RecordDict) -> Object:
    """A content as an object. Arrays are not copied, nor kept as bytes."""
    return content_of_records(record_objects(content, {}))


def record_objects(content: RecordDict, known: dict[int, Object]) -> dict[str, Object]:
    """The records of a content as objects, by name.

    Args:
        known: objects of records that were seen already, by `id`; those of tensors are added. Contents of a
            round share them, and hashing takes time.
    """
    objects = {}
    for name, record in content.items():
        objects[name] = known.get(id(record)) or _record_object(record)
        if isinstance(record, ArrayRecord):
            known[id(record)] = objects[name]
    return objects


def content_of_records(records: Mapping[str, Object]) -> Object:
    """The RecordDict of these records."""
    refs = {name: record.object_id for name, record in records.items()}
    return make_object("RecordDict", json.dumps(refs).encode(), list(records.values()))


def _record_object(record: Any) -> Object:
    if not isinstance(record, ArrayRecord):
        content = record.deflate()
        return Object(
            hashlib.sha256(content).hexdigest(), len(content), (), lambda: content
        )
    arrays = {name: _array_object(array) for name, array in record.items()}
    refs = {name: array.object_id for name, array in arrays.items()}
    return make_object("ArrayRecord", json.dumps(refs).encode(), list(arrays.values()))


def _array_object(array: Any) -> Object:
    assert isinstance(array, Array), "only arrays by reference are written here"
    parts, digest = _chunk(array), hashlib.sha256()
    for part in parts:
        digest.update(part)
    chunk = Object(
        digest.hexdigest(), sum(map(len, parts)), (), lambda: b"".join(_chunk(array))
    )
    described = {
        "dtype": array.dtype,
        "shape": array.shape,
        "stype": array.stype,
        "arraychunk_ids": [0],
    }
    return make_object("Array", json.dumps(described).encode(), [chunk])


def _chunk(array: Array) -> tuple[bytes, bytes, memoryview]:
    """The object that holds the numbers, in parts: they are not copied."""
    header, numbers = array.parts()
    return _head("ArrayChunk", [], len(header) + len(numbers)), header, numbers


def _head(kind: str, children: list[str], num_bytes: int) -> bytes:
    return f"{kind} {','.join(children)} {num_bytes}".encode() + b"\x00"


def parse(content: bytes, kind: str = "") -> tuple[str, list[str], memoryview]:
    """Type, children and body of an object.

    Args:
        kind: the type it must have; empty for any.

    Raises:
        NotAuthentic: it does not have the form of an object, or another type.
    """
    divider = content.find(b"\x00")
    try:
        found, ids, length = content[:divider].decode("ascii").split(" ")
        children = ids.split(",") if ids else []
        body = memoryview(content)[divider + 1 :]
        is_whole = divider >= 0 and int(length) == len(body)
    except ValueError:
        raise NotAuthentic("damaged") from None
    _require(is_whole and all(map(is_id, children)) and found in (kind or found,))
    return found, children, body


def _require(is_right: bool) -> None:
    """Raises NotAuthentic where it is not."""
    if not is_right:
        raise NotAuthentic("damaged")


def is_id(text: object) -> bool:
    """Whether it is a SHA-256 in hexadecimal."""
    return isinstance(text, str) and len(text) == 64 and _ID_DIGITS.issuperset(text)


def content_id(message_id: str, fetch: Fetch) -> str:
    """Object id of a message's content. Raises NotAuthentic."""
    (written,) = _checked([message_id], fetch, inf)
    _, children, _ = parse(written, "Message")
    _require(len(children) == 1)
    return children[0]


def read_small(object_id: str, fetch: Fetch, num_bytes: int = _MOST_SMALL_BYTES) -> Any:
    """A ConfigRecord or MetricRecord of `num_bytes` at most. Raises NotAuthentic."""
    (written,) = _checked([object_id], fetch, min(num_bytes, _MOST_SMALL_BYTES))
    kind, _, _ = parse(written)
    _require(kind in _SMALL)
    try:
        return _SMALL[kind].inflate(written)
    except Exception:  # whatever Flower makes of bytes that somebody chose
        raise NotAuthentic("damaged") from None


def read_content(
    names: Mapping[str, str],
    signed: Mapping[str, tuple[str, int]],
    fetch: Fetch,
    make_room: Callable[[int], np.ndarray],
    most_bytes: float = inf,
) -> RecordDict:
    """The records that were signed; arrays become one ArrayRecord by reference.

    Args:
        names: object ids of the records that came. signed: ids and sizes of those that were signed.
        make_room: gives memory for that many bytes, (n,) uint8.
        most_bytes: of all arrays; more are refused before room is made for them.

    Raises:
        NotAuthentic: other records came than were signed, or something is not what its id says.
    """
    if dict(names) != {name: object_id for name, (object_id, _) in signed.items()}:
        raise NotAuthentic("forged")
    content = RecordDict()
    for name, (object_id, num_bytes) in signed.items():
        if name == "tensors":
            content[name] = to_record(
                _read_arrays(object_id, num_bytes, fetch, make_room, most_bytes)
            )
        else:
            content[name] = read_small(object_id, fetch, num_bytes)
    return content


def _read_arrays(
    object_id: str,
    num_bytes: int,
    fetch: Fetch,
    make_room: Callable[[int], np.ndarray],
    most_bytes: float,
) -> dict[str, np.ndarray]:
    """Flat arrays, one after the other in the room that was made, as `local.py` lays them."""
    (written,) = _checked([object_id], fetch, min(num_bytes, _MOST_PIECES * 128))
    left = num_bytes - len(written)
    keys = _references(written, "ArrayRecord")
    pieces: dict[str, list[_Piece]] = {}
    for key, described in zip(
        keys, _checked(list(keys.values()), fetch, left), strict=True
    ):
        left -= len(described)
        name, _, number = key.rpartition(".")
        _require(number == f"{len(pieces.setdefault(name, [])):05d}")
        pieces[name].append(_Piece.read(described))
    _require(
        all(len({piece.dtype for piece in parts}) == 1 for parts in pieces.values())
    )
    table: ArrayTable = [
        (name, str(parts[0].dtype), sum(piece.length for piece in parts))
        for name, parts in pieces.items()
    ]
    in_order = [piece for parts in pieces.values() for piece in parts]
    _require(sum(piece.num_bytes for piece in in_order) <= min(most_bytes, num_bytes))
    try:
        arrays = read_arrays(make_room(table_bytes(table)), table)
    except (MemoryError, OSError):  # more was signed than this machine has
        raise NotAuthentic("damaged") from None
    contents = _checked([piece.chunk for piece in in_order], fetch, left)
    for name in arrays:
        at = 0
        for piece in pieces[name]:
            arrays[name][at : at + piece.length] = piece.numbers(next(contents))
            at += piece.length
    return arrays


@dataclass(frozen=True)
class _Piece:
    """What an object of type Array says about itself."""

    dtype: np.dtype
    length: int
    chunk: str

    @property
    def num_bytes(self) -> int:
        """Of its numbers."""
        return self.length * self.dtype.itemsize

    @classmethod
    def read(cls, written: bytes) -> _Piece:
        _, children, body = parse(written, "Array")
        try:
            said = json.loads(bytes(body))
            (length,) = said["shape"]
            _require(
                said["dtype"] in _DTYPES
                and said["arraychunk_ids"] == [0]
                and len(children) == 1
            )
            _require(isinstance(length, int) and 0 <= length < 2**40)
            return cls(np.dtype(said["dtype"]), length, children[0])
        except (ValueError, KeyError, TypeError, RecursionError):
            raise NotAuthentic("damaged") from None

    def numbers(self, written: bytes) -> np.ndarray:
        """The piece, as a view of the bytes of its chunk."""
        _, _, body = parse(written, "ArrayChunk")
        try:
            found = read_piece(body)
        except Exception:  # whatever NumPy makes of a header that somebody chose
            raise NotAuthentic("damaged") from None
        _require((found.dtype, found.shape) == (self.dtype, (self.length,)))
        return found


def _references(written: bytes, kind: str) -> dict[str, str]:
    _, children, body = parse(written, kind)
    try:
        refs = json.loads(bytes(body))
    except (ValueError, RecursionError):
        raise NotAuthentic("damaged") from None
    _require(
        isinstance(refs, dict)
        and all(map(is_id, refs.values()))
        and len(refs) <= _MOST_PIECES
    )
    _require(set(refs.values()) == set(children))
    return {str(name): object_id for name, object_id in refs.items()}


def _checked(ids: Sequence[str], fetch: Fetch, most_bytes: float) -> Iterator[bytes]:
    """The contents of these objects, each found to be what its id says; `most_bytes` together."""
    left = most_bytes
    for object_id, content in zip(ids, fetch(ids), strict=True):
        left -= len(content)
        _require(left >= 0 and hashlib.sha256(content).hexdigest() == object_id)
        yield content


def sizes(records: Mapping[str, Object]) -> dict[str, tuple[str, int]]:
    """Object ids and sizes of records, as a statement lists them."""
    return {
        name: (record.object_id, record.num_bytes) for name, record in records.items()
    }


def read_signed(content: str, fetch: Fetch) -> tuple[dict[str, str], dict[str, str]]:
    """Object ids of a content's records by name, without that of its envelope; and what the envelope holds.

    Args:
        content: its object id.

    Raises:
        NotAuthentic: there is no envelope, or no content.
    """
    (written,) = _checked([content], fetch, _MOST_SMALL_BYTES)
    names = _references(written, "RecordDict")
    if ENVELOPE not in names:
        raise NotAuthentic("unsigned")
    envelope = read_small(names.pop(ENVELOPE), fetch)
    return names, {str(key): str(value) for key, value in envelope.items()}


def wait_for_object(
    pull: Callable[[], Any], is_over: Callable[[], bool]
) -> bytes | None:
    """The content of an object that its sender may still be pushing; None where it is not there.

    Args:
        pull: asks once, for one of Flower's PullObjectResponse.
        is_over: whether to wait no longer; it is asked for at least once.
    """
    pause = 0.05
    while True:
        response = pull()
        if response.object_available or not response.object_found or is_over():
            return bytes(response.object_content) if response.object_available else None
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)
