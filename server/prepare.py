"""The preparation of a run: its clients, and the texts that this machine needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from wardround.common.data.corpus import Corpus, open_corpus
from wardround.common.data.partitions import deal_held_out, partition
from wardround.common.data.steps import count_steps
from wardround.common.data.tokens import TokenisedTexts
from wardround.common.settings.tree import Settings
from wardround.common.tasks.table import task_of
from wardround.server.rounds.clients import Clients
from wardround.server.rounds.cohort import Cohort
from wardround.server.run_folder import RunFolder


@dataclass(frozen=True)
class Prepared:
    """Everything that a run needs before its model."""

    cohort: Cohort
    label_names: tuple[str, ...]
    test: TokenisedTexts | None
    """The central test set; None if the sites measure."""
    test_counts: list[int] | None = None
    """Number of test texts for each name.

    None if this machine reads no texts, or if the task does not count names.
    """
    findings: Sequence[str] = ()
    """Remarks on the texts, for a person."""
    parts: dict[str, list[int]] = field(default_factory=dict)
    """In a simulation: the training examples of each client, by its number."""


def prepare_simulation(clients: Clients, settings: Settings) -> Prepared:
    """Read all texts, and deal them to the clients.

    Raises:
        ValueError: the texts cannot be read, dealt, or trained on, as asked.
    """
    corpus = open_corpus(settings)
    is_by_site = settings.partition.name == "by_site"
    names = [name for name, _ in corpus.site_sizes] if is_by_site else []
    if settings.evaluation.where == "sites":
        _check_held_out(settings, corpus, names)
    return Prepared(
        cohort=Cohort(clients, settings, simulated_sites=names),
        label_names=corpus.label_names,
        test=corpus.test if settings.evaluation.where == "server" else None,
        test_counts=_counts(settings, corpus),
        findings=corpus.findings,
        parts=_deal(settings, corpus),
    )


def prepare_deployment(
    clients: Clients,
    settings: Settings,
    sites: Mapping[str, int | None] | None,
    folder: RunFolder,
) -> Prepared:
    """Read the central test set, if there is one, and greet the sites.

    The sites then read their texts while the model is built here.

    Args:
        sites: as for `Cohort`.

    Raises:
        ValueError: the texts cannot be read, or the number of sites is not the number of
            clients.
    """
    cohort = Cohort(clients, settings, sites, folder.write_approvals)
    if settings.evaluation.where == "sites":
        label_names = settings.declared_labels()
        cohort.invite()
        return Prepared(cohort, label_names, test=None)
    corpus = open_corpus(settings)
    cohort.invite()
    return Prepared(
        cohort=cohort,
        label_names=corpus.label_names,
        test=corpus.test,
        test_counts=_counts(settings, corpus),
        findings=corpus.findings,
    )


def _check_held_out(
    settings: Settings, corpus: Corpus, site_names: Sequence[str]
) -> None:
    """Raise ValueError, with its name, if a client has too few held-out texts to measure."""
    needed = 2 if settings.evaluation.validation_fraction else 1
    dealt = deal_held_out(
        settings.partition, len(corpus.test), settings.num_clients, corpus.test_sizes
    )
    for client, part in enumerate(dealt):
        if len(part) < needed:
            who = f"site '{site_names[client]}'" if site_names else f"client {client}"
            raise ValueError(
                f"{who} holds out {len(part)} texts, but evaluation.where is sites, which "
                f"needs at least {needed}. Each label keeps one text for training. Add texts, "
                "raise data.test_fraction, or set evaluation.where=server."
            )


def _counts(settings: Settings, corpus: Corpus) -> list[int] | None:
    return task_of(settings).counts(corpus.test.targets, corpus.label_names)


def _deal(settings: Settings, corpus: Corpus) -> dict[str, list[int]]:
    """Return the training examples of each client.

    Raises:
        ValueError: the texts cannot be dealt, or trained on, as asked.
    """
    parts = partition(
        settings.partition,
        task_of(settings).strata(corpus.train.targets),
        settings.num_clients,
        settings.seed,
        corpus.site_sizes,
    )
    for part in parts:
        count_steps(len(part), settings.train)
    return {str(client): part.tolist() for client, part in enumerate(parts)}
