"""The worker processes of a simulation, from inside: one that forks them, and what each of them does.

    simulation  --socket-->  fork server  (imports everything and builds the model once; computes nothing)
         |                      | fork
         +------socket------> worker  (trains, on `threads` threads)

All of them end when the simulation does, however it ends: the kernel closes its sockets.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from threading import Thread
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import RecordDict

from wardround.common.data.corpus import Corpus, keep_corpus
from wardround.common.data.texts import PARTS
from wardround.common.data.tokens import TokenisedTexts
from wardround.common.errors import ProcessGone
from wardround.common.model.state import move_into, open_model
from wardround.common.process import frames, shared_memory
from wardround.common.settings.tree import Settings
from wardround.common.tasks.table import import_model_classes
from wardround.common.wire.contents import (
    dump_content,
    load_content,
    put_arrays,
    take_arrays,
)

if TYPE_CHECKING:
    from torch import Tensor

_ARRAYS = ("ids", "starts", "labels")
Answer = Callable[[str, int, RecordDict], RecordDict]
"""From a message's type, the number of the client it is for, and its content, to the answer's content."""


def run_fork_server(descriptor: int, answer: Answer) -> None:
    """Fork a worker for every socket that comes in, until the simulation ends; never returns.

    The first frame holds the settings and what is to be known of the texts, and with it come the tensors'
    and the texts' memory. Every other one holds a worker's number, with its socket; a worker of that number
    that is still there is ended first.

    Args:
        descriptor: socket to the simulation.
        answer: what a worker does with a job.
    """
    import_model_classes()

    with socket.socket(fileno=descriptor) as control, suppress(ProcessGone):
        written, (tensors_fd, corpus_fd) = frames.receive_frame(control)
        opening = json.loads(written)
        settings = Settings.from_json(opening["settings"])
        corpus = corpus_from_memory(corpus_fd, opening["corpus"])
        keep_corpus(settings, corpus)
        tensors = _build_model(settings, corpus.label_names, tensors_fd)
        pids: dict[int, int] = {}
        while True:
            request, (worker_fd,) = frames.receive_frame(control)
            number = int(request)
            if number in pids:
                _end(pids[number])
                frames.send_frame(control, b"its memory is free")
            pids[number] = os.fork()
            if pids[number] == 0:
                control.close()
                _choose_gpu(settings, number)
                _run_worker(
                    socket.socket(fileno=worker_fd),
                    settings,
                    corpus.label_names,
                    tensors,
                    answer,
                )
            os.close(worker_fd)
    with suppress(ChildProcessError):
        while True:
            os.wait()
    os._exit(0)  # nothing is left to tidy up, and PyTorch takes its time to leave


def _end(pid: int) -> None:
    """Make sure a worker is gone, whatever it does."""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def _build_model(
    settings: Settings, label_names: tuple[str, ...], tensors_fd: int
) -> list[Tensor]:
    """Build what every worker inherits; returns the shared tensors, the global ones first.

    On one thread, since a process that has computed on several cannot be forked safely, and on the CPU, since
    no process that uses a GPU can: workers on GPUs build their own.
    """
    state = open_model(replace(settings, threads=1, device="cpu"), label_names)
    tensors = tensors_in(tensors_fd, state.layout.size)
    move_into(tensors[1])  # no copy of it is kept here
    return tensors


def _choose_gpu(settings: Settings, number: int) -> None:
    """Each worker sees one GPU of those the simulation may use, in turn. CUDA must not be in use yet."""
    import torch

    if settings.device in ("auto", "cuda") and torch.cuda.device_count() > 0:
        allowed = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        names = (
            allowed.split(",")
            if allowed
            else [str(gpu) for gpu in range(torch.cuda.device_count())]
        )
        os.environ["CUDA_VISIBLE_DEVICES"] = names[number % len(names)]


def _run_worker(
    connection: socket.socket,
    settings: Settings,
    label_names: tuple[str, ...],
    tensors: list[Tensor],
    answer: Answer,
) -> None:
    """Answer jobs until the simulation closes the socket; never returns."""
    Thread(target=frames.end_with, args=(connection,), daemon=True).start()
    try:
        state = open_model(settings, label_names)
        global_tensors, *slots = tensors
        while True:
            job, _ = frames.receive_frame(connection)
            words, content = load_content(job)
            put_arrays(content, {"shared": global_tensors.numpy()})
            slot = slots[words["slot"]]
            if state.device.type == "cpu":
                move_into(slot)  # what is trained lies where the simulation reads it
            answered = answer(words["kind"], words["client"], content)
            _, arrays = take_arrays(answered)
            table = shared_memory.write_arrays(slot.numpy().view(np.uint8), arrays)
            frames.send_frame(connection, dump_content({"table": table}, answered))
    except ProcessGone:
        os._exit(0)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)


def tensors_in(fd: int, size: int) -> list[Tensor]:
    """The memory behind `fd` as tensors of `size` fp32 numbers each, one after the other."""
    import torch

    numbers = torch.frombuffer(mmap.mmap(fd, 0), dtype=torch.float32)
    return [numbers[start : start + size] for start in range(0, len(numbers), size)]


def corpus_to_memory(corpus: Corpus) -> tuple[int, dict[str, Any]]:
    """Write the tokenised texts into fresh memory: its descriptor, and what else is to be known of them."""
    arrays = {
        f"{part}.{name}": np.ascontiguousarray(getattr(getattr(corpus, part), name))
        for part in PARTS
        for name in _ARRAYS
    }
    fd, table = shared_memory.memory_for(arrays)
    names = ("label_names", "site_sizes", "test_sizes", "opted_out_sizes")
    facts = {name: getattr(corpus, name) for name in names}
    return fd, {"table": table, "pad_id": corpus.train.pad_id} | facts


def corpus_from_memory(fd: int, facts: dict[str, Any]) -> Corpus:
    """Inverse of `corpus_to_memory`; the arrays are views, read only, and there are no findings."""
    memory = shared_memory.bytes_of(fd)
    memory.flags.writeable = False
    arrays = shared_memory.read_arrays(memory, facts["table"])
    parts = {
        part: TokenisedTexts(
            **{name: arrays[f"{part}.{name}"] for name in _ARRAYS},
            pad_id=facts["pad_id"],
        )
        for part in PARTS
    }
    return Corpus(
        **parts,
        label_names=tuple(facts["label_names"]),
        site_sizes=tuple((str(name), int(size)) for name, size in facts["site_sizes"]),
        test_sizes=tuple(facts["test_sizes"]),
        opted_out_sizes=tuple(facts["opted_out_sizes"]),
        findings=(),
    )
