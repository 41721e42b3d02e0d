"""`wardround server`: the coordinator's commands."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from server.deployment.server_folder import ServerFolder

DEFAULT_FOLDER = Path("wardround-server")
_UP_SECONDS = 120.0
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
    help="Make a server folder: certificate authority, server certificate, addresses.",
    epilog="""\b
Examples:
  wardround server init --name fl.example.org
  wardround server init --name fl.example.org --name 10.1.2.3 --days 730 --dir ./trial-server

Give each site the file ca.crt. Keep ca.key and server.key here.""",
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
) -> None:
    """Make everything, then say what it is."""
    from server.deployment.server_folder import Addresses, ServerFolder

    addresses = Addresses(tuple(names), fleet_host, fleet_port, control_host, control_port)
    folder = ServerFolder.create(path, addresses, days)
    typer.echo(_described(folder))
    typer.echo(f"give every site '{folder.authority.certificate}'. Next: wardround server up")


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
    from server.deployment.server_folder import ServerFolder

    folder = ServerFolder(path)
    folder.renew(days)
    typer.echo(_described(folder))


@app.command(
    help="Serve, until stopped: sites connect over TLS with registered keys.",
    epilog="""\b
Examples:
  wardround server up
  wardround server up --health 127.0.0.1:9098

Runs in the foreground; stop it with Ctrl-C or SIGTERM. Registered sites are let in again at each start.""",
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
    from server.deployment.server_folder import ServerFolder

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
    folder.write_flower_config(insecure=insecure)
    _in_background(folder)
    superlink.serve(folder, insecure=insecure, health_address=health)


@app.command(
    help="Let a site in, with the public key it sent.",
    epilog="""\b
Examples:
  wardround server register st-mary ./st-mary.pub

Compare the fingerprint with the site by telephone. The server must be up.""",
)
def register(
    site: Annotated[str, typer.Argument(metavar="SITE")],
    key: Annotated[Path, typer.Argument(metavar="KEY.pub")],
    path: Dir = DEFAULT_FOLDER,
) -> None:
    """Register."""
    from server.deployment.registration import register_site
    from server.deployment.server_folder import ServerFolder

    registered = register_site(ServerFolder(path), site, key)
    typer.echo(f"{site} may connect. Its key is {registered.fingerprint}; node {registered.node_id}")


@app.command(
    help="Let a site in no more.",
    epilog="""\b
Examples:
  wardround server unregister st-mary""",
)
def unregister(site: Annotated[str, typer.Argument(metavar="SITE")], path: Dir = DEFAULT_FOLDER) -> None:
    """Unregister."""
    from server.deployment.registration import unregister_site
    from server.deployment.server_folder import ServerFolder

    unregister_site(ServerFolder(path), site)
    typer.echo(f"{site} can connect no more")


@app.command(
    help="List the sites that may connect, and whether they are online.",
    epilog="""\b
Examples:
  wardround server sites
  wardround server sites --dir ./trial-server""",
)
def sites(path: Dir = DEFAULT_FOLDER) -> None:
    """List."""
    from server.deployment import superlink
    from server.deployment.server_folder import ServerFolder

    folder = ServerFolder(path)
    registered = folder.sites()
    states = superlink.node_states(folder) if registered and superlink.is_up(folder) else None
    if states is None and registered:
        typer.echo(superlink.not_running(folder), err=True)
    for name, site in registered.items():
        state = (
            "?" if states is None else states[site.node_id].status if site.node_id in states else "unknown"
        )
        typer.echo(f"{name:<20}  {state:<10}  {site.fingerprint}  node {site.node_id}")
    if not registered:
        typer.echo("no site is registered yet. Next: wardround server register SITE KEY.pub")


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


def _in_background(folder: ServerFolder) -> None:
    """Register the sites once the SuperLink answers, from a process that is not its child."""
    first = os.fork()
    if first:
        os.waitpid(first, 0)
        return
    serving = os.getppid()
    if os.fork():
        os._exit(0)
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        _register_again(folder, serving)
    finally:
        sys.stderr.flush()
        os._exit(0)


def _register_again(folder: ServerFolder, serving: int) -> None:
    from server.deployment.registration import register_again, wait_until_up
    from server.exchange import RunFailed

    try:
        wait_until_up(folder, _UP_SECONDS, serving)
        names = register_again(folder)
    except (RunFailed, ValueError, OSError) as error:
        typer.echo(f"wardround: registered sites were not let in again: {error}", err=True)
    else:
        let_in = f"; let in again: {', '.join(names)}" if names else ""
        typer.echo(f"wardround: the server is up{let_in}", err=True)
