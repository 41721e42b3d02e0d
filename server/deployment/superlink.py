"""Flower's SuperLink: start it in this process; query it through Flower's command line."""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import httpx

from wardround.common.errors import RunFailed
from wardround.common.places import IMPORT_ROOT
from wardround.server.deployment.folder import (
    SUPERLINK,
    ServerFolder,
    toml_string,
)

BIN = Path(sys.executable).parent
"""Folder of Flower's programs in this installation, not of another one on the PATH."""
_ANSWER_SECONDS = 60.0
_HEALTH_SECONDS = 3.0


class SuperLinkError(RunFailed):
    """The SuperLink does not run, does not answer, or refuses."""


@dataclass(frozen=True)
class NodeState:
    """The state of a registered site's node."""

    status: str
    """`registered` (never seen), `online` or `offline`."""
    online_seconds: float
    """Seconds since it came online; 0 if it is not online."""
    offline_at: str
    """Time at which it was found offline, in UTC; empty if it is not offline."""
    refused: dict[str, int]
    """Number of its calls that were refused, by reason."""


@dataclass(frozen=True)
class RunState:
    """The SuperLink's state of a run."""

    status: str
    """`pending`, `starting`, `running`, or `finished:` and `completed`, `failed` or `stopped`."""
    details: str

    @property
    def has_ended(self) -> bool:
        """True if no part of it runs any more."""
        return self.status.startswith("finished")


def options(
    folder: ServerFolder, *, insecure: bool, health_address: str | None = None
) -> list[str]:
    """Return the options of Flower's SuperLink to serve this folder, with its state in memory."""
    addresses = folder.addresses
    server = folder.server
    if insecure:
        words = ["--insecure"]
    else:
        words = ["--enable-supernode-auth"]
        words += ["--ssl-ca-certfile", str(folder.authority.certificate)]
        words += ["--ssl-certfile", str(server.certificate)]
        words += ["--ssl-keyfile", str(server.key)]
    words += ["--fleet-api-type", "grpc-rere"]
    words += ["--fleet-api-address", addresses.fleet]
    words += ["--host", addresses.control_host]
    words += ["--port", str(addresses.control_port)]
    words += ["--isolation", "subprocess"]
    words += ["--disable-runtime-dependency-installation"]
    if health_address is not None:
        words += ["--health-server-address", health_address]
    return words


def environment(folder: ServerFolder) -> dict[str, str]:
    """Return the environment for Flower's programs: our home and programs, no telemetry."""
    path = os.environ.get("PATH", os.defpath)
    new = {
        **os.environ,
        "FLWR_HOME": str(folder.flower_home),
        # The server app finds its ticket there.
        "WARDROUND_SERVER_DIR": str(folder.path),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        # Seconds between checks for a process to start.
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
        # At INFO the SuperLink prints a line for each call of the server app, five a second.
        "FLWR_LOG_LEVEL": os.environ.get("FLWR_LOG_LEVEL", "WARNING"),
        # Flower starts its other programs by name.
        "PATH": f"{BIN}{os.pathsep}{path}",
    }
    # The control port is on this machine, so no proxy is used for it.
    local = ("localhost", "127.0.0.1", folder.addresses.control_name)
    for name in ("NO_PROXY", "no_proxy"):
        before = new.get(name, "")
        hosts = filter(None, (before, *local))
        new[name] = ",".join(dict.fromkeys(hosts))
    return new


def serve(
    folder: ServerFolder, *, insecure: bool, health_address: str | None = None
) -> NoReturn:
    """Replace this process by the SuperLink, which keeps its process id and receives its
    signals."""
    folder.write_flower_config(insecure=insecure)
    module = "wardround.server.deployment.fleet"
    words = [sys.executable, "-P", "-m", module, str(folder.path)]
    words += options(folder, insecure=insecure, health_address=health_address)
    given = os.environ.get("PYTHONPATH")
    paths = filter(None, [str(IMPORT_ROOT), given])
    variables = environment(folder)
    variables["PYTHONPATH"] = os.pathsep.join(paths)
    os.execvpe(words[0], words, variables)


def check_ports(folder: ServerFolder) -> None:
    """Raise ValueError if another program listens on one of the ports."""
    addresses = folder.addresses
    sites = (addresses.fleet_host, addresses.fleet_port)
    commands = (addresses.control_host, addresses.control_port)
    places = {"fleet": sites, "control": commands}
    for key, (host, port) in places.items():
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((host, port))
            except OSError as error:
                raise ValueError(
                    f"{key}_host:{key}_port is {host}:{port}, which is not free "
                    f"({error.strerror}). Stop the program that uses it, or change it in "
                    f"'{folder.path / 'server.yaml'}'."
                ) from None


def is_up(folder: ServerFolder) -> bool:
    """Return True if a SuperLink with this folder's certificate answers at the control address."""
    scheme = "https"
    verify: bool | ssl.SSLContext = False
    if folder.is_insecure:
        scheme = "http"
    else:
        verify = ssl.create_default_context(cafile=folder.authority.certificate)
    url = f"{scheme}://{folder.addresses.control}/health"
    try:
        answer = httpx.get(url, verify=verify, timeout=_HEALTH_SECONDS, trust_env=False)
    except (OSError, httpx.HTTPError):
        return False
    return answer.status_code == httpx.codes.OK


def flower(folder: ServerFolder, *words: str) -> dict[str, Any]:
    """Run `flwr WORDS --format json` and return its answer.

    Raises:
        SuperLinkError: it did not answer within a minute, the SuperLink does not run, or it
            refused.
    """
    command = f"`flwr {' '.join(words[:2])}`"
    try:
        # In its own session: Ctrl-C ends a run through `flwr stop`, not in the middle of a call.
        done = subprocess.run(
            [str(BIN / "flwr"), *words, "--format", "json"],
            cwd=folder.flower_home,
            env=environment(folder),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=_ANSWER_SECONDS,
            start_new_session=True,
        )
    except subprocess.TimeoutExpired:
        step = f"Look at what `wardround server up` prints for '{folder.path}'."
        raise SuperLinkError(
            f"{command} got no answer within {_ANSWER_SECONDS:g} s. {step}"
        ) from None
    except FileNotFoundError:
        step = "Install Wardround again: pip install wardround"
        raise SuperLinkError(f"'{BIN / 'flwr'}' is missing. {step}") from None
    answer: dict[str, Any] = {}
    # There is a banner before the answer; without an answer `index` raises ValueError.
    with suppress(ValueError):
        start = done.stdout.index("{")
        answer = json.loads(done.stdout[start:])
    if answer.get("success"):
        return answer
    if not is_up(folder):
        raise SuperLinkError(not_running(folder))
    message = done.stderr or done.stdout
    if answer:
        message = str(answer.get("error-message", ""))
    lines = []
    for line in message.splitlines():
        text = line.strip(" │╭╰─╮╯")
        if text and not text.startswith("Using SuperLink:"):
            lines.append(text)
    raise SuperLinkError(f"{command} failed: {' '.join(lines)}")


def not_running(folder: ServerFolder) -> str:
    """What to tell and do when nobody answers."""
    if not folder.is_insecure and folder.server.read().days_left() < 0:
        return (
            f"the server's certificate '{folder.server.certificate}' has expired: nobody trusts "
            f"it any "
            "more. Make another with: wardround server renew, then start again: wardround server up"
        )
    return (
        f"no SuperLink answers at {folder.addresses.control} with the certificate in "
        f"'{folder.path}'. "
        "Start it with: wardround server up"
    )


def fleet_states(folder: ServerFolder) -> dict[str, NodeState]:
    """Return the running server's state of each registered site, by name.

    Raises:
        SuperLinkError: it does not run.
    """
    if not is_up(folder):
        raise SuperLinkError(not_running(folder))
    if folder.is_insecure or not folder.fleet_file.exists():
        return {}
    now = datetime.now(UTC)
    content = json.loads(folder.fleet_file.read_text(encoding="utf-8"))
    states = {}
    for name, site in content["sites"].items():
        online_seconds = 0.0
        offline_at = ""
        if site["status"] == "online":
            since = datetime.fromisoformat(site["online_since"])
            online = now - since
            online_seconds = max(0.0, online.total_seconds())
        elif site["status"] == "offline":
            gone = datetime.fromisoformat(site["offline_at"])
            offline_at = f"{gone:%Y-%m-%d %H:%M:%S}"
        states[name] = NodeState(
            status=site["status"],
            online_seconds=online_seconds,
            offline_at=offline_at,
            refused=site["refused"],
        )
    return states


def start_run(folder: ServerFolder, app: Path, run_config: Mapping[str, str]) -> str:
    """Start a run of the app in `app`; return the run id.

    The run config goes into a TOML file because Flower cuts values at quotes on a command line.
    """
    with tempfile.TemporaryDirectory(prefix="wardround-") as temporary:
        file = Path(temporary) / "run.toml"
        lines = (f"{key} = {toml_string(value)}\n" for key, value in run_config.items())
        file.write_text("".join(lines), encoding="utf-8")
        words = ("run", str(app), SUPERLINK, "--run-config", str(file))
        answer = flower(folder, *words)
    return str(answer["run-id"])


def run_state(folder: ServerFolder, run_id: str) -> RunState:
    """Return the state of a run."""
    answer = flower(folder, "list", SUPERLINK, "--run-id", run_id)
    (run,) = answer["runs"]
    details = str(run["status-details"])
    if details == "N/A":
        details = ""
    return RunState(str(run["status"]), details)


def stop_run(folder: ServerFolder, run_id: str) -> None:
    """Stop a run."""
    flower(folder, "stop", run_id, SUPERLINK)
