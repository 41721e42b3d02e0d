"""The arithmetic of the benchmarks; each of them, in a small size, writes its table."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np
import pytest

from benchmarks import (
    accuracy,
    adapters,
    aggregation,
    deployment,
    gpu,
    hospitals,
    phases,
    scaling,
    simulation,
    training,
)
from benchmarks.inputs import SIZES, ragged_lengths
from benchmarks.isolated import isolated
from benchmarks.memory import PeakMemory, pss_bytes, with_descendants
from benchmarks.plots import Curve, draw, draw_bars
from benchmarks.report import Report, Samples, Table, parser
from benchmarks.simulated import Contender, outcome, run
from tests.support.door import wardround
from tests.support.tiny import TOPICS

T = TypeVar("T")


def test_a_ratio_is_taken_repeat_by_repeat() -> None:
    samples = Samples()
    # In the second repeat the machine was half as fast: 2 / 4 and 4 / 8 are one half.
    for ours, theirs in ((2.0, 4.0), (4.0, 8.0)):
        samples.add("ours", seconds=ours)
        samples.add("theirs", seconds=theirs)
    assert samples.ratio("ours", "theirs", "seconds") == 0.5
    assert samples.median("ours", "seconds") == 3.0
    assert samples.first("theirs", "seconds") == 4.0


def test_a_missing_measurement_is_none_and_shown_as_a_dash() -> None:
    samples = Samples()
    assert samples.median("ours", "seconds") is None
    assert samples.ratio("ours", "theirs", "seconds") is None
    lines = Table(["who", "seconds"], [["ours", None]]).text().splitlines()
    assert lines[2] == "| ours | –       |"


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.1234, "0.123"), (12.345, "12.35"), (123.4, "123.4"), (4321.0, "4321")],
)
def test_numbers_are_shown_with_three_to_four_digits(value: float, shown: str) -> None:
    assert shown in Table(["seconds"], [[value]]).text()


def test_json_holds_the_table_every_sample_and_the_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = Samples()
    samples.add("ours", seconds=2.0)
    file = tmp_path / "out.json"
    options = parser("about").parse_args(["--json", str(file)])
    table = Table(["who", "s"], [["ours", 2.0]])
    more = {"More": Table(["x"], [[1]])}
    Report("training", table, samples, ["a note"], more).write(options)
    content = json.loads(file.read_text())
    assert content["table"] == [{"who": "ours", "s": 2.0}]
    assert content["more"] == {"More": [{"x": 1}]}
    assert content["samples"] == {"ours": {"seconds": [2.0]}}
    assert content["machine"]["cores"] == len(os.sched_getaffinity(0))
    assert os.uname().nodename not in file.read_text()
    assert "- a note" in capsys.readouterr().out


def test_pss_of_this_process_and_of_a_missing_process() -> None:
    assert pss_bytes(os.getpid()) > 10 * 2**20
    assert pss_bytes(2**22 + 1) == 0
    assert os.getpid() in with_descendants([os.getppid()])


def test_peak_memory_includes_memory_that_was_freed() -> None:
    with PeakMemory({"here": lambda: [os.getpid()]}, seconds=0.01) as memory:
        before = pss_bytes(os.getpid())
        held = np.ones(64 * 2**20 // 8)
        while memory.peaks["here"] < before + held.nbytes // 2:
            pass
    assert memory.peaks["here"] >= before + held.nbytes // 2


def test_base_is_as_large_as_bert_base() -> None:
    size = SIZES["base"]
    embeddings = (size.vocabulary + 512 + 2) * size.width + 2 * size.width
    layer = (
        4 * (size.width**2 + size.width)
        + 8 * size.width**2
        + 5 * size.width
        + 4 * size.width
    )
    pooler = size.width**2 + size.width
    # bert-base-uncased has this number of weights.
    assert embeddings + size.layers * layer + pooler == 109_482_240


def test_lengths_have_the_median_asked_for() -> None:
    lengths = ragged_lengths(2000, 50, 128)
    assert 47 <= np.median(lengths) <= 53
    assert (lengths.min(), lengths.max()) >= (5, 128)


def test_flops_of_one_token() -> None:
    # One layer of width 16: 72 * 16 * 16 for the weights, 12 * 16 for the attention of a token.
    assert SIZES["micro"].training_flops(np.array([1])) == 72 * 256 + 12 * 16


def test_times_of_a_simulation() -> None:
    # The start is at 10 s, round 1 takes 13 to 17, rounds 2 and 3 end at 19 and 21.
    times = {"began": 13.0, "ends": [[1, 17.0], [2, 19.0], [3, 21.0]]}
    measured = outcome(times, 10.0, 5)
    assert measured.start_seconds == 3.0
    assert measured.first_seconds == 4.0
    assert measured.round_seconds == 2.0


def test_curves_are_drawn(tmp_path: Path) -> None:
    file = tmp_path / "curves.png"
    curve = Curve("ours", [(1, 2.0), (2, 0.0), (8, 3.0)])
    draw(file, {"seconds": [curve]}, "clients K")
    assert file.read_bytes().startswith(b"\x89PNG")


def test_bars_are_drawn(tmp_path: Path) -> None:
    file = tmp_path / "bars.png"
    draw_bars(
        file,
        {
            "seconds": {"ours": 2.0, "theirs": 0.0},
            "memory (GiB)": {"ours": 1.0, "theirs": 3.0},
        },
    )
    assert file.read_bytes().startswith(b"\x89PNG")


def rows(file: Path) -> list[dict[str, object]]:
    """Return the table in a JSON file."""
    found: list[dict[str, object]] = json.loads(file.read_text())["table"]
    return found


def in_this_process(function: Callable[..., T], *given: Any) -> tuple[T, int]:
    """Do as `isolated` does, without the seconds that an interpreter takes to start."""
    return function(*given), 2**20


def run_in_this_process(command: Sequence[str], **_: Any) -> None:
    """Do as `python -m wardround.server.cli WORDS` does, without a new interpreter."""
    ended = wardround(*command[3:])
    assert ended.code == 0, ended.err


@pytest.fixture
def no_new_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in this process what benchmarks run in processes of their own."""
    for module in (adapters, aggregation, training):
        monkeypatch.setattr(module, "isolated", in_this_process)


def test_a_process_of_its_own_is_measured() -> None:
    started, peak_bytes = isolated(os.getppid)
    assert started == os.getpid()
    assert peak_bytes > 2**20


@pytest.mark.slow
@pytest.mark.usefixtures("no_new_processes")
def test_aggregation_runs(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    plot = tmp_path / "plot.png"
    assert aggregation.main(["--quick", "--json", str(file), "--plot", str(plot)]) == 0
    assert [row["K"] for row in rows(file)] == [2, 2]
    assert all(float(str(row["seconds"])) > 0 for row in rows(file))
    costs = json.loads(file.read_text())["more"]["What a round costs beside training"]
    assert "SHA-256 of the model" in [row["what"] for row in costs]


@pytest.mark.slow
def test_accuracy_runs(tmp_path: Path, overrides: list[str]) -> None:
    """It uses tiny texts and a tiny model in place of the real ones."""
    file, picture = tmp_path / "out.json", tmp_path / "plot.png"
    words = [
        word
        for text in overrides
        if not text.startswith("run_dir")
        for word in ("--set", text)
    ]
    words += ["--json", str(file), "--plot", str(picture)]
    assert accuracy.main(["--quick", *words]) == 0
    found = rows(file)
    assert [row["form"] for row in found] == list(accuracy.VARIANTS)
    assert found[0]["against exact"] == 0
    assert all(0 < float(str(row["exact step (B a weight)"])) <= 4 for row in found)
    assert float(str(found[3]["up (MiB)"])) < 0.3 * float(str(found[0]["up (MiB)"]))
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.usefixtures("no_new_processes")
def test_adapters_run(tmp_path: Path, overrides: list[str]) -> None:
    file, picture = tmp_path / "out.json", tmp_path / "plot.png"
    words = [
        word
        for text in overrides
        if not text.startswith("run_dir")
        for word in ("--set", text)
    ]
    words += ["--json", str(file), "--plot", str(picture)]
    assert adapters.main(["--quick", *words]) == 0
    full, lora, ffa = (float(str(row["up (MiB)"])) for row in rows(file))
    assert full > lora > ffa > 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def write_comments(path: Path) -> Path:
    """Write comments of two trusts in the form of the public file.

    Each trust has 60 comments. One comment is there twice, and one has no text.
    """
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["label", "feedback", "organization"])
        for number in range(120):
            topic = list(TOPICS)[number % 3]
            text = f"{TOPICS[topic][number % 5]} {number}"
            trust = f"Trust {'AB'[number % 2]}"
            writer.writerow([topic, text, trust])
        writer.writerows([["sport", "GOAL  26", "Trust B"], ["money", " ", "Trust A"]])
    return path


def test_no_text_is_at_two_trusts(tmp_path: Path) -> None:
    texts = write_comments(tmp_path / "texts.csv")
    with texts.open("a", newline="") as file:
        # Trust A has "match 0", which is the same text.
        csv.writer(file).writerow(["sport", "MATCH  0", "Trust B"])
    assert hospitals.write_sites(texts, tmp_path / "sites") == ["trust_a", "trust_b"]
    found = {
        name: (tmp_path / "sites" / f"{name}.csv").read_text()
        for name in ("trust_a", "trust_b")
    }
    assert "match 0" in found["trust_a"]
    assert "MATCH" not in found["trust_b"]
    assert len(found["trust_a"].splitlines()) == 61


def test_a_gain_is_paired_text_by_text() -> None:
    labels = np.zeros(4, dtype=np.int64)
    alone = hospitals.Outcome(labels, np.array([0, 0, 1, 1]))
    together = hospitals.Outcome(labels, np.array([0, 0, 0, 1]))
    # One of four texts is gained: 25 points. The differences are 0, 0, 100, 0.
    # Their standard deviation is 50, over sqrt(4).
    arms = {"alone": [{"a": alone}], "FedAvg": [{"a": together}]}
    gain, width = hospitals.gains(arms, "FedAvg", "a")
    assert gain == 25.0
    assert width == pytest.approx(1.96 * 50 / 2)


def test_macro_f1_covers_the_labels_that_occur() -> None:
    # Label 0: 2 of 2 are found, 3 are predicted: 2 * 2 / 5.
    # Label 1: 1 of 2 is found, 1 is predicted: 2 * 1 / 3. Label 2 does not occur.
    outcome = hospitals.Outcome(np.array([0, 0, 1, 1]), np.array([0, 0, 0, 1]))
    assert outcome.macro_f1 == pytest.approx((4 / 5 + 2 / 3) / 2)


@pytest.mark.slow
def test_hospitals_run(tmp_path: Path, tiny_model: Path) -> None:
    texts = write_comments(tmp_path / "texts.csv")
    file, picture = tmp_path / "out.json", tmp_path / "plot.png"
    words = ["--texts", str(texts)]
    words += ["--set", "model=hf", "--set", f"model.name={tiny_model}"]
    words += ["--json", str(file), "--plot", str(picture)]
    assert hospitals.main(["--quick", *words]) == 0
    found = rows(file)
    assert [row["arm"] for row in found] == list(hospitals.ARMS)
    more = json.loads(file.read_text())["more"]
    by_method = more["personal models by method, accuracy"]
    assert sum(row["chosen"] for row in by_method) == 2  # two trusts, one seed
    assert all(0 <= float(str(row["trust_b accuracy"])) <= 100 for row in found)
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.usefixtures("no_new_processes")
def test_training_runs(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    words = ["--only", "micro_batches=by_length", "--only", training.TRAINER]
    words += ["--json", str(file), "--plot", str(tmp_path / "plot.png")]
    assert training.main(["--quick", *words]) == 0
    ours = [
        row for row in rows(file) if str(row["what trains"]).startswith("Wardround")
    ]
    assert ours
    assert all(float(str(row["texts/s"])) > 0 for row in ours)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.usefixtures("no_new_processes")
def test_gpu_compares_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # This replaces bf16, for which a CPU takes a hundred times as long.
    other = gpu.Way("another", on_gpu=True, overrides=("train.learning_rate=0.049",))
    monkeypatch.setattr(gpu, "WAYS", [gpu.WAYS[0], gpu.WAYS[1], other])
    monkeypatch.setattr(gpu, "subprocess", SimpleNamespace(run=run_in_this_process))
    file = tmp_path / "out.json"
    words = ["--device", "cpu", "--threads", "1", "--json", str(file)]
    assert gpu.main(["--quick", *words]) == 0
    (compared,) = json.loads(file.read_text())["more"].values()
    reference, same, differs = compared
    assert reference["same bits as"] == same["how"]
    assert same["model apart"] == 0
    assert 0 < differs["model apart"] < 0.1
    assert not differs["same bits as"]


@pytest.mark.e2e
@pytest.mark.slow
def test_simulation_runs(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    few = ("plain loop, 2 processes", "inprocess, 2 workers x 1 thread")
    words = [word for name in few for word in ("--only", name)]
    words += ["--json", str(file), "--plot", str(tmp_path / "plot.png")]
    assert simulation.main(["--quick", *words]) == 0
    assert len(rows(file)) == 2
    assert all(float(str(row["s/round"])) > 0 for row in rows(file))


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_without_steps_no_worker_trains(tmp_path: Path, workers: int) -> None:
    options = simulation.read_options(["--quick"])
    contender = Contender("ours", "wardround", overrides=(f"engine.workers={workers}",))
    job = simulation.Bench(tmp_path / "micro", "micro", options).job(contender, 2)
    run(contender, replace(job, has_steps=False))
    lines = (Path(job.folder) / "run" / "history.jsonl").read_text().splitlines()
    history = [json.loads(line) for line in lines]
    assert [line["train"]["loss"] for line in history] == [None, 0.0, 0.0]
    assert len({line["model_sha256"] for line in history}) == 1


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_deployment_runs(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    plot = tmp_path / "plot.png"
    assert deployment.main(["--quick", "--json", str(file), "--plot", str(plot)]) == 0
    assert plot.read_bytes().startswith(b"\x89PNG")
    ours, stock, rounded = rows(file)
    assert [row["app"] for row in rows(file)] == list(deployment.VARIANTS)
    for row in (ours, stock, rounded):
        assert float(str(row["s/round"])) > 0
        assert float(str(row["down (MiB)"])) > 0
        assert float(str(row["server (GiB)"])) > 0.1
    # Stock Flower sends the model for training and again for evaluation.
    assert float(str(ours["down (MiB)"])) < float(str(stock["down (MiB)"]))


@pytest.mark.parametrize(
    ("kind", "fixed"),
    [("simulation", lambda k: 0.5), ("deployment", lambda k: 0.5 * k)],
)
def test_a_cost_model_finds_the_parts_of_a_round_and_predicts_the_largest(
    tmp_path: Path, kind: str, fixed: Callable[[int], float]
) -> None:
    who, clients = ("who", "K") if kind == "simulation" else ("app", "sites")
    rows: list[dict[str, object]] = []
    for model, k in (("base", 1), ("base", 2), ("minilm", 2), ("minilm", 8)):
        seconds = fixed(k) + 2.0 * k * scaling.NUM_WEIGHTS[model] * 4 / 2**30
        rows.append(
            {"model": model, who: scaling.OURS[kind], clients: k, "s/round": seconds}
        )
    rows.append({"model": "base", who: "another", clients: 2, "s/round": 100.0})
    files = [tmp_path / "first.json", tmp_path / "second.json"]
    for file, part in zip(files, (rows[:2], rows[2:]), strict=True):
        file.write_text(
            json.dumps({"benchmark": kind, "table": part}), encoding="utf-8"
        )
    out = tmp_path / "out.json"
    assert scaling.main([f"--{kind}", *map(str, files), "--json", str(out)]) == 0
    content = json.loads(out.read_text())
    assert content["table"][0]["fixed (s)"] == pytest.approx(0.5)
    assert content["table"][0]["per client and GiB (s)"] == pytest.approx(2.0)
    points = next(iter(content["more"].values()))
    assert [point["point"] for point in points if point[""] == "held out"] == [
        "minilm, K = 8"
    ]
    assert [point["model / measured"] for point in points] == pytest.approx([1.0] * 4)


def test_phases_add_up_to_the_round(tmp_path: Path) -> None:
    file = tmp_path / "phases.json"
    assert phases.main(["--quick", "--json", str(file)]) == 0
    found = rows(file)
    assert [row["phase"] for row in found] == [*phases.PHASES, phases.REST, "all"]
    assert all(float(str(row["seconds a round"])) > 0 for row in found)
    assert sum(float(str(row["share (%)"])) for row in found[:-1]) == pytest.approx(100)
