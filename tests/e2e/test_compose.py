"""`docker compose up`: a whole run, a client that is killed, and the places a client can reach."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.e2e.containers import Stack, copy_project
from tests.e2e.processes import wait_for

CLIENTS = [f"client-{number}" for number in range(1, 5)]
# The first build fetches PyTorch.
BUILD_SECONDS = 1500.0
RUN_SECONDS = 900.0
FLEET, CONTROL = 9092, 8000
ENGINE = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(2700)]

# Runs in a client's container. Argument: JSON of {name: [host, port]}. Prints JSON.
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
folders = ["/", "/site", "/site/state", "/opt/wardround", "/wardround", "/etc", "/usr", "/tmp"]
print(json.dumps({
    "reached": sorted(name for name in reached if reached[name]),
    "user": os.getuid(),
    "capabilities": int(status["CapEff"], 16) | int(status["CapBnd"], 16),
    "no_new_privileges": status["NoNewPrivs"],
    "written": [folder for folder in folders if writes(folder)],
    "site": sorted(os.listdir("/site")),
    "others": list(filter(os.path.exists, ("/server", "/authority", "/sites", "/outputs"))),
}))
"""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A federation of four on its way; the tests below follow it in their order."""
    folder = tmp_path_factory.mktemp("compose") / "project"
    copy_project(folder)
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

    def test_a_client_reaches_the_fleet_port_and_nothing_else(
        self, stack: Stack
    ) -> None:
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
        assert found["written"] == ["/site/state", "/tmp"]
        assert {"site.key", "signing.key", "site.yaml", "texts.csv", "ca.crt"} <= set(
            found["site"]
        )
        assert found["others"] == []
        for service in ("server", "run", *CLIENTS):
            host = stack.inspect(service)["HostConfig"]
            assert host["ReadonlyRootfs"]
            assert host["CapDrop"] == ["ALL"]
            assert not host["PortBindings"]
        for name in ("/server/ca.key", "/authority", "/sites"):
            stack.compose("exec", "-T", "server", "sh", "-c", f"! test -e {name}")

    def test_the_run_leaves_its_folder_on_the_host_and_exits_0(
        self, stack: Stack
    ) -> None:
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
        return json.loads(
            stack.compose(
                "exec", "-T", "client-1", "python", "-c", PROBE, json.dumps(places)
            )
        )


def _gateway(address: str) -> str:
    """Docker gives the machine itself the first address of a network, if any."""
    return f"{address.rpartition('.')[0]}.1"


def _history(run: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()
    ]


def _model_sha256(run: Path) -> str:
    """The hash of the model that was left, by the rule of the run folder's contract.

    The hash of the embeddings, which are frozen, comes before the tensors that were trained.
    """
    tensors = load_file(run / "model" / "model.safetensors")
    frozen = {
        name: tensor for name, tensor in tensors.items() if ".embeddings." in name
    }
    trained = {name: tensor for name, tensor in tensors.items() if name not in frozen}
    assert frozen
    return _sha256_of(trained, first=_sha256_of(frozen))


def _sha256_of(tensors: dict[str, np.ndarray], first: str = "") -> str:
    digest = hashlib.sha256(first.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensor, dtype="<f4").tobytes())
    return digest.hexdigest()
