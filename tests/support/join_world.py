"""`wardround-site join` as a program, with a server for tests."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.e2e.processes import PATIENCE, wait_for
from tests.e2e.processes import command_line as command_line_of
from tests.support.fake_fleet import FakeFleet, fleet_server
from tests.support.site_door import QUICK, command_line, environment
from tests.support.site_lab import make_certificates, make_site
from wardround.client.decisions import limits_of
from wardround.client.policy.limits import Limits
from wardround.client.site_file import SiteFile, signing_keys, write_site_file
from wardround.common.credentials import public_line
from wardround.common.settings.tree import Settings
from wardround.common.wire.codec import pack_hello, unpack_introduction
from wardround.common.wire.messages import HELLO
from wardround.server.compose import compose

SECONDS = PATIENCE


@dataclass
class World:
    """A site in `folder`, its server, and the processes of `join`."""

    folder: Path
    site: SiteFile
    fleet: FakeFleet
    settings: Settings
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def key(self) -> str:
        """The site's public signing key."""
        return " ".join((self.folder / "signing.pub").read_text().split()[:2])

    def plan(self, **changed: Any) -> None:
        """Let the server use another plan. Args: changed: fields of the plan."""
        settings = changed.pop("settings", self.settings.to_dict())
        sites = changed.pop("sites", {self.site.name: self.key})
        self.fleet.make_plan(settings, sites, **changed)

    @property
    def coordinator(self) -> str:
        """The coordinator's public signing key."""
        return public_line(self.fleet.coordinator)

    @property
    def limits(self) -> Limits:
        """The limits of the site."""
        return limits_of(self.site, signing_keys(self.site)[0])

    @property
    def log(self) -> Path:
        """The file with the output of `join`."""
        return self.folder / "join.log"

    def join(self, *words: str, **variables: str) -> subprocess.Popen[bytes]:
        """Start `join`, and wait until it is connected."""
        before = self.said().count("connected to the server")
        with self.log.open("ab") as file:
            process = subprocess.Popen(
                command_line("join", *QUICK, "--retry-seconds", "0.2", *words),
                cwd=self.folder,
                env=environment() | variables,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        self.processes.append(process)
        wait_for(
            lambda: self.said().count("connected to the server") > before,
            SECONDS,
            "the connection",
        )
        return process

    def said(self) -> str:
        """Return the output of `join` so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def wait_to_read(self, words: str) -> None:
        """Wait until the output of `join` holds these words."""
        wait_for(lambda: words in self.said(), SECONDS, f"'{words}' in:\n{self.said()}")

    def hello(self, **how: Any) -> Any:
        """Ask the site to introduce itself."""
        return self.fleet.ask(HELLO, pack_hello(None), self.key, **how)

    def num_examples(self, **how: Any) -> int:
        """Return the number of examples in the site's introduction."""
        answer = self.fleet.answer(self.hello(**how), self.key)
        return unpack_introduction(answer).num_examples

    def worker(self) -> int:
        """Wait for a worker. Return its process number."""
        return wait_for(
            lambda: next(iter(_workers_of(self.processes[-1].pid)), 0),
            SECONDS,
            "a worker",
        )


def _workers_of(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [
        int(child)
        for child in children
        if "wardround.client.node.worker" in command_line_of(int(child))
    ]


@contextmanager
def joined_world(
    folder: Path, texts: Path, model: Path, **facts: Any
) -> Iterator[World]:
    """Yield a site and a server that knows its key. All processes end with it.

    Args:
        facts: fields of the `SiteFile`.
    """
    fleet = FakeFleet()
    with fleet_server(make_certificates(folder), fleet) as port:
        (folder / "coordinator.pub").write_text(public_line(fleet.coordinator))
        site = make_site(folder, port, texts, model=model, **facts)
        write_site_file(site, folder / "site.yaml")
        words = [
            "engine=deployment",
            "evaluation.where=sites",
            "data.label_names=[health,money,sport]",
            "train.last_batch=even",
            "num_clients=1",
            "data=files",
            "device=cpu",
            "threads=1",
            "train.max_length=16",
            "model=hf",
            f"model.name={model}",
        ]
        settings = compose(words).settings
        made = World(folder, site, fleet, settings.for_sites())
        made.plan()
        try:
            yield made
        finally:
            for process in made.processes:
                process.kill()
                process.wait(SECONDS)
