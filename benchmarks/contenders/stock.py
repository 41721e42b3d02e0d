"""The stock app of `benchmarks/stock` on Flower's Simulation Engine (Ray), one CPU per client."""

from __future__ import annotations

import sys
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

from benchmarks.contenders.job import BATCH, LEARNING_RATE, Clock, Job, read_job

APP = Path(__file__).parents[1] / "stock"


def main() -> None:
    """Run the command line."""
    job = read_job()
    sys.path.insert(0, str(APP))
    from stock_quickstart.client_app import app as client_app
    from stock_quickstart.server_app import run

    clock, rounds = Clock(job), Path(job.folder) / "rounds.txt"
    server_app = ServerApp()

    @server_app.main()
    def serve(grid: Grid, context: Context) -> None:
        clock.begin()
        run(grid, config(job, rounds))

    gpus = 0.0 if job.device == "cpu" else 1.0 / job.num_clients
    run_simulation(
        server_app=server_app,
        client_app=client_app,
        num_supernodes=job.num_clients,
        backend_config={
            "client_resources": {"num_cpus": job.threads, "num_gpus": gpus}
        },
    )
    for line in rounds.read_text(encoding="utf-8").splitlines():
        number, ended = line.split()
        clock.end(int(number), float(ended))
    clock.write()


def config(job: Job, rounds: Path) -> dict[str, str]:
    """Return the job as settings of the stock app."""
    return {
        "model": job.model,
        "num-rounds": str(job.num_rounds),
        "num-nodes": str(job.num_clients),
        "rounds-file": str(rounds),
        "texts-file": job.token_ids if job.has_steps else "",
        "learning-rate": str(LEARNING_RATE),
        "batch-size": str(BATCH),
        "device": job.device,
    }


if __name__ == "__main__":
    main()
