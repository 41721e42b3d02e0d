"""One site's personal models: what it makes of a released model with its own texts, for itself alone."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors.torch import load_file

from wardround.client.site import Examples, SimulatedSite
from wardround.common.data.batches import by_length
from wardround.common.data.partitions import deal_alike
from wardround.common.data.tokens import TokenisedTexts
from wardround.common.errors import LossNotFinite
from wardround.common.files import write_atomically
from wardround.common.model.flat import Layout, model_sha256, tensors_to_flat
from wardround.common.model.mixture import Mixture, new_gate, save_mixture
from wardround.common.model.state import ModelState, open_model
from wardround.common.model.train import Place, evaluate, train_epochs
from wardround.common.personal import (
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

if TYPE_CHECKING:
    from torch import Tensor, nn

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OwnTexts:
    """What a site trains on, decides by, and is judged by: three parts without a text in common."""

    owner: str
    """Name of the site, or number of a client that is none. It names the random streams."""
    train: TokenisedTexts
    """Those that took part in rounds, then those that did not."""
    num_opted_out: int
    """How many did not."""
    validation: TokenisedTexts
    test: TokenisedTexts
    everyone: TokenisedTexts | None = None
    """Test texts of all clients; None where they are not at hand, or not asked for."""

    @property
    def can_be_judged(self) -> bool:
        """Whether there are texts to choose a model by, and others to judge it by."""
        return len(self.validation) > 0 and len(self.test) > 0


@dataclass(frozen=True)
class Personal:
    """What one site has: the numbers, and the weights of the model that it chose."""

    record: SiteRecord
    weights: Mapping[str, Tensor]
    """Copies on the CPU, under the names of the module that `Personaliser.module` makes of the method."""


class Personaliser:
    """Makes personal models of one released model, for one site after the other.

    No message is sent, and no random stream of the run is used. Same settings, texts, owner and released
    model give the same personal models, bit for bit, in a simulation and at the site itself.
    """

    def __init__(
        self, settings: Settings, label_names: tuple[str, ...], released: Path
    ) -> None:
        """Args:
        settings: as this machine sees them.
        released: the model folder that the run left.

        Raises:
            ValueError: the released model is not there, or is not the one that the settings describe.
        """
        # A run that froze something leaves a whole model too: from there a site goes on, and nothing of what
        # it makes for itself is sent.
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
        """Of what is made here, without a site yet."""

    def personalise(self, own: OwnTexts) -> Personal:
        """Train, measure and choose. Raises ValueError where `train.drop_last` leaves no whole batch."""
        candidates, weights = {}, {}
        for method in METHODS:
            if (
                method == "global"
                or method in TRAINED[self.settings.personalisation.name]
            ):
                candidates[method], weights[method] = self._candidate(method, own)
        chosen = choose(candidates)
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
        told = self.settings.without_places().to_json()
        (folder / RUN_SETTINGS).write_text(told + "\n", encoding="utf-8")
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
        """What is trained by a method, a row of `METHODS`, as it stands at first."""
        state, model = self._state, self._state.text_model.model
        state.load(self._start if method == "local" else self.released)
        if method != "mixture":
            return model
        hidden, seed = self.settings.personalisation.gate_hidden, self._seed(owner)
        gate = new_gate(model.config.hidden_size, hidden, seed).to(state.device)
        return Mixture(model, copy.deepcopy(model), gate, state.text_model.task)

    def _candidate(
        self, method: str, own: OwnTexts
    ) -> tuple[Candidate, dict[str, Tensor]]:
        model = self.module(method, own.owner)
        epoch = 0 if method == "global" else self._train(model, own)
        everyone = (
            None
            if own.everyone is None
            else Measure.of(self._task, self._measure(model, own.everyone))
        )
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
        """Train `model` in place, and leave the weights with the lowest validation loss; returns their epoch.

        An epoch is a round of local training with one pass: its own order and dropout, a fresh optimiser.
        The best weights are copies: a reference would go on with the training, and be the last in the end.
        """
        personal, train = self.settings.personalisation, self.settings.train
        once = replace(
            train,
            local_epochs=1,
            learning_rate=train.learning_rate
            if personal.learning_rate is None
            else personal.learning_rate,
            schedule="constant",
            head_warmup_rounds=0,
            # Of rounds, between which clients meet; and what a mixture does not know how to do.
            proximal_mu=0.0,
            control_variates=False,
            gradient_checkpointing=False,
        )
        place = Place(
            self._seed(own.owner), 0, 0, self._state.device, self.settings.precision
        )
        new_head, indices = _new_head(model, self._state), np.arange(len(own.train))
        best, weights, lowest = (
            0,
            _copies(model),
            self._measure(model, own.validation).loss,
        )
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
                best, weights, lowest = epoch, _copies(model), loss
        model.load_state_dict(weights)
        return best

    def _measure(self, model: nn.Module, texts: TokenisedTexts) -> Sums:
        order = by_length(texts, np.arange(len(texts)))
        return evaluate(
            model, self._task, texts, order, self.settings, self._state.device
        )

    def _seed(self, owner: str) -> int:
        """Of what is drawn for one site: it and the run know both, and no number among the others is."""
        return stream_seed(self.settings.seed, f"personal.{owner}")


def load_released(folder: Path, layout: Layout) -> Tensor:
    """The shared tensors of a model folder, (P,) fp32. Raises ValueError where there are none, or others."""
    file = folder / "model.safetensors"
    if not file.is_file():
        raise ValueError(
            f"'{folder}' holds no model.safetensors. Give the folder `model` of a finished run."
        )
    try:
        return tensors_to_flat(
            layout, {n: t for n, t in load_file(file).items() if n in layout.names}
        )
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
    """Parameters that no pre-training brought, under the module's own names."""
    new_head = state.text_model.new_head
    if not isinstance(model, Mixture):
        return new_head
    gate = (f"gate.{name}" for name, _ in model.gate.named_parameters())
    return (*(f"local.{name}" for name in new_head), *gate)


def texts_of(
    examples: Examples, owner: str, everyone: TokenisedTexts | None = None
) -> OwnTexts:
    """A site's own texts: all of its file."""
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


def texts_of_clients(settings: Settings) -> list[OwnTexts]:
    """Those of every client of a simulation, in the order of their numbers.

    Where held-out texts are not the clients' own, as one test set for all is not, they are dealt to them as
    the training texts are: a client is judged on labels in the shares in which it has them.
    """
    examples = [
        SimulatedSite(client).examples(settings)
        for client in range(settings.num_clients)
    ]
    corpus = examples[0].corpus
    is_by_site = settings.partition.name == "by_site"
    if not (is_by_site and corpus.test_sizes):
        train = [own.train for own in examples]
        validation, test = (
            deal_alike(
                train,
                corpus.train.labels,
                corpus.test.labels,
                np.sort(np.concatenate(held)),
            )
            for held in (
                [own.validation for own in examples],
                [own.test for own in examples],
            )
        )
        parts = zip(examples, validation, test, strict=True)
        examples = [
            replace(own, validation=held, test=judged) for own, held, judged in parts
        ]
    all_of_test = np.sort(np.concatenate([own.test for own in examples]))
    everyone = (
        corpus.test.take(all_of_test) if settings.personalisation.everyone else None
    )
    owners = (
        [name for name, _ in corpus.site_sizes]
        if is_by_site
        else map(str, range(len(examples)))
    )
    found = [
        texts_of(own, owner, everyone)
        for own, owner in zip(examples, owners, strict=True)
    ]
    opted_out = settings.personalisation.opt_out_clients
    return [
        replace(own, num_opted_out=len(own.train)) if client in opted_out else own
        for client, own in enumerate(found)
    ]
