"""One client's part of a round: content in, content out, and no more than is meant to leave."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from math import hypot, isfinite
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from flwr.app import RecordDict

from client.plans import Declines, file_digest
from client.policy import Policy
from client.site import Examples, Kept, Order, Site
from client.variates import Variates
from common.data.batches import by_length, count_steps
from common.model.build import draw_head
from common.model.counts import Counts
from common.model.flat import distance, tensor_of
from common.model.state import ModelState, open_model
from common.model.train import LossNotFinite, Place, evaluate, train_epochs
from common.pretrained import weights_file
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

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)


def answer(kind: str, content: RecordDict, find_site: Callable[[], Site]) -> RecordDict:
    """Do the work, or refuse. The details of a failure stay in this machine's log.

    An exception's text may hold a path, a label or a piece of text; what crosses is a code.

    Args:
        kind: a message type of `common/wire/messages.py`.
    """
    try:
        unpack, work, pack = WORK[kind]
        site = find_site()
        return pack(work(_ordered(unpack(content), site), site))
    except Declines as no:
        log.info("a message of type %s is not answered: %s", kind, no)
        return pack_refusal(no.code, no.key)
    except LacksBase as lack:
        log.info("the tensors that a task is written against are not held here; asking for all of them")
        return pack_lack(str(lack))
    except LossNotFinite as error:
        log.warning("%s", error)
        return pack_refusal("diverged")
    except Exception as error:
        log.exception("this client could not answer a message of type %s", kind)
        return pack_refusal("bad_input" if isinstance(error, ValueError) else "failed")


def _ordered(asked: Any, site: Site) -> Any:
    """What is done: what was approved, where this site approves plans; else what the message says."""
    order = site.order
    if order is None:
        return asked
    if isinstance(asked, Task):
        return replace(asked, settings=order.settings, client=order.client, round=order.round)
    return order.settings


def warm_up() -> None:
    """Import what takes seconds, before anybody waits for it."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer  # noqa: F401


def introduce(settings: Settings, site: Site) -> Card:
    """Say who this is and how many examples it trains on. Raises ValueError or Declines for its data."""
    examples = site.examples(site.localise(settings))
    return Card(site.client, len(examples.train), len(examples.test) + len(examples.validation))


def run_local_round(task: Task, site: Site) -> Update:
    """Train the global model on the site's own examples.

    Where sites evaluate, the model as received is first put through the site's held-out texts.

    Where nothing is encoded, the returned tensors are the resident model's own buffer, if that is on the CPU:
    they hold until the next round of any client in this process.

    Raises:
        ValueError: the server's model is not the one these settings describe here.
        LacksBase: the task is written against tensors that this process does not hold.
        LossNotFinite: training diverged.
        Declines: the site's policy does not allow it.
    """
    started = time.perf_counter()
    settings = site.localise(_settings_of(task))
    examples = site.examples(settings)
    num_steps = settings.train.local_epochs * count_steps(len(examples.train), settings.train)
    _check_steps(num_steps, site)
    state, received = _load(task, settings, examples, site)
    sites_measure = settings.evaluation.where == "sites"
    test = _count(state, settings, examples) if sites_measure else None
    is_withheld = test is not None and _is_withheld(test, site)
    model = state.classifier.model
    if task.round == 1 and settings.train.draws_heads:
        draw_head(model, state.classifier.new_head, settings.seed, client=task.client + 1)
    place = Place(settings.seed, task.round, task.client, state.device, settings.precision)
    texts, (new_head, frozen) = examples.corpus.train, (state.classifier.new_head, state.classifier.frozen)
    run, variates, correction = _settings_of(task), None, None
    if settings.train.control_variates:
        variates = Variates.open(task, run, site, received, num_steps)
        if variates.correction is not None:
            correction = state.layout.views(tensor_of(variates.correction).to(state.device))
    loss = train_epochs(model, texts, examples.train, settings.train, place, new_head, frozen, correction)
    trained = state.flat.detach().cpu().numpy()
    if variates is not None:
        variates.keep(task, run, site, received, trained)
    if site.kept is not None:
        norm = distance(tensor_of(trained), tensor_of(received))
        site.kept.update_norm = norm if isfinite(norm) else None
    return Update(
        round=task.round,
        layout=state.layout.digest,
        payload=_payload(task, site, trained, received),
        num_examples=len(examples.train),
        num_steps=num_steps,
        loss=loss,
        seconds=time.perf_counter() - started,
        test=None if is_withheld else test,
        withheld=int(is_withheld),
        uncorrected=int(variates is not None and variates.is_lacking),
        holds=site.kept.version if site.kept else "",
    )


def count_held_out(task: Task, site: Site) -> Counts:
    """Put the global model through the site's held-out texts. Raises as `run_local_round` does."""
    settings = site.localise(_settings_of(task))
    examples = site.examples(settings)
    state, _ = _load(task, settings, examples, site)
    counts = _count(state, settings, examples)
    if _is_withheld(counts, site):
        raise Declines("counts_withheld")
    return counts


def _settings_of(task: Task) -> Settings:
    if task.settings is None:
        raise ValueError("a task came without settings, and no plan was approved")
    return task.settings


def _check_steps(num_steps: int, site: Site) -> None:
    """Raise Declines where a round would have more optimiser steps than the policy allows."""
    if site.order is not None and num_steps > site.file.policy.max_steps:
        raise Declines("policy", "train.local_epochs", f"{num_steps} steps a round")


def _is_withheld(counts: Counts, site: Site) -> bool:
    """Whether the policy keeps these counts at the site: a small one may tell of a single text."""
    if site.order is None:
        return False
    cells = np.concatenate([part.confusion for part in counts.parts])
    return bool(((cells > 0) & (cells < site.file.policy.min_count)).any())


WORK: dict[str, tuple[Callable[..., Any], Callable[..., Any], Callable[..., RecordDict]]] = {
    HELLO: (unpack_hello, introduce, pack_card),
    TRAIN: (unpack_task, run_local_round, pack_update),
    EVALUATE: (unpack_task, count_held_out, pack_counts),
}
"""By message type: what unpacks the content, the work on that and the site, and what packs its result."""


def _load(task: Task, settings: Settings, examples: Examples, site: Site) -> tuple[ModelState, np.ndarray]:
    """The resident model with the global tensors, and those tensors, (P,) fp32."""
    label_names = examples.corpus.label_names
    if site.order is not None:
        _check_file(settings, site.file.policy)
    state = open_model(settings, label_names)
    if state.layout.digest != task.layout:
        raise ValueError(
            "the server's model has other tensor names or shapes than this client's; check that both have "
            "the same model files and library versions."
        )
    received = _received(task, state, site, lambda: open_model(settings, label_names, fresh=True).flat)
    state = open_model(settings, label_names)  # built anew where its start was asked for
    state.load(tensor_of(received))
    return state, received


def _received(task: Task, state: ModelState, site: Site, start: Callable[[], Tensor]) -> np.ndarray:
    """The global tensors, from the task alone or from those this process has kept.

    Args:
        start: makes the first model from this site's own files; the model in `state` is lost with it.
    """
    # A payload that is whole needs no more of its base than the length.
    base = np.broadcast_to(np.float32(0), (state.layout.size,))
    if task.base:
        if site.kept is None or site.kept.tensors is None or site.kept.version != task.base:
            raise LacksBase(task.base)
        base = site.kept.tensors
    received = decode(task.payload, base)
    if site.order is not None:
        _check_step(received, site.order, site.file.policy, site.kept, start, state.frozen_norm)
    if site.kept is not None:
        site.kept.version, site.kept.tensors = task.version, received
        site.kept.came_with = (site.order.plan, site.order.age) if site.order else ("", 0)
    return received


def _check_step(
    received: np.ndarray,
    order: Order,
    policy: Policy,
    kept: Kept | None,
    start: Callable[[], Tensor],
    frozen_norm: Callable[[], float],
) -> None:
    """Raise Declines where the global tensors, (P,) fp32, are not what could have come of the ones before.

    The first are those this site computes itself; later ones lie within `policy.max_global_step` a round of
    those it holds, or, where it was restarted, of the first ones. The norm is that of the whole model, with
    what is frozen in it: adapters begin near 0.
    """
    tensors = tensor_of(received)
    is_first = order.age == 0
    if kept is not None and kept.tensors is not None and kept.came_with[0] == order.plan and not is_first:
        before, num_steps = tensor_of(kept.tensors), max(1, order.age - kept.came_with[1])
    elif is_first and policy.same_start:
        if not torch.equal(start().cpu(), tensors):
            raise Declines("another_start")
        return
    elif policy.same_start and policy.max_global_step is not None and not is_first:
        before, num_steps = start().cpu(), order.age
    else:
        return
    most = policy.max_global_step
    if most is None:
        return
    norm = hypot(float(before.norm()), frozen_norm())
    if not distance(tensors, before) <= most * num_steps * norm:
        raise Declines("too_far")


def _check_file(settings: Settings, policy: Policy) -> None:
    """Raise Declines where the policy lists models by SHA-256, and the file is none of them."""
    model, listed = settings.model, policy.models or ()
    hashes = {entry.removeprefix("sha256:") for entry in listed if entry.startswith("sha256:")}
    if not hashes or model.name in listed or f"{model.name}@{model.revision}" in listed:
        return
    if file_digest(weights_file(model)) not in hashes:
        raise Declines("another_model")


def _payload(task: Task, site: Site, trained: np.ndarray, received: np.ndarray) -> Payload:
    """The trained tensors as they travel. Inside one machine they need not be made smaller without loss."""
    settings = _settings_of(task)
    transforms = settings.transforms
    if transforms.name == EXACT:
        is_near = settings.engine.is_simulated
        return whole(trained) if is_near else encode(EXACT, trained, received)
    residuals = site.carried("residuals", settings) if transforms.error_feedback else None
    if residuals is None:
        return encode(transforms.name, trained, received)
    run = settings.to_json()
    residual = residuals.take(run, task.round, len(trained))
    if residual is None:
        residual = np.zeros(len(trained), dtype=np.float32)
    payload = encode(transforms.name, trained, received, residual)
    residuals.put(run, task.round, residual)
    return payload


def _count(state: ModelState, settings: Settings, examples: Examples) -> Counts:
    model, texts = state.classifier.model, examples.corpus.test

    def count(indices: np.ndarray) -> Counts:
        return evaluate(model, texts, by_length(texts, indices), settings, state.device)

    validation = count(examples.validation) if len(examples.validation) else None
    return replace(count(examples.test), validation=validation)
