"""Commands that set a site up and run it: init, trust, check, join."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wardround.client.kit.commands.options import SITE_FILE, Site, SkipCheck
from wardround.client.kit.init import read_policy, trust_next_key, write_kit
from wardround.client.policy.limits import Policy
from wardround.client.site_file import load_site_file
from wardround.common.command_line import argument, command, new_app, option
from wardround.common.wire.invitation import registration_file
from wardround.common.words import pasteable

app = new_app("")


@command(app)
def init(
    invitation: Annotated[
        Path, option("--invitation", "The coordinator's invitation.", "FILE")
    ],
    data: Annotated[Path, option("--data", "CSV, JSONL or Parquet.", "FILE")],
    text: Annotated[list[str], option("--text", "Text column; repeatable.", "COLUMN")],
    label: Annotated[str, option("--label", "Label column.", "COLUMN")],
    delimiter: Annotated[
        str | None,
        option(
            "--delimiter", "Column separator of a CSV: a character, or tab.", "SIGN"
        ),
    ] = None,
    encoding: Annotated[
        str | None,
        option("--encoding", "Encoding of a CSV or JSONL: windows-1252 ...", "NAME"),
    ] = None,
    folder: Annotated[Path, option("--dir", "Where to write.", "DIR")] = Path(),
    device: Annotated[str, option("--device", "auto, cpu, cuda ...")] = "auto",
    model: Annotated[
        Path | None, option("--model", "Local copy of the pre-trained model.", "DIR")
    ] = None,
    image: Annotated[
        str, option("--image", "Image for compose.yaml.")
    ] = "wardround-client",
    policy: Annotated[
        Path | None,
        option("--policy", "Limits that replace the strict ones, as YAML.", "FILE"),
    ] = None,
) -> None:
    """Make this site's keys and files: site.yaml, registration, systemd unit, compose file.

    Example:
      wardround-site init --invitation st_marys.json --data letters.csv --text letter --label ward

    Compare the invitation's fingerprint with the coordinator's by telephone. The private
    keys are made here and never leave. Nothing is overwritten, nothing is sent.
    """
    folder = folder.absolute()
    site, invited, registered = write_kit(
        invitation,
        folder,
        image,
        data_path=data.absolute(),
        delimiter=delimiter,
        encoding=encoding,
        text_columns=tuple(text),
        label_column=label,
        model=None if model is None else model.absolute(),
        device=device,
        policy=Policy() if policy is None else read_policy(policy),
    )
    registration = folder / registration_file(site.name)
    typer.echo(
        f"Invited as {site.name} to {site.server_address}\n"
        f"  the invitation's fingerprint is  {invited}\n"
        "  COMPARE it with the coordinator's by telephone. If they differ, stop here.\n"
        f"Wrote site.yaml, keys, {registration.name}, wardround-site.service and "
        f"compose.yaml to {folder}\n"
        f"SEND to the coordinator:  {registration}\n"
        f"  whose fingerprint is             {registered}\n"
        f"NEVER send to anybody:    {site.private_key}, {site.signing_key}, "
        f"and no text of {site.data_path}"
    )
    for path in (site.data_path, site.model):
        if path is not None and not path.exists():
            typer.echo(f"Does not exist yet:       {path}")
    typer.echo(f"Next: wardround-site check --site {pasteable(folder / 'site.yaml')}")


@command(app)
def trust(
    rotation: Annotated[Path, argument("FILE", "The coordinator's rotation file.")],
    fingerprint: Annotated[
        str, option("--fingerprint", "As the coordinator reads it out.")
    ],
    site: Site = SITE_FILE,
) -> None:
    """Trust the coordinator's next signing key, which the current one has signed.

    Example:
      wardround-site trust rotation.json --fingerprint SHA256:...

    Give the fingerprint that the coordinator reads out by telephone. Restart `join`
    afterwards.
    """
    trust_next_key(load_site_file(site), rotation, fingerprint)
    typer.echo("The new key is trusted. Next: restart wardround-site join.")


@command(app)
def check(
    site: Site = SITE_FILE,
    as_json: Annotated[bool, option("--json", "Print JSON.")] = False,
    expect: Annotated[
        list[str] | None,
        option("--expect", "A required version; repeatable.", "PACKAGE=VERSION"),
    ] = None,
    labels: Annotated[
        str, option("--labels", "The consortium's labels.", "A,B,C")
    ] = "",
    model: Annotated[
        str | None, option("--model", "Hub id or folder of the run's model.", "ID")
    ] = None,
    max_length: Annotated[
        int | None, option("--max-length", "Tokens per text.", min=3)
    ] = None,
    skip_check: SkipCheck = None,
) -> None:
    """Check if this site is ready. Each finding is one line with its next step.

    Examples:
      wardround-site check
      wardround-site check --labels heart,skin --model google-bert/bert-base-cased
      wardround-site check --expect flwr=1.39.0 --json > findings.json

    It sends no data. Its output names paths, labels and counts: do not send it on unread.
    Exit code: 0 ready, 1 not ready, 2 bad input.
    """
    from wardround.client.kit import readiness

    loaded = load_site_file(site)
    options = readiness.read_options(loaded, expect or [], labels, model, max_length)
    code = readiness.check(loaded, options, skip_check or [], as_json=as_json)
    raise typer.Exit(code)


@command(app)
def join(
    site: Site = SITE_FILE,
    skip_check: SkipCheck = None,
    retry_seconds: Annotated[
        float,
        option("--retry-seconds", "First wait before another try; doubles.", min=0.1),
    ] = 5.0,
) -> None:
    """Check this site, then take part until it is stopped.

    Examples:
      wardround-site join
      wardround-site join --site /srv/wardround/site.yaml --skip-check memory

    It uses one connection to the server and one process that trains.
    Exit code: 0 stopped by a signal, 1 not ready or refused for good, 2 bad input.
    """
    from wardround.client.kit import readiness

    raise typer.Exit(readiness.check_and_join(site, skip_check or [], retry_seconds))
