"""The same run under every engine gives the same model, every round."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.engines.simulate import simulate
from tests.support.runs import history
from tests.support.tiny import Make


def hashes(run_dir: Path) -> list[str]:
    """`model_sha256` of each round."""
    return [line["model_sha256"] for line in history(run_dir)]


@pytest.mark.slow
@pytest.mark.parametrize("num_clients", [1, 3, 8])
def test_ray_equals_inprocess(make_settings: Make, tmp_path: Path, num_clients: int) -> None:
    common = [f"num_clients={num_clients}", "num_rounds=2"]
    for engine in ("inprocess", "ray"):
        simulate(make_settings(*common, f"engine={engine}", f"run_dir={tmp_path / engine}"))
    ours, rays = hashes(tmp_path / "inprocess"), hashes(tmp_path / "ray")
    assert len(set(ours)) == 3
    assert ours == rays
