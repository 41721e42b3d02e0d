"""Changes that a hostile courier or signer makes to a message; see `tests/support/wires.py`."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from typing import Any

from flwr.app import ConfigRecord

from tests.support.wires import (
    BODIES,
    NUMBERS,
    TOKENS,
    Dice,
    Draft,
    Wire,
    parts,
    sha256,
    table,
    written,
)
from wardround.common.wire.objects import ENVELOPE

Courier = Callable[[Wire, Dice, Sequence[Wire]], None]
"""Changes a message in place. The other messages were authentic once, but must not count here."""
Signer = Callable[[Draft, Dice], None]


# --- a courier: bytes, objects and their ids ------------------------------------------


def change_bytes(wire: Wire, dice: Dice, _: Sequence[Wire]) -> None:
    """Change bytes of one object."""
    object_id = dice.pick(list(wire.objects))
    wire.objects[object_id] = dice.change(wire.objects[object_id])
    _perhaps_rehash(wire, dice)


def change_body(wire: Wire, dice: Dice, _: Sequence[Wire]) -> None:
    """Change the body of one object; its head stays correct."""
    object_id = dice.pick(list(wire.objects))
    kind, children, body = parts(wire.objects[object_id])
    new = dice.pick((*BODIES, dice.change(body)))
    wire.objects[object_id] = written(kind, children, new)
    _perhaps_rehash(wire, dice)


def change_head(wire: Wire, dice: Dice, _: Sequence[Wire]) -> None:
    """Change the head of one object: type, children or length."""
    object_id = dice.pick(list(wire.objects))
    kind, children, body = parts(wire.objects[object_id])
    kind = dice.pick(
        (
            kind,
            "Array",
            "ArrayChunk",
            "ConfigRecord",
            "MetricRecord",
            "RecordDict",
            "Message",
            "",
        )
    )
    ids = dice.pick(
        (
            children,
            [],
            children * 2,
            children[:-1],
            [*children, "x"],
            [sha256(b"")],
            ["0" * 64] * 9,
        )
    )
    length = dice.pick(
        (str(len(body)), "-1", "1_0", "9" * 5000, "x", "", "0", f" {len(body)}", "1e9")
    )
    wire.objects[object_id] = (
        f"{kind} {','.join(ids)} {length}".encode() + b"\x00" + body
    )
    _perhaps_rehash(wire, dice)


def swap_objects(wire: Wire, dice: Dice, others: Sequence[Wire]) -> None:
    """Replace the content of one object by another's, perhaps from another message."""
    object_id = dice.pick(list(wire.objects))
    source = dice.pick((wire, *others)).objects
    wire.objects[object_id] = source[dice.pick(list(source))]
    _perhaps_rehash(wire, dice)


def lose_object(wire: Wire, dice: Dice, _: Sequence[Wire]) -> None:
    """Remove one object."""
    del wire.objects[dice.pick(list(wire.objects))]


def change_metadata(wire: Wire, dice: Dice, _: Sequence[Wire]) -> None:
    """Change the metadata of the message."""
    metadata, number = wire.message.metadata, dice.pick(NUMBERS)
    how = dice.number(7)
    if how == 0:
        metadata.created_at = number
    elif how == 1:
        metadata.ttl = number
    elif how == 2:
        metadata.run_id = dice.number(2**63)
    elif how == 3:
        metadata.message_type = dice.pick(
            ("query", "evaluate", "query.notice", "train.x", "", "\x1b[31m", "t" * 999)
        )
    elif how == 4:
        metadata.src_node_id = metadata.dst_node_id = dice.number(2**63)
    elif how == 5:
        metadata.message_id = dice.pick((*wire.objects, "", "x", "0" * 64, "é" * 64))
    else:
        metadata.group_id = metadata.reply_to_message_id = "x" * dice.number(999)


# --- a courier: records and envelopes -------------------------------------------------


def change_names(wire: Wire, dice: Dice, others: Sequence[Wire]) -> None:
    """Swap, rename, repeat, remove or add records."""
    pairs = list(wire.names.items())
    if not pairs:
        return
    one, two = dice.number(len(pairs)), dice.number(len(pairs))
    how = dice.number(6)
    if how == 0:
        names = [name for name, _ in pairs]
        names[one], names[two] = names[two], names[one]
        pairs = [(name, to) for name, (_, to) in zip(names, pairs, strict=True)]
    elif how == 1:
        pairs[one] = (
            dice.pick(("", "tensors", "update", "envelope ", "Envelope", "\x00")),
            pairs[one][1],
        )
    elif how == 2:
        pairs.append((pairs[one][0], pairs[two][1]))
    elif how == 3:
        del pairs[one]
    elif how == 4:
        other = dice.pick((wire, *others))
        name, to = dice.pick([*other.names.items()])
        wire.objects = _below(other, to) | wire.objects
        pairs.append((f"{name}.2" if dice.number(2) else name, to))
    else:
        other = dice.pick((wire, *others))
        name, to = dice.pick([*other.names.items()])
        wire.objects = _below(other, to) | wire.objects
        pairs = [(mine, to if mine == name else target) for mine, target in pairs]
    wire.write_names(pairs)


def other_envelope(wire: Wire, dice: Dice, others: Sequence[Wire]) -> None:
    """Put another message's envelope around this content."""
    other = dice.pick(others)
    to = other.names[ENVELOPE]
    wire.objects = {to: other.objects[to]} | wire.objects
    wire.write_names(list((wire.names | {ENVELOPE: to}).items()))


def other_message(wire: Wire, dice: Dice, others: Sequence[Wire]) -> None:
    """Replace the message: by an old one, one of another run, or one to another receiver."""
    other = dice.pick(others).copy()
    wire.objects = other.objects
    wire.message.metadata.message_id = other.message.metadata.message_id


def change_envelope(wire: Wire, dice: Dice, _: Sequence[Wire]) -> None:
    """Change the text of an envelope, without the key."""
    texts = _envelopes(wire)
    if not texts:
        return
    name = dice.pick(sorted(texts))
    try:
        content = json.loads(texts[name])
    except (ValueError, RecursionError):
        return
    how = dice.number(6)
    if how == 0:
        texts[name] = dice.change(texts[name].encode()).decode("utf-8", "replace")
    elif how == 1:
        del texts[name]
    elif how == 2:
        texts[name] = dice.pick(TOKENS)
    elif how == 3 and len(texts) > 1:
        texts = dict(zip(texts, reversed(texts.values()), strict=True))
    elif how == 4:
        payload = dice.change(base64.b64decode(content["payload"]))
        content["payload"] = base64.b64encode(payload).decode()
        texts[name] = json.dumps(content)
    else:
        field = dice.pick(("payload", "payloadType", "signatures", "keyid", "sig"))
        if field in ("keyid", "sig"):
            content["signatures"][0][field] = "TOKEN"
        else:
            content[field] = "TOKEN"
        texts[name] = json.dumps(content).replace('"TOKEN"', dice.pick(TOKENS))
    sealed = ConfigRecord(texts).deflate()
    to = sha256(sealed)
    wire.objects = {to: sealed} | wire.objects
    wire.write_names(list((wire.names | {ENVELOPE: to}).items()))


def no_envelope(wire: Wire, dice: Dice, _: Sequence[Wire]) -> None:
    """Remove an envelope, or put another value under its name."""
    names = wire.names
    names.pop(ENVELOPE, None)
    if names and dice.number(2):
        names[ENVELOPE] = dice.pick(sorted(names.values()))
    wire.write_names(list(names.items()))


def _envelopes(wire: Wire) -> dict[str, Any]:
    try:
        return dict(ConfigRecord.inflate(wire.objects[wire.names[ENVELOPE]]))
    except Exception:  # an earlier change damaged it
        return {}


def _below(wire: Wire, object_id: str) -> dict[str, bytes]:
    content = wire.objects.get(object_id)
    if content is None:
        return {}
    found: dict[str, bytes] = {}
    for child in parts(content)[1]:
        found |= _below(wire, child)
    return found | {object_id: content}


def _perhaps_rehash(wire: Wire, dice: Dice) -> None:
    if dice.number(4):
        wire.rehash()


# --- a signer -------------------------------------------------------------------------


def say_of_round(draft: Draft, dice: Dice) -> None:
    """Change any field of the statement."""
    field = dice.pick((*draft.statement, "records", "another"))
    draft.raw[field] = dice.pick(("", *TOKENS))


def say_of_time(draft: Draft, dice: Dice) -> None:
    """Change the time at which it expires."""
    draft.raw["expires"] = dice.pick(TOKENS)


def say_of_run(draft: Draft, dice: Dice) -> None:
    """Change any field of the run's statement."""
    if draft.run:
        draft.raw_run[dice.pick((*draft.run, "another"))] = dice.pick(("", *TOKENS))


def say_of_size(draft: Draft, dice: Dice) -> None:
    """Change the sizes of the records; perhaps an array claims the same size."""
    claims = (0, 1, -1, 2**20, 2**31, 2**44, 2**58, 2**63, 2**80, 10**300)
    for name in draft.records:
        if dice.number(2):
            draft.sizes[name] = dice.pick(claims)
    if dice.number(2):
        _array_says(draft, dice, "shape", f"[{dice.pick(claims)}]")
        draft.sizes["tensors"] = dice.pick((2**44, 2**58, 2**80))


def claim_too_much(draft: Draft, dice: Dice) -> None:
    """Sign an array of up to 100 pieces that claim 4 TiB each; only one of them exists."""
    object_id = draft.records["tensors"]
    first = json.loads(parts(draft.objects[object_id])[2])["shared.00000"]
    refs = {f"shared.{number:05d}": first for number in range(dice.pick((1, 4, 100)))}
    draft.objects[object_id] = written(
        "ArrayRecord", [first], json.dumps(refs).encode()
    )
    _, children, body = parts(draft.objects[first])
    size = 2**40 - dice.pick((1, 2**39, 2**40 - 2**20))
    claimed = json.dumps(json.loads(body) | {"shape": [size]})
    draft.objects[first] = written("Array", children, claimed.encode())
    draft.rehash()
    draft.sizes["tensors"] = 2**60


def say_anything(draft: Draft, dice: Dice) -> None:
    """Change bytes of the statement."""
    draft.payload_change = dice.change


def say_of_array(draft: Draft, dice: Dice) -> None:
    """Change the description of an array."""
    field = dice.pick(("dtype", "shape", "stype", "arraychunk_ids", "another"))
    kinds = (
        '"float32"',
        '"float64"',
        '"object"',
        '"int32"',
        '"uint8"',
        '"bool"',
        '"<f4"',
        '"U9"',
        '["f4"]',
    )
    values = {
        "dtype": kinds,
        "shape": ("[5, 1]", "[]", "[-5]", "[4]", "[true]", "[5.0]", "[1099511627776]"),
    }
    _array_says(draft, dice, field, dice.pick((*values.get(field, ()), *TOKENS)))


def _array_says(draft: Draft, dice: Dice, field: str, raw: str) -> None:
    object_id = dice.pick(_of_type(draft, "Array"))
    _, children, body = parts(draft.objects[object_id])
    text = json.dumps(json.loads(body) | {field: "TOKEN"}).replace('"TOKEN"', raw)
    draft.objects[object_id] = written("Array", children, text.encode())
    draft.rehash()


def _of_type(draft: Draft, kind: str) -> list[str]:
    """Return the ids of all objects of a type."""
    return [name for name, item in draft.objects.items() if parts(item)[0] == kind]


def change_piece(draft: Draft, dice: Dice) -> None:
    """Change NumPy's file format, in and around its header."""
    object_id = dice.pick(_of_type(draft, "ArrayChunk"))
    _, _, body = parts(draft.objects[object_id])
    how = dice.number(4)
    if how == 0:
        new = dice.change(body)
    elif how == 1:
        new = dice.change(body[:60]) + body[60:]
    else:
        types = (
            "'<f8'",
            "'>f4'",
            "'|O'",
            "'<U9'",
            "()",
            "5",
            "[('a', '<f4')]",
            "'(1,,)f4'",
            "(",
            "'''",
            "1 if",
        )
        shapes = (
            "(5, 1)",
            "()",
            "(-5,)",
            "(10**15,)",
            "(True,)",
            "'x'",
            "[5]",
            "(5",
            "5",
        )
        descr, shape = "'<f4'", "(5,)"
        if how == 2:
            descr = dice.pick(types)
        else:
            shape = dice.pick(shapes)
        order = dice.pick(("False", "True", "1"))
        head = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"
        new = (
            b"\x93NUMPY\x01\x00v\x00"
            + head.encode().ljust(117)[:117]
            + b"\n"
            + body[128:]
        )
    draft.objects[object_id] = written("ArrayChunk", [], new)
    draft.rehash()


def change_record(draft: Draft, dice: Dice) -> None:
    """Change bytes of any object, and sign the result."""
    object_id = dice.pick(list(draft.objects))
    kind, children, body = parts(draft.objects[object_id])
    draft.objects[object_id] = written(
        kind, children, dice.pick((dice.change(body), *BODIES))
    )
    draft.rehash()


def change_pieces(draft: Draft, dice: Dice) -> None:
    """Change the pieces and their names."""
    object_id = draft.records["tensors"]
    refs = list(json.loads(parts(draft.objects[object_id])[2]).items())
    at = dice.number(len(refs))
    how = dice.number(5)
    if how == 0:
        refs[at] = (
            dice.pick(
                ("shared.00002", "shared", "", ".", "shared.0", "é.00000", "none.00000")
            ),
            refs[at][1],
        )
    elif how == 1:
        del refs[at]
    elif how == 2:
        refs.reverse()
    elif how == 3:
        refs += [
            (f"shared.{number:05d}", refs[0][1])
            for number in range(2, 2 + dice.pick((1, 40)))
        ]
    else:
        refs = refs[:at]
    children = list(dict.fromkeys(to for _, to in refs))
    draft.objects[object_id] = written("ArrayRecord", children, table(refs))
    draft.rehash()
    if dice.number(2):
        draft.sizes["tensors"] = 2**20


def other_records(draft: Draft, dice: Dice) -> None:
    """Add records that were not requested, or remove all."""
    names = list(draft.records)
    how, name = dice.number(3), dice.pick(names)
    if how == 0:
        draft.records[
            dice.pick(("", "refusal", "lacks", "counts", ENVELOPE, "\x1b[31m"))
        ] = draft.records[name]
    elif how == 1:
        del draft.records[name]
    else:
        draft.records[name] = draft.records[dice.pick(names)]


COURIERS: dict[str, Courier] = {
    courier.__name__: courier
    for courier in (
        change_bytes,
        change_body,
        change_head,
        swap_objects,
        lose_object,
        change_metadata,
        change_names,
        other_envelope,
        other_message,
        change_envelope,
        no_envelope,
    )
}
SIGNERS: dict[str, Signer] = {
    signer.__name__: signer
    for signer in (
        say_of_round,
        say_of_time,
        say_of_run,
        say_of_size,
        claim_too_much,
        say_anything,
        say_of_array,
        change_piece,
        change_record,
        change_pieces,
        other_records,
    )
}
