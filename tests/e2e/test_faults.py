"""Sites that die, hang, are slow, lose network or file, or have a file that grows or is torn."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.federation import Federation
from tests.e2e.hostile import LIES, hostile_site, lying
from tests.e2e.processes import PATIENCE, wait_for
from tests.e2e.proxy import Relay
from tests.e2e.runs import (
    CONTINUE,
    JOIN_SECONDS,
    LABELS,
    LONG,
    RUN_SECONDS,
    lines,
    restore,
    start_sites,
    stop,
    texts_of,
    took_part,
    wait_for_clients,
    wait_for_round,
    words_of,
    write_sites,
)
from tests.support.site_lab import WIDE
from wardround.client.site_file import load_site_file, write_site_file
from wardround.server.run_folder import RunFolder

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(1200)]

WORKER = "wardround.client.node.worker"
TWO = ("--site", "alpha", "--site", "beta", "num_clients=2")


@pytest.fixture(scope="module")
def three(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path
) -> Iterator[Federation]:
    """A server and three sites at work, whose texts may change."""
    made = Federation(tmp_path_factory.mktemp("three") / "federation")
    texts = write_sites(texts_of(made))
    try:
        made.up()
        policy = replace(WIDE, data_may_change=True)
        start_sites(made, texts, tiny_model, policy=policy)
        yield made
    finally:
        made.close()


def test_bad_updates_are_refused_and_the_site_is_told(
    three: Federation, overrides: list[str], tmp_path: Path
) -> None:
    restore(three)
    run_dir = tmp_path / "run"
    words = words_of(overrides, f"num_rounds={2 * len(LIES)}", *TWO, CONTINUE)
    three.leave(three.sites["beta"])
    with hostile_site(three.sites["beta"].site_file, lying) as beta:
        three.wait_online("alpha", "beta", seconds=JOIN_SECONDS)
        process = three.submit(*words, f"run_dir={run_dir}")
        assert process.wait(RUN_SECONDS) == 0, process.text()
        said = [why for line in lines(run_dir)[1:] for why in left_out_of(line, 1)]
        for reason, _ in LIES:
            assert any(reason in why for why in said), (reason, said)
        assert all(0 in clients for clients in took_part(run_dir))
        assert not any(1 in clients for clients in took_part(run_dir))
        told = "\n".join(beta.said)
        assert any(why in told for why in said), told


def left_out_of(line: dict[str, Any], client: int) -> list[str]:
    """Why that client was left out of a round."""
    return [
        str(left["reason"])
        for left in line.get("left_out", [])
        if left["client"] == client
    ]


@pytest.fixture
def relay(three: Federation) -> Iterator[Relay]:
    """The network between beta and the server, which is as it was afterwards."""
    beta = three.sites["beta"]
    direct = load_site_file(beta.site_file)
    with Relay(("127.0.0.1", three.folder.addresses.fleet_port)) as made:
        address = f"localhost:{made.port}"
        write_site_file(replace(direct, server_address=address), beta.site_file)
        three.leave(beta)
        yield made
        three.leave(beta)
        write_site_file(direct, beta.site_file)


def test_a_cut_network(
    three: Federation, relay: Relay, overrides: list[str], tmp_path: Path
) -> None:
    restore(three)
    run_dir = tmp_path / "run"
    words = words_of(overrides, LONG, *TWO, CONTINUE, f"run_dir={run_dir}")
    process = three.submit(*words, "strategy.round_timeout_seconds=60")
    wait_for_round(process, run_dir, 2)
    relay.cut()
    before = len(took_part(run_dir))
    time.sleep(25)
    relay.mend()
    wait_for_round(process, run_dir, before + 4)
    assert set(map(tuple, took_part(run_dir))) == {(0, 1)}  # nothing was lost

    relay.cut()
    without = wait_for_clients(process, run_dir, [0])
    relay.mend()
    wait_for_clients(process, run_dir, [0, 1], after=without)
    stop(three, process)


def test_other_label_names_and_a_file_that_vanishes_grows_or_is_torn(
    three: Federation, overrides: list[str], tmp_path: Path
) -> None:
    restore(three)
    texts = texts_of(three)
    wrong = "data.label_names=[illness,money,sport]"
    words = [word for word in words_of(overrides) if word != LABELS]
    failing = three.submit(
        *words, wrong, "num_rounds=1", f"run_dir={tmp_path / 'fails'}"
    )
    assert failing.wait(RUN_SECONDS) == 1, failing.text()
    for name in three.sites:
        assert (
            f"{name} cannot take part: its texts, its model or the settings"
            in failing.text()
        )
    assert "health" not in failing.text()  # what the site's file says stays there
    node = three.sites["alpha"].program
    assert "'health'" in node.text()

    run_dir = tmp_path / "goes-on"
    process = three.submit(*words_of(overrides), LONG, CONTINUE, f"run_dir={run_dir}")
    wait_for_round(process, run_dir, 2)
    file, away = texts / "beta.csv", tmp_path / "away.csv"
    whole = file.read_text(encoding="utf-8")
    file.rename(away)
    without = wait_for_clients(process, run_dir, [0, 2])
    away.rename(file)
    back = wait_for_clients(process, run_dir, [0, 1, 2], after=without)
    before = num_examples(run_dir, back)

    # Ten more letters have come: the site introduces itself anew, and they count.
    header, *rows = whole.splitlines(keepends=True)
    write_over(file, header + "".join(rows[:10]) + whole.removeprefix(header))
    wait_for(
        lambda: num_examples(run_dir) == before + 8,
        RUN_SECONDS,
        "the new letters to count",
    )

    # A file that somebody is writing just now.
    write_over(file, whole + '"half a letter')
    torn = wait_for_clients(process, run_dir, [0, 2], after=len(took_part(run_dir)))
    write_over(file, whole)
    wait_for_clients(process, run_dir, [0, 1, 2], after=torn)
    wait_for(
        lambda: num_examples(run_dir) == before, RUN_SECONDS, "the old letters to count"
    )
    stop(three, process)
    assert "beta.csv" not in process.text()
    assert all("beta.csv" not in str(line) for line in lines(run_dir))
    wait_for(
        lambda: RunFolder(run_dir).status()["state"] == "stopped",
        PATIENCE,
        "the run folder to say so",
    )


def write_over(file: Path, text: str) -> None:
    """Replace a file in one go."""
    part = file.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    part.replace(file)


def num_examples(run_dir: Path, number: int = -1) -> int:
    """How many examples beta had in a round; 0 where it took no part."""
    return next(
        (
            int(c["num_examples"])
            for c in lines(run_dir)[number]["clients"]
            if c["client"] == 1
        ),
        0,
    )


def test_killed_hanging_and_slow_sites(
    three: Federation, overrides: list[str], tmp_path: Path
) -> None:
    restore(three)
    words = words_of(overrides, "strategy.min_sites=2")
    run_dir = tmp_path / "goes-on"
    process = three.submit(
        *words,
        LONG,
        CONTINUE,
        "strategy.round_timeout_seconds=30",
        f"run_dir={run_dir}",
    )
    wait_for_round(process, run_dir, 2)

    # A site that is slow, but within the bound, is waited for.
    assert three.signal(signal.SIGSTOP, "gamma", WORKER) == 1
    before = len(took_part(run_dir))
    time.sleep(8)
    assert len(took_part(run_dir)) <= before + 1
    three.signal(signal.SIGCONT, "gamma", WORKER)
    wait_for_round(process, run_dir, before + 3)
    assert set(map(tuple, took_part(run_dir))) == {(0, 1, 2)}

    # A site that hangs is not. Its answer is fetched first, so the others' answers wait for it.
    assert three.signal(signal.SIGSTOP, "alpha", WORKER) == 1
    slow = wait_for_clients(process, run_dir, [1, 2])
    wait_for_clients(process, run_dir, [0, 1, 2], after=slow)  # with another worker
    node = three.sites["alpha"].program
    wait_for(
        lambda: "the worker process hangs and is ended" in node.text(),
        PATIENCE,
        "the site to say so",
    )
    assert (
        "alpha: no answer within 30 s; the round goes on without it" in process.text()
    )

    assert three.signal(signal.SIGKILL, "beta") >= 2
    without = wait_for_clients(process, run_dir, [0, 2])
    three.join(three.sites["beta"])  # refused while the server counts it as online
    wait_for_clients(process, run_dir, [0, 1, 2], after=without)
    stop(three, process)

    failing = three.submit(*words, LONG, f"run_dir={tmp_path / 'fails'}")
    wait_for_round(failing, tmp_path / "fails", 1)
    three.signal(signal.SIGKILL, "beta")
    assert failing.wait(RUN_SECONDS) == 1, failing.text()
    assert ": beta: " in failing.text()
