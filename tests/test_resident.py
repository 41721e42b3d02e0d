"""A site's resident process: same numbers, fewer bytes, and never in the way of a round."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from threading import Timer
from typing import Any

import pytest
from flwr.app import RecordDict

from client.join import _start_resident
from client.resident import ADDRESS, Keeper, Resident
from common.messages import HELLO, pack_hello
from common.runs import RunFolder
from common.settings import Settings
from server.app import conduct
from tests.conftest import Make, write_texts
from tests.test_sites import RealSites, write_site

SECONDS = 60.0


@pytest.fixture
def keeper(monkeypatch: pytest.MonkeyPatch) -> Iterator[Keeper]:
    """A keeper whose resident the client app of this process will use."""
    with Keeper(said.append) as keeper:
        monkeypatch.setenv(ADDRESS, keeper.environment[ADDRESS])
        said.clear()
        yield keeper


said: list[str] = []


@pytest.fixture
def site_file(tmp_path: Path, tiny_model: Path) -> Path:
    """One site with texts of its own."""
    texts = write_texts(tmp_path / "texts.csv", 30, seed=1)
    return write_site(tmp_path, "alpha", texts, model=tiny_model)


@pytest.fixture
def make_run(make_settings: Make, tmp_path: Path) -> Callable[..., Settings]:
    """A run of that one site, which evaluates."""

    def make(name: str, *words: str) -> Settings:
        return make_settings(
            *("evaluation.where=sites", "engine=deployment", "num_clients=1", "num_rounds=3"),
            *("data.label_names=[health,money,sport]", "data.path=null", "data.test_path=null"),
            *("data.reader=hub", "train.learning_rate=1e-4", f"run_dir={tmp_path / name}", *words),
        )

    return make


def lines(settings: Settings) -> list[dict[str, Any]]:
    """History lines without what may differ: seconds and bytes."""
    found = RunFolder(Path(settings.run_dir)).history()
    for line in found:
        line.pop("seconds")
        line["bytes"] = (line["bytes"]["down"], line["bytes"]["up"])
        for client in line["clients"]:
            client.pop("seconds")
            client.pop("num_bytes")
    return found


def without_bytes(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same, comparable between runs that sent other forms."""
    return [{key: value for key, value in line.items() if key != "bytes"} for line in found]


def run(settings: Settings, site_file: Path, interfere: Callable[[int], None] | None = None) -> None:
    """Conduct it; `interfere` is called before each message to the site, with how many there were."""
    grid = RealSites({"alpha": site_file})
    if interfere is not None:
        grid = Interfering({"alpha": site_file})
        grid.interfere = interfere
    conduct(grid, settings, grid.names)


class Interfering(RealSites):
    """Does something before each message is delivered."""

    interfere: Callable[[int], None]
    num_sent = 0

    def push_messages(self, messages: Any) -> Any:
        self.interfere(self.num_sent)
        self.num_sent += 1
        return super().push_messages(messages)


def pid_of(keeper: Keeper) -> int:
    """The resident process."""
    assert keeper._process is not None
    return keeper._process.pid


@pytest.mark.parametrize("transform", ["exact", "bf16"])
def test_resident_or_not_gives_the_same_numbers(
    make_run: Callable[..., Settings], site_file: Path, keeper: Keeper, transform: str
) -> None:
    words = [f"transforms={transform}"]
    with_resident = make_run("with", *words)
    run(with_resident, site_file)
    pid = pid_of(keeper)
    os.environ.pop(ADDRESS)
    # Without a resident nothing carries what rounding lost; with it off, both are the same.
    if transform == "bf16":
        words.append("transforms.error_feedback=false")
        os.environ[ADDRESS] = keeper.environment[ADDRESS]
        with_resident = make_run("with-again", *words)
        run(with_resident, site_file)
        os.environ.pop(ADDRESS)
    without = make_run("without", *words)
    run(without, site_file)
    one, other = lines(with_resident), lines(without)
    assert without_bytes(one) == without_bytes(other)
    assert len({line["model_sha256"] for line in one}) == 4
    assert pid_of(keeper) == pid  # one process for all of it
    whole = max(line["bytes"][0] for line in other)
    # Round 1 starts from nothing the site could hold; from then on the step is enough.
    assert [line["bytes"][0] for line in other[1:]] == [whole] * 3
    assert one[1]["bytes"][0] == whole
    assert all(line["bytes"][0] < 0.8 * whole for line in one[2:])
    assert all(line["bytes"][1] < 0.8 * whole for line in one[1:])


def test_a_site_that_lost_its_tensors_asks_for_all_of_them(
    make_run: Callable[..., Settings], site_file: Path, keeper: Keeper
) -> None:
    def kill(num_sent: int) -> None:
        if num_sent == 3:  # hello, round 1, round 2 were before
            os.kill(pid_of(keeper), signal.SIGKILL)
            deadline = time.monotonic() + SECONDS
            while not any("has ended" in text for text in said):
                assert time.monotonic() < deadline
                time.sleep(0.05)

    killed, whole = make_run("killed"), make_run("whole")
    run(killed, site_file, kill)
    run(whole, site_file)
    assert without_bytes(lines(killed)) == without_bytes(lines(whole))
    first, _, third = (line["bytes"][0] for line in lines(killed)[1:])
    assert third > first  # the step, and then the whole


def stopped(keeper: Keeper, resident: Resident, settings: Settings, site_file: Path) -> int:
    """Start a resident process and stop it, so that it gives no answer; its number."""
    resident.answer(HELLO, pack_hello(settings), site_file, SECONDS)
    os.kill(pid_of(keeper), signal.SIGSTOP)
    return pid_of(keeper)


def test_a_process_that_dies_at_work_is_a_refusal(
    site_file: Path, keeper: Keeper, make_run: Callable[..., Settings]
) -> None:
    resident, settings = Resident.of_this_site(), make_run("run")
    assert resident is not None
    pid = stopped(keeper, resident, settings, site_file)
    Timer(1.0, lambda: os.kill(pid, signal.SIGKILL)).start()
    refusal = resident.answer(HELLO, pack_hello(settings), site_file, SECONDS)
    assert "resident process gave no answer" in str(refusal.config_records["refusal"]["reason"])
    # The next message finds another process.
    card = resident.answer(HELLO, pack_hello(settings), site_file, SECONDS)
    assert card.config_records["card"]["num_examples"] == 24
    assert pid_of(keeper) != pid


def test_waiting_for_an_answer_ends(
    site_file: Path, keeper: Keeper, make_run: Callable[..., Settings]
) -> None:
    resident, settings = Resident.of_this_site(), make_run("run")
    assert resident is not None
    pid = stopped(keeper, resident, settings, site_file)
    refusal = resident.answer(HELLO, pack_hello(settings), site_file, 0.5)
    assert "resident process gave no answer" in str(refusal.config_records["refusal"]["reason"])
    os.kill(pid, signal.SIGCONT)
    card = resident.answer(HELLO, pack_hello(settings), site_file, SECONDS)
    assert card.config_records["card"]["num_examples"] == 24
    assert pid_of(keeper) == pid


def test_a_process_that_hangs_is_replaced(
    site_file: Path,
    keeper: Keeper,
    make_run: Callable[..., Settings],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("client.resident._MARGIN_SECONDS", 0.5)
    monkeypatch.setattr("client.resident._END_SECONDS", 0.5)
    resident, settings = Resident.of_this_site(), make_run("run")
    assert resident is not None
    pid = stopped(keeper, resident, settings, site_file)
    refusal = resident.answer(HELLO, pack_hello(settings), site_file, 0.5)
    assert "refusal" in refusal.config_records
    latest = time.monotonic() + SECONDS
    while Path(f"/proc/{pid}").exists() and time.monotonic() < latest:
        time.sleep(0.1)
    monkeypatch.undo()
    card = resident.answer(HELLO, pack_hello(settings), site_file, SECONDS)
    assert card.config_records["card"]["num_examples"] == 24
    assert pid_of(keeper) != pid
    assert not Path(f"/proc/{pid}").exists()


def test_a_changed_file_is_read_anew_and_a_missing_one_is_missed(
    make_run: Callable[..., Settings], site_file: Path, keeper: Keeper, tmp_path: Path
) -> None:
    def ask() -> RecordDict:
        resident = Resident.of_this_site()
        assert resident is not None
        return resident.answer(HELLO, pack_hello(make_run("run")), site_file, SECONDS)

    assert ask().config_records["card"]["num_examples"] == 24
    pid = pid_of(keeper)
    write_texts(tmp_path / "texts.csv", 60, seed=2)
    assert ask().config_records["card"]["num_examples"] == 48
    (tmp_path / "texts.csv").rename(tmp_path / "away.csv")
    reason = str(ask().config_records["refusal"]["reason"])
    assert reason == "FileNotFoundError; see the client's own log"
    (tmp_path / "away.csv").rename(tmp_path / "texts.csv")
    assert ask().config_records["card"]["num_examples"] == 48
    assert pid_of(keeper) == pid


def test_an_idle_process_gives_its_memory_back(
    site_file: Path, make_run: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    said.clear()
    with Keeper(said.append, idle_seconds=0.5) as keeper:
        monkeypatch.setenv(ADDRESS, keeper.environment[ADDRESS])
        resident = Resident.of_this_site()
        assert resident is not None
        for _ in range(2):
            card = resident.answer(HELLO, pack_hello(make_run("run")), site_file, SECONDS)
            assert card.config_records["card"]["num_examples"] == 24
            deadline = time.monotonic() + SECONDS
            while keeper._process is not None:
                assert time.monotonic() < deadline
                time.sleep(0.05)
    assert len([text for text in said if "idle" in text]) == 2


def test_nothing_is_left_and_the_socket_is_the_users_own(
    site_file: Path, make_run: Callable[..., Settings]
) -> None:
    with Keeper(said.append) as keeper:
        path = Path(keeper.environment[ADDRESS])
        assert path.parent.stat().st_mode & 0o777 == 0o700
        Resident(path).answer(HELLO, pack_hello(make_run("run")), site_file, SECONDS)
        pid = pid_of(keeper)
    assert not path.parent.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    refusal = Resident(path).answer(HELLO, pack_hello(make_run("run")), site_file, SECONDS)
    assert "refusal" in refusal.config_records


@pytest.mark.parametrize("reason", ["no memory of that kind", "a path that is too long"])
def test_join_does_without_where_none_can_be_kept(
    reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if reason == "a path that is too long":  # a socket's address has 107 characters at most
        folder = tmp_path / ("long" * 30)
        folder.mkdir()
        monkeypatch.setattr("tempfile.tempdir", str(folder))
    else:
        monkeypatch.delattr("os.memfd_create")
    with ExitStack() as stack:
        assert _start_resident(stack) == {}
    said = capsys.readouterr().out
    assert "no resident process can be kept here" in said
    assert "--no-resident" in said


def test_only_the_resident_needs_pytorch() -> None:
    """Flower starts a process for every message; what it imports is paid for every time."""
    code = (
        "import sys, client.app; print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=SECONDS)
    assert found.stdout.strip() == "[]", found.stderr
