"""`python -m studies`: sweeps and reports with the findings of a study."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from studies import findings
from wardround.common.command_line import command, new_app
from wardround.common.exits import FAILED, guarded
from wardround.server.display import display

app = new_app(
    "Run sweeps with arms, and write their reports with the findings of a study."
)


@command(app)
def sweep(
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")
    ] = None,
) -> None:
    """Run a sweep as `wardround sweep` does, and write its report with the study's findings.

    Examples:
      python -m studies sweep experiment=collapse run_dir=outputs/collapse
      python -m studies sweep experiment=blending
    """
    from wardround.server.sweeps.run import sweep as run

    result = run(overrides or [], findings)
    display().print_rows(result.rows)
    typer.echo(f"report: {result.report}")
    if any(row.status == "failed" for row in result.rows):
        raise typer.Exit(FAILED)


@command(app)
def report(folder: Annotated[Path, typer.Argument(metavar="DIR")]) -> None:
    """Write the report of a sweep again, with the study's findings.

    Example:
      python -m studies report outputs/collapse
    """
    from wardround.server.report.render import write_report

    typer.echo(f"report: {write_report(folder, findings)}")


def main() -> None:
    """Run the command line."""
    stopped = "stopped; the same command goes on from the last whole round."
    sys.exit(
        guarded(
            lambda: app(standalone_mode=False),
            lambda text: typer.echo(text, err=True),
            stopped,
        )
    )


if __name__ == "__main__":
    main()
