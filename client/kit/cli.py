"""`wardround-site`: the commands of an engineer at a site."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

# Before Flower and the hub libraries are imported: nobody is told that this site exists.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
for _name in ("FLWR_DISABLE_UPDATE_CHECK", "HF_HUB_DISABLE_TELEMETRY", "TOKENIZERS_PARALLELISM"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what it has to say, the findings say in words

import typer  # noqa: E402

from common.errors import DONE, FAILED, guarded  # noqa: E402

if TYPE_CHECKING:
    from client.kit.findings import Finding, Options
    from client.kit.site_file import SiteFile

READY, NOT_READY = DONE, FAILED

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Take part in a federation with data that stays here: init, check, join, trust.",
)
SiteOption = Annotated[Path, typer.Option("--site", metavar="FILE", help="The site file.")]


@app.command(
    help="Make this site's keys and files: site.yaml, registration.json, a systemd unit, a compose file.",
    epilog="""\b
Example:
  wardround-site init --invitation invitation.json --data letters.csv --text letter --label department
Compare the invitation's fingerprint with the coordinator's, by telephone. The private keys are made here and
never leave. Nothing is overwritten, nothing is sent.""",
)
def init(
    invitation: Annotated[
        Path, typer.Option("--invitation", metavar="FILE", help="As got from the coordinator.")
    ],
    data: Annotated[Path, typer.Option("--data", metavar="FILE", help="CSV, JSONL or Parquet.")],
    text: Annotated[list[str], typer.Option("--text", metavar="COLUMN", help="May be given several times.")],
    label: Annotated[str, typer.Option("--label", metavar="COLUMN", help="Column that holds the label.")],
    folder: Annotated[Path, typer.Option("--dir", metavar="DIR", help="Where to write.")] = Path(),
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda ...")] = "auto",
    model: Annotated[
        Path | None, typer.Option("--model", metavar="DIR", help="Local copy of the pre-trained model.")
    ] = None,
    image: Annotated[str, typer.Option("--image", help="Image for compose.yaml.")] = "wardround-client",
) -> None:
    """Write the kit and say what to do with it."""
    from client.kit.init import INVITATION, REGISTRATION, STATE, write_kit
    from client.kit.site_file import SiteFile
    from common.wire.invitation import Invitation, read_paper

    folder = folder.absolute()
    invited, fingerprint = read_paper(Invitation, invitation)
    site = SiteFile(
        name=invited.site,
        server_address=invited.address,
        ca=folder / "ca.crt",
        private_key=folder / "site.key",
        public_key=folder / "site.pub",
        data_path=data.absolute(),
        text_columns=tuple(text),
        label_column=label,
        model=None if model is None else model.absolute(),
        device=device,
        coordinator_key=folder / "coordinator.pub",
        signing_key=folder / "signing.key",
        state=folder / STATE,
        invitation=folder / INVITATION,
    )
    registered = write_kit(site, invited, invitation, folder, image)
    absent = [str(path) for path in (site.data_path, site.model) if path and not path.exists()]
    typer.echo(
        f"Invited as {site.name} to {site.server_address}\n"
        f"  the invitation's fingerprint is  {fingerprint}\n"
        "  COMPARE it with the coordinator's by telephone; where they differ, stop here.\n"
        f"Wrote site.yaml, keys, {REGISTRATION}, wardround-site.service and compose.yaml to {folder}\n"
        f"SEND to the coordinator:  {folder / REGISTRATION}\n"
        f"  whose fingerprint is             {registered}\n"
        f"NEVER send to anybody:    {site.private_key}, {site.signing_key}, and no text of {site.data_path}\n"
        + "".join(f"Not there yet:            {path}\n" for path in absent)
        + f"Next: wardround-site check --site {folder / 'site.yaml'}"
    )


@app.command(
    help="Trust the coordinator's next signing key, which is signed with the one trusted so far.",
    epilog="""\b
Example:
  wardround-site trust rotation.json --fingerprint SHA256:...
Give the fingerprint as the coordinator reads it out by telephone. Restart `join` afterwards.""",
)
def trust(
    rotation: Annotated[Path, typer.Argument(metavar="FILE", help="As got from the coordinator.")],
    fingerprint: Annotated[str, typer.Option("--fingerprint", help="As told by the coordinator.")],
    site: SiteOption = Path("site.yaml"),
) -> None:
    """Replace the key that is trusted."""
    from client.kit.init import trust_next_key
    from client.kit.site_file import load_site_file

    trust_next_key(load_site_file(site), rotation, fingerprint)
    typer.echo("The new key is trusted. Restart wardround-site join.")


@app.command(
    help="Look whether this site is ready, one finding a line with its next step.",
    epilog="""\b
Examples:
  wardround-site check
  wardround-site check --expect flwr=1.39.0 --labels cardiology,surgery --model google-bert/bert-base-cased
  wardround-site check --json > findings.json
It sends nothing of the data anywhere; its output names paths, labels and counts and is for this site.
Exit code: 0 ready, 1 not ready, 2 bad input.""",
)
def check(
    site: SiteOption = Path("site.yaml"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    expect: Annotated[
        list[str] | None, typer.Option("--expect", metavar="PACKAGE=VERSION", help="May be repeated.")
    ] = None,
    labels: Annotated[
        str | None, typer.Option("--labels", metavar="A,B,C", help="The consortium's labels.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="ID", help="Hub id, or folder, of the model of the run.")
    ] = None,
    max_length: Annotated[int, typer.Option("--max-length", min=3, help="Tokens per text.")] = 128,
    skip_check: Annotated[
        list[str] | None, typer.Option("--skip-check", metavar="NAME", help="May be repeated.")
    ] = None,
) -> None:
    """Run the table of checks."""
    from client.kit.checks import as_json as findings_as_json
    from client.kit.checks import is_ready, run_checks
    from client.kit.site_file import load_site_file

    loaded = load_site_file(site)
    options = _options(loaded, expect or [], labels, model, max_length)
    findings = run_checks(loaded, options, skip_check or [])
    if as_json:
        typer.echo(json.dumps(findings_as_json(loaded, findings), indent=2, ensure_ascii=False))
    else:
        _show(findings)
    raise typer.Exit(READY if is_ready(findings) else NOT_READY)


def _options(
    site: SiteFile, expect: Sequence[str], labels: str | None, model: str | None, max_length: int
) -> Options:
    """What the invitation says, and what was given by hand in its place."""
    from client.kit.findings import Options
    from common.wire.invitation import Invitation, read_paper

    pairs = [item.partition("=") for item in expect]
    for (package, _, version), item in zip(pairs, expect, strict=True):
        if not package or not version:
            raise ValueError(f"--expect is '{item}'; it must be PACKAGE=VERSION, for example flwr=1.39.0.")
    versions = {package: version for package, _, version in pairs}
    names = tuple(name.strip() for name in (labels or "").split(",") if name.strip())
    if site.invitation is not None and site.invitation.exists():
        invited, _ = read_paper(Invitation, site.invitation)
        # Other Python and PyTorch work together; another Wardround or Flower may not.
        told = {name: invited.versions[name] for name in ("wardround", "flwr") if name in invited.versions}
        versions, names = told | versions, names or invited.labels
    return Options(versions, names, model, max_length)


@app.command(
    help="Check, then take part until told to stop: one connection to the server, one process that trains.",
    epilog="""\b
Examples:
  wardround-site join
  wardround-site join --site /srv/wardround/site.yaml --skip-check memory
Exit code: 0 stopped as asked, 1 not ready or refused for good, 2 bad input.""",
)
def join(
    site: SiteOption = Path("site.yaml"),
    skip_check: Annotated[
        list[str] | None, typer.Option("--skip-check", metavar="NAME", help="May be repeated.")
    ] = None,
    retry_seconds: Annotated[
        float, typer.Option("--retry-seconds", min=0.1, help="First wait before another try; doubles.")
    ] = 5.0,
) -> None:
    """Check and join."""
    from client.kit.site_file import load_site_file
    from client.node.join import join as run

    code = run(site, load_site_file(site), _show, skip_check or [], retry_seconds)
    raise typer.Exit(code)


def _show(findings: Sequence[Finding]) -> None:
    """The findings as a table; a journal gets plain lines of the same words."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        for finding in findings:
            typer.echo(f"{finding.state:<8}{finding.check:<12}{finding.message}")
            if finding.next_step:
                typer.echo(f"{'':<20}-> {finding.next_step}")
        return
    table = Table("", "check", "finding", show_lines=False)
    colours = {"ok": "green", "warning": "yellow", "problem": "bold red"}
    for finding in findings:
        step = f"\n-> {finding.next_step}" if finding.next_step else ""
        table.add_row(
            Text(finding.state, colours[finding.state]), finding.check, Text(finding.message + step)
        )
    console.print(table)


def main() -> None:
    """Run the command line and turn what went wrong into words and an exit code."""
    sys.exit(guarded(lambda: app(standalone_mode=False), partial(typer.echo, err=True), "stopped"))


if __name__ == "__main__":
    main()
