"""Take part: check the site, run Flower's SuperNode, keep it alive, end on what never heals."""

from __future__ import annotations

import os
import re
import shutil
import socket
import ssl
import sys
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path

from client.findings import Finding, Options
from client.link import Link
from client.preflight import run_checks
from client.preflight_network import check_certificate, check_registered, check_tls
from client.resident import Keeper
from client.site_file import SiteFile
from client.supervisor import Ended, Supervisor, Verdict

# A network that is down at boot comes up; a server that is down comes back. These do not end `join`.
HEALING = frozenset({"address", "tcp"})
# Flower's own exit codes for what a restart cannot change.
_FATAL_EXITS = {
    302: "Flower cannot read the private key. Run: wardround-site check",
    303: "the connection would be plain text, which this site does not do",
    600: "server.address cannot be read by Flower. Correct it in site.yaml",
    604: "a file that Flower was given is not there. Run: wardround-site check",
    606: "the server runs another version of Flower. Install the version the coordinator names",
}
_STILL_ONLINE = "the server still counts this site as online, which ends a minute after an unclean stop"
_TWICE_SECONDS = 180.0
# A server that was restarted knows no site until its coordinator's command has registered them again.
_FORGOTTEN_SECONDS = 900.0


def say(text: str) -> None:
    """One line with the time, for a person or a journal."""
    print(f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S%z} {text}", flush=True)  # noqa: T201 - the terminal


def join(
    path: Path,
    site: SiteFile,
    show: Callable[[Sequence[Finding]], None],
    skip: Collection[str] = (),
    retry_seconds: float = 5.0,
    *,
    resident: bool = True,
) -> int:
    """Run until a signal, which gives 0, or until it makes no sense to go on, which gives 1.

    Args:
        resident: keep libraries, model and texts in a process of their own between messages.

    Raises:
        ValueError: `skip` names no check, or a path cannot be handed to Flower.
    """
    configuration = node_config(path)
    findings = run_checks(site, Options(), skip)
    show(findings)
    lasting = [finding for finding in findings if finding.state == "problem" and finding.check not in HEALING]
    if lasting:
        say(f"not ready: {', '.join(finding.check for finding in lasting)}. Nothing was started.")
        return 1
    with ExitStack() as stack:
        environment = node_environment(site)
        if resident:
            environment |= _start_resident(stack)
        supervisor = Supervisor(
            lambda: node_command(site, configuration),
            environment,
            Judge(site),
            say,
            retry_seconds=retry_seconds,
        )
        say(f"joining {site.server_address} as {site.name}")
        verdict = supervisor.run()
    if verdict is None:
        say("left; no process of this site is running")
        return 0
    say(f"ended: {verdict.reason}")
    return 1


def _start_resident(stack: ExitStack) -> dict[str, str]:
    """What Flower's processes must be told to find a resident process; nothing where there can be none."""
    try:
        return stack.enter_context(Keeper(say)).environment
    except OSError as error:
        say(
            f"no resident process can be kept here ({error}), so every message loads the model anew. Set "
            "TMPDIR to a folder with a short path that this user may write, or use --no-resident."
        )
        return {}


def node_config(path: Path) -> str:
    """What the client app is told: where the site file is. Raises ValueError if Flower cannot read it."""
    text = str(path.expanduser().absolute())
    if re.search(r"[\"'\\\n]", text):
        raise ValueError(
            f"--site is {text}; Flower takes no path with quotes or backslashes. Move the folder."
        )
    return f'site-file="{text}"'


def node_command(site: SiteFile, configuration: str) -> list[str]:
    """The command line of the SuperNode: with TLS and the site's key, and no packages on demand.

    (That is what Flower does unless `--allow-runtime-dependency-installation` is given.)
    """
    return [
        find_supernode(),
        *("--superlink", site.server_address),
        *("--root-certificates", str(site.ca)),
        *("--auth-supernode-private-key", str(site.private_key)),
        *("--node-config", configuration),
        *("--isolation", "subprocess"),
        *("--host", "127.0.0.1", "--port", str(_free_port())),
    ]


def find_supernode() -> str:
    """The SuperNode of this installation; of the PATH only where this one has none. Raises ValueError."""
    beside = Path(sys.executable).with_name("flower-supernode")
    found = str(beside) if beside.is_file() else shutil.which("flower-supernode")
    if found is None:
        raise ValueError("flower-supernode is not installed. Run: pip install 'flwr==1.39.*'")
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def node_environment(site: SiteFile) -> dict[str, str]:
    """The environment of the SuperNode: it tells nobody about itself, and talks to itself without a proxy."""
    environment = dict(os.environ)
    environment |= {
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONUNBUFFERED": "1",
        # Flower starts further programs of its own by name.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
    }
    for name in ("no_proxy", "NO_PROXY"):
        environment[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1", "localhost"]))
    if site.model is not None:
        environment["HF_HUB_OFFLINE"] = "1"
    return environment


class Judge:
    """Says whether a SuperNode that ended is started again, from its words and from the server's."""

    def __init__(self, site: SiteFile, timeout_seconds: float = 5.0) -> None:
        self._site, self._timeout = site, timeout_seconds
        self._accepted = False
        self._refused_since: float | None = None

    def __call__(self, ended: Ended) -> Verdict:
        """Look at how it ended, then ask the server anew."""
        if ended.connected:
            self._accepted, self._refused_since = True, None
        exit_code = flower_exit_code(ended.lines)
        if exit_code in _FATAL_EXITS:
            return Verdict("end", _FATAL_EXITS[exit_code])
        link = Link(self._site, self._timeout)
        if link.reached is not None:
            return Verdict(
                "restart", f"the server cannot be reached ({link.reached.strerror or link.reached})"
            )
        if _is_broken_off(link.handshake.error):
            return Verdict("restart", "the server, or what stands before it, broke the TLS greeting off")
        for check in (check_certificate, check_tls):
            finding = check(link)
            if finding.state == "problem":
                return Verdict("end", f"{finding.message}. {finding.next_step}")
        return self._by_answer(link, ended)

    def _by_answer(self, link: Link, ended: Ended) -> Verdict:
        try:
            kind = link.answer.kind
        except ValueError as error:
            return Verdict("end", str(error))
        if kind == "unregistered":
            if self._accepted and self._refused_for() < _FORGOTTEN_SECONDS:
                return Verdict(
                    "restart", "the server was restarted and does not know this site yet", soon=True
                )
            finding = check_registered(link)
            return Verdict("end", f"{finding.message}. {finding.next_step}")
        if kind == "version":
            return Verdict("end", f"{link.answer.detail} {_FATAL_EXITS[606]}")
        if kind == "wrong_time":
            return Verdict("restart", "the server refuses this machine's time; correct its clock (NTP)")
        if kind == "registered" and not ended.connected and flower_exit_code(ended.lines) == 305:
            twice = self._refused_for() > _TWICE_SECONDS
            more = "; by now it must be another machine or process that uses this site's key" if twice else ""
            return Verdict("restart", _STILL_ONLINE + more, soon=True)
        self._refused_since = None
        return Verdict("restart", f"the node ended ({_how(ended.returncode)})")

    def _refused_for(self) -> float:
        """Seconds since the server first said no."""
        now = time.monotonic()
        self._refused_since = self._refused_since or now
        return now - self._refused_since


def _is_broken_off(error: OSError | None) -> bool:
    """Whether a handshake ended without a word about certificates, as while a server starts or ends."""
    if error is None or error.filename is not None:
        return False
    return isinstance(error, ssl.SSLEOFError) or not isinstance(error, ssl.SSLError)


def flower_exit_code(lines: Collection[str]) -> int | None:
    """The code Flower wrote when it ended (the process itself says 1 for all of them)."""
    found = [match for line in lines if (match := re.search(r"Exit Code: (\d+)", line))]
    return int(found[-1].group(1)) if found else None


def _how(returncode: int) -> str:
    return f"killed by signal {-returncode}" if returncode < 0 else f"exit code {returncode}"
