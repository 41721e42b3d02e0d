"""Flower's contents between processes of one machine: arrays apart, the rest as JSON."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, MetricRecord, RecordDict

from wardround.common.wire.arrays import from_record, to_record


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
