"""One client's part of a round: it answers a message. No text and no label leaves with it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from flwr.app import RecordDict
from torch import Tensor

from wardround.client.answers import SiteAnswer
from wardround.client.loading import load_global_model, place_of
from wardround.client.site import Examples, Site
from wardround.client.update_steps import (
    LOSS_DIGITS,
    LocalRound,
    TrainedUpdate,
    are_withheld,
    prepare,
)
from wardround.client.variates import Variates
from wardround.common.data.batches import by_length
from wardround.common.errors import LossNotFinite, MissingBase, SiteRefusal
from wardround.common.model.flat import tensor_of
from wardround.common.model.heads import draw_head
from wardround.common.model.influence import RoundSteps
from wardround.common.model.speaking import Speaking
from wardround.common.model.state import ModelState
from wardround.common.model.train import evaluate, train_epochs
from wardround.common.settings.tree import Settings
from wardround.common.tasks.sums import Sums
from wardround.common.tasks.table import import_model_classes
from wardround.common.wire.codec import (
    pack_counts,
    pack_introduction,
    pack_missing_base,
    pack_refusal,
    pack_update,
    unpack_hello,
    unpack_request,
)
from wardround.common.wire.messages import (
    EVALUATE,
    HELLO,
    TRAIN,
    Introduction,
    TrainRequest,
    Update,
)

log = logging.getLogger(__name__)


def answer(kind: str, content: RecordDict, find_site: Callable[[], Site]) -> SiteAnswer:
    """Do the work that a message asks for, or refuse. Details of a failure stay in the log.

    An exception's text may hold a path, a label or a piece of text, so only a code is sent.

    Args:
        kind: a message type of `common/wire/messages.py`.
    """
    try:
        work = WORK[kind]
        return work(content, find_site())
    except SiteRefusal as refusal:
        log.info("a message of type %s is refused: %s", kind, refusal)
        return SiteAnswer(pack_refusal(refusal.code, refusal.key))
    except MissingBase as missing:
        log.info("the tensors of the last round are not here; requesting all tensors")
        return SiteAnswer(pack_missing_base(str(missing)))
    except LossNotFinite as error:
        log.warning("%s", error)
        return SiteAnswer(pack_refusal("diverged"))
    except Exception as error:
        log.exception("this client could not answer a message of type %s", kind)
        code = "bad_input" if isinstance(error, ValueError) else "failed"
        return SiteAnswer(pack_refusal(code))


def _answer_hello(content: RecordDict, site: Site) -> SiteAnswer:
    settings = unpack_hello(content)
    if site.order is not None:
        settings = site.order.settings
    introduction = introduce(_present(settings), site)
    return SiteAnswer(pack_introduction(introduction))


def _answer_train(content: RecordDict, site: Site) -> SiteAnswer:
    request = _approved(unpack_request(content), site)
    update, norm = run_local_round(request, site)
    return SiteAnswer(pack_update(update), norm)


def _answer_evaluate(content: RecordDict, site: Site) -> SiteAnswer:
    request = _approved(unpack_request(content), site)
    counts = count_held_out(request, site)
    return SiteAnswer(pack_counts(counts))


WORK: dict[str, Callable[[RecordDict, Site], SiteAnswer]] = {
    HELLO: _answer_hello,
    TRAIN: _answer_train,
    EVALUATE: _answer_evaluate,
}
"""The work for each message type: from the content of a message to its answer."""


def _approved(request: TrainRequest, site: Site) -> TrainRequest:
    """Return the request; if there is an approved plan, with the facts of the plan."""
    order = site.order
    if order is None:
        return request
    return replace(
        request,
        settings=order.settings,
        client=order.client,
        round=order.round,
    )


def _present(settings: Settings | None) -> Settings:
    """Return the run's settings. Raises ValueError if neither message nor plan has any."""
    if settings is None:
        raise ValueError("a message came without settings, and no plan was approved")
    return settings


def warm_up() -> None:
    """Import slow libraries before the first message."""
    from transformers import AutoTokenizer  # noqa: F401

    import_model_classes()


def introduce(settings: Settings, site: Site) -> Introduction:
    """Count the client's examples. Raises ValueError or SiteRefusal for its data."""
    examples = site.examples(site.localise(settings))
    return Introduction(site.client, len(examples.train), examples.num_held_out)


def run_local_round(request: TrainRequest, site: Site) -> tuple[Update, float | None]:
    """Train the global model on the site's own examples.

    If sites evaluate, the received model is first measured on the site's held-out texts.

    If nothing is encoded and the model is on the CPU, the returned tensors are the resident
    model's own buffer: they are valid until the next round of any client in this process.

    Returns:
        The update, and its norm as `TrainedUpdate.norm`.

    Raises:
        ValueError: the server's model is not the one these settings describe here.
        MissingBase: the request builds on tensors that this process does not hold.
        LossNotFinite: training diverged.
        SiteRefusal: the site's policy does not allow it.
    """
    started = time.perf_counter()
    run = _present(request.settings)
    settings = site.localise(run)
    examples = site.examples(settings)
    steps = RoundSteps(settings.train, len(examples.train), request.round)
    state, received = load_global_model(request, settings, examples, site)
    model = state.text_model
    test = None
    if settings.evaluation.where == "sites":
        test = _measure(state, settings, examples)
    if request.round == 1 and settings.train.draws_heads:
        number = request.client + 1
        draw_head(model.model, model.new_head, settings.seed, client=number)
    variates = None
    if run.train.control_variates:
        variates = Variates.open(request, run, site, received, steps.total)
    speaking = None if site.order is None else Speaking(steps)
    correction = _correction(state, variates)
    loss = train_epochs(
        model.model,
        model.task,
        examples.corpus.train,
        examples.train,
        settings.train,
        place_of(state, settings, request.round, request.client),
        model.new_head,
        model.frozen,
        correction,
        speaking,
    )
    prepared = prepare(
        TrainedUpdate(state.numbers(), loss, test),
        LocalRound(
            number=request.round,
            run=run,
            site=site,
            layout=state.layout,
            task=state.text_model.task,
            received=received,
            steps=steps,
            variates=variates,
            speaking=speaking,
        ),
    )
    assert prepared.payload is not None, "the last step encodes"
    update = Update(
        round=request.round,
        layout=state.layout.digest,
        payload=prepared.payload,
        num_examples=len(examples.train),
        num_steps=steps.total,
        loss=prepared.loss,
        seconds=time.perf_counter() - started,
        test=prepared.test,
        withheld=int(prepared.is_withheld),
        uncorrected=int(variates is not None and variates.is_lacking),
        holds=site.kept.version if site.kept else "",
    )
    return update, prepared.norm


def _correction(
    state: ModelState, variates: Variates | None
) -> dict[str, Tensor] | None:
    """Return the correction that each step subtracts, by parameter; None without one."""
    if variates is None or variates.correction is None:
        return None
    correction = tensor_of(variates.correction)
    return state.layout.views(correction.to(state.device))


def count_held_out(request: TrainRequest, site: Site) -> Sums:
    """Measure the global model on the site's held-out texts. Raises as `run_local_round` does."""
    settings = site.localise(_present(request.settings))
    examples = site.examples(settings)
    state, _ = load_global_model(request, settings, examples, site)
    counts = _measure(state, settings, examples)
    if site.order is not None:
        site.held.wait()
        if are_withheld(counts, state.text_model.task, site):
            raise SiteRefusal("counts_withheld")
    return counts


def _measure(state: ModelState, settings: Settings, examples: Examples) -> Sums:
    """Return the model's sums on the held-out texts, and on those that choose the best model."""
    model = state.text_model.model
    task = state.text_model.task
    texts = examples.corpus.test

    def count(indices: np.ndarray) -> Sums:
        order = by_length(texts, indices)
        counts = evaluate(model, task, texts, order, settings, state.device)
        mean = round(counts.loss, LOSS_DIGITS)
        return replace(counts, loss_sum=mean * counts.num_examples)

    counts = count(examples.test)
    if len(examples.validation) == 0:
        return counts
    return replace(counts, validation=count(examples.validation))
