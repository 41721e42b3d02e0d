"""The Flower ServerApp: open the run folder, build what is needed, run the rounds, leave a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from common.learning import count_steps
from common.partitions import Indices, partition
from common.runs import RunFolder, write_json
from common.settings import Settings
from common.sharing import tensors_to_flat
from common.workplace import Corpus, Workplace, open_corpus, open_workplace
from server.display import display
from server.evaluation import Evaluation
from server.exchange import RunFailed, gather_members
from server.model_folder import save_model
from server.observers import Checkpoints, History, Progress, Target
from server.strategy import FederatedAveraging

if TYPE_CHECKING:
    from torch import Tensor

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run what the run config asks for. Raises RunFailed, or ValueError for bad input."""
    conduct(grid, _settings_of(grid, context))


def _settings_of(grid: Grid, context: Context) -> Settings:
    """The run config's `settings` (JSON); without it, its `overrides`, with a client for each node."""
    written = str(context.run_config.get("settings", ""))
    if written:
        return Settings.from_json(written)
    from server.compose import compose

    overrides = str(context.run_config.get("overrides", "")).split()
    num_nodes = len(list(grid.get_node_ids()))
    return compose([f"num_clients={num_nodes}", *overrides] if num_nodes else overrides).settings


def conduct(grid: Grid, settings: Settings) -> None:
    """One run, from wherever its folder stands to its end."""
    folder = RunFolder(Path(settings.run_dir))
    folder.check_owner(settings)
    corpus, parts = _deal(settings)
    workplace = open_workplace(settings, corpus.label_names, fresh=True)
    with folder.open(settings), _recorded(folder):
        for finding in corpus.findings:
            display().say(f"{settings.cell}: {finding}")
        write_json(folder.path / "labels.json", {"label_names": corpus.label_names})
        write_json(
            folder.path / "partition.json",
            {str(client): part.tolist() for client, part in enumerate(parts)},
        )
        tensors, reason = _run_rounds(grid, settings, folder, workplace, corpus)
        workplace.load(tensors)
        save_model(folder, settings, workplace.classifier)
        folder.write_status("finished", reason)


def _deal(settings: Settings) -> tuple[Corpus, list[Indices]]:
    """The texts, and who holds which; every error a person can make with them comes up here."""
    corpus = open_corpus(settings)
    parts = partition(
        settings.partition, corpus.train.labels, settings.num_clients, settings.seed, corpus.site_sizes
    )
    for part in parts:
        count_steps(len(part), settings.train)
    return corpus, parts


def _run_rounds(
    grid: Grid, settings: Settings, folder: RunFolder, workplace: Workplace, corpus: Corpus
) -> tuple[Tensor, str]:
    """Run what is left to run; returns the final tensors, (P,) fp32 on the CPU, and why it ended."""
    tensors = workplace.flat.detach().cpu().clone()
    checkpoint = folder.load_checkpoint()
    if checkpoint is not None:
        tensors = tensors_to_flat(workplace.layout, checkpoint.tensors)
    strategy = FederatedAveraging(
        settings,
        workplace.layout,
        Evaluation(settings, workplace, corpus.test),
        (
            History(folder),
            Checkpoints(folder, workplace.layout),
            Progress(settings),
            Target(folder, settings.evaluation.target_accuracy),
        ),
    )
    members = gather_members(grid, settings)
    return strategy.run(grid, members, tensors, checkpoint.round if checkpoint else None)


@contextmanager
def _recorded(folder: RunFolder) -> Iterator[None]:
    """Keep `status.json` true, whatever happens."""
    folder.write_status("running", "")
    try:
        yield
    except KeyboardInterrupt:
        folder.write_status("stopped", "interrupted; the same command goes on from the last whole round")
        raise
    except OSError as error:
        text = f"a file could not be written ({error.strerror}: {error.filename}); make room and run again"
        folder.write_status("failed", text)
        raise RunFailed(text) from error
    except Exception as error:
        folder.write_status("failed", str(error) or type(error).__name__)
        raise
