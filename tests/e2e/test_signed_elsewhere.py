"""A server folder without the signing key: plans are signed on another machine. Real processes.

An attacker who takes over the server's machine finds no key there that signs a plan.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.federation import Federation
from tests.e2e.processes import PATIENCE
from tests.e2e.runs import JOIN_SECONDS, RUN_SECONDS, words_of
from tests.support.tiny import write_texts
from wardround.common.credentials import fingerprint
from wardround.common.wire.roster import roster_fingerprint
from wardround.common.wire.signing import ANSWER, read_envelope
from wardround.server.deployment.plan import plan_id
from wardround.server.deployment.signing_key import (
    make_signing_key,
    public_half,
    read_public_line,
)
from wardround.server.run_folder import RunFolder

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]


class Office:
    """The machine that has the signing key, and the server's machine, which has not."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.key = folder / "signing.key"
        make_signing_key(self.key)
        line = read_public_line(public_half(self.key))
        self.federation = Federation(folder.parent / "federation", signing_line=line)

    def server(self, *words: str) -> str:
        """Run `wardround WORDS --dir SERVER_FOLDER` at the server, and return its output."""
        code, text = self.federation.wardround(
            *words, "--dir", str(self.federation.folder.path)
        )
        assert code == 0, text
        return text

    def sign(self, request: Path, name: str) -> tuple[Path, str]:
        """`wardround server sign` on the other machine; the file it writes, and what it shows."""
        out = self.folder / name
        words = (
            "server",
            "sign",
            str(request),
            "--key",
            str(self.key),
            "--out",
            str(out),
            "--yes",
        )
        code, text = self.federation.wardround(*words)
        assert code == 0, text
        return out, text


def runs_that_were_answered(run_dir: Path) -> set[str]:
    """Hash of the statement of every run that the sites have answered."""
    envelopes = [
        json.loads(line)["envelope"]
        for line in (run_dir / "answers.jsonl").read_text().splitlines()
    ]
    payloads = [read_envelope(envelope, ANSWER)[0] for envelope in envelopes]
    return {json.loads(payload)["run"] for payload in payloads}


def test_a_run_without_the_signing_key_on_the_servers_machine(
    overrides: list[str], tiny_model: Path, tmp_path: Path
) -> None:
    office = Office(tmp_path / "office")
    federation, run_dir = office.federation, tmp_path / "run"
    request = tmp_path / "request.json"
    words = words_of(overrides, "num_clients=1", "num_rounds=1", f"run_dir={run_dir}")
    try:
        federation.up()
        office.server(
            "server",
            "invite",
            "alpha",
            "--address",
            federation.fleet_address,
            "--unsigned",
            str(request),
        )
        invited, shown = office.sign(request, "alpha.json")
        assert f"dials      {federation.fleet_address}" in shown
        office.server("server", "invite", "alpha", "--signed", str(invited))
        texts = write_texts(tmp_path / "alpha.csv", 30, seed=0)
        federation.join(
            federation.add_site("alpha", texts, model=tiny_model, invited=invited)
        )
        federation.wait_online("alpha", seconds=JOIN_SECONDS)

        # Without a signature nothing starts, and the next step is named.
        refused = federation.submit(*words)
        assert refused.wait(PATIENCE) == 2, refused.text()
        assert "--unsigned FILE" in refused.text()

        office.server("submit", *words, "--unsigned", str(request))
        signed, shown = office.sign(request, "signed.json")
        (site,) = federation.folder.sites().values()
        assert (
            f"roster   {roster_fingerprint({'alpha': fingerprint(site.signing_key)})}"
            in shown
        )
        run = federation.submit("--signed", str(signed))
        assert run.wait(RUN_SECONDS) == 0, run.text()
        first = plan_id(run_dir)
        assert f"Plan {first[:12]}, which is new" in shown
        assert RunFolder(run_dir).status()["state"] == "finished"

        # What was signed is good for one start.
        again = federation.submit("--signed", str(signed))
        assert again.wait(PATIENCE) == 2, again.text()
        assert "belongs to no open request" in again.text()

        # To continue takes a new statement of the run's key. Plan and approvals stay.
        office.server("submit", "--resume", str(run_dir), "--unsigned", str(request))
        resumed, shown = office.sign(request, "resumed.json")
        assert f"Plan {first[:12]}, which you have signed before" in shown
        run = federation.submit("--signed", str(resumed))
        assert run.wait(RUN_SECONDS) == 0, run.text()
        assert plan_id(run_dir) == first
        assert len(runs_that_were_answered(run_dir)) == 2
        assert not list(federation.folder.path.rglob("signing.key*"))
    finally:
        federation.close()
