"""Messages on their way, and the tools of attackers who change them.

A courier (the SuperLink's machine, or another site) has no key. It can change bytes, and
name every object by its content again. A signer has the key and signs anything.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from math import inf, nan
from typing import Any, TypeVar

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.message_pb2 import Metadata

from wardround.common.credentials import fingerprint, public_line
from wardround.common.wire.arrays import Array, from_record
from wardround.common.wire.deadlines import LATE_SECONDS
from wardround.common.wire.objects import ENVELOPE, Object, record_objects

T = TypeVar("T")
Objects = dict[str, bytes]
"""Contents by the ids in the message, children first."""
_ID = re.compile(rb"[0-9a-f]{64}")
NUMBERS = (nan, inf, -inf, -1.0, 0.0, 1e308, 1.7e9)
TOKENS = (
    "NaN",
    "Infinity",
    "-Infinity",
    "-1",
    "0",
    "1",
    "1.5",
    "1e308",
    "1e999",
    "9223372036854775808",
    "1" + "0" * 400,
    "1" + "0" * 5000,
    "null",
    "true",
    "[]",
    "{}",
    "[[1]]",
    '""',
    '"x"',
    '"5"',
    r'"\ud800"',
    r'"\u0000"',
    '"' + "0" * 64 + '"',
    "[" * 20_000 + "]" * 20_000,
    "[" * 500,
    '{"a":' * 500,
)
"""Wrong values in JSON, and text that is no JSON."""
BODIES = (
    b"",
    b"{}",
    b"[]",
    b"null",
    b"NaN",
    b'"',
    b"\xff\xfe{\x00}\x00",
    b"\xc3\x28",
    b"\x00" * 9,
    b"[" * 20_000,
    b'{"a":' * 20_000,
    b'{"tensors": 1}',
    b'{"tensors": "' + b"0" * 64 + b'"}',
    "{}".encode("utf-16"),
)
"""Wrong contents of an object."""


def small_content() -> RecordDict:
    """Return tensors in four pieces (8 fp32, 3 int8, 0 fp16), and two other records."""
    arrays = ArrayRecord()
    pieces: dict[str, np.ndarray] = {
        "shared.00000": np.arange(5, dtype=np.float32),
        "shared.00001": np.arange(5, 8, dtype=np.float32),
        "steps.00000": np.array([-1, 0, 1], dtype=np.int8),
        "none.00000": np.zeros(0, dtype=np.float16),
    }
    for key, numbers in pieces.items():
        arrays[key] = Array(numbers)
    task = ConfigRecord({"round": 1, "layout": "abc", "client": 0, "notice": "words"})
    return RecordDict(
        {
            "tensors": arrays,
            "task": task,
            "metrics": MetricRecord({"loss": 0.5, "steps": 3}),
        }
    )


def is_small_content(found: RecordDict) -> bool:
    """Return True if this is the content of `small_content`, with its pieces joined."""
    expected = small_content()
    if list(found) != list(expected):
        return False
    if any(found[name] != expected[name] for name in ("task", "metrics")):
        return False
    arrays = from_record(ArrayRecord(dict(found.array_records["tensors"])))
    whole: dict[str, np.ndarray] = {
        "shared": np.arange(8, dtype=np.float32),
        "steps": np.array([-1, 0, 1], dtype=np.int8),
        "none": np.zeros(0, dtype=np.float16),
    }
    if list(arrays) != list(whole):
        return False
    return all(
        array.dtype == whole[name].dtype and array.tobytes() == whole[name].tobytes()
        for name, array in arrays.items()
    )


@cache
def public_of(key: Any) -> str:
    """Return the public half of a key, OpenSSH form."""
    return public_line(key)


def envelope(payload_type: str, payload: bytes, key: Any, **changed: Any) -> str:
    """Write a DSSE envelope around any bytes, without the code of the project."""
    kind = payload_type.encode()
    signed = b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)
    signature = {"keyid": fingerprint(public_of(key)), "sig": _text(key.sign(signed))}
    content = {
        "payloadType": payload_type,
        "payload": _text(payload),
        "signatures": [signature],
    }
    return json.dumps(content | changed)


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def sha256(content: bytes) -> str:
    """Return the SHA-256, hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def written(kind: str, children: Sequence[str], body: bytes) -> bytes:
    """Return the bytes of an object, without the code of the project."""
    return f"{kind} {','.join(children)} {len(body)}".encode() + b"\x00" + body


def parts(content: bytes) -> tuple[str, list[str], bytes]:
    """Return type, children and body of an object, which may be damaged."""
    head, _, body = content.partition(b"\x00")
    kind = head.split(b" ")[0].decode("ascii", "replace")
    children = [object_id.decode() for object_id in _ID.findall(head)]
    return kind, children, body


def table(pairs: Sequence[tuple[str, str]]) -> bytes:
    """Return an object of JSON. Unlike in a dict, a name may be there twice."""
    items = [f"{json.dumps(name)}: {json.dumps(to)}" for name, to in pairs]
    return ("{" + ", ".join(items) + "}").encode()


def size_of(objects: Mapping[str, bytes], object_id: str) -> int:
    """Return the number of bytes of an object and of all objects below it."""
    content = objects.get(object_id, b"")
    return len(content) + sum(size_of(objects, child) for child in parts(content)[1])


def rehash(objects: Objects) -> dict[str, str]:
    """Name every object by its content again, also where its parents name it.

    Returns:
        The new ids by the old ones.
    """
    moved: dict[str, str] = {}
    for _ in range(32):  # an object that holds its own name would change for ever
        wrong = next(
            (old for old, content in objects.items() if sha256(content) != old), None
        )
        if wrong is None:
            break
        new = sha256(objects[wrong])
        moved = {
            start: new if end == wrong else end
            for start, end in ({wrong: wrong} | moved).items()
        }
        for object_id, content in list(objects.items()):
            if wrong.encode() in content:
                objects[object_id] = content.replace(wrong.encode(), new.encode())
        order = {
            (new if object_id == wrong else object_id): content
            for object_id, content in objects.items()
        }
        objects.clear()
        objects.update(order)
    return moved


@dataclass
class Wire:
    """A message in the hands of a courier."""

    message: ProtoMessage
    """The message without its content, which the id in its metadata names."""
    objects: Objects

    def copy(self) -> Wire:
        """Return a copy that can be changed."""
        message = ProtoMessage()
        message.CopyFrom(self.message)
        return Wire(message, dict(self.objects))

    def rehash(self) -> None:
        """Correct all ids, also that of the message."""
        metadata = self.message.metadata
        moved = rehash(self.objects)
        metadata.message_id = moved.get(metadata.message_id, metadata.message_id)

    @property
    def content_id(self) -> str:
        """The id of its RecordDict; empty if it is damaged."""
        root = self.objects.get(self.message.metadata.message_id, b"")
        children = parts(root)[1]
        return children[0] if children else ""

    @property
    def names(self) -> dict[str, str]:
        """The ids of its records by name; empty if they cannot be read."""
        try:
            names = json.loads(parts(self.objects[self.content_id])[2])
            return {name: str(object_id) for name, object_id in names.items()}
        except (KeyError, ValueError, AttributeError, RecursionError):
            return {}

    def write_names(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Replace the table of names of its RecordDict, and correct all ids."""
        if self.content_id not in self.objects:
            return
        children = list(dict.fromkeys(to for _, to in pairs))
        record = written("RecordDict", children, table(pairs))
        self.objects[self.content_id] = record
        self.rehash()


@dataclass
class Draft:
    """A message before it is signed."""

    metadata: Metadata
    payload_type: str
    key: Any
    """The key that signs the statement."""
    statement: dict[str, Any]
    """All fields of the statement except `records`."""
    records: dict[str, str]
    """Ids by name."""
    objects: Objects
    run: dict[str, Any] = field(default_factory=dict)
    """The coordinator's statement about the run; empty in an answer."""
    coordinator: Any = None
    """The key that signs the statement about the run."""
    raw: dict[str, str] = field(default_factory=dict)
    """Fields of the statement as JSON text, which replace those in `statement`."""
    raw_run: dict[str, str] = field(default_factory=dict)
    """Fields of the run as JSON text, which replace those in `run`."""
    sizes: dict[str, int] = field(default_factory=dict)
    """Claimed sizes, which replace the true ones."""
    payload_change: Callable[[bytes], bytes] = lambda payload: payload
    """Changes the payload before it is signed."""

    def rehash(self) -> None:
        """Correct all ids."""
        moved = rehash(self.objects)
        self.records = {
            name: moved.get(object_id, object_id)
            for name, object_id in self.records.items()
        }

    @property
    def signed_bytes(self) -> int:
        """The claimed size of all records."""
        return sum(self._size(name) for name in self.records)

    def _size(self, name: str) -> int:
        return self.sizes.get(name, size_of(self.objects, self.records[name]))

    def seal(self) -> Wire:
        """Sign the draft. Return the message."""
        envelopes, statement = {}, dict(self.statement)
        if self.run:
            run_payload = _json(self.run, self.raw_run)
            run_type = "application/vnd.wardround.run+json"
            envelopes["run"] = envelope(run_type, run_payload, self.coordinator)
            statement["run"] = sha256(run_payload)
        statement["records"] = {
            name: [object_id, self._size(name)]
            for name, object_id in self.records.items()
        }
        payload = self.payload_change(_json(statement, self.raw))
        envelopes["statement"] = envelope(self.payload_type, payload, self.key)
        sealed = ConfigRecord(envelopes).deflate()  # type: ignore[arg-type]
        names = self.records | {ENVELOPE: sha256(sealed)}
        return self.assemble(names, {sha256(sealed): sealed})

    def assemble(self, names: Mapping[str, str], more: Objects) -> Wire:
        """Return a message of these records."""
        objects = self.objects | more
        children = list(dict.fromkeys(names.values()))
        content = written("RecordDict", children, json.dumps(dict(names)).encode())
        objects[sha256(content)] = content
        body = ProtoMessage(metadata=self.metadata).SerializeToString()
        root = written("Message", [sha256(content)], body)
        objects[sha256(root)] = root
        message = ProtoMessage(metadata=self.metadata)
        message.metadata.message_id = sha256(root)
        return Wire(message, objects)


def _json(fields: Mapping[str, Any], raw: Mapping[str, str]) -> bytes:
    """Return an object of JSON. Values in `raw` are JSON text; an empty one is left out."""
    texts = {name: json.dumps(value) for name, value in fields.items()} | dict(raw)
    items = [f"{json.dumps(name)}: {text}" for name, text in texts.items() if text]
    return ("{" + ", ".join(items) + "}").encode()


def objects_of(roots: Any) -> Objects:
    """Return the contents of objects and of all objects below them."""
    found: dict[str, Object] = {
        part.object_id: part for root in roots for part in root.walk()
    }
    return {object_id: part.write() for object_id, part in found.items()}


@dataclass(frozen=True)
class Packed:
    """The objects of a content."""

    records: Mapping[str, str]
    """Ids by name."""
    objects: Mapping[str, bytes]


def pack(content: RecordDict) -> Packed:
    """Return the objects of a content."""
    records = record_objects(content, {})
    return Packed(
        {name: record.object_id for name, record in records.items()},
        objects_of(records.values()),
    )


SMALL = pack(small_content())


def draft_of(packed: Packed, metadata: Metadata, **facts: Any) -> Draft:
    """Return the draft of a message with this content."""
    return Draft(
        metadata=metadata,
        records=dict(packed.records),
        objects=dict(packed.objects),
        **facts,
    )


def metadata_of(kind: str, source: int, target: int, **facts: Any) -> Metadata:
    """Return the metadata of a message that is sent now, in a round of a minute."""
    return Metadata(
        run_id=11,
        src_node_id=source,
        dst_node_id=target,
        group_id="1",
        created_at=time.time(),
        ttl=60.0 + LATE_SECONDS,
        message_type=kind,
        **facts,
    )


class Dice:
    """Choices that bytes of hypothesis decide. Zeros choose the first item."""

    def __init__(self, drawn: bytes) -> None:
        self._left = int.from_bytes(drawn, "little")

    def number(self, below: int) -> int:
        """Return a number from 0 to `below` - 1."""
        self._left, found = divmod(self._left, max(1, below))
        return found

    def pick(self, items: Sequence[T]) -> T:
        """Return one of the items."""
        return items[self.number(len(items))]

    def change(self, content: bytes) -> bytes:
        """Flip a bit, cut the bytes, add some, or repeat or clear a part."""
        how = self.number(5)
        at = self.number(len(content) + 1)
        few = 1 + self.number(8)
        if how == 0 and at < len(content):
            flipped = bytes([content[at] ^ 1 << few - 1])
            return content[:at] + flipped + content[at + 1 :]
        if how == 1:
            return content[:at]
        if how == 2:
            added = self.number(256**few).to_bytes(few, "little")
            return content[:at] + added + content[at:]
        if how == 3:
            return content[:at] + content[max(0, at - few) :]
        return content[:at] + bytes(few) + content[at + few :]
