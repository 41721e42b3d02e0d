"""Sites that run another version than the server, over real processes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.e2e.federation import Federation, TestSite
from tests.e2e.processes import PATIENCE
from tests.e2e.runs import JOIN_SECONDS, RUN_SECONDS, add_two, took_part, words_of
from wardround.common.versions import installed

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)]


def minor_versions_ahead(number: int) -> str:
    """Return the version whose minor number is larger by this."""
    major, minor, *_ = installed().split(".")
    return f"{major}.{int(minor) + number}.0"


def installation(folder: Path, version: str) -> dict[str, str]:
    """Make an installation of this code that has another version; its environment.

    The metadata of a package is taken from the first folder of the path that has any.
    """
    metadata = folder / f"wardround-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text(f"Metadata-Version: 2.1\nName: wardround\nVersion: {version}\n")
    return {
        "PYTHONPATH": os.pathsep.join((str(folder), os.environ.get("PYTHONPATH", "")))
    }


def plans_of(
    federation: Federation, site: TestSite, environment: dict[str, str], *words: str
) -> str:
    """Run a command of the site in its installation; its output."""
    command = ("wardround-site", *words, "--site", str(site.site_file))
    process = federation.start("site", *command, environment=environment)
    process.wait(PATIENCE)
    return process.text()


def test_one_minor_version_apart_takes_part_and_two_are_refused(
    federation: Federation, overrides: list[str], tiny_model: Path, tmp_path: Path
) -> None:
    near = installation(tmp_path / "near", minor_versions_ahead(1))
    far = installation(tmp_path / "far", minor_versions_ahead(2))
    federation.up()
    add_two(federation, tmp_path, tiny_model)
    alpha, beta = federation.sites["alpha"], federation.sites["beta"]
    federation.join(alpha)
    federation.join(beta, environment=near)
    federation.wait_online("alpha", "beta", seconds=JOIN_SECONDS)
    others = [word for word in overrides if not word.startswith("num_clients")]
    words = words_of(others, "num_clients=2", "num_rounds=1")
    run_dir = tmp_path / "run"
    federation.run(*words, run_dir=run_dir, seconds=RUN_SECONDS)
    assert took_part(run_dir) == [[0, 1]]

    listed = plans_of(federation, beta, near, "plans")
    (short,) = {word for word in listed.split() if len(word) == 12 and word.isalnum()}
    shown = plans_of(federation, beta, near, "plan", short)
    assert f"wardround {installed()}" in shown
    assert minor_versions_ahead(1) in shown

    beta.program.send(signal.SIGTERM)
    assert beta.program.wait(PATIENCE) == 0
    federation.join(beta, environment=far)
    federation.wait_online("alpha", "beta", seconds=JOIN_SECONDS)
    refused = federation.submit(*words, f"run_dir={tmp_path / 'refused'}")
    assert refused.wait(RUN_SECONDS) == 1
    assert "beta" in refused.text()
    assert "its version of wardround does not work with the server's" in refused.text()
    assert f"pip install 'wardround=={installed()}'" in beta.program.text()
