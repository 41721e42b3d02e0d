"""Small sweep folders and run folders with numbers that can be checked by hand."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from omegaconf import OmegaConf

from studies import findings
from wardround.common.settings.tree import Settings
from wardround.common.tasks.label import entropy
from wardround.server.report.render import write_report as write_any_report
from wardround.server.run_folder import SWEEP_COLUMNS

CONF = Path(__file__).resolve().parents[2] / "conf"


def compose_settings(*overrides: str) -> Settings:
    """Return settings that the real configuration composes."""
    with hydra.initialize_config_dir(str(CONF), version_base=None):
        config = hydra.compose("config", list(overrides))
    values: Any = OmegaConf.to_container(config, resolve=True)
    for key in ("sweep", "experiment"):
        values.pop(key, None)
    return Settings.from_dict(values)


def settings_with(*overrides: str) -> Settings:
    """Return settings of the demo: 4 rounds of budget, 6 to the second threshold."""
    return compose_settings("experiment=demo", *overrides)


def told_line(
    number: int, accuracy: float, shares: Sequence[float], num_clients: int = 4
) -> str:
    """Return a history line with diagnostics.

    There are 64 test texts of each of 5 classes. Each client takes 5 steps a round.
    """
    line = json.loads(history_line(number, accuracy, num_clients))
    for client in line["clients"]:
        client |= {
            "num_steps": 5,
            "total_steps": 5 * number,
            "head_norm": 0.15,
            "cosine_to_others": -0.125 if num_clients > 1 else None,
        }
    norms = {
        "mean_update_norm": 0.125,
        "norm_ratio": 0.5,
        "head_norm": 0.075,
        "body_norm": 0.1,
    }
    line["diagnostics"] = {
        **(norms if number else dict.fromkeys(norms)),
        "predicted_shares": list(shares),
        "prediction_entropy": entropy(shares),
        "largest_class_share": 0.2,
    }
    return json.dumps(line)


def history_line(number: int, accuracy: float, num_clients: int = 1) -> str:
    client = {
        "num_examples": 160,
        "loss": 0.5,
        "update_norm": 0.25,
        "cosine_to_mean": 0.9,
        "seconds": 1.5,
    }
    return json.dumps(
        {
            "round": number,
            "test": {
                "loss": 1.0,
                "accuracy": accuracy,
                "macro_f1": accuracy,
                "num_examples": 320,
            },
            "train": {
                "loss": 0.5 if number else None,
                "num_examples": 640 if number else 0,
            },
            "clients": [
                {"client": str(k), **client}
                for k in range(num_clients if number else 0)
            ],
            "seconds": {"train": 2.0, "aggregate": 0.5, "evaluate": 0.5, "total": 3.0},
            "bytes": {"down": 1000, "up": 500},
            "model_sha256": "0" * 64,
        }
    )


def write_run(
    folder: Path,
    settings: Settings,
    curve: Sequence[float],
    state: str = "finished",
    reason: str = "",
) -> Path:
    folder.mkdir(parents=True)
    (folder / "settings.json").write_text(settings.to_json())
    (folder / "labels.json").write_text(
        json.dumps({"label_names": ["a", "b", "c", "d", "e"]})
    )
    (folder / "status.json").write_text(json.dumps({"state": state, "reason": reason}))
    lines = [
        history_line(r, accuracy, settings.num_clients) + "\n"
        for r, accuracy in enumerate(curve)
    ]
    (folder / "history.jsonl").write_text("".join(lines))
    return folder


def write_table(folder: Path, rows: Sequence[Sequence[object]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "sweep.csv").open("w", newline="") as file:
        csv.writer(file).writerows([SWEEP_COLUMNS, *rows])


def demo_sweep(folder: Path) -> Path:
    """Write a sweep: K = 1 has 0.9 in round 4; K = 4 has 0.72, and 0.81 = 90 % in round 5."""
    for num_clients, curve in (
        (1, [0.2, 0.8, 0.85, 0.88, 0.9]),
        (4, [0.2, 0.4, 0.5, 0.6, 0.72, 0.81]),
    ):
        settings = settings_with(f"num_clients={num_clients}")
        write_run(folder / "cells" / settings.cell, settings, curve)
    write_table(
        folder,
        [
            ("minilm", "bbc_news", 1, 0, "finished", 0.9, 0.9, 2),
            ("minilm", "bbc_news", 4, 0, "finished", 0.72, 0.9, 5),
        ],
    )
    return folder


def digests(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
    }


def write_report(folder: Path) -> Path:
    """Write the report as `wardround report` does."""
    return write_any_report(folder, findings)
