"""The typed record of a round: its lines, and the lines of other versions."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from wardround.common.tasks.label import LABEL
from wardround.server.record import RoundRecord

HISTORIES = sorted(
    (Path(__file__).resolve().parents[1] / "docs/collapse/histories").glob("*.gz")
)


def read(**line: object) -> RoundRecord:
    return RoundRecord.read(json.dumps(line))


def test_published_histories_are_written_back_unchanged() -> None:
    assert HISTORIES
    for file in HISTORIES[::12]:
        lines = gzip.decompress(file.read_bytes()).decode().splitlines(keepends=True)
        assert [RoundRecord.read(line).line() for line in lines] == lines


def test_a_line_of_the_first_version_lacks_keys() -> None:
    client = {"client": 1, "num_examples": 16}
    record = read(round=3, test={"accuracy": 0.5}, clients=[client])
    assert record.score(LABEL) == 0.5
    assert record.clients[0].num_steps is None
    assert record.diagnostics.norm_ratio is None
    assert record.train.loss is None
    assert record.seconds.total is None
    assert record.bytes.up is None
    assert record.model_sha256 is None


def test_numbers_that_are_not_finite_are_null() -> None:
    record = RoundRecord.read(
        '{"round": 1, "test": {"accuracy": NaN, "loss": Infinity}}'
    )
    assert record.test is not None
    assert record.score(LABEL) is None
    assert record.test.loss is None


def test_keys_of_a_later_version_are_ignored() -> None:
    record = read(round=1, epsilon=0.5, train={"loss": 1.0, "mu": 2})
    assert "epsilon" not in record.line()
    assert '"mu"' not in record.line()


@pytest.mark.parametrize(
    "line", ["[]", "{}", '{"round": -1}', '{"round": 1, "test": {"accuracy": 7}}', "7"]
)
def test_a_damaged_line_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="RoundRecord"):
        RoundRecord.read(line)


def test_unset_keys_are_left_out_and_unknown_keys_refused() -> None:
    written = json.loads(read(round=0).line())
    assert {"left_out", "sites"}.isdisjoint(written)
    assert written["clients"] == []
    with pytest.raises(ValidationError, match="epsilon"):
        RoundRecord.model_validate(written | {"epsilon": 1})
