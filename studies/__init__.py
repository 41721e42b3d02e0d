"""Studies of sweeps whose arms ask a question of research: of the collapse, and of blended activations.

They stand beside the product and are not installed: `python -m studies --help` in a checkout.
"""

from __future__ import annotations

from wardround.server.report.findings import Findings
from wardround.server.report.sweep import SweepData


def findings(sweep: SweepData) -> Findings:
    """The findings of the study that a sweep's arms are about; without arms, those of `wardround report`."""
    # All draw or compose, which takes a second to import; `--help` need not wait for it.
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
