"""Wrong settings: exit code 2, key and next step in the message, and no file changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.door import changed, contents, for_sweep, tiny, wardround


@pytest.fixture(scope="module")
def finished(
    tiny_model: Path,
    tiny_texts: Path,
    tiny_test_texts: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> list[str]:
    """Return the overrides of a finished run. Its folder must stay as it is."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    overrides = tiny(tiny_model, tiny_texts, tiny_test_texts, folder)
    said = wardround("simulate", *overrides)
    assert said.code == 0, said.err
    return overrides


def run_dir(overrides: list[str]) -> Path:
    """Return the run folder in a list of overrides."""
    return next(
        Path(text.removeprefix("run_dir="))
        for text in overrides
        if text.startswith("run_dir=")
    )


def refused(command: str, overrides: list[str]) -> str:
    """Return the message of a refusal; the folder of the run stays as it was."""
    folder = run_dir(overrides)
    before = contents(folder) if folder.exists() else None
    said = wardround(command, *overrides)
    assert said.code == 2, said
    assert (contents(folder) if folder.exists() else None) == before
    assert said.out == ""
    assert "Traceback" not in said.err
    return said.err


# One row for each mistake: the override, and its key, value and next step in the message.
WRONG = {
    "key": (
        "train.learning_rte=1",
        ["unknown key 'train.learning_rte'", "Nearest: 'train.learning_rate'"],
    ),
    "bare key": (
        "num_client=3",
        ["unknown key 'num_client'", "Nearest: 'num_clients'"],
    ),
    "rate": (
        "train.lr=1",
        ["unknown key 'train.lr'", "Nearest: 'train.learning_rate'"],
    ),
    "passes": ("epochs=2", ["unknown key 'epochs'", "Nearest: 'train.local_epochs'"]),
    "batch": ("train.batch=8", ["'train.batch'", "Nearest: 'train.batch_size'"]),
    "clients": ("clients=2", ["unknown key 'clients'", "Nearest: 'num_clients'"]),
    "rounds": ("rounds=2", ["unknown key 'rounds'", "Nearest: 'num_rounds'"]),
    "like no key": ("xyz=1", ["unknown key 'xyz'", "--help", "docs/settings.md"]),
    "updates of a round": (
        "strategy.min_sites=9",
        ["strategy.min_sites is 9", "num_clients is 2", "Set strategy.min_sites=2"],
    ),
    "group": ("modle=bert", ["unknown key 'modle'", "model"]),
    "added key": ("+train.momentum=0.9", ["unknown key 'train.momentum'"]),
    "spaces": ("num_clients = 3", ["'num_clients = 3'", "num_clients=3"]),
    "no list": ("data.text_columns=text", ["data.text_columns is 'text'", "[text]"]),
    "open list": ("data.text_columns=[text", ["'data.text_columns=[text'", "[a, b]"]),
    "no value": ("num_clients", ["'num_clients'", "num_clients=8"]),
    "model": (
        "model=distillbert",
        ["unknown model 'distillbert'", "Nearest: 'distilbert'", "albert, bert"],
    ),
    "data": (
        "data=agnews",
        ["unknown data 'agnews'", "Nearest: 'ag_news'", "yelp_full"],
    ),
    "protocol": (
        "protocol=papr",
        ["unknown protocol 'papr'", "Nearest: 'paper'", "modern"],
    ),
    "partition": (
        "partition=dirichle",
        ["unknown partition 'dirichle'", "Nearest: 'dirichlet'", "by_site"],
    ),
    "engine": (
        "engine=in_process",
        ["unknown engine 'in_process'", "Nearest: 'inprocess'", "ray"],
    ),
    "experiment": (
        "experiment=dmo",
        ["unknown experiment 'dmo'", "Nearest: 'demo'", "paper"],
    ),
    "several values": (
        "num_clients=1,2",
        ["'num_clients=1,2'", "`wardround sweep`"],
    ),
    "word for a number": ("num_clients=many", ["num_clients is 'many'", "integer"]),
    "no clients": ("num_clients=0", ["num_clients is 0"]),
    "more clients than examples": (
        "num_clients=49",
        ["num_clients is 49", "48", "lower num_clients"],
    ),
    "rounds below zero": ("num_rounds=-1", ["num_rounds is -1"]),
    "no epochs": (
        "train.local_epochs=0",
        ["train.local_epochs is 0", "set num_rounds=0"],
    ),
    "learning rate below zero": (
        "train.learning_rate=-1",
        ["train.learning_rate is -1"],
    ),
    "longer than the model takes": (
        "train.max_length=33",
        ["train.max_length is 33", "32 tokens", "Set train.max_length=32"],
    ),
    "word for alpha": ("partition.alpha=x", ["partition.alpha is 'x'", "null"]),
    "precision": ("precision=fp8", ["precision is 'fp8'", "'fp32' or 'bf16'"]),
    "unknown device": ("device=gpu9", ["device is 'gpu9'", "device=cpu"]),
    "missing device": ("device=cuda:99", ["device is 'cuda:99'", "device=auto"]),
    "model without a name": (
        "model.name=???",
        ["model.name is missing", "Set model.name="],
    ),
    "missing model": (
        "model.name=/no/such/model",
        ["model.name is '/no/such/model'", "set model.name=<that folder>"],
    ),
    "a target in percent": (
        "evaluation.target_accuracy=85",
        ["evaluation.target_accuracy is 85", "1"],
    ),
    "a schedule of no rounds": (
        "train.schedule_rounds=0",
        ["train.schedule_rounds is 0 with num_rounds=1", "Set it to num_rounds"],
    ),
    "no words": ("data.max_words=0", ["data.max_words is 0", "null"]),
    "missing file": (
        "data.path=/no/such/texts.csv",
        ["/no/such/texts.csv", "Correct data.path."],
    ),
    "missing test file": (
        "data.test_path=/no/test.csv",
        ["/no/test.csv", "Correct data.test_path."],
    ),
    "file of another kind": (
        f"data.path={__file__}",
        [f"{__file__} ends in '.py'", "data.path", ".csv, .jsonl, .parquet"],
    ),
    "text column": (
        "data.text_columns=[txt]",
        ["'txt'", "Nearest: 'text'", "Set data.text_columns"],
    ),
    "label column": (
        "data.label_column=topic",
        ["'topic'", "text, label", "Set data.label_column"],
    ),
    "more examples than there are": (
        "data.train_examples=49",
        ["data.train_examples is 49", "48", "data.train_examples=null"],
    ),
    "data without sites": (
        "partition=by_site",
        ["partition is 'by_site'", "data=files", "data.path"],
    ),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_mistake_is_named_and_no_folder_is_made(
    mistake: str, finished: list[str], tmp_path: Path
) -> None:
    override, words = WRONG[mistake]
    said = refused(
        "simulate", changed(finished, f"run_dir={tmp_path / 'new'}", override)
    )
    assert said.startswith("error: ")
    assert [word for word in words if word not in said] == []
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
@pytest.mark.parametrize("mistake", WRONG)
def test_a_mistake_does_not_change_a_finished_run(
    mistake: str, finished: list[str]
) -> None:
    refused("simulate", changed(finished, WRONG[mistake][0]))


def test_drop_last_with_fewer_examples_than_a_batch_is_refused(
    finished: list[str], tmp_path: Path
) -> None:
    # 48 examples over 2 clients are 24 each.
    wrong = [
        "train.drop_last=true",
        "train.batch_size=25",
        f"run_dir={tmp_path / 'new'}",
    ]
    said = refused("simulate", changed(finished, *wrong))
    assert "train.drop_last=true with train.batch_size=25" in said
    assert "24 examples" in said
    assert "Lower num_clients or train.batch_size" in said
    assert not (tmp_path / "new").exists()
    fits = changed(finished, *wrong, "train.batch_size=24")
    assert wardround("simulate", *fits).code == 0


def test_the_folder_of_another_run_is_refused_and_the_differences_named(
    finished: list[str],
) -> None:
    said = refused(
        "simulate", changed(finished, "train.local_epochs=5", "num_clients=3")
    )
    assert f"run_dir is '{run_dir(finished)}'" in said
    assert "train.local_epochs: 1 -> 5; num_clients: 2 -> 3" in said
    assert "Choose another run_dir" in said


def test_a_run_dir_that_is_a_file_is_refused(
    finished: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    for command in ("simulate", "sweep"):
        said = wardround(command, *for_sweep(changed(finished, f"run_dir={file}")))
        assert said.code == 2
        assert f"run_dir is '{file}'" in said.err
        assert "Choose another run_dir" in said.err
        assert file.read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["simulat"], ["No such command 'simulat'", "simulate"]),
        (["simulate", "--rounds", "3"], ["No such option", "--rounds"]),
        (
            ["report", "/no/such/folder"],
            ["/no/such/folder is not a folder", "wardround report"],
        ),
        (["predict"], ["RUN_OR_MODEL_DIR"]),
        ([], ["Usage", "simulate", "sweep", "report", "predict"]),
    ],
)
def test_a_wrong_command_is_refused(arguments: list[str], words: list[str]) -> None:
    said = wardround(*arguments)
    assert said.code == 2
    assert [word for word in words if word not in said.out + said.err] == []


@pytest.mark.parametrize("command", ["simulate", "sweep", "report", "predict"])
def test_the_help_of_a_command_shows_examples(command: str) -> None:
    said = wardround(command, "--help")
    assert said.code == 0
    assert said.out.count(f"wardround {command} ") >= 2
