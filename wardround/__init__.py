"""Federated fine-tuning of text classifiers, across organisations that keep their data.

`simulate`, `sweep`, `load_run` and `predict` are for scripts and notebooks: see `wardround.api`.

The code is in the folders server/, client/ and common/ at the top of the repository. A wheel
installs them below this package. A checkout has them beside it.
"""

import sys
from pathlib import Path

if not (3, 11) <= sys.version_info < (3, 15):
    raise ImportError(
        f"Wardround needs Python 3.11 to 3.14; this is {sys.version.split()[0]}."
    )

from wardround.api import Run, Sweep, load_run, predict, simulate, sweep

__all__ = ["Run", "Sweep", "load_run", "predict", "simulate", "sweep"]

_HERE = Path(__file__).resolve().parent

if not (_HERE / "server").is_dir():  # a checkout without links: a zip, or Windows
    __path__.append(str(_HERE.parent))
