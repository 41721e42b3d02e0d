"""The Flower ServerApp: open the run folder, prepare, run the rounds, release a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from torch import Tensor

from wardround.common.errors import RunFailed
from wardround.common.files import Writer, write_json
from wardround.common.model.flat import tensors_to_flat
from wardround.common.model.state import ModelState, open_model
from wardround.common.settings.tree import Settings
from wardround.common.tasks.table import task_of
from wardround.server.display import display
from wardround.server.model_folder import Certifier, save_model
from wardround.server.prepare import prepare_deployment, prepare_simulation
from wardround.server.rounds.callbacks import Callbacks
from wardround.server.rounds.clients import Clients, GridClients
from wardround.server.rounds.cohort import Cohort
from wardround.server.rounds.evaluation import Evaluation
from wardround.server.rounds.loop import FederatedAveraging
from wardround.server.rounds.recorder import Recorder
from wardround.server.rounds.server_step import ServerStep
from wardround.server.rounds.state import RoundState
from wardround.server.rounds.updates import Head
from wardround.server.run_folder import RunFolder
from wardround.server.watchers import CollapseAlarm, Live, Patience, Progress, Target

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the run that the run config names.

    `wardround submit` sends the name of a ticket, a file of this machine: sites receive
    no more than the name. The run of a Flower user has its settings in the run config,
    and its nodes are trusted.

    Raises:
        ValueError: bad input.
        RunFailed: the run could not be finished.
    """
    ticket_name = str(context.run_config.get("ticket", ""))
    if not ticket_name:
        conduct(GridClients(grid), _settings_of(grid, context))
        return
    # Here, since a simulation starts without the keys and signatures of a deployment.
    from wardround.server.deployment.open_ticket import open_ticket

    settings, clients, sites = open_ticket(ticket_name, grid)
    try:
        conduct(clients, settings, sites, clients)
    finally:
        clients.close()


def _settings_of(grid: Grid, context: Context) -> Settings:
    """Read `settings` (JSON) of the run config, or `overrides` with one client for each node."""
    written = str(context.run_config.get("settings", ""))
    if written:
        return Settings.from_json(written)
    # Here, since Hydra costs a simulation time at the start.
    from wardround.server.compose import compose

    overrides = str(context.run_config.get("overrides", "")).split()
    nodes = list(grid.get_node_ids())
    if nodes:
        overrides.insert(0, f"num_clients={len(nodes)}")
    return compose(overrides).settings


def conduct(
    clients: Clients,
    settings: Settings,
    sites: Mapping[str, int | None] | None = None,
    certifier: Certifier | None = None,
) -> None:
    """Run from the last whole round in the run folder to the end.

    Args:
        sites: by name, the most examples that each registered site may have (None if
            there is no limit); None or empty in a simulation.
        certifier: signs which answers the model consists of; None if nothing is signed.

    Raises:
        ValueError: bad input. Nothing was written.
        RunFailed: the run could not be finished.
    """
    folder = RunFolder(Path(settings.run_dir))
    folder.check_owner(settings)
    if settings.engine.is_simulated:
        prepared = prepare_simulation(clients, settings)
    else:
        prepared = prepare_deployment(clients, settings, sites, folder)
    label_names = prepared.label_names
    model_state = open_model(settings, label_names, fresh=True)
    with folder.open(settings), recorded(folder):
        for finding in (*prepared.findings, *model_state.text_model.remarks):
            display().say(f"{settings.cell}: {finding}")
        labels = {
            "label_names": label_names,
            "test_counts": prepared.test_counts,
        }
        write_json(folder.path / "labels.json", labels)
        write_json(folder.path / "partition.json", prepared.parts)
        evaluation = Evaluation(settings, model_state, prepared.test)
        tensors, reason = _train(
            clients, prepared.cohort, folder, settings, model_state, evaluation
        )
        best = folder.load_best()
        if best is not None:
            tensors = tensors_to_flat(model_state.layout, best.tensors)
        model_state.load(tensors)
        save_model(folder, settings, model_state.text_model, certifier)
        folder.write_status("finished", reason)


def _train(
    clients: Clients,
    cohort: Cohort,
    folder: RunFolder,
    settings: Settings,
    model_state: ModelState,
    evaluation: Evaluation,
) -> tuple[Tensor, str]:
    """Run the rounds that are left; return the last tensors, and why the run ended."""
    layout = model_state.layout
    checkpoint = folder.load_checkpoint()
    clients.most_bytes = layout.most_update_bytes()
    head = Head.of(layout, model_state.text_model.new_head)
    server_state = {}
    if checkpoint is not None:
        for name, state in checkpoint.server_state.items():
            server_state[name] = tensors_to_flat(layout, state)
    server_step = ServerStep(settings, server_state, head.slices)
    with Writer() as writer:
        recorder = Recorder(
            folder,
            layout,
            server_step,
            writer,
            task_of(settings),
            waits_for_checkpoint=clients.approve_plans,
        )
        callbacks = Callbacks(
            recorder,
            Live(folder),
            Progress(settings),
            Patience(folder, settings),
            CollapseAlarm(folder, settings),
            Target(folder, settings),
        )
        averaging = FederatedAveraging(
            settings=settings,
            clients=clients,
            cohort=cohort,
            head=head,
            evaluation=evaluation,
            callbacks=callbacks,
            server_step=server_step,
        )
        cohort.gather()
        # The first tensors have no name here, so that the first round can free them.
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
    """Write `running` to `status.json`, and how the run ended if it does not finish."""
    folder.write_status("running", "")
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        # Flower ends the server app of a stopped run with SystemExit.
        reason = "interrupted; the same command continues after the last whole round"
        folder.write_status("stopped", reason)
        raise
    except OSError as error:
        text = (
            f"a file could not be written ({error.strerror}: {error.filename}); free "
            "some space and run again"
        )
        with suppress(OSError):  # the full disk may hold the status too
            folder.write_status("failed", text)
        raise RunFailed(text) from error
    except Exception as error:
        reason = str(error) or type(error).__name__
        folder.write_status("failed", reason)
        raise
