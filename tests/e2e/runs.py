"""Three sites of unequal sizes, and the runs that the tests submit to them."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

from tests.e2e.federation import Federation
from tests.e2e.processes import PATIENCE, Process, wait_for
from tests.support.runs import history
from tests.support.tiny import Make, write_texts
from wardround.server.deployment.status import read_open_round
from wardround.server.engines.simulate import simulate
from wardround.server.run_folder import RunFolder

SIZES = {"beta": 30, "alpha": 12, "gamma": 21}
CONTINUE = "strategy.on_missing=continue"
LONG = "num_rounds=5000"
LABELS = "data.label_names=[health,money,sport]"
EVEN = "train.last_batch=even"
"""As sites want it."""
JOIN_SECONDS = PATIENCE
RUN_SECONDS = 600.0


def texts_of(federation: Federation) -> Path:
    """The folder for the texts of its sites."""
    return federation.root.parent / "texts"


def write_sites(folder: Path) -> Path:
    """A folder with one file a site."""
    folder.mkdir()
    for number, (name, size) in enumerate(SIZES.items()):
        write_texts(folder / f"{name}.csv", size, seed=number)
    return folder


def words_of(overrides: list[str], *more: str) -> list[str]:
    """Overrides of the tiny run without the data, which real sites bring themselves."""
    dropped = ("data", "data.path", "data.test_path", "run_dir", "num_rounds")
    kept = [text for text in overrides if text.split("=")[0] not in dropped]
    return [*kept, "data=files", "evaluation.where=sites", LABELS, EVEN, *more]


def start_sites(federation: Federation, texts: Path, model: Path, **facts: Any) -> None:
    """Register all sites, start the site kit of each, and wait until they are there.

    Args:
        facts: see `Federation.add_site`.
    """
    for name in SIZES:
        federation.join(
            federation.add_site(name, texts / f"{name}.csv", model=model, **facts)
        )
    federation.wait_online(*SIZES, seconds=JOIN_SECONDS)


def restore(federation: Federation) -> None:
    """Start the server and the sites that do not run, and wait until all sites are there."""
    if federation.server is None or not federation.server.is_alive():
        federation.up()
    for site in federation.sites.values():
        if site.node is None or not site.node.is_alive():
            federation.join(site)
    federation.wait_online(*federation.sites, seconds=JOIN_SECONDS)


def add_two(federation: Federation, folder: Path, model: Path, **facts: Any) -> None:
    """Register alpha and beta, with 30 texts each.

    Args:
        facts: those of beta, as in `Federation.add_site`.
    """
    for seed, name in enumerate(("alpha", "beta")):
        texts = write_texts(folder / f"{name}.csv", 30, seed=seed)
        federation.add_site(
            name, texts, model=model, **(facts if name == "beta" else {})
        )


def simulated(
    make_settings: Make, texts: Path, run_dir: Path, num_rounds: int, *more: str
) -> Path:
    """Run the same in one process, with more overrides."""
    simulate(
        make_settings(
            *(
                "evaluation.where=sites",
                LABELS,
                EVEN,
                f"data.path={texts}",
                "data.test_path=null",
            ),
            *(
                "partition=by_site",
                "data.split_seed=0",
                f"num_rounds={num_rounds}",
                f"run_dir={run_dir}",
            ),
            *more,
        )
    )
    return run_dir


def stop(federation: Federation, process: Process) -> None:
    """End a run as Ctrl-C does."""
    federation.signal(signal.SIGTERM, program="submit")
    assert process.wait(PATIENCE) == 130, process.text()


def lines(run_dir: Path) -> list[dict[str, Any]]:
    """The history of a run so far."""
    return history(run_dir)


def took_part(run_dir: Path) -> list[list[int]]:
    """Numbers of the clients whose updates were averaged, by round from 1. Alpha is 0, gamma 2."""
    return [
        [client["client"] for client in line["clients"]] for line in lines(run_dir)[1:]
    ]


def wait_for_round(process: Process, run_dir: Path, number: int) -> None:
    """Return once round `number` has been sent out."""

    def look() -> bool:
        assert process.is_alive(), process.text()
        live = read_open_round(RunFolder(run_dir))
        return live is not None and live.round >= number

    wait_for(look, RUN_SECONDS, f"round {number} to begin")


def wait_for_clients(
    process: Process, run_dir: Path, clients: list[int], after: int = 0
) -> int:
    """The first round past `after` in which just these took part, as soon as it is closed."""

    def look() -> int:
        rounds = took_part(run_dir)
        found = [
            number
            for number, who in enumerate(rounds, 1)
            if number > after and who == clients
        ]
        assert found or process.is_alive(), process.text()
        return found[0] if found else 0

    return wait_for(look, RUN_SECONDS, f"a round of clients {clients}")
