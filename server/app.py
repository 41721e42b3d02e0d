"""The Flower ServerApp: open the run folder, build what is needed, run the rounds, leave a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from common.data.batches import count_steps
from common.data.corpus import Corpus, open_corpus
from common.data.partitions import Indices, partition
from common.files import write_json
from common.model.flat import tensors_to_flat
from common.model.state import ModelState, open_model
from common.settings import Settings
from server.diagnostics.updates import Head
from server.display import display
from server.model_folder import save_model
from server.rounds.callbacks import Checkpoints, CollapseAlarm, History, Live, Observer, Progress, Target
from server.rounds.clients import Clients, GridClients, RunFailed
from server.rounds.evaluation import Evaluation
from server.rounds.loop import FederatedAveraging
from server.rounds.record import Standing, steps_so_far
from server.rounds.roster import Roster
from server.rounds.server_step import ServerStep
from server.rounds.writer import Writer
from server.run_folder import Checkpoint, RunFolder

if TYPE_CHECKING:
    from torch import Tensor

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run what the run config asks for. Raises RunFailed, or ValueError for bad input.

    What `wardround submit` sent names a ticket, which lies on this machine: sites are told nothing of it. A
    Flower user's own run has its settings in the run config, and its nodes are taken at their word.
    """
    ticket_name = str(context.run_config.get("ticket", ""))
    if ticket_name:
        from server.deployment.ticket import open_ticket

        settings, clients, sites = open_ticket(ticket_name, grid)
        try:
            conduct(clients, settings, sites)
        finally:
            clients.close()
        return
    conduct(GridClients(grid), _settings_of(grid, context))


def _settings_of(grid: Grid, context: Context) -> Settings:
    """The run config's `settings` (JSON); without it, its `overrides`, with a client for each node."""
    written = str(context.run_config.get("settings", ""))
    if written:
        return Settings.from_json(written)
    from server.compose import compose

    overrides = str(context.run_config.get("overrides", "")).split()
    num_nodes = len(list(grid.get_node_ids()))
    return compose([f"num_clients={num_nodes}", *overrides] if num_nodes else overrides).settings


def conduct(clients: Clients, settings: Settings, sites: Mapping[str, int | None] | None = None) -> None:
    """One run, from wherever its folder stands to its end.

    Args:
        sites: the most examples each registered site may claim (None for no bound) by name; None or empty in
            a simulation.

    Raises:
        ValueError: bad input; nothing was written then. RunFailed: the run could not be finished.
    """
    folder = RunFolder(Path(settings.run_dir))
    folder.check_owner(settings)
    roster = Roster(clients, settings, sites or {})
    corpus = _read(settings)
    parts = _deal(settings, corpus)
    roster.name_sites(_simulated_sites(settings, corpus))
    label_names = corpus.label_names if corpus else settings.declared_labels()
    if not settings.engine.is_simulated:
        roster.invite()  # sites read their texts while the model is built here
    model_state = open_model(settings, label_names, fresh=True)
    with folder.open(settings), _recorded(folder):
        for finding in corpus.findings if corpus else ():
            display().say(f"{settings.cell}: {finding}")
        write_json(folder.path / "labels.json", _describe_labels(label_names, corpus))
        write_json(folder.path / "partition.json", parts)
        _run(roster, clients, folder, settings, model_state, corpus)


def _read(settings: Settings) -> Corpus | None:
    """The texts this machine needs: all of a simulation, a central test set, or none."""
    if settings.engine.is_simulated or settings.evaluation.where == "server":
        return open_corpus(settings)
    return None


def _simulated_sites(settings: Settings, corpus: Corpus | None) -> list[str]:
    """Names of the clients of a simulation in which each is a site, in the order of their numbers."""
    if corpus is None or not settings.engine.is_simulated or settings.partition.name != "by_site":
        return []
    return [name for name, _ in corpus.site_sizes]


def _describe_labels(label_names: Sequence[str], corpus: Corpus | None) -> dict[str, Any]:
    """The labels in the order of their numbers, and how many test texts carry each, where they are here."""
    counts = None
    if corpus is not None:
        counts = np.bincount(corpus.test.labels, minlength=len(label_names)).tolist()
    return {"label_names": label_names, "test_counts": counts}


def _deal(settings: Settings, corpus: Corpus | None) -> dict[str, list[int]]:
    """Who holds which training example; nobody but the sites themselves knows that in a deployment.

    Raises:
        ValueError: the texts cannot be dealt, or trained on, as asked.
    """
    if corpus is None or not settings.engine.is_simulated:
        return {}
    parts: list[Indices] = partition(
        settings.partition, corpus.train.labels, settings.num_clients, settings.seed, corpus.site_sizes
    )
    for part in parts:
        count_steps(len(part), settings.train)
    return {str(client): part.tolist() for client, part in enumerate(parts)}


def _run(
    roster: Roster,
    clients: Clients,
    folder: RunFolder,
    settings: Settings,
    model_state: ModelState,
    corpus: Corpus | None,
) -> None:
    """Run what is left to run, and leave the model."""
    checkpoint = folder.load_checkpoint()
    server_step = ServerStep(settings, _momentum(checkpoint, model_state))
    writer = Writer()
    observers: tuple[Observer, ...] = (
        Checkpoints(folder, model_state.layout, server_step, writer),
        History(folder, writer),
        Live(folder),
        Progress(settings),
        CollapseAlarm(folder, settings),
        Target(folder, settings.evaluation.target_accuracy),
    )
    evaluation = None
    if corpus is not None and settings.evaluation.where == "server":
        evaluation = Evaluation(settings, model_state, corpus.test)
    head = Head.of(model_state.layout, model_state.classifier.new_head)
    num_labels = model_state.classifier.num_labels
    strategy = FederatedAveraging(
        settings, model_state.layout, num_labels, head, evaluation, observers, server_step
    )
    roster.gather()
    # No name here for where the run starts: its tensors can go when the first round replaces them.
    with writer:
        tensors, reason = strategy.run(clients, roster, _standing(folder, checkpoint, strategy, model_state))
    model_state.load(tensors)
    save_model(folder, settings, model_state.classifier)
    folder.write_status("finished", reason)


def _momentum(checkpoint: Checkpoint | None, model_state: ModelState) -> Tensor | None:
    if checkpoint is None or checkpoint.momentum is None:
        return None
    return tensors_to_flat(model_state.layout, checkpoint.momentum)


def _standing(
    folder: RunFolder, checkpoint: Checkpoint | None, strategy: FederatedAveraging, model_state: ModelState
) -> Standing:
    """The newest checkpoint, or round 0."""
    if checkpoint is None:
        return strategy.open(model_state.flat.detach().cpu().clone())
    lines = folder.history()
    total_steps = steps_so_far([*lines, checkpoint.record])
    is_shown = len(lines) > checkpoint.record["round"]
    tensors = tensors_to_flat(model_state.layout, checkpoint.tensors)
    norms = tuple(client["update_norm"] for line in lines for client in line["clients"])
    return Standing(tensors, checkpoint.record, total_steps, is_shown=is_shown, norms=norms)


@contextmanager
def _recorded(folder: RunFolder) -> Iterator[None]:
    """Keep `status.json` true, whatever happens."""
    folder.write_status("running", "")
    try:
        yield
    except (KeyboardInterrupt, SystemExit):  # Flower ends a stopped run's server app with SystemExit
        folder.write_status("stopped", "interrupted; the same command goes on from the last whole round")
        raise
    except OSError as error:
        text = f"a file could not be written ({error.strerror}: {error.filename}); make room and run again"
        with suppress(OSError):  # the disk that is full may hold the status too
            folder.write_status("failed", text)
        raise RunFailed(text) from error
    except Exception as error:
        folder.write_status("failed", str(error) or type(error).__name__)
        raise
