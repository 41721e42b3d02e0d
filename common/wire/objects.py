"""Write and read Flower's object format, one piece at a time.

A message travels as a tree of objects: message, RecordDict, records, arrays, chunks. Each is
`<type> <ids of its children, with commas> <length of its body>`, a zero byte, and the body. Its
id is the SHA-256 of all that, so a record's id proves everything in the record. Flower's own
reader fetches a whole tree before it checks anything, and checks no hash. This reader fetches only
signed objects and checks every piece on arrival. It writes the tensors into memory that the caller
chooses.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, TypeVar

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from wardround.common.errors import NotAuthentic, damaged_if_unreadable
from wardround.common.wire.arrays import Array, read_piece, to_record
from wardround.common.wire.flat_arrays import read_arrays, table_bytes

ENVELOPE = "envelope"
"""Name of the record with the signed statement about the other records."""
_SMALL: dict[str, Any] = {"ConfigRecord": ConfigRecord, "MetricRecord": MetricRecord}
_MOST_SMALL_BYTES = 1 << 20
_MOST_PIECES = 1 << 16
_LONGEST_PAUSE = 1.0
_ID_DIGITS = frozenset("0123456789abcdef")
_DTYPES = frozenset({"uint8", "int8", "uint16", "int32", "float16", "float32"})
"""The types of arrays that are sent (`common/wire/forms.py`)."""

T = TypeVar("T")
Fetch = Callable[[Sequence[str]], Iterator[bytes]]
"""Yields the contents of objects, in the order of their ids."""


@dataclass(frozen=True)
class Object:
    """An object. `write` can be called many times."""

    object_id: str
    num_bytes: int
    """Bytes of this object and of all objects below it, each as often as it occurs."""
    children: tuple[Object, ...]
    write: Callable[[], bytes]

    def walk(self) -> Iterator[Object]:
        """Yield this object and all below it, children first."""
        for child in self.children:
            yield from child.walk()
        yield self

    def tree(self, make: Callable[..., T]) -> T:
        """Return the ids of this object and of those below it, as a tree.

        Pieces with the same content are the same object, which the tree lists once.

        Args:
            make: Flower's ObjectTree. It is a private name, so the caller passes it.
        """
        children = {child.object_id: child for child in self.children}.values()
        return make(
            object_id=self.object_id, children=[child.tree(make) for child in children]
        )


def parts_in(roots: Iterable[Object], wanted: Iterable[str]) -> list[Object]:
    """Return the objects below these roots that have one of the wanted ids, each once."""
    ids = set(wanted)
    parts = {}
    for root in roots:
        for part in root.walk():
            if part.object_id in ids:
                parts[part.object_id] = part
    return list(parts.values())


def make_object(kind: str, body: bytes, children: Sequence[Object] = ()) -> Object:
    """Make an object whose content is small enough to be kept."""
    ids = dict.fromkeys(child.object_id for child in children)
    content = _head(kind, list(ids), len(body)) + body
    return _written_object(content, children)


def _written_object(content: bytes, children: Sequence[Object] = ()) -> Object:
    """Return the object with this content, head and body."""
    object_id = hashlib.sha256(content).hexdigest()
    num_bytes = len(content) + sum(child.num_bytes for child in children)
    return Object(object_id, num_bytes, tuple(children), lambda: content)


def _object_of_parts(kind: str, parts: Mapping[str, Object]) -> Object:
    """Return the object that names its parts."""
    refs = {name: part.object_id for name, part in parts.items()}
    return make_object(kind, json.dumps(refs).encode(), list(parts.values()))


def content_object(content: RecordDict) -> Object:
    """Return a content as an object. Arrays are neither copied nor kept as bytes."""
    return content_of_records(record_objects(content, {}))


def record_objects(content: RecordDict, known: dict[int, Object]) -> dict[str, Object]:
    """Return the records of a content as objects, by name.

    Args:
        known: objects of earlier records, by `id`. Those of tensors are added: the contents of a
            round share them, and hashing takes time.
    """
    objects = {}
    for name, record in content.items():
        objects[name] = known.get(id(record)) or _record_object(record)
        if isinstance(record, ArrayRecord):
            known[id(record)] = objects[name]
    return objects


def content_of_records(records: Mapping[str, Object]) -> Object:
    """Return the RecordDict of these records."""
    return _object_of_parts("RecordDict", records)


def _record_object(record: Any) -> Object:
    if not isinstance(record, ArrayRecord):
        return _written_object(record.deflate())
    arrays = {name: _array_object(array) for name, array in record.items()}
    return _object_of_parts("ArrayRecord", arrays)


def _array_object(array: Any) -> Object:
    assert isinstance(array, Array), "only arrays by reference are written here"
    parts = _chunk(array)
    num_bytes = sum(len(part) for part in parts)
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    chunk = Object(digest.hexdigest(), num_bytes, (), lambda: b"".join(_chunk(array)))
    described = {
        "dtype": array.dtype,
        "shape": array.shape,
        "stype": array.stype,
        "arraychunk_ids": [0],
    }
    return make_object("Array", json.dumps(described).encode(), [chunk])


def _chunk(array: Array) -> tuple[bytes, bytes, memoryview]:
    """Return the object that holds the numbers, in parts, without a copy."""
    header, numbers = array.parts()
    return _head("ArrayChunk", [], len(header) + len(numbers)), header, numbers


def _head(kind: str, children: list[str], num_bytes: int) -> bytes:
    return f"{kind} {','.join(children)} {num_bytes}".encode() + b"\x00"


def parse(content: bytes, kind: str = "") -> tuple[str, list[str], memoryview]:
    """Return type, children and body of an object.

    Args:
        kind: the type it must have; empty for any.

    Raises:
        NotAuthentic: the bytes are not an object, or it has another type.
    """
    divider = content.find(b"\x00")
    body = memoryview(content)[divider + 1 :]
    with damaged_if_unreadable():
        head = content[:divider].decode("ascii")
        found, ids, length = head.split(" ")
        num_bytes = int(length)
    children = ids.split(",") if ids else []
    _require(divider >= 0)
    _require(num_bytes == len(body))
    _require(all(map(is_id, children)))
    _require(not kind or found == kind)
    return found, children, body


def _require(is_right: bool) -> None:
    """Raise NotAuthentic unless `is_right`."""
    if not is_right:
        raise NotAuthentic("damaged")


def is_id(text: object) -> bool:
    """Return whether a value is a SHA-256 in hexadecimal."""
    return isinstance(text, str) and len(text) == 64 and _ID_DIGITS.issuperset(text)


def content_id(message_id: str, fetch: Fetch) -> str:
    """Return the object id of a message's content. Raises NotAuthentic."""
    (written,) = _checked([message_id], fetch, inf)
    _, children, _ = parse(written, "Message")
    _require(len(children) == 1)
    return children[0]


def read_small(object_id: str, fetch: Fetch, num_bytes: int = _MOST_SMALL_BYTES) -> Any:
    """Read a ConfigRecord or MetricRecord of at most `num_bytes`. Raises NotAuthentic."""
    (written,) = _checked([object_id], fetch, min(num_bytes, _MOST_SMALL_BYTES))
    kind, _, _ = parse(written)
    _require(kind in _SMALL)
    with damaged_if_unreadable():
        return _SMALL[kind].inflate(written)


def read_content(
    names: Mapping[str, str],
    signed: Mapping[str, tuple[str, int]],
    fetch: Fetch,
    make_room: Callable[[int], np.ndarray],
    most_bytes: float = inf,
) -> RecordDict:
    """Read the records that were signed; arrays become one ArrayRecord by reference.

    Args:
        names: object ids of the received records.
        signed: ids and sizes of the signed records.
        make_room: reserves memory of n bytes, (n,) uint8.
        most_bytes: the largest size of all arrays together. A larger content is refused before
            memory is reserved.

    Raises:
        NotAuthentic: the received records are not the signed ones, or an object does not fit its
            id.
    """
    if dict(names) != {name: object_id for name, (object_id, _) in signed.items()}:
        raise NotAuthentic("forged")
    content = RecordDict()
    for name, (object_id, num_bytes) in signed.items():
        if name == "tensors":
            arrays = _read_arrays(object_id, num_bytes, fetch, make_room, most_bytes)
            content[name] = to_record(arrays)
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
    """Read flat arrays into the reserved memory, in the order of `shared_memory.read_arrays`."""
    (written,) = _checked([object_id], fetch, min(num_bytes, _MOST_PIECES * 128))
    left = num_bytes - len(written)
    keys = _references(written, "ArrayRecord")
    descriptions = _checked(list(keys.values()), fetch, left)
    pieces: dict[str, list[_Piece]] = {}
    for key, described in zip(keys, descriptions, strict=True):
        left -= len(described)
        name, _, number = key.rpartition(".")
        parts = pieces.setdefault(name, [])
        _require(number == f"{len(parts):05d}")
        parts.append(_Piece.read(described))
    in_order = [piece for parts in pieces.values() for piece in parts]
    claimed_bytes = sum(piece.num_bytes for piece in in_order)
    _require(claimed_bytes <= min(most_bytes, num_bytes))
    table = [_row(name, parts) for name, parts in pieces.items()]
    try:
        arrays = read_arrays(make_room(table_bytes(table)), table)
    except (MemoryError, OSError):  # this machine has less memory
        raise NotAuthentic("damaged") from None
    contents = _checked([piece.chunk for piece in in_order], fetch, left)
    for name, array in arrays.items():
        start = 0
        for piece in pieces[name]:
            end = start + piece.length
            array[start:end] = piece.numbers(next(contents))
            start = end
    return arrays


def _row(name: str, parts: Sequence[_Piece]) -> tuple[str, str, int]:
    """Return the row of an array for `ArrayTable`, from its pieces."""
    dtype = parts[0].dtype
    _require(all(piece.dtype == dtype for piece in parts))
    length = sum(piece.length for piece in parts)
    return name, str(dtype), length


@dataclass(frozen=True)
class _Piece:
    """The description in an object of type Array."""

    dtype: np.dtype
    length: int
    chunk: str

    @property
    def num_bytes(self) -> int:
        """Bytes of the numbers."""
        return self.length * self.dtype.itemsize

    @classmethod
    def read(cls, written: bytes) -> _Piece:
        _, children, body = parse(written, "Array")
        with damaged_if_unreadable():
            described = json.loads(bytes(body))
            dtype = described["dtype"]
            (length,) = described["shape"]
            (chunk,) = children
            _require(dtype in _DTYPES)
            _require(described["arraychunk_ids"] == [0])
            _require(isinstance(length, int))
            _require(0 <= length < 2**40)
            return cls(np.dtype(dtype), length, chunk)

    def numbers(self, written: bytes) -> np.ndarray:
        """Return the piece as a view of its chunk's bytes."""
        _, _, body = parse(written, "ArrayChunk")
        with damaged_if_unreadable():
            found = read_piece(body)
        _require(found.dtype == self.dtype)
        _require(found.shape == (self.length,))
        return found


def _references(written: bytes, kind: str) -> dict[str, str]:
    _, children, body = parse(written, kind)
    with damaged_if_unreadable():
        refs = json.loads(bytes(body))
    _require(isinstance(refs, dict))
    _require(len(refs) <= _MOST_PIECES)
    _require(all(map(is_id, refs.values())))
    _require(set(refs.values()) == set(children))
    return {str(name): object_id for name, object_id in refs.items()}


def _checked(ids: Sequence[str], fetch: Fetch, most_bytes: float) -> Iterator[bytes]:
    """Yield the contents of objects, checked by their ids, at most `most_bytes` in total."""
    left = most_bytes
    for object_id, content in zip(ids, fetch(ids), strict=True):
        left -= len(content)
        _require(left >= 0 and hashlib.sha256(content).hexdigest() == object_id)
        yield content


def sizes(records: Mapping[str, Object]) -> dict[str, tuple[str, int]]:
    """Return object ids and sizes of records, as a statement lists them."""
    return {
        name: (record.object_id, record.num_bytes) for name, record in records.items()
    }


def read_signed(content: str, fetch: Fetch) -> tuple[dict[str, str], dict[str, str]]:
    """Return the object ids of a content's records by name, and the values of its envelope.

    Args:
        content: object id of the content.

    Raises:
        NotAuthentic: the envelope or the content is missing.
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
    """Wait for the content of an object; return None if it does not arrive.

    Args:
        pull: requests the object once; returns Flower's PullObjectResponse.
        is_over: returns True to stop waiting. The object is requested at least once.
    """
    pause = 0.05
    while True:
        response = pull()
        if response.object_available or not response.object_found or is_over():
            return bytes(response.object_content) if response.object_available else None
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)
