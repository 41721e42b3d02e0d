"""NVFLARE's simulator with its FedAvg recipe; as many clients at a time as there are cores."""

from __future__ import annotations

import os
from pathlib import Path

from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
from nvflare.recipe.sim_env import SimEnv

from benchmarks.contenders.job import Clock, read_job

CLIENT = Path(__file__).with_name("nvflare_client.py")


def main() -> None:
    """Run the command line."""
    job = read_job()
    clock = Clock(job)
    recipe = FedAvgRecipe(
        name="benchmark",
        model={
            "class_path": "benchmarks.contenders.nvflare_client.Classifier",
            "args": {"folder": job.model},
        },
        min_clients=job.num_clients,
        num_rounds=job.num_rounds + 1,  # the end of a round is the begin of the next
        train_script=str(CLIENT),
        train_args=f"{job.folder}/job.json",
    )
    cores = len(os.sched_getaffinity(0))
    environment = SimEnv(
        num_clients=job.num_clients,
        num_threads=min(cores, job.num_clients),
        workspace_root=f"{job.folder}/nvflare",
    )
    recipe.execute(environment)
    # A round ends where the next one reaches a client first.
    lines = (Path(job.folder) / "received.txt").read_text(encoding="utf-8").splitlines()
    first: dict[int, float] = {}
    for number, at in (line.split() for line in lines):
        first[int(number)] = min(float(at), first.get(int(number), float("inf")))
    clock.begin(first[0])
    for later in range(1, job.num_rounds + 1):
        clock.end(later, first[later])
    clock.write()


if __name__ == "__main__":
    main()
