"""Golden hashes: do two versions of the code compute the same model, bit for bit, every round?

    python -m benchmarks.golden --against REVISION

Runs the same small simulations (tiny random models, short texts, one thread) from a checkout of
REVISION and from this one, and compares the SHA-256 of the global tensors and the test accuracy
round by round.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.support.tiny import write_model, write_texts

ROOT = Path(__file__).resolve().parents[1]
CASES: dict[str, tuple[str, ...]] = {
    "bert, 3 clients": (),
    "one client": ("num_clients=1",),
    "albert": ("model.name={models}/albert",),
    "distilbert": ("model.name={models}/distilbert",),
    "head of distilbert on bert": ("model.head=distilbert",),
    "dirichlet": ("partition=dirichlet", "partition.alpha=0.5"),
    "label_sorted": ("partition=label_sorted",),
    "by_site": ("partition=by_site", "data.path={texts}/sites"),
    "protocol authors_code": ("protocol=authors_code",),
    "protocol modern": ("protocol=modern",),
    "int8 with error feedback": ("transforms=int8",),
    "bf16 on the wire": ("transforms=bf16",),
    "2 workers": ("engine.workers=2",),
    "sites evaluate": ("evaluation.where=sites",),
    "server momentum": (
        "strategy.server_momentum=0.9",
        "strategy.server_learning_rate=0.5",
    ),
    "uniform weights": ("strategy.weighting=uniform", "num_clients=5"),
    "bounded shares": (
        "strategy.max_share=0.4",
        "partition=by_site",
        "data.path={texts}/sites",
    ),
    "clipped updates": (
        "strategy.max_update_norm=0.5",
        "strategy.max_norm_ratio=0.9",
        "strategy.on_excess=clip",
    ),
    "heads of their own": ("train.head_init=per_site", "strategy.server_momentum=0.5"),
    "micro-batches": ("train.micro_batches=by_length",),
    "texts of like length": (
        "train.group_by_length=true",
        "train.padding=longest",
        "train.optimizer=adamw",
    ),
}


def main() -> None:
    """Compare, and say for each case if it is the same. Return 1 if one is not."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--against", required=True, metavar="REVISION")
    revision = parser.parse_args().against
    with TemporaryDirectory() as folder:
        before = Path(folder) / "before"
        subprocess.run(
            ["git", "worktree", "add", "-q", "--detach", before, revision],
            cwd=ROOT,
            check=True,
        )
        try:
            same = _compare(before, Path(folder))
        finally:
            subprocess.run(
                ["git", "worktree", "remove", "--force", before], cwd=ROOT, check=True
            )
    sys.exit(0 if same else 1)


def _compare(before: Path, folder: Path) -> bool:
    places = {"models": folder / "models", "texts": folder / "texts"}
    for kind in ("bert", "albert", "distilbert"):
        write_model(places["models"] / kind, kind)
    (places["texts"] / "sites").mkdir(parents=True)
    write_texts(places["texts"] / "train.csv", 48, seed=0)
    write_texts(places["texts"] / "test.csv", 30, seed=1)
    for seed, (site, size) in enumerate({"east": 9, "north": 24, "west": 15}.items()):
        write_texts(places["texts"] / "sites" / f"{site}.csv", size, seed)
    settings = [_words(overrides, places) for overrides in CASES.values()]
    old = _run(before, settings, folder / "before_runs")
    new = _run(ROOT, settings, folder / "after_runs")
    differ = 0
    for name, one, other in zip(CASES, old, new, strict=True):
        is_same = one == other
        differ += not is_same
        mark = "same   " if is_same else "DIFFERS"
        _say(f"{mark}  {name}: {len(other)} rounds, {other[-1][0][:12]}")
    _say(f"{len(CASES) - differ} of {len(CASES)} the same")
    return not differ


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _words(overrides: Sequence[str], places: Mapping[str, Path]) -> list[str]:
    """Return the words of a case for the command line, groups first."""
    defaults = {
        "model": "hf", "model.name": f"{places['models']}/bert",
        "data": "files", "data.path": f"{places['texts']}/train.csv",
        "data.test_path": f"{places['texts']}/test.csv",
        "num_clients": "3", "num_rounds": "3", "seed": "7", "device": "cpu", "threads": "1",
        "train.batch_size": "4", "train.max_length": "16", "train.learning_rate": "0.5",
    }  # fmt: skip
    own = [text.format_map(places) for text in overrides]
    chosen = defaults | dict(text.split("=", 1) for text in own)
    groups = sorted(chosen, key=lambda key: "." in key)
    return [f"{key}={chosen[key]}" for key in groups]


_PROGRAM = """
import json, sys
from importlib import import_module
package, cases = json.load(sys.stdin)
compose = import_module(package + "server.compose").compose
simulate = import_module(package + "server.engines.simulate").simulate
for words in cases:
    simulate(compose(words).settings)
"""


def _run(
    tree: Path, cases: Sequence[Sequence[str]], folder: Path
) -> list[list[tuple[str, float]]]:
    """Run all cases in one process; return hash and test accuracy of every round of each."""
    # Versions before 0.1.0's one package have no `wardround` folder.
    package = "wardround." if (tree / "wardround").is_dir() else ""
    run_dirs = [folder / str(number) for number in range(len(cases))]
    words = [
        [*case, f"run_dir={run_dir}"]
        for case, run_dir in zip(cases, run_dirs, strict=True)
    ]
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        input=json.dumps([package, words]),
        cwd=tree,
        env=os.environ | {"PYTHONPATH": str(tree), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{tree}:\n{done.stdout}{done.stderr}")
    return [_rounds(run_dir) for run_dir in run_dirs]


def _rounds(run_dir: Path) -> list[tuple[str, float]]:
    lines = (run_dir / "history.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    return [(record["model_sha256"], record["test"]["accuracy"]) for record in records]


if __name__ == "__main__":
    main()
