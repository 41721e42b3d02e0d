"""Personal models of one site: a released model, trained further on the site's own texts."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from safetensors.torch import load_file
from torch import Tensor, nn

from wardround.client.site import Examples, SimulatedSite
from wardround.common.data.batches import by_length
from wardround.common.data.partitions import deal_alike
from wardround.common.data.tokens import TokenisedTexts
from wardround.common.errors import LossNotFinite
from wardround.common.files import require_readable, write_atomically
from wardround.common.model.flat import Layout, model_sha256, tensors_to_flat
from wardround.common.model.mixture import Mixture, new_gate, save_mixture
from wardround.common.model.state import ModelState, open_model
from wardround.common.model.train import Place, evaluate, train_epochs
from wardround.common.personal_record import (
    METHODS,
    TRAINED,
    Candidate,
    Measure,
    PersonalRecord,
    SiteRecord,
    choose,
)
from wardround.common.pretrained import RUN_SETTINGS, quietly
from wardround.common.runtime import stream_seed
from wardround.common.settings.tree import Settings
from wardround.common.tasks.sums import Sums
from wardround.common.tasks.table import task_of
from wardround.common.tasks.task import Task

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OwnTexts:
    """Texts of a site to train on, to choose a model by, and to test it on.

    No text is in two parts.
    """

    owner: str
    """Name of the site, or number of a simulated client. It names the random streams."""
    train: TokenisedTexts
    """The texts that took part in rounds, then those that did not."""
    num_opted_out: int
    """Number of texts that did not."""
    validation: TokenisedTexts
    test: TokenisedTexts
    everyone: TokenisedTexts | None = None
    """Test texts of all clients; None if they are not available or not requested."""

    @property
    def can_be_judged(self) -> bool:
        """True if there are texts to choose a model by, and others to test it on."""
        return len(self.validation) > 0 and len(self.test) > 0


@dataclass(frozen=True)
class Personal:
    """Results of one site, and the weights of the model that it chose."""

    record: SiteRecord
    weights: Mapping[str, Tensor]
    """Copies on the CPU, with the names of the module that `Personaliser.module` returns."""


class Personaliser:
    """Makes personal models of one released model, for one site after the other.

    It sends no message, and uses no random stream of the run. The same settings, texts, owner and
    released model give the same personal models, bit for bit, in a simulation and at the site
    itself.
    """

    def __init__(
        self, settings: Settings, label_names: tuple[str, ...], released: Path
    ) -> None:
        """Args:
        settings: as this machine sees them.
        released: the model folder that the run left.

        Raises:
            ValueError: the released model is missing, or does not match the settings.
        """
        # A run with frozen parameters releases a whole model too. A site trains all of it: nothing
        # is sent.
        self.settings = replace(
            settings,
            adapters=replace(settings.adapters, name="none", base_precision="fp32"),
            train=replace(settings.train, frozen="none"),
        )
        self._state = open_model(self.settings, label_names, fresh=True)
        self._task = self._state.text_model.task
        self._start = self._state.flat.detach().clone()
        self.released = load_released(released, self._state.layout)
        """(P,) fp32 on the CPU."""
        self.record = PersonalRecord(
            model_sha256=model_sha256(self._state.layout, self.released),
            settings=settings.personalisation,
        )
        """Record of this machine, without a site yet."""

    def personalise(self, own: OwnTexts) -> Personal:
        """Train, measure and choose.

        Raises ValueError if `train.drop_last` leaves no whole batch.
        """
        candidates = {}
        weights = {}
        compared = ("global", *TRAINED[self.settings.personalisation.name])
        for method in METHODS:
            if method in compared:
                candidates[method], weights[method] = self._candidate(method, own)
        chosen = choose(candidates, self._task)
        record = SiteRecord(
            name=own.owner,
            num_examples=len(own.train),
            num_opted_out=own.num_opted_out,
            num_validation=len(own.validation),
            candidates=candidates,
            chosen=chosen,
        )
        return Personal(record, weights[chosen])

    def save(self, folder: Path, personal: Personal) -> None:
        """Write the chosen model: a folder for transformers, or a mixture for `load_mixture`."""
        write_atomically(folder, partial(self._fill, personal=personal))

    def _fill(self, folder: Path, personal: Personal) -> None:
        folder.mkdir()
        settings = self.settings.without_places().to_json()
        (folder / RUN_SETTINGS).write_text(settings + "\n", encoding="utf-8")
        model = self.module(personal.record.chosen, personal.record.name)
        model.load_state_dict(personal.weights)
        tokenizer = self._state.text_model.tokenizer
        if isinstance(model, Mixture):
            save_mixture(folder, model, tokenizer)
            return
        with quietly():
            model.save_pretrained(folder)  # type: ignore[operator]
            tokenizer.save_pretrained(folder)

    def module(self, method: str, owner: str) -> nn.Module:
        """Return the module that a method of `METHODS` trains, with its weights at the start."""
        model = self._state.text_model.model
        self._state.load(self._start if method == "local" else self.released)
        if method != "mixture":
            return model
        hidden = self.settings.personalisation.gate_hidden
        gate = new_gate(model.config.hidden_size, hidden, self._seed(owner))
        gate.to(self._state.device)
        return Mixture(model, copy.deepcopy(model), gate, self._task)

    def _candidate(
        self, method: str, own: OwnTexts
    ) -> tuple[Candidate, dict[str, Tensor]]:
        model = self.module(method, own.owner)
        epoch = 0 if method == "global" else self._train(model, own)
        everyone = None
        if own.everyone is not None:
            everyone = Measure.of(self._task, self._measure(model, own.everyone))
        validation = self._measure(model, own.validation)
        candidate = Candidate(
            epoch=epoch,
            validation_accuracy=self._task.metrics(validation)[self._task.score],
            validation_loss=validation.loss,
            test=Measure.of(self._task, self._measure(model, own.test)),
            everyone=everyone,
        )
        return candidate, _copies(model)

    def _train(self, model: nn.Module, own: OwnTexts) -> int:
        """Train `model` in place, and keep the weights with the lowest validation loss.

        An epoch is a round of local training with one pass: its own order and dropout, a fresh
        optimiser. The best weights are copies, because training changes the tensors in place.

        Returns:
            The epoch of these weights.
        """
        personal = self.settings.personalisation
        train = self.settings.train
        rate = personal.learning_rate
        once = replace(
            train,
            local_epochs=1,
            learning_rate=train.learning_rate if rate is None else rate,
            schedule="constant",
            head_warmup_rounds=0,
            # These three only make sense in rounds, or a mixture does not support them.
            proximal_mu=0.0,
            control_variates=False,
            gradient_checkpointing=False,
        )
        place = Place(
            self._seed(own.owner), 0, 0, self._state.device, self.settings.precision
        )
        new_head = _new_head(model, self._state)
        indices = np.arange(len(own.train))
        best = 0
        weights = _copies(model)
        lowest = self._measure(model, own.validation).loss
        for epoch in range(1, personal.epochs + 1):
            try:
                train_epochs(
                    model,
                    self._task,
                    own.train,
                    indices,
                    once,
                    replace(place, round=epoch),
                    new_head,
                )
            except LossNotFinite as error:
                log.warning(
                    "%s: a personal model is kept as it was after epoch %d: %s",
                    own.owner,
                    best,
                    error,
                )
                break
            loss = self._measure(model, own.validation).loss
            if loss < lowest:
                best = epoch
                weights = _copies(model)
                lowest = loss
        model.load_state_dict(weights)
        return best

    def _measure(self, model: nn.Module, texts: TokenisedTexts) -> Sums:
        order = by_length(texts, np.arange(len(texts)))
        return evaluate(
            model, self._task, texts, order, self.settings, self._state.device
        )

    def _seed(self, owner: str) -> int:
        """Return the seed of all draws for one site.

        It follows from the run's seed and the site's name, not from the site's number among others.
        """
        return stream_seed(self.settings.seed, f"personal.{owner}")


def load_released(folder: Path, layout: Layout) -> Tensor:
    """Load the shared tensors of a model folder, (P,) fp32.

    Raises:
        ValueError: the folder has no weights, or those of another model.
    """
    file = folder / "model.safetensors"
    if not file.is_file():
        raise ValueError(
            f"'{folder}' holds no model.safetensors. Give the folder `model` of a finished run."
        )
    require_readable(file)
    try:
        tensors = load_file(file)
        shared = {name: tensors[name] for name in layout.names if name in tensors}
        return tensors_to_flat(layout, shared)
    except ValueError as error:
        raise ValueError(
            f"'{folder}' was made of another model than the run's settings name: {error}"
        ) from None


def _copies(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: tensor.detach().cpu().clone()
        for name, tensor in model.state_dict().items()
    }


def _new_head(model: nn.Module, state: ModelState) -> tuple[str, ...]:
    """Return the names of the parameters, in the module, that pre-training did not bring."""
    new_head = state.text_model.new_head
    if not isinstance(model, Mixture):
        return new_head
    gate = (f"gate.{name}" for name, _ in model.gate.named_parameters())
    return (*(f"local.{name}" for name in new_head), *gate)


def texts_of(
    examples: Examples, owner: str, everyone: TokenisedTexts | None = None
) -> OwnTexts:
    """Return a site's own texts: all of its file."""
    corpus = examples.corpus
    out = corpus.opted_out.take(examples.opted_out)
    return OwnTexts(
        owner,
        train=corpus.train.take(examples.train).followed_by(out),
        num_opted_out=len(out),
        validation=corpus.test.take(examples.validation),
        test=corpus.test.take(examples.test),
        everyone=everyone,
    )


def _with_dealt_tests(examples: Sequence[Examples], task: Task) -> list[Examples]:
    """Deal validation and test parts to the clients like their training texts."""
    corpus = examples[0].corpus
    train = [own.train for own in examples]
    train_strata = task.strata(corpus.train.targets)
    test_strata = task.strata(corpus.test.targets)

    def deal(held_out: Sequence[np.ndarray]) -> list[np.ndarray]:
        indices = np.sort(np.concatenate(held_out))
        return deal_alike(train, train_strata, test_strata, indices)

    validation = deal([own.validation for own in examples])
    test = deal([own.test for own in examples])
    parts = zip(examples, validation, test, strict=True)
    return [
        replace(own, validation=own_validation, test=own_test)
        for own, own_validation, own_test in parts
    ]


def texts_of_clients(settings: Settings) -> list[OwnTexts]:
    """Return the texts of every client of a simulation, in the order of their numbers.

    If the test set is common to all clients, it is dealt to them like the training texts: each
    label has the same share in a client's test part as in its training part.
    """
    examples = [
        SimulatedSite(client).examples(settings)
        for client in range(settings.num_clients)
    ]
    corpus = examples[0].corpus
    is_by_site = settings.partition.name == "by_site"
    if not (is_by_site and corpus.test_sizes):
        examples = _with_dealt_tests(examples, task_of(settings))
    all_of_test = np.sort(np.concatenate([own.test for own in examples]))
    everyone = (
        corpus.test.take(all_of_test) if settings.personalisation.everyone else None
    )
    owners = [str(client) for client in range(len(examples))]
    if is_by_site:
        owners = [name for name, _ in corpus.site_sizes]
    found = [
        texts_of(own, owner, everyone)
        for own, owner in zip(examples, owners, strict=True)
    ]
    opted_out = settings.personalisation.opt_out_clients
    return [
        replace(own, num_opted_out=len(own.train)) if client in opted_out else own
        for client, own in enumerate(found)
    ]
