"""Flower's SuperLink: start it in this process, and ask the running one through Flower's command
line."""

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
from dataclasses import dataclass, replace
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
"""Where Flower's programs stand: those of this installation, not of another one on the PATH."""
_ANSWER_SECONDS = 60.0
_HEALTH_SECONDS = 3.0


class SuperLinkError(RunFailed):
    """The SuperLink does not run, does not answer, or says no."""


@dataclass(frozen=True)
class NodeState:
    """What the server knows of a registered site's node."""

    status: str
    """`registered` (never seen), `online` or `offline`."""
    online_seconds: float
    """How long ago it came online last; 0 for a node never seen."""
    offline_at: str
    """When it was last found gone, in UTC; empty for a node that never was."""
    refused: dict[str, int]
    """Calls of it that were refused, by reason."""


@dataclass(frozen=True)
class RunState:
    """What the SuperLink knows of a run."""

    status: str
    """`pending`, `starting`, `running`, or `finished:` and `completed`, `failed` or `stopped`."""
    details: str

    @property
    def has_ended(self) -> bool:
        """Whether nothing of it runs any more."""
        return self.status.startswith("finished")


def options(
    folder: ServerFolder, *, insecure: bool, health_address: str | None = None
) -> list[str]:
    """Options of Flower's SuperLink that serve this folder, its state in memory."""
    addresses, server = folder.addresses, folder.server
    if insecure:
        words = ["--insecure"]
    else:
        words = [
            "--enable-supernode-auth",
            "--ssl-ca-certfile",
            str(folder.authority.certificate),
        ]
        words += [
            "--ssl-certfile",
            str(server.certificate),
            "--ssl-keyfile",
            str(server.key),
        ]
    words += ["--fleet-api-type", "grpc-rere", "--fleet-api-address", addresses.fleet]
    words += ["--host", addresses.control_host, "--port", str(addresses.control_port)]
    words += ["--isolation", "subprocess", "--disable-runtime-dependency-installation"]
    return (
        words
        if health_address is None
        else [*words, "--health-server-address", health_address]
    )


def environment(folder: ServerFolder) -> dict[str, str]:
    """This process's environment for Flower's programs: own home, own programs first, nobody
    told."""
    new = (
        os.environ
        | {
            "FLWR_HOME": str(folder.flower_home),
            "WARDROUND_SERVER_DIR": str(
                folder.path
            ),  # for the server app, which finds its ticket there
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",  # seconds until a process starts for what has come
            # At INFO the SuperLink prints a line for each of the server app's questions, five a
            # second.
            "FLWR_LOG_LEVEL": os.environ.get("FLWR_LOG_LEVEL", "WARNING"),
            # Flower starts its other programs by name.
            "PATH": os.pathsep.join((str(BIN), os.environ.get("PATH", os.defpath))),
        }
    )
    for name in ("NO_PROXY", "no_proxy"):  # the control port is on this machine
        hosts = (
            new.get(name, ""),
            "localhost",
            "127.0.0.1",
            folder.addresses.control_name,
        )
        new[name] = ",".join(dict.fromkeys(filter(None, hosts)))
    return new


def serve(
    folder: ServerFolder, *, insecure: bool, health_address: str | None = None
) -> NoReturn:
    """Become the SuperLink: signals reach it, and it keeps this process's number."""
    folder.write_flower_config(insecure=insecure)
    words = [
        sys.executable,
        "-P",
        "-m",
        "wardround.server.deployment.fleet",
        str(folder.path),
    ]
    words += options(folder, insecure=insecure, health_address=health_address)
    path = os.pathsep.join(
        filter(None, [str(IMPORT_ROOT), os.environ.get("PYTHONPATH")])
    )
    os.execvpe(words[0], words, environment(folder) | {"PYTHONPATH": path})


def check_ports(folder: ServerFolder) -> None:
    """Raise ValueError where another program listens already."""
    addresses = folder.addresses
    sites = (addresses.fleet_host, addresses.fleet_port)
    commands = (addresses.control_host, addresses.control_port)
    for key, (host, port) in (("fleet", sites), ("control", commands)):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as door:
            door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                door.bind((host, port))
            except OSError as error:
                raise ValueError(
                    f"{key}_host:{key}_port is {host}:{port}, which is not free "
                    f"({error.strerror}). "
                    f"Stop what uses it, or change it in '{folder.path / 'server.yaml'}'."
                ) from None


def is_up(folder: ServerFolder) -> bool:
    """Whether a SuperLink answers at the control address, with this folder's certificate."""
    # Only without TLS there is nothing to verify.
    trusted = not folder.is_insecure and ssl.create_default_context(
        cafile=folder.authority.certificate
    )
    url = f"{'https' if trusted else 'http'}://{folder.addresses.control}/health"
    try:
        answer = httpx.get(
            url, verify=trusted, timeout=_HEALTH_SECONDS, trust_env=False
        )
    except (OSError, httpx.HTTPError):
        return False
    return answer.status_code == httpx.codes.OK


def flower(folder: ServerFolder, *words: str) -> dict[str, Any]:
    """Run `flwr WORDS --format json` and return its answer.

    Raises:
        SuperLinkError: it did not answer within a minute, the SuperLink does not run, or it
            said no.
    """
    asked = f"`flwr {' '.join(words[:2])}`"
    try:
        # A session of its own: Ctrl-C ends a run through `flwr stop`, not by killing a half-sent
        # request.
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
            f"{asked} got no answer within {_ANSWER_SECONDS:g} s. {step}"
        ) from None
    except FileNotFoundError:
        step = "Install Wardround again: pip install wardround"
        raise SuperLinkError(f"'{BIN / 'flwr'}' is missing. {step}") from None
    answer: dict[str, Any] = {}
    with suppress(ValueError):  # there is a banner before it, or no answer at all
        answer = json.loads(done.stdout[done.stdout.index("{") :])
    if answer.get("success"):
        return answer
    if not is_up(folder):
        raise SuperLinkError(not_running(folder))
    said = (
        str(answer.get("error-message", "")) if answer else done.stderr or done.stdout
    )
    lines = [line.strip(" │╭╰─╮╯") for line in said.splitlines()]
    reason = " ".join(
        line for line in lines if line and not line.startswith("Using SuperLink:")
    )
    raise SuperLinkError(f"{asked} failed: {reason}")


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
    """What the running server knows of each registered site, by name.

    Raises:
        SuperLinkError: it does not run.
    """
    if not is_up(folder):
        raise SuperLinkError(not_running(folder))
    if folder.is_insecure or not folder.fleet_file.exists():
        return {}
    now, states = datetime.now(UTC), {}
    for name, told in json.loads(folder.fleet_file.read_text(encoding="utf-8"))[
        "sites"
    ].items():
        states[name] = state = NodeState(told["status"], 0.0, "", told["refused"])
        if state.status == "online":
            since = datetime.fromisoformat(told["online_since"])
            states[name] = replace(
                state, online_seconds=max(0.0, (now - since).total_seconds())
            )
        elif state.status == "offline":
            gone = datetime.fromisoformat(told["offline_at"])
            states[name] = replace(state, offline_at=f"{gone:%Y-%m-%d %H:%M:%S}")
    return states


def start_run(folder: ServerFolder, app: Path, run_config: Mapping[str, str]) -> str:
    """Send the app in `app` out and start it; returns the run id.

    The run config travels in a TOML file: on a command line Flower would cut values at quotes.
    """
    with tempfile.TemporaryDirectory(prefix="wardround-") as temporary:
        file = Path(temporary) / "run.toml"
        lines = (f"{key} = {toml_string(value)}\n" for key, value in run_config.items())
        file.write_text("".join(lines), encoding="utf-8")
        return str(
            flower(folder, "run", str(app), SUPERLINK, "--run-config", str(file))[
                "run-id"
            ]
        )


def run_state(folder: ServerFolder, run_id: str) -> RunState:
    """Where that run stands."""
    (run,) = flower(folder, "list", SUPERLINK, "--run-id", run_id)["runs"]
    details = str(run["status-details"])
    return RunState(str(run["status"]), "" if details == "N/A" else details)


def stop_run(folder: ServerFolder, run_id: str) -> None:
    """End that run."""
    flower(folder, "stop", run_id, SUPERLINK)
