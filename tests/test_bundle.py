"""The Flower bundle that sites receive: the code and its settings, nothing else, and it runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# What must never reach a site, planted beside the code before the bundle is built.
DECOYS = (
    "secret.py",
    "server.pem",
    "server/texts.csv",
    "server/notes.txt",
    "client/keys/site.key",
    "common/model.safetensors",
    "conf/site.json",
    "outputs/run/model/config.json",
    "data/letters.py",
)
FLOWERS_OWN = {".info/CONTENT"}


def copy_of_the_repository(target: Path) -> Path:
    """What a clone holds, with decoys."""
    ignored = [line.strip().rstrip("/") for line in (ROOT / ".gitignore").read_text().splitlines()]
    shutil.copytree(ROOT, target, ignore=shutil.ignore_patterns(".git", *filter(None, ignored)))
    for decoy in DECOYS:
        path = target / decoy
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("secret = 1\n")
    return target


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that `flwr build` writes."""
    repository = copy_of_the_repository(tmp_path_factory.mktemp("bundle") / "repository")
    environment = os.environ | {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    build = [str(Path(sys.executable).with_name("flwr")), "build", "--app", str(repository)]
    done = subprocess.run(
        build, cwd=repository, env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = repository.glob("*.fab")
    return built


@pytest.mark.slow
def test_bundle_holds_the_code_and_nothing_else(bundle: Path) -> None:
    with zipfile.ZipFile(bundle) as opened:
        held = {name for name in opened.namelist() if not name.endswith("/")}
    ours = {
        path.relative_to(ROOT).as_posix()
        for folder, pattern in (
            ("server", "*.py"),
            ("client", "*.py"),
            ("common", "*.py"),
            ("conf", "*.yaml"),
        )
        for path in (ROOT / folder).rglob(pattern)
    }
    assert held - FLOWERS_OWN == ours | {"pyproject.toml", "LICENSE"}
    assert {"server/app.py", "client/app.py", "common/settings.py", "conf/protocol/paper.yaml"} < held
    # Flower's limit is 10 MB; code alone stays far below it.
    assert bundle.stat().st_size < 2_000_000


@pytest.mark.slow
def test_bundle_runs_where_it_is_unpacked(bundle: Path, tmp_path: Path) -> None:
    unpacked, elsewhere = tmp_path / "unpacked", tmp_path / "elsewhere"
    elsewhere.mkdir()
    with zipfile.ZipFile(bundle) as opened:
        opened.extractall(unpacked)
    code = (
        f"import sys; sys.path.insert(0, {str(unpacked)!r})\n"
        "from client.app import app as client; from server.app import app as server\n"
        "from server.compose import compose\n"
        "print(type(client).__name__, type(server).__name__)\n"
        "print(compose(['experiment=demo']).settings.cell)\n"
        "print(*sorted({sys.modules[n].__file__ for n in ('client.app', 'server.app', 'common.settings')}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=elsewhere, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    kinds, cell, files = done.stdout.splitlines()
    assert kinds == "ClientApp ServerApp"
    assert cell == "minilm-bbc_news-k4-s0"
    assert files.split() == [
        str(unpacked / name) for name in ("client/app.py", "common/settings.py", "server/app.py")
    ]
