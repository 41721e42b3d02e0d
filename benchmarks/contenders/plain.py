"""The lower limit: federated averaging as a plain PyTorch loop, in one process or in several."""

from __future__ import annotations

import json
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, multiprocessing, nn

from benchmarks.contenders.job import BATCH, LEARNING_RATE, Clock, Job, read_job

Data = tuple[Tensor, Tensor]  # input_ids (n, T), labels (n,)


def build(job: Job) -> nn.Module:
    """Return the classifier."""
    from transformers import AutoModelForSequenceClassification, logging

    logging.set_verbosity_error()
    torch.manual_seed(0)
    model: Any = AutoModelForSequenceClassification.from_pretrained(
        job.model, num_labels=2
    )
    network: nn.Module = model.to(job.device).train()
    return network


def parts(job: Job) -> list[Data]:
    """Return every client's texts, dealt like cards."""
    content = json.loads(Path(job.token_ids).read_text(encoding="utf-8"))
    input_ids, labels = (
        torch.tensor(content["input_ids"]),
        torch.tensor(content["labels"]),
    )
    return [
        (
            input_ids[k :: job.num_clients].to(job.device),
            labels[k :: job.num_clients].to(job.device),
        )
        for k in range(job.num_clients)
    ]


def train(model: nn.Module, data: Data) -> None:
    """Train one epoch with SGD."""
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    for input_ids, labels in zip(
        data[0].split(BATCH), data[1].split(BATCH), strict=True
    ):
        mask = torch.ones_like(input_ids)
        model(input_ids=input_ids, attention_mask=mask, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@torch.no_grad()
def load(model: nn.Module, tensors: list[Tensor]) -> None:
    """Load these weights."""
    for parameter, tensor in zip(model.parameters(), tensors, strict=True):
        parameter.copy_(tensor)


@torch.no_grad()
def one_clients_round(
    model: nn.Module, shared: list[Tensor], total: list[Tensor], job: Job, data: Data
) -> None:
    """Load the weights, train, and add n_k w_k to the sum."""
    load(model, shared)
    if job.has_steps:
        with torch.enable_grad():
            train(model, data)
    for parameter, summed in zip(model.parameters(), total, strict=True):
        summed.add_(parameter, alpha=len(data[1]))


@torch.no_grad()
def finish(shared: list[Tensor], totals: list[list[Tensor]], num_examples: int) -> None:
    """Add the sums of all processes, divide by the number of examples, and empty the sums."""
    for number, tensor in enumerate(shared):
        tensor.copy_(totals[0][number])
        for total in totals[1:]:
            tensor.add_(total[number])
        tensor.div_(num_examples)
        for total in totals:
            total[number].zero_()


def run_alone(job: Job) -> None:
    """Run in one process."""
    torch.set_num_threads(job.threads)
    clock, model, data = Clock(job), build(job), parts(job)
    shared = [parameter.detach().clone() for parameter in model.parameters()]
    total = [torch.zeros_like(tensor) for tensor in shared]
    clock.begin()
    for number in range(1, job.num_rounds + 1):
        for own in data:
            one_clients_round(model, shared, total, job, own)
        finish(shared, [total], sum(len(own[1]) for own in data))
        if job.device != "cpu":
            torch.cuda.synchronize()
        clock.end(number)
    clock.write()


def run_together(job: Job) -> None:
    """Run in several processes. The global tensors and the sum of each lie in shared memory."""
    torch.set_num_threads(job.threads)
    clock, model, data = Clock(job), build(job), parts(job)
    shared = [
        parameter.detach().clone().share_memory_() for parameter in model.parameters()
    ]
    totals = [
        [torch.zeros_like(tensor).share_memory_() for tensor in shared]
        for _ in range(job.processes)
    ]
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(job.processes)
    others = [
        context.Process(target=work, args=(job, rank, shared, totals[rank], barrier))
        for rank in range(1, job.processes)
    ]
    for other in others:
        other.start()
    barrier.wait()
    clock.begin()
    for number in range(1, job.num_rounds + 1):
        for own in data[0 :: job.processes]:
            one_clients_round(model, shared, totals[0], job, own)
        barrier.wait()
        finish(shared, totals, sum(len(own[1]) for own in data))
        clock.end(number)
        barrier.wait()
    for other in others:
        other.join()
    clock.write()


def work(
    job: Job, rank: int, shared: list[Tensor], total: list[Tensor], barrier: Barrier
) -> None:
    """Do the work of another process than the first."""
    torch.set_num_threads(job.threads)
    model, data = build(job), parts(job)
    barrier.wait()
    for _ in range(job.num_rounds):
        for own in data[rank :: job.processes]:
            one_clients_round(model, shared, total, job, own)
        barrier.wait()
        barrier.wait()


def main() -> None:
    """Run the command line."""
    job = read_job()
    run_alone(job) if job.processes == 1 else run_together(job)


if __name__ == "__main__":
    main()
