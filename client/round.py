"""One client's part of a round: content in, content out, and no more than is meant to leave."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from math import isfinite
from typing import Any

import numpy as np
from flwr.app import RecordDict

from client.site import Examples, Site
from common.data.batches import by_length, evaluation_batches
from common.model.build import draw_head
from common.model.counts import Counts
from common.model.flat import Layout, distance, tensor_of
from common.model.state import ModelState, open_model
from common.model.train import LossNotFinite, Place, evaluate, train_epochs
from common.settings import Settings
from common.wire.arrays import Payload
from common.wire.forms import EXACT, decode, encode, whole
from common.wire.messages import (
    EVALUATE,
    HELLO,
    TRAIN,
    Card,
    LacksBase,
    Task,
    Update,
    pack_card,
    pack_counts,
    pack_lack,
    pack_refusal,
    pack_update,
    unpack_hello,
    unpack_task,
)

log = logging.getLogger(__name__)


def answer(kind: str, content: RecordDict, find_site: Callable[[], Site]) -> RecordDict:
    """Do the work, or refuse. The details of a failure stay in this machine's log.

    An exception's text may hold a path, a label or a piece of text; what crosses is its kind only.

    Args:
        kind: a message type of `common/wire/messages.py`.
    """
    try:
        unpack, work, pack = WORK[kind]
        site = find_site()
        return pack(work(unpack(content), site))
    except LacksBase as lack:
        log.info("the tensors that a task is written against are not held here; asking for all of them")
        return pack_lack(str(lack))
    except LossNotFinite as error:
        return pack_refusal(str(error))
    except Exception as error:
        log.exception("this client could not answer a message of type %s", kind)
        return pack_refusal(f"{type(error).__name__}; see the client's own log")


def warm_up() -> None:
    """Import what takes seconds, before anybody waits for it."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer  # noqa: F401


def introduce(settings: Settings, site: Site) -> Card:
    """Say who this is and how many examples it trains on. Raises ValueError for bad data."""
    examples = site.examples(site.localise(settings))
    return Card(site.client, len(examples.train), len(examples.test))


def run_local_round(task: Task, site: Site) -> Update:
    """Train the global model on the site's own examples.

    Where sites evaluate, the model as received is first put through the site's held-out texts.

    Where nothing is encoded, the returned tensors are the resident model's own buffer, if that is on the CPU:
    they hold until the next round of any client in this process.

    Raises:
        ValueError: the server's model is not the one these settings describe here.
        LacksBase: the task is written against tensors that this process does not hold.
        LossNotFinite: training diverged.
    """
    started = time.perf_counter()
    settings = site.localise(task.settings)
    examples = site.examples(settings)
    state, received = _load(task, settings, examples, site)
    test = _count(state, settings, examples) if settings.evaluation.where == "sites" else None
    model = state.classifier.model
    if task.round == 1 and settings.train.head_init == "per_site":
        draw_head(model, state.classifier.new_head, settings.seed, client=task.client + 1)
    place = Place(settings.seed, task.round, task.client, state.device, settings.precision)
    new_head = state.classifier.new_head
    result = train_epochs(model, examples.corpus.train, examples.train, settings.train, place, new_head)
    trained = state.flat.detach().cpu().numpy()
    if site.kept is not None:
        norm = distance(tensor_of(trained), tensor_of(received))
        site.kept.update_norm = norm if isfinite(norm) else None
    return Update(
        round=task.round,
        layout=state.layout.digest,
        payload=_payload(task, site, trained, received),
        num_examples=len(examples.train),
        num_steps=result.num_steps,
        loss=result.loss,
        seconds=time.perf_counter() - started,
        test=test,
        holds=site.kept.version if site.kept else "",
    )


def count_held_out(task: Task, site: Site) -> Counts:
    """Put the global model through the site's held-out texts. Raises as `run_local_round` does."""
    settings = site.localise(task.settings)
    examples = site.examples(settings)
    state, _ = _load(task, settings, examples, site)
    return _count(state, settings, examples)


WORK: dict[str, tuple[Callable[..., Any], Callable[..., Any], Callable[..., RecordDict]]] = {
    HELLO: (unpack_hello, introduce, pack_card),
    TRAIN: (unpack_task, run_local_round, pack_update),
    EVALUATE: (unpack_task, count_held_out, pack_counts),
}
"""By message type: what unpacks the content, the work on that and the site, and what packs its result."""


def _load(task: Task, settings: Settings, examples: Examples, site: Site) -> tuple[ModelState, np.ndarray]:
    """The resident model with the global tensors, and those tensors, (P,) fp32."""
    state = open_model(settings, examples.corpus.label_names)
    if state.layout.digest != task.layout:
        raise ValueError(
            "the server's model has other tensor names or shapes than this client's; check that both have "
            "the same model files and library versions."
        )
    received = _received(task, state.layout, site)
    state.load(tensor_of(received))
    return state, received


def _received(task: Task, layout: Layout, site: Site) -> np.ndarray:
    """The global tensors, from the task alone or from those this process has kept."""
    base = np.broadcast_to(np.float32(0), (layout.size,))  # a payload that is whole needs its length only
    if task.base:
        if site.kept is None or site.kept.tensors is None or site.kept.version != task.base:
            raise LacksBase(task.base)
        base = site.kept.tensors
    received = decode(task.payload, base)
    if site.kept is not None:
        site.kept.version, site.kept.tensors = task.version, received
    return received


def _payload(task: Task, site: Site, trained: np.ndarray, received: np.ndarray) -> Payload:
    """The trained tensors as they travel. Inside one machine they need not be made smaller without loss."""
    transforms = task.settings.transforms
    if transforms.name == EXACT:
        is_near = task.settings.engine.is_simulated
        return whole(trained) if is_near else encode(EXACT, trained, received)
    residuals = site.residuals(task.settings) if transforms.error_feedback else None
    if residuals is None:
        return encode(transforms.name, trained, received)
    run = task.settings.to_json()
    residual = residuals.take(run, task.round, len(trained))
    payload = encode(transforms.name, trained, received, residual)
    residuals.put(run, task.round, residual)
    return payload


def _count(state: ModelState, settings: Settings, examples: Examples) -> Counts:
    texts = examples.corpus.test
    order = by_length(texts, examples.test)
    batches = evaluation_batches(texts, order, settings.train, settings.evaluation.batch_size, state.device)
    return evaluate(state.classifier.model, batches, settings.precision)
