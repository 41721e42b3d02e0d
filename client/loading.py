"""Load the global model of a request, and check that it is within the site's bounds."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from wardround.client.bounds import RoundOfPlan
from wardround.client.global_model import check_global_model, measure
from wardround.client.held import HeldModel
from wardround.client.policy.models import is_pinned, names_of
from wardround.client.site import Examples, RealSite, Site
from wardround.client.site_file import SiteFile
from wardround.client.yardstick import Yardstick
from wardround.common.errors import MissingBase, SiteRefusal
from wardround.common.model.flat import model_sha256, tensor_of
from wardround.common.model.state import ModelState, open_model
from wardround.common.model.train import Place, train_epochs
from wardround.common.model_files import FILES_PREFIX, WEIGHTS_PREFIX
from wardround.common.pretrained import files_of
from wardround.common.settings.model import ModelSettings
from wardround.common.settings.tree import Settings
from wardround.common.wire.forms import decode
from wardround.common.wire.messages import TrainRequest


def load_global_model(
    request: TrainRequest, settings: Settings, examples: Examples, site: Site
) -> tuple[ModelState, np.ndarray]:
    """Return the resident model with the global tensors, and those tensors, (P,) fp32.

    Raises:
        ValueError: the server's model differs from the one that these settings describe.
        MissingBase: this process does not hold the tensors that the request builds on.
        SiteRefusal: the policy does not allow this model, or it lies outside the bounds.
    """
    label_names = examples.corpus.label_names
    if site.order is not None:
        check_model_file(settings.model, site.file)
    state = open_model(settings, label_names)
    if state.layout.digest != request.layout:
        raise ValueError(
            "the server's model has other tensor names or shapes than this client's; check that "
            "both have the same model files and library versions."
        )
    if site.order is not None:
        site.check_sizes(settings, examples, state.hidden_size)
    received = _received_tensors(request, state, site)
    if site.order is not None:
        _check_and_keep(received, request, state, settings, examples, site)
        # The check may have built another resident model, to compute the start.
        state = open_model(settings, label_names)
    state.load(tensor_of(received))
    return state, received


def place_of(state: ModelState, settings: Settings, round: int, client: int) -> Place:
    """Return the random streams and the arithmetic of a client in a round."""
    return Place(settings.seed, round, client, state.device, settings.precision)


def train_once(
    state: ModelState, settings: Settings, examples: Examples, round: int, client: int
) -> None:
    """Train the resident model as in one round, without corrections or records.

    Raises:
        ValueError, LossNotFinite: as `train_epochs` does.
    """
    text_model = state.text_model
    train_epochs(
        text_model.model,
        text_model.task,
        examples.corpus.train,
        examples.train,
        settings.train,
        place_of(state, settings, round, client),
        text_model.new_head,
        text_model.frozen,
    )


def _received_tensors(
    request: TrainRequest, state: ModelState, site: Site
) -> np.ndarray:
    """Return the global tensors, (P,) fp32, built on those that this site has kept if necessary."""
    # A whole payload needs only the length of its base.
    base = np.broadcast_to(np.float32(0), (state.layout.size,))
    if request.base:
        held = _kept_model(site)
        if held is None or held.version != request.base:
            raise MissingBase(request.base)
        base = held.tensors
    received = decode(request.payload, base)
    if site.kept is not None and site.order is None:
        site.kept.version = request.version
        site.kept.tensors = received
    return received


def _kept_model(site: Site) -> HeldModel | None:
    """Return the last global model of this site; under a plan, from the plan's folder."""
    if site.order is not None:
        return site.held.model()
    if site.kept is None or site.kept.tensors is None:
        return None
    return HeldModel(site.kept.version, 0, site.kept.tensors)


def _check_and_keep(
    received: np.ndarray,
    request: TrainRequest,
    state: ModelState,
    settings: Settings,
    examples: Examples,
    site: RealSite,
) -> None:
    """Check the global tensors, and keep them. Raises SiteRefusal or ValueError."""
    order = site.order
    assert order is not None, "called only under a plan"
    if model_sha256(state.layout, tensor_of(received)) != request.version:
        raise ValueError(
            "the SHA-256 of the global tensors differs from the one in the request"
        )
    label_names = examples.corpus.label_names
    plan = RoundOfPlan(
        settings,
        site.file.policy,
        len(examples.train),
        order.most_texts,
        frozenset(state.text_model.new_head),
    )

    def start() -> Tensor:
        return open_model(settings, label_names, fresh=True).flat

    def rehearse() -> Yardstick:
        fresh = open_model(settings, label_names, fresh=True)
        first = fresh.numbers().copy()
        number = max(1, order.round)
        train_once(fresh, settings, examples, number, request.client)
        rates = plan.sum_of_rates(number)
        return measure(fresh.layout, fresh.numbers(), first, rates, None)

    check_global_model(
        received, order.age, state.layout, site.held, plan, start, rehearse
    )
    site.held.keep_model(HeldModel(request.version, order.age, received))
    if site.kept is not None:
        site.kept.version = request.version


def check_model_file(model: ModelSettings, site: SiteFile) -> None:
    """Raise SiteRefusal unless the model's files have the hashes that plan and policy name.

    The hash of the weights is enough only for a folder of the site's own: in another folder,
    anybody could have written the configuration and the tokenizer.
    """
    policy = site.policy
    listed = set(policy.models) if isinstance(policy.models, tuple) else set()
    is_listed_by_hash = is_pinned(policy.models) and not names_of(model) & listed
    if not is_listed_by_hash and model.sha256 is None:
        return
    files = files_of(model)
    weights = f"{WEIGHTS_PREFIX}{files.weights_digest()}"
    whole = f"{FILES_PREFIX}{files.digest()}"
    found = {whole} if site.model is None else {weights, whole}
    is_planned = model.sha256 is None or weights == WEIGHTS_PREFIX + model.sha256
    is_listed = not is_listed_by_hash or bool(found & listed)
    if not (is_planned and is_listed):
        raise SiteRefusal("another_model")
