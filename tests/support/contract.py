"""JSON schemas of what a run leaves: every key is required, and no other is allowed."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

STRING, FLAG, NULL = {"type": "string"}, {"type": "boolean"}, {"type": "null"}
NUMBER, POSITIVE = {"type": "number"}, {"type": "number", "exclusiveMinimum": 0}
COUNT, NATURAL = {"type": "integer", "minimum": 0}, {"type": "integer", "minimum": 1}
SECONDS, LOSS = {"type": "number", "minimum": 0}, {"type": "number", "minimum": 0}
SHARE = {"type": "number", "minimum": 0, "maximum": 1}
NORM = {"type": "number", "minimum": 0}
COSINE = {"type": "number", "minimum": -1, "maximum": 1}
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

CLIENT = closed(
    client=COUNT,
    num_examples=NATURAL,
    loss=LOSS,
    update_norm=POSITIVE,
    cosine_to_mean=COSINE,
    cosine_to_others=optional(COSINE),
    seconds=SECONDS,
    num_bytes=NATURAL,
    num_steps=NATURAL,
    total_steps=NATURAL,
    head_norm=NORM,
)
# Where clients are sites: under partition=by_site, and in a deployment.
CLIENT_OF_SITE = closed(**CLIENT["properties"], site=STRING)


def diagnostics(*, initial: bool) -> Schema:
    """Round 0 has no updates to tell of; every round has predictions."""
    return closed(
        mean_update_norm=NULL if initial else NORM,
        norm_ratio=NULL if initial else SHARE,
        head_norm=NULL if initial else NORM,
        body_norm=NULL if initial else NORM,
        predicted_shares={"type": "array", "items": SHARE, "minItems": 2},
        prediction_entropy=NORM,
        largest_class_share=SHARE,
    )


def history_line(*, initial: bool, client: Schema = CLIENT) -> Schema:
    """Round 0 has trained nothing; every later round has. Args: client: CLIENT, or CLIENT_OF_SITE."""
    traffic = {"const": 0} if initial else NATURAL
    return closed(
        round={"const": 0} if initial else NATURAL,
        test=closed(loss=LOSS, accuracy=SHARE, macro_f1=SHARE, num_examples=NATURAL),
        train=closed(loss=NULL if initial else LOSS, num_examples={"const": 0} if initial else NATURAL),
        clients={"type": "array", "maxItems": 0}
        if initial
        else {"type": "array", "items": client, "minItems": 1},
        diagnostics=diagnostics(initial=initial),
        seconds=closed(train=SECONDS, aggregate=SECONDS, evaluate=SECONDS, total=SECONDS),
        bytes=closed(down=traffic, up=traffic),
        model_sha256=SHA256,
    )


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
