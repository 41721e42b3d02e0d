"""The process that forks a simulation's workers. It is run as a module.

    simulation  --socket-->  fork server  (imports everything and builds the model once)
         |                      | fork
         +------socket------> worker  (trains, on `threads` threads)

All of them end when the simulation does, however it ends: the kernel closes its sockets.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn

from wardround.common.data.corpus import keep_corpus
from wardround.common.errors import ProcessGone
from wardround.common.model.state import move_into, open_model
from wardround.common.process.frames import receive_frame, send_frame
from wardround.common.settings.tree import Settings
from wardround.common.tasks.table import import_model_classes
from wardround.server.engines.run_memory import corpus_from_memory, tensors_in
from wardround.server.engines.worker import run_worker

if TYPE_CHECKING:
    from torch import Tensor


def run_fork_server(descriptor: int) -> NoReturn:
    """Fork a worker for every socket that arrives, until the simulation ends.

    The first frame holds the settings and facts about the texts; the memories of the
    tensors and of the texts come with it. Every later frame holds a worker's number,
    and its socket comes with it; an older worker of that number is ended first.

    Args:
        descriptor: socket to the simulation.
    """
    import_model_classes()
    with socket.socket(fileno=descriptor) as control, suppress(ProcessGone):
        payload, (tensors_memory, texts_memory) = receive_frame(control)
        opening = json.loads(payload)
        settings = Settings.from_json(opening["settings"])
        corpus = corpus_from_memory(texts_memory, opening["corpus"])
        keep_corpus(settings, corpus)
        tensors = _build_model(settings, corpus.label_names, tensors_memory)
        process_ids: dict[int, int] = {}
        while True:
            request, (worker_socket,) = receive_frame(control)
            number = int(request)
            if number in process_ids:
                _end(process_ids[number])
                send_frame(control, b"its memory is free")
            process_ids[number] = os.fork()
            if process_ids[number] == 0:
                control.close()
                connection = socket.socket(fileno=worker_socket)
                run_worker(connection, number, settings, corpus.label_names, tensors)
            os.close(worker_socket)
    with suppress(ChildProcessError):
        while True:
            os.wait()
    # There is nothing to tidy up, and PyTorch needs long to leave.
    os._exit(0)


def _end(process_id: int) -> None:
    """End a worker by force."""
    os.kill(process_id, signal.SIGKILL)
    os.waitpid(process_id, 0)


def _build_model(
    settings: Settings, label_names: tuple[str, ...], tensors_memory: int
) -> list[Tensor]:
    """Build the model that every worker inherits.

    It is built on one thread, because a process that has computed on several cannot be
    forked safely. It is built on the CPU, because a process that uses a GPU cannot be
    forked either: workers on GPUs build their own.

    Returns:
        The shared tensors: the global one first, then one for each slot.
    """
    state = open_model(replace(settings, threads=1, device="cpu"), label_names)
    tensors = tensors_in(tensors_memory, state.layout.size)
    move_into(tensors[1])  # no copy of it is kept here
    return tensors


if __name__ == "__main__":
    run_fork_server(int(sys.argv[1]))
