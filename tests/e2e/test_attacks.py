"""A registered site that is up to no good, and strangers: what they try over real processes, and fail at.

One federation for all of them: alpha and beta are honest, mallory is registered and hostile, and a run is on.
"""

from __future__ import annotations

import base64
import hashlib
import json
import random
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ObjectTree,
    PullObjectRequest,
    PushObjectRequest,
)
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest

from client.node.connection import Connection, Letter, Refused
from client.site_file import load_site_file
from common.credentials import new_key, pem_of, write_key_pair
from common.wire.forms import whole
from common.wire.messages import HELLO, TRAIN, pack_update, unpack_update
from common.wire.objects import Object, content_object, make_object
from server.deployment import superlink
from server.deployment.fleet import MOST_MESSAGE_BYTES
from server.deployment.folder import signing_key, unregister_site
from server.deployment.submit import settings_to_submit, stage_app
from server.deployment.ticket import write_ticket
from tests.e2e.federation import Federation
from tests.e2e.hostile import HostileSite, honest, hostile_site, num_numbers, push_objects
from tests.e2e.processes import Process, command_line, wait_for
from tests.e2e.runs import EVEN, JOIN_SECONDS, LABELS, RUN_SECONDS, lines
from tests.support.tiny import write_model, write_texts

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)]

MALLORY = 2
"""Her number in the run; alpha is 0 and beta 1."""
ROUND_SECONDS = 10
MOST_NORM = 1000.0


@dataclass
class Ward:
    """A federation with a run under way."""

    federation: Federation
    mallory: HostileSite
    process: Process
    run_dir: Path

    def rounds(self, number: int = 2) -> list[dict[str, Any]]:
        """The next rounds, whose questions are not sent yet. Alpha and beta are in every one of them."""
        before = len(lines(self.run_dir)) + 1

        def look() -> bool:
            assert self.process.is_alive(), self.process.text()
            return len(lines(self.run_dir)) >= before + number

        wait_for(look, 120 + number * ROUND_SECONDS, f"{number} rounds")
        found = lines(self.run_dir)[before : before + number]
        assert all({0, 1} <= set(taken(line)) for line in found)
        return found

    def refused(self) -> dict[str, int]:
        """Calls of mallory that the server refused, by reason."""
        return self.federation.node_states()["mallory"].refused


def taken(line: dict[str, Any]) -> list[int]:
    """Whose updates are in the mean."""
    return [client["client"] for client in line["clients"]]


def reasons(found: list[dict[str, Any]]) -> list[str]:
    """Why mallory's answers were left out of these rounds."""
    return [
        left["reason"] for line in found for left in line.get("left_out", []) if left["client"] == MALLORY
    ]


@pytest.fixture(scope="module")
def ward(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ward]:
    """Everything started; ended afterwards."""
    root = tmp_path_factory.mktemp("ward")
    model = write_model(root / "model", "bert")
    federation = Federation(root / "federation")
    with ExitStack() as stack:
        stack.callback(federation.close)
        federation.up()
        for number, name in enumerate(("alpha", "beta", "mallory")):
            texts = write_texts(root / f"{name}.csv", 24, seed=number)
            site = federation.add_site(name, texts, model=model, max_examples=100)
            if name != "mallory":
                federation.join(site)
        mallory = stack.enter_context(hostile_site(federation.sites["mallory"].site_file, honest))
        federation.wait_online("alpha", "beta", "mallory", seconds=JOIN_SECONDS)
        process = federation.submit(*words(model, root / "run"))
        made = Ward(federation, mallory, process, root / "run")
        made.rounds(1)
        yield made


def words(model: Path, run_dir: Path) -> list[str]:
    """A run without an end."""
    return [
        *("model=hf", f"model.name={model}", "data=files", LABELS, "evaluation.where=sites"),
        *("device=cpu", "threads=1", EVEN, "train.batch_size=4", "train.max_length=16", "num_clients=3"),
        *("num_rounds=100000", "strategy.on_missing=continue", "strategy.min_sites=2"),
        *(f"strategy.round_timeout_seconds={ROUND_SECONDS}", "strategy.max_share=0.4"),
        *(f"strategy.max_update_norm={MOST_NORM}", f"run_dir={run_dir}"),
    ]


@pytest.fixture(autouse=True)
def _honest_again(ward: Ward) -> Iterator[None]:
    """Mallory behaves between the tests, and has to be taken again."""
    yield
    ward.mallory.tamper, ward.mallory.push = honest, ward.mallory.push_honestly


def letter_of(ward: Ward, name: str) -> Letter:
    """The question that a site has in hand, or had last."""
    journal = ward.federation.sites[name].folder / "state" / "journal.json"

    def look() -> bytes:
        return base64.b64decode(json.loads(journal.read_text())["in_hand"])

    return Letter(wait_for(look, 60, f"{name} to be asked"))


def test_a_site_speaks_for_nobody_else(ward: Ward) -> None:
    """Findings 1 (a), (b), (c): as the server, to another site, in another site's name."""
    own, others = ward.mallory.letters[-1], letter_of(ward, "alpha")
    connection = ward.mallory.connection
    me, alpha, server = connection.node.node_id, others.node_id, 1

    def message(source: int, target: int, reply_to: str) -> PushMessagesRequest:
        told = own.reply()
        told.metadata.src_node_id, told.metadata.dst_node_id = source, target
        told.metadata.reply_to_message_id, told.metadata.message_id = reply_to, "0" * 64
        tree = ObjectTree(object_id="0" * 64)
        return PushMessagesRequest(
            node=connection.node,
            messages_list=[told],
            message_object_trees=[tree],
            clientapp_runtime_list=[1],
        )

    alphas = Node(node_id=alpha)
    alpha_key = pem_of(" ".join(ward.federation.sites["alpha"].public_key.read_text().split()[:2]))
    attempts: list[tuple[str, Any]] = [
        ("PushMessages", message(server, server, own.message_id)),
        ("PushMessages", message(server, alpha, "")),
        ("PushMessages", message(server, alpha, own.message_id)),
        ("PushMessages", message(alpha, server, others.message_id)),
        ("PushMessages", message(me, server, others.message_id)),
        ("PushMessages", message(me, server, "")),
        ("PullMessages", PullMessagesRequest(node=alphas)),
        (
            "PullObject",
            PullObjectRequest(node=connection.node, run_id=others.run_id, object_id=others.message_id),
        ),
        (
            "ConfirmMessageReceived",
            ConfirmMessageReceivedRequest(
                node=connection.node, run_id=others.run_id, message_object_id=others.message_id
            ),
        ),
        (
            "PushObject",
            PushObjectRequest(
                node=connection.node, run_id=own.run_id, object_id="0" * 64, object_content=b"x"
            ),
        ),
        ("ActivateNode", ActivateNodeRequest(public_key=alpha_key, heartbeat_interval=30)),
        ("DeactivateNode", DeactivateNodeRequest(node_id=alpha)),
    ]
    for name, request in attempts:
        with pytest.raises(Refused) as refused:
            connection.call(name, request)
        assert refused.value.why in ("dropped", "other_node"), (name, refused.value.detail)
    ward.rounds()
    counts = ward.refused()
    assert counts["not_its_own"] >= 9
    assert counts["other_node"] >= 3


@pytest.mark.parametrize(
    ("kind", "body"),
    [("RecordDict", b"\xff\xfe no json"), ("RecordDict", b'{"a": 1}'), ("Array", b"{}")],
)
def test_an_answer_that_nobody_can_read_is_refused(ward: Ward, kind: str, body: bytes) -> None:
    """Finding 5: it ended any run."""
    inner = make_object(kind, body)
    ward.mallory.push = lambda letter, *_: push_objects(ward.mallory.connection, letter, inner)
    assert "its answer does not count: damaged" in reasons(ward.rounds())


def test_an_old_answer_and_one_with_another_signature_do_not_count(ward: Ward) -> None:
    mallory, (key, old) = ward.mallory, (ward.mallory._key, ward.mallory.pushed[-1])
    mallory.push = lambda letter, content, seconds: mallory.push_honestly(letter, old, seconds)
    assert "its answer does not count: unasked" in reasons(ward.rounds())
    mallory.push, mallory._key = mallory.push_honestly, new_key("signing")  # type: ignore[assignment]
    try:
        assert "its answer does not count: forged" in reasons(ward.rounds())
    finally:
        mallory._key = key
    refused = ward.federation.root.parent / "run" / "refused.json"
    assert '"unasked"' in refused.read_text()
    assert '"forged"' in refused.read_text()
    code, said = ward.federation.wardround("status", "--dir", str(ward.federation.folder.path))
    assert (code, "answers of mallory that did not count: " in said) == (0, True), said


def test_an_answer_that_trickles_in_keeps_the_rounds_bound(ward: Ward) -> None:
    """Finding 6: one object each few minutes held a round for hours."""
    inner = make_object("RecordDict", b"{}", [make_object("ArrayRecord", bytes([n])) for n in range(5)])
    ward.mallory.push = lambda letter, *_: push_objects(ward.mallory.connection, letter, inner, pause=3)
    started = time.monotonic()
    assert f"no answer within {ROUND_SECONDS} s" in reasons(ward.rounds())
    assert time.monotonic() - started < 10 * ROUND_SECONDS


def test_a_newcomer_that_says_nothing_holds_nobody_up(ward: Ward) -> None:
    def silent(kind: str, content: RecordDict) -> RecordDict:
        if kind == HELLO:
            time.sleep(12)
            return content
        update = unpack_update(content)
        return pack_update(type(update)(**(vars(update) | {"num_examples": 7})))  # asked to introduce itself

    ward.mallory.tamper = silent
    ward.rounds(6)


def test_one_site_cannot_own_the_model(ward: Ward) -> None:
    """Finding 4: weights up to 2^40 and norms up to 1e15 were taken."""

    def far_off(kind: str, content: RecordDict) -> RecordDict:
        if kind != TRAIN:
            return content
        update = unpack_update(content)
        values = np.full(num_numbers(update.payload), 1e5, np.float32)
        return pack_update(type(update)(**(vars(update) | {"payload": whole(values)})))

    (line, *_) = ward.rounds(1)
    assert all(client["share"] <= 0.4 + 1e-9 for client in line["clients"])
    assert all(client["update_norm"] < MOST_NORM for client in line["clients"])
    ward.mallory.tamper = far_off
    said = reasons(ward.rounds())
    assert any("its update has" in why for why in said), said


def test_more_than_a_site_may_send_is_refused(ward: Ward) -> None:
    zeros = whole(np.zeros(30 * 2**20, np.float32))  # 120 MiB, in pieces of different content

    def flood(kind: str, content: RecordDict) -> RecordDict:
        if kind != TRAIN:
            return content
        zeros.arrays["shared"][:] = np.arange(len(zeros.arrays["shared"]), dtype=np.float32)
        update = unpack_update(content)
        return pack_update(type(update)(**(vars(update) | {"payload": zeros})))

    ward.mallory.tamper = flood
    assert reasons(ward.rounds(1))
    assert ward.refused()["too_much"] >= 1


def test_the_run_config_tells_nothing(ward: Ward) -> None:
    """Finding 8: it held all settings, the coordinator's paths, and all sites' names and node ids."""
    letter, connection = ward.mallory.letters[-1], ward.mallory.connection
    run = connection.call("GetRun", GetRunRequest(node=connection.node, run_id=letter.run_id)).run
    assert set(run.override_config) == {"ticket"}
    for secret in (str(ward.run_dir), "alpha", "beta", str(ward.federation.folder.path)):
        assert secret.encode() not in run.SerializeToString()


def test_a_site_opens_no_port_and_shows_no_secret(ward: Ward) -> None:
    """Finding 9: a loopback port gave out tasks, and a token stood on a command line."""
    pids = ward.federation.processes("alpha")
    assert len(pids) >= 2
    for pid in pids:
        sockets = {str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir() if fd.is_symlink()}
        for table in ("tcp", "tcp6"):
            for row in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
                state, inode = row.split()[3], row.split()[9]
                assert state != "0A" or f"socket:[{inode}]" not in sockets, command_line(pid)
        assert not any(word in command_line(pid) for word in ("token", "PRIVATE", "--key"))


def test_two_hundred_strangers_cost_little_memory(ward: Ward, tmp_path: Path) -> None:
    """Finding 7: gRPC buffered messages of 2 GiB before any check."""
    site = load_site_file(ward.federation.sites["alpha"].site_file)
    write_key_pair(new_key("node"), tmp_path / "stranger.key", tmp_path / "stranger.pub", "stranger")
    request = PushObjectRequest(object_id="0" * 64, object_content=bytes(MOST_MESSAGE_BYTES - 1024))

    def knock(_: int) -> str:
        with Connection(type(site)(**(vars(site) | {"private_key": tmp_path / "stranger.key"}))) as stranger:
            try:
                stranger.call("PushObject", request, 20)
            except Exception as error:
                return str(error)
        return "let in"

    with ThreadPoolExecutor(200) as callers:
        said = list(callers.map(knock, range(200)))
    assert "let in" not in said
    assert sum("unknown_key" in text for text in said) > 20, said[:5]
    (server,) = ward.federation.processes(program="server.deployment.fleet")[:1]
    status = Path(f"/proc/{server}/status").read_text()
    peak = next(int(row.split()[1]) for row in status.splitlines() if row.startswith("VmHWM"))
    assert peak < 512 * 1024, f"{peak / 1024:.0f} MiB"
    with pytest.raises(Exception, match=r"RESOURCE_EXHAUSTED|larger than max"):
        ward.mallory.connection.call(
            "PushObject", PushObjectRequest(object_content=bytes(MOST_MESSAGE_BYTES + 1))
        )
    ward.rounds()


def test_sixty_mutated_answers(ward: Ward) -> None:
    """What a site sends costs its own part of a round, and nothing else."""
    dice = random.Random(0)
    num_sent = 0

    def mutate(letter: Letter, content: RecordDict, seconds: float) -> None:
        nonlocal num_sent
        num_sent += 1
        push_objects(ward.mallory.connection, letter, mutated(content, dice))

    ward.mallory.push = mutate
    while num_sent < 60:
        ward.rounds(10)


def mutated(content: RecordDict, dice: random.Random) -> Object:
    """The content with bytes of one object changed, and all ids true again, as a courier could."""
    root = content_object(content)
    chosen = dice.choice([part.object_id for part in root.walk()])

    def rebuilt(part: Object) -> Object:
        children, written = tuple(map(rebuilt, part.children)), part.write()
        for old, new in zip(part.children, children, strict=True):
            written = written.replace(old.object_id.encode(), new.object_id.encode())
        if part.object_id == chosen:
            at, length = dice.randrange(len(written) + 1), dice.choice((0, 1, 1, 40))
            written = written[:at] + dice.randbytes(dice.choice((0, 1, 1, 40))) + written[at + length :]
        return Object(hashlib.sha256(written).hexdigest(), len(written), children, lambda: written)

    return rebuilt(root)


def test_who_is_unregistered_is_out_at_once(ward: Ward) -> None:
    unregister_site(ward.federation.folder, "mallory")
    wait_for(lambda: "mallory" not in ward.federation.node_states(), 5, "the site to be forgotten")
    with pytest.raises(Refused) as refused:
        ward.mallory.connection.call("PullMessages", PullMessagesRequest(node=ward.mallory.connection.node))
    assert refused.value.why == "unknown_key"
    assert MALLORY not in taken(ward.rounds()[-1])


MARK = """
import pathlib
with pathlib.Path({mark!r}).open("ab") as mark:
    mark.write(pathlib.Path("/proc/self/cmdline").read_bytes() + b"\\n")
"""


def test_the_servers_bundle_runs_at_no_site(ward: Ward, tmp_path: Path) -> None:
    """Finding 2: a bundle's code ran with the rights of the site's user."""
    ward.federation.signal(signal.SIGTERM, program="submit")
    ward.process.wait(60)
    mark = tmp_path / "was-here"
    app = stage_app(tmp_path / "app")
    for module in app.glob("c*/**/*.py"):
        module.write_text(module.read_text(encoding="utf-8") + "\n" + MARK.format(mark=str(mark)))
    folder = ward.federation.folder
    run_dir = tmp_path / "run"
    shorter = ["num_rounds=3", "num_clients=2", "strategy.max_share=null", f"run_dir={run_dir}"]
    changed = {word.split("=")[0] for word in shorter}
    longer = words(ward.run_dir.parent / "model", run_dir)
    kept = [word for word in longer if word.split("=")[0] not in changed]
    settings = settings_to_submit([*kept, *shorter])
    sites = {name: folder.sites()[name] for name in ("alpha", "beta")}
    config = {"ticket": write_ticket(folder, settings, sites, signing_key(folder))}
    run_id = superlink.start_run(folder, app, config)
    wait_for(lambda: superlink.run_state(folder, run_id).has_ended, RUN_SECONDS, "the run to end")
    assert superlink.run_state(folder, run_id).status == "finished:completed"
    assert [taken(line) for line in lines(run_dir)[1:]] == [[0, 1]] * 3
    programs = mark.read_bytes().splitlines()
    assert any(b"flwr-serverapp" in program for program in programs)  # it runs at the coordinator's …
    at_sites = [program for program in programs if b"wardround-site" in program or b"client.node" in program]
    assert at_sites == []  # … and at no site
