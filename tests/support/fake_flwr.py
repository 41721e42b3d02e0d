"""A stand-in for Flower's command line, and run folders as a server app writes them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from wardround.common.files import write_json
from wardround.common.settings.tree import Settings
from wardround.server.record import RoundRecord
from wardround.server.run_folder import RunFolder

# Stands in for `flwr`: notes its arguments, and answers as `answers.json` says for the command.
FAKE_FLWR = f"""#!{sys.executable}
import json, pathlib, sys
here = pathlib.Path(__file__).parent
words = sys.argv[1:]
with (here / "asked.jsonl").open("a") as file:
    file.write(json.dumps(words) + "\\n")
if words[0] == "run":
    config = pathlib.Path(words[words.index("--run-config") + 1])
    (here / "run.toml").write_bytes(config.read_bytes())
    app = pathlib.Path(words[1])
    (here / "app.json").write_text(json.dumps(sorted(p.name for p in app.iterdir())))
answers = json.loads((here / "answers.json").read_text())
print("a banner")
print(json.dumps(answers[words[0]], indent=2))
"""


class Flwr:
    """The folder of the fake program."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        program = folder / "flwr"
        program.write_text(FAKE_FLWR)
        program.chmod(0o755)
        self.answers: dict[str, object] = {
            "list": {"success": True},
            "run": {"success": True, "run-id": "77"},
            "stop": {"success": True, "run-id": "77"},
        }
        self.write()

    def write(self) -> None:
        (self.folder / "answers.json").write_text(json.dumps(self.answers))

    def ends(self, status: str, details: str = "N/A") -> None:
        """Set the status of the run in all later answers to `flwr list --run-id`."""
        self.answers["list"] = {
            "success": True,
            "runs": [{"status": status, "status-details": details}],
        }
        self.write()

    def asked(self) -> list[list[str]]:
        return [
            json.loads(line)
            for line in (self.folder / "asked.jsonl").read_text().splitlines()
        ]


def words_for(tmp_path: Path, *more: str) -> list[str]:
    # JSON, TOML and shells would each cut this name at another place.
    name = 'model.name="it\'s/odd = {x}"'
    labels = "data.label_names=[a,b]"
    return [
        "model=hf",
        name,
        labels,
        "num_clients=2",
        f"run_dir={tmp_path / 'run'}",
        *more,
    ]


def record(number: int, accuracy: float) -> RoundRecord:
    line = {
        "round": number,
        "test": {"accuracy": accuracy},
        "train": {"loss": 0.5},
        "seconds": {"train": 1.0, "aggregate": 0.0, "evaluate": 0.0, "total": 1.0},
    }
    return RoundRecord.read(json.dumps(line))


def write_run(
    settings: Settings, state: str, reason: str, *accuracies: float
) -> RunFolder:
    """Write a run folder as a server app does."""
    run = RunFolder(Path(settings.run_dir))
    run.path.mkdir(parents=True, exist_ok=True)
    write_json(run.path / "settings.json", settings.to_dict())
    for number, accuracy in enumerate(accuracies):
        run.append_history(record(number, accuracy))
    run.write_status(state, reason)
    return run
