"""Rounds over real processes, TLS and gRPC: the same numbers as in simulation, and no lost rounds."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from common.runs import RunFolder
from server.simulate import simulate
from tests.conftest import Make, write_texts
from tests.e2e.federation import Federation
from tests.e2e.processes import wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)]

SIZES = {"beta": 30, "alpha": 12, "gamma": 21}
RUN_SECONDS = 420.0


def write_sites(folder: Path) -> Path:
    """A folder with one file a site, of unequal sizes."""
    folder.mkdir()
    for number, (name, size) in enumerate(SIZES.items()):
        write_texts(folder / f"{name}.csv", size, seed=number)
    return folder


def common_words(overrides: list[str], *more: str) -> list[str]:
    """Overrides of the tiny run without the data, which real sites bring themselves."""
    dropped = ("data", "data.path", "data.test_path", "run_dir", "num_rounds")
    kept = [text for text in overrides if text.split("=")[0] not in dropped]
    return [*kept, "evaluation.where=sites", "data.label_names=[health,money,sport]", *more]


def lines(run_dir: Path) -> list[dict[str, Any]]:
    """The history of a run."""
    return RunFolder(run_dir).history()


def start_sites(federation: Federation, texts: Path, model: Path) -> None:
    """Register and join all sites."""
    for name in SIZES:
        federation.add_site(name, texts / f"{name}.csv", model=model)
    for name, site in federation.sites.items():
        # The site kit itself: it has to outlive the server, and does without anyone's help.
        site.node = federation.start(
            f"join-{name}", "python3", "-m", "client.cli", "join", "--site", str(site.site_file)
        )
    federation.wait_online(*SIZES, seconds=180)


def test_three_sites_equal_the_simulation_and_survive_a_dead_server(
    federation: Federation, overrides: list[str], make_settings: Make, tiny_model: Path, tmp_path: Path
) -> None:
    texts = write_sites(tmp_path / "texts")
    simulated = make_settings(
        "evaluation.where=sites",
        "data.label_names=[health,money,sport]",
        f"data.path={texts}",
        "data.test_path=null",
        "partition=by_site",
        "num_rounds=3",
        f"run_dir={tmp_path / 'simulated'}",
    )
    simulate(simulated)
    server = federation.up()
    start_sites(federation, texts, tiny_model)
    run_dir = tmp_path / "deployed"
    words = common_words(
        overrides, "num_rounds=3", f"run_dir={run_dir}", "data=files", "data.path=unused.csv"
    )
    process = federation.submit(*words)
    wait_for(lambda: len(lines(run_dir)) >= 1, RUN_SECONDS, "the first round's line")
    server.send(signal.SIGKILL)  # in the middle of a round
    assert process.wait(180) == 1, process.text()
    federation.up()
    federation.wait_online(*SIZES, seconds=180)  # nobody starts the sites again
    resumed = federation.submit("--resume", str(run_dir))
    assert resumed.wait(RUN_SECONDS) == 0, resumed.text()
    ours, theirs = lines(tmp_path / "simulated"), lines(run_dir)
    assert [line["model_sha256"] for line in theirs] == [line["model_sha256"] for line in ours]
    assert [line["test"] for line in theirs] == [line["test"] for line in ours]
    assert [site["site"] for site in theirs[-1]["sites"]] == ["alpha", "beta", "gamma"]
    assert RunFolder(run_dir).status()["state"] == "finished"
    assert (run_dir / "model" / "model.safetensors").exists()


def test_a_killed_site_is_left_out_or_ends_the_run(
    federation: Federation, overrides: list[str], tiny_model: Path, tmp_path: Path
) -> None:
    texts = write_sites(tmp_path / "texts")
    federation.up()
    start_sites(federation, texts, tiny_model)
    words = common_words(
        overrides, "num_rounds=2", "data=files", "data.path=unused.csv", "strategy.min_sites=2"
    )
    run_dir = tmp_path / "goes-on"
    process = federation.submit(*words, "strategy.on_missing=continue", f"run_dir={run_dir}")
    wait_for(lambda: (run_dir / "live.json").exists(), RUN_SECONDS, "the first round to begin")
    node = federation.sites["beta"].node
    assert node is not None
    node.send(signal.SIGKILL)
    assert process.wait(RUN_SECONDS) == 0, process.text()
    last = lines(run_dir)[-1]
    assert last["round"] == 2
    assert [client["client"] for client in last["clients"]] == [0, 2]
    failing = federation.submit(
        *words, "strategy.wait_seconds=5", "strategy.on_missing=fail", f"run_dir={tmp_path / 'fails'}"
    )
    assert failing.wait(RUN_SECONDS) == 1, failing.text()
    assert "beta" in failing.text()
