"""A run folder: settings, history, checkpoints, status; and the line of a sweep's table that tells of one.

Every write is whole or not there.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

from filelock import FileLock, Timeout
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter

from wardround.common.errors import FolderInUse
from wardround.common.files import named, write_atomically, write_json
from wardround.common.settings.tree import Settings
from wardround.server.record import RoundRecord

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
STATES = ("running", "finished", "failed", "stopped")
Empty = BeforeValidator(lambda value: None if value == "" else value)
"""Of a number in a table of texts: there is none yet."""
_KEPT_CHECKPOINTS = 2


class SweepRow(BaseModel):
    """A line of `sweep.csv`."""

    model: str
    data: str
    arm: str = ""
    """A column of the table only where the sweep has arms."""
    num_clients: int
    seed: int
    status: Literal["pending", "running", "finished", "failed", "stopped"]
    """`pending`, or the state of the run."""
    accuracy_at_budget: Annotated[float | None, Empty]
    baseline_accuracy: Annotated[float | None, Empty]
    """Accuracy at the budget of the K = 1 run with the same model, data and seed."""
    rounds_to_target: Annotated[int | None, Empty]
    """First round whose accuracy reaches `target_fraction` of the baseline; None: not reached."""

    @property
    def folder(self) -> str:
        """Name of the run folder, as `Settings.cell` gives it."""
        arm = [self.arm] if self.arm else []
        return "-".join(
            [self.model, self.data, *arm, f"k{self.num_clients}", f"s{self.seed}"]
        )


SWEEP_COLUMNS = [
    key for key, field in SweepRow.model_fields.items() if field.is_required()
]
"""Those that every `sweep.csv` has."""


class Labels(BaseModel):
    """The content of `labels.json`."""

    model_config = ConfigDict(coerce_numbers_to_str=True)

    label_names: tuple[str, ...] | None = None
    """In the order of their numbers."""
    test_counts: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    """Test examples of each label; None if the test texts are at the sites."""


@dataclass(frozen=True)
class Checkpoint:
    """The global model after a whole round."""

    record: RoundRecord
    """The round's record; its `test` is None where the model was not yet measured."""
    tensors: dict[str, Tensor]
    server_state: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """`ServerStep.state`, each under the names of `tensors`."""


class RunFolder:
    """The files of one run, under `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def open(self, settings: Settings) -> Iterator[None]:
        """Claim the folder for this process, write its settings, and forget rounds that are not whole.

        Raises:
            ValueError: it cannot be written, or it belongs to a run with other settings.
            FolderInUse: another process holds it (a ValueError too).
        """
        lock = FileLock(self.path / ".lock")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=1)  # `wardround status` may be looking for a moment
        except Timeout:
            raise FolderInUse(
                f"run_dir is '{self.path}', in which another process is running. "
                "Wait for it, or choose another run_dir."
            ) from None
        except OSError as error:
            raise ValueError(
                f"run_dir is '{self.path}', which cannot be written ({error.strerror}). "
                "Choose another run_dir=..., or correct what is in its way."
            ) from None
        try:
            self.check_owner(settings)
            write_json(self.path / "settings.json", settings.to_dict())
            self.cut_history(self._last_round())
            yield
        finally:
            lock.release()

    def check_owner(self, settings: Settings) -> None:
        """Raise ValueError, naming the differences, if the folder belongs to a run with other settings."""
        existing = self.settings()
        if existing is None:
            return
        differences = existing.differences(settings)
        if differences:
            raise ValueError(
                f"run_dir is '{self.path}', which holds a run with other settings: "
                f"{'; '.join(differences)}. Choose another run_dir=..., or go back to the settings there."
            )

    def settings(self) -> Settings | None:
        """The settings in the folder, or None where there are none yet."""
        file = self.path / "settings.json"
        return (
            Settings.from_json(file.read_text(encoding="utf-8"))
            if file.exists()
            else None
        )

    def refused(self) -> dict[str, dict[str, int]]:
        """How many answers of each site did not count, by reason."""
        return self._read("refused.json", dict[str, dict[str, int]], {})

    def write_refused(self, refused: Mapping[str, Mapping[str, int]]) -> None:
        """Write what `refused` reads."""
        write_json(self.path / "refused.json", refused)

    def approvals(self) -> dict[str, dict[str, str]]:
        """What each site said to the plan: `code`, empty where it takes part, and the same in `words`."""
        return self._read("approvals.json", dict[str, dict[str, str]], {})

    def write_approvals(self, approvals: Mapping[str, Mapping[str, str]]) -> None:
        """Write what `approvals` reads."""
        write_json(self.path / "approvals.json", approvals)

    def labels(self) -> Labels:
        """Return the content of `labels.json`; its fields are None if it is not there yet."""
        return self._read("labels.json", Labels, Labels())

    def label_names(self) -> tuple[str, ...]:
        """Return the labels in the order of their numbers; empty if none are written yet."""
        return self.labels().label_names or ()

    def write_status(self, state: str, reason: str) -> None:
        """Say where the run stands."""
        assert state in STATES, state
        write_json(self.path / "status.json", {"state": state, "reason": reason})

    def status(self) -> dict[str, str]:
        """`state` and `reason`; a folder without one has state `pending`."""
        pending = {"state": "pending", "reason": ""}
        return self._read("status.json", dict[str, str], pending)

    def history(self) -> list[RoundRecord]:
        """Return the records of whole rounds, oldest first. Raises ValueError for a damaged line."""
        return [RoundRecord.read(line) for line in self.history_lines()]

    def history_lines(self) -> list[bytes]:
        """Return the lines of the history. A line that a kill cut short, without its end, is left out."""
        file = self.path / "history.jsonl"
        if not file.exists():
            return []
        return file.read_bytes().split(b"\n")[:-1]

    def append_history(self, record: RoundRecord) -> None:
        """Add one round."""
        path = self.path / "history.jsonl"
        with named(path), path.open("a", encoding="utf-8") as file:
            file.write(record.line())
            file.flush()
            os.fsync(file.fileno())

    def cut_history(self, last_round: int) -> None:
        """Forget every round after `last_round`, and any line cut short by a kill or a full disk."""
        path = self.path / "history.jsonl"
        if path.exists():
            kept = "".join(
                record.line() for record in self.history() if record.round <= last_round
            )
            write_atomically(path, lambda part: part.write_text(kept))

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Write the tensors of a whole round; the newest before it stays, older ones go first."""
        from safetensors.torch import save_file

        def write(part: Path) -> None:
            part.mkdir()
            save_file(checkpoint.tensors, part / "shared.safetensors")
            for name, kept in checkpoint.server_state.items():
                save_file(kept, part / f"{name}.safetensors")
            (part / "record.json").write_text(checkpoint.record.line())

        path = self.path / "checkpoint" / f"round-{checkpoint.record.round:06d}"
        others = [folder for folder in self._checkpoints() if folder != path]
        for old in others[: 1 - _KEPT_CHECKPOINTS]:
            shutil.rmtree(old)
        write_atomically(path, write)

    def load_checkpoint(self) -> Checkpoint | None:
        """The newest whole checkpoint, or None where there is none."""
        folders = self._checkpoints()
        return _load(folders[-1]) if folders else None

    def keep_best(self, round: int) -> None:
        """Copy the checkpoint of a round, one of the newest two, to `checkpoint/best`."""
        source = self.path / "checkpoint" / f"round-{round:06d}"
        write_atomically(
            self.path / "checkpoint" / "best",
            lambda part: shutil.copytree(source, part),
        )

    def load_best(self) -> Checkpoint | None:
        """What `keep_best` copied last; None where nothing was."""
        folder = self.path / "checkpoint" / "best"
        return _load(folder) if folder.exists() else None

    def _read(self, name: str, kind: type[T], otherwise: T) -> T:
        """Read a JSON file; return `otherwise` if it is not there yet. Raises ValueError if it is wrong."""
        file = self.path / name
        if not file.exists():
            return otherwise
        return TypeAdapter(kind).validate_json(file.read_bytes())

    def _last_round(self) -> int:
        """Number of the newest checkpoint's round, -1 where there is none."""
        folders = self._checkpoints()
        return int(folders[-1].name.removeprefix("round-")) if folders else -1

    def _checkpoints(self) -> list[Path]:
        return sorted((self.path / "checkpoint").glob("round-*"))


def _load(folder: Path) -> Checkpoint:
    from safetensors.torch import load_file

    files = {path.stem: path for path in folder.glob("*.safetensors")}
    tensors = load_file(files.pop("shared"))
    state = {name: load_file(path) for name, path in files.items()}
    return Checkpoint(
        RoundRecord.read((folder / "record.json").read_text()), tensors, state
    )
