"""Commands about plans: plans, plan, approve, reject, revoke."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wardround.client.kit.commands.options import SITE_FILE, Site
from wardround.common.command_line import argument, command, new_app, option

app = new_app("")
PlanName = Annotated[str, argument("ID", "From `plans`; its beginning is enough.")]


@command(app)
def plans(site: Site = SITE_FILE) -> None:
    """List the plans this site received, and the decision about each.

    Example:
      wardround-site plans
    """
    from wardround.client.kit import decisions

    typer.echo(decisions.list_plans(site))


@command(app)
def plan(
    plan: PlanName,
    site: Site = SITE_FILE,
    everything: Annotated[
        bool, option("--all", "Every setting, with the policy's rule for it.")
    ] = False,
) -> None:
    """Explain a plan: its settings, its costs here, its risks, and the verdict of the policy.

    Examples:
      wardround-site plan 3f8a90c2d1e4
      wardround-site plan 3f8a90c2d1e4 --all

    The costs come from two small steps of training on this site's own texts. Nothing
    is sent.
    """
    from wardround.client.kit import decisions

    typer.echo(decisions.explain_plan(site, plan, everything=everything))


@command(app)
def approve(
    plan: PlanName,
    name: Annotated[
        str | None,
        option("--as", "The person who approves (`approvers list`).", "NAME"),
    ] = None,
    key: Annotated[
        Path | None, option("--key", "That person's private key.", "FILE")
    ] = None,
    site: Site = SITE_FILE,
) -> None:
    """Approve a plan, with the file of texts as it is now.

    Examples:
      wardround-site approve 3f8a90c2d1e4
      wardround-site approve 3f8a90c2d1e4 --as anna --key /media/stick/anna

    It checks this site's texts and model first, as `plan` does. If `plan` shows a refusal,
    the plan is not approved.

    Exit code: 0 approved, or noted if another person must approve too; 2 no such plan, or
    the policy refuses it.
    """
    from wardround.client.kit import decisions

    typer.echo(decisions.approve_plan(site, plan, name, key))


@command(app)
def reject(
    plan: PlanName,
    why: Annotated[str, option("--why", "The reason; it stays at this site.", "TEXT")],
    site: Site = SITE_FILE,
) -> None:
    """Reject a plan. The coordinator learns that it was rejected, not why.

    Example:
      wardround-site reject 3f8a90c2d1e4 --why "the ethics committee has not met"
    """
    from wardround.client.kit import decisions

    typer.echo(decisions.object_to_plan(site, plan, "rejected", why))


@command(app)
def revoke(plan: PlanName, site: Site = SITE_FILE) -> None:
    """Take an approval back. This site refuses the plan from now on; sent updates stay sent.

    Example:
      wardround-site revoke 3f8a90c2d1e4
    """
    from wardround.client.kit import decisions

    typer.echo(decisions.object_to_plan(site, plan, "revoked", ""))
