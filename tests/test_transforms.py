"""Tensors in fewer bytes: exact forms lose nothing, rounded ones stay within their error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support.runs import measured
from tests.support.tiny import Make
from wardround.client.carried import CarriedFiles, CarriedMemory
from wardround.common.wire import exact
from wardround.common.wire.arrays import Payload
from wardround.common.wire.forms import EXACT, FORMS, WHOLE, decode, encode
from wardround.common.wire.rounding import GROUP
from wardround.server.engines.simulate import simulate

SIZE = 3 * GROUP + 16
LOSSY = sorted(set(FORMS) - {EXACT})


def numbers(seed: int, scale: float = 1.0, size: int = SIZE) -> np.ndarray:
    """Draw (size,) fp32 numbers."""
    drawn = np.random.default_rng(seed).standard_normal(size, dtype=np.float32)
    drawn *= np.float32(scale)
    return drawn


def after_a_round(base: np.ndarray, step: float) -> np.ndarray:
    """Return trained tensors: every number moved by about `step`."""
    trained: np.ndarray = base + numbers(1, step, len(base))
    return trained


@pytest.mark.parametrize("step", [0.0, 1e-8, 1e-6, 1e-4, 1e-2])
def test_exact_comes_back_bit_for_bit(step: float) -> None:
    base = numbers(0, 0.04, 200_000)  # several blocks, the last one short
    trained = after_a_round(base, step)
    arrays = exact.encode(trained, base)
    out = np.full_like(base, np.nan)
    exact.decode(arrays, base, out)
    assert out.tobytes() == trained.tobytes()


def test_exact_keeps_numbers_that_arithmetic_would_lose() -> None:
    """Zeros of both signs, NaN and infinity, the largest and the smallest, jumps across zero."""
    odd = np.array(
        [0.0, -0.0, np.nan, np.inf, -np.inf, 3.4e38, 1e-45, -1e-45], dtype=np.float32
    )
    base = np.resize(odd, SIZE)
    trained = np.resize(odd[::-1], SIZE)
    out = np.empty_like(base)
    exact.decode(exact.encode(trained, base), base, out)
    assert out.tobytes() == trained.tobytes()


def test_the_bytes_of_a_small_example_are_these() -> None:
    # From 1.0 to the next number is one step; 8 steps fit one byte; 1.0 to 2.0 are 2**23 steps.
    base = np.ones(16, dtype=np.float32)
    trained = base.copy()
    trained[0] = np.nextafter(np.float32(1), np.float32(2))
    trained[1] = 2.0
    arrays = exact.encode(trained, base)
    assert arrays["widths"].tolist() == [1]
    assert arrays["steps"].view(np.int8).tolist() == [1, -128, *[0] * 14]
    assert arrays["others"].tolist() == [2**23]


def test_exact_halves_the_update_of_a_small_learning_rate() -> None:
    base = numbers(0, 0.04, 100_000)
    assert encode(EXACT, after_a_round(base, 1e-6), base).num_bytes < 0.52 * base.nbytes
    # If every bit changes, the tensors themselves are smaller.
    assert encode(EXACT, numbers(5, 0.04, 100_000), base).form == WHOLE


@pytest.mark.parametrize(
    ("name", "bits", "share"), [("bf16", 8, 0.5), ("fp16", 11, 0.5), ("int8", 8, 0.25)]
)
def test_rounded_deltas_are_off_by_half_a_unit(
    name: str, bits: int, share: float
) -> None:
    """bf16 and fp16: half a unit in the last place; int8: half a 127th of the group's largest."""
    # With zeros, adding the delta rounds nothing.
    base = np.zeros(SIZE, dtype=np.float32)
    trained = numbers(1, 1e-6)
    payload = encode(name, trained, base)
    error = np.abs(decode(payload, base) - trained)
    if name == "int8":
        groups = [trained[start : start + GROUP] for start in range(0, SIZE, GROUP)]
        allowed = np.concatenate(
            [np.full(len(part), np.abs(part).max() / 127 / 2) for part in groups]
        )
    else:
        allowed = np.abs(trained) * 2.0**-bits
        if name == "fp16":
            # Below 2**-14 of the group's scale it counts in steps of 2**-24.
            allowed = np.maximum(allowed, 2.0**-24 * np.abs(trained).max())
    assert (error <= allowed * (1 + 1e-5)).all()
    assert error.max() > 0
    assert payload.num_bytes <= share * base.nbytes + 4 * 4


@pytest.mark.parametrize("name", LOSSY)
def test_the_rounding_error_of_a_round_is_sent_in_later_rounds(name: str) -> None:
    """Ten times the same small delta: the received sum is the sum of the deltas, to one
    rounding."""
    base = np.zeros(SIZE, dtype=np.float32)
    delta = numbers(1, 1e-3)
    residual = np.zeros(SIZE, dtype=np.float32)
    with_feedback = sum(
        decode(encode(name, delta, base, residual), base) for _ in range(10)
    )
    without = 10 * decode(encode(name, delta, base), base)
    lost = np.linalg.norm(with_feedback - 10 * delta)
    assert lost == pytest.approx(np.linalg.norm(residual), rel=1e-2)
    assert lost < 0.3 * np.linalg.norm(without - 10 * delta)


@pytest.mark.parametrize("name", LOSSY)
def test_a_zero_delta_loses_nothing(name: str) -> None:
    base = numbers(0)
    assert np.array_equal(decode(encode(name, base, base), base), base)


@pytest.mark.parametrize("name", LOSSY)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_lossy_form_refuses_numbers_that_are_not_finite(
    name: str, value: float
) -> None:
    base = numbers(0)
    trained = base.copy()
    trained[7] = value
    with pytest.raises(ArithmeticError, match="not finite"):
        encode(name, trained, base)


def damaged(payload: Payload) -> list[Payload]:
    """Yield the payload with an array missing, cut short, or of another type."""
    found = [Payload("whole", payload.arrays), Payload("zip", payload.arrays)]
    for name, array in payload.arrays.items():
        others = {key: value for key, value in payload.arrays.items() if key != name}
        found.append(Payload(payload.form, others))
        found.append(Payload(payload.form, others | {name: array.astype(np.float64)}))
        if len(array):
            found.append(Payload(payload.form, others | {name: array[:-1]}))
    return found


@pytest.mark.parametrize("name", sorted(FORMS))
def test_a_payload_that_does_not_fit_is_refused(name: str) -> None:
    base = numbers(0, 0.04)
    payload = encode(name, after_a_round(base, 1e-6), base)
    assert payload.form == name
    cases = damaged(payload)
    assert len(cases) > 3
    for case in cases:
        with pytest.raises(ValueError):  # noqa: PT011 - several texts
            decode(case, base, np.empty_like(base))


def test_widths_from_a_stranger_are_checked() -> None:
    base = numbers(0, 0.04)
    arrays = exact.encode(after_a_round(base, 1e-6), base)
    for width in (0, 3, 200):
        wrong = arrays | {"widths": np.full_like(arrays["widths"], width)}
        with pytest.raises(ValueError):  # noqa: PT011
            exact.decode(wrong, base, np.empty_like(base))


def listed(taken: np.ndarray | None) -> list[float] | None:
    """Return the carried array as plain numbers."""
    return None if taken is None else list(taken.tolist())


def test_residuals_of_a_simulation_survive_a_round_that_is_done_again(
    tmp_path: Path,
) -> None:
    files = CarriedFiles(tmp_path / "residuals", client=3)
    assert files.take("run", 1, 4) is None
    for number in (1, 2, 3, 4):
        files.put("run", number, np.full(4, number, dtype=np.float32))
    # During round 4, the newest whole checkpoint may be that of round 2.
    assert len(list((tmp_path / "residuals").iterdir())) == 3
    assert listed(files.take("run", 5, 4)) == [4, 4, 4, 4]
    assert listed(files.take("run", 3, 4)) == [2, 2, 2, 2]
    assert CarriedFiles(tmp_path / "residuals", client=2).take("run", 4, 4) is None


def test_residuals_of_a_site_belong_to_one_run_and_one_round() -> None:
    memory = CarriedMemory()
    for run, number in (("a", 2), ("a", 4), ("b", 3)):
        memory.put("a", 2, np.ones(4, dtype=np.float32))
        assert memory.take(run, number, 4) is None
    memory.put("a", 2, np.ones(4, dtype=np.float32))
    assert listed(memory.take("a", 3, 4)) == [1, 1, 1, 1]


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSY)
def test_a_lossy_run_is_the_same_in_parts_and_in_workers(
    make_settings: Make, tmp_path: Path, name: str
) -> None:
    """A run that is stopped and resumed, in one process or two workers, gives the same numbers."""
    common = [f"transforms={name}", "train.learning_rate=0.01"]
    exact_run = make_settings(
        "train.learning_rate=0.01", f"run_dir={tmp_path / 'exact'}"
    )
    whole = make_settings(*common, f"run_dir={tmp_path / 'whole'}")
    simulate(exact_run)
    simulate(whole)
    for rounds in (1, 3):
        parts = make_settings(
            *common, f"run_dir={tmp_path / 'parts'}", f"num_rounds={rounds}"
        )
        simulate(parts)
    workers = make_settings(
        *common, f"run_dir={tmp_path / 'workers'}", "engine.workers=2", "threads=1"
    )
    one_thread = make_settings(*common, f"run_dir={tmp_path / 'one'}", "threads=1")
    simulate(workers)
    simulate(one_thread)
    assert measured(tmp_path / "parts") == measured(tmp_path / "whole")
    assert measured(tmp_path / "workers") == measured(tmp_path / "one")
    lines = measured(tmp_path / "whole")
    exact_lines = measured(tmp_path / "exact")
    assert lines[1]["model_sha256"] != exact_lines[1]["model_sha256"]
    share = lines[1]["bytes"]["up"] / exact_lines[1]["bytes"]["up"]
    assert share == pytest.approx(0.25 if name == "int8" else 0.5, abs=0.01)
    assert lines[1]["bytes"]["down"] == exact_lines[1]["bytes"]["down"]
