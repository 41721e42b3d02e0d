"""Sites that die, hang, lose their network or their file, or send what is no update."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.compose import compose
from server.deployment import superlink
from server.deployment.server_folder import names_by_node
from server.deployment.staging import stage_app
from server.deployment.submit import with_absolute_paths
from tests.conftest import write_texts
from tests.e2e.federation import Federation
from tests.e2e.processes import wait_for
from tests.e2e.proxy import Relay
from tests.e2e.runs import (
    JOIN_SECONDS,
    LABELS,
    RUN_SECONDS,
    lines,
    start_sites,
    took_part,
    wait_for_clients,
    wait_for_round,
    words_of,
    write_sites,
)

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(1500)]

CONTINUE = "strategy.on_missing=continue"
# Replaces client/app.py at a site that is up to no good: its update of each round is bad in another way.
BAD_CLIENT = """
import dataclasses
import numpy as np
from flwr.app import Message
from client import honest
from client.site import site_from
from common.messages import pack_update, unpack_update
from common.transforms import whole

app = honest.app
train = app._registered_funcs.pop("train", None) or app._registered_funcs.pop("train.default")
BAD = [
    {"payload": lambda old: whole(np.full(size(old), np.nan, np.float32))},
    {"layout": lambda old: "0" * 64},
    {"payload": lambda old: whole(np.zeros(2 * size(old), np.float32))},
    {"payload": lambda old: dataclasses.replace(old, form="exact", arrays=cut(old.arrays))},
    {"num_examples": lambda old: -old},
    {"num_examples": lambda old: 0},
    {"num_examples": lambda old: 10**12},
    {"round": lambda old: old - 1},
]

def size(payload):
    if payload.form == "whole":
        return len(payload.arrays["shared"])
    return len(payload.arrays["steps"]) // int(payload.arrays["widths"][0])  # a tiny model is one block

def cut(arrays):
    return {name: array[:-1] for name, array in arrays.items()}

@app.train()
def bad_train(message, context):
    reply = train(message, context)
    if site_from(context.node_config).file.name != "beta":
        return reply
    update = unpack_update(reply)
    change = BAD[(update.round - 1) % len(BAD)]
    changed = {key: make(getattr(update, key)) for key, make in change.items()}
    return Message(pack_update(dataclasses.replace(update, **changed)), reply_to=message)
"""
REASONS = [
    "not finite",
    "names or shapes",
    "names or shapes",
    "of the global model",
    "claims -",
    "claims 0 examples",
    "claims 1000000000000 examples",
    "belongs to round 7",
]


def test_bad_updates_are_refused_and_the_site_is_told(
    federation: Federation, overrides: list[str], tiny_model: Path, tmp_path: Path
) -> None:
    server = federation.up()
    for name, seed in (("alpha", 0), ("beta", 1)):
        texts = write_texts(tmp_path / f"{name}.csv", 30, seed=seed)
        federation.join(federation.add_site(name, texts, model=tiny_model))
    federation.wait_online("alpha", "beta", seconds=JOIN_SECONDS)
    app = stage_app(tmp_path / "app")
    (app / "client" / "app.py").rename(app / "client" / "honest.py")
    (app / "client" / "app.py").write_text(BAD_CLIENT, encoding="utf-8")
    run_dir = tmp_path / "run"
    words = words_of(overrides, "num_rounds=8", "num_clients=2", CONTINUE, f"run_dir={run_dir}")
    settings = with_absolute_paths(compose([*words, "engine=deployment"]).settings)
    folder = federation.folder
    config = {"settings": settings.to_json(), "sites": names_json(federation)}
    run_id = superlink.start_run(folder, app, config)
    wait_for(lambda: superlink.run_state(folder, run_id).has_ended, RUN_SECONDS, "the run to end")
    assert superlink.run_state(folder, run_id).status == "finished:completed", server.text()
    assert took_part(run_dir) == [[0]] * len(REASONS)
    node = federation.sites["beta"].node
    assert node is not None
    for line, reason in zip(lines(run_dir)[1:], REASONS, strict=True):
        ((client, said),) = [tuple(left_out.values()) for left_out in line["left_out"]]
        assert (client, reason in said) == (1, True), said
        assert f"the server says: round {line['round']}: {said}" in node.text()


def names_json(federation: Federation) -> str:
    """All registered sites, as the run config carries them."""
    import json

    return json.dumps(names_by_node(federation.folder.sites(), list(federation.sites)))


def test_killed_and_hanging_sites(
    federation: Federation, overrides: list[str], tiny_model: Path, tmp_path: Path
) -> None:
    federation.up()
    start_sites(federation, write_sites(tmp_path / "texts"), tiny_model)
    words = words_of(overrides, "strategy.min_sites=2")
    run_dir = tmp_path / "goes-on"
    bound = "strategy.round_timeout_seconds=60"
    process = federation.submit(*words, "num_rounds=60", CONTINUE, bound, f"run_dir={run_dir}")
    wait_for_round(process, run_dir, 1)
    assert federation.signal(signal.SIGKILL, "beta") >= 2
    without = wait_for_clients(process, run_dir, [0, 2])
    federation.join(federation.sites["beta"])  # refused while the server counts it as online
    back = wait_for_clients(process, run_dir, [0, 1, 2], after=without)

    # Its node goes on and says that the site is well, but its work does not. It is the first of those whose
    # answers are fetched: those of the others wait past the end of the round.
    for program in ("flower-superexec", "flwr-clientapp"):
        assert federation.signal(signal.SIGSTOP, "alpha", program) > 0 or program == "flwr-clientapp"
    slow = wait_for_clients(process, run_dir, [1, 2], after=back)
    federation.signal(signal.SIGCONT, "alpha")
    wait_for_clients(process, run_dir, [0, 1, 2], after=slow)
    federation.signal(signal.SIGTERM, program="submit")
    assert process.wait(60) == 130, process.text()
    assert "alpha: no answer within 60 s; the round goes on without it" in process.text()

    failing = federation.submit(*words, "num_rounds=60", f"run_dir={tmp_path / 'fails'}")
    wait_for_round(failing, tmp_path / "fails", 1)
    federation.signal(signal.SIGKILL, "beta")
    assert failing.wait(RUN_SECONDS) == 1, failing.text()
    assert ": beta: " in failing.text()


@pytest.fixture
def relay(federation: Federation) -> Iterator[Relay]:
    """The network between one site and the server."""
    with Relay(("127.0.0.1", federation.folder.addresses.fleet_port)) as made:
        yield made


def test_a_cut_network(
    federation: Federation, relay: Relay, overrides: list[str], tiny_model: Path, tmp_path: Path
) -> None:
    federation.up()
    for name, seed in (("alpha", 0), ("beta", 1)):
        texts = write_texts(tmp_path / f"{name}.csv", 30, seed=seed)
        address = f"localhost:{relay.port}" if name == "beta" else federation.fleet_address
        federation.join(federation.add_site(name, texts, model=tiny_model, address=address))
    federation.wait_online("alpha", "beta", seconds=JOIN_SECONDS)
    run_dir = tmp_path / "run"
    words = words_of(overrides, "num_rounds=60", "num_clients=2", CONTINUE, f"run_dir={run_dir}")
    process = federation.submit(*words, "strategy.round_timeout_seconds=75")
    wait_for_round(process, run_dir, 2)
    relay.cut()
    time.sleep(30)
    relay.mend()
    wait_for_round(process, run_dir, 4)
    assert took_part(run_dir)[:2] == [[0, 1], [0, 1]]  # nothing was lost

    relay.cut()
    without = wait_for_clients(process, run_dir, [0])
    relay.mend()
    wait_for_clients(process, run_dir, [0, 1], after=without)
    federation.signal(signal.SIGTERM, program="submit")
    assert process.wait(60) == 130, process.text()


def test_other_label_names_and_a_vanished_file(
    federation: Federation, overrides: list[str], tiny_model: Path, tmp_path: Path
) -> None:
    texts = write_sites(tmp_path / "texts")
    federation.up()
    start_sites(federation, texts, tiny_model)
    wrong = "data.label_names=[illness,money,sport]"
    words = [word for word in words_of(overrides) if word != LABELS]
    failing = federation.submit(*words, wrong, "num_rounds=1", f"run_dir={tmp_path / 'fails'}")
    assert failing.wait(RUN_SECONDS) == 1, failing.text()
    for name in federation.sites:
        assert f"{name} cannot take part: ValueError; see the client's own log" in failing.text()
    assert "health" not in failing.text()  # what the site's file says stays there
    node = federation.sites["alpha"].node
    assert node is not None
    assert "'health'" in node.text()

    run_dir = tmp_path / "goes-on"
    process = federation.submit(*words_of(overrides), "num_rounds=60", CONTINUE, f"run_dir={run_dir}")
    wait_for_round(process, run_dir, 2)
    file, away = texts / "beta.csv", tmp_path / "away.csv"
    file.rename(away)
    without = wait_for_clients(process, run_dir, [0, 2])
    away.rename(file)
    wait_for_clients(process, run_dir, [0, 1, 2], after=without)
    federation.signal(signal.SIGTERM, program="submit")
    assert process.wait(60) == 130, process.text()
    assert "beta.csv" not in process.text()
    assert all("beta.csv" not in str(line) for line in lines(run_dir))
