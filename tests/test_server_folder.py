"""The coordinator's folder: what is in it, what is refused, what Flower is told."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
import tomllib
from pathlib import Path

import pytest

from server.deployment import registration, superlink
from server.deployment.certificates import describe
from server.deployment.registration import (
    fingerprint_of,
    read_public_key,
    register_again,
    register_site,
    unregister_site,
)
from server.deployment.server_folder import Addresses, ServerFolder, toml_string
from server.deployment.superlink import NodeState
from tests.e2e.processes import write_keys


@pytest.fixture
def folder(tmp_path: Path) -> ServerFolder:
    """A new server folder; nothing runs."""
    return ServerFolder.create(tmp_path / "server", Addresses(("fl.example.org", "10.1.2.3")))


class FakeLink:
    """Stands in for the running SuperLink: knows nodes by number until it is started again."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.nodes: dict[str, str] = {}
        self._next = 100
        monkeypatch.setattr(superlink, "register", self.register)
        monkeypatch.setattr(superlink, "unregister", lambda folder, node_id: self.nodes.pop(node_id))
        states = {"registered": NodeState("registered", 0.0, "N/A")}
        monkeypatch.setattr(
            superlink, "node_states", lambda folder: dict.fromkeys(self.nodes, states["registered"])
        )

    def register(self, folder: ServerFolder, public_key: str) -> str:
        self._next += 1
        self.nodes[str(self._next)] = public_key
        return str(self._next)


def new_key(folder: Path, name: str) -> Path:
    public = folder / f"{name}.pub"
    write_keys(folder / name, public)
    return public


def test_a_new_folder_holds_what_a_server_needs(folder: ServerFolder) -> None:
    assert sorted(path.name for path in folder.path.iterdir()) == [
        *("ca.crt", "ca.key", "flwr", "server.crt", "server.key", "server.yaml", "sites.json")
    ]
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    assert describe(folder.server.certificate).names == (
        *("fl.example.org", "10.1.2.3", "localhost", "127.0.0.1"),
    )
    assert folder.sites() == {}
    assert folder.addresses.fleet == "0.0.0.0:9092"
    # Whoever reaches the control port can send code to every site.
    assert folder.addresses.control == "127.0.0.1:8000"


def test_flower_is_told_whom_to_trust(folder: ServerFolder) -> None:
    file = folder.flower_home / "config.toml"
    assert tomllib.loads(file.read_text()) == {
        "superlink": {
            "default": "wardround",
            "wardround": {
                "address": "127.0.0.1:8000",
                "root-certificates": str(folder.authority.certificate),
            },
        }
    }
    assert not folder.is_insecure
    folder.write_flower_config(insecure=True)
    assert folder.is_insecure


def test_tls_and_keys_are_off_by_name_only(folder: ServerFolder) -> None:
    words = superlink.command(folder, insecure=False)
    assert "--enable-supernode-auth" in words
    assert "--insecure" not in words
    assert words[words.index("--ssl-keyfile") + 1] == str(folder.server.key)
    assert words[words.index("--host") + 1] == "127.0.0.1"
    assert "--disable-runtime-dependency-installation" in words
    words = superlink.command(folder, insecure=True)
    assert "--insecure" in words
    assert not {"--enable-supernode-auth", "--ssl-keyfile"} & set(words)


def test_flowers_programs_tell_nobody_and_go_through_no_proxy(
    folder: ServerFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "example.org")
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "1")
    given = superlink.environment(folder)
    assert given["FLWR_TELEMETRY_ENABLED"] == "0"
    assert given["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert given["FLWR_HOME"] == str(folder.path / "flwr")
    assert given["NO_PROXY"] == "example.org,localhost,127.0.0.1"
    assert given["PATH"].startswith(str(superlink.BIN))


def test_a_folder_is_made_once(folder: ServerFolder) -> None:
    before = folder.authority.key.read_bytes()
    with pytest.raises(ValueError, match="there already"):
        ServerFolder.create(folder.path, Addresses(("other.org",)))
    assert folder.authority.key.read_bytes() == before


def test_what_is_no_folder_names_the_next_step(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="wardround server init"):
        ServerFolder(tmp_path)


@pytest.mark.parametrize(
    ("line", "named"),
    [("fleet_port: 70000", "70000"), ("fleet_prt: 9", "fleet_prt"), ("names: []", "names"), ("{", "YAML")],
)
def test_a_wrong_server_yaml_names_the_key(folder: ServerFolder, line: str, named: str) -> None:
    file = folder.path / "server.yaml"
    kept = [text for text in file.read_text().splitlines() if text.split(":")[0] != line.split(":")[0]]
    file.write_text("\n".join([*(kept if "names" not in line else kept[2:]), line]))
    with pytest.raises(ValueError, match=named):
        ServerFolder(folder.path)


def test_sites_are_registered_and_registered_again(
    folder: ServerFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = FakeLink(monkeypatch)
    key = new_key(tmp_path, "st-mary")
    site = register_site(folder, "st-mary", key)
    assert site.node_id == "101"
    assert json.loads((folder.path / "sites.json").read_text())["st-mary"]["fingerprint"] == site.fingerprint
    assert register_again(folder) == []
    link.nodes.clear()  # the SuperLink was started again
    assert register_again(folder) == ["st-mary"]
    assert folder.sites()["st-mary"].node_id == "102"
    assert link.nodes == {"102": read_public_key(key)}
    unregister_site(folder, "st-mary")
    assert (folder.sites(), link.nodes) == ({}, {})


def test_wrong_names_and_keys_are_refused(
    folder: ServerFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = FakeLink(monkeypatch)
    key = new_key(tmp_path, "a")
    register_site(folder, "a", key)
    other = new_key(tmp_path, "b")
    small = tmp_path / "small.pub"
    small.write_text("ecdsa-sha2-nistp256 AAAA\n")
    for name, file, told in (
        ("St Mary", other, "no site name"),
        ("a", other, "registered already"),
        ("b", key, "key of site 'a'"),
        ("b", tmp_path / "b", "PRIVATE key"),
        ("b", small, "P-384"),
        ("b", tmp_path / "missing.pub", "cannot be read"),
    ):
        with pytest.raises(ValueError, match=told):
            register_site(folder, name, file)
    with pytest.raises(ValueError, match="no site 'b'"):
        unregister_site(folder, "b")
    assert list(folder.sites()) == ["a"]
    assert len(link.nodes) == 1


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="there is no ssh-keygen here")
def test_fingerprints_are_those_of_ssh_keygen(tmp_path: Path) -> None:
    key = new_key(tmp_path, "a")
    told = subprocess.run(["ssh-keygen", "-lf", key], capture_output=True, text=True, check=True, timeout=30)
    assert fingerprint_of(read_public_key(key)) == told.stdout.split()[1]


def test_a_superlink_that_never_comes_is_given_up(folder: ServerFolder) -> None:
    with pytest.raises(superlink.SuperLinkError, match="wardround server up"):
        registration.wait_until_up(folder, 0.0)


@pytest.mark.parametrize("text", ["plain", 'a "b" \\ \n\t\x00\x7f é 🩺', "'"])
def test_text_survives_toml(text: str) -> None:
    assert tomllib.loads(f"key = {toml_string(text)}")["key"] == text
