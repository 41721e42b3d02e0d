"""A pool of worker processes on this machine: jobs in order, tensors through shared memory.

The global tensors are written once a round. A worker trains in a slot of shared memory.
The slot is used again only after its update was folded, so that memory does not grow
with the number of clients.
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from flwr.app import RecordDict

from wardround.common.data.corpus import open_corpus
from wardround.common.errors import ProcessGone, RunFailed, WorkerEnded
from wardround.common.model.state import open_model
from wardround.common.process.frames import receive_frame, send_frame
from wardround.common.process.shared_memory import create_memory
from wardround.common.process.worker import (
    END_SECONDS,
    Facts,
    end_process,
    receive_message,
    send_message,
    start_process,
)
from wardround.common.settings.tree import Settings
from wardround.common.wire.arrays import put_arrays, take_arrays
from wardround.common.wire.flat_arrays import read_arrays
from wardround.server.engines.run_memory import corpus_to_memory, tensors_in

if TYPE_CHECKING:
    from torch import Tensor

FORK_SERVER = "wardround.server.engines.fork_server"
"""The module that is run to fork the workers."""
# With a spare slot, a worker goes on while its update waits for an earlier one. Small
# models get more spare slots.
_SPARE_BYTES = 64 << 20


@dataclass(frozen=True)
class Job:
    """A request to one client."""

    kind: str
    client: int
    content: RecordDict
    """Its tensors are `shared`, (P,) fp32, the same in all jobs of a round."""


@dataclass
class _Worker:
    number: int
    connection: socket.socket
    job: str = ""
    slot: int = -1


class WorkerPool:
    """Worker processes, each with a resident model. Leaving the context ends them."""

    def __init__(self, num_workers: int, settings: Settings) -> None:
        """Start the fork server.

        Args:
            settings: settings of the run. The workers serve this run alone.
        """
        self.settings = settings
        self._num_workers = num_workers
        self._process, self._control = start_process(FORK_SERVER, path=sys.path)
        self._global: Tensor | None = None
        self._slots: list[Tensor] = []
        self._free: list[int] = []
        self._lent = -1
        self._workers: list[_Worker] = []
        self._waiting: deque[tuple[str, Job]] = deque()
        self._done: dict[str, tuple[tuple[Facts, RecordDict] | None, int]] = {}

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self) -> None:
        """Start the workers. They build their models while this process goes on."""
        if self._global is not None:
            return
        corpus = open_corpus(self.settings)
        size = open_model(self.settings, corpus.label_names).layout.size
        spare = max(1, min(self._num_workers, _SPARE_BYTES // (4 * size)))
        num_slots = self._num_workers + spare
        memory = create_memory((1 + num_slots) * 4 * size)
        texts, facts = corpus_to_memory(corpus)
        self._global, *self._slots = tensors_in(memory, size)
        self._free = list(range(num_slots))
        opening = {"settings": self.settings.to_json(), "corpus": facts}
        self._send_to_fork_server(json.dumps(opening).encode(), memory, texts)
        os.close(memory)
        os.close(texts)
        for number in range(self._num_workers):
            self._start(number)

    def begin(self, jobs: Mapping[str, Job]) -> None:
        """Begin a round: drop the rest of the last one, and start the jobs in their order."""
        self.open()
        assert self._global is not None
        late = [worker for worker in self._workers if worker.job]
        for worker in late:
            self._replace(worker)
        self._waiting.clear()
        self._free = list(range(len(self._slots)))
        self._done = {}
        self._lent = -1
        _, arrays = take_arrays(next(iter(jobs.values())).content)
        self._global.numpy()[:] = arrays["shared"]
        self._waiting.extend(jobs.items())
        self._assign()

    def reply(self, job: str, deadline: float) -> RecordDict | None:
        """Wait for one job's answer. Return None at the deadline, or if the job is unknown.

        The answer's tensors lie in shared memory. They are valid until the next call.

        Args:
            deadline: in the time of `time.monotonic()`.

        Raises:
            WorkerEnded: the worker ended before it answered.
        """
        if self._lent >= 0:
            self._free.append(self._lent)
            self._lent = -1
        while job not in self._done:
            self._assign()
            if not self._is_under_way(job):
                return None
            if not self._collect(deadline - time.monotonic()):
                return None
        answer, slot = self._done.pop(job)
        self._assign()
        if answer is None:
            self._free.append(slot)
            raise WorkerEnded
        self._lent = slot
        facts, content = answer
        memory = self._slots[slot].numpy().view(np.uint8)
        put_arrays(content, read_arrays(memory, facts["table"]))
        return content

    def close(self) -> None:
        """End all processes and wait until they are gone."""
        for worker in self._workers:
            worker.connection.close()
        self._workers.clear()
        end_process(self._process, self._control)

    def _is_under_way(self, job: str) -> bool:
        return any(job == worker.job for worker in self._workers) or any(
            job == name for name, _ in self._waiting
        )

    def _assign(self) -> None:
        """Give waiting jobs to idle workers, as long as there are free slots."""
        for worker in self._workers:
            if not worker.job and self._waiting and self._free:
                worker.job, job = self._waiting.popleft()
                worker.slot = self._free.pop()
                facts = {"kind": job.kind, "client": job.client, "slot": worker.slot}
                # A worker that has ended is noticed when its answer is collected.
                with suppress(ProcessGone):
                    send_message(worker.connection, facts, job.content)

    def _collect(self, seconds: float) -> bool:
        """Wait until a worker answers or ends. Return False if neither happens in time."""
        watch = select.poll()
        by_descriptor = {
            worker.connection.fileno(): worker for worker in self._workers if worker.job
        }
        for descriptor in by_descriptor:
            watch.register(descriptor, select.POLLIN)
        ready = watch.poll(max(0.0, seconds) * 1000)
        for descriptor, _ in ready:
            worker = by_descriptor[descriptor]
            answer = None
            with suppress(ProcessGone):
                answer = receive_message(worker.connection)
            self._done[worker.job] = (answer, worker.slot)
            worker.job = ""
            if answer is None:
                self._replace(worker)
        return bool(ready)

    def _replace(self, worker: _Worker) -> None:
        """Start another worker in its place. The old one is gone then, and its slot is free."""
        worker.connection.close()
        self._workers.remove(worker)
        self._start(worker.number)
        self._control.settimeout(END_SECONDS)
        with _fork_server_needed():
            receive_frame(self._control)

    def _start(self, number: int) -> None:
        ours, theirs = socket.socketpair()
        ours.settimeout(END_SECONDS)  # for what is left of a frame once it has begun
        with theirs:
            self._send_to_fork_server(str(number).encode(), theirs.fileno())
        self._workers.append(_Worker(number, ours))

    def _send_to_fork_server(self, payload: bytes, *descriptors: int) -> None:
        with _fork_server_needed():
            send_frame(self._control, payload, descriptors)


@contextmanager
def _fork_server_needed() -> Iterator[None]:
    try:
        yield
    except ProcessGone:
        raise RunFailed(
            "the process that starts workers has ended; its last output is above. Run the "
            "same command again: the run continues after the last complete round. "
            "Without workers: engine.workers=1."
        ) from None
