"""A federation of real processes on loopback: a server and its sites, which all end with a test."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.e2e.processes import (
    PATIENCE,
    Process,
    command_line,
    free_port,
    wait_for,
)
from tests.support.site_door import FEW_CHECKS
from tests.support.site_lab import WIDE, pinned
from wardround.client.kit.init import write_kit
from wardround.common.wire.invitation import registration_file
from wardround.server.deployment import superlink
from wardround.server.deployment.addresses import Addresses
from wardround.server.deployment.folder import (
    SUPERLINK,
    ServerFolder,
)
from wardround.server.deployment.sites import (
    invite_site,
    register_site,
)
from wardround.server.deployment.superlink import NodeState
from wardround.server.run_folder import RunFolder

BIN = Path(sys.executable).parent
_MARK, _SITE_MARK = "WARDROUND_TEST_FEDERATION", "WARDROUND_TEST_SITE"


@dataclass
class TestSite:
    """A site's files and, once it joined, its node."""

    __test__ = False
    name: str
    folder: Path
    site_file: Path
    private_key: Path
    public_key: Path
    node: Process | None = None

    @property
    def program(self) -> Process:
        """Its node, which was started."""
        assert self.node is not None
        return self.node


@dataclass
class Federation:
    """Everything below `root`; `close` ends it."""

    root: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    """Added to what every process of it is given."""
    signing_line: str = ""
    """Public half of a signing key that stands elsewhere; empty for a key in the server folder."""
    server: Process | None = None
    seconds_to_start: float = 0.0
    """Seconds that the last start of the server took."""
    sites: dict[str, TestSite] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._mark = secrets.token_hex(8)
        self._num_logs = 0
        self.root.mkdir(parents=True, exist_ok=True)
        addresses = Addresses(
            ("localhost",), "127.0.0.1", free_port(), "127.0.0.1", free_port()
        )
        folder = self.root / "server"
        self.folder = ServerFolder.create(
            folder, addresses, signing_line=self.signing_line
        )

    @property
    def fleet_address(self) -> str:
        """What sites dial: a name in the certificate."""
        return f"localhost:{self.folder.addresses.fleet_port}"

    def start(
        self, name: str, *words: str, environment: Mapping[str, str] | None = None
    ) -> Process:
        """Start one of this installation's programs."""
        self._num_logs += 1
        log = self.root / f"{self._num_logs:02d}-{name}.log"
        path = os.pathsep.join((str(BIN), os.environ.get("PATH", os.defpath)))
        given = {
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "HF_HUB_OFFLINE": "1",
        }
        given |= (
            {"PATH": path, _MARK: self._mark}
            | dict(self.environment)
            | dict(environment or {})
        )
        with log.open("wb") as file:
            popen = subprocess.Popen(
                [str(BIN / words[0]), *words[1:]],
                cwd=self.root,
                env=os.environ | given,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return Process(popen, log)

    def wardround(self, *words: str, seconds: float = 120.0) -> tuple[int, str]:
        """Run `wardround WORDS` to its end; exit code and what it printed."""
        process = self.start("wardround", "wardround", *words)
        return process.wait(seconds), process.text()

    def up(self, *options: str) -> Process:
        """`wardround server up`, and wait until it says so."""
        started = time.monotonic()
        self.server = self.start(
            "server",
            "wardround",
            "server",
            "up",
            "--dir",
            str(self.folder.path),
            *options,
        )
        server = self.server
        wait_for(
            lambda: "the server is up" in server.text() or not server.is_alive(),
            PATIENCE,
            "the server",
        )
        assert server.is_alive(), server.text()
        self.seconds_to_start = time.monotonic() - started
        return server

    def end_server(self) -> None:
        """End the server as Ctrl-C does."""
        assert self.server is not None
        self.server.send(signal.SIGTERM)
        self.server.wait(PATIENCE)

    def add_site(
        self,
        name: str,
        data: Path,
        *,
        register: bool = True,
        max_examples: int | None = None,
        invited: Path | None = None,
        **facts: Any,
    ) -> TestSite:
        """Invite a site, make its files as `wardround-site init` does, and register it.

        Args:
            data: its labelled texts.
            max_examples: what it is registered for.
            invited: its invitation, where that was signed elsewhere.
            facts: `text_columns`, `label_column`, `labels`, `drop_empty`, `model`, `device`,
                `policy`; `address` if the site connects to another place than the server.
        """
        folder = self.root / f"site-{name}"
        address = facts.pop("address", self.fleet_address)
        if invited is None:
            invited, _ = invite_site(self.folder, name, address=address)
        site = TestSite(
            name, folder, folder / "site.yaml", folder / "site.key", folder / "site.pub"
        )
        policy = pinned(facts.pop("policy", WIDE), facts.get("model"))
        given: dict[str, Any] = {"data_path": data, "policy": policy}
        given |= {"text_columns": ("text",), "label_column": "label", "device": "cpu"}
        write_kit(invited, folder, "no-image", **given)
        content = yaml.safe_load(site.site_file.read_text(encoding="utf-8"))
        keys = ("text_columns", "label_column", "labels", "drop_empty")
        content["data"] |= {key: facts.pop(key) for key in keys if key in facts}
        content |= {key: str(value) for key, value in facts.items()}
        site.site_file.write_text(yaml.safe_dump(content), encoding="utf-8")
        if register:
            register_site(
                self.folder,
                name,
                folder / registration_file(name),
                max_examples=max_examples,
            )
        self.sites[name] = site
        return site

    def join(
        self, site: TestSite, environment: Mapping[str, str] | None = None
    ) -> Process:
        """`wardround-site join`, which keeps itself alive, without the checks that are slow."""
        words = ("wardround-site", "join", "--site", str(site.site_file), *FEW_CHECKS)
        given = {_SITE_MARK: site.name} | dict(environment or {})
        site.node = self.start(f"join-{site.name}", *words, environment=given)
        return site.node

    def leave(self, site: TestSite) -> None:
        """End its node as a person does, if it runs. The server is told."""
        if site.node is not None:
            site.node.send(signal.SIGTERM)
            site.node.wait(PATIENCE)

    def join_bare(
        self, site: TestSite, *, trust: Sequence[str] | None = None
    ) -> Process:
        """Start a plain `flower-supernode` for it, dialling where its site file says.

        Args:
            trust: options in place of `--root-certificates CA` and the private key.
        """
        ca, key = str(self.folder.authority.certificate), str(site.private_key)
        keys = ["--root-certificates", ca, "--auth-supernode-private-key", key]
        address = yaml.safe_load(site.site_file.read_text(encoding="utf-8"))["server"][
            "address"
        ]
        site.node = self.start(
            f"node-{site.name}",
            "flower-supernode",
            *(keys if trust is None else trust),
            *("--superlink", address),
            *("--host", "127.0.0.1", "--port", str(free_port())),
            *("--node-config", f'site-file="{site.site_file}"'),
            environment={"FLWR_HOME": str(site.folder / "flwr"), _SITE_MARK: site.name},
        )
        return site.node

    def up_stock(self, sites: Sequence[TestSite]) -> Process:
        """Flower's own SuperLink and SuperNodes in place of Wardround's, with the same keys."""
        options = superlink.options(self.folder, insecure=False)
        environment = superlink.environment(self.folder)
        self.server = self.start(
            "superlink", "flower-superlink", *options, environment=environment
        )
        wait_for(lambda: superlink.is_up(self.folder), PATIENCE, "the SuperLink")
        for site in sites:
            superlink.flower(
                self.folder, "supernode", "register", str(site.public_key), SUPERLINK
            )
            self.join_bare(site)

        def are_online() -> bool:
            nodes = superlink.flower(self.folder, "supernode", "list", SUPERLINK)[
                "nodes"
            ]
            return [node["status"] for node in nodes] == ["online"] * len(sites)

        wait_for(are_online, PATIENCE, "the SuperNodes to come online")
        return self.server

    def node_states(self) -> dict[str, NodeState]:
        """What the server says of each registered site, by name."""
        return superlink.fleet_states(self.folder)

    def wait_online(self, *names: str, seconds: float = PATIENCE) -> None:
        """Return once all these sites are online."""

        def look() -> bool:
            states = self.node_states()
            return all(
                name in states and states[name].status == "online" for name in names
            )

        # A look is a call over TLS.
        wait_for(look, seconds, f"{', '.join(names)} to come online", pause=1.0)

    def submit(self, *words: str) -> Process:
        """`wardround submit WORDS`, in the background."""
        return self.start(
            "submit", "wardround", "submit", "--dir", str(self.folder.path), *words
        )

    def run(self, *words: str, run_dir: Path, seconds: float) -> RunFolder:
        """Submit, wait for the end, and expect it to be good."""
        process = self.submit(*words, f"run_dir={run_dir}")
        code = process.wait(seconds)
        assert code == 0, process.text()
        return RunFolder(run_dir)

    def processes(self, site: str = "", program: str = "") -> list[int]:
        """Every living process of this federation, those in sessions of their own too.

        Args:
            site: only those of this site.
            program: only those with this word in their command line.
        """
        marks = {f"{_MARK}={self._mark}".encode()}
        marks |= {f"{_SITE_MARK}={site}".encode()} if site else set()
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if marks <= set((folder / "environ").read_bytes().split(b"\0")):
                    found.append(int(folder.name))
            except OSError:  # gone meanwhile, or not ours to read
                continue
        return [pid for pid in found if program in command_line(pid)]

    def signal(self, kind: signal.Signals, site: str = "", program: str = "") -> int:
        """Send it to all `processes(site, program)`; returns how many there were."""
        found = self.processes(site, program)
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, kind)
        return len(found)

    def end(self) -> list[str]:
        """Send SIGTERM to all processes; return the command lines of those that do not end."""
        nodes = [site.node for site in self.sites.values()]
        started = [process for process in (*nodes, self.server) if process is not None]
        for process in started:
            process.send(signal.SIGTERM)
        deadline = time.monotonic() + PATIENCE
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.2)
            for process in started:
                process.is_alive()  # reaps it: Flower's programs look whether their parent is there
        return [f"{pid} {command_line(pid)}" for pid in left]

    def close(self) -> None:
        """End everything at once: whoever wants to see it end by itself calls `end` before."""
        self.signal(signal.SIGKILL)
        wait_for(lambda: not self.processes(), PATIENCE, "the last processes to go")
