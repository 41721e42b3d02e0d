"""Commands about a released model: verify-model, personalise."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from wardround.client.kit.commands.options import SITE_FILE, Site
from wardround.client.site_file import load_site_file
from wardround.common.command_line import command, new_app, option
from wardround.common.exits import DONE, FAILED

app = new_app("")
Released = Annotated[
    Path, option("--model", "The released model, from the coordinator.", "DIR")
]


class Method(Enum):
    """The ways to make a site's own model."""

    all = "all"
    mixture = "mixture"
    fine_tuned = "fine_tuned"
    local = "local"


@command(app, "verify-model")
def verify_model(model: Released, site: Site = SITE_FILE) -> None:
    """Check that an approved plan of this site made a released model, file by file.

    Example:
      wardround-site verify-model --model model

    It prints one line for each check, the verdict last: who signed, the plan and its
    sites, this site's own updates against its ledger, every file.
    Exit code: 0 verified, 1 not verified, 2 bad input.
    """
    from wardround.client.kit import verify

    proofs = verify.verify_model(load_site_file(site), model)
    typer.echo(verify.report(model, proofs))
    raise typer.Exit(DONE if verify.is_verified(proofs) else FAILED)


@command(app)
def personalise(
    model: Released,
    out: Annotated[Path, option("--out", "A new folder to write to.", "DIR")],
    site: Site = SITE_FILE,
    method: Annotated[
        Method, option("--method", "The models to compare with the released one.")
    ] = Method.all,
    epochs: Annotated[
        int | None, option("--epochs", "Passes over the texts here.", min=1)
    ] = None,
    learning_rate: Annotated[
        float | None, option("--learning-rate", "Step size.")
    ] = None,
    validation_fraction: Annotated[
        float | None,
        option("--validation-fraction", "Share of the held-out texts to choose by."),
    ] = None,
    unverified: Annotated[
        bool, option("--unverified", "Use a model that `verify-model` refuses.")
    ] = False,
) -> None:
    """Make this site's own model from a released one, and choose by texts held out here.

    Examples:
      wardround-site personalise --model model --out own-model
      wardround-site personalise --model model --out own-model --method mixture --epochs 10

    DIR then holds the chosen model, and personal.json with the results of each
    (docs/personal.md). The released model must pass `verify-model`. Nothing is sent.
    """
    from wardround.client.kit import personalise as personal
    from wardround.common.pretrained import settings_of_model
    from wardround.common.tasks.table import task_of

    chosen_here = {
        "name": method.value,
        "epochs": epochs,
        "learning_rate": learning_rate,
        "validation_fraction": validation_fraction,
    }
    record = personal.personalise(
        load_site_file(site), model, out, chosen_here, unverified=unverified
    )
    task = task_of(settings_of_model(model))
    typer.echo(personal.in_words(record, task))
    typer.echo(f"chosen: {record.sites[0].chosen}, in {out}")
