"""A site executes its approved plan, over TLS, although the server asks for more."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import RecordDict

from tests.e2e.federation import Federation
from tests.e2e.processes import PATIENCE, wait_for
from tests.e2e.runs import JOIN_SECONDS, RUN_SECONDS, words_of
from tests.support.hostile_models import change_tokenizer, copy_of
from tests.support.hostile_settings import HOSTILE, hostile, with_changes
from tests.support.join_world import World, joined_world
from tests.support.site_door import site_command
from tests.support.site_lab import WIDE
from tests.support.tiny import write_model, write_texts
from wardround.client.policy.limits import Policy
from wardround.client.policy.rules import RULES
from wardround.client.site import RealSite
from wardround.common.credentials import new_key, public_line
from wardround.common.model.flat import Layout, model_sha256, tensor_of
from wardround.common.model.state import open_model
from wardround.common.settings.tree import Settings
from wardround.common.tasks.label import LABEL
from wardround.common.wire.codec import pack_hello, pack_requests, unpack_update
from wardround.common.wire.forms import decode, whole
from wardround.common.wire.messages import EVALUATE, TRAIN, TrainRequest
from wardround.common.wire.objects import record_objects, sizes
from wardround.common.wire.signing import (
    MODEL,
    PLAN,
    RUN,
    RunStatement,
    open_envelope,
    open_plan,
    payload_digest,
    read_statement,
    sign,
)
from wardround.server.deployment.folder import signing_key
from wardround.server.deployment.plan import plan_id
from wardround.server.run_folder import RunFolder

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)]

NUM_ROUNDS = 3
LABELS = ("health", "money", "sport")
LIMITS = replace(
    WIDE,
    max_answers=50,
    min_batch_size=4,
    min_max_length=16,
    counts=False,
    forms=("exact",),
    labels=LABELS,
    frozen="embeddings",
    control_variates=False,
)


BY_HAND = replace(LIMITS, approve="by_hand", max_step_ratio=10.0, min_changed_texts=50)


class Room:
    """A site that has joined, and a server that says what it likes."""

    def __init__(self, world: World) -> None:
        self.world = world
        size = {
            "num_rounds": NUM_ROUNDS,
            "evaluation.where": "server",
            "train.local_epochs": 1,
        }
        size |= {"train.frozen": "embeddings"}
        self.base = with_changes(world.settings, size)
        self.last: RecordDict = RecordDict()
        """The newest answer."""
        self._open_start()

    def _open_start(self) -> None:
        site = RealSite(self.world.site)
        state = open_model(site.localise(self.base), LABELS, fresh=True)
        self.layout: Layout = state.layout
        self.start: np.ndarray = state.flat.detach().cpu().clone().numpy()

    def change_seed(self) -> None:
        """From now on the plans are others than before, and so is their start."""
        self.base = with_changes(self.base, {"seed": self.base.seed + 1})
        self._open_start()

    @property
    def folder(self) -> Path:
        """Of the site."""
        return self.world.folder

    def plan(self, settings: Settings | None = None, **changed: Any) -> str:
        """The server goes by another plan from now on; returns its SHA-256."""
        said = (self.base if settings is None else settings).to_dict()
        self.world.plan(**({"settings": said} | changed))
        return payload_digest(self.world.fleet.plan_envelope)

    def approved_plan(self) -> str:
        """A plan that waited, and was approved by hand; returns its SHA-256."""
        digest = self.plan()
        assert self.hello() == "plan_pending"
        self.site("approve", digest)
        return digest

    def hello(self) -> str:
        """What comes of a greeting: a code, or `card`."""
        return self._outcome(self.world.hello())

    def ask(
        self,
        round: int,
        tensors: np.ndarray | None = None,
        kind: str = TRAIN,
        **task: Any,
    ) -> str:
        """What comes of a task: a code, or what the answer holds."""
        numbers = self.start if tensors is None else tensors
        version = model_sha256(self.layout, tensor_of(numbers))
        said = TrainRequest(round, self.layout.digest, whole(numbers), None, version)
        content = pack_requests(replace(said, **task), [0])[0]
        fleet, key = self.world.fleet, self.world.key
        sent = fleet.ask(
            kind, content, key, change=lambda statement: replace(statement, round=round)
        )
        return self._outcome(sent)

    def _outcome(self, sent: Any) -> str:
        content = self.last = self.world.fleet.answer(sent, self.world.key)
        refusal = content.config_records.get("refusal")
        return (
            str(refusal["code"])
            if refusal
            else "update"
            if "update" in content
            else "card"
        )

    def trained(self, base: np.ndarray) -> np.ndarray:
        """Return the trained tensors of the newest answer, (P,) fp32. Args: base: sent model."""
        return decode(unpack_update(self.last, LABEL).payload, base)

    def restart(self) -> None:
        """End the site's program, and start it again."""
        self.world.processes[-1].terminate()
        self.world.processes[-1].wait(PATIENCE)
        self.world.join()

    def site(self, *words: str) -> str:
        """`wardround-site WORDS`; what it prints."""
        done = site_command(*words, "--site", "site.yaml", folder=self.folder)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def refused(self, *words: str) -> str:
        """What `wardround-site WORDS` says when it refuses."""
        done = site_command(*words, "--site", "site.yaml", folder=self.folder)
        assert done.returncode == 2, done.stdout
        return done.stderr


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Texts and a model."""
    root = tmp_path_factory.mktemp("plans")
    return write_texts(root / "texts.csv", 48, seed=0), write_model(
        root / "model", "bert"
    )


def joined(
    folder: Path, files: tuple[Path, Path], policy: Policy, **facts: Any
) -> Iterator[Room]:
    """At work under this policy. Args: facts: more of the `SiteFile`."""
    texts, model = files
    own = folder / "texts.csv"
    folder.mkdir(exist_ok=True)
    own.write_bytes(texts.read_bytes())
    with joined_world(folder, own, model, policy=policy, **facts) as world:
        world.join()
        yield Room(world)


@pytest.fixture(scope="module")
def site_by_hand(
    tmp_path_factory: pytest.TempPathFactory, files: tuple[Path, Path]
) -> Iterator[Room]:
    """A site whose people approve each plan, for all tests."""
    yield from joined(tmp_path_factory.mktemp("by_hand") / "site", files, BY_HAND)


@pytest.fixture
def by_hand(site_by_hand: Room) -> Room:
    """The same, with a plan that it has not seen."""
    site_by_hand.change_seed()
    return site_by_hand


@pytest.fixture(scope="module")
def standing(
    tmp_path_factory: pytest.TempPathFactory, files: tuple[Path, Path]
) -> Iterator[Room]:
    """A site that approves what lies inside its limits."""
    yield from joined(tmp_path_factory.mktemp("standing") / "site", files, LIMITS)


@pytest.mark.parametrize("key", HOSTILE)
def test_a_hostile_value_of_each_setting_is_refused_or_of_no_account(
    standing: Room, key: str
) -> None:
    """What is refused is refused at the greeting; what is not, leaves the texts what they are."""
    standing.plan(hostile(standing.base, key))
    rule = RULES[key]
    changes_nothing = rule.kind == "harmless" or "this site's own" in rule.describe(
        standing.world.limits
    )
    # The plan names fewer sites than clients, or is one of a simulation.
    others = (
        "num_clients",
        "strategy.min_sites",
        "strategy.on_missing",
        "personalisation.opt_out_clients",
    )
    if key in others:
        assert standing.hello() == "policy"
    elif key == "model.sha256":  # held against the file, when a round is to be trained
        assert standing.hello() == "card"
        assert standing.ask(1) == "another_model"
    elif changes_nothing:
        assert standing.world.num_examples() == 38
    else:
        assert standing.hello() == "policy"
        assert (
            key.removesuffix("_2") in standing.world.said()
        )  # of two betas the first is named


def test_nothing_is_done_before_people_have_decided(by_hand: Room) -> None:
    digest = by_hand.plan()
    assert by_hand.ask(1) == "plan_unknown"
    assert by_hand.hello() == "plan_pending"
    assert by_hand.ask(1) == "plan_pending"
    assert f"{digest[:12]}" in by_hand.site("plans")
    shown = by_hand.site("plan", digest[:6], "--all")
    for words in (
        "waits for your decision",
        "What leaves this site",
        "ok  train.batch_size = 32",
    ):
        assert words in shown
    by_hand.site("approve", digest[:6])
    assert by_hand.hello() == "card"
    assert by_hand.ask(1) == "update"


def test_another_plan_than_the_approved_one_waits(by_hand: Room) -> None:
    first = by_hand.plan()
    assert by_hand.hello() == "plan_pending"
    by_hand.site("approve", first[:12])
    more = with_changes(by_hand.base, {"train.local_epochs": 9})
    second = by_hand.plan(more, parent=first)
    assert by_hand.hello() == "plan_pending"
    assert by_hand.ask(1) == "plan_pending"
    assert "train.local_epochs: 1 -> 9" in by_hand.site("plan", second)
    by_hand.site("reject", second, "--why", "too often")
    assert by_hand.hello() == by_hand.ask(1) == "plan_rejected"
    assert "too often" not in json.dumps(
        [str(call) for call in by_hand.world.fleet.calls]
    )
    assert "Rejected because: too often" in by_hand.site("plan", second)


def test_an_approval_is_taken_back(by_hand: Room) -> None:
    digest = by_hand.approved_plan()
    assert by_hand.ask(1) == "update"
    by_hand.site("revoke", digest)
    assert by_hand.ask(2) == "plan_revoked"


@pytest.fixture
def alone(tmp_path: Path, files: tuple[Path, Path]) -> Iterator[Room]:
    """A site for one test, which changes its texts for good."""
    yield from joined(tmp_path / "site", files, BY_HAND)


def test_changed_texts_need_a_new_approval(alone: Room) -> None:
    digest = alone.approved_plan()
    assert alone.hello() == "card"
    own = alone.folder / "texts.csv"
    before = own.read_text()
    own.write_text(before + "one more text about money,money\n")
    assert alone.hello() == alone.ask(1) == "data_changed"
    alone.site("approve", digest)
    assert alone.ask(1) == "update"
    # Once a version was answered, one that differs by a few texts gets no answer at all.
    own.write_text(before)
    assert alone.ask(2, alone.trained(alone.start)) == "data_changed"
    assert "data_too_close" in alone.refused("approve", digest)
    more = "".join(f"text {number} about a loan,money\n" for number in range(50))
    own.write_text(before + more)
    alone.site("approve", digest)
    assert alone.hello() == "card"


def test_a_text_that_opts_out_is_left_out_from_the_next_round_on(
    tmp_path: Path, files: tuple[Path, Path]
) -> None:
    texts, model = files
    rows = texts.read_text().splitlines()
    marked = tmp_path / "marked.csv"
    marked.write_text(
        "\n".join([f"{rows[0]},out", *(f"{row},no" for row in rows[1:])]) + "\n"
    )
    limits = replace(LIMITS, approve="by_hand", min_changed_texts=50)
    for room in joined(
        tmp_path / "site", (marked, model), limits, opt_out_column="out"
    ):
        room.approved_plan()
        assert room.ask(1) == "update"
        num_before = unpack_update(room.last, LABEL).num_examples
        second = room.trained(room.start)
        own = room.folder / "texts.csv"
        own.write_text(own.read_text().replace(",no", ",yes", 5))
        assert room.ask(1) == "update"  # what was stored
        assert unpack_update(room.last, LABEL).num_examples == num_before
        assert room.ask(2, second) == "update"
        assert (
            num_before - 5 <= unpack_update(room.last, LABEL).num_examples < num_before
        )


def test_a_round_is_answered_once(by_hand: Room) -> None:
    by_hand.approved_plan()
    assert by_hand.ask(0) == by_hand.ask(NUM_ROUNDS + 1) == "beyond_plan"
    assert by_hand.ask(1) == "update"
    first = sizes(record_objects(by_hand.last, {}))
    second = by_hand.trained(by_hand.start)
    for _ in range(4):
        assert by_hand.ask(1) == "update"
        assert sizes(record_objects(by_hand.last, {})) == first
    assert by_hand.ask(1, second) == "answered_otherwise"
    # A start of the program forgets nothing of it.
    by_hand.restart()
    assert by_hand.ask(1) == "update"
    assert sizes(record_objects(by_hand.last, {})) == first
    assert by_hand.ask(2, second) == "update"
    assert by_hand.ask(1) == "answer_lost"
    # What left and is not here any more is not trained again.
    (stored,) = (by_hand.folder / "state" / "answers").rglob("train-2.answer")
    stored.unlink()
    assert by_hand.ask(2, second) == "answer_lost"


def test_tensors_that_could_not_have_come_of_the_ones_before(by_hand: Room) -> None:
    by_hand.approved_plan()
    other = by_hand.start.copy()
    other[0] += 1e-3
    assert by_hand.ask(1, other) == "another_start"


def test_a_tensor_moves_no_further_than_the_site_itself_moves_it(by_hand: Room) -> None:
    """A bias of the head that is moved far silences all texts but those of one label."""
    by_hand.approved_plan()
    assert by_hand.ask(1) == "update"
    second = by_hand.trained(by_hand.start)
    crafted = torch.from_numpy(second.copy())
    by_hand.layout.views(crafted)["classifier.bias"][0] += 60
    assert by_hand.ask(2, crafted.numpy()) == "too_far"
    by_hand.restart()
    assert by_hand.ask(2, crafted.numpy()) == "too_far"
    assert by_hand.ask(2, second) == "answered_otherwise"


def test_a_site_that_comes_late_measures_itself_first(by_hand: Room) -> None:
    """Its own training on its own start, which is not sent, says how far a model may have come."""
    by_hand.approved_plan()
    far = torch.from_numpy(by_hand.start.copy())
    by_hand.layout.views(far)["classifier.bias"][0] += 60
    assert by_hand.ask(2, far.numpy()) == "too_far"
    assert by_hand.ask(3, by_hand.start) == "update"
    assert by_hand.ask(2, by_hand.start) == "answered_otherwise"


def test_plans_that_are_no_good(standing: Room) -> None:
    good = standing.base.to_dict()
    standing.plan(not_before=0.0, not_after=86_400.0)
    assert standing.hello() == "plan_over"
    standing.plan(sites={"another": standing.world.key})
    assert standing.hello() == "not_in_plan"
    standing.world.plan(settings={"no": "settings"})
    assert standing.world.fleet.refusal_of(standing.world.hello()) == "damaged"
    standing.world.plan(settings=good)
    plan, _ = open_plan(standing.world.fleet.plan_envelope, standing.world.coordinator)
    stranger: Any = new_key("signing")
    forged = sign(PLAN, plan, stranger)
    sent = standing.world.hello(envelope=lambda said: said | {"plan": forged})
    assert standing.world.fleet.refusal_of(sent) == "forged"
    # Signed, and another than the run's own.
    other = sign(
        PLAN,
        replace(plan, not_after=plan.not_after + 1),
        standing.world.fleet.coordinator,
    )
    sent = standing.world.hello(envelope=lambda said: said | {"plan": other})
    assert standing.world.fleet.refusal_of(sent) == "forged"
    assert standing.world.num_examples() == 38


def test_counts_do_not_leave_by_another_message(standing: Room) -> None:
    standing.plan(with_changes(standing.base, {"seed": 3}))
    assert standing.hello() == "card"
    assert standing.ask(0, kind=EVALUATE) == "policy"


def test_settings_that_a_message_brings_do_not_count(standing: Room) -> None:
    standing.plan(with_changes(standing.base, {"seed": 4}))
    fleet, key = standing.world.fleet, standing.world.key
    bad = with_changes(
        standing.base, {"data.train_examples": 1, "train.local_epochs": 999}
    )
    card = fleet.answer(fleet.ask("query", pack_hello(bad), key), key).config_records[
        "card"
    ]
    assert card["num_examples"] == 38
    site = RealSite(standing.world.site)
    state = open_model(
        site.localise(with_changes(standing.base, {"seed": 4})), LABELS, fresh=True
    )
    start = state.flat.detach().cpu().clone()
    version = model_sha256(state.layout, start)
    content = pack_requests(
        TrainRequest(1, state.layout.digest, whole(start.numpy()), bad, version), [0]
    )[0]
    update = unpack_update(fleet.answer(fleet.ask(TRAIN, content, key), key), LABEL)
    assert (update.num_examples, update.num_steps) == (38, 1)


# --- a whole federation ---------------------------------------------------------------


def test_two_hospitals_that_approve_by_hand(
    overrides: list[str], tiny_model: Path, tmp_path: Path
) -> None:
    federation = Federation(tmp_path / "federation")
    policy = replace(WIDE, approve="by_hand", min_sites=2)
    run_dir = tmp_path / "run"
    words = words_of(
        overrides, "num_clients=2", "num_rounds=1", "strategy.wait_seconds=240"
    )

    def site(name: str, *said: str) -> str:
        done = site_command(
            *said, "--site", "site.yaml", folder=federation.sites[name].folder
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def status() -> dict[str, Any]:
        code, text = federation.wardround(
            "status", str(run_dir), "--dir", str(federation.folder.path), "--json"
        )
        assert code == 0, text
        found: dict[str, Any] = json.loads(text)
        return found

    def said_by(name: str) -> str:
        found = RunFolder(run_dir).approvals().get(name)
        return found["code"] if found else "nothing"

    try:
        federation.up()
        for seed, name in enumerate(("alpha", "beta")):
            texts = write_texts(tmp_path / f"{name}.csv", 30, seed=seed)
            federation.join(
                federation.add_site(name, texts, model=tiny_model, policy=policy)
            )
        federation.wait_online("alpha", "beta", seconds=JOIN_SECONDS)
        process = federation.submit(*words, f"run_dir={run_dir}")
        wait_for(
            lambda: said_by("alpha") == said_by("beta") == "plan_pending",
            PATIENCE,
            "the sites to be asked",
        )
        digest = plan_id(run_dir)
        assert status()["approvals"]["beta"]["code"] == "plan_pending"
        assert "waits for your decision" in site("alpha", "plans")
        site("alpha", "approve", digest[:12])
        wait_for(lambda: said_by("alpha") == "", PATIENCE, "alpha to take part")
        assert said_by("beta") == "plan_pending"
        wait_for(
            lambda: "waits for the decision of beta" in process.text(),
            PATIENCE,
            "the coordinator to read whose decision is awaited",
        )
        site("beta", "approve", digest[:12])
        assert process.wait(RUN_SECONDS) == 0, process.text()
        assert status()["state"] == "finished"
        # The model names its sites, under the key that the coordinator signed for this plan.
        signed = json.loads((run_dir / "model" / "provenance.json").read_text())
        coordinator = public_line(signing_key(federation.folder))
        run = read_statement(
            RunStatement, open_envelope(signed["run"], RUN, [coordinator])
        )
        told = json.loads(open_envelope(signed["statement"], MODEL, [run.key]))
        assert told["plan"] == run.plan == digest
        assert set(told["sites"]) == {"alpha", "beta"}
        assert [tuple(update[:2]) for update in told["updates"]] == [
            (1, "alpha"),
            (1, "beta"),
        ]
        card = (run_dir / "model" / "README.md").read_text()
        assert digest in card
        assert told["sites"]["alpha"] in card
        # Each site proves for itself that this is what the plan it approved has made, file by file.
        for name in ("alpha", "beta"):
            said = site(name, "verify-model", "--model", str(run_dir / "model"))
            assert said.splitlines()[-1].startswith("verified: "), said
            assert "1 of this site are in it, of 1 that left" in said
        changed = change_tokenizer(copy_of(run_dir / "model", tmp_path / "changed"))
        words_to_alpha = (
            "verify-model",
            "--model",
            str(changed),
            "--site",
            "site.yaml",
        )
        done = site_command(*words_to_alpha, folder=federation.sites["alpha"].folder)
        assert (done.returncode, "changed: tokenizer.json" in done.stdout) == (
            1,
            True,
        ), done.stderr
        # More rounds are another plan, which says what it goes on from; one says no.
        more = [text for text in words if not text.startswith("num_rounds")]
        process = federation.submit(*more, "num_rounds=2", f"run_dir={run_dir}")
        wait_for(lambda: plan_id(run_dir) != digest, PATIENCE, "another plan")
        second = plan_id(run_dir)
        beta = federation.sites["beta"].program
        wait_for(lambda: second[:12] in beta.text(), PATIENCE, "beta to be asked")
        assert second[:12] in site("beta", "plans")
        assert f"Compared with plan {digest[:12]}" in site("beta", "plan", second)
        assert "num_rounds: 1 -> 2" in site("beta", "plan", second)
        site("beta", "reject", second, "--why", "one round was agreed on")
        assert process.wait(RUN_SECONDS) != 0
        assert (
            "beta cannot take part: its people have rejected the plan" in process.text()
        )
        assert "agreed on" not in process.text()
    finally:
        federation.close()
