"""JSON schemas of what a run leaves: every key is required, and no other is allowed.

    python -m tests.support.contract

writes that of a round, which `server/record.py` defines, to `docs/round_record.schema.json`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from server.record import ClientRecord, RoundRecord

Schema = dict[str, Any]
PUBLISHED = Path(__file__).resolve().parents[2] / "docs" / "round_record.schema.json"

STRING, FLAG, NULL = {"type": "string"}, {"type": "boolean"}, {"type": "null"}
NUMBER, POSITIVE = {"type": "number"}, {"type": "number", "exclusiveMinimum": 0}
COUNT, NATURAL = {"type": "integer", "minimum": 0}, {"type": "integer", "minimum": 1}
SECONDS = {"type": "number", "minimum": 0}
SHARE = {"type": "number", "minimum": 0, "maximum": 1}
NAMES = {"type": "array", "items": STRING, "minItems": 1}
SHA256 = {"type": "string", "pattern": "^[0-9a-f]{64}$"}


def closed(**properties: Schema) -> Schema:
    """An object with exactly these keys."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def optional(schema: Schema) -> Schema:
    """The same, or null."""
    return {"anyOf": [schema, NULL]}


def one_of(*values: str) -> Schema:
    """One of these words."""
    return {"enum": list(values)}


SETTINGS = closed(
    model=closed(
        label=STRING,
        source=one_of("hub", "package"),
        name=STRING,
        revision=optional(STRING),
        head=one_of("own", "distilbert"),
    ),
    data=closed(
        name=STRING,
        reader=one_of("hub", "bbc_package", "imdb_folders", "zhang_csv", "spooky_csv", "files"),
        hub_name=optional(STRING),
        hub_revision=optional(STRING),
        path=optional(STRING),
        local_reader=optional(one_of("imdb_folders", "zhang_csv", "spooky_csv", "files")),
        test_path=optional(STRING),
        text_columns=NAMES,
        label_column=STRING,
        delimiter=optional(STRING),
        encoding=optional(STRING),
        label_names=optional(NAMES),
        test_fraction=SHARE,
        train_examples=optional(NATURAL),
        test_examples=optional(NATURAL),
        max_words=optional(NATURAL),
        drop_empty=FLAG,
        token_cache=optional(STRING),
        label_map={
            "type": "array",
            "items": {"type": "array", "items": STRING, "minItems": 2, "maxItems": 2},
        },
        budget_rounds=COUNT,
        second_threshold_rounds=COUNT,
    ),
    protocol=closed(name=one_of("paper", "authors_code", "modern"), ag_news_columns=NAMES),
    partition=closed(
        name=one_of("iid", "dirichlet", "label_sorted", "by_site"),
        alpha=optional(POSITIVE),
        drop_remainder=FLAG,
    ),
    train=closed(
        local_epochs=NATURAL,
        batch_size=NATURAL,
        learning_rate=POSITIVE,
        max_length=NATURAL,
        optimizer=one_of("sgd", "adamw"),
        weight_decay=SECONDS,
        schedule=one_of("constant", "linear"),
        warmup_fraction=SHARE,
        schedule_rounds=optional(NATURAL),
        max_grad_norm=optional(POSITIVE),
        shuffle=FLAG,
        drop_last=FLAG,
        attention_mask=FLAG,
        padding=one_of("max_length", "longest"),
        micro_batches=one_of("none", "by_length"),
        group_by_length=FLAG,
        head_init=one_of("shared", "per_site"),
        head_learning_rate=optional(POSITIVE),
        head_warmup_rounds=COUNT,
        on_collapse=one_of("warn", "stop"),
        collapse_rounds=NATURAL,
    ),
    transforms=closed(name=one_of("exact", "bf16", "fp16", "int8"), error_feedback=FLAG),
    strategy=closed(
        weighting=one_of("examples", "uniform"),
        server_learning_rate=POSITIVE,
        server_momentum=SECONDS,
        min_sites=NATURAL,
        wait_seconds=POSITIVE,
        round_timeout_seconds=POSITIVE,
        on_missing=one_of("fail", "continue"),
        ask_again_seconds=POSITIVE,
        max_share=optional(POSITIVE),
        max_update_norm=optional(POSITIVE),
        max_norm_ratio=optional(POSITIVE),
        on_excess=one_of("refuse", "clip"),
    ),
    evaluation=closed(
        where=one_of("server", "sites"),
        mode=one_of("test", "parts"),
        batch_size=NATURAL,
        target_accuracy=optional(NUMBER),
    ),
    engine=closed(
        name=one_of("inprocess", "ray", "deployment"),
        num_cpus=SECONDS,
        num_gpus=SECONDS,
        address=optional(STRING),
        workers={"anyOf": [NATURAL, {"const": "auto"}]},
    ),
    num_clients=NATURAL,
    num_rounds=COUNT,
    seed=COUNT,
    arm=STRING,
    run_dir=STRING,
    device=STRING,
    precision=one_of("fp32", "bf16"),
    attention=one_of("auto", "sdpa", "eager"),
    threads={"anyOf": [NATURAL, {"const": "auto"}]},
)

# Keys that are null in round 0, which has trained nothing.
NULL_AT_FIRST = {
    "train.loss",
    *(f"diagnostics.{key}" for key in ("mean_update_norm", "norm_ratio", "head_norm", "body_norm")),
}
_CLIENT = {key for key, field in ClientRecord.model_fields.items() if field.is_required()}


def round_schema() -> str:
    """The text of `docs/round_record.schema.json`."""
    schema = {"$schema": Draft202012Validator.META_SCHEMA["$id"], **RoundRecord.model_json_schema()}
    return json.dumps(schema, indent=2) + "\n"


def check(value: Any, schema: Schema) -> None:
    """Raise unless `value` has the form."""
    Draft202012Validator.check_schema(schema)
    Draft202012Validator(schema).validate(value)


def check_history_line(line: dict[str, Any], *, of_sites: bool = False) -> None:
    """Raise unless a line of `history.jsonl` has the published form, and holds what its round must.

    The form allows null for whatever an older version did not write; a line of this version is whole.

    Args:
        of_sites: clients are sites, and called by name: under partition=by_site, and in a deployment.
    """
    check(line, json.loads(PUBLISHED.read_text(encoding="utf-8")))
    check(line["model_sha256"], SHA256)
    assert len(line["diagnostics"]["predicted_shares"]) >= 2
    clients, traffic, num_examples = line["clients"], line["bytes"], line["train"]["num_examples"]
    if line["round"] == 0:
        assert nulls(line) == NULL_AT_FIRST
        assert (clients, traffic, num_examples) == ([], {"down": 0, "up": 0}, 0)
        return
    # Alone, a client has no others to be like.
    assert nulls(line) == ({"clients.cosine_to_others"} if len(clients) == 1 else set())
    assert min(len(clients), traffic["down"], traffic["up"], num_examples) >= 1
    assert all(client["update_norm"] > 0 for client in clients)
    assert all(client.keys() == _CLIENT | ({"site"} if of_sites else set()) for client in clients)


def nulls(value: Any, path: str = "") -> set[str]:
    """Dotted keys below `value` that are null; items of a list stand under the list's own key."""
    if isinstance(value, dict):
        return set().union(*(nulls(item, f"{path}.{key}".lstrip(".")) for key, item in value.items()))
    if isinstance(value, list):
        return set().union(*(nulls(item, path) for item in value))
    return {path} if value is None else set()


PARTITION = {
    "type": "object",
    "patternProperties": {"^(0|[1-9][0-9]*)$": {"type": "array", "items": COUNT, "minItems": 1}},
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
SWEEP_HEADER = "model,data,num_clients,seed,status,accuracy_at_budget,baseline_accuracy,rounds_to_target"


if __name__ == "__main__":
    PUBLISHED.write_text(round_schema(), encoding="utf-8")
