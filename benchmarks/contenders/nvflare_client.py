"""A client of NVFLARE's simulator: its Client API around the plain loop's training."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.contenders.job import read_job
from benchmarks.contenders.plain import build, parts, train


class Classifier(nn.Module):
    """The global model, in the form that the server can build."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        from transformers import AutoModelForSequenceClassification

        inner: Any = AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=2
        )
        # The same names as in the clients' model.
        for name, child in inner.named_children():
            self.add_module(name, child)


def main() -> None:
    """Receive, train and send until the run is over."""
    import nvflare.client as flare

    job = read_job(sys.argv[1:])
    torch.set_num_threads(job.threads)
    model, data = build(job), parts(job)
    flare.init()
    own = data[int(flare.get_site_name().removeprefix("site-")) - 1]
    while flare.is_running():
        received = flare.receive()
        with (Path(job.folder) / "received.txt").open("a", encoding="utf-8") as file:
            file.write(f"{received.current_round} {time.time()}\n")
        weights = {
            name: torch.as_tensor(value) for name, value in received.params.items()
        }
        model.load_state_dict(weights)
        if job.has_steps:
            train(model, own)
        meta = {"NUM_STEPS_CURRENT_ROUND": len(own[1])}
        tensors = {
            name: tensor.cpu().numpy() for name, tensor in model.state_dict().items()
        }
        flare.send(flare.FLModel(params=tensors, metrics={"accuracy": 0.0}, meta=meta))


if __name__ == "__main__":
    main()
