"""A wheel that is built from the sdist, and installed in a folder without a checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from tests.support.door import tiny
from wardround.common.versions import installed

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 240
STAGE = "from wardround.server.deployment.submit import stage_app; stage_app"
pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def run(*words: str | Path, folder: Path) -> str:
    """Run a command to its end, and return its output. Fails if the command fails."""
    environment = os.environ.copy()
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        list(map(str, words)),
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


def build(kind: str, source: Path, target: Path) -> Path:
    """Build an `sdist` or a `wheel`."""
    words = ("-m", "hatchling", "build", "-t", kind, "-d", target)
    run(sys.executable, *words, folder=source)
    (built,) = target.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel from the sdist, whose wardround/ has no links."""
    folder = tmp_path_factory.mktemp("build")
    sdist = build("sdist", ROOT, folder / "sdist")
    with tarfile.open(sdist) as opened:
        opened.extractall(folder / "source", filter="data")
    (source,) = (folder / "source").iterdir()
    folders = [path for path in (source / "wardround").iterdir() if path.is_dir()]
    assert folders == []
    return build("wheel", source, folder / "wheel")


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a new environment that has this wheel and the libraries of this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    # A line of a .pth file adds a folder. It does not read the .pth files of that folder.
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "libraries.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    pip = (sys.executable, "-m", "pip", "--python", folder / "bin" / "python")
    run(*pip, "install", "-q", "--no-deps", "--no-index", wheel, folder=folder)
    return folder / "bin"


def test_a_wheel_installs_one_top_level_name(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as opened:
        names = opened.namelist()
    assert {name.split("/")[0] for name in names} == {
        "wardround",
        f"wardround-{installed()}.dist-info",
    }
    ours = {
        f"wardround/{path.relative_to(ROOT).as_posix()}"
        for name in ("server", "client", "common", "conf")
        for path in (ROOT / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    added = {
        "__init__.py",
        "api.py",
        "py.typed",
        "server/bundle/LICENSE",
        "server/bundle/pyproject.toml",
    }
    held = {name for name in names if name.startswith("wardround/")}
    assert held == ours | {f"wardround/{name}" for name in added}


def test_a_wheel_simulates_sweeps_and_makes_a_site(
    programs: Path,
    tmp_path: Path,
    tiny_model: Path,
    tiny_texts: Path,
    tiny_test_texts: Path,
) -> None:
    (tmp_path / "server.py").write_text("raise SystemExit('a file of the user')\n")
    (tmp_path / "common").mkdir()
    wardround = programs / "wardround"
    assert (
        run(wardround, "--version", folder=tmp_path).strip()
        == f"wardround {installed()}"
    )
    words = tiny(tiny_model, tiny_texts, tiny_test_texts, tmp_path / "run")
    assert "accuracy" in run(wardround, "simulate", *words, folder=tmp_path)
    others = ("num_clients=", "num_rounds=", "run_dir=")
    words = [word for word in words if not word.startswith(others)]
    words += [
        "data.budget_rounds=1",
        "data.second_threshold_rounds=1",
        "num_clients=1,2",
        f"run_dir={tmp_path / 'sweep'}",
    ]
    told = run(wardround, "sweep", *words, folder=tmp_path)
    report = tmp_path / "sweep" / "report"
    assert f"{report / 'index.html'}" in told
    assert "claims" in (report / "summary.md").read_text(encoding="utf-8")
    run(wardround, "server", "init", "--name", "localhost", folder=tmp_path)
    run(wardround, "server", "invite", "ward-7", folder=tmp_path)
    invitation = tmp_path / "wardround-server" / "invitations" / "ward-7.json"
    columns = ("--data", tiny_texts, "--text", "text", "--label", "label")
    site = ("init", "--invitation", invitation, *columns, "--dir", tmp_path / "site")
    run(programs / "wardround-site", *site, folder=tmp_path)
    assert (tmp_path / "site" / "site.yaml").is_file()
    code = f"from pathlib import Path; {STAGE}(Path({str(tmp_path / 'app')!r}))"
    run(programs / "python", "-c", code, folder=tmp_path)
    bundle = sorted(path.name for path in (tmp_path / "app").iterdir())
    assert bundle == ["LICENSE", "pyproject.toml"]


def test_a_checkout_without_links_is_importable(tmp_path: Path) -> None:
    """In a zip, the links are small text files."""
    package = tmp_path / "wardround"
    package.mkdir()
    for name in ("__init__.py", "api.py"):
        (package / name).write_bytes((ROOT / "wardround" / name).read_bytes())
    for name in ("server", "client", "common", "conf"):
        (tmp_path / name).symlink_to(ROOT / name)
        (package / name).write_text(f"../{name}")
    code = (
        "import sys; sys.path.insert(0, '.'); "
        "import wardround.common.places as places; print(places.__name__)"
    )
    name = run(sys.executable, "-P", "-c", code, folder=tmp_path)
    assert name.strip() == "wardround.common.places"


@pytest.mark.parametrize("name", ["server", "client", "common"])
def test_no_module_is_loaded_under_a_second_name(name: str) -> None:
    with pytest.raises(ImportError, match=f"import wardround.{name}"):
        __import__(name)
