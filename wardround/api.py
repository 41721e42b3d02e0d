"""The Python API: run a federation or a sweep on this machine, read a run, label texts.

    import wardround

    run = wardround.simulate("model=minilm", "data=bbc_news", "num_clients=4",
    "train.learning_rate=0.05") run.history[["round", "accuracy"]] wardround.predict(run.path, ["The
    match ended two all."])

Settings are written as on the command line (docs/settings.md). Errors are the same as there:
ValueError for bad input, with the mistake and the next step, and `wardround.common.errors.Failed`
for work that could not be finished.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Functions import what they need, so that `import wardround` is fast.
if TYPE_CHECKING:
    import pandas as pd

    from wardround.common.settings.tree import Settings


@dataclass(frozen=True)
class Run:
    """The content of a run folder at the time of reading."""

    path: Path
    settings: Settings
    state: str
    """`running`, `finished`, `failed` or `stopped`."""
    history: pd.DataFrame
    """A row for each round; round 0 is the model before training. `accuracy` and `macro_f1` are
    shares in [0, 1]; `seconds`, `bytes_up` and `bytes_down` have the unit of their name. NaN:
    not known."""
    clients: pd.DataFrame
    """A row for each round and client."""

    def model(self, device: str = "auto") -> tuple[Any, Any]:
        """Return tokenizer and trained model (Transformers). Raises ValueError if there is no
        model."""
        from wardround.server.predict import open_predictor

        opened = open_predictor(self.path, device)
        return opened.tokenizer, opened.model

    def report(self) -> Path:
        """Write the run's report again; return the path of its `index.html`."""
        from wardround.server.report.render import write_report

        return write_report(self.path)


@dataclass(frozen=True)
class Sweep:
    """A sweep that has ended."""

    path: Path
    cells: pd.DataFrame
    """A row for each cell: model, data, arm, num_clients, seed, status, accuracy, baseline
    (accuracy of one client with the same model, data and seed), rounds_to_target, outcome."""
    runs: tuple[Run, ...]
    """The runs of the cells that have started, sorted by the name of their folder."""
    report: Path
    """Path of the report's `index.html`."""


def simulate(*overrides: str) -> Run:
    """Run one federation on this machine, as `wardround simulate` does; progress goes to stderr.

    If it is called again with the same `run_dir`, it continues from the last whole round.

    Args:
        overrides: settings, for example `"model=minilm"` or `"num_clients=4"`.

    Raises:
        ValueError: bad input; nothing was run.
        wardround.common.errors.Failed: the run could not be finished.
    """
    from wardround.server.compose import compose
    from wardround.server.display import display
    from wardround.server.engines.simulate import simulate as run

    settings = compose(overrides).settings
    try:
        run(settings)
    finally:
        display().close()
    return load_run(settings.run_dir)


def sweep(*overrides: str) -> Sweep:
    """Run every cell of a sweep, as `wardround sweep` does, and write its report.

    A cell that fails does not end the sweep: its `status` in `cells` is `failed`.

    Raises:
        ValueError: bad input; nothing was run.
    """
    from wardround.server.report.sweep import load_sweep
    from wardround.server.sweeps.run import sweep as run

    report = run(overrides).report
    path = report.parent.parent
    cells = load_sweep(path).cells.drop(columns="run")
    folders = sorted(
        folder
        for folder in (path / "cells").iterdir()
        if (folder / "settings.json").is_file()
    )
    return Sweep(path, cells, tuple(load_run(folder) for folder in folders), report)


def load_run(path: str | Path) -> Run:
    """Read a run folder, of a simulation or of a run over sites.

    Raises:
        ValueError: there is no run in the folder, or one of its files is damaged.
    """
    from wardround.server.report.run import load_run as load

    folder = Path(path)
    if not (folder / "settings.json").is_file():
        raise ValueError(
            f"'{folder}' holds no run (it has no settings.json). Give the run_dir of a run."
        )
    found = load(folder)
    if found.problems or found.settings is None:
        raise ValueError(
            f"'{folder}': {'; '.join(found.problems)}. Restore the file, or run it again."
        )
    return Run(
        folder, found.settings, found.state or "running", found.table, found.clients
    )


def predict(
    model: str | Path,
    texts: Sequence[str],
    *,
    device: str = "auto",
    key: str | Path | None = None,
) -> pd.DataFrame:
    """Label texts with the model of a run folder or of a model folder.

    Args:
        key: file with the coordinator's public signing key, to check the model's `provenance.json`.

    Returns:
        A row for each text: `text`, `label`, and the probability of each label in a column of its
        name.

    Raises:
        ValueError: the folder holds no trained model, or does not match its `provenance.json`.
    """
    import pandas as pd

    from wardround.server.predict import open_predictor

    predictor = open_predictor(
        Path(model), device, key=None if key is None else Path(key)
    )
    rows = list(predictor.answer(list(texts)))
    return pd.DataFrame(rows, columns=predictor.columns)
