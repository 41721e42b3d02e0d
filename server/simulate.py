"""One simulated run: the door that picks an engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from client.app import app as client_app
from common.settings import Settings
from server.app import conduct
from server.local_grid import LocalGrid


def simulate(settings: Settings) -> None:
    """Run the whole federation here, or on a Ray cluster.

    Raises:
        ValueError: bad input. RunFailed: the run could not be finished.
    """
    if not settings.engine.is_simulated:
        raise ValueError("engine=deployment runs across real sites; use `wardround submit` for that.")
    ENGINES[settings.engine.name](settings)


def _in_process(settings: Settings) -> None:
    conduct(LocalGrid(client_app, settings.num_clients), settings)


def _on_ray(settings: Settings) -> None:
    try:
        import ray  # noqa: F401
    except ImportError:
        raise ValueError("engine=ray needs Ray; install it with: pip install 'wardround[ray]'") from None
    from flwr.simulation import run_simulation

    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        conduct(grid, settings)

    engine = settings.engine
    init_args: dict[str, Any] = {} if engine.address is None else {"address": engine.address}
    run_simulation(
        server_app=server_app,
        client_app=client_app,
        num_supernodes=settings.num_clients,
        backend_config={
            "init_args": init_args,
            "client_resources": {"num_cpus": engine.num_cpus, "num_gpus": engine.num_gpus},
        },
    )


ENGINES: dict[str, Callable[[Settings], None]] = {"inprocess": _in_process, "ray": _on_ray}
