"""A run folder: settings, history, checkpoints, status; and its row in the table of a sweep.

Every file is written whole, or not at all.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

from filelock import FileLock, Timeout
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter

from wardround.common.errors import FolderInUse
from wardround.common.files import (
    append_line,
    require_readable,
    write_atomically,
    write_json,
    write_text,
)
from wardround.common.settings.tree import Settings
from wardround.server.record import RoundRecord

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
STATES = ("running", "finished", "failed", "stopped")
EmptyIsNone = BeforeValidator(lambda value: None if value == "" else value)
"""For a number in a table of texts: an empty text is None."""
_KEPT_CHECKPOINTS = 2


class SweepRow(BaseModel):
    """A row of `sweep.csv`."""

    model: str
    data: str
    arm: str = ""
    """A column of the table only if the sweep has arms."""
    num_clients: int
    seed: int
    status: Literal["pending", "running", "finished", "failed", "stopped"]
    """`pending`, or the state of the run."""
    accuracy_at_budget: Annotated[float | None, EmptyIsNone]
    baseline_accuracy: Annotated[float | None, EmptyIsNone]
    """Accuracy of the K = 1 run at its budget, with the same model, data and seed."""
    rounds_to_target: Annotated[int | None, EmptyIsNone]
    """First round with an accuracy of `target_fraction` of the baseline; None: not reached."""

    @property
    def folder(self) -> str:
        """Name of the run folder, as `Settings.cell`."""
        arm = f"-{self.arm}" if self.arm else ""
        return f"{self.model}-{self.data}{arm}-k{self.num_clients}-s{self.seed}"


SWEEP_COLUMNS = [
    key for key, field in SweepRow.model_fields.items() if field.is_required()
]
"""The columns that every `sweep.csv` has."""


class Labels(BaseModel):
    """The content of `labels.json`."""

    model_config = ConfigDict(coerce_numbers_to_str=True)

    label_names: tuple[str, ...] | None = None
    """Labels in the order of their numbers."""
    test_counts: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    """Test examples of each label; None if the test texts are at the sites."""


@dataclass(frozen=True)
class Checkpoint:
    """The global model after a whole round."""

    record: RoundRecord
    """Its `test` is None if the model was not measured yet."""
    tensors: dict[str, Tensor]
    server_state: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """`ServerStep.state`, each with the same names as `tensors`."""


class RunFolder:
    """The files of one run, under `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def open(self, settings: Settings) -> Iterator[None]:
        """Lock the folder for this process, write its settings, and drop incomplete rounds.

        Raises:
            ValueError: it cannot be written, or it holds a run with other settings.
            FolderInUse: another process runs in it (a ValueError too).
        """
        lock = FileLock(self.path / ".lock")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            # `wardround status` may hold the lock for a moment.
            lock.acquire(timeout=1)
        except Timeout:
            raise FolderInUse(
                f"run_dir is '{self.path}', in which another process is running. "
                "Wait for it, or choose another run_dir."
            ) from None
        except OSError as error:
            raise ValueError(
                f"run_dir is '{self.path}', which cannot be written ({error.strerror}). "
                "Choose another run_dir=..., or make it a folder that can be written."
            ) from None
        try:
            self.check_owner(settings)
            write_json(self.path / "settings.json", settings.to_dict())
            self.cut_history(self._last_round())
            yield
        finally:
            lock.release()

    def check_owner(self, settings: Settings) -> None:
        """Raise ValueError, with the differences, if the folder holds a run with other settings."""
        existing = self.settings()
        if existing is None:
            return
        differences = existing.differences(settings)
        if differences:
            raise ValueError(
                f"run_dir is '{self.path}', which holds a run with other settings: "
                f"{'; '.join(differences)}. Choose another run_dir=..., or use the settings "
                "there."
            )

    def settings(self) -> Settings | None:
        """Return the settings in the folder; None if there are none yet."""
        file = self.path / "settings.json"
        if not file.exists():
            return None
        return Settings.from_json(file.read_text(encoding="utf-8"))

    def refused(self) -> dict[str, dict[str, int]]:
        """Return the number of refused answers of each site, by reason."""
        return self._read("refused.json", dict[str, dict[str, int]], {})

    def write_refused(self, refused: Mapping[str, Mapping[str, int]]) -> None:
        """Write `refused`."""
        write_json(self.path / "refused.json", refused)

    def approvals(self) -> dict[str, dict[str, str]]:
        """Return each site's answer to the plan: `code`, empty if it takes part, and `words`."""
        return self._read("approvals.json", dict[str, dict[str, str]], {})

    def write_approvals(self, approvals: Mapping[str, Mapping[str, str]]) -> None:
        """Write `approvals`."""
        write_json(self.path / "approvals.json", approvals)

    def labels(self) -> Labels:
        """Return the content of `labels.json`; its fields are None if it is not there yet."""
        return self._read("labels.json", Labels, Labels())

    def label_names(self) -> tuple[str, ...]:
        """Return the labels in the order of their numbers; empty if none are written yet."""
        return self.labels().label_names or ()

    def write_status(self, state: str, reason: str) -> None:
        """Write one of STATES, and the reason."""
        assert state in STATES, state
        write_json(self.path / "status.json", {"state": state, "reason": reason})

    def status(self) -> dict[str, str]:
        """Return `state` and `reason`; the state is `pending` if none was written."""
        pending = {"state": "pending", "reason": ""}
        return self._read("status.json", dict[str, str], pending)

    def history(self) -> list[RoundRecord]:
        """Return the records of whole rounds, oldest first.

        Raises:
            ValueError: a line is damaged.
        """
        return [RoundRecord.read(line) for line in self.history_lines()]

    def history_lines(self) -> list[bytes]:
        """Return the lines of the history, without a last line that a kill cut short."""
        file = self.path / "history.jsonl"
        if not file.exists():
            return []
        return file.read_bytes().split(b"\n")[:-1]

    def append_history(self, record: RoundRecord) -> None:
        """Append one round, and wait until it is on the disk."""
        append_line(self.path / "history.jsonl", record.line())

    def cut_history(self, last_round: int) -> None:
        """Drop every round after `last_round`, and a line that a kill or a full disk cut short."""
        path = self.path / "history.jsonl"
        if path.exists():
            history = self.history()
            kept = [record.line() for record in history if record.round <= last_round]
            write_text(path, "".join(kept))

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Write the tensors of a whole round, after deleting all but the newest checkpoint."""
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
        """Return the newest whole checkpoint; None if there is none."""
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
        """Return the last copy of `keep_best`; None if there is none."""
        folder = self.path / "checkpoint" / "best"
        return _load(folder) if folder.exists() else None

    def _read(self, name: str, kind: type[T], otherwise: T) -> T:
        """Read a JSON file; return `otherwise` if it does not exist yet.

        Raises:
            ValueError: its content is not of this kind.
        """
        file = self.path / name
        if not file.exists():
            return otherwise
        return TypeAdapter(kind).validate_json(file.read_bytes())

    def _last_round(self) -> int:
        """Return the round of the newest checkpoint; -1 if there is none."""
        folders = self._checkpoints()
        return int(folders[-1].name.removeprefix("round-")) if folders else -1

    def _checkpoints(self) -> list[Path]:
        return sorted((self.path / "checkpoint").glob("round-*"))


def _load(folder: Path) -> Checkpoint:
    from safetensors.torch import load_file

    files = {path.stem: path for path in folder.glob("*.safetensors")}
    for path in files.values():
        require_readable(path)
    tensors = load_file(files.pop("shared"))
    state = {name: load_file(path) for name, path in files.items()}
    return Checkpoint(
        RoundRecord.read((folder / "record.json").read_text()), tensors, state
    )
