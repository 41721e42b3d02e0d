"""`wardround-site join` as a program: what it starts, when it starts again, when it ends, what it leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from client.greeting import greet
from client.site_file import SiteFile, write_site_file
from tests.site_door import QUICK, command_line, environment, site_command
from tests.site_lab import Fleet, fleet_server, free_port, make_certificates, make_site


@dataclass
class World:
    """A site in `folder`, its server, and a place for a fake SuperNode."""

    folder: Path
    site: SiteFile
    fleet: Fleet

    def fake(self, body: str) -> Path:
        """A program in the SuperNode's place; `run` is how often it was started, from 1."""
        path = self.folder / "fake-supernode"
        path.write_text(
            f"#!{sys.executable}\nimport json, os, signal, subprocess, sys, time\n"
            f"folder = {str(self.folder)!r}\n"
            "with open(folder + '/starts', 'a') as log: log.write(f'{os.getpid()}\\n')\n"
            "run = len(open(folder + '/starts').readlines())\n"
            "def say(text): print(text, flush=True)\n" + body
        )
        path.chmod(0o755)
        return path

    def starts(self) -> list[int]:
        """Process ids of all starts."""
        log = self.folder / "starts"
        return [int(line) for line in log.read_text().split()] if log.exists() else []


@pytest.fixture
def world(tmp_path: Path, tiny_texts: Path) -> Iterator[World]:
    """With a server that knows the site's key."""
    fleet = Fleet()
    with fleet_server(make_certificates(tmp_path), fleet) as port:
        site = make_site(tmp_path, port, tiny_texts)
        write_site_file(site, tmp_path / "site.yaml")
        yield World(tmp_path, site, fleet)


def test_join_starts_nothing_where_the_site_is_not_ready(world: World) -> None:
    world.fleet.code = 2004
    done = site_command("join", *QUICK, folder=world.folder, fake=world.fake(""))
    assert done.returncode == 1
    assert "not ready: registered. Nothing was started." in done.stdout
    assert world.starts() == []


def test_join_restarts_after_a_crash_and_leaves_no_process(world: World) -> None:
    fake = world.fake(
        "json.dump([sys.argv[1:], dict(os.environ)], open(folder + '/seen', 'w'))\n"
        "say(f'SuperNode ID: {run}')\n"
        "if run == 1: os.kill(os.getpid(), signal.SIGKILL)\n"
        "child = subprocess.Popen(['sleep', '600'])\n"
        "open(folder + '/child', 'w').write(f'{child.pid} ')\n"
        "say('at work')\ntime.sleep(600)\n"
    )
    words = command_line("join", *QUICK, "--retry-seconds", "0.1", fake=fake)
    with subprocess.Popen(
        words, cwd=world.folder, env=environment(), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        told = []
        for line in process.stdout:
            told.append(line)
            if "at work" in line:
                process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    said = "".join(told)
    assert "the node ended (killed by signal 9); starting again in 0 s" in said
    assert "SIGTERM: telling the node to leave" in said
    assert "left; no process of this site is running" in said
    pids = [*world.starts(), int((world.folder / "child").read_text())]
    assert len(pids) == 3
    assert not [pid for pid in pids if is_alive(pid)]
    words, seen = json.loads((world.folder / "seen").read_text())
    assert "--insecure" not in words
    assert "--allow-runtime-dependency-installation" not in words
    given = dict(zip(words[::2], words[1::2], strict=True))
    assert given.pop("--port").isdecimal()
    assert given == {
        "--superlink": world.site.server_address,
        "--root-certificates": str(world.site.ca),
        "--auth-supernode-private-key": str(world.site.private_key),
        "--node-config": f'site-file="{world.folder}/site.yaml"',
        "--isolation": "subprocess",
        "--host": "127.0.0.1",
    }
    assert (seen["FLWR_TELEMETRY_ENABLED"], seen["no_proxy"]) == ("0", "127.0.0.1,localhost")


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ("say('Exit Code: 302')", "Flower cannot read the private key"),
        ("say('Exit Code: 606')", "another version of Flower"),
    ],
)
def test_join_ends_on_what_never_heals(lines: str, told: str, world: World) -> None:
    fake = world.fake(f"{lines}\nsys.exit(1)\n")
    done = site_command("join", *QUICK, "--retry-seconds", "0.1", folder=world.folder, fake=fake)
    assert (done.returncode, told in done.stdout) == (1, True), done.stdout
    assert len(world.starts()) == 1


def is_alive(pid: int) -> bool:
    """Whether the process runs; one that has ended and waits to be buried does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


@pytest.mark.slow
@pytest.mark.e2e
def test_a_real_server_tells_registered_from_unregistered_and_activates_nothing(
    tmp_path: Path, tiny_texts: Path
) -> None:
    """Pins what `client/greeting.py` builds on in Flower."""
    from server.deployment import superlink
    from server.deployment.registration import register_site
    from server.deployment.server_folder import Addresses, ServerFolder

    addresses = Addresses(("localhost",), "127.0.0.1", free_port(), "127.0.0.1", free_port())
    folder = ServerFolder.create(tmp_path / "server", addresses)
    folder.write_flower_config(insecure=False)
    site = make_site(tmp_path, addresses.fleet_port, tiny_texts, ca=folder.authority.certificate)
    server = subprocess.Popen(
        superlink.command(folder, insecure=False), env=superlink.environment(folder), start_new_session=True
    )
    try:
        until = time.monotonic() + 60
        while greet(site, 2.0).kind == "unreachable" and time.monotonic() < until:
            time.sleep(0.5)
        assert greet(site, 5.0).kind == "unregistered"
        node_id = register_site(folder, site.name, site.public_key).node_id
        assert greet(site, 5.0).kind == "registered"
        assert superlink.node_states(folder)[node_id].status == "registered"  # never online
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)
