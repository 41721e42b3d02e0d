"""`wardround-site`: the commands of an engineer at a site."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections import deque
from collections.abc import Sequence
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wardround.common.command_line import add_version, command, new_app
from wardround.common.errors import DONE, FAILED, guarded
from wardround.common.files import keep_private, write_atomically

if TYPE_CHECKING:
    from wardround.client.kit.checks import Finding, Options
    from wardround.client.plans import Person, Plans
    from wardround.client.policy import Limits
    from wardround.client.site_file import SiteFile

os.environ.setdefault(
    "GRPC_VERBOSITY", "NONE"
)  # what it has to say, the findings say in words
app = new_app(
    "Take part in a federation with data that stays here: init, check, join, plans, approve, approvers, "
    "peers, trust, ledger, verify-model, personalise."
)
add_version(app)


class Method(Enum):
    """What `personalise` makes."""

    all = "all"
    mixture = "mixture"
    fine_tuned = "fine_tuned"
    local = "local"


def _option(name: str, help: str, metavar: str | None = None, **more: Any) -> Any:
    return typer.Option(name, help=help, metavar=metavar, **more)


Site = Annotated[Path, _option("--site", "The site file.", "FILE")]
Released = Annotated[
    Path,
    _option("--model", "The run's released model, as got from the coordinator.", "DIR"),
]
PlanName = Annotated[
    str,
    typer.Argument(metavar="ID", help="As `plans` shows it; the beginning will do."),
]
SkipCheck = Annotated[
    list[str] | None, _option("--skip-check", "May be repeated.", "NAME")
]


@command(app)
def init(
    invitation: Annotated[
        Path, _option("--invitation", "As got from the coordinator.", "FILE")
    ],
    data: Annotated[Path, _option("--data", "CSV, JSONL or Parquet.", "FILE")],
    text: Annotated[
        list[str], _option("--text", "May be given several times.", "COLUMN")
    ],
    label: Annotated[str, _option("--label", "Column that holds the label.", "COLUMN")],
    delimiter: Annotated[
        str | None,
        _option(
            "--delimiter",
            "Between the columns of a CSV: one character, or tab.",
            "SIGN",
        ),
    ] = None,
    encoding: Annotated[
        str | None,
        _option(
            "--encoding", "Of a CSV or JSONL file, for example windows-1252.", "NAME"
        ),
    ] = None,
    folder: Annotated[Path, _option("--dir", "Where to write.", "DIR")] = Path(),
    device: Annotated[str, _option("--device", "auto, cpu, cuda ...")] = "auto",
    model: Annotated[
        Path | None, _option("--model", "Local copy of the pre-trained model.", "DIR")
    ] = None,
    image: Annotated[
        str, _option("--image", "Image for compose.yaml.")
    ] = "wardround-client",
    policy: Annotated[
        Path | None,
        _option("--policy", "Limits in place of the strict ones, as YAML.", "FILE"),
    ] = None,
) -> None:
    """Make this site's keys and files: site.yaml, registration.json, a systemd unit, a compose file.

    Example:
      wardround-site init --invitation invitation.json --data letters.csv --text letter --label department

    Compare the invitation's fingerprint with the coordinator's, by telephone. The private keys are made here
    and never leave. Nothing is overwritten, nothing is sent.
    """
    from wardround.client.kit.init import REGISTRATION, write_kit
    from wardround.client.kit.policy import read_policy
    from wardround.client.policy import Policy

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
    absent = [
        str(path) for path in (site.data_path, site.model) if path and not path.exists()
    ]
    typer.echo(
        f"Invited as {site.name} to {site.server_address}\n"
        f"  the invitation's fingerprint is  {invited}\n"
        "  COMPARE it with the coordinator's by telephone; where they differ, stop here.\n"
        f"Wrote site.yaml, keys, {REGISTRATION}, wardround-site.service and compose.yaml to {folder}\n"
        f"SEND to the coordinator:  {folder / REGISTRATION}\n"
        f"  whose fingerprint is             {registered}\n"
        f"NEVER send to anybody:    {site.private_key}, {site.signing_key}, and no text of {site.data_path}\n"
        + "".join(f"Not there yet:            {path}\n" for path in absent)
        + f"Next: wardround-site check --site {folder / 'site.yaml'}"
    )


@command(app)
def trust(
    rotation: Annotated[
        Path, typer.Argument(metavar="FILE", help="As got from the coordinator.")
    ],
    fingerprint: Annotated[
        str, _option("--fingerprint", "As told by the coordinator.")
    ],
    site: Site = Path("site.yaml"),
) -> None:
    """Trust the coordinator's next signing key, which is signed with the one trusted so far.

    Example:
      wardround-site trust rotation.json --fingerprint SHA256:...

    Give the fingerprint as the coordinator reads it out by telephone. Restart `join` afterwards.
    """
    from wardround.client.kit.init import trust_next_key
    from wardround.client.site_file import load_site_file

    trust_next_key(load_site_file(site), rotation, fingerprint)
    typer.echo("The new key is trusted. Restart wardround-site join.")


@command(app)
def check(
    site: Site = Path("site.yaml"),
    as_json: Annotated[bool, _option("--json", "Print JSON.")] = False,
    expect: Annotated[
        list[str] | None, _option("--expect", "May be repeated.", "PACKAGE=VERSION")
    ] = None,
    labels: Annotated[
        str, _option("--labels", "The consortium's labels.", "A,B,C")
    ] = "",
    model: Annotated[
        str | None,
        _option("--model", "Hub id, or folder, of the model of the run.", "ID"),
    ] = None,
    max_length: Annotated[
        int, _option("--max-length", "Tokens per text.", min=3)
    ] = 128,
    skip_check: SkipCheck = None,
) -> None:
    """Look whether this site is ready, one finding a line with its next step.

    Examples:
      wardround-site check
      wardround-site check --expect flwr=1.39.0 --labels heart,skin --model google-bert/bert-base-cased
      wardround-site check --json > findings.json

    It sends nothing of the data anywhere; its output names paths, labels and counts and is for this site.
    Exit code: 0 ready, 1 not ready, 2 bad input.
    """
    from wardround.client.kit.checks import as_json as findings_as_json
    from wardround.client.kit.checks import is_ready, run_checks
    from wardround.client.site_file import load_site_file

    loaded = load_site_file(site)
    options = _options(loaded, expect or [], labels, model, max_length)
    findings = run_checks(loaded, options, skip_check or [])
    if as_json:
        typer.echo(json.dumps(findings_as_json(loaded, findings), indent=2))
    else:
        _show(findings)
    raise typer.Exit(DONE if is_ready(findings) else FAILED)


def _options(
    site: SiteFile,
    expect: Sequence[str],
    labels: str,
    model: str | None,
    max_length: int,
) -> Options:
    """What the invitation says, and what was given by hand in its place."""
    from wardround.client.kit.checks import Options
    from wardround.common.wire.invitation import Invitation, read_paper

    versions = {}
    for item in expect:
        package, _, versions[package] = item.partition("=")
        if not package or not versions[package]:
            raise ValueError(
                f"--expect is '{item}'; it must be PACKAGE=VERSION, for example flwr=1.39.0."
            )
    names = tuple(name.strip() for name in labels.split(",") if name.strip())
    if site.invitation is not None and site.invitation.exists():
        invited, _ = read_paper(Invitation, site.invitation)
        # Other Python and PyTorch work together; another Wardround or Flower may not.
        told = {
            name: invited.versions[name]
            for name in ("wardround", "flwr")
            if name in invited.versions
        }
        versions, names = told | versions, names or invited.labels
    return Options(versions, names, model, max_length)


@command(app)
def join(
    site: Site = Path("site.yaml"),
    skip_check: SkipCheck = None,
    retry_seconds: Annotated[
        float,
        _option("--retry-seconds", "First wait before another try; doubles.", min=0.1),
    ] = 5.0,
) -> None:
    """Check, then take part until told to stop: one connection to the server, one process that trains.

    Examples:
      wardround-site join
      wardround-site join --site /srv/wardround/site.yaml --skip-check memory

    Exit code: 0 stopped as asked, 1 not ready or refused for good, 2 bad input.
    """
    from wardround.client.kit.join import join as run
    from wardround.client.site_file import load_site_file

    raise typer.Exit(
        run(site, load_site_file(site), _show, skip_check or [], retry_seconds)
    )


@command(app)
def plans(site: Site = Path("site.yaml")) -> None:
    """List the plans this site was told of, and what was decided about each.

    Example:
      wardround-site plans
    """
    from wardround.client.kit.plans import table

    opened, _ = _plans(site)
    typer.echo(table(opened.all()))


@command(app)
def plan(
    plan: PlanName,
    site: Site = Path("site.yaml"),
    everything: Annotated[
        bool, _option("--all", "Every setting, and what the policy says to it.")
    ] = False,
) -> None:
    """Say in plain words what a plan asks, what it costs here, what leaves, and what the policy says.

    Examples:
      wardround-site plan 3f8a90c2d1e4
      wardround-site plan 3f8a90c2d1e4 --all

    The costs come from two small steps of training on this site's own texts. Nothing of them is sent.
    """
    from wardround.client.kit.costs import look_at
    from wardround.client.kit.plans import compared_with, describe, describe_all

    opened, loaded = _plans(site)
    known, limits = opened.find(plan), _limits(loaded)
    before = compared_with(known, opened.all())
    here = look_at(loaded, known, limits)
    lines = list(describe(known, before, limits, here))
    if everything:
        lines += describe_all(known, before, limits, here)
    typer.echo("\n".join(lines))


@command(app)
def approve(
    plan: PlanName,
    name: Annotated[
        str | None, _option("--as", "Who approves (`approvers list`).", "NAME")
    ] = None,
    key: Annotated[
        Path | None, _option("--key", "That person's private key.", "FILE")
    ] = None,
    site: Site = Path("site.yaml"),
) -> None:
    """Let a plan be executed, with the texts as they are now.

    Examples:
      wardround-site approve 3f8a90c2d1e4
      wardround-site approve 3f8a90c2d1e4 --as anna --key /media/stick/anna

    Exit code: 0 approved, or noted if another person has to approve too; 2 no such plan, or the policy
    refuses it.
    """
    from wardround.client.declines import Declines
    from wardround.client.plans import approve as put_approval
    from wardround.common.words import printable

    opened, loaded = _plans(site)
    known, person = opened.find(plan), _person(name, key)
    try:
        is_approved = put_approval(
            opened, known, loaded, _limits(loaded), "hand", person
        )
    except Declines as no:
        raise ValueError(
            f"plan {known.short} cannot be approved ({no.code}): {printable(str(no))}. Reject it, or change "
            f"the policy in '{site}', which counts at once."
        ) from None
    if is_approved:
        typer.echo(
            f"Approved: {known.short}. It is executed with the texts of now, until somebody revokes it."
        )
    else:
        typer.echo(
            f"Noted: {name} approves {known.short}. It waits for another person."
        )


def _person(name: str | None, key: Path | None) -> Person | None:
    """Who approves; None if nobody signs. Raises ValueError if half of it is missing, or for no key."""
    from wardround.client.plans import Person
    from wardround.common.credentials import read_private_key

    if name is None and key is None:
        return None
    if name is None or key is None:
        raise ValueError("--as and --key belong together: --as NAME --key FILE")
    step = 'Make one with: ssh-keygen -t ed25519 -N "" -f FILE'
    return Person(name, read_private_key(key, "signing", "--key", step))  # type: ignore[arg-type]


@command(app)
def reject(
    plan: PlanName,
    why: Annotated[str, _option("--why", "Stays at this site.", "TEXT")],
    site: Site = Path("site.yaml"),
) -> None:
    """Do not let a plan be executed. The coordinator learns that it was rejected, not why.

    Example:
      wardround-site reject 3f8a90c2d1e4 --why "the ethics committee has not met"
    """
    _decide(plan, site, "rejected", why)


@command(app)
def revoke(plan: PlanName, site: Site = Path("site.yaml")) -> None:
    """Take an approval back: what is asked of this site from now on, it refuses. What left has left.

    Example:
      wardround-site revoke 3f8a90c2d1e4
    """
    _decide(plan, site, "revoked", "")


@command(app, "verify-model")
def verify_model(model: Released, site: Site = Path("site.yaml")) -> None:
    """Check that a released model is what an approved plan of this site made, file by file.

    Example:
      wardround-site verify-model --model model

    It prints one line for each check, the verdict last: who signed, the plan and its sites, this site's
    own updates against its ledger, every file. Exit code: 0 verified, 1 not, 2 bad input.
    """
    from wardround.client.kit.verify import is_verified, verdict
    from wardround.client.kit.verify import verify_model as run
    from wardround.client.site_file import load_site_file

    checks = run(load_site_file(site), model)
    for check in checks:
        typer.echo(check.in_words())
    typer.echo(verdict(model, checks))
    raise typer.Exit(DONE if is_verified(checks) else FAILED)


@command(app)
def personalise(
    model: Released,
    out: Annotated[
        Path, _option("--out", "Where to write; it must not be there yet.", "DIR")
    ],
    site: Site = Path("site.yaml"),
    method: Annotated[
        Method,
        _option("--method", "What is made and compared with the released model."),
    ] = Method.all,
    epochs: Annotated[
        int | None, _option("--epochs", "Passes over the texts here.", min=1)
    ] = None,
    learning_rate: Annotated[
        float | None, _option("--learning-rate", "Step size.")
    ] = None,
    validation_fraction: Annotated[
        float | None,
        _option(
            "--validation-fraction", "Of the held-out texts: what the choice goes by."
        ),
    ] = None,
    unverified: Annotated[
        bool,
        _option("--unverified", "Take a model that `verify-model` does not verify."),
    ] = False,
) -> None:
    """Make this site's own model of a released one, and choose by texts held out here. Nothing is sent.

    Examples:
      wardround-site personalise --model model --out own-model
      wardround-site personalise --model model --out own-model --method mixture --epochs 10

    DIR is then the chosen model, and personal.json in it what every one of them does (docs/personal.md).
    The released model must be one that `verify-model` verifies.
    """
    from wardround.client.kit.personalise import in_words
    from wardround.client.kit.personalise import personalise as run
    from wardround.client.site_file import load_site_file

    asked = {
        "name": method.value,
        "epochs": epochs,
        "learning_rate": learning_rate,
        "validation_fraction": validation_fraction,
    }
    record = run(load_site_file(site), model, out, asked, unverified=unverified)
    typer.echo(f"{in_words(record)}\nchosen: {record.sites[0].chosen}, in {out}")


def _decide(name: str, site: Path, state: Any, why: str) -> None:
    opened, _ = _plans(site)
    known = opened.find(name)
    opened.object(known, state, why)
    typer.echo(f"Plan {known.short} is {state}. `join` heeds it with the next message.")


def _plans(site: Path) -> tuple[Plans, SiteFile]:
    from wardround.client.plans import Plans
    from wardround.client.site_file import load_site_file, signing_keys

    loaded = load_site_file(site)
    return Plans(loaded, signing_keys(loaded)[1]), loaded


def _limits(site: SiteFile) -> Limits:
    from wardround.client.plans import limits_of
    from wardround.client.site_file import signing_keys

    return limits_of(site, signing_keys(site)[0])


peers = new_app("The other hospitals whose keys this site knows: add, list, remove.")
app.add_typer(peers, name="peers")


@command(peers)
def add(
    registration: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="The other hospital's registration.json."),
    ],
    name: Annotated[
        str | None,
        _option("--name", "Its name in plans, if the file has another.", "NAME"),
    ] = None,
    fingerprint: Annotated[
        str | None,
        _option(
            "--fingerprint", "As that hospital reads it out; else it is asked for."
        ),
    ] = None,
    site: Site = Path("site.yaml"),
) -> None:
    """Pin another hospital's key: from then on a plan that names it with another key is refused.

    Examples:
      wardround-site peers add lakeside.json
      wardround-site peers add lakeside.json --fingerprint SHA256:...

    Get the file from that hospital, and compare its fingerprint with that hospital by telephone. It sees its
    own with `wardround-site peers list`.
    """
    from wardround.client.kit.peers import pin

    known_as, pinned = pin(
        site, registration, name, partial(_compare, given=fingerprint)
    )
    typer.echo(f"Pinned: {known_as}, whose key is {pinned.key}")


def _compare(found: str, given: str | None) -> None:
    """Show a fingerprint; raises ValueError, or ends, if it is not the one that was read out."""
    typer.echo(f"The fingerprint of this registration is  {found}")
    if given is None:
        if not sys.stdin.isatty():
            raise ValueError(
                "--fingerprint is missing, and there is no terminal to ask at. Give it as the other hospital "
                "reads it out by telephone."
            )
        typer.confirm(
            "Does the other hospital read out the same by telephone?", abort=True
        )
    elif given.strip() != found:
        raise ValueError(
            f"--fingerprint is '{given}', but the fingerprint of the file is {found}. Ask the other hospital "
            "by telephone, and pin nothing until they are the same."
        )


@command(peers, name="list")
def list_peers(site: Site = Path("site.yaml")) -> None:
    """List the hospitals whose keys are pinned here, and this site's own fingerprint to read out.

    Example:
      wardround-site peers list
    """
    from wardround.client.kit.peers import in_words

    typer.echo("\n".join(in_words(site)))


@command(peers)
def remove(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="As `peers list` shows it.")
    ],
    site: Site = Path("site.yaml"),
) -> None:
    """Forget the pinned key of a hospital.

    Example:
      wardround-site peers remove lakeside
    """
    from wardround.client.peers import Peers
    from wardround.client.site_file import load_site_file

    Peers.open(load_site_file(site).state).remove(name)
    typer.echo(f"{name} is not pinned any more")


approvers = new_app(
    "The people who approve plans, if the policy asks for two: add, list, remove."
)
app.add_typer(approvers, name="approvers")


@command(approvers, name="add")
def add_approver(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Small letters, digits, - and _.")
    ],
    key: Annotated[
        Path, _option("--key", "Public half of the person's key (.pub).", "FILE")
    ],
    site: Site = Path("site.yaml"),
) -> None:
    """Let a person approve plans here, with a key of the person's own.

    Example:
      wardround-site approvers add anna --key anna.pub

    Make the key pair with: ssh-keygen -t ed25519 -N "" -f anna. The private half belongs to that person
    alone, for example on a stick. `policy.approvals: 2` in site.yaml asks for two people.
    """
    from wardround.client.approvals import Approvers
    from wardround.client.site_file import load_site_file

    try:
        line = key.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"--key is '{key}', which cannot be read ({error}). Give the .pub file."
        ) from None
    found = Approvers(load_site_file(site).state).add(name, line)
    typer.echo(f"{name} may approve plans here, with the key {found}")


@command(approvers, name="list")
def list_approvers(site: Site = Path("site.yaml")) -> None:
    """List the people who may approve plans here.

    Example:
      wardround-site approvers list
    """
    from wardround.client.approvals import Approvers
    from wardround.client.site_file import load_site_file
    from wardround.common.credentials import fingerprint

    keys = Approvers(load_site_file(site).state).keys()
    lines = [f"{name:<20}  {fingerprint(key)}" for name, key in keys.items()]
    typer.echo(
        "\n".join(lines)
        or "Nobody yet. Next: wardround-site approvers add NAME --key FILE"
    )


@command(approvers, name="remove")
def remove_approver(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="As `approvers list` shows it.")
    ],
    site: Site = Path("site.yaml"),
) -> None:
    """Let a person approve no more. What this person approved counts no more either.

    Example:
      wardround-site approvers remove anna
    """
    from wardround.client.approvals import Approvers
    from wardround.client.site_file import load_site_file

    Approvers(load_site_file(site).state).remove(name)
    typer.echo(f"{name} approves no plans here any more")


ledger = new_app(
    "What came to this site and what left it: show, verify, export, accept."
)
app.add_typer(ledger, name="ledger")


@command(ledger)
def show(
    site: Site = Path("site.yaml"),
    last: Annotated[int, _option("--last", "How many lines.", min=1)] = 40,
) -> None:
    """Say in plain words what came and what left, newest last.

    Example:
      wardround-site ledger show --last 100
    """
    from wardround.common.ledger import walk

    newest = deque((entry for _, entry in walk(_ledger_of(site))), maxlen=last)
    typer.echo(
        "\n".join(entry.in_words() for entry in newest)
        or "Nothing came and nothing left."
    )


@command(ledger)
def verify(site: Site = Path("site.yaml")) -> None:
    """Check that every line of all its files follows the one before; names the first that does not.

    Example:
      wardround-site ledger verify

    Exit code: 0 whole, 2 not.
    """
    from wardround.common.ledger import parts_of

    path = _ledger_of(site)
    number, newest = _verified(path)
    files = len(parts_of(path))
    typer.echo(
        f"{number} lines in {files} files, each follows the one before. The newest is {newest}"
    )


@command(ledger)
def export(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Where to; it must not be there yet.")
    ],
    site: Site = Path("site.yaml"),
) -> None:
    """Copy the ledger, all its files as one, for an audit. It holds no text, label or path.

    Example:
      wardround-site ledger export st_marys.jsonl
    """
    from wardround.common.ledger import parts_of

    path = _ledger_of(site)
    number, _ = _verified(path)
    if file.exists():
        raise ValueError(f"FILE is '{file}', which is there already. Name another.")
    write_atomically(file, lambda target: _join_files(parts_of(path), target))
    typer.echo(f"Wrote {number} lines to {file}")


@command(ledger)
def accept(
    missing: Annotated[str, typer.Argument(metavar="HASH", help="As `join` named it.")],
    site: Site = Path("site.yaml"),
) -> None:
    """Go on although a line is missing that the server holds; the ledger says from now on that you did.

    Example:
      wardround-site ledger accept 5f0c...
    """
    from wardround.client.node.journal import Journal
    from wardround.client.node.ledger import Ledger
    from wardround.client.site_file import load_site_file, signing_keys
    from wardround.common.credentials import fingerprint, public_line
    from wardround.common.wire.objects import is_id

    if not is_id(missing):
        raise ValueError(
            f"HASH is '{missing}'; it must be the 64 letters and digits that `join` named."
        )
    loaded = load_site_file(site)
    own = fingerprint(public_line(signing_keys(loaded)[0]))
    with Journal(loaded.state, own), Ledger(loaded.state, loaded.name, own) as opened:
        opened.accept(missing)
    typer.echo("Noted. Start wardround-site join again.")


def _ledger_of(site: Path) -> Path:
    from wardround.client.site_file import load_site_file
    from wardround.common.ledger import FILE_NAME

    return load_site_file(site).state / FILE_NAME


def _verified(path: Path) -> tuple[int, str]:
    """How many lines a ledger has, and the hash of the newest. Raises ValueError if it is not whole."""
    from wardround.common.ledger import START, walk

    number, newest = 0, START
    for found, entry in walk(path):
        number, newest = entry.number, found
    return number, newest


def _join_files(files: Sequence[Path], target: Path) -> None:
    """Write the files one after the other."""
    with target.open("wb") as joined:
        for file in files:
            with file.open("rb") as part:
                shutil.copyfileobj(part, joined)


def _show(findings: Sequence[Finding]) -> None:
    """The findings as a table; a journal gets plain lines of the same words."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        for finding in findings:
            step = f"\n{'':<20}-> {finding.next_step}" if finding.next_step else ""
            typer.echo(f"{finding.state:<8}{finding.check:<12}{finding.message}{step}")
        return
    table = Table("", "check", "finding", show_lines=False)
    colours = {"ok": "green", "warning": "yellow", "problem": "bold red"}
    for finding in findings:
        step = f"\n-> {finding.next_step}" if finding.next_step else ""
        state = Text(finding.state, colours[finding.state])
        table.add_row(state, finding.check, Text(finding.message + step))
    console.print(table)


def main() -> None:
    """Run the command line and turn what went wrong into words and an exit code."""
    keep_private()
    sys.exit(
        guarded(
            lambda: app(standalone_mode=False), partial(typer.echo, err=True), "stopped"
        )
    )


if __name__ == "__main__":
    main()
