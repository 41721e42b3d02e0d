"""`wardround server`: the coordinator's commands."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from server.deployment.folder import ServerFolder

DEFAULT_FOLDER = Path("wardround-server")
PASSPHRASE = "WARDROUND_CA_PASSPHRASE"
_SOON_DAYS = 30

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Run the coordinator's server: certificates, the SuperLink, and the sites that may connect.",
)
Dir = Annotated[
    Path,
    typer.Option(
        "--dir",
        envvar="WARDROUND_SERVER_DIR",
        show_envvar=False,
        help="The server folder; else the environment's WARDROUND_SERVER_DIR.",
    ),
]
_DAYS_HELP = "Days that the server certificate is valid."


@app.command(
    help="Make a server folder: certificate authority, server certificate, signing key, addresses.",
    epilog=f"""\b
Examples:
  wardround server init --name fl.example.org
  wardround server init --name fl.example.org --name 10.1.2.3 --days 730 --dir ./trial-server
  wardround server init --name fl.example.org --encrypt-ca-key

Nobody needs ca.key until the certificate is renewed: encrypt it, or keep it elsewhere. The passphrase is
asked for, or taken from the environment's {PASSPHRASE}.""",
)
def init(
    names: Annotated[
        list[str],
        typer.Option(
            "--name", help="DNS name or IP address by which sites reach the server; may be repeated."
        ),
    ],
    days: Annotated[int, typer.Option("--days", help=_DAYS_HELP)] = 365,
    path: Dir = DEFAULT_FOLDER,
    fleet_host: Annotated[
        str, typer.Option("--fleet-host", help="Where sites are listened for.")
    ] = "0.0.0.0",
    fleet_port: Annotated[int, typer.Option("--fleet-port", help="The one port that sites need.")] = 9092,
    control_host: Annotated[
        str, typer.Option("--control-host", help="Where commands are listened for; never the sites' network.")
    ] = "127.0.0.1",
    control_port: Annotated[int, typer.Option("--control-port", help="Port for commands.")] = 8000,
    encrypt: Annotated[
        bool, typer.Option("--encrypt-ca-key", help="Keep ca.key encrypted with a passphrase.")
    ] = False,
) -> None:
    """Make everything, then say what it is."""
    from server.deployment.folder import Addresses, ServerFolder

    addresses = Addresses(tuple(names), fleet_host, fleet_port, control_host, control_port)
    folder = ServerFolder.create(path, addresses, days, _passphrase(confirm=True) if encrypt else "")
    typer.echo(_described(folder))
    if not encrypt:
        typer.echo(
            f"WARNING: '{folder.authority.key}' is not encrypted: who reads it can pose as this server. Keep "
            "it elsewhere until `wardround server renew`, or make the folder with --encrypt-ca-key.",
            err=True,
        )
    typer.echo("Next: wardround server up, and for each site: wardround server invite NAME")


@app.command(
    help="Make a new server certificate from the same authority; sites change nothing.",
    epilog="""\b
Examples:
  wardround server renew
  wardround server renew --days 730

Restart the server afterwards.""",
)
def renew(
    days: Annotated[int, typer.Option("--days", help=_DAYS_HELP)] = 365, path: Dir = DEFAULT_FOLDER
) -> None:
    """Renew."""
    from server.deployment.certificates import is_encrypted
    from server.deployment.folder import ServerFolder

    folder = ServerFolder(path)
    is_locked = folder.authority.key.exists() and is_encrypted(folder.authority.key)
    folder.renew(days, _passphrase() if is_locked else "")
    typer.echo(_described(folder))


@app.command(
    help="Serve, until stopped: sites connect over TLS with registered keys.",
    epilog="""\b
Examples:
  wardround server up
  wardround server up --health 127.0.0.1:9098

Runs in the foreground; stop it with Ctrl-C or SIGTERM. Sites that are registered or unregistered meanwhile
count at once.""",
)
def up(
    path: Dir = DEFAULT_FOLDER,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="No TLS, and any node may connect. For trials on one machine.")
    ] = False,
    health: Annotated[
        str | None,
        typer.Option("--health", metavar="HOST:PORT", help="Serve Flower's gRPC health check there."),
    ] = None,
) -> None:
    """Look before, then become the SuperLink."""
    from server.deployment import superlink
    from server.deployment.folder import ServerFolder

    folder = ServerFolder(path)
    superlink.check_ports(folder)
    if insecure:
        typer.echo("WARNING: --insecure: nothing is encrypted, and any node may connect.", err=True)
    else:
        _check_certificate(folder)
        typer.echo(_described(folder), err=True)
    typer.echo(
        f"sites connect to port {folder.addresses.fleet_port}; commands to {folder.addresses.control}",
        err=True,
    )
    superlink.serve(folder, insecure=insecure, health_address=health)


@app.command(
    help="Write the file with which a site makes its own: address, certificate authority, signing key.",
    epilog="""\b
Examples:
  wardround server invite st-mary --labels cardiology,surgery
  wardround server invite st-mary --address 10.1.2.3:9092

Send the file; nothing in it is secret. Compare its fingerprint with the site by telephone.""",
)
def invite(
    site: Annotated[str, typer.Argument(metavar="SITE")],
    address: Annotated[
        str | None,
        typer.Option("--address", metavar="HOST:PORT", help="Where this site dials, if elsewhere."),
    ] = None,
    labels: Annotated[
        str, typer.Option("--labels", metavar="A,B,C", help="The consortium's label names, in their order.")
    ] = "",
    path: Dir = DEFAULT_FOLDER,
) -> None:
    """Invite."""
    from server.deployment.folder import ServerFolder
    from server.deployment.registration import invite_site

    names = [name.strip() for name in labels.split(",")] if labels else []
    file, fingerprint = invite_site(ServerFolder(path), site, address=address, labels=names)
    typer.echo(f"SEND to {site}:  {file}\n  its fingerprint is  {fingerprint}")
    typer.echo(
        "  read it out by telephone; the site sees the same one at `wardround-site init --invitation`."
    )
    typer.echo(f"Next, with its answer: wardround server register {site} registration.json")


@app.command(
    help="Let a site in, with its answer to the invitation. Holds at once, also while the server runs.",
    epilog="""\b
Examples:
  wardround server register st-mary ./registration.json
  wardround server register st-mary ./registration.json --max-examples 5000

Compare the fingerprint with the site by telephone.""",
)
def register(
    site: Annotated[str, typer.Argument(metavar="SITE")],
    answer: Annotated[Path, typer.Argument(metavar="FILE", help="The site's registration.json.")],
    max_examples: Annotated[
        int | None,
        typer.Option("--max-examples", help="The most texts it may claim to train on in a round."),
    ] = None,
    path: Dir = DEFAULT_FOLDER,
) -> None:
    """Register."""
    from server.deployment.folder import ServerFolder
    from server.deployment.registration import register_site

    _, fingerprint = register_site(ServerFolder(path), site, answer, max_examples=max_examples)
    bound = "" if max_examples is None else f", with at most {max_examples} texts a round"
    typer.echo(f"{site} may connect{bound}. The fingerprint of its registration is {fingerprint}")


@app.command(
    help="Let a site in no more, from now on: the server forgets its keys and drops its node.",
    epilog="""\b
Examples:
  wardround server unregister st-mary""",
)
def unregister(site: Annotated[str, typer.Argument(metavar="SITE")], path: Dir = DEFAULT_FOLDER) -> None:
    """Unregister."""
    from server.deployment.folder import ServerFolder
    from server.deployment.registration import unregister_site

    unregister_site(ServerFolder(path), site)
    typer.echo(f"{site} can connect no more, and its invitation is void")


@app.command(
    "rotate-key",
    help="Put a new signing key in the present one's place; every site has to be told.",
    epilog="""\b
Examples:
  wardround server rotate-key

Send rotation.json to every site; each trusts the new key with `wardround-site trust`. Do it between runs: a
site that trusts the new key answers no run of the old one. Where the old key may be in other hands, that file
proves nothing: delete signing.key, make a new one with this command, and invite every site anew.""",
)
def rotate_key(path: Dir = DEFAULT_FOLDER) -> None:
    """Rotate."""
    from server.deployment.folder import ServerFolder
    from server.deployment.registration import rotate_key as rotate

    rotated = rotate(ServerFolder(path))
    if rotated is None:
        typer.echo("The first signing key is made. Next, for each site: wardround server invite NAME")
        return
    file, fingerprint = rotated
    typer.echo(f"SEND to every site:  {file}\n  its fingerprint is  {fingerprint}")
    typer.echo("  read it out by telephone: wardround-site trust rotation.json --fingerprint SHA256:...")


@app.command(
    help="List the sites that may connect, whether they are online, and what of them was refused.",
    epilog="""\b
Examples:
  wardround server sites
  wardround server sites --dir ./trial-server""",
)
def sites(path: Dir = DEFAULT_FOLDER) -> None:
    """List."""
    from server.deployment import superlink
    from server.deployment.folder import ServerFolder

    folder = ServerFolder(path)
    registered = folder.sites()
    states: dict[str, superlink.NodeState] = {}
    try:
        states = superlink.fleet_states(folder) if registered else {}
    except superlink.SuperLinkError as error:
        typer.echo(str(error), err=True)
    for name, site in registered.items():
        state = states.get(name)
        refused = sum(state.refused.values()) if state else 0
        notes = [] if site.max_examples is None else [f"at most {site.max_examples} texts a round"]
        notes += [f"{refused} calls refused"] if refused else []
        typer.echo(
            "  ".join((f"{name:<20}", f"{state.status if state else '?':<10}", site.fingerprint, *notes))
        )
    if not registered:
        typer.echo("no site is registered yet. Next: wardround server invite SITE")


def _described(folder: ServerFolder) -> str:
    from server.deployment.certificates import describe

    said = describe(folder.server.certificate)
    return (
        f"server certificate for {', '.join(said.names)}\n"
        f"  valid until {said.not_after:%Y-%m-%d %H:%M} UTC, by {said.issuer}\n"
        f"  authority   SHA-256 {describe(folder.authority.certificate).fingerprint}"
    )


def _check_certificate(folder: ServerFolder) -> None:
    from server.deployment.certificates import describe

    days = describe(folder.server.certificate).days_left()
    if days < 0:
        raise ValueError(
            f"'{folder.server.certificate}' has expired, so no site would connect. Renew it with: "
            "wardround server renew"
        )
    if days < _SOON_DAYS:
        typer.echo(f"WARNING: the server certificate ends in {days} days: wardround server renew", err=True)


def _passphrase(*, confirm: bool = False) -> str:
    """Of the authority's key: from the environment, or asked for."""
    given = os.environ.get(PASSPHRASE)
    if given is None:
        given = typer.prompt("Passphrase of ca.key", hide_input=True, confirmation_prompt=confirm)
    if not given:
        raise ValueError(f"{PASSPHRASE} is empty. Give a passphrase, or leave --encrypt-ca-key out.")
    return given
