"""Studies of sweeps: what `wardround report` makes of their results."""

from __future__ import annotations

from server.report.load import Sweep
from server.report.render import Findings


def findings(sweep: Sweep) -> Findings:
    """The study of the collapse for a sweep with arms, the paper's claims for any other."""
    # Both draw or compose, which takes a second to import; who only asks for help need not wait for it.
    if sweep.arms:
        from studies import collapse

        return collapse.findings(sweep)
    from studies import paper_claims

    return paper_claims.findings(sweep)
