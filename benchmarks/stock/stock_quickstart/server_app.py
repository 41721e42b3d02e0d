"""The server: stock FedAvg, and one line a round in a file."""

import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from stock_quickstart.task import get_model

app = ServerApp()


class TimedFedAvg(FedAvg):
    """FedAvg as it is; it only writes down when a round has ended."""

    rounds_file = Path()

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Stock aggregation, then the time."""
        metrics = super().aggregate_evaluate(server_round, replies)
        with self.rounds_file.open("a", encoding="utf-8") as file:
            file.write(f"{server_round} {time.time()}\n")
        return metrics


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run what the run config asks for."""
    run(grid, {key: str(value) for key, value in context.run_config.items()})


def run(grid: Grid, config: Mapping[str, str]) -> None:
    """Run the rounds; the clients are told the same configuration."""
    nodes = int(config["num-nodes"])
    strategy = TimedFedAvg(
        min_train_nodes=nodes, min_evaluate_nodes=nodes, min_available_nodes=nodes
    )
    strategy.rounds_file = Path(config["rounds-file"])
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(get_model(config["model"]).state_dict()),
        num_rounds=int(config["num-rounds"]),
        train_config=ConfigRecord(dict(config)),
        evaluate_config=ConfigRecord(dict(config)),
    )
