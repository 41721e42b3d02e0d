"""Rounds over real processes, TLS and gRPC: the numbers of a simulation, and no lost rounds."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.e2e.federation import END_SECONDS, Federation
from tests.e2e.processes import wait_for
from tests.e2e.runs import (
    JOIN_SECONDS,
    RUN_SECONDS,
    SIZES,
    lines,
    simulated,
    start_sites,
    stop,
    wait_for_round,
    words_of,
    write_sites,
)
from tests.support.door import wardround
from tests.support.tiny import Make, write_model
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


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """One file a site."""
    return write_sites(tmp_path / "texts")


def assert_same_rounds(ours: Path, theirs: Path) -> None:
    """Every round has the same model and the same counts."""
    for key in ("round", "model_sha256", "test", "validation"):
        assert [line.get(key) for line in lines(theirs)] == [
            line.get(key) for line in lines(ours)
        ]


@pytest.mark.slow
def test_three_sites_equal_the_simulation(
    federation: Federation,
    overrides: list[str],
    make_settings: Make,
    tiny_model: Path,
    texts: Path,
) -> None:
    federation.up()
    start_sites(federation, texts, tiny_model)
    run_dir = texts.parent / "deployed"
    strict = ("train.frozen=embeddings", "strategy.server_momentum=0.5")
    run = federation.run(
        *words_of(overrides, "num_rounds=2", *strict),
        run_dir=run_dir,
        seconds=RUN_SECONDS,
    )
    assert_same_rounds(
        simulated(make_settings, texts, texts.parent / "simulated", 2, *strict), run_dir
    )
    # The signed plan alone says enough: what sites decide for themselves is where their texts are.
    replayed = texts.parent / "replayed"
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
            texts.parent / f"{name}-{kind}" for kind in ("deployed", "simulated")
        )
        federation.run(
            *words_of(overrides, "num_rounds=2", *words),
            run_dir=beyond,
            seconds=RUN_SECONDS,
        )
        assert_same_rounds(simulated(make_settings, texts, twin, 2, *words), beyond)
    assert RunFolder(texts.parent / "adapters-deployed").load_best() is not None
    assert [site["site"] for site in lines(run_dir)[-1]["sites"]] == sorted(SIZES)
    assert run.status()["state"] == "finished"
    assert (run_dir / "model" / "model.safetensors").exists()
    assert federation.end() == []


@pytest.mark.slow
def test_decoders_equal_the_simulation(
    federation: Federation, overrides: list[str], make_settings: Make, texts: Path
) -> None:
    """A model in half the memory, without a padding token; only FFA-LoRA's halves travel."""
    decoder = write_model(texts.parent / "llama", "llama")
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
    federation.up()
    start_sites(federation, texts, decoder)
    run_dir = texts.parent / "deployed"
    federation.run(*words_of(overrides, *words), run_dir=run_dir, seconds=RUN_SECONDS)
    assert_same_rounds(
        simulated(make_settings, texts, texts.parent / "twin", 1, *words), run_dir
    )
    assert federation.end() == []


@pytest.mark.slow
def test_dead_servers_lose_no_whole_round(
    federation: Federation,
    overrides: list[str],
    make_settings: Make,
    tiny_model: Path,
    texts: Path,
) -> None:
    ours = simulated(make_settings, texts, texts.parent / "simulated", NUM_ROUNDS)
    run_dir = texts.parent / "deployed"
    server = federation.up()
    start_sites(federation, texts, tiny_model)

    first = federation.submit(
        *words_of(overrides, f"num_rounds={NUM_ROUNDS}", f"run_dir={run_dir}")
    )
    wait_for_round(first, run_dir, 2)
    server.send(signal.SIGKILL)
    server.wait(END_SECONDS)
    assert first.wait(180) == 1, first.text()
    assert f"submit --resume {run_dir}" in first.text()

    federation.up()
    federation.wait_online(
        *SIZES, seconds=JOIN_SECONDS
    )  # nobody starts the sites again
    # On a busy machine the server app takes a while to find out that its SuperLink is gone.
    wait_for(
        lambda: not federation.processes(program="flwr-serverapp"),
        120,
        "the first server app to end",
    )
    second = federation.submit("--resume", str(run_dir))
    wait_for_round(second, run_dir, len(lines(run_dir)) + 2)
    assert federation.signal(signal.SIGKILL, program="flwr-serverapp") > 0
    assert second.wait(180) == 1, second.text()
    assert RunFolder(run_dir).status()["state"] == "failed"

    third = federation.submit("--resume", str(run_dir))
    wait_for_round(third, run_dir, len(lines(run_dir)) + 2)
    stop(federation, third)
    assert federation.end() == []
    assert [
        path
        for path in run_dir.rglob("*")
        if ".part" in path.name or path.suffix == ".tmp"
    ] == []
    assert RunFolder(run_dir).status()["state"] == "stopped"

    federation.up()
    for site in federation.sites.values():
        federation.join(site)
    federation.wait_online(*SIZES, seconds=JOIN_SECONDS)
    fourth = federation.submit("--resume", str(run_dir))
    assert fourth.wait(RUN_SECONDS) == 0, fourth.text()
    assert_same_rounds(ours, run_dir)
