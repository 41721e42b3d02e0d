"""One client's part of a round: load the global tensors, train, hand the trained ones over."""

from __future__ import annotations

import time

from client.site import Examples, Site
from common.batches import by_length, evaluation_batches
from common.learning import Counts, Place, evaluate, train_epochs
from common.messages import Card, Task, Update
from common.models import draw_head
from common.settings import Settings
from common.workplace import Workplace, open_workplace


def introduce(settings: Settings, site: Site) -> Card:
    """Say who this is and how many examples it trains on. Raises ValueError for bad data."""
    return Card(client=site.client, num_examples=len(site.examples(site.localise(settings)).train))


def run_local_round(task: Task, site: Site) -> Update:
    """Train the global model on the site's own examples.

    Where sites evaluate, the model as received is first put through the site's held-out texts.

    The returned tensors are the resident model's own buffer where that is on the CPU: they hold until the
    next round of any client in this process.

    Raises:
        ValueError: the server's model is not the one these settings describe here.
        LossNotFinite: training diverged.
    """
    started = time.perf_counter()
    settings = site.localise(task.settings)
    examples = site.examples(settings)
    workplace = _load(task, settings, examples)
    test = _count(workplace, settings, examples) if settings.evaluation.where == "sites" else None
    model = workplace.classifier.model
    if task.round == 1 and settings.train.head_init == "per_site":
        draw_head(model, workplace.classifier.new_head, settings.seed, client=task.client + 1)
    place = Place(settings.seed, task.round, task.client, workplace.device, settings.precision)
    new_head = workplace.classifier.new_head
    result = train_epochs(model, examples.corpus.train, examples.train, settings.train, place, new_head)
    return Update(
        round=task.round,
        layout=workplace.layout.digest,
        tensors=workplace.flat,
        num_examples=len(examples.train),
        num_steps=result.num_steps,
        loss=result.loss,
        seconds=time.perf_counter() - started,
        test=test,
    )


def count_held_out(task: Task, site: Site) -> Counts:
    """Put the global model through the site's held-out texts. Raises ValueError as `run_local_round` does."""
    settings = site.localise(task.settings)
    examples = site.examples(settings)
    return _count(_load(task, settings, examples), settings, examples)


def _load(task: Task, settings: Settings, examples: Examples) -> Workplace:
    workplace = open_workplace(settings, examples.corpus.label_names)
    if workplace.layout.digest != task.layout:
        raise ValueError(
            "the server's model has other tensor names or shapes than this client's; check that both have "
            "the same model files and library versions."
        )
    workplace.load(task.tensors)
    return workplace


def _count(workplace: Workplace, settings: Settings, examples: Examples) -> Counts:
    texts = examples.corpus.test
    order = by_length(texts, examples.test)
    batches = evaluation_batches(
        texts, order, settings.train, settings.evaluation.batch_size, workplace.device
    )
    return evaluate(workplace.classifier.model, batches, settings.precision)
