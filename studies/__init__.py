"""Research on sweeps with arms: the collapse of training, and blended activations.

The studies are not installed. In a checkout: `python -m studies --help`.
"""

from __future__ import annotations

from wardround.server.report.findings import Findings
from wardround.server.report.sweep import SweepData


def findings(sweep: SweepData) -> Findings:
    """Return the findings of the study to which a sweep belongs; without arms, those of a
    report."""
    # Imported here, because `--help` does not need matplotlib.
    if not sweep.arms:
        from wardround.server.report.render import own_findings

        return own_findings(sweep)
    if any(
        run.settings and run.settings.model.activation != "own" for run in sweep.runs
    ):
        from studies import blending

        return blending.findings(sweep)
    from studies import collapse

    return collapse.findings(sweep)
