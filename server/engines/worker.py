"""A worker process of a simulation: it trains in a slot of shared memory."""

from __future__ import annotations

import os
import socket
import traceback
from typing import NoReturn

import numpy as np
import torch
from flwr.app import RecordDict
from torch import Tensor

from wardround.client.round import answer
from wardround.client.site import SimulatedSite
from wardround.common.model.state import move_into, open_model
from wardround.common.process.worker import Facts, end_with, serve
from wardround.common.settings.tree import Settings
from wardround.common.wire.arrays import put_arrays, take_arrays
from wardround.common.wire.flat_arrays import write_arrays


def run_worker(
    connection: socket.socket,
    number: int,
    settings: Settings,
    label_names: tuple[str, ...],
    tensors: list[Tensor],
) -> NoReturn:
    """Answer jobs until the simulation closes the socket.

    Args:
        number: the worker's number; it picks the worker's GPU.
        tensors: the shared tensors: the global one first, then one for each slot.
    """
    end_with(connection)
    try:
        _choose_gpu(settings, number)
        state = open_model(settings, label_names)
        global_tensor, *slots = tensors

        def train(
            facts: Facts, content: RecordDict
        ) -> tuple[Facts, RecordDict, int | None]:
            put_arrays(content, {"shared": global_tensor.numpy()})
            slot = slots[facts["slot"]]
            if state.device.type == "cpu":
                move_into(slot)  # the simulation reads the trained tensors there
            client = int(facts["client"])
            content = answer(
                facts["kind"], content, lambda: SimulatedSite(client)
            ).content
            rest, arrays = take_arrays(content)
            table = write_arrays(slot.numpy().view(np.uint8), arrays)
            return {"table": table}, rest, None

        serve(connection, train)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def _choose_gpu(settings: Settings, number: int) -> None:
    """Show this process one of the GPUs that the simulation may use, in turn.

    CUDA must not be in use yet.
    """
    if settings.device not in ("auto", "cuda") or torch.cuda.device_count() == 0:
        return
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = allowed.split(",") if allowed else []
    if not names:
        names = [str(gpu) for gpu in range(torch.cuda.device_count())]
    os.environ["CUDA_VISIBLE_DEVICES"] = names[number % len(names)]
