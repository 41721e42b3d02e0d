"""The bundle that `wardround submit` gives to Flower names the server app and holds no code."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from wardround.server.deployment.submit import stage_app


@pytest.mark.slow
def test_the_bundle_holds_no_code(tmp_path: Path) -> None:
    app = stage_app(tmp_path / "app")
    # Other files in the folder are left out.
    (app / "secret.py").write_text("secret = 1\n")
    environment = os.environ | {
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }
    build = [str(Path(sys.executable).with_name("flwr")), "build", "--app", str(app)]
    done = subprocess.run(
        build,
        cwd=app,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = app.glob("*.fab")
    with zipfile.ZipFile(built) as opened:
        assert set(opened.namelist()) == {"pyproject.toml", "LICENSE", ".info/CONTENT"}
