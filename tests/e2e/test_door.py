"""The coordinator's door with real processes: who may come in, and what a restart remembers."""

from __future__ import annotations

import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from server.deployment import superlink
from server.deployment.certificates import Pair, issue_server_certificate, make_authority
from tests.conftest import write_texts
from tests.e2e.federation import END_SECONDS, UP_SECONDS, Federation
from tests.e2e.processes import Process, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

SECONDS = 90.0


def wait_to_read(process: Process, text: str) -> None:
    """Return once the process has printed this."""
    wait_for(lambda: text in process.text(), SECONDS, f"'{text}' in {process.log}")


def test_only_registered_keys_over_tls_come_in(federation: Federation, tmp_path: Path) -> None:
    texts = write_texts(tmp_path / "texts.csv", 12, seed=0)
    server = federation.up()
    known = federation.add_site("known", texts)
    stranger = federation.add_site("stranger", texts, register=False)
    plain = federation.add_site("plain", texts, register=False)
    deceived = federation.add_site("deceived", texts, register=False)
    other = Pair(tmp_path / "other.crt", tmp_path / "other.key")
    make_authority(other)
    trust = ["--root-certificates", str(other.certificate), "--auth-supernode-private-key"]

    federation.join_bare(known)
    refused = federation.join_bare(stranger)
    plain_node = federation.join_bare(plain, trust=["--insecure"])
    deceived_node = federation.join_bare(deceived, trust=[*trust, str(known.private_key)])
    federation.wait_online("known")
    wait_to_read(refused, "Failed to activate SuperNode")
    wait_to_read(plain_node, "Connection attempt failed")
    wait_to_read(deceived_node, "Connection attempt failed")
    assert list(federation.node_states()) == ["known"]
    assert "SuperNode ID" not in refused.text() + plain_node.text() + deceived_node.text()

    where = ("--dir", str(federation.folder.path))
    code, said = federation.wardround("server", "sites", *where)
    assert code == 0
    assert "known" in said
    assert "online" in said
    before = federation.folder.sites()["known"].node_id
    server.send(signal.SIGKILL)
    server.wait(END_SECONDS)
    code, said = federation.wardround("submit", "num_clients=1", *where)
    assert (code, "wardround server up" in said) == (1, True), said

    again = federation.up()
    assert "let in again: known" in again.text()
    assert federation.folder.sites()["known"].node_id != before


def test_a_key_is_good_for_one_site_at_a_time(
    federation: Federation, tiny_model: Path, tmp_path: Path
) -> None:
    texts = write_texts(tmp_path / "texts.csv", 30, seed=0)
    federation.up()
    first = federation.add_site("first", texts, model=tiny_model)
    where = ("--dir", str(federation.folder.path))
    code, said = federation.wardround("server", "register", "second", str(first.public_key), *where)
    assert (code, "first" in said) == (2, True), said
    federation.join(first)
    federation.wait_online("first", seconds=SECONDS)
    twin = federation.join(first)  # the same files on another machine
    wait_to_read(twin, "the server still counts this site as online")
    assert "SuperNode ID" not in twin.text()
    assert federation.node_states()["first"].status == "online"


def test_an_expired_certificate_ends_join_in_clear_words(
    federation: Federation, tiny_model: Path, tmp_path: Path
) -> None:
    folder = federation.folder
    last_year = datetime.now(UTC) - timedelta(days=400)
    names = folder.addresses.names
    issue_server_certificate(folder.authority, folder.server, names, now=last_year, renew=True)
    code, said = federation.wardround("server", "up", "--dir", str(folder.path))
    assert (code, "has expired" in said, "wardround server renew" in said) == (2, True, True), said

    # One that was good when the server was started.
    program, *options = superlink.command(folder, insecure=False)
    server = federation.start("server", Path(program).name, *options)
    wait_to_read(server, "Flower Deployment Runtime: Starting Fleet API")
    site = federation.add_site(
        "site", write_texts(tmp_path / "texts.csv", 30, seed=0), model=tiny_model, register=False
    )
    node = federation.join(site)
    assert node.wait(UP_SECONDS) == 1
    assert "expired" in node.text()
    assert "wardround server renew" in node.text()
    assert "SuperNode ID" not in node.text()
