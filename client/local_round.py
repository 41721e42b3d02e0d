"""One client's part of a round: load the global tensors, train, hand the trained ones over."""

from __future__ import annotations

import time

from client.site import Site
from common.learning import Place, train_epochs
from common.messages import Card, Task, Update
from common.models import draw_head
from common.settings import Settings
from common.workplace import open_workplace


def introduce(settings: Settings, site: Site) -> Card:
    """Say who this is and how many examples it trains on. Raises ValueError for bad data."""
    _, indices = site.examples(settings)
    return Card(client=site.client, num_examples=len(indices))


def run_local_round(task: Task, site: Site) -> Update:
    """Train the global model on the site's own examples.

    The returned tensors are the resident model's own buffer where that is on the CPU: they hold until the
    next round of any client in this process.

    Raises:
        ValueError: the server's model is not the one these settings describe here.
        LossNotFinite: training diverged.
    """
    started = time.perf_counter()
    settings = task.settings
    corpus, indices = site.examples(settings)
    workplace = open_workplace(settings, corpus.label_names)
    if workplace.layout.digest != task.layout:
        raise ValueError(
            "the server's model has other tensor names or shapes than this client's; check that both have "
            "the same model files and library versions."
        )
    workplace.load(task.tensors)
    model = workplace.classifier.model
    if task.round == 1 and settings.train.head_init == "per_site":
        draw_head(model, workplace.classifier.new_head, settings.seed, client=site.client + 1)
    place = Place(settings.seed, task.round, site.client, workplace.device, settings.precision)
    result = train_epochs(model, corpus.train, indices, settings.train, place)
    return Update(
        round=task.round,
        layout=workplace.layout.digest,
        tensors=workplace.flat,
        num_examples=len(indices),
        num_steps=result.num_steps,
        loss=result.loss,
        seconds=time.perf_counter() - started,
    )
