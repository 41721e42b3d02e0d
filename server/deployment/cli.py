"""`wardround server`: the coordinator's commands.

A command imports its work inside its function, so that `--help` does not wait for slow libraries.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wardround.common.command_line import argument, command, new_app, option
from wardround.common.files import keep_private
from wardround.common.words import pasteable, shown

if TYPE_CHECKING:
    from wardround.server.deployment.folder import ServerFolder

DEFAULT_FOLDER = Path("wardround-server")
PASSPHRASE = "WARDROUND_CA_PASSPHRASE"
UNLIMITED = "unlimited"
"""Value of `register --max-examples` for no limit."""
_SOON_DAYS = 30

app = new_app(
    "Run the coordinator's server: certificates, the SuperLink, and registered sites."
)
app.callback()(keep_private)
Dir = Annotated[
    Path,
    option(
        "--dir",
        "The server folder. Default: WARDROUND_SERVER_DIR of the environment.",
        envvar="WARDROUND_SERVER_DIR",
        show_envvar=False,
    ),
]
Days = Annotated[
    int,
    option("--days", "Days for which the server certificate is valid.", min=1),
]
Site = Annotated[str, argument("SITE")]


@command(app, passphrase=PASSPHRASE)
def init(
    names: Annotated[
        list[str],
        option("--name", "DNS name or IP address that sites dial; may be repeated."),
    ],
    days: Days = 365,
    path: Dir = DEFAULT_FOLDER,
    fleet_host: Annotated[
        str, option("--fleet-host", "Address that sites connect to.")
    ] = "0.0.0.0",
    fleet_port: Annotated[
        int, option("--fleet-port", "The one port that sites need.", min=1, max=65535)
    ] = 9092,
    control_host: Annotated[
        str,
        option(
            "--control-host", "Address for commands; keep it off the sites' network."
        ),
    ] = "127.0.0.1",
    control_port: Annotated[
        int, option("--control-port", "Port for commands.", min=1, max=65535)
    ] = 8000,
    encrypt: Annotated[
        bool,
        option("--encrypt-ca-key", "Keep ca.key encrypted with a passphrase."),
    ] = False,
    public_key: Annotated[
        Path | None,
        option(
            "--public-key", "signing.pub of a signing key on another machine.", "FILE"
        ),
    ] = None,
) -> None:
    """Make a server folder: certificate authority, server certificate, signing key, addresses.

    Examples:
      wardround server init --name fl.example.org
      wardround server init --name fl.example.org --name 10.1.2.3 --days 730 --dir ./trial-server
      wardround server init --name fl.example.org --encrypt-ca-key
      wardround server init --name fl.example.org --public-key signing.pub

    ca.key is needed only to renew the certificate: encrypt it, or keep it elsewhere. The passphrase
    comes from {passphrase} of the environment, or is asked for.
    """
    from wardround.server.deployment.addresses import Addresses
    from wardround.server.deployment.folder import ServerFolder
    from wardround.server.deployment.signing_key import read_public_line

    addresses = Addresses(
        tuple(names), fleet_host, fleet_port, control_host, control_port
    )
    signing_line = "" if public_key is None else read_public_line(public_key)
    passphrase = _passphrase(confirm=True) if encrypt else ""
    folder = ServerFolder.create(path, addresses, days, passphrase, signing_line)
    typer.echo(_described(folder))
    if not encrypt:
        typer.echo(
            f"WARNING: '{folder.authority.key}' is not encrypted: anyone who reads it can "
            "pretend to be this server. Keep it elsewhere until `wardround server renew`, or "
            "make the folder with --encrypt-ca-key.",
            err=True,
        )
    typer.echo(
        "Next: wardround server up, and for each site: wardround server invite NAME"
    )


@command(app)
def renew(days: Days = 365, path: Dir = DEFAULT_FOLDER) -> None:
    """Renew the server certificate, with the same authority. Sites need no change.

    Examples:
      wardround server renew
      wardround server renew --days 730

    Restart the server afterwards.
    """
    folder = _open(path)
    folder.renew(days, _passphrase() if folder.authority.is_encrypted else "")
    typer.echo(_described(folder))


@command(app)
def up(
    path: Dir = DEFAULT_FOLDER,
    insecure: Annotated[
        bool,
        option(
            "--insecure",
            "Use no TLS: any node on this machine may connect. See also --fleet-host.",
        ),
    ] = False,
    fleet_host: Annotated[
        str | None,
        option(
            "--fleet-host",
            "Listen there for sites, instead of the address in server.yaml.",
            "HOST",
        ),
    ] = None,
    health: Annotated[
        str | None,
        option("--health", "Serve Flower's gRPC health check there.", "HOST:PORT"),
    ] = None,
) -> None:
    """Run the server: sites connect over TLS with registered keys.

    Examples:
      wardround server up
      wardround server up --health 127.0.0.1:9098
      wardround server up --insecure

    Runs in the foreground; stop it with Ctrl-C or SIGTERM. Sites can be registered and removed
    while it runs.
    """
    from wardround.server.deployment import superlink

    folder = _open(path)
    folder.addresses = folder.addresses.listening(fleet_host, insecure=insecure)
    superlink.check_ports(folder)
    if insecure:
        _warn_of_insecure(folder)
    else:
        _check_certificate(folder)
        typer.echo(_described(folder), err=True)
    addresses = folder.addresses
    typer.echo(
        f"sites connect to {addresses.fleet}; commands to {addresses.control}", err=True
    )
    superlink.serve(folder, insecure=insecure, health_address=health)


def _warn_of_insecure(folder: ServerFolder) -> None:
    typer.echo(
        "WARNING: --insecure: nothing is encrypted, and any node may connect.", err=True
    )
    if folder.addresses.is_loopback:
        text = "Only programs on this machine can connect. To allow others: --fleet-host HOST."
    else:
        address = folder.addresses.fleet
        text = f"Anyone who can connect to {address} can take part and run the app of every run."
    typer.echo(text, err=True)


@command(app)
def invite(
    site: Site,
    address: Annotated[
        str | None,
        option(
            "--address", "Address for this site, if not the usual one.", "HOST:PORT"
        ),
    ] = None,
    labels: Annotated[
        str,
        option("--labels", "The label names of the consortium, in order.", "A,B,C"),
    ] = "",
    unsigned: Annotated[
        Path | None,
        option(
            "--unsigned",
            "Write a request to FILE, to be signed on another machine.",
            "FILE",
        ),
    ] = None,
    signed: Annotated[
        Path | None,
        option("--signed", "Store the signed invitation.", "FILE"),
    ] = None,
    path: Dir = DEFAULT_FOLDER,
) -> None:
    """Create an invitation for a site: address, certificate authority, signing key.

    Examples:
      wardround server invite st-mary --labels cardiology,surgery
      wardround server invite st-mary --address 10.1.2.3:9092
      wardround server invite st-mary --unsigned request.json
      wardround server invite st-mary --signed st-mary.json

    Send the file to the site. It is not secret. Compare its fingerprint with the site by telephone.
    """
    from wardround.common.wire.invitation import registration_file
    from wardround.server.deployment.signing_request import request_invitation
    from wardround.server.deployment.sites import (
        invite_site,
        keep_invitation,
    )

    folder = _open(path)
    names = [name.strip() for name in labels.split(",")] if labels else []
    if signed is not None:
        if address or labels or unsigned:
            raise ValueError(
                "--signed stores a finished invitation. Leave out the other options."
            )
        file = signed
        fingerprint = keep_invitation(folder, site, signed)
    elif unsigned is not None:
        request_invitation(folder, site, unsigned, address=address, labels=names)
        typer.echo(
            "Next, on the machine that has the signing key: "
            f"wardround server sign {pasteable(unsigned)} "
            f"--key signing.key --out {site}.json"
        )
        return
    else:
        file, fingerprint = invite_site(folder, site, address=address, labels=names)
    typer.echo(
        f"SEND to {site}:  {file}\n  its fingerprint is  {fingerprint}\n"
        "  read it out by telephone; `wardround-site init --invitation` shows the same one.\n"
        f"Next, with its answer: wardround server register {site} "
        f"{registration_file(site)}"
    )


@command(app, unlimited=UNLIMITED)
def register(
    site: Site,
    answer: Annotated[Path, argument("FILE", "The site's registration-NAME.json.")],
    max_examples: Annotated[
        str | None,
        option(
            "--max-examples",
            "Limit on the training texts it may report for a round, and on its test texts.",
            f"N|{UNLIMITED}",
        ),
    ] = None,
    path: Dir = DEFAULT_FOLDER,
) -> None:
    """Register a site with its answer to the invitation. A running server accepts it at once.

    Examples:
      wardround server register st-mary registration-st-mary.json --max-examples 5000
      wardround server register st-mary registration-st-mary.json --max-examples {unlimited}

    Compare the fingerprint with the site by telephone. An update and its test counts weigh by the
    number of texts that the site reports: --max-examples limits both. Without it you are asked.
    """
    from wardround.server.deployment.sites import register_site

    most = _most_examples(max_examples or _ask_for_most_examples(site))
    made = register_site(_open(path), site, answer, max_examples=most)
    typer.echo(
        f"{site} may connect: {made.bound}. Fingerprint of its registration: {made.fingerprint}"
    )


def _ask_for_most_examples(site: str) -> str:
    """Ask for the limit of a site's texts. Raises ValueError if there is no terminal."""
    if not sys.stdin.isatty():
        raise ValueError(
            f"--max-examples is missing. Give the number of texts that '{site}' may report for a "
            f"round: --max-examples N, or --max-examples {UNLIMITED}."
        )
    return str(
        typer.prompt(
            f"Texts that {site} may report for a round (a number, or '{UNLIMITED}')"
        )
    )


def _most_examples(words: str) -> int | None:
    """Read a limit; None for no limit. Raises ValueError for anything else."""
    if words == UNLIMITED:
        return None
    if not words.isdecimal() or int(words) < 1:
        raise ValueError(
            f"--max-examples is '{words}'. Give a number of texts from 1, or {UNLIMITED}."
        )
    return int(words)


@command(app)
def unregister(site: Site, path: Dir = DEFAULT_FOLDER) -> None:
    """Remove a site: the server deletes its keys and disconnects it at once.

    Examples:
      wardround server unregister st-mary
    """
    from wardround.server.deployment.sites import unregister_site

    unregister_site(_open(path), site)
    typer.echo(f"{site} can no longer connect; its invitation was withdrawn")


@command(app)
def sign(
    request: Annotated[Path, argument("FILE", "The file that `--unsigned` wrote.")],
    key: Annotated[
        Path,
        option("--key", "The coordinator's private signing key.", "FILE"),
    ],
    out: Annotated[
        Path,
        option("--out", "File for the signed request.", "FILE"),
    ],
    show_all: Annotated[
        bool,
        option("--all", "Show every setting of the plan and every site's key."),
    ] = False,
    yes: Annotated[bool, option("--yes", "Do not ask.")] = False,
) -> None:
    """Sign a request on the machine that has the signing key. It needs no server folder.

    Examples:
      wardround server sign request.json --key signing.key --out signed.json
      wardround server sign request.json --key signing.key --out signed.json --all

    Read the request before you agree: an attacker on the server's machine can write any request.
    """
    from wardround.server.deployment.sign import sign_request

    def agree(lines: Sequence[str]) -> None:
        typer.echo("\n".join(lines))
        if yes:
            return
        if not sys.stdin.isatty():
            raise ValueError(
                "no terminal to ask on. Read the lines above, then give --yes."
            )
        typer.confirm("Sign it?", abort=True)

    sign_request(request, key, out, agree, shows_all=show_all)
    typer.echo(f"Signed: {out}")


@command(app)
def rotate_key(
    key: Annotated[
        Path | None,
        option("--key", "A signing key outside a server folder.", "FILE"),
    ] = None,
    signed: Annotated[
        Path | None,
        option(
            "--signed", "rotation.json from the machine with the signing key.", "FILE"
        ),
    ] = None,
    path: Dir = DEFAULT_FOLDER,
) -> None:
    """Replace the signing key. Every site has to be told.

    Examples:
      wardround server rotate-key
      wardround server rotate-key --key signing.key
      wardround server rotate-key --signed rotation.json

    Send rotation.json to every site. Each accepts it with `wardround-site trust`. Do it between
    runs: a site that trusts the new key answers no run of the old key. If somebody else may have
    the old key, this file proves nothing. Then delete signing.key, make a new one with this
    command, and invite every site again.
    """
    from wardround.server.deployment.signing_key import rotate_key as rotate
    from wardround.server.deployment.signing_key import take_rotation

    if signed is not None:
        if key is not None:
            raise ValueError(
                "--signed is for the server folder, --key for the other machine. Give only one."
            )
        folder = _open(path)
        if folder.signing_key.exists():
            raise ValueError(
                f"--signed is '{signed}', but the signing key is here. Leave --signed out."
            )
        take_rotation(folder.public_key, signed)
        typer.echo("The server uses the new key. Send rotation.json to every site.")
        return
    rotated = rotate(_open(path).signing_key if key is None else key)
    if rotated is None:
        typer.echo(
            "Made the first signing key. Next, for each site: wardround server invite NAME"
        )
        return
    file, fingerprint = rotated
    typer.echo(f"SEND to every site:  {file}\n  its fingerprint is  {fingerprint}")
    typer.echo(
        "  read it out by telephone: wardround-site trust rotation.json --fingerprint SHA256:..."
    )


@command(app)
def sites(path: Dir = DEFAULT_FOLDER) -> None:
    """List the registered sites, with their state and refused calls.

    Examples:
      wardround server sites
      wardround server sites --dir ./trial-server
    """
    from wardround.common.wire.roster import roster_fingerprint
    from wardround.server.deployment import superlink
    from wardround.server.deployment.plan import roster_of

    folder = _open(path)
    registered = folder.sites()
    if not registered:
        typer.echo("no site is registered yet. Next: wardround server invite SITE")
        return
    states: dict[str, superlink.NodeState] = {}
    try:
        states = superlink.fleet_states(folder)
    except superlink.SuperLinkError as error:
        typer.echo(str(error), err=True)
    for name, site in registered.items():
        state = states.get(name)
        status = state.status if state else "?"
        columns = [f"{shown(name):<20}", f"{shown(status):<10}"]
        columns += [shown(site.fingerprint), site.bound]
        if state and state.refused:
            columns.append(f"{sum(state.refused.values())} calls refused")
        typer.echo("  ".join(columns))
    roster = roster_fingerprint(roster_of(registered))
    typer.echo(f"roster of these {len(registered)} sites: {roster}")


def _open(path: Path) -> ServerFolder:
    from wardround.server.deployment.folder import ServerFolder

    return ServerFolder(path)


def _described(folder: ServerFolder) -> str:
    certificate = folder.server.read()
    return (
        f"server certificate for {', '.join(certificate.names)}\n"
        f"  valid until {certificate.not_after:%Y-%m-%d %H:%M} UTC, by {certificate.issuer}\n"
        f"  authority   SHA-256 {folder.authority.read().fingerprint}"
    )


def _check_certificate(folder: ServerFolder) -> None:
    days = folder.server.read().days_left()
    if days < 0:
        raise ValueError(
            f"'{folder.server.certificate}' has expired, so no site can connect. Renew it with: "
            "wardround server renew"
        )
    if days < _SOON_DAYS:
        typer.echo(
            f"WARNING: the server certificate ends in {days} days: wardround server renew",
            err=True,
        )


def _passphrase(*, confirm: bool = False) -> str:
    """Return the passphrase of the authority's key, from the environment or the terminal."""
    given = os.environ.get(PASSPHRASE)
    if given is None:
        given = typer.prompt(
            "Passphrase of ca.key", hide_input=True, confirmation_prompt=confirm
        )
    if not given:
        raise ValueError(
            f"{PASSPHRASE} is empty. Give a passphrase, or leave --encrypt-ca-key out."
        )
    return str(given)
