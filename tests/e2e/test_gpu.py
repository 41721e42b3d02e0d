"""Sites that train on a CUDA device (`make test-gpu`), over real processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.federation import Federation
from tests.e2e.runs import (
    JOIN_SECONDS,
    RUN_SECONDS,
    SIZES,
    lines,
    words_of,
    write_sites,
)
from wardround.server.run_folder import RunFolder

pytestmark = [pytest.mark.gpu, pytest.mark.e2e, pytest.mark.timeout(600)]


def test_sites_train_on_the_gpu(
    federation: Federation, overrides: list[str], tiny_model: Path, tmp_path: Path
) -> None:
    texts = write_sites(tmp_path / "texts")
    federation.up()
    for name in SIZES:
        site = federation.add_site(
            name, texts / f"{name}.csv", model=tiny_model, device="cuda"
        )
        federation.join(site)
    federation.wait_online(*SIZES, seconds=JOIN_SECONDS)
    run = federation.run(
        *words_of(overrides, "num_rounds=2", "device=cuda"),
        run_dir=tmp_path / "run",
        seconds=RUN_SECONDS,
    )
    assert run.status()["state"] == "finished"
    assert RunFolder(tmp_path / "run").load_checkpoint() is not None
    assert [len(line["clients"]) for line in lines(tmp_path / "run")] == [0, 3, 3]
    assert federation.end() == []
