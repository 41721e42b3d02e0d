"""The coordinator's door with real processes: who may come in, and what a restart remembers."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.conftest import write_texts
from tests.e2e.federation import END_SECONDS, Federation
from tests.e2e.processes import wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def test_only_registered_keys_over_tls_come_in(federation: Federation, tmp_path: Path) -> None:
    texts = write_texts(tmp_path / "texts.csv", 12, seed=0)
    server = federation.up()
    known = federation.add_site("known", texts)
    stranger = federation.add_site("stranger", texts, register=False)
    plain = federation.add_site("plain", texts, register=False)

    federation.join(known)
    refused = federation.join(stranger)
    plain_node = federation.join(plain, trust=["--insecure"])
    federation.wait_online("known")
    wait_for(lambda: "Failed to activate SuperNode" in refused.text(), 60, "the stranger to be refused")
    wait_for(lambda: "Connection attempt failed" in plain_node.text(), 60, "the plain client to be refused")
    assert list(federation.node_states()) == ["known"]
    assert "SuperNode ID" not in refused.text() + plain_node.text()

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
    assert federation.end() == []
