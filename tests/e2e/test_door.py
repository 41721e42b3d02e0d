"""The coordinator's door with real processes: who may come in, and what a restart remembers."""

from __future__ import annotations

import json
import shutil
import signal
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.e2e.federation import Federation
from tests.e2e.processes import PATIENCE, Process, wait_for
from tests.e2e.runs import RUN_SECONDS, words_of
from tests.support.runs import history
from tests.support.tiny import write_texts
from wardround.server.deployment import superlink
from wardround.server.deployment.certificates import (
    Pair,
    issue_server_certificate,
    make_authority,
)
from wardround.server.deployment.sites import (
    invite_site,
    unregister_site,
)

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]


def wait_to_read(process: Process, text: str) -> None:
    """Return once the process has printed this."""
    wait_for(lambda: text in process.text(), PATIENCE, f"'{text}' in {process.log}")


def listens(host: str, port: int) -> bool:
    """Whether somebody does."""
    with socket.socket() as door:
        return door.connect_ex((host, port)) == 0


def strangers(fleet: Path) -> dict[str, int]:
    """Calls with keys that nobody has registered, by reason."""
    return dict(json.loads(fleet.read_text())["strangers"]) if fleet.exists() else {}


def test_only_registered_keys_over_tls_come_in(
    federation: Federation, tmp_path: Path
) -> None:
    texts = write_texts(tmp_path / "texts.csv", 12, seed=0)
    server = federation.up()
    known = federation.add_site("known", texts)
    stranger = federation.add_site("stranger", texts, register=False)
    plain = federation.add_site("plain", texts, register=False)
    deceived = federation.add_site("deceived", texts, register=False)
    other = Pair(tmp_path / "other.crt", tmp_path / "other.key")
    make_authority(other)
    trust = [
        "--root-certificates",
        str(other.certificate),
        "--auth-supernode-private-key",
    ]

    federation.join_bare(known)
    refused = federation.join_bare(stranger)
    plain_node = federation.join_bare(plain, trust=["--insecure"])
    deceived_node = federation.join_bare(
        deceived, trust=[*trust, str(known.private_key)]
    )
    federation.wait_online("known")
    folder = federation.folder
    wait_for(
        lambda: strangers(folder.fleet_file).get("unknown_key"),
        PATIENCE,
        "the stranger's call",
    )
    wait_to_read(plain_node, "Connection attempt failed")
    wait_to_read(deceived_node, "Connection attempt failed")
    assert list(federation.node_states()) == ["known"]
    assert (
        "SuperNode ID" not in refused.text() + plain_node.text() + deceived_node.text()
    )

    where = ("--dir", str(federation.folder.path))
    code, said = federation.wardround("server", "sites", *where)
    assert code == 0
    assert "known" in said
    assert "online" in said
    server.send(signal.SIGKILL)
    server.wait(PATIENCE)
    code, said = federation.wardround("submit", "num_clients=1", *where)
    assert (code, "wardround server up" in said) == (1, True), said

    federation.up()
    assert list(federation.node_states()) == ["known"]  # it remembers who is registered
    unregister_site(folder, "known")  # holds at once, by the file alone
    wait_for(
        lambda: federation.node_states() == {}, PATIENCE, "the site to be forgotten"
    )


def test_a_key_is_good_for_one_site_at_a_time(
    federation: Federation, tiny_model: Path, tmp_path: Path
) -> None:
    texts = write_texts(tmp_path / "texts.csv", 30, seed=0)
    federation.up()
    first = federation.add_site("first", texts, model=tiny_model)
    where = ("--dir", str(federation.folder.path))
    invite_site(federation.folder, "second")
    answer = str(first.folder / "registration-first.json")
    bound = ("--max-examples", "100")
    code, said = federation.wardround(
        "server", "register", "second", answer, *bound, *where
    )
    assert (code, "first" in said) == (2, True), said
    federation.join(first)
    federation.wait_online("first", seconds=PATIENCE)
    other = tmp_path / "other-machine"
    shutil.copytree(first.folder, other)
    shutil.rmtree(other / "state")
    words = ("wardround-site", "join", "--site", str(other / "site.yaml"))
    twin = federation.start("twin", *words)
    wait_to_read(twin, "the server still counts this site as online")
    assert "connected to the server" not in twin.text()
    assert federation.node_states()["first"].status == "online"


def test_flowers_own_nodes_still_work_where_keys_are_off_by_name(
    federation: Federation, overrides: list[str], tiny_model: Path, tmp_path: Path
) -> None:
    """For users of Flower. They trust the people at the server: its code runs at the nodes."""
    file = federation.folder.path / "server.yaml"
    said = file.read_text()
    file.write_text(said.replace("fleet_host: 127.0.0.1", "fleet_host: 0.0.0.0"))
    server = federation.up("--insecure")
    assert "any node may connect" in server.text()
    # All of 127.0.0.0/8 is this machine: a server that listens everywhere would answer there too.
    port = federation.folder.addresses.fleet_port
    assert (listens("127.0.0.1", port), listens("127.0.0.2", port)) == (True, False)
    for number, name in enumerate(("one", "two")):
        texts = write_texts(tmp_path / f"{name}.csv", 24, seed=number)
        site = federation.add_site(name, texts, register=False, model=tiny_model)
        federation.join_bare(site, trust=["--insecure"])
    words = words_of(
        [word for word in overrides if not word.startswith("num_clients")],
        "num_clients=2",
    )
    run_dir = tmp_path / "run"
    run = federation.run(*words, "num_rounds=1", run_dir=run_dir, seconds=RUN_SECONDS)
    assert [
        [client["client"] for client in line["clients"]] for line in history(run.path)
    ] == [[], [0, 1]]


def test_an_expired_certificate_ends_join_in_clear_words(
    federation: Federation, tiny_model: Path, tmp_path: Path
) -> None:
    folder = federation.folder
    last_year = datetime.now(UTC) - timedelta(days=400)
    names = folder.addresses.names
    issue_server_certificate(
        folder.authority, folder.server, names, now=last_year, renew=True
    )
    code, said = federation.wardround("server", "up", "--dir", str(folder.path))
    assert (code, "has expired" in said, "wardround server renew" in said) == (
        2,
        True,
        True,
    ), said

    # One that was good when the server was started.
    options = superlink.options(folder, insecure=False)
    words = (
        "python",
        "-m",
        "wardround.server.deployment.fleet",
        str(folder.path),
        *options,
    )
    federation.start("server", *words, environment={"FLWR_LOG_LEVEL": "INFO"})
    fleet = (folder.addresses.fleet_host, folder.addresses.fleet_port)
    wait_for(lambda: listens(*fleet), PATIENCE, "the server")
    site = federation.add_site(
        "site",
        write_texts(tmp_path / "texts.csv", 30, seed=0),
        model=tiny_model,
        register=False,
    )
    node = federation.join(site)
    assert node.wait(PATIENCE) == 1
    assert "expired" in node.text()
    assert "wardround server renew" in node.text()
    assert "connected to the server" not in node.text()
