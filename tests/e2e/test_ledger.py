"""A site's ledger in real processes: written before a send; an old copy stops the site."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from tests.e2e.federation import Federation
from tests.e2e.processes import PATIENCE, wait_for
from tests.e2e.runs import (
    CONTINUE,
    JOIN_SECONDS,
    LONG,
    RUN_SECONDS,
    add_two,
    restore,
    stop,
    wait_for_clients,
    wait_for_round,
    words_of,
)
from tests.support.tiny import TOPICS
from wardround.common.ledger import FILE_NAME, read_ledger
from wardround.server.deployment.audit import audit

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def pair(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path
) -> Iterator[Federation]:
    """A server, and two sites that have not joined yet."""
    folder = tmp_path_factory.mktemp("pair")
    made = Federation(folder / "federation")
    try:
        made.up()
        add_two(made, folder, tiny_model)
        yield made
    finally:
        made.close()


DIES = Path(__file__).parent / "dies"


def ledger_of(federation: Federation, name: str) -> Path:
    """Its file."""
    return federation.sites[name].site_file.parent / "state" / FILE_NAME


def two(overrides: list[str], *more: str) -> list[str]:
    """Overrides of a run of alpha and beta."""
    kept = [
        word for word in overrides if not word.startswith(("num_clients", "num_rounds"))
    ]
    return words_of(kept, "num_clients=2", *more)


def test_what_left_is_in_both_books_also_after_a_kill_before_sending(
    pair: Federation, overrides: list[str], tmp_path: Path
) -> None:
    has_died = tmp_path / "has died"
    killed = {"PYTHONPATH": str(DIES), "WARDROUND_TEST_DIES": str(has_died)}
    pair.leave(pair.sites["beta"])
    beta = pair.join(pair.sites["beta"], environment=killed)
    restore(pair)
    run_dir = tmp_path / "run"
    process = pair.submit(*two(overrides, "num_rounds=3"), f"run_dir={run_dir}")
    assert beta.wait(RUN_SECONDS) == -signal.SIGKILL, beta.text()
    last = list(read_ledger(ledger_of(pair, "beta")).values())[-1]
    assert (last.what, last.kind, last.round) == ("leaves", "train", 1)
    pair.join(pair.sites["beta"])
    assert process.wait(RUN_SECONDS) == 0, process.text()

    paths = [ledger_of(pair, name) for name in ("alpha", "beta")]
    for found in audit(run_dir, paths):
        assert found.findings == (), found
        assert found.num_answers >= 4  # hello, and three rounds
    for path in paths:
        entries = list(read_ledger(path).values())
        for before, entry in pairwise(entries):
            assert (before.what == "leaves") or (
                entry.what not in ("left", "stayed")
            ), entry
            assert (entry.update_norm is not None) == (
                "tensors" in entry.records and entry.what == "leaves"
            )
        text = path.read_text(encoding="ascii")
        assert not [label for label in TOPICS if label in text]
        assert not [
            word for words in TOPICS.values() for word in words if f'"{word}' in text
        ]
        assert str(pair.root.parent) not in text
        assert str(tmp_path) not in text
    code, said = pair.wardround(
        "audit", str(run_dir), *(f"--ledger={path}" for path in paths)
    )
    assert code == 0, said
    assert "answers are the same in both" in said


def test_an_old_copy_of_the_ledger_stops_the_site_until_a_person_says_so(
    pair: Federation, overrides: list[str], tmp_path: Path
) -> None:
    restore(pair)
    run_dir, path = tmp_path / "run", ledger_of(pair, "beta")
    process = pair.submit(*two(overrides), CONTINUE, LONG, f"run_dir={run_dir}")
    wait_for_round(process, run_dir, 2)
    old = path.read_bytes()
    old = old[: old.rfind(b"\n") + 1]
    wait_for_round(process, run_dir, 5)
    assert pair.signal(signal.SIGKILL, "beta") >= 1
    without = wait_for_clients(process, run_dir, [0])

    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"round":2', b'"round":3', 1))
    changed = pair.join(pair.sites["beta"])
    assert changed.wait(JOIN_SECONDS) == 2
    assert "it does not follow the line before" in changed.text()

    path.write_bytes(old)
    restored = pair.join(pair.sites["beta"])
    assert restored.wait(RUN_SECONDS) == 1
    found = re.search(r"wardround-site ledger accept ([0-9a-f]{64})", restored.text())
    assert found, restored.text()
    again = pair.join(pair.sites["beta"])
    assert again.wait(RUN_SECONDS) == 1  # starting it again changes nothing

    site_file = str(pair.sites["beta"].site_file)
    accept = pair.start(
        "accept", "wardround-site", "ledger", "accept", found[1], "--site", site_file
    )
    assert accept.wait(PATIENCE) == 0, accept.text()
    pair.join(pair.sites["beta"])
    wait_for_clients(process, run_dir, [0, 1], after=without)
    wait_for(
        lambda: b"accepted" in path.read_bytes(),
        PATIENCE,
        "the ledger to say that it was accepted",
    )
    stop(pair, process)
    (beta,) = audit(run_dir, [path])
    assert beta.findings[0].startswith(
        "the ledger lacks an answer that the server has: answer to "
    )
