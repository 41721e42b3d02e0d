"""One simulated run: the door that picks an engine. Run as a module, it forks a simulation's workers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flwr.app import Context, RecordDict
from flwr.serverapp import Grid, ServerApp

from wardround.client.app import app as client_app
from wardround.client.personal import OwnTexts, Personaliser, texts_of_clients
from wardround.common.runtime import resolve_device, resolve_threads
from wardround.common.settings.tree import Settings
from wardround.server.app import conduct, recorded
from wardround.server.display import display
from wardround.server.engines.local_grid import LocalGrid
from wardround.server.engines.pool import WorkerPool
from wardround.server.engines.worker import run_fork_server
from wardround.server.rounds.clients import GridClients
from wardround.server.run_folder import RunFolder


def simulate(settings: Settings) -> None:
    """Run the whole federation here, or on a Ray cluster; then make personal models, if they are asked for.

    Raises:
        ValueError: bad input. RunFailed: the run could not be finished.
    """
    if not settings.engine.is_simulated:
        raise ValueError(
            "engine=deployment runs across real sites; use `wardround submit` for that."
        )
    if settings.personalisation.name == "none":
        ENGINES[settings.engine.name](settings)
        return
    own_texts = _judged(settings, texts_of_clients(settings))
    ENGINES[settings.engine.name](settings)
    _personalise(settings, own_texts)


def _judged(settings: Settings, own_texts: Sequence[OwnTexts]) -> list[OwnTexts]:
    """The clients that can choose a model and judge it; of the others a skewed deal leaves too little."""
    judged = [own for own in own_texts if own.can_be_judged]
    left = ", ".join(own.owner for own in own_texts if not own.can_be_judged)
    if not judged:
        raise ValueError(
            "no client holds out a text to choose a model by and another to judge it by. Hold out more "
            "(data.test_fraction), or lower num_clients."
        )
    if left:
        display().say(
            f"{settings.cell}: too few held-out texts for personal models of client {left}"
        )
    return judged


def _personalise(settings: Settings, own_texts: Sequence[OwnTexts]) -> None:
    """One client after the other, from the model the run left. What was made of it already, stays."""
    folder = RunFolder(Path(settings.run_dir))
    reason = folder.status()["reason"]
    with folder.open(settings), recorded(folder):
        personaliser = Personaliser(
            settings, folder.label_names(), folder.path / "model"
        )
        record = personaliser.record.or_started(folder.path)
        for own in own_texts[len(record.sites) :]:
            personal = personaliser.personalise(own)
            if settings.personalisation.keep_models:
                personaliser.save(folder.path / "personal" / own.owner, personal)
            record.sites.append(personal.record)
            record.write(folder.path)
            done = f"{len(record.sites)} of {len(own_texts)}"
            display().say(
                f"{settings.cell}: personal models {done}, {own.owner} takes {personal.record.chosen}"
            )
        folder.write_status("finished", reason)


def _in_process(settings: Settings) -> None:
    num_workers = count_workers(settings)
    if num_workers == 1:
        conduct(GridClients(LocalGrid(client_app, settings.num_clients)), settings)
        return
    with WorkerPool(num_workers, settings) as pool:
        conduct(
            GridClients(LocalGrid(client_app, settings.num_clients, pool)), settings
        )


def count_workers(settings: Settings) -> int:
    """Processes to train in: as asked, and never more than there are clients.

    `auto` is one for each GPU, or on the CPU as many as find `threads` CPUs each. The number of threads, on
    which sums depend, is never derived from the number of workers.

    Raises:
        ValueError: several workers on the CPU would each use all of it.
    """
    asked, device = settings.engine.workers, resolve_device(settings.device)
    if asked == "auto" and device.type == "cpu":
        asked = resolve_threads("auto") // resolve_threads(settings.threads)
    elif asked == "auto":
        import torch

        asked = (
            torch.accelerator.device_count()
            if settings.device in ("auto", device.type)
            else 1
        )
    elif asked > 1 and device.type == "cpu" and settings.threads == "auto":
        raise ValueError(
            f"engine.workers is {asked} but threads is auto, so that each of them would use every CPU. Set "
            "threads=1; sums depend on the number of threads, so it is part of what a run is."
        )
    return max(1, min(asked, settings.num_clients))


def _on_ray(settings: Settings) -> None:
    try:
        import ray  # noqa: F401
    except ImportError:
        raise ValueError(
            "engine=ray needs Ray; install it with: pip install 'wardround[ray]'"
        ) from None
    from flwr.simulation import run_simulation

    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        conduct(GridClients(grid), settings)

    engine = settings.engine
    init_args: dict[str, Any] = (
        {} if engine.address is None else {"address": engine.address}
    )
    run_simulation(
        server_app=server_app,
        client_app=client_app,
        num_supernodes=settings.num_clients,
        backend_config={
            "init_args": init_args,
            "client_resources": {
                "num_cpus": engine.num_cpus,
                "num_gpus": engine.num_gpus,
            },
        },
    )


ENGINES: dict[str, Callable[[Settings], None]] = {
    "inprocess": _in_process,
    "ray": _on_ray,
}


def answer_for(kind: str, client: int, content: RecordDict) -> RecordDict:
    """What a worker does with a job."""
    from wardround.client.round import answer
    from wardround.client.site import SimulatedSite

    return answer(kind, content, lambda: SimulatedSite(client))


if __name__ == "__main__":
    run_fork_server(int(sys.argv[1]), answer_for)
