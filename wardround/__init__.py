"""Federated fine-tuning of text classifiers, across organisations that keep their data.

`simulate`, `sweep`, `load_run` and `predict` are for scripts and notebooks: see `wardround.api`.

The code stands in the folders server/, client/ and common/ at the top of the repository. A wheel installs
them below this package. In a checkout they are beside it, and are found there.
"""

from pathlib import Path

from wardround.api import Run, Sweep, load_run, predict, simulate, sweep

__all__ = ["Run", "Sweep", "load_run", "predict", "simulate", "sweep"]

_HERE = Path(__file__).resolve().parent

if not (_HERE / "server").is_dir():  # a checkout without links: a zip, or Windows
    __path__.append(str(_HERE.parent))
