"""`wardround`: the coordinator's and the researcher's commands."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from wardround.common.command_line import add_version, command, new_app
from wardround.common.exits import FAILED, guarded
from wardround.common.files import keep_private
from wardround.common.words import cleaned
from wardround.server.deployment.cli import DEFAULT_FOLDER, Dir
from wardround.server.deployment.cli import app as server_app
from wardround.server.display import display

app = new_app(
    "Federated fine-tuning of Transformer text classifiers: simulate, sweep, submit, report, predict."
)
add_version(app)
app.add_typer(server_app, name="server")
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Hydra overrides.")
]
_GROUPS = """Groups: model= bert albert distilbert minilm hf      data= imdb yelp_full ag_news bbc_news
        spooky_author files                          protocol= paper authors_code modern
        partition= iid dirichlet label_sorted by_site  engine= inprocess ray  experiment=
        transforms= exact bf16 fp16 int8               adapters= none lora lora_ffa
        personalisation= none mixture fine_tuned local all
Scalars: num_clients num_rounds seed run_dir device precision threads
         train.local_epochs train.batch_size train.learning_rate train.max_length ..."""


@command(app, groups=_GROUPS)
def simulate(
    overrides: Overrides = None,
    plan: Annotated[
        Path | None,
        typer.Option(
            "--plan", metavar="FILE", help="Run a signed plan as it was written."
        ),
    ] = None,
) -> None:
    """Run one federation on this machine (or a Ray cluster).

    Examples:
      wardround simulate model=albert data=ag_news num_clients=8
      wardround simulate model=minilm data=bbc_news num_clients=4 train.learning_rate=0.05 num_rounds=4
      wardround simulate model=hf model.name=./my-model data=files data.path=train.csv data.label_column=topic
      wardround simulate engine=ray engine.num_gpus=0.5 num_clients=32 run_dir=outputs/big
      wardround simulate --plan outputs/trial/plan.json data=files data.path=sites partition=by_site

    {groups}

    The same command goes on where an interrupted run stopped. Exit code: 0 done, 1 run failed, 2 bad input.
    """
    from wardround.server.compose import compose
    from wardround.server.record import best_of
    from wardround.server.replay import settings_of_plan
    from wardround.server.run_folder import RunFolder

    # Before the slow imports: a slip is told at once.
    if plan is None:
        settings = compose(overrides or []).settings
    else:
        settings = settings_of_plan(plan, overrides or [])
    from wardround.server.engines.simulate import simulate as run

    run(settings)
    display().close()
    folder = RunFolder(Path(settings.run_dir))
    history = folder.history()
    last, best = history[-1], best_of(history)
    kept = (
        f"; kept is the best, of round {best.round}: {best.accuracy:.4f}"
        if best
        else ""
    )
    typer.echo(
        f"{settings.cell}: accuracy {last.accuracy:.4f} after round {last.round} "
        f"({folder.status()['reason']}{kept})\nrun folder: {folder.path}"
    )


@command(app, groups=_GROUPS)
def sweep(overrides: Overrides = None) -> None:
    """Run every cell of models x data sets x clients x seeds, then draw the report.

    Examples:
      wardround sweep experiment=demo
      wardround sweep experiment=paper run_dir=outputs/paper
      wardround sweep model=bert,distilbert data=imdb num_clients=1,4,16 seed=0,1 run_dir=outputs/imdb
      wardround sweep experiment=paper hydra/launcher=joblib hydra.launcher.n_jobs=4

    {groups}

    Stop it at any moment; the same command goes on. Exit code: 0 done, 1 a cell failed, 2 bad input.
    """
    from wardround.server.sweeps.run import sweep as run

    outcome = run(overrides or [])
    display().print_rows(outcome.rows)
    typer.echo(f"report: {outcome.report}")
    num_failed = sum(row.status == "failed" for row in outcome.rows)
    if num_failed:
        typer.echo(
            f"{num_failed} cells failed; the report names them and says why.", err=True
        )
        raise typer.Exit(FAILED)


@command(app, groups=_GROUPS)
def submit(
    overrides: Overrides = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            "--resume", metavar="RUN_DIR", help="Submit that run's settings again."
        ),
    ] = None,
    site: Annotated[
        list[str] | None,
        typer.Option(
            "--site", help="A site that takes part; may be repeated. Default: all."
        ),
    ] = None,
    unsigned: Annotated[
        Path | None,
        typer.Option(
            "--unsigned",
            metavar="FILE",
            help="Start nothing: write to FILE what is to be signed on the machine that has the signing key.",
        ),
    ] = None,
    signed: Annotated[
        Path | None,
        typer.Option(
            "--signed",
            metavar="FILE",
            help="Run what was requested, now that it is signed.",
        ),
    ] = None,
    path: Dir = DEFAULT_FOLDER,
) -> None:
    """Run one federation over the registered sites, and follow it to its end.

    Examples:
      wardround submit model=bert data=files data.label_names=[low,high] num_clients=3 run_dir=outputs/trial
      wardround submit data=files data.label_names=[low,high] num_clients=2 --site st-mary --site ward-7
      wardround submit --resume outputs/trial
      wardround submit --resume outputs/trial --unsigned request.json
      wardround submit --signed signed.json

    {groups}

    Ctrl-C stops the run; --resume goes on from its last whole round. Exit code: 0 finished, 1 failed, 2 bad
    input, 130 stopped.
    """
    from wardround.server.deployment import submit as submission
    from wardround.server.deployment.folder import ServerFolder

    keep_private()
    folder = ServerFolder(path)
    if signed is not None:
        if overrides or resume or site or unsigned:
            raise ValueError(
                "--signed goes on with a request, which says all the rest. Leave out what else is given."
            )
        outcome = submission.submit_signed(signed, folder)
    elif unsigned is not None:
        submission.request(
            overrides or [], folder, unsigned, resume=resume, sites=site or ()
        )
        typer.echo(
            f"Next, on the machine that has the signing key: wardround server sign {unsigned} "
            "--key signing.key --out signed.json"
        )
        return
    else:
        outcome = submission.submit(
            overrides or [], folder, resume=resume, sites=site or ()
        )
    display().close()
    typer.echo(cleaned(outcome.reason), err=not outcome.is_finished)
    if not outcome.is_finished:
        raise typer.Exit(FAILED)


@command(app)
def status(
    run_dir: Annotated[Path | None, typer.Argument(metavar="[RUN_DIR]")] = None,
    path: Dir = DEFAULT_FOLDER,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Say where a run stands: round, accuracy, which sites have answered, which one is missing.

    Examples:
      wardround status
      wardround status outputs/trial
      wardround status outputs/trial --json

    Without RUN_DIR: the run submitted last from the server folder.
    """
    from wardround.server.deployment.status import (
        find_run,
        read_status,
    )

    standing = read_status(*find_run(run_dir, path))
    typer.echo(standing.to_json() if as_json else standing.to_text())


@command(app)
def audit(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR")],
    ledger: Annotated[
        list[Path],
        typer.Option("--ledger", help="Of a site; may be given several times."),
    ],
) -> None:
    """Compare what a run holds of its sites with the ledgers that they kept themselves.

    Example:
      wardround audit outputs/trial --ledger st_marys.jsonl --ledger north.jsonl

    Names for each site the first answer that differs, or that one side lacks. Exit code: 0 none, 1 some.
    """
    from wardround.server.deployment.audit import audit as run

    audits = run(run_dir, ledger)
    for found in audits:
        typer.echo(f"{found.site}: {found.num_answers} answers are the same in both")
        for finding in found.findings:
            typer.echo(f"{found.site}: {finding}")
    if any(found.findings for found in audits):
        raise typer.Exit(FAILED)


@command(app)
def report(folder: Annotated[Path, typer.Argument(metavar="DIR")]) -> None:
    """Draw the report of a sweep folder or a run folder again, from its files alone.

    Examples:
      wardround report outputs/sweep-demo
      wardround report outputs/minilm-bbc_news-k4-s0
    """
    from wardround.server.report.render import write_report

    typer.echo(f"report: {write_report(folder)}")


@command(app)
def predict(
    model: Annotated[Path, typer.Argument(metavar="RUN_OR_MODEL_DIR")],
    text: Annotated[
        list[str] | None,
        typer.Option("--text", help="A text; may be given several times."),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", help="A CSV file with a header.")
    ] = None,
    column: Annotated[
        str, typer.Option("--column", help="The column of --file that holds the text.")
    ] = "text",
    device: Annotated[
        str, typer.Option("--device", help="auto, cpu, cuda ...")
    ] = "auto",
    key: Annotated[
        Path | None,
        typer.Option(
            "--key", metavar="FILE", help="The coordinator's public signing key."
        ),
    ] = None,
) -> None:
    """Label texts with a trained model.

    Examples:
      wardround predict outputs/minilm-bbc_news-k4-s0 --text "The match ended two all."
      wardround predict ./my-model --file letters.csv --column body > labelled.csv
      wardround predict model --key coordinator.pub --file letters.csv > labelled.csv

    A folder with a provenance.json must hold the files that it names. A text that a spreadsheet would
    run as a formula gets a ' in front. No code of a model folder is run.
    """
    from wardround.server.predict import predict as run

    run(model, text or [], file, column, device, sys.stdout, key=key, say=_say)


def main() -> None:
    """Run the command line and turn what went wrong into words and an exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
    stopped = "stopped; the same command goes on from the last whole round."
    sys.exit(guarded(lambda: app(standalone_mode=False), _say, stopped))


def _interrupt(*_: object) -> None:
    """A polite end from outside is the same as Ctrl-C."""
    raise KeyboardInterrupt


def _say(text: str) -> None:
    display().close()
    typer.echo(text, err=True)


if __name__ == "__main__":
    main()
