"""Messages on their way, and the changes that attackers can make to them.

A courier (the SuperLink's machine, or another site) has no key. It can change bytes, and give every
object a new name, so that all ids are true again. A signer has the key and can sign anything.
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
"""Contents by the ids they go under, children first."""
_ID = re.compile(rb"[0-9a-f]{64}")
NUMBERS = (nan, inf, -inf, -1.0, 0.0, 1e308, 1.7e9)
TOKENS = (
    *(
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
    ),
    *(
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
    ),
    *(
        r'"\ud800"',
        r'"\u0000"',
        '"' + "0" * 64 + '"',
        "[" * 20_000 + "]" * 20_000,
        "[" * 500,
        '{"a":' * 500,
    ),
)
"""What may stand in JSON where something else should."""
BODIES = (
    *(
        b"",
        b"{}",
        b"[]",
        b"null",
        b"NaN",
        b'"',
        b"\xff\xfe{\x00}\x00",
        b"\xc3\x28",
        b"\x00" * 9,
    ),
    *(
        b"[" * 20_000,
        b'{"a":' * 20_000,
        b'{"tensors": 1}',
        b'{"tensors": "' + b"0" * 64 + b'"}',
    ),
    "{}".encode("utf-16"),
)
"""What may stand in an object where something else should."""


def small_content() -> RecordDict:
    """Tensors in four pieces, 8 fp32 + 3 int8 + 0 fp16, and two records of words and numbers."""
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
    """Whether this is what `small_content` gives, its pieces put together."""
    expected = small_content()
    arrays = (
        from_record(ArrayRecord(dict(found.array_records["tensors"])))
        if "tensors" in found
        else {}
    )
    whole: dict[str, np.ndarray] = {
        "shared": np.arange(8, dtype=np.float32),
        "steps": np.array([-1, 0, 1], dtype=np.int8),
        "none": np.zeros(0, dtype=np.float16),
    }
    return (
        list(found) == list(expected)
        and all(found[name] == expected[name] for name in ("task", "metrics"))
        and list(arrays) == list(whole)
        and all(
            (array.dtype, array.tobytes()) == (whole[name].dtype, whole[name].tobytes())
            for name, array in arrays.items()
        )
    )


@cache
def public_of(key: Any) -> str:
    """Its public half, OpenSSH form."""
    return public_line(key)


def envelope(payload_type: str, payload: bytes, key: Any, **changed: Any) -> str:
    """A DSSE envelope, written here by hand around any bytes."""
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
    """Hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def written(kind: str, children: Sequence[str], body: bytes) -> bytes:
    """An object, by hand."""
    return f"{kind} {','.join(children)} {len(body)}".encode() + b"\x00" + body


def parts(content: bytes) -> tuple[str, list[str], bytes]:
    """Type, children and body of an object that may be damaged."""
    head, _, body = content.partition(b"\x00")
    return (
        head.split(b" ")[0].decode("ascii", "replace"),
        [i.decode() for i in _ID.findall(head)],
        body,
    )


def size_of(objects: Mapping[str, bytes], object_id: str) -> int:
    """Bytes of an object and of all below it."""
    content = objects.get(object_id, b"")
    return len(content) + sum(size_of(objects, child) for child in parts(content)[1])


def rehash(objects: Objects) -> dict[str, str]:
    """Name every object by its content again, also inside other objects; return new ids by old."""
    moved: dict[str, str] = {}
    for _ in range(32):  # an object that holds its own name never comes to rest
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
    """A message as a courier holds it."""

    message: ProtoMessage
    """Without its content; the id in its metadata stands for that."""
    objects: Objects

    def copy(self) -> Wire:
        """One that can be changed."""
        message = ProtoMessage()
        message.CopyFrom(self.message)
        return Wire(message, dict(self.objects))

    def rehash(self) -> None:
        """Make all ids true again, up to the message's own."""
        metadata = self.message.metadata
        metadata.message_id = rehash(self.objects).get(
            metadata.message_id, metadata.message_id
        )

    @property
    def content_id(self) -> str:
        """Id of its RecordDict."""
        return (
            parts(self.objects.get(self.message.metadata.message_id, b""))[1] or [""]
        )[0]

    @property
    def names(self) -> dict[str, str]:
        """Ids of its records by name, as far as that can be read."""
        try:
            names = json.loads(parts(self.objects[self.content_id])[2])
            return {name: str(object_id) for name, object_id in names.items()}
        except (KeyError, ValueError, AttributeError, RecursionError):
            return {}

    def write_names(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Replace its RecordDict's table of names; the ids are true afterwards."""
        if self.content_id not in self.objects:
            return
        body = (
            "{"
            + ", ".join(f"{json.dumps(name)}: {json.dumps(to)}" for name, to in pairs)
            + "}"
        )
        self.objects[self.content_id] = written(
            "RecordDict", list(dict.fromkeys(to for _, to in pairs)), body.encode()
        )
        self.rehash()


@dataclass
class Draft:
    """A message before it is signed."""

    metadata: Metadata
    payload_type: str
    key: Any
    """Signs the statement."""
    statement: dict[str, Any]
    """All but `records`, which are those of this draft."""
    records: dict[str, str]
    """Ids by name."""
    objects: Objects
    run: dict[str, Any] = field(default_factory=dict)
    """What the coordinator says of the run; empty in an answer."""
    coordinator: Any = None
    """Signs that."""
    raw: dict[str, str] = field(default_factory=dict)
    """Fields of the statement that are written as they stand, in place of those above."""
    raw_run: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    """Claimed in place of the true ones."""
    payload_change: Callable[[bytes], bytes] = lambda payload: payload

    def rehash(self) -> None:
        """Make all ids true again."""
        moved = rehash(self.objects)
        self.records = {
            name: moved.get(object_id, object_id)
            for name, object_id in self.records.items()
        }

    @property
    def signed_bytes(self) -> int:
        """Of all records, as claimed."""
        return sum(self._size(name) for name in self.records)

    def _size(self, name: str) -> int:
        return self.sizes.get(name, size_of(self.objects, self.records[name]))

    def seal(self) -> Wire:
        """Sign it and send it off."""
        said, statement = {}, dict(self.statement)
        if self.run:
            run_payload = _json(self.run, self.raw_run)
            said["run"] = envelope(
                "application/vnd.wardround.run+json", run_payload, self.coordinator
            )
            statement["run"] = sha256(run_payload)
        statement["records"] = {
            name: [object_id, self._size(name)]
            for name, object_id in self.records.items()
        }
        payload = self.payload_change(_json(statement, self.raw))
        said["statement"] = envelope(self.payload_type, payload, self.key)
        sealed = ConfigRecord(said).deflate()  # type: ignore[arg-type]
        return self.assemble(
            self.records | {ENVELOPE: sha256(sealed)}, {sha256(sealed): sealed}
        )

    def assemble(self, names: Mapping[str, str], more: Objects) -> Wire:
        """A message of these records."""
        objects = self.objects | more
        content = written(
            "RecordDict",
            list(dict.fromkeys(names.values())),
            json.dumps(dict(names)).encode(),
        )
        objects[sha256(content)] = content
        root = written(
            "Message",
            [sha256(content)],
            ProtoMessage(metadata=self.metadata).SerializeToString(),
        )
        objects[sha256(root)] = root
        message = ProtoMessage(metadata=self.metadata)
        message.metadata.message_id = sha256(root)
        return Wire(message, objects)


def _json(fields: Mapping[str, Any], raw: Mapping[str, str]) -> bytes:
    """An object of JSON; what stands in `raw` is written as it is."""
    texts = {name: json.dumps(value) for name, value in fields.items()} | dict(raw)
    return (
        "{"
        + ", ".join(
            f"{json.dumps(name)}: {text}" for name, text in texts.items() if text
        )
        + "}"
    ).encode()


def objects_of(roots: Any) -> Objects:
    """Contents of objects and of all below them."""
    found: dict[str, Object] = {
        part.object_id: part for root in roots for part in root.walk()
    }
    return {object_id: part.write() for object_id, part in found.items()}


@dataclass(frozen=True)
class Packed:
    """A content as objects."""

    records: Mapping[str, str]
    """Ids by name."""
    objects: Mapping[str, bytes]


def pack(content: RecordDict) -> Packed:
    """All its objects."""
    records = record_objects(content, {})
    return Packed(
        {name: record.object_id for name, record in records.items()},
        objects_of(records.values()),
    )


SMALL = pack(small_content())


def draft_of(packed: Packed, metadata: Metadata, **facts: Any) -> Draft:
    """A draft of a message with this content."""
    return Draft(
        metadata=metadata,
        records=dict(packed.records),
        objects=dict(packed.objects),
        **facts,
    )


def metadata_of(kind: str, source: int, target: int, **facts: Any) -> Metadata:
    """Of a message that is sent now, in a round of a minute."""
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
    """Choices, read from bytes that hypothesis draws: zeros choose what comes first."""

    def __init__(self, drawn: bytes) -> None:
        self._left = int.from_bytes(drawn, "little")

    def number(self, below: int) -> int:
        """0 … below - 1."""
        self._left, found = divmod(self._left, max(1, below))
        return found

    def pick(self, items: Sequence[T]) -> T:
        """One of them."""
        return items[self.number(len(items))]

    def change(self, content: bytes) -> bytes:
        """Bytes with a bit flipped, cut short, made longer, or a part repeated or wiped out."""
        how, at, few = self.number(5), self.number(len(content) + 1), 1 + self.number(8)
        if how == 0 and at < len(content):
            return (
                content[:at] + bytes([content[at] ^ 1 << few - 1]) + content[at + 1 :]
            )
        if how == 1:
            return content[:at]
        if how == 2:
            return (
                content[:at]
                + self.number(256**few).to_bytes(few, "little")
                + content[at:]
            )
        if how == 3:
            return content[:at] + content[max(0, at - few) :]
        return content[:at] + bytes(few) + content[at + few :]
