"""One simulated run, in this process or on a Ray cluster."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from wardround.client.app import app as client_app
from wardround.common.runtime import resolve_device, resolve_threads
from wardround.common.settings.tree import Settings
from wardround.server.app import conduct
from wardround.server.engines.local_grid import LocalGrid
from wardround.server.engines.personal_models import personalise, texts_to_personalise
from wardround.server.engines.pool import WorkerPool
from wardround.server.rounds.clients import GridClients


def simulate(settings: Settings) -> None:
    """Run all clients here, or on a Ray cluster; then make personal models, if asked.

    Raises:
        ValueError: bad input.
        RunFailed: the run could not be finished.
    """
    if not settings.engine.is_simulated:
        raise ValueError(
            "engine=deployment runs across real sites; use `wardround submit` for that."
        )
    if settings.personalisation.name == "none":
        ENGINES[settings.engine.name](settings)
        return
    own_texts = texts_to_personalise(settings)
    ENGINES[settings.engine.name](settings)
    personalise(settings, own_texts)


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
    """Return the number of processes to train in, at most one for each client.

    `auto` is one for each GPU; on the CPU it is the number of processes for which there
    are `threads` CPUs each. The number of threads, on which sums depend, never follows
    from the number of workers.

    Raises:
        ValueError: several workers on the CPU would each use all of it.
    """
    asked = settings.engine.workers
    device = resolve_device(settings.device)
    if asked == "auto":
        asked = _automatic_workers(settings, device)
    elif asked > 1 and device.type == "cpu" and settings.threads == "auto":
        raise ValueError(
            f"engine.workers is {asked} but threads is auto, so each worker would use "
            "every CPU. Set threads=1; sums depend on the number of threads, so it is "
            "part of the run's identity."
        )
    return max(1, min(asked, settings.num_clients))


def _automatic_workers(settings: Settings, device: torch.device) -> int:
    if device.type == "cpu":
        return resolve_threads("auto") // resolve_threads(settings.threads)
    if settings.device in ("auto", device.type):
        return int(torch.accelerator.device_count())
    return 1


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
    init_args: dict[str, Any] = {}
    if engine.address is not None:
        init_args["address"] = engine.address
    else:
        _check_scratch_folder()
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


def _check_scratch_folder() -> None:
    """Raise ValueError if Ray cannot make its sockets, whose paths may have 107 bytes."""
    for variable in ("RAY_TMPDIR", "TMPDIR"):
        folder = os.environ.get(variable)
        if folder:
            break
    else:
        return
    most = _SOCKET_BYTES - _RAY_BYTES
    if len(os.fsencode(folder)) > most:
        raise ValueError(
            f"{variable} is '{folder}', too long for Ray's sockets (at most {most} bytes). "
            "Set RAY_TMPDIR=/tmp, or another short folder."
        )


_SOCKET_BYTES = 107
"""Longest path of a socket in a file system (Linux, sun_path)."""
_RAY_BYTES = len("/ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store")
"""What Ray puts after its scratch folder."""

ENGINES: dict[str, Callable[[Settings], None]] = {
    "inprocess": _in_process,
    "ray": _on_ray,
}
