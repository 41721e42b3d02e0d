"""JSON schemas of the files of a run: every key is required, and no other is allowed.

    python -m tests.support.contract

writes the schemas that the code defines to `docs/*.schema.json`. Tools read these files.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from pydantic import TypeAdapter

from wardround.common.settings.tree import Settings
from wardround.server.record import ClientRecord, Diagnostics, RoundRecord

Schema = dict[str, Any]
PUBLISHED: dict[str, Schema] = {
    "round_record": TypeAdapter(RoundRecord).json_schema(),
    "settings": TypeAdapter(Settings).json_schema(mode="serialization"),
}
"""A line of `history.jsonl`; `settings.json`."""
DOCS = Path(__file__).resolve().parents[2] / "docs"

STRING, NULL = {"type": "string"}, {"type": "null"}
COUNT, NATURAL = {"type": "integer", "minimum": 0}, {"type": "integer", "minimum": 1}
SHA256 = {"type": "string", "pattern": "^[0-9a-f]{64}$"}


def closed(**properties: Schema) -> Schema:
    """Return the schema of an object with exactly these keys."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def optional(schema: Schema) -> Schema:
    """Return the schema of the same value or null."""
    return {"anyOf": [schema, NULL]}


def one_of(*values: str) -> Schema:
    """Return the schema of one of these words."""
    return {"enum": list(values)}


# Keys that are null in round 0, which has trained nothing.
NULL_AT_FIRST = {
    "train.loss",
    *(
        f"diagnostics.{key}"
        for key in ("mean_update_norm", "norm_ratio", "head_norm", "body_norm")
    ),
}
_CLIENT = {
    key for key, field in ClientRecord.model_fields.items() if field.is_required()
}


_SHARE = {"type": "number", "minimum": 0, "maximum": 1}
_NOT_NEGATIVE = {"type": "number", "minimum": 0}
_TEST = closed(
    loss=_NOT_NEGATIVE, accuracy=_SHARE, macro_f1=_SHARE, num_examples=NATURAL
)
_SITE_TEST = closed(
    site=STRING,
    num_examples=NATURAL,
    correct=COUNT,
    accuracy=_SHARE,
    loss=_NOT_NEGATIVE,
)
_PREDICTIONS = closed(
    predicted_shares={"type": "array", "items": _SHARE},
    prediction_entropy=_NOT_NEGATIVE,
    largest_class_share=_SHARE,
)
"""Facts of the task `label` in a line of `history.jsonl`."""


def check_label_facts(line: dict[str, Any]) -> None:
    """Raise unless a line holds exactly the facts of the task `label`."""
    check(line["test"], _TEST)
    if "validation" in line:
        check(line["validation"], _TEST)
    for site in line.get("sites", []):
        check(site, _SITE_TEST)
    known = set(Diagnostics.model_fields)
    predictions = {
        key: value for key, value in line["diagnostics"].items() if key not in known
    }
    check(predictions, _PREDICTIONS)


def published(name: str) -> Path:
    """Return the file of a row of PUBLISHED."""
    return DOCS / f"{name}.schema.json"


def schema_text(name: str) -> str:
    """Return the content that this file should have."""
    schema = {"$schema": Draft202012Validator.META_SCHEMA["$id"], **PUBLISHED[name]}
    return json.dumps(schema, indent=2) + "\n"


def check(value: Any, schema: Schema | str) -> None:
    """Raise if `value` does not fit a schema, or a published schema by its name."""
    if isinstance(schema, str):
        schema = json.loads(published(schema).read_text("utf-8"))
    assert not isinstance(schema, str)
    Draft202012Validator.check_schema(schema)
    Draft202012Validator(schema).validate(value)


def check_history_line(line: dict[str, Any], *, of_sites: bool = False) -> None:
    """Raise if a line of `history.jsonl` has another form, or lacks values of its round.

    The published form allows null for keys that an older version did not write. A line of
    this version has all of them.

    Args:
        of_sites: clients are sites with names (partition=by_site, or a deployment).
    """
    check(line, "round_record")
    check_label_facts(line)
    check(line["model_sha256"], SHA256)
    assert len(line["diagnostics"]["predicted_shares"]) >= 2
    clients = line["clients"]
    traffic = line["bytes"]
    num_examples = line["train"]["num_examples"]
    if line["round"] == 0:
        assert nulls(line) == NULL_AT_FIRST
        assert clients == []
        assert traffic == {"down": 0, "up": 0}
        assert num_examples == 0
        return
    # A single client has no others to compare with.
    assert nulls(line) == ({"clients.cosine_to_others"} if len(clients) == 1 else set())
    assert min(len(clients), traffic["down"], traffic["up"], num_examples) >= 1
    keys = _CLIENT | ({"site"} if of_sites else set())
    for client in clients:
        assert client["update_norm"] > 0
        assert client.keys() == keys


def nulls(value: Any, path: str = "") -> set[str]:
    """Return the dotted keys below `value` that are null. Items of a list have its key."""
    if isinstance(value, dict):
        return set().union(
            *(nulls(item, f"{path}.{key}".lstrip(".")) for key, item in value.items())
        )
    if isinstance(value, list):
        return set().union(*(nulls(item, path) for item in value))
    return {path} if value is None else set()


PARTITION = {
    "type": "object",
    "patternProperties": {
        "^(0|[1-9][0-9]*)$": {"type": "array", "items": COUNT, "minItems": 1}
    },
    "additionalProperties": False,
}
STATUS = closed(state=one_of("running", "finished", "failed", "stopped"), reason=STRING)
LABELS = closed(
    label_names={"type": "array", "items": STRING, "minItems": 2, "uniqueItems": True},
    test_counts=optional({"type": "array", "items": COUNT, "minItems": 2}),
)
CLAIMS = {
    "type": "array",
    "minItems": 5,
    "maxItems": 5,
    "items": closed(
        id=NATURAL,
        claim=STRING,
        verdict=one_of("supported", "contradicted", "not_tested"),
        numbers={"type": "object", "minProperties": 1},
        explanation=STRING,
    ),
}
SWEEP_HEADER = (
    "model,data,num_clients,seed,status,accuracy_at_budget,baseline_accuracy,"
    "rounds_to_target"
)


if __name__ == "__main__":
    for _name in PUBLISHED:
        published(_name).write_text(schema_text(_name), encoding="utf-8")
