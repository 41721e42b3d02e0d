"""Studies of sweeps: what `wardround report` makes of their results."""

from __future__ import annotations

from server.report.load import Sweep
from server.report.render import Findings


def findings(sweep: Sweep) -> Findings:
    """The study that a sweep's arms are about: of blending units, else of the collapse. Without arms, the
    paper's claims."""
    # Both draw or compose, which takes a second to import; who only asks for help need not wait for it.
    if sweep.arms and any(run.settings and run.settings.model.activation != "own" for run in sweep.runs):
        from studies import blending

        return blending.findings(sweep)
    if sweep.arms:
        from studies import collapse

        return collapse.findings(sweep)
    from studies import paper_claims

    return paper_claims.findings(sweep)
