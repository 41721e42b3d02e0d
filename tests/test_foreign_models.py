"""Foreign model folders: their code does not run, and only the model is loaded."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.door import CommandResult, run_dir_of, wardround
from tests.support.hostile_models import (
    bring_adapter,
    bring_code,
    bring_code_in_blends,
    change_json,
    copy_of,
    name_other_weights,
)
from tests.support.runs import COMMAND
from tests.support.site_door import QUICK, command_line, environment
from tests.support.site_lab import WIDE, look, make_site
from tests.support.tiny import Make, model_at
from wardround.client.round import answer
from wardround.client.site import Kept, Order, RealSite
from wardround.client.site_file import write_site_file
from wardround.common.data.corpus import forget_corpora
from wardround.common.files import file_sha256
from wardround.common.model.build import build_model
from wardround.common.model.mixture import GATE
from wardround.common.model.state import open_model
from wardround.common.settings.tree import Settings
from wardround.common.tasks.label import LABEL
from wardround.common.wire.arrays import Payload
from wardround.common.wire.codec import pack_requests
from wardround.common.wire.forms import whole
from wardround.common.wire.messages import TRAIN, TrainRequest

LABELS = ("health", "money", "sport")
CODE = "(auto_map in config.json, and 'evil.py')"
"""Part of the error about a folder with Python files. No other error holds it."""
YES = "y\n" * 20
"""The answer of a person who says yes to every question."""


@pytest.fixture
def run(learned_run: tuple[list[str], CommandResult]) -> Path:
    """Return the folder of a finished run."""
    return run_dir_of(learned_run[0])


def output_of(
    words: list[str], folder: Path, home: Path
) -> subprocess.CompletedProcess[str]:
    """Run a program, and answer each of its questions with yes."""
    return subprocess.run(
        words,
        cwd=folder,
        env=environment() | {"HF_MODULES_CACHE": str(home)},
        input=YES,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def as_mixture(model: Path, folder: Path) -> Path:
    """Write a site's mixture of a model with itself. Return its folder."""
    for expert in ("local", "global"):
        copy_of(model, folder / expert)
    width = json.loads((model / "config.json").read_text())["hidden_size"]
    gate = {
        "0.weight": torch.ones(2, width),
        "0.bias": torch.ones(2),
        "2.weight": torch.ones(1, 2),
        "2.bias": torch.ones(1),
    }
    save_file(gate, folder / GATE)
    return folder


def plain(folder: Path, marker: Path) -> Path:
    """Make a plain model hostile."""
    return bring_code(folder, marker)


def mixed(folder: Path, marker: Path) -> Path:
    """Make a mixture with one hostile part."""
    made = as_mixture(folder, folder.with_name("mixture"))
    bring_code(made / "global", marker)
    return made


@pytest.mark.parametrize("make", [plain, mixed, bring_code_in_blends])
def test_predict_runs_no_code_of_a_folder(
    make: Callable[[Path, Path], Path], run: Path, tmp_path: Path
) -> None:
    marker = tmp_path / "marker"
    folder = make(copy_of(run / "model", tmp_path / "model"), marker)
    words = [*COMMAND, "predict", str(folder), "--text", "goal"]
    done = output_of(words, tmp_path, tmp_path / "modules")
    assert not marker.exists()
    assert done.returncode == 2
    assert done.stdout == ""
    assert "[y/N]" not in done.stderr
    if make is not bring_code_in_blends:
        assert CODE in done.stderr
        assert "part of transformers" in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["check", *QUICK],
        ["join", *QUICK],
        ["personalise", "--model", "model", "--out", "own", "--unverified"],
    ],
    ids=lambda words: words[0],
)
def test_a_site_runs_no_code_of_a_folder(
    words: list[str], run: Path, tiny_texts: Path, tmp_path: Path
) -> None:
    marker = tmp_path / "marker"
    folder = bring_code(copy_of(run / "model", tmp_path / "model"), marker)
    write_site_file(
        make_site(tmp_path, 9, tiny_texts, model=folder), tmp_path / "site.yaml"
    )
    done = output_of(command_line(*words), tmp_path, tmp_path / "modules")
    assert not marker.exists()
    assert done.returncode == (2 if words[0] == "personalise" else 1), done.stderr
    output = done.stdout + done.stderr
    assert CODE in output
    assert "[y/N]" not in output
    if words[0] == "join":
        assert "not ready: tls, model." in output


def test_a_simulation_runs_no_code_of_a_folder(
    overrides: list[str], tmp_path: Path, tiny_model: Path
) -> None:
    marker = tmp_path / "marker"
    folder = bring_code(copy_of(tiny_model, tmp_path / "model"), marker)
    said = wardround("simulate", *overrides, f"model.name={folder}")
    assert said.code == 2
    assert not marker.exists()
    assert CODE in said.err


def test_auto_map_of_a_known_architecture_is_ignored(run: Path, tmp_path: Path) -> None:
    """Without Python files there is no code to run; transformers has its own."""
    named = copy_of(run / "model", tmp_path / "named")
    auto_map = {"AutoModelForSequenceClassification": "somebody/else--evil.EvilModel"}
    change_json(named / "config.json", auto_map=auto_map)
    plain = wardround("predict", str(run / "model"), "--text", "goal match")
    said = wardround("predict", str(named), "--text", "goal match")
    assert said.code == 0, said.err
    assert said.out == plain.out
    change_json(named / "config.json", model_type="\x1b[2Jevil")
    said = wardround("predict", str(named), "--text", "goal match")
    assert said.code == 2
    assert "(auto_map in config.json)" in said.err
    assert "evil" in said.err
    assert "\x1b" not in said.err


REFUSED = {
    "adapter": (bring_adapter, "merge_and_unload"),
    "other weights": (name_other_weights, "the key transformers_weights"),
    "other config": (
        lambda folder: change_json(
            folder / "config.json", configuration_files=["config.4.0.0.json"]
        ),
        "the key configuration_files",
    ),
    "other tokenizer": (
        lambda folder: change_json(
            folder / "tokenizer_config.json",
            fast_tokenizer_files=["tokenizer.4.0.json"],
        ),
        "the key fast_tokenizer_files",
    ),
    "quantised": (
        lambda folder: change_json(
            folder / "config.json", quantization_config={"quant_method": "fp8"}
        ),
        "the key quantization_config",
    ),
    "deep inside": (
        lambda folder: change_json(
            folder / "config.json",
            text_config=[{"transformers_weights": "other.safetensors"}],
        ),
        "the key transformers_weights",
    ),
    "code of a hub": (
        lambda folder: change_json(
            folder / "config.json", _attn_implementation="somebody/kernel"
        ),
        "the key _attn_implementation",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_folder_that_could_bring_other_weights_is_refused(
    kind: str, tiny_model: Path, tmp_path: Path
) -> None:
    spoil: Any
    spoil, words = REFUSED[kind]
    folder = copy_of(tiny_model, tmp_path / "model")
    spoil(folder)
    with pytest.raises(ValueError, match=words) as refused:
        build_model(LABEL, model_at(folder), LABELS, seed=0)
    assert str(refused.value).startswith(f"model.name is '{folder}': ")


@pytest.mark.parametrize("spoil", [bring_adapter, name_other_weights])
def test_a_model_with_a_listed_hash_cannot_bring_other_weights(
    spoil: Callable[[Path], Path],
    tiny_model: Path,
    tiny_texts: Path,
    make_settings: Make,
    tmp_path: Path,
) -> None:
    """The hash of `model.safetensors` is on the site's list, and other weights are beside it."""
    folder = spoil(copy_of(tiny_model, tmp_path / "model"))
    listed = f"sha256:{file_sha256(folder / 'model.safetensors')}"
    words = (
        "engine=deployment",
        f"data.label_names=[{','.join(LABELS)}]",
        "num_clients=1",
        "evaluation.where=server",
    )
    settings = make_settings(*words).for_sites()
    policy = replace(WIDE, models=(listed,), same_start=False)
    file = make_site(tmp_path / "site", 9092, tiny_texts, model=folder, policy=policy)
    order = Order("the plan", settings, 0, 1, 0, file_sha256(file.data_path))
    site = RealSite(file, Kept(), order)
    start, layout = start_of(site.localise(settings), tiny_model)
    task = pack_requests(TrainRequest(1, layout, start, None, "v1"), [0])[0]
    forget_corpora()
    sent = answer(TRAIN, task, lambda: site).content
    assert "update" not in sent
    assert sent.config_records["refusal"]["code"] == "bad_input"


def start_of(settings: Settings, honest: Path) -> tuple[Payload, str]:
    """Return the first tensors and the layout that a coordinator sends.

    If this code refuses the folder, they are those of the honest model.
    """
    try:
        state = open_model(settings, LABELS, fresh=True)
    except ValueError:
        plain = replace(settings, model=model_at(honest))
        state = open_model(plain, LABELS, fresh=True)
    return whole(state.flat.detach().cpu().clone().numpy()), state.layout.digest


def test_an_adapter_beside_a_model_is_a_problem_for_a_site(
    tiny_model: Path, tiny_texts: Path, tmp_path: Path
) -> None:
    folder = bring_adapter(copy_of(tiny_model, tmp_path / "model"))
    site = make_site(tmp_path, 9092, tiny_texts, model=folder)
    found = look(site, "model", "lengths")
    assert found["model"].state == "problem"
    assert "adapter_config.json" in found["model"].message
    assert "merge_and_unload" in found["model"].next_step
    # Its tokenizer is not opened either.
    assert "no tokenizer" in found["lengths"].message


def test_predict_refuses_an_adapter_beside_a_model(run: Path, tmp_path: Path) -> None:
    folder = bring_adapter(copy_of(run / "model", tmp_path / "model"))
    said = wardround("predict", str(folder), "--text", "goal")
    assert said.code == 2
    assert said.out == ""
    assert "adapter_config.json" in said.err
    assert "merge_and_unload" in said.err


def test_the_attack_with_other_weights_names_other_weights(
    tiny_model: Path, tmp_path: Path
) -> None:
    """The key in config.json names another file than the one that is hashed."""
    folder = name_other_weights(copy_of(tiny_model, tmp_path / "model"))
    ours = load_file(folder / "model.safetensors")
    theirs = load_file(folder / "other.safetensors")
    assert not any(torch.equal(ours[name], theirs[name]) for name in ours)
