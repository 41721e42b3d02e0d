"""`wardround`: the coordinator's and the researcher's commands.

A command imports its work inside its function, so that `--help` does not wait for slow libraries.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from wardround.common.command_line import (
    add_version,
    argument,
    command,
    new_app,
    option,
)
from wardround.common.exits import FAILED, ending_signals, guarded, leave_terminal
from wardround.common.files import keep_private
from wardround.common.words import cleaned
from wardround.server.deployment.cli import DEFAULT_FOLDER, Dir
from wardround.server.deployment.cli import app as server_app
from wardround.server.display import display

app = new_app(
    "Federated fine-tuning of Transformer text classifiers: simulate, sweep, submit, report, "
    "predict."
)
add_version(app)
app.add_typer(server_app, name="server")
Overrides = Annotated[list[str] | None, argument("[KEY=VALUE]...", "Hydra overrides.")]
_GROUPS = """Groups: model= bert albert distilbert minilm hf      data= imdb yelp_full ag_news
bbc_news
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
        option("--plan", "Simulate a signed plan.", "FILE"),
    ] = None,
) -> None:
    """Run one federation on this machine (or a Ray cluster).

    Examples:
      wardround simulate model=albert data=ag_news num_clients=8
      wardround simulate model=minilm data=bbc_news num_clients=4 train.learning_rate=0.05
      wardround simulate model=hf model.name=./my-model data=files data.path=train.csv
      wardround simulate engine=ray engine.num_gpus=0.5 num_clients=32 run_dir=outputs/big
      wardround simulate --plan outputs/trial/plan.json data=files data.path=sites partition=by_site

    {groups}

    The same command continues an interrupted run. Exit code: 0 done, 1 run failed, 2 bad input.
    """
    from wardround.common.tasks.table import task_of
    from wardround.server.compose import compose
    from wardround.server.record import best_of, score_text
    from wardround.server.replay import settings_of_plan
    from wardround.server.run_folder import RunFolder

    # Before the slow import: a typing error is reported at once.
    if plan is None:
        settings = compose(overrides or []).settings
    else:
        settings = settings_of_plan(plan, overrides or [])
    from wardround.server.engines.simulate import simulate as run

    run(settings)
    display().close()
    folder = RunFolder(Path(settings.run_dir))
    history = folder.history()
    last = history[-1]
    task = task_of(settings)
    best = best_of(history, task)
    reason = folder.status()["reason"]
    if best:
        reason += f"; kept is the best, of round {best.round}: {best.score(task):.4f}"
    typer.echo(
        f"{settings.cell}: {score_text(last, task)} after round {last.round} ({reason})\n"
        f"run folder: {folder.path}"
    )


@command(app, groups=_GROUPS)
def sweep(overrides: Overrides = None) -> None:
    """Run every cell of models x data sets x clients x seeds, then draw the report.

    Examples:
      wardround sweep experiment=demo
      wardround sweep experiment=paper run_dir=outputs/paper
      wardround sweep model=bert,distilbert data=imdb num_clients=1,4,16 seed=0,1 run_dir=imdb
      wardround sweep experiment=paper hydra/launcher=joblib hydra.launcher.n_jobs=4

    {groups}

    Stop it at any time; the same command continues. Exit code: 0 done, 1 a cell failed, 2 bad
    input.
    """
    from wardround.server.sweeps.run import sweep as run

    result = run(overrides or [])
    display().print_rows(result.rows)
    typer.echo(f"report: {result.report}")
    num_failed = sum(row.status == "failed" for row in result.rows)
    if num_failed:
        typer.echo(
            f"{num_failed} cells failed; the report names them with the reasons.",
            err=True,
        )
        raise typer.Exit(FAILED)


@command(app, groups=_GROUPS)
def submit(
    overrides: Overrides = None,
    resume: Annotated[
        Path | None,
        option("--resume", "Submit that run's settings again.", "RUN_DIR"),
    ] = None,
    site: Annotated[
        list[str] | None,
        option("--site", "A site that takes part; may be repeated. Default: all."),
    ] = None,
    unsigned: Annotated[
        Path | None,
        option(
            "--unsigned",
            "Start nothing: write a request to FILE, to be signed on another machine.",
            "FILE",
        ),
    ] = None,
    signed: Annotated[
        Path | None,
        option("--signed", "Start the signed request in FILE.", "FILE"),
    ] = None,
    path: Dir = DEFAULT_FOLDER,
) -> None:
    """Run one federation over the registered sites, and follow it until it ends.

    Examples:
      wardround submit model=bert data=files data.label_names=[low,high] num_clients=3
      wardround submit data=files data.label_names=[low,high] num_clients=2 --site a --site b
      wardround submit --resume outputs/trial
      wardround submit --resume outputs/trial --unsigned request.json
      wardround submit --signed signed.json

    {groups}

    Ctrl-C stops the run; --resume continues from its last whole round. Exit code: 0 finished, 1
    failed, 2 bad input, 130 stopped.
    """
    from wardround.server.deployment.folder import ServerFolder
    from wardround.server.deployment.submit import request, submit_signed
    from wardround.server.deployment.submit import submit as run

    keep_private()
    folder = ServerFolder(path)
    words = overrides or []
    sites = site or ()
    if signed is not None:
        if overrides or resume or site or unsigned:
            raise ValueError(
                "--signed starts a request, which holds all settings. Leave out the other options."
            )
        end = submit_signed(signed, folder)
    elif unsigned is not None:
        request(words, folder, unsigned, resume=resume, sites=sites)
        typer.echo(
            "Next, on the machine that has the signing key: wardround server sign "
            f"{unsigned} --key signing.key --out signed.json"
        )
        return
    else:
        end = run(words, folder, resume=resume, sites=sites)
    display().close()
    typer.echo(cleaned(end.reason), err=not end.is_finished)
    if not end.is_finished:
        raise typer.Exit(FAILED)


@command(app)
def status(
    run_dir: Annotated[Path | None, argument("[RUN_DIR]")] = None,
    path: Dir = DEFAULT_FOLDER,
    as_json: Annotated[bool, option("--json", "For programs.")] = False,
) -> None:
    """Show the status of a run: round, accuracy, sites that have answered, sites that are missing.

    Examples:
      wardround status
      wardround status outputs/trial
      wardround status outputs/trial --json

    Default of RUN_DIR: the last run that was submitted from the server folder.
    """
    from wardround.server.deployment.status import (
        find_run,
        read_status,
    )

    found = read_status(*find_run(run_dir, path))
    typer.echo(found.to_json() if as_json else found.to_text())


@command(app)
def audit(
    run_dir: Annotated[Path, argument("RUN_DIR")],
    ledger: Annotated[
        list[Path],
        option("--ledger", "Ledger of a site; may be repeated."),
    ],
) -> None:
    """Compare the signed answers in a run folder with the ledgers of its sites.

    Example:
      wardround audit outputs/trial --ledger st_marys.jsonl --ledger north.jsonl

    Names the first answer of each site that differs or that one side lacks. Exit code: 0 none, 1
    some.
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
def report(folder: Annotated[Path, argument("DIR")]) -> None:
    """Write the report of a sweep folder or a run folder again, from its files.

    Examples:
      wardround report outputs/sweep-demo
      wardround report outputs/minilm-bbc_news-k4-s0
    """
    from wardround.server.report.render import write_report

    typer.echo(f"report: {write_report(folder)}")


@command(app)
def predict(
    model: Annotated[Path, argument("RUN_OR_MODEL_DIR")],
    text: Annotated[
        list[str] | None,
        option("--text", "A text; may be repeated."),
    ] = None,
    file: Annotated[
        Path | None, option("--file", "CSV with a header, or JSONL.")
    ] = None,
    column: Annotated[
        str, option("--column", "The column of --file that holds the text.")
    ] = "text",
    delimiter: Annotated[
        str | None, option("--delimiter", "Of a CSV: one character, or tab. [a comma]")
    ] = None,
    encoding: Annotated[
        str | None, option("--encoding", "Such as windows-1252. [UTF-8]")
    ] = None,
    device: Annotated[str, option("--device", "auto, cpu, cuda ...")] = "auto",
    key: Annotated[
        Path | None,
        option("--key", "The coordinator's public signing key.", "FILE"),
    ] = None,
) -> None:
    """Label texts with a trained model.

    Examples:
      wardround predict outputs/minilm-bbc_news-k4-s0 --text "The match ended two all."
      wardround predict ./my-model --file letters.csv --column body > labelled.csv
      wardround predict model --key coordinator.pub --file letters.csv > labelled.csv

    All columns of --file are kept; label and probabilities follow. If the file has a column
    `label`, it is called `file_label` in the output. JSONL gives JSONL. If the folder has a
    provenance.json, its files must match. In CSV, a text that a spreadsheet would run as a
    formula gets a ' in front. Code in a model folder is never run.
    """
    from wardround.server.predict import predict as run

    run(
        model,
        text or [],
        file,
        column,
        device,
        sys.stdout,
        delimiter=delimiter,
        encoding=encoding,
        key=key,
        say=_say,
    )


def main() -> None:
    """Run the command line; report an error as text and exit code."""
    for number in ending_signals():
        if number != signal.SIGINT:  # Python's own handler raises KeyboardInterrupt
            signal.signal(number, _interrupt)
    stopped = "stopped; the same command goes on from the last whole round."
    sys.exit(guarded(lambda: app(standalone_mode=False), _say, stopped))


def _interrupt(number: int, _frame: object) -> None:
    """Treat SIGTERM and SIGHUP as Ctrl-C."""
    if number == signal.SIGHUP:
        leave_terminal()
    raise KeyboardInterrupt


def _say(text: str) -> None:
    display().close()
    typer.echo(text, err=True)


if __name__ == "__main__":
    main()
