"""`docker compose up` for real: to its end, a client killed on the way, and what a client can reach."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from tests.e2e.processes import wait_for

ROOT = Path(__file__).resolve().parent.parent.parent
CLIENTS = [f"client-{number}" for number in range(1, 5)]
# The first build fetches PyTorch.
BUILD_SECONDS = 1500.0
RUN_SECONDS = 900.0
FLEET, CONTROL = 9092, 8000
ENGINE = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(2700)]

# Runs in a client's container. Argument: JSON of {name: [host, port]}. Prints what it found as JSON.
PROBE = """
import json, os, socket, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

def reaches(place):
    try:
        socket.create_connection(tuple(place), 3).close()
    except OSError:
        return False
    return True

def writes(folder):
    try:
        (Path(folder) / "probe").write_text("")
    except OSError:
        return False
    return True

places = json.loads(sys.argv[1])
with ThreadPoolExecutor(32) as pool:
    reached = dict(zip(places, pool.map(reaches, places.values())))
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines())
folders = ["/", "/site", "/opt/wardround", "/wardround", "/etc", "/usr", "/tmp"]
print(json.dumps({
    "reached": sorted(name for name in reached if reached[name]),
    "user": os.getuid(),
    "capabilities": int(status["CapEff"], 16) | int(status["CapBnd"], 16),
    "no_new_privileges": status["NoNewPrivs"],
    "written": [folder for folder in folders if writes(folder)],
    "site": sorted(os.listdir("/site")),
    "others": [path for path in ("/server", "/authority", "/sites", "/outputs") if os.path.exists(path)],
}))
"""


@dataclass
class Stack:
    """A copy of the project with its containers."""

    folder: Path
    ups: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def compose(self, *words: str, seconds: float = 120.0) -> str:
        """What `docker compose WORDS` prints; fails the test if it fails."""
        done = subprocess.run(
            ["docker", "compose", *words],
            cwd=self.folder,
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        assert done.returncode == 0, f"docker compose {words[0]}: {done.stdout[-4000:]}{done.stderr[-4000:]}"
        return done.stdout

    def up(self, *options: str, overrides: str = "") -> subprocess.Popen[bytes]:
        """Start the documented command, which ends with the run and its exit code."""
        words = ["docker", "compose", "up", *options, "--attach", "run", "--exit-code-from", "run"]
        with (self.folder / "up.log").open("ab") as log:
            environment = self._environment() | {"OVERRIDES": overrides}
            self.ups.append(subprocess.Popen(words, cwd=self.folder, env=environment, stdout=log, stderr=log))
        return self.ups[-1]

    def _environment(self) -> dict[str, str]:
        # A project of its own: a federation that someone runs on this machine is left alone.
        return os.environ | {"COMPOSE_PROJECT_NAME": f"wardround-test-{os.getpid()}"}

    def health(self) -> dict[str, str]:
        """Health by service, of those that run and have one."""
        lines = self.compose("ps", "--format", "json").splitlines()
        found = [item for line in lines for item in _as_list(json.loads(line))]
        return {item["Service"]: item["Health"] for item in found if item["Health"]}

    def inspect(self, service: str) -> Any:
        """All that the engine knows of a service's container."""
        container = self.compose("ps", "--all", "--quiet", service).strip()
        found = subprocess.run(["docker", "inspect", container], capture_output=True, check=True)
        return json.loads(found.stdout)[0]

    def addresses(self, service: str) -> dict[str, str]:
        """Its IP address in each network, by the network's name in the compose file."""
        networks = self.inspect(service)["NetworkSettings"]["Networks"]
        return {name.rpartition("_")[2]: facts["IPAddress"] for name, facts in networks.items()}

    def end(self, up: subprocess.Popen[bytes], seconds: float) -> int:
        """Wait for the run's end; returns the exit code."""
        try:
            return up.wait(seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f"not over after {seconds:g} s: {self.log()}")

    def log(self) -> str:
        """The end of what was printed so far."""
        return (self.folder / "up.log").read_text(errors="replace")[-4000:]

    def close(self) -> None:
        """Leave no container, network or volume."""
        for up in self.ups:
            if up.poll() is None:
                up.kill()
                up.wait()
        self.compose("down", "--volumes", "--timeout", "5", "--remove-orphans")


def _as_list(read: Any) -> list[Any]:
    return read if isinstance(read, list) else [read]  # older versions of compose print one list


def _copy_project(target: Path) -> None:
    """What a fresh clone has, as far as it matters here."""
    target.mkdir()
    for name in ("common", "client", "server", "conf", "docker"):
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "constraints.txt", "README.md", "LICENSE", ".dockerignore"):
        shutil.copy(ROOT / name, target / name)
    for path in ROOT.glob("docker-compose*.yml"):
        if path.name != "docker-compose.override.yml":
            shutil.copy(path, target / path.name)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A federation of four on its way; the tests below follow it in their order."""
    folder = tmp_path_factory.mktemp("compose") / "project"
    _copy_project(folder)
    made = Stack(folder)
    try:
        made.compose("build", seconds=BUILD_SECONDS)
        made.up()
        yield made
    finally:
        made.close()


class TestFederation:
    """One federation: isolation while it runs, its results, then a second run with a loss."""

    pytestmark = ENGINE

    def test_all_become_healthy(self, stack: Stack) -> None:
        healthy = dict.fromkeys(["server", *CLIENTS], "healthy")

        def look() -> bool:
            assert stack.ups[0].poll() is None, stack.log()
            return stack.health() == healthy

        wait_for(look, 300, "all containers to be healthy")

    def test_a_client_reaches_the_fleet_port_and_nothing_else(self, stack: Stack) -> None:
        server = stack.addresses("server")
        places: dict[str, tuple[str, int]] = {
            "fleet": ("server", FLEET),
            "control": ("server", CONTROL),
            "runtime": ("server", 9091),
            "host": (_gateway(server["site-1"]), 22),
            "outside": ("192.0.2.1", 53),
        }
        for number, client in enumerate(CLIENTS[1:], start=2):
            network = f"site-{number}"
            assert list(stack.addresses(client)) == [network]
            places |= {
                f"{client} by name": (client, FLEET),
                client: (stack.addresses(client)[network], FLEET),
                f"server in {network}": (server[network], FLEET),
                f"control in {network}": (server[network], CONTROL),
            }
        found = self.probe(stack, places)
        assert found["reached"] == ["fleet"]
        # The control port is there, on the server's own loopback.
        look = f"import socket; socket.create_connection(('127.0.0.1', {CONTROL}), 5)"
        stack.compose("exec", "-T", "server", "python", "-c", look)

    def test_a_client_holds_its_own_files_and_no_rights(self, stack: Stack) -> None:
        found = self.probe(stack, {})
        assert found["user"] != 0
        assert found["capabilities"] == 0
        assert found["no_new_privileges"] == "1"
        assert found["written"] == ["/tmp"]
        assert {"site.key", "site.yaml", "texts.csv", "ca.crt"} <= set(found["site"])
        assert found["others"] == []
        for service in ("server", "run", *CLIENTS):
            host = stack.inspect(service)["HostConfig"]
            assert host["ReadonlyRootfs"]
            assert host["CapDrop"] == ["ALL"]
            assert not host["PortBindings"]
        for name in ("/server/ca.key", "/authority"):
            stack.compose("exec", "-T", "server", "sh", "-c", f"! test -e {name}")

    def test_the_run_leaves_its_folder_on_the_host_and_exits_0(self, stack: Stack) -> None:
        assert stack.end(stack.ups[0], RUN_SECONDS) == 0, stack.log()
        run = stack.folder / "outputs" / "compose-k4"
        assert json.loads((run / "status.json").read_text())["state"] == "finished"
        history = _history(run)
        assert [line["round"] for line in history] == [0, 1, 2]
        assert [client["client"] for client in history[-1]["clients"]] == [0, 1, 2, 3]
        assert history[-1]["test"]["accuracy"] > 0.8
        assert history[-1]["model_sha256"] == _model_sha256(run)
        user, _, group = os.environ.get("WARDROUND_USER", "1000:1000").partition(":")
        for path in (run, run / "history.jsonl", run / "model" / "config.json"):
            assert (path.stat().st_uid, path.stat().st_gid) == (int(user), int(group))

    def test_the_run_goes_on_without_a_killed_client(self, stack: Stack) -> None:
        key = "strategy.on_missing=continue strategy.min_sites=3"
        up = stack.up(overrides=f"run_dir=outputs/loss {key}")
        run = stack.folder / "outputs" / "loss"

        def in_round_2() -> bool:
            assert up.poll() is None, stack.log()
            live = run / "live.json"
            return live.exists() and json.loads(live.read_text())["round"] == 2

        wait_for(in_round_2, RUN_SECONDS, "round 2")
        stack.compose("kill", "client-4")
        assert stack.end(up, RUN_SECONDS) == 0, stack.log()
        history = _history(run)
        assert [len(line["clients"]) for line in history] == [0, 4, 3]
        assert [client["client"] for client in history[-1]["clients"]] == [0, 1, 2]
        assert history[-1]["model_sha256"] == _model_sha256(run)

    @staticmethod
    def probe(stack: Stack, places: dict[str, tuple[str, int]]) -> Any:
        """What `PROBE` finds in the first client's container."""
        return json.loads(stack.compose("exec", "-T", "client-1", "python", "-c", PROBE, json.dumps(places)))


def _gateway(address: str) -> str:
    """Docker gives the machine itself the first address of a network, if any."""
    return f"{address.rpartition('.')[0]}.1"


def _history(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]


def _model_sha256(run: Path) -> str:
    """The hash of the model that was left, by the rule of the run folder's contract."""
    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(run / "model" / "model.safetensors").items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensor, dtype="<f4").tobytes())
    return digest.hexdigest()


# --- how many clients -------------------------------------------------------------------------------------


def clients_sh(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run docker/clients.sh of a copy below `folder`."""
    script = folder / "docker" / "clients.sh"
    if not script.exists():
        script.parent.mkdir()
        shutil.copy(ROOT / "docker" / "clients.sh", script)
    return subprocess.run(["sh", str(script), *words], capture_output=True, text=True, check=False)


def override(folder: Path) -> Any:
    """What it wrote."""
    return yaml.safe_load((folder / "docker-compose.override.yml").read_text())


@pytest.mark.parametrize("clients", [5, 32])
def test_more_clients_each_have_their_own_network_and_volume(clients: int, tmp_path: Path) -> None:
    assert clients_sh(tmp_path, str(clients)).returncode == 0
    written = override(tmp_path)
    added = [f"site-{number}" for number in range(5, clients + 1)]
    services = written["services"]
    assert [service["environment"] for service in (services["init"], services["run"])] == [
        {"CLIENTS": str(clients)},
        {"CLIENTS": str(clients)},
    ]
    assert services["server"]["networks"] == added
    assert list(written["networks"]) == list(written["volumes"]) == added
    assert all(network["internal"] for network in written["networks"].values())
    subnets = [network["ipam"]["config"][0]["subnet"] for network in written["networks"].values()]
    assert len(set(subnets)) == len(added)
    for site in added:
        client = services[site.replace("site", "client")]
        assert client["networks"] == [site]
        assert client["volumes"] == [f"{site}:/site:ro"]
        assert "build" not in client
        assert client["pull_policy"] == "never"


def test_fewer_clients_are_left_out(tmp_path: Path) -> None:
    assert clients_sh(tmp_path, "2", "--gpu").returncode == 0
    services = override(tmp_path)["services"]
    assert services["client-3"] == services["client-4"] == {"profiles": ["left-out"]}
    devices = [
        services[f"client-{number}"]["deploy"]["resources"]["reservations"]["devices"] for number in (1, 2)
    ]
    assert [device["device_ids"] for (device,) in devices] == [["0"], ["1"]]


def test_four_is_what_stands_in_the_compose_file(tmp_path: Path) -> None:
    clients_sh(tmp_path, "8")
    assert clients_sh(tmp_path, "4").returncode == 0
    assert not (tmp_path / "docker-compose.override.yml").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the number of clients is ''"),
        (["0"], "from 1 to 32"),
        (["33"], "33 clients are more than 32"),
        (["four"], "the number of clients is 'four'"),
        (["8", "--cpu"], "'--cpu' is unknown"),
    ],
)
def test_wrong_numbers_are_refused(words: Sequence[str], message: str, tmp_path: Path) -> None:
    done = clients_sh(tmp_path, *words)
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "docker-compose.override.yml").exists()


def test_someone_elses_override_file_is_kept(tmp_path: Path) -> None:
    mine = tmp_path / "docker-compose.override.yml"
    mine.write_text("services: {}\n")
    done = clients_sh(tmp_path, "8")
    assert done.returncode == 2
    assert "was not made by this script" in done.stderr
    assert mine.read_text() == "services: {}\n"
