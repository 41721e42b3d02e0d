"""Rounds over real processes, TLS and gRPC: the numbers of a simulation, and no lost rounds."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.e2e.federation import Federation
from tests.e2e.processes import PATIENCE, wait_for
from tests.e2e.runs import (
    JOIN_SECONDS,
    RUN_SECONDS,
    SIZES,
    lines,
    restore,
    simulated,
    stop,
    texts_of,
    wait_for_round,
    words_of,
)
from tests.support.door import wardround
from tests.support.site_lab import pinned
from tests.support.tiny import Make, write_model
from wardround.client.site_file import load_site_file, write_site_file
from wardround.server.run_folder import RunFolder

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]


NUM_ROUNDS = 40
BEYOND = {
    "adapters": (
        *(
            "train.proximal_mu=0.02",
            "strategy.optimizer=yogi",
            "strategy.server_learning_rate=0.01",
        ),
        *("adapters=lora", "adapters.rank=2", "evaluation.validation_fraction=0.3"),
    ),
    "blends": (
        "train.control_variates=true",
        "model.head=distilbert",
        "model.activation=abu",
    ),
}
"""More than FedAvg: adapters with the best model kept; SCAFFOLD with learned activations."""


def assert_same_rounds(ours: Path, theirs: Path) -> None:
    """Every round has the same model and the same counts."""
    for key in ("round", "model_sha256", "test", "validation"):
        assert [line.get(key) for line in lines(theirs)] == [
            line.get(key) for line in lines(ours)
        ]


@pytest.mark.slow
def test_three_sites_equal_the_simulation(
    three: Federation,
    overrides: list[str],
    make_settings: Make,
    tiny_model: Path,
    tmp_path: Path,
) -> None:
    restore(three)
    texts = texts_of(three)
    run_dir = tmp_path / "deployed"
    strict = ("train.frozen=embeddings", "strategy.server_momentum=0.5")
    run = three.run(
        *words_of(overrides, "num_rounds=2", *strict),
        run_dir=run_dir,
        seconds=RUN_SECONDS,
    )
    assert_same_rounds(
        simulated(make_settings, texts, tmp_path / "simulated", 2, *strict), run_dir
    )
    # The signed plan alone says enough: what sites decide for themselves is where their texts are.
    replayed = tmp_path / "replayed"
    own = (
        "data=files",
        f"data.path={texts}",
        "partition=by_site",
        "device=cpu",
        f"run_dir={replayed}",
    )
    model = ("model=hf", f"model.name={tiny_model}")
    said = wardround("simulate", "--plan", str(run_dir / "plan.json"), *own, *model)
    assert said.code == 0, said.err
    assert_same_rounds(replayed, run_dir)
    for name, words in BEYOND.items():
        beyond, twin = (
            tmp_path / f"{name}-{kind}" for kind in ("deployed", "simulated")
        )
        three.run(
            *words_of(overrides, "num_rounds=2", *words),
            run_dir=beyond,
            seconds=RUN_SECONDS,
        )
        assert_same_rounds(simulated(make_settings, texts, twin, 2, *words), beyond)
    assert RunFolder(tmp_path / "adapters-deployed").load_best() is not None
    assert [site["site"] for site in lines(run_dir)[-1]["sites"]] == sorted(SIZES)
    assert run.status()["state"] == "finished"
    assert (run_dir / "model" / "model.safetensors").exists()


@pytest.mark.slow
def test_decoders_equal_the_simulation(
    three: Federation, overrides: list[str], make_settings: Make, tmp_path: Path
) -> None:
    """A model in half the memory, without a padding token; only FFA-LoRA's halves travel.

    The sites change to it while they are at work.
    """
    decoder = write_model(tmp_path / "llama", "llama")
    words = (
        *(
            f"model.name={decoder}",
            "adapters=lora_ffa",
            "adapters.rank=2",
            "adapters.base_precision=bf16",
        ),
        *("precision=bf16", "train.gradient_checkpointing=true"),
        *("num_rounds=1", "train.optimizer=adamw", "train.learning_rate=0.002"),
    )
    restore(three)
    run_dir = tmp_path / "deployed"
    with other_model(three, decoder):
        three.run(*words_of(overrides, *words), run_dir=run_dir, seconds=RUN_SECONDS)
    assert_same_rounds(
        simulated(make_settings, texts_of(three), tmp_path / "twin", 1, *words), run_dir
    )


@contextmanager
def other_model(federation: Federation, model: Path) -> Iterator[None]:
    """Have all sites use and allow this model; as before afterwards."""
    files = [site.site_file for site in federation.sites.values()]
    before = [load_site_file(file) for file in files]
    try:
        for file, site in zip(files, before, strict=True):
            policy = pinned(replace(site.policy, models="any"), model)
            write_site_file(replace(site, model=model, policy=policy), file)
        yield
    finally:
        for file, site in zip(files, before, strict=True):
            write_site_file(site, file)


@pytest.mark.slow
def test_dead_servers_lose_no_whole_round(
    three: Federation, overrides: list[str], make_settings: Make, tmp_path: Path
) -> None:
    ours = simulated(make_settings, texts_of(three), tmp_path / "simulated", NUM_ROUNDS)
    run_dir = tmp_path / "deployed"
    restore(three)
    server = three.server
    assert server is not None

    first = three.submit(
        *words_of(overrides, f"num_rounds={NUM_ROUNDS}", f"run_dir={run_dir}")
    )
    wait_for_round(first, run_dir, 2)
    server.send(signal.SIGKILL)
    server.wait(PATIENCE)
    assert first.wait(180) == 1, first.text()
    assert f"submit --resume {run_dir}" in first.text()

    three.up()
    three.wait_online(*SIZES, seconds=JOIN_SECONDS)  # nobody starts the sites again
    # On a busy machine the server app takes a while to find out that its SuperLink is gone.
    wait_for(
        lambda: not three.processes(program="flwr-serverapp"),
        120,
        "the first server app to end",
    )
    second = three.submit("--resume", str(run_dir))
    wait_for_round(second, run_dir, len(lines(run_dir)) + 2)
    assert three.signal(signal.SIGKILL, program="flwr-serverapp") > 0
    assert second.wait(180) == 1, second.text()
    assert RunFolder(run_dir).status()["state"] == "failed"

    third = three.submit("--resume", str(run_dir))
    wait_for_round(third, run_dir, len(lines(run_dir)) + 2)
    stop(three, third)
    assert three.end() == []
    assert [
        path
        for path in run_dir.rglob("*")
        if ".part" in path.name or path.suffix == ".tmp"
    ] == []
    assert RunFolder(run_dir).status()["state"] == "stopped"

    restore(three)
    fourth = three.submit("--resume", str(run_dir))
    assert fourth.wait(RUN_SECONDS) == 0, fourth.text()
    assert_same_rounds(ours, run_dir)
