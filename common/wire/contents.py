"""Flower's contents between processes of one machine: arrays in shared memory, everything else as JSON."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, MetricRecord, RecordDict

from wardround.common.wire.arrays import from_record, to_record


def take_arrays(content: RecordDict) -> tuple[RecordDict, dict[str, np.ndarray]]:
    """A content without its arrays, and the arrays if it has any: for memory that is shared anyway."""
    arrays = content.array_records
    rest = RecordDict(
        {name: record for name, record in content.items() if name not in arrays}
    )
    return rest, from_record(arrays["tensors"]) if arrays else {}


def put_arrays(content: RecordDict, arrays: dict[str, np.ndarray]) -> None:
    """Inverse of `take_arrays`, in place."""
    if arrays:
        content["tensors"] = to_record(arrays)


def dump_content(words: dict[str, Any], content: RecordDict) -> bytes:
    """A content without arrays and bytes, and a few words, for another process of this machine."""
    records = {
        "config": {
            name: dict(record) for name, record in content.config_records.items()
        },
        "metric": {
            name: dict(record) for name, record in content.metric_records.items()
        },
    }
    return json.dumps({"words": words, **records}).encode()


def load_content(written: bytes) -> tuple[dict[str, Any], RecordDict]:
    """Inverse of `dump_content`."""
    read = json.loads(written)
    content = RecordDict(
        {name: ConfigRecord(record) for name, record in read["config"].items()}
    )
    for name, record in read["metric"].items():
        content[name] = MetricRecord(record)
    return read["words"], content
