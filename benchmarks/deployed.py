"""A federation of processes to measure: SuperLink, relay and sites; Wardround or stock Flower."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.inputs import LABELS, write_texts
from benchmarks.memory import PeakMemory, with_descendants
from benchmarks.report import say
from tests.e2e.federation import Federation, TestSite
from tests.e2e.proxy import Relay
from wardround.server.deployment import superlink
from wardround.server.deployment.submit import settings_to_submit, start

STOCK_APP = Path(__file__).parent / "stock"
_ONLINE_SECONDS = 180.0
_ASK_SECONDS = 30.0
_TEXT_TOKENS = 8


class RunLost(RuntimeError):
    """A measured run did not come to its end."""


@dataclass(frozen=True)
class Mark:
    """The end of a round, and the bytes that the relay had passed on by then."""

    seconds: float
    up: int
    down: int


@dataclass(frozen=True)
class Measured:
    """One run."""

    marks: tuple[Mark, ...]
    start_seconds: float
    """From sending the app out to the end of round 1."""
    server_bytes: int
    """Highest PSS of SuperLink, superexec and server app together."""
    site_bytes: int
    """Highest PSS of one site's processes together, over the sites."""

    @property
    def round_seconds(self) -> float:
        """The mean over the rounds after the first."""
        return (self.marks[-1].seconds - self.marks[0].seconds) / (len(self.marks) - 1)

    @property
    def up_bytes(self) -> float:
        """Bytes from the sites to the server in a round, mean of the rounds after the first."""
        return (self.marks[-1].up - self.marks[0].up) / (len(self.marks) - 1)

    @property
    def down_bytes(self) -> float:
        """Bytes from the server to the sites, likewise."""
        return (self.marks[-1].down - self.marks[0].down) / (len(self.marks) - 1)


class Bed:
    """A server, a relay before its fleet port, and sites, for one run; use it as a context.

    Wardround's sites join as hospitals do. Stock Flower has its own SuperLink and SuperNodes,
    with the same certificates, keys and texts.
    """

    def __init__(
        self, root: Path, model: Path, num_sites: int, *, is_stock: bool
    ) -> None:
        self.root, self.model, self.num_sites, self.is_stock = (
            root,
            model,
            num_sites,
            is_stock,
        )
        self.federation = Federation(root)
        self._open = ExitStack()

    def __enter__(self) -> Bed:
        federation = self.federation
        self._open.callback(federation.close)
        port = federation.folder.addresses.fleet_port
        self.relay = self._open.enter_context(Relay(("127.0.0.1", port)))
        say(f"starting a server and {self.num_sites} sites")
        names = [f"site-{number}" for number in range(self.num_sites)]
        sites = [self._site(name) for name in names]
        if self.is_stock:
            federation.up_stock(sites)
        else:
            federation.up()
            for site in sites:
                federation.join(site)
            federation.wait_online(*names, seconds=_ONLINE_SECONDS)
        assert federation.server is not None
        server = federation.server.popen.pid
        groups: dict[str, Callable[[], set[int]]] = {
            "server": lambda: with_descendants([server])
        }
        for site in sites:
            assert site.node is not None
            groups[site.name] = _finder(site.node.popen.pid)
        self.memory = self._open.enter_context(PeakMemory(groups, seconds=0.5))
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def _site(self, name: str) -> TestSite:
        """Return a site with two training texts and one held-out text. It dials the relay."""
        texts = write_texts(self.root / f"{name}.csv", np.full(3, _TEXT_TOKENS))
        address = f"localhost:{self.relay.port}"
        return self.federation.add_site(name, texts, model=self.model, address=address)

    def wardround(self, num_rounds: int, *overrides: str) -> Measured:
        """Measure a submitted run: a site trains one step on two texts and counts on another."""
        run_dir = self.root / "run"
        settings = settings_to_submit(
            [
                *(
                    "model=hf",
                    f"model.name={self.model}",
                    "model.label=benchmark",
                    "data=files",
                ),
                *(f"data.label_names=[{','.join(LABELS)}]", "data.test_fraction=0.4"),
                *(
                    "train.local_epochs=1",
                    f"train.max_length={_TEXT_TOKENS}",
                    "train.padding=longest",
                ),
                "train.last_batch=even",
                *(
                    "evaluation.where=sites",
                    f"num_clients={self.num_sites}",
                    f"num_rounds={num_rounds}",
                ),
                *("device=cpu", f"run_dir={run_dir}", *overrides),
            ]
        )
        folder = self.federation.folder

        def rounds_done() -> int:
            found = sorted(
                path.name for path in (run_dir / "checkpoint").glob("round-*")
            )
            return int(found[-1].removeprefix("round-")) if found else 0

        return self._measure(
            lambda: start(folder, settings, folder.sites()), rounds_done, num_rounds
        )

    def stock(self, num_rounds: int) -> Measured:
        """Measure a run of the stock app."""
        file = self.root / "rounds.txt"
        config = {
            "model": str(self.model),
            "num-rounds": str(num_rounds),
            "num-nodes": str(self.num_sites),
            "rounds-file": str(file),
        }
        folder = self.federation.folder

        def rounds_done() -> int:
            return (
                len(file.read_text(encoding="utf-8").splitlines())
                if file.exists()
                else 0
            )

        return self._measure(
            lambda: superlink.start_run(folder, STOCK_APP, config),
            rounds_done,
            num_rounds,
        )

    def _measure(
        self, send: Callable[[], str], rounds_done: Callable[[], int], num_rounds: int
    ) -> Measured:
        """Start a run, mark the end of every round, and wait until all its processes ended."""
        started = asked = time.monotonic()
        run_id = send()
        marks: list[Mark] = []
        while len(marks) < num_rounds:
            time.sleep(0.1)
            if rounds_done() > len(marks):
                marks.append(
                    Mark(time.monotonic(), self.relay.sent, self.relay.received)
                )
                say(f"  round {len(marks)} after {marks[-1].seconds - started:.1f} s")
            # Asking takes a second of a processor: rarely, and of both apps alike.
            if time.monotonic() - asked > _ASK_SECONDS:
                asked = time.monotonic()
                self._check(run_id)
        while not (
            state := superlink.run_state(self.federation.folder, run_id)
        ).has_ended:
            time.sleep(1)
        if state.status != "finished:completed":
            raise RunLost(
                f"the run ended as {state.status} {state.details}\n{self._log()}"
            )
        peaks = self.memory.peaks
        sites = max(peaks[name] for name in self.federation.sites)
        return Measured(
            tuple(marks), marks[0].seconds - started, peaks["server"], sites
        )

    def _check(self, run_id: str) -> None:
        state = superlink.run_state(self.federation.folder, run_id)
        if state.has_ended and state.status != "finished:completed":
            raise RunLost(
                f"the run ended as {state.status} {state.details}\n{self._log()}"
            )

    def _log(self) -> str:
        assert self.federation.server is not None
        return "\n".join(self.federation.server.text().splitlines()[-40:])


def _finder(pid: int) -> Callable[[], set[int]]:
    return lambda: with_descendants([pid])
