"""A run folder: settings, history, checkpoints, status. Every write is whole or not there."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from common.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor

STATES = ("running", "finished", "failed", "stopped")
_KEPT_CHECKPOINTS = 2


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary neighbour of `path`, bring it to the disk, then put it in place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    if temporary.is_dir():
        shutil.rmtree(temporary)
    try:
        write(temporary)
        for item in [*temporary.rglob("*"), temporary]:
            _to_disk(item)
        if path.is_dir():
            shutil.rmtree(path)
        temporary.replace(path)
        _to_disk(path.parent)
    except OSError:
        shutil.rmtree(temporary) if temporary.is_dir() else temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, atomically."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@dataclass(frozen=True)
class Checkpoint:
    """The global model after a whole round."""

    round: int
    tensors: dict[str, Tensor]


class RunFolder:
    """The files of one run, under `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def open(self, settings: Settings) -> Iterator[None]:
        """Claim the folder for this process and write its settings.

        Raises:
            ValueError: another process holds it, or it belongs to a run with other settings.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise ValueError(
                f"run_dir is '{self.path}', in which another process is running. "
                "Wait for it, or choose another run_dir."
            ) from None
        try:
            self.check_owner(settings)
            write_json(self.path / "settings.json", settings.to_dict())
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
        return Settings.from_json(file.read_text(encoding="utf-8")) if file.exists() else None

    def write_status(self, state: str, reason: str) -> None:
        """Say where the run stands."""
        assert state in STATES, state
        write_json(self.path / "status.json", {"state": state, "reason": reason})

    def status(self) -> dict[str, str]:
        """`state` and `reason`; a folder without one has state `pending`."""
        file = self.path / "status.json"
        if not file.exists():
            return {"state": "pending", "reason": ""}
        status: dict[str, str] = json.loads(file.read_text(encoding="utf-8"))
        return status

    def history(self) -> list[dict[str, Any]]:
        """The lines of whole rounds, oldest first."""
        file = self.path / "history.jsonl"
        if not file.exists():
            return []
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def append_history(self, line: dict[str, Any]) -> None:
        """Add one round."""
        with (self.path / "history.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def cut_history(self, last_round: int) -> None:
        """Forget every round after `last_round`, and any line cut short by a kill."""
        kept = [json.dumps(line) + "\n" for line in self.history() if line["round"] <= last_round]
        write_atomically(self.path / "history.jsonl", lambda part: part.write_text("".join(kept)))

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Write the tensors of a whole round, then drop all but the newest two."""
        from safetensors.torch import save_file

        def write(part: Path) -> None:
            part.mkdir()
            save_file(checkpoint.tensors, part / "shared.safetensors")
            (part / "state.json").write_text(json.dumps({"round": checkpoint.round}))

        write_atomically(self.path / "checkpoint" / f"round-{checkpoint.round:06d}", write)
        for old in self._checkpoints()[:-_KEPT_CHECKPOINTS]:
            shutil.rmtree(old)

    def load_checkpoint(self) -> Checkpoint | None:
        """The newest whole checkpoint, or None where there is none."""
        from safetensors.torch import load_file

        folders = self._checkpoints()
        if not folders:
            return None
        state = json.loads((folders[-1] / "state.json").read_text())
        return Checkpoint(round=state["round"], tensors=load_file(folders[-1] / "shared.safetensors"))

    def _checkpoints(self) -> list[Path]:
        return sorted((self.path / "checkpoint").glob("round-*"))
