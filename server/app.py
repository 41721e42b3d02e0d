"""The Flower ServerApp: open the run folder, build what is needed, run the rounds, leave a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from wardround.common.data.batches import count_steps
from wardround.common.data.corpus import Corpus, open_corpus
from wardround.common.data.partitions import partition
from wardround.common.errors import RunFailed
from wardround.common.files import Writer, write_json
from wardround.common.model.flat import tensors_to_flat
from wardround.common.model.state import ModelState, open_model
from wardround.common.settings.tree import Settings
from wardround.server.display import display
from wardround.server.model_folder import Certifier, save_model
from wardround.server.rounds.callbacks import Best, Callback, Checkpoints, History
from wardround.server.rounds.clients import Clients, GridClients
from wardround.server.rounds.cohort import Cohort
from wardround.server.rounds.evaluation import Evaluation
from wardround.server.rounds.loop import FederatedAveraging
from wardround.server.rounds.server_step import ServerStep
from wardround.server.rounds.state import RoundState
from wardround.server.rounds.updates import Head
from wardround.server.run_folder import RunFolder
from wardround.server.watchers import CollapseAlarm, Live, Progress, Target

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
        from wardround.server.deployment.ticket import open_ticket

        settings, clients, sites = open_ticket(ticket_name, grid)
        try:
            conduct(clients, settings, sites, clients)
        finally:
            clients.close()
        return
    conduct(GridClients(grid), _settings_of(grid, context))


def _settings_of(grid: Grid, context: Context) -> Settings:
    """The run config's `settings` (JSON); without it, its `overrides`, with a client for each node."""
    written = str(context.run_config.get("settings", ""))
    if written:
        return Settings.from_json(written)
    from wardround.server.compose import compose

    overrides = str(context.run_config.get("overrides", "")).split()
    num_nodes = len(list(grid.get_node_ids()))
    return compose(
        [f"num_clients={num_nodes}", *overrides] if num_nodes else overrides
    ).settings


def conduct(
    clients: Clients,
    settings: Settings,
    sites: Mapping[str, int | None] | None = None,
    certifier: Certifier | None = None,
) -> None:
    """One run, from wherever its folder stands to its end.

    Args:
        sites: the most examples each registered site may claim (None for no bound) by name; None or empty in
            a simulation.
        certifier: signs which answers the model is made of; None where nothing is signed.

    Raises:
        ValueError: bad input; nothing was written then. RunFailed: the run could not be finished.
    """
    folder = RunFolder(Path(settings.run_dir))
    folder.check_owner(settings)
    cohort = Cohort(clients, settings, sites, folder.write_approvals)
    is_simulated = settings.engine.is_simulated
    # The texts this machine needs: all of a simulation, a central test set, or none.
    corpus = (
        open_corpus(settings)
        if is_simulated or settings.evaluation.where == "server"
        else None
    )
    named = (
        corpus.site_sizes
        if corpus and is_simulated and settings.partition.name == "by_site"
        else ()
    )
    cohort.simulated_sites = [name for name, _ in named]
    parts = _deal(settings, corpus) if corpus and is_simulated else {}
    label_names = corpus.label_names if corpus else settings.declared_labels()
    if not is_simulated:
        cohort.invite()  # sites read their texts while the model is built here
    model_state = open_model(settings, label_names, fresh=True)
    test = corpus.test if corpus and settings.evaluation.where == "server" else None
    with folder.open(settings), recorded(folder):
        for finding in corpus.findings if corpus else ():
            display().say(f"{settings.cell}: {finding}")
        counts = (
            np.bincount(corpus.test.labels, minlength=len(label_names)).tolist()
            if corpus
            else None
        )
        write_json(
            folder.path / "labels.json",
            {"label_names": label_names, "test_counts": counts},
        )
        write_json(folder.path / "partition.json", parts)
        evaluation = Evaluation(settings, model_state, test)
        tensors, reason = _train(
            clients, cohort, folder, settings, model_state, evaluation
        )
        best = folder.load_best()
        model_state.load(
            tensors
            if best is None
            else tensors_to_flat(model_state.layout, best.tensors)
        )
        save_model(folder, settings, model_state.text_model, certifier)
        folder.write_status("finished", reason)


def _deal(settings: Settings, corpus: Corpus) -> dict[str, list[int]]:
    """Who holds which training example.

    Raises:
        ValueError: the texts cannot be dealt, or trained on, as asked.
    """
    parts = partition(
        settings.partition,
        corpus.train.labels,
        settings.num_clients,
        settings.seed,
        corpus.site_sizes,
    )
    for part in parts:
        count_steps(len(part), settings.train)
    return {str(client): part.tolist() for client, part in enumerate(parts)}


def _train(
    clients: Clients,
    cohort: Cohort,
    folder: RunFolder,
    settings: Settings,
    model_state: ModelState,
    evaluation: Evaluation,
) -> tuple[Tensor, str]:
    """Run what is left to run; returns the last global tensors, and why the run ended."""
    layout, checkpoint = model_state.layout, folder.load_checkpoint()
    clients.most_bytes = layout.most_update_bytes()
    kept = checkpoint.server_state if checkpoint else {}
    head = Head.of(layout, model_state.text_model.new_head)
    server_state = {
        name: tensors_to_flat(layout, state) for name, state in kept.items()
    }
    server_step = ServerStep(settings, server_state, head.slices)
    with Writer() as writer:
        callbacks: tuple[Callback, ...] = (
            Checkpoints(
                folder, layout, server_step, writer, comes_first=clients.approve_plans
            ),
            History(folder, writer),
            Best(folder, settings.evaluation.patience, writer),
            Live(folder),
            Progress(settings),
            CollapseAlarm(folder, settings),
            Target(folder, settings.evaluation.target_accuracy),
        )
        averaging = FederatedAveraging(
            settings, clients, cohort, head, evaluation, callbacks, server_step
        )
        cohort.gather()
        # No name here for where the run starts: its tensors can go when the first round replaces them.
        if checkpoint is None:
            return averaging.run(
                averaging.start(layout, model_state.flat.detach().cpu().clone())
            )
        averaging.resume(folder.history(), checkpoint.record)
        return averaging.run(
            RoundState(
                layout, tensors_to_flat(layout, checkpoint.tensors), checkpoint.record
            )
        )


@contextmanager
def recorded(folder: RunFolder) -> Iterator[None]:
    """Keep `status.json` true, whatever happens."""
    folder.write_status("running", "")
    try:
        yield
    except (
        KeyboardInterrupt,
        SystemExit,
    ):  # Flower ends a stopped run's server app with SystemExit
        folder.write_status(
            "stopped", "interrupted; the same command goes on from the last whole round"
        )
        raise
    except OSError as error:
        text = f"a file could not be written ({error.strerror}: {error.filename}); make room and run again"
        with suppress(OSError):  # the disk that is full may hold the status too
            folder.write_status("failed", text)
        raise RunFailed(text) from error
    except Exception as error:
        folder.write_status("failed", str(error) or type(error).__name__)
        raise
