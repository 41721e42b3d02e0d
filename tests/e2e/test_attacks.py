"""Attacks by a registered site and by strangers, over real processes. All of them fail.

All tests share one federation: alpha and beta are honest, mallory is registered and
hostile, and a run is active.
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
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict
from flwr.proto.fab_pb2 import GetFabRequest
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
    RegisterNodeFleetRequest,
    UnregisterNodeFleetRequest,
)
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ObjectTree,
    PullObjectRequest,
    PushObjectRequest,
)
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest
from safetensors.numpy import load_file

from tests.e2e.federation import Federation
from tests.e2e.hostile import (
    HostileSite,
    Tamper,
    honest,
    hostile_site,
    num_numbers,
    push_objects,
)
from tests.e2e.processes import PATIENCE, Process, command_line, wait_for
from tests.e2e.runs import EVEN, JOIN_SECONDS, LABELS, RUN_SECONDS, lines
from tests.support.tiny import write_model, write_texts
from wardround.client.node.connection import Connection, Letter
from wardround.client.site_file import load_site_file
from wardround.common.credentials import new_key, pem_of, write_key_pair
from wardround.common.errors import Refused
from wardround.common.tasks.label import LABEL, label_sums
from wardround.common.wire.codec import (
    pack_introduction,
    pack_update,
    unpack_introduction,
    unpack_update,
)
from wardround.common.wire.forms import whole
from wardround.common.wire.messages import HELLO, TRAIN
from wardround.common.wire.objects import Object, content_object, make_object
from wardround.server.deployment import superlink
from wardround.server.deployment.calls import CALLS_PER_KEY, MOST_MESSAGE_BYTES
from wardround.server.deployment.folder import signing_key
from wardround.server.deployment.servicer import SPARE_BYTES, UP_TO_DOWN
from wardround.server.deployment.sites import unregister_site
from wardround.server.deployment.submit import settings_to_submit, stage_app
from wardround.server.deployment.ticket import write_ticket

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)]

MALLORY = 2
"""Her number in the run; alpha is 0 and beta 1."""
ROUND_SECONDS = 20
MOST_NORM = 1000.0


@dataclass
class Ward:
    """A federation with a run under way."""

    federation: Federation
    mallory: HostileSite
    process: Process
    run_dir: Path

    def rounds(self, number: int = 2) -> list[dict[str, Any]]:
        """The next rounds, whose questions are not sent yet. Alpha and beta are in all of them."""
        before = len(lines(self.run_dir)) + 1

        def look() -> bool:
            assert self.process.is_alive(), self.process.text()
            return len(lines(self.run_dir)) >= before + number

        wait_for(look, 120 + number * ROUND_SECONDS, f"{number} rounds")
        found = lines(self.run_dir)[before : before + number]
        assert all({0, 1} <= set(taken(line)) for line in found)
        return found

    def round_of_all(self) -> dict[str, Any]:
        """The next round with mallory in it: after a silence a site is greeted ever more rarely."""
        for _ in range(60):
            (line,) = self.rounds(1)
            if MALLORY in taken(line):
                return line
        raise AssertionError("mallory was not taken again")

    def refused(self, name: str = "mallory") -> dict[str, int]:
        """Refused calls of a site, by reason. The server writes them four times a second."""
        return self.federation.node_states()[name].refused

    def wait_refused(self, reason: str, least: int, name: str = "mallory") -> None:
        """Return once so many calls of a site were refused for this reason."""
        wait_for(
            lambda: self.refused(name).get(reason, 0) >= least,
            PATIENCE,
            f"{least} refusals: {reason}",
        )


def taken(line: dict[str, Any]) -> list[int]:
    """Whose updates are in the mean."""
    return [client["client"] for client in line["clients"]]


def reasons(found: list[dict[str, Any]]) -> list[str]:
    """Why mallory's answers were left out of these rounds."""
    return [
        left["reason"]
        for line in found
        for left in line.get("left_out", [])
        if left["client"] == MALLORY
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
        mallory = stack.enter_context(
            hostile_site(federation.sites["mallory"].site_file, honest)
        )
        federation.wait_online("alpha", "beta", "mallory", seconds=JOIN_SECONDS)
        process = federation.submit(*words(model, root / "run"))
        made = Ward(federation, mallory, process, root / "run")
        made.rounds(1)
        yield made


def words(model: Path, run_dir: Path) -> list[str]:
    """A run without an end."""
    return [
        *(
            "model=hf",
            f"model.name={model}",
            "data=files",
            LABELS,
            "evaluation.where=sites",
        ),
        *(
            "device=cpu",
            "threads=1",
            EVEN,
            "train.batch_size=4",
            "train.max_length=16",
            "num_clients=3",
        ),
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

    return Letter(wait_for(look, PATIENCE, f"{name} to be asked"))


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
    alpha_key = pem_of(
        " ".join(ward.federation.sites["alpha"].public_key.read_text().split()[:2])
    )
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
            PullObjectRequest(
                node=connection.node, run_id=others.run_id, object_id=others.message_id
            ),
        ),
        (
            "ConfirmMessageReceived",
            ConfirmMessageReceivedRequest(
                node=connection.node,
                run_id=others.run_id,
                message_object_id=others.message_id,
            ),
        ),
        (
            "PushObject",
            PushObjectRequest(
                node=connection.node,
                run_id=own.run_id,
                object_id="0" * 64,
                object_content=b"x",
            ),
        ),
        (
            "ActivateNode",
            ActivateNodeRequest(public_key=alpha_key, heartbeat_interval=30),
        ),
        ("DeactivateNode", DeactivateNodeRequest(node_id=alpha)),
    ]
    for name, request in attempts:
        with pytest.raises(Refused) as refused:
            connection.call(name, request)
        assert refused.value.why in ("dropped", "other_node"), (
            name,
            refused.value.detail,
        )
    ward.rounds()
    counts = ward.refused()
    assert counts["not_its_own"] >= 9
    assert counts["other_node"] >= 3


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("RecordDict", b"\xff\xfe no json"),
        ("RecordDict", b'{"a": 1}'),
        ("Array", b"{}"),
    ],
)
def test_an_answer_that_nobody_can_read_is_refused(
    ward: Ward, kind: str, body: bytes
) -> None:
    """Finding 5: it ended any run."""
    inner = make_object(kind, body)
    ward.mallory.push = lambda letter, *_: push_objects(
        ward.mallory.connection, letter, inner
    )
    assert "its answer does not count: damaged" in reasons(ward.rounds())


def test_an_old_answer_and_one_with_another_signature_do_not_count(ward: Ward) -> None:
    mallory, (key, old) = ward.mallory, (ward.mallory._key, ward.mallory.pushed[-1])
    mallory.push = lambda letter, content, seconds: mallory.push_honestly(
        letter, old, seconds
    )
    assert "its answer does not count: unasked" in reasons(ward.rounds())
    mallory.push = mallory.push_honestly
    mallory._key = new_key("signing")  # type: ignore[assignment]
    try:
        assert "its answer does not count: forged" in reasons(ward.rounds())
    finally:
        mallory._key = key
    refused = ward.federation.root.parent / "run" / "refused.json"
    assert '"unasked"' in refused.read_text()
    assert '"forged"' in refused.read_text()
    code, said = ward.federation.wardround(
        "status", "--dir", str(ward.federation.folder.path)
    )
    assert (code, "refused answers of mallory: " in said) == (0, True), said


def test_an_answer_that_trickles_in_keeps_the_rounds_bound(ward: Ward) -> None:
    """Finding 6: one object each few minutes held a round for hours."""
    inner = make_object(
        "RecordDict", b"{}", [make_object("ArrayRecord", bytes([n])) for n in range(5)]
    )
    ward.mallory.push = lambda letter, *_: push_objects(
        ward.mallory.connection, letter, inner, pause=5
    )
    started = time.monotonic()
    assert f"no answer within {ROUND_SECONDS} s" in reasons(ward.rounds())
    assert time.monotonic() - started < 10 * ROUND_SECONDS


def test_a_newcomer_that_says_nothing_holds_nobody_up(ward: Ward) -> None:
    def silent(kind: str, content: RecordDict) -> RecordDict:
        if kind == HELLO:
            time.sleep(12)
            return content
        update = unpack_update(content, LABEL)
        return pack_update(
            type(update)(**(vars(update) | {"num_examples": 7}))
        )  # asked to introduce itself

    ward.mallory.tamper = silent
    ward.rounds(6)


def test_one_site_cannot_own_the_model(ward: Ward) -> None:
    """Finding 4: weights up to 2^40 and norms up to 1e15 were taken."""

    def far_off(kind: str, content: RecordDict) -> RecordDict:
        if kind != TRAIN:
            return content
        update = unpack_update(content, LABEL)
        values = np.full(num_numbers(update.payload), 1e5, np.float32)
        return pack_update(type(update)(**(vars(update) | {"payload": whole(values)})))

    line = ward.round_of_all()
    assert all(client["share"] <= 0.4 + 1e-9 for client in line["clients"])
    assert all(client["update_norm"] < MOST_NORM for client in line["clients"])
    ward.mallory.tamper = far_off
    said = reasons(ward.rounds())
    assert any("its update has" in why for why in said), said


def flooding(num_bytes: int) -> Tamper:
    """An update of so many bytes, in pieces of different content."""
    payload = whole(np.arange(num_bytes // 4, dtype=np.float32))

    def flood(kind: str, content: RecordDict) -> RecordDict:
        if kind != TRAIN:
            return content
        update = unpack_update(content, LABEL)
        return pack_update(type(update)(**(vars(update) | {"payload": payload})))

    return flood


def test_more_than_a_site_may_send_is_refused(ward: Ward) -> None:
    ward.round_of_all()
    ward.mallory.tamper = flooding(120 * 2**20)
    assert reasons(ward.rounds())
    ward.wait_refused("too_much", 1)


def test_what_a_site_may_send_does_not_grow_with_the_rounds(ward: Ward) -> None:
    """It was four times all that it had fetched in the run: 34 GiB for one answer in round 20."""
    model_bytes = 4 * len(
        np.concatenate([array.ravel() for array in tensors_of(ward).values()])
    )
    ward.rounds(max(0, 40 - len(lines(ward.run_dir))))
    before = ward.refused().get("too_much", 0)
    ward.round_of_all()
    ward.mallory.tamper = flooding(SPARE_BYTES + UP_TO_DOWN * model_bytes + 2**20)
    assert reasons(ward.rounds())
    ward.wait_refused("too_much", before + 1)


def tensors_of(ward: Ward) -> dict[str, np.ndarray]:
    """Of the tiny model."""
    return load_file(ward.run_dir.parent / "model" / "model.safetensors")


def test_a_small_tree_stands_for_no_more_objects_than_it_holds(ward: Ward) -> None:
    """Each level names the one below twice: 24 levels in 3.4 kB are 16 million objects."""
    mallory = ward.mallory

    def push(letter: Letter, *_: Any) -> None:
        tree = doubling(24)
        assert len(tree.SerializeToString()) < 3500
        message = letter.reply()
        message.metadata.message_id = tree.object_id
        message.content.SetInParent()
        request = PushMessagesRequest(
            node=mallory.connection.node,
            messages_list=[message],
            message_object_trees=[tree],
        )
        mallory.connection.call("PushMessages", request)

    ward.round_of_all()
    (server,) = ward.federation.processes(program="wardround.server.deployment.fleet")[
        :1
    ]
    Path(f"/proc/{server}/clear_refs").write_text("5")  # its peak counts from now on
    memory, started = memory_of(server, "VmHWM"), time.monotonic()
    mallory.push = push
    ward.rounds(2)
    ward.wait_refused("no_answer", 2)
    assert memory_of(server, "VmHWM") - memory < 100 * 1024
    assert time.monotonic() - started < 4 * ROUND_SECONDS


def doubling(depth: int) -> ObjectTree:
    """A tree of so many levels, each of which names the one below twice."""
    tree = ObjectTree(object_id=hashlib.sha256(b"0").hexdigest())
    for level in range(1, depth):
        below = ObjectTree(object_id=tree.object_id)
        tree = ObjectTree(
            object_id=hashlib.sha256(b"%d" % level).hexdigest(), children=[tree, below]
        )
    return tree


def memory_of(pid: int, what: str) -> int:
    """A row of a process's status, in KiB."""
    rows = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(row.split()[1]) for row in rows if row.startswith(f"{what}:"))


def test_calls_without_a_body_hold_nobody_up(ward: Ward, tmp_path: Path) -> None:
    """64 of 96 calls held all the server's slots for 90 s; all others were told to come back."""
    texts = write_texts(tmp_path / "bystander.csv", 24, seed=9)
    bystander = ward.federation.add_site(
        "bystander", texts
    )  # registered, and not of the run
    site = load_site_file(bystander.site_file)
    never = Event()

    def nothing() -> Iterator[bytes]:
        never.wait(300)
        yield b""

    with ExitStack() as stack:
        connections = [stack.enter_context(Connection(site)) for _ in range(3)]
        wait_for(
            lambda: is_let_in(connections[0]), PATIENCE, "the bystander to be let in"
        )
        calls = [
            connection._channel.stream_unary("/flwr.proto.Fleet/PullMessages").future(
                nothing(), metadata=connection._credentials()
            )
            for connection in connections
            for _ in range(32)
        ]
        found = ward.rounds(3)
        assert not any(line.get("left_out") for line in found)
        ward.wait_refused("too_many_calls", len(calls) - CALLS_PER_KEY, "bystander")
        never.set()


def is_let_in(connection: Connection) -> bool:
    """Whether the server knows its key."""
    try:
        connection.ask_if_registered(5)
    except Refused:
        return False
    return True


def test_what_no_site_asks_for_is_offered_to_none(ward: Ward) -> None:
    """The run's config once held all settings, the coordinator's paths and all sites' names."""
    letter, connection = ward.mallory.letters[-1], ward.mallory.connection
    for name, request in (
        ("GetRun", GetRunRequest(node=connection.node, run_id=letter.run_id)),
        (
            "GetFab",
            GetFabRequest(
                node=connection.node, run_id=letter.run_id, hash_str="0" * 64
            ),
        ),
        ("RegisterNode", RegisterNodeFleetRequest(public_key=connection._public)),
        ("UnregisterNode", UnregisterNodeFleetRequest(node_id=connection.node.node_id)),
    ):
        with pytest.raises(Refused, match="not_offered"):
            connection.call(name, request)
    ward.wait_refused("not_offered", 4)


def test_a_site_opens_no_port_and_shows_no_secret(ward: Ward) -> None:
    """Finding 9: a loopback port gave out tasks, and a token stood on a command line."""
    pids = ward.federation.processes("alpha")
    assert len(pids) >= 2
    for pid in pids:
        sockets = {
            str(fd.readlink())
            for fd in Path(f"/proc/{pid}/fd").iterdir()
            if fd.is_symlink()
        }
        for table in ("tcp", "tcp6"):
            for row in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
                state, inode = row.split()[3], row.split()[9]
                assert state != "0A" or f"socket:[{inode}]" not in sockets, (
                    command_line(pid)
                )
        assert not any(
            word in command_line(pid) for word in ("token", "PRIVATE", "--key")
        )


def test_two_hundred_strangers_cost_little_memory(ward: Ward, tmp_path: Path) -> None:
    """Finding 7: gRPC buffered messages of 2 GiB before any check."""
    site = load_site_file(ward.federation.sites["alpha"].site_file)
    write_key_pair(
        new_key("node"),
        tmp_path / "stranger.key",
        tmp_path / "stranger.pub",
        "stranger",
    )
    request = PushObjectRequest(
        object_id="0" * 64, object_content=bytes(MOST_MESSAGE_BYTES - 1024)
    )

    def knock(_: int) -> str:
        with Connection(
            type(site)(**(vars(site) | {"private_key": tmp_path / "stranger.key"}))
        ) as stranger:
            try:
                stranger.call("PushObject", request, 20)
            except Exception as error:
                return str(error)
        return "let in"

    with ThreadPoolExecutor(200) as callers:
        said = list(callers.map(knock, range(200)))
    assert "let in" not in said
    assert sum("unknown_key" in text for text in said) > 20, said[:5]
    (server,) = ward.federation.processes(program="wardround.server.deployment.fleet")[
        :1
    ]
    peak = memory_of(server, "VmHWM")
    assert peak < 512 * 1024, f"{peak / 1024:.0f} MiB"
    with pytest.raises(Exception, match=r"RESOURCE_EXHAUSTED|larger than max"):
        ward.mallory.connection.call(
            "PushObject",
            PushObjectRequest(object_content=bytes(MOST_MESSAGE_BYTES + 1)),
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
            written = (
                written[:at]
                + dice.randbytes(dice.choice((0, 1, 1, 40)))
                + written[at + length :]
            )
        return Object(
            hashlib.sha256(written).hexdigest(), len(written), children, lambda: written
        )

    return rebuilt(root)


def test_claimed_texts_that_nobody_can_have_do_not_count(ward: Ward) -> None:
    """2^40 held-out texts, all of them right, made the pooled accuracy 1 and any round the best."""
    claimed = 2**40

    def counting(kind: str, content: RecordDict) -> RecordDict:
        update = unpack_update(content, LABEL)
        assert update.test is not None
        sure = np.diag([claimed - 2, 1, 1]).astype(np.int64)
        return pack_update(replace(update, test=label_sums(update.test.loss_sum, sure)))

    def introducing(kind: str, content: RecordDict) -> RecordDict:
        if kind == HELLO:
            return pack_introduction(
                replace(unpack_introduction(content), num_held_out=claimed)
            )
        return pack_update(
            replace(unpack_update(content, LABEL), num_examples=7)
        )  # to be greeted anew

    ward.round_of_all()
    ward.mallory.tamper = counting
    said = reasons(ward.rounds())
    assert any(f"{claimed} held-out examples" in why for why in said), said
    ward.mallory.tamper = introducing

    def is_refused() -> bool:
        approvals = json.loads((ward.run_dir / "approvals.json").read_text())
        return f"{claimed} held-out examples" in approvals["mallory"]["words"]

    wait_for(is_refused, 10 * ROUND_SECONDS, "mallory's card to be refused")
    assert all(line["test"]["num_examples"] < 300 for line in lines(ward.run_dir))


def test_who_is_unregistered_is_out_at_once(ward: Ward) -> None:
    unregister_site(ward.federation.folder, "mallory")
    wait_for(
        lambda: "mallory" not in ward.federation.node_states(),
        PATIENCE,
        "the site to be forgotten",
    )
    with pytest.raises(Refused) as refused:
        ward.mallory.connection.call(
            "PullMessages", PullMessagesRequest(node=ward.mallory.connection.node)
        )
    assert refused.value.why == "unknown_key"
    assert MALLORY not in taken(ward.rounds()[-1])


MARK = """
import pathlib
import wardround.client.app
import wardround.server.app
client = wardround.client.app.app
server = wardround.server.app.app
with pathlib.Path({mark!r}).open("ab") as mark:
    mark.write(pathlib.Path("/proc/self/cmdline").read_bytes() + b"\\n")
"""


def test_the_servers_bundle_runs_at_no_site(ward: Ward, tmp_path: Path) -> None:
    """Finding 2: a bundle's code ran with the rights of the site's user."""
    ward.federation.signal(signal.SIGTERM, program="submit")
    ward.process.wait(PATIENCE)
    mark = tmp_path / "was-here"
    app = stage_app(tmp_path / "app")
    (app / "mallory.py").write_text(MARK.format(mark=str(mark)), encoding="utf-8")
    project = (app / "pyproject.toml").read_text(encoding="utf-8")
    for ours, theirs in (
        ('["LICENSE"]', '["LICENSE", "mallory.py"]'),
        ('"wardround.server.app:app"', '"mallory:server"'),
        ('"wardround.client.app:app"', '"mallory:client"'),
    ):
        assert ours in project
        project = project.replace(ours, theirs)
    (app / "pyproject.toml").write_text(project, encoding="utf-8")
    folder = ward.federation.folder
    run_dir = tmp_path / "run"
    shorter = [
        "num_rounds=3",
        "num_clients=2",
        "strategy.max_share=null",
        f"run_dir={run_dir}",
    ]
    changed = {word.split("=")[0] for word in shorter}
    longer = words(ward.run_dir.parent / "model", run_dir)
    kept = [word for word in longer if word.split("=")[0] not in changed]
    settings = settings_to_submit([*kept, *shorter])
    sites = {name: folder.sites()[name] for name in ("alpha", "beta")}
    config = {"ticket": write_ticket(folder, settings, sites, signing_key(folder))}
    run_id = superlink.start_run(folder, app, config)
    wait_for(
        lambda: superlink.run_state(folder, run_id).has_ended,
        RUN_SECONDS,
        "the run to end",
    )
    assert superlink.run_state(folder, run_id).status == "finished:completed"
    assert [taken(line) for line in lines(run_dir)[1:]] == [[0, 1]] * 3
    programs = mark.read_bytes().splitlines()
    assert any(
        b"flwr-serverapp" in program for program in programs
    )  # it runs at the coordinator's …
    at_sites = [
        program
        for program in programs
        if b"wardround-site" in program or b"wardround.client.node" in program
    ]
    assert at_sites == []  # … and at no site
