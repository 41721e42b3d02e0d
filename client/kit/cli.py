"""`wardround-site`: the commands of an engineer at a site."""

from __future__ import annotations

import os
import sys
from functools import partial

import typer

from wardround.client.kit.commands import (
    approvers,
    ledger,
    model,
    peers,
    plans,
    setup,
)
from wardround.common.command_line import add_version, new_app
from wardround.common.exits import guarded
from wardround.common.files import keep_private

# The findings of `check` explain what gRPC would log.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
app = new_app(
    "Take part in a federation with data that stays here: init, check, join, plans, "
    "approve, approvers, peers, trust, ledger, verify-model, personalise."
)
add_version(app)
for group in (setup, plans, model):
    app.add_typer(group.app)
app.add_typer(peers.app, name="peers")
app.add_typer(approvers.app, name="approvers")
app.add_typer(ledger.app, name="ledger")


def main() -> None:
    """Run the command line; print errors as text and end with an exit code."""
    keep_private()
    sys.exit(
        guarded(
            lambda: app(standalone_mode=False), partial(typer.echo, err=True), "stopped"
        )
    )


if __name__ == "__main__":
    main()
