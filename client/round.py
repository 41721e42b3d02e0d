"""One client's part of a round: content in, content out, and no more than is meant to leave."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from math import isfinite
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import RecordDict

from wardround.client.bounds import RoundOfPlan
from wardround.client.global_model import check_global_model, measure
from wardround.client.held import HeldModel
from wardround.client.policy.limits import Policy
from wardround.client.policy.models import is_pinned, names_of
from wardround.client.site import Examples, RealSite, Site
from wardround.client.variates import Variates
from wardround.client.yardstick import Yardstick
from wardround.common.data.batches import by_length
from wardround.common.errors import LossNotFinite, MissingBase, SiteRefusal
from wardround.common.model.build import TextModel
from wardround.common.model.flat import distance, model_sha256, tensor_of
from wardround.common.model.heads import draw_head
from wardround.common.model.influence import RoundSteps
from wardround.common.model.speaking import Speaking
from wardround.common.model.state import ModelState, open_model
from wardround.common.model.train import Place, evaluate, train_epochs
from wardround.common.model_files import FILES_PREFIX, WEIGHTS_PREFIX
from wardround.common.pretrained import files_of
from wardround.common.settings.model import ModelSettings
from wardround.common.settings.tree import Settings
from wardround.common.tasks.sums import Sums
from wardround.common.tasks.table import import_model_classes
from wardround.common.wire.arrays import Payload
from wardround.common.wire.codec import (
    pack_counts,
    pack_introduction,
    pack_missing_base,
    pack_refusal,
    pack_update,
    unpack_hello,
    unpack_request,
)
from wardround.common.wire.forms import EXACT, decode, encode, whole
from wardround.common.wire.messages import (
    EVALUATE,
    HELLO,
    TRAIN,
    Introduction,
    TrainRequest,
    Update,
)

if TYPE_CHECKING:
    from torch import Tensor

    from wardround.client.site_file import SiteFile

log = logging.getLogger(__name__)
_LOSS_DIGITS = 2
"""Digits behind the point of the losses that leave a site: all of them would be a fingerprint of the texts.
Simulated clients round as well, so that both give the same numbers."""


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
    except SiteRefusal as no:
        log.info("a message of type %s is not answered: %s", kind, no)
        return pack_refusal(no.code, no.key)
    except MissingBase as lack:
        log.info(
            "the tensors that a task is written against are not held here; asking for all of them"
        )
        return pack_missing_base(str(lack))
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
    if isinstance(asked, TrainRequest):
        return replace(
            asked, settings=order.settings, client=order.client, round=order.round
        )
    return order.settings


def warm_up() -> None:
    """Import what takes seconds, before anybody waits for it."""
    from transformers import AutoTokenizer  # noqa: F401

    import_model_classes()


def introduce(settings: Settings, site: Site) -> Introduction:
    """Say who this is and how many examples it trains on. Raises ValueError or SiteRefusal for its data."""
    examples = site.examples(site.localise(settings))
    return Introduction(
        site.client, len(examples.train), len(examples.test) + len(examples.validation)
    )


def run_local_round(task: TrainRequest, site: Site) -> Update:
    """Train the global model on the site's own examples.

    If sites evaluate, the model as received is first put through the site's held-out texts.

    If nothing is encoded, the returned tensors are the resident model's own buffer, if that is on the CPU:
    they hold until the next round of any client in this process.

    Raises:
        ValueError: the server's model is not the one these settings describe here.
        MissingBase: the task is written against tensors that this process does not hold.
        LossNotFinite: training diverged.
        SiteRefusal: the site's policy does not allow it.
    """
    started = time.perf_counter()
    settings = site.localise(_settings_of(task))
    examples = site.examples(settings)
    steps = RoundSteps(settings.train, len(examples.train), task.round)
    state, received = _load(task, settings, examples, site)
    sites_measure = settings.evaluation.where == "sites"
    test = _count(state, settings, examples) if sites_measure else None
    is_withheld = test is not None and _is_withheld(state.text_model, test, site)
    if task.round == 1 and settings.train.draws_heads:
        draw_head(
            state.text_model.model,
            state.text_model.new_head,
            settings.seed,
            client=task.client + 1,
        )
    run, variates, correction = _settings_of(task), None, None
    if settings.train.control_variates:
        variates = Variates.open(task, run, site, received, steps.total)
        if variates.correction is not None:
            correction = state.layout.views(
                tensor_of(variates.correction).to(state.device)
            )
    speaking = None if site.order is None else Speaking(steps)
    text_model = state.text_model
    loss = train_epochs(
        text_model.model,
        text_model.task,
        examples.corpus.train,
        examples.train,
        settings.train,
        _place(settings, task, state),
        text_model.new_head,
        text_model.frozen,
        correction,
        speaking,
    )
    trained = state.flat.detach().cpu().numpy()
    if variates is not None:
        variates.keep(task, run, site, received, trained)
    if site.kept is not None:
        norm = distance(tensor_of(trained), tensor_of(received))
        site.kept.update_norm = norm if isfinite(norm) else None
    if site.order is not None:
        assert speaking is not None, "made for every order"
        _check_speaking(speaking, site.file.policy)
        _keep_yardstick(state, trained, received, steps, site)
        loss = round(loss, _LOSS_DIGITS)
    return Update(
        round=task.round,
        layout=state.layout.digest,
        payload=_payload(task, site, trained, received),
        num_examples=len(examples.train),
        num_steps=steps.total,
        loss=loss,
        seconds=time.perf_counter() - started,
        test=None if is_withheld else test,
        withheld=int(is_withheld),
        uncorrected=int(variates is not None and variates.is_lacking),
        holds=site.kept.version if site.kept else "",
    )


def _place(settings: Settings, task: TrainRequest, state: ModelState) -> Place:
    return Place(
        settings.seed, task.round, task.client, state.device, settings.precision
    )


def _check_speaking(speaking: Speaking, policy: Policy) -> None:
    """Raise SiteRefusal if almost all of an update comes from a few texts."""
    found = speaking.num_speaking()
    if found < policy.min_speaking_texts:
        raise SiteRefusal(
            "few_speak",
            words=(
                f"{found:.1f} texts speak in the update; policy.min_speaking_texts is "
                f"{policy.min_speaking_texts:g}"
            ),
        )


def _keep_yardstick(
    state: ModelState,
    trained: np.ndarray,
    received: np.ndarray,
    steps: RoundSteps,
    site: RealSite,
) -> None:
    rates = float(steps.rates(steps.settings.learning_rate).sum())
    held = site.held
    held.keep_yardstick(
        measure(state.layout, trained, received, rates, held.yardstick())
    )
    held.wait()


def count_held_out(task: TrainRequest, site: Site) -> Sums:
    """Put the global model through the site's held-out texts. Raises as `run_local_round` does."""
    settings = site.localise(_settings_of(task))
    examples = site.examples(settings)
    state, _ = _load(task, settings, examples, site)
    counts = _count(state, settings, examples)
    if site.order is not None:
        site.held.wait()
    if _is_withheld(state.text_model, counts, site):
        raise SiteRefusal("counts_withheld")
    return counts


def _settings_of(task: TrainRequest) -> Settings:
    if task.settings is None:
        raise ValueError("a task came without settings, and no plan was approved")
    return task.settings


def _is_withheld(text_model: TextModel, sums: Sums, site: Site) -> bool:
    """Return true if the policy keeps these counts at the site: a small one may tell of a single text."""
    if site.order is None:
        return False
    smallest = site.file.policy.min_count
    return any(text_model.task.has_small_cell(part, smallest) for part in sums.parts)


WORK: dict[
    str, tuple[Callable[..., Any], Callable[..., Any], Callable[..., RecordDict]]
] = {
    HELLO: (unpack_hello, introduce, pack_introduction),
    TRAIN: (unpack_request, run_local_round, pack_update),
    EVALUATE: (unpack_request, count_held_out, pack_counts),
}
"""By message type: what unpacks the content, the work on that and the site, and what packs its result."""


def _load(
    task: TrainRequest, settings: Settings, examples: Examples, site: Site
) -> tuple[ModelState, np.ndarray]:
    """The resident model with the global tensors, and those tensors, (P,) fp32."""
    label_names = examples.corpus.label_names
    if site.order is not None:
        check_model_file(settings.model, site.file)
    state = open_model(settings, label_names)
    if state.layout.digest != task.layout:
        raise ValueError(
            "the server's model has other tensor names or shapes than this client's; check that both have "
            "the same model files and library versions."
        )
    if site.order is not None:
        config = state.text_model.model.config.get_text_config()
        site.check_sizes(settings, examples, getattr(config, "hidden_size", None))
    received = _received(task, state, site)
    if site.order is not None:
        _check_received(received, task, state, settings, examples, site)
        state = open_model(
            settings, label_names
        )  # built anew if its start was asked for
    state.load(tensor_of(received))
    return state, received


def _received(task: TrainRequest, state: ModelState, site: Site) -> np.ndarray:
    """The global tensors, (P,) fp32, from the task alone or from those this site has kept."""
    # A payload that is whole needs no more of its base than the length.
    base = np.broadcast_to(np.float32(0), (state.layout.size,))
    if task.base:
        held = _kept_tensors(site)
        if held is None or held.version != task.base:
            raise MissingBase(task.base)
        base = held.tensors
    received = decode(task.payload, base)
    if site.kept is not None and site.order is None:
        site.kept.version, site.kept.tensors = task.version, received
    return received


def _kept_tensors(site: Site) -> HeldModel | None:
    """The global tensors that this site was sent last; of a plan, those that lie in its folder."""
    if site.order is not None:
        return site.held.model()
    if site.kept is None or site.kept.tensors is None:
        return None
    return HeldModel(site.kept.version, 0, site.kept.tensors)


def _check_received(
    received: np.ndarray,
    task: TrainRequest,
    state: ModelState,
    settings: Settings,
    examples: Examples,
    site: RealSite,
) -> None:
    """Hold the global tensors against those before, and keep them. Raises SiteRefusal or ValueError."""
    order, label_names = site.order, examples.corpus.label_names
    assert order is not None
    if model_sha256(state.layout, tensor_of(received)) != task.version:
        raise ValueError(
            "the global tensors are not those that the task names by their SHA-256"
        )
    head = frozenset(state.text_model.new_head)
    plan = RoundOfPlan(
        settings, site.file.policy, len(examples.train), order.most_texts, head
    )

    def start() -> Tensor:
        return open_model(settings, label_names, fresh=True).flat

    def rehearse() -> Yardstick:
        fresh = open_model(settings, label_names, fresh=True)
        first = fresh.flat.detach().cpu().numpy().copy()
        number = max(1, order.round)
        train_epochs(
            fresh.text_model.model,
            fresh.text_model.task,
            examples.corpus.train,
            examples.train,
            settings.train,
            _place(settings, replace(task, round=number), fresh),
            fresh.text_model.new_head,
            fresh.text_model.frozen,
        )
        trained = fresh.flat.detach().cpu().numpy()
        return measure(fresh.layout, trained, first, plan.sum_of_rates(number), None)

    check_global_model(
        received, order.age, state.layout, site.held, plan, start, rehearse
    )
    site.held.keep_model(HeldModel(task.version, order.age, received))
    if site.kept is not None:
        site.kept.version = task.version


def check_model_file(model: ModelSettings, site: SiteFile) -> None:
    """Raise SiteRefusal unless the model's files are those that plan and policy name by their hashes.

    The hash of the weights alone is enough for a folder of the site's own: of another one the configuration
    and the tokenizer could be anybody's.
    """
    policy = site.policy
    listed = set(policy.models) if isinstance(policy.models, tuple) else set()
    is_listed_by_hash = is_pinned(policy.models) and not names_of(model) & listed
    if not is_listed_by_hash and model.sha256 is None:
        return
    files = files_of(model)
    weights, whole = (
        f"{WEIGHTS_PREFIX}{files.weights_digest()}",
        f"{FILES_PREFIX}{files.digest()}",
    )
    found = {whole} if site.model is None else {weights, whole}
    is_planned = model.sha256 is None or weights == WEIGHTS_PREFIX + model.sha256
    is_listed = not is_listed_by_hash or bool(found & listed)
    if not (is_planned and is_listed):
        raise SiteRefusal("another_model")


def _payload(
    task: TrainRequest, site: Site, trained: np.ndarray, received: np.ndarray
) -> Payload:
    """The trained tensors as they travel. Inside one machine they need not be made smaller without loss."""
    settings = _settings_of(task)
    transforms = settings.transforms
    if transforms.name == EXACT:
        is_near = settings.engine.is_simulated
        return whole(trained) if is_near else encode(EXACT, trained, received)
    residuals = (
        site.carried("residuals", settings) if transforms.error_feedback else None
    )
    if residuals is None:
        return encode(transforms.name, trained, received)
    run = settings.to_json()
    residual = residuals.take(run, task.round, len(trained))
    if residual is None:
        residual = np.zeros(len(trained), dtype=np.float32)
    payload = encode(transforms.name, trained, received, residual)
    residuals.put(run, task.round, residual)
    return payload


def _count(state: ModelState, settings: Settings, examples: Examples) -> Sums:
    model, task = state.text_model.model, state.text_model.task
    texts = examples.corpus.test

    def count(indices: np.ndarray) -> Sums:
        counts = evaluate(
            model, task, texts, by_length(texts, indices), settings, state.device
        )
        mean = round(counts.loss, _LOSS_DIGITS)
        return replace(counts, loss_sum=mean * counts.num_examples)

    validation = count(examples.validation) if len(examples.validation) else None
    return replace(count(examples.test), validation=validation)
