"""Reads a sweep folder or a run folder; a damaged run costs only itself."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any, get_args

from common.settings import Settings
from server.diagnostics.collapse import Look
from server.record import RoundRecord
from server.report.results import (
    DEFAULT_TARGET_FRACTION,
    Cell,
    ClientRound,
    Round,
    Run,
    Status,
    Sweep,
    Updates,
)

SWEEP_COLUMNS = (
    "model",
    "data",
    "num_clients",
    "seed",
    "status",
    "accuracy_at_budget",
    "baseline_accuracy",
    "rounds_to_target",
)


def read_sweep(folder: Path) -> Sweep:
    """Read `sweep.csv`, every run folder under `cells/`, and the target from `sweep.json` if there is one.

    Raises:
        ValueError: `sweep.csv` lacks a column or holds a value it cannot hold; names file and line.
    """
    table = folder / "sweep.csv"
    with table.open(encoding="utf-8", newline="") as lines:
        reader = csv.DictReader(lines)
        missing = [name for name in SWEEP_COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(
                f"{table}: column {', '.join(missing)} is missing; `wardround sweep` writes "
                f"{','.join(SWEEP_COLUMNS)}. Run the sweep's command again: it rewrites the file."
            )
        runs = _runs_by_cell(folder / "cells")
        cells = tuple(_read_cell(row, runs, f"{table}, line {reader.line_num}") for row in reader)
    fraction = _read_object(folder / "sweep.json", []).get("target_fraction", DEFAULT_TARGET_FRACTION)
    return Sweep(folder.name, cells, float(fraction))


def read_run(folder: Path) -> Run:
    """Read one run folder; a file that is missing or damaged is named in `problems`, not raised."""
    problems: list[str] = []
    settings = _read_settings(folder / "settings.json", problems)
    status = _read_object(folder / "status.json", problems)
    labels = _read_object(folder / "labels.json", problems)
    names = labels.get("label_names")
    if not isinstance(names, list):
        names = list((settings and settings.data.label_names) or ())
    return Run(
        settings=settings,
        num_labels=len(names) or None,
        test_counts=tuple(labels.get("test_counts") or ()),
        state=status.get("state"),
        reason=status.get("reason") or None,
        rounds=_read_history(folder / "history.jsonl", problems),
        problems=tuple(problems),
        label_names=tuple(map(str, names)),
    )


def _runs_by_cell(cells: Path) -> dict[object, Run]:
    """Run folders under two keys: the folder's name, and (model, data, arm, K, seed) of its settings."""
    runs: dict[object, Run] = {}
    for folder in sorted(cells.iterdir()) if cells.is_dir() else ():
        if not folder.is_dir():
            continue
        run = runs[folder.name] = read_run(folder)
        if run.settings:
            chosen = run.settings
            runs[chosen.model.label, chosen.data.name, chosen.arm, chosen.num_clients, chosen.seed] = run
    return runs


def _read_cell(row: dict[str, str], runs: dict[object, Run], place: str) -> Cell:
    try:
        model, data, status = row["model"], row["data"], row["status"]
        arm = row.get("arm") or ""
        num_clients, seed = int(row["num_clients"]), int(row["seed"])
        rounds = int(row["rounds_to_target"]) if row["rounds_to_target"] else None
        accuracy, baseline = _optional(row["accuracy_at_budget"]), _optional(row["baseline_accuracy"])
        if status not in get_args(Status):
            raise ValueError(f"status is {status!r}, not one of {', '.join(get_args(Status))}")
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{place}: {error}. Run the sweep's command again: it rewrites the file from its cells."
        ) from None
    name = "-".join([model, data, *([arm] if arm else []), f"k{num_clients}", f"s{seed}"])
    run = runs.get((model, data, arm, num_clients, seed)) or runs.get(name)
    return Cell(model, data, num_clients, seed, status, accuracy, baseline, rounds, run, arm)  # type: ignore[arg-type]


def _read_settings(path: Path, problems: list[str]) -> Settings | None:
    try:
        return Settings.from_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        problems.append("settings.json is missing")
    except ValueError as error:
        problems.append(f"settings.json cannot be read: {error}")
    return None


def _read_object(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:
        value = None
    if isinstance(value, dict):
        return value
    problems.append(f"{path.name} is not a JSON object")
    return {}


def _read_history(path: Path, problems: list[str]) -> tuple[Round, ...]:
    if not path.is_file():
        return ()
    rounds: dict[int, Round] = {}
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        try:
            entry = _read_round(json.loads(line))
        except (ValueError, TypeError, KeyError, AttributeError):
            # What follows the last newline is empty, or a line that a kill cut in the middle.
            if number < len(lines):
                problems.append(f"history.jsonl line {number} cannot be read and was left out")
            continue
        rounds[entry.number] = entry
    return tuple(rounds[number] for number in sorted(rounds))


def _read_round(line: dict[str, Any]) -> Round:
    test, train, traffic = (line.get(key) or {} for key in ("test", "train", "bytes"))
    seconds = {key: _finite(value) for key, value in (line.get("seconds") or {}).items()}
    return Round(
        number=int(line["round"]),
        accuracy=_finite(test.get("accuracy")),
        macro_f1=_finite(test.get("macro_f1")),
        num_test=test.get("num_examples"),
        test_loss=_finite(test.get("loss")),
        train_loss=_finite(train.get("loss")),
        clients=tuple(_read_client(client) for client in line.get("clients") or ()),
        seconds={key: value for key, value in seconds.items() if value is not None},
        bytes_down=int(_finite(traffic.get("down")) or 0),
        bytes_up=int(_finite(traffic.get("up")) or 0),
        updates=_read_updates(line.get("diagnostics") or {}),
        look=Look.of(RoundRecord.model_validate(line, context={"of_any_version": True})),
    )


def _read_updates(told: dict[str, Any]) -> Updates | None:
    if told.get("mean_update_norm") is None:
        return None
    return Updates(
        mean_norm=float(told["mean_update_norm"]),
        norm_ratio=float(told["norm_ratio"]),
        head_norm=float(told["head_norm"]),
        body_norm=float(told["body_norm"]),
    )


def _read_client(client: dict[str, Any]) -> ClientRound:
    return ClientRound(
        client=str(client.get("client")),
        num_examples=client.get("num_examples"),
        loss=_finite(client.get("loss")),
        update_norm=_finite(client.get("update_norm")),
        cosine_to_mean=_finite(client.get("cosine_to_mean")),
        seconds=_finite(client.get("seconds")),
        head_norm=_finite(client.get("head_norm")),
        cosine_to_others=_finite(client.get("cosine_to_others")),
        total_steps=client.get("total_steps"),
        site=client.get("site"),
    )


def _optional(text: str) -> float | None:
    return _finite(float(text)) if text else None


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None
