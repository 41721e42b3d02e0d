"""`docker/clients.sh`: how many clients `docker compose up` starts."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent.parent


def clients_sh(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run docker/clients.sh of a copy below `folder`."""
    script = folder / "docker" / "clients.sh"
    if not script.exists():
        script.parent.mkdir()
        shutil.copy(ROOT / "docker" / "clients.sh", script)
    return subprocess.run(
        ["sh", str(script), *words], capture_output=True, text=True, check=False
    )


def override(folder: Path) -> Any:
    """What it wrote."""
    return yaml.safe_load((folder / "docker-compose.override.yml").read_text())


@pytest.mark.parametrize("clients", [5, 32])
def test_more_clients_each_have_their_own_network_and_volume(
    clients: int, tmp_path: Path
) -> None:
    assert clients_sh(tmp_path, str(clients)).returncode == 0
    written = override(tmp_path)
    added = [f"site-{number}" for number in range(5, clients + 1)]
    services = written["services"]
    assert [
        service["environment"] for service in (services["init"], services["run"])
    ] == [
        {"CLIENTS": str(clients)},
        {"CLIENTS": str(clients)},
    ]
    assert services["server"]["networks"] == added
    assert list(written["networks"]) == added
    states = [site.replace("site", "state") for site in added]
    assert sorted(written["volumes"]) == sorted([*added, *states])
    assert all(network["internal"] for network in written["networks"].values())
    subnets = [
        network["ipam"]["config"][0]["subnet"]
        for network in written["networks"].values()
    ]
    assert len(set(subnets)) == len(added)
    for site in added:
        client = services[site.replace("site", "client")]
        assert client["networks"] == [site]
        state = site.replace("site", "state")
        assert client["volumes"] == [f"{site}:/site:ro", f"{state}:/site/state"]
        assert "build" not in client
        assert client["pull_policy"] == "never"


def test_fewer_clients_are_left_out(tmp_path: Path) -> None:
    assert clients_sh(tmp_path, "2", "--gpu").returncode == 0
    services = override(tmp_path)["services"]
    assert services["client-3"] == services["client-4"] == {"profiles": ["left-out"]}
    devices = [
        services[f"client-{number}"]["deploy"]["resources"]["reservations"]["devices"]
        for number in (1, 2)
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
def test_wrong_numbers_are_refused(
    words: Sequence[str], message: str, tmp_path: Path
) -> None:
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
