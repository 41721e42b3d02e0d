"""The round loop against clients that misbehave, stay away, or are too few."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid

from tests.support import contract
from tests.support.runs import bare_record, history
from tests.support.tampering import (
    CONTINUE,
    shared,
    tampering,
    training_as,
    with_tensors,
    with_value,
)
from tests.support.tiny import Make, write_texts
from wardround.client.app import app as honest_app
from wardround.common.errors import DIVERGED, BadAnswer, NoAnswer, RunFailed
from wardround.common.model.flat import Layout, model_sha256
from wardround.common.settings.tree import Settings
from wardround.common.tasks.label import label_sums
from wardround.common.wire.arrays import Payload
from wardround.common.wire.codec import (
    content_of,
    pack_hello,
    pack_notice,
    unpack_notice,
    unpack_request,
)
from wardround.common.wire.deadlines import KEPT_SECONDS, LATE_SECONDS
from wardround.common.wire.messages import HELLO, NOTICE, TRAIN, Update
from wardround.server.app import conduct
from wardround.server.deployment.status import read_open_round
from wardround.server.engines.local_grid import LocalGrid
from wardround.server.report.run import load_run
from wardround.server.rounds.broadcast import Broadcast
from wardround.server.rounds.clients import Answer, GridClients, Request
from wardround.server.rounds.members import Member
from wardround.server.rounds.state import RoundState
from wardround.server.run_folder import RunFolder


def not_finite(update: Update) -> Update:
    return with_value(update, float("nan"))


def doubled(update: Update) -> np.ndarray:
    """Return the tensors twice, one after the other."""
    return np.concatenate([shared(update), shared(update)])


def in_form(update: Update, form: str) -> Update:
    """Return the update with plain tensors under the name of another form."""
    return replace(update, payload=Payload(form, {"shared": shared(update)}))


def with_test_sums(update: Update, loss_sum: float, confusion: np.ndarray) -> Update:
    """Return the update with these sums of its held-out texts."""
    return replace(update, test=label_sums(loss_sum, confusion))


def run_on(grid: Grid, settings: Settings) -> None:
    """Run over the clients of a grid."""
    conduct(GridClients(grid), settings)


def ask(grid: Grid, content: RecordDict, kind: str) -> Answer:
    """Ask the first node of a grid, and wait five seconds for its answer."""
    node_id, *_ = grid.get_node_ids()
    (answer,) = GridClients(grid).ask([Request(node_id, content)], kind, 0, 5)
    return answer


BAD_UPDATES: dict[str, tuple[Callable[[Update], Update], str]] = {
    "nan": (lambda update: with_value(update, float("nan")), "not finite"),
    "infinite": (lambda update: with_value(update, float("inf")), "not finite"),
    "huge": (lambda update: with_value(update, 1e20), DIVERGED),
    "old round": (
        lambda update: replace(update, round=update.round - 1),
        "round 0",
    ),
    "other model": (lambda update: replace(update, layout="0" * 64), "shapes"),
    "too long": (lambda update: with_tensors(update, doubled(update)), "shapes"),
    "too short": (lambda update: with_tensors(update, shared(update)[:-1]), "shapes"),
    "other type": (
        lambda update: with_tensors(update, shared(update).astype(np.float64)),
        "float64",
    ),
    "other form": (lambda update: in_form(update, "zip"), "'zip'"),
    "false form": (lambda update: in_form(update, "exact"), "'widths'"),
    "no examples": (lambda update: replace(update, num_examples=0), r"\b0 examples"),
    "negative": (lambda update: replace(update, num_examples=-16), "-16 examples"),
    "absurd": (
        lambda update: replace(update, num_examples=10**9),
        "1000000000 examples",
    ),
    "no step": (lambda update: replace(update, num_steps=0), r"\b0 optimiser steps"),
    "endless steps": (
        lambda update: replace(update, num_steps=2**40),
        "optimiser steps",
    ),
    "loss that is no number": (
        lambda update: replace(update, loss=float("nan")),
        "loss of nan",
    ),
    "absurd loss": (lambda update: replace(update, loss=1e308), r"loss of 1e\+308"),
    "absurd test loss": (
        lambda update: with_test_sums(update, -1e308, np.ones((3, 3), dtype=np.int64)),
        r"loss of -1e\+308",
    ),
    "endless": (lambda update: replace(update, seconds=float("inf")), "inf s"),
    "other labels": (
        lambda update: with_test_sums(update, 1.0, np.ones((2, 2), dtype=np.int64)),
        "2 labels.* 3",
    ),
    "nothing held out": (
        lambda update: with_test_sums(update, 0.0, np.zeros((3, 3), dtype=np.int64)),
        r"\b0 held-out examples",
    ),
    "absurd counts": (
        lambda update: with_test_sums(update, 1.0, np.full((3, 3), 2**62)),
        "held-out examples",
    ),
}
"""By kind: the change of an honest update, and a fact of the refusal."""


@pytest.mark.parametrize("kind", BAD_UPDATES)
def test_a_bad_update_ends_the_run_and_names_the_client(
    make_settings: Make, kind: str
) -> None:
    change, reason = BAD_UPDATES[kind]
    settings = make_settings("num_rounds=1")
    with pytest.raises(RunFailed, match=f"round 1: client 1: .*{reason}"):
        run_on(LocalGrid(tampering(change), 3), settings)
    status = RunFolder(Path(settings.run_dir)).status()
    assert status["state"] == "failed"
    assert "client 1" in status["reason"]


def test_a_bad_update_is_left_out_of_the_mean(
    make_settings: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = make_settings("num_rounds=2", CONTINUE)
    run_on(LocalGrid(tampering(not_finite), 3), settings)
    lines = history(Path(settings.run_dir))
    clients = [[entry["client"] for entry in line["clients"]] for line in lines]
    assert clients == [[], [0, 2], [0, 2]]
    assert lines[1]["train"]["num_examples"] == 32
    assert "left_out" not in lines[0]
    live = read_open_round(RunFolder(Path(settings.run_dir)))
    assert live is not None
    for line, warning in zip(lines[1:], live.warnings, strict=True):
        (left_out,) = line["left_out"]
        assert left_out["client"] == 1
        assert "not finite" in left_out["reason"]
        name = f"round {line['round']}: client 1"
        assert warning.startswith(f"{name}: {left_out['reason']}")
    assert lines[1]["bytes"]["up"] * 3 == lines[1]["bytes"]["down"] * 2
    assert live.warnings[0] in capsys.readouterr().err


def test_sites_of_a_simulation_have_the_names_of_their_files(
    make_settings: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "sites"
    folder.mkdir()
    for seed, name in enumerate(("ward_7", "lakeside", "st_marys")):
        write_texts(folder / f"{name}.csv", 12, seed)
    settings = make_settings(
        f"data.path={folder}", "partition=by_site", "num_rounds=1", CONTINUE
    )
    run_on(LocalGrid(tampering(not_finite), 3), settings)
    run = RunFolder(Path(settings.run_dir))
    initial, line = history(run.path)
    # By name of the file: lakeside is client 0, st_marys client 1.
    named = [(entry["client"], entry["site"]) for entry in line["clients"]]
    assert named == [(0, "lakeside"), (2, "ward_7")]
    (left_out,) = line.pop("left_out")
    reason = left_out.pop("reason")
    assert left_out == {"client": 1, "site": "st_marys"}
    for each in (initial, line):
        contract.check_history_line(each, of_sites=True)
    live = read_open_round(run)
    assert live is not None
    assert live.answered == ("lakeside", "ward_7")
    assert list(live.missing) == ["st_marys"]
    (warning,) = live.warnings
    assert warning.startswith(f"round 1: st_marys: {reason}")
    assert warning in capsys.readouterr().err
    assert list(load_run(run.path).clients["name"]) == ["lakeside", "ward_7"]


def test_a_simulated_site_that_fails_ends_the_run_by_its_name(
    make_settings: Make, tmp_path: Path
) -> None:
    folder = tmp_path / "sites"
    folder.mkdir()
    for seed, name in enumerate(("north", "south", "west")):
        write_texts(folder / f"{name}.csv", 12, seed)
    settings = make_settings(f"data.path={folder}", "partition=by_site", "num_rounds=1")
    with pytest.raises(RunFailed, match="round 1: south: "):
        run_on(LocalGrid(tampering(not_finite), 3), settings)
    # Under another partition the files are not clients.
    mixed = make_settings(
        f"data.path={folder}", f"run_dir={tmp_path / 'mixed'}", "num_rounds=1"
    )
    with pytest.raises(RunFailed, match="round 1: client 1: "):
        run_on(LocalGrid(tampering(not_finite), 3), mixed)


@pytest.mark.parametrize("words", [[], [CONTINUE]], ids=["fail", "continue"])
def test_a_refused_client_receives_the_reason(
    make_settings: Make, words: list[str]
) -> None:
    notices: list[str] = []
    app = tampering(lambda update: replace(update, num_examples=-1))

    @app.query("notice")
    def notice(message: Message, context: Context) -> Message:
        assert context.node_config["partition-id"] == 1
        notices.append(unpack_notice(message.content))
        return Message(RecordDict(), reply_to=message)

    with suppress(RunFailed):
        run_on(LocalGrid(app, 3), make_settings("num_rounds=1", *words))
    (text,) = notices
    assert text.startswith("round 1: ")
    assert "-1 examples" in text
    assert "16" in text


def test_answers_can_be_fetched_after_a_round_but_no_client_begins_work(
    make_settings: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = LocalGrid(honest_app, 1)
    (node_id,) = grid.get_node_ids()
    hello = pack_hello(make_settings())
    pushed: list[Message] = []
    push = grid.push_messages

    def note(messages: Iterable[Message]) -> Iterable[str]:
        pushed.extend(messages)
        return push(pushed)

    monkeypatch.setattr(grid, "push_messages", note)
    assert isinstance(ask(grid, hello, HELLO), RecordDict)
    assert pushed[0].metadata.ttl == 5 + LATE_SECONDS
    context = grid.contexts[node_id]
    context.node_config = {"site-file": "nowhere.yaml"}
    late = Message(hello, node_id, HELLO, ttl=LATE_SECONDS - 1)
    with pytest.raises(NoAnswer) as refused:
        content_of(honest_app(late, context))
    assert refused.value.code == "late"


def test_a_reply_that_flower_cannot_read_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(ids: Iterable[str]) -> Iterable[Message]:
        raise IndexError("list index out of range")

    grid = LocalGrid(honest_app, 1)
    monkeypatch.setattr(grid, "pull_messages", broken)
    answer = ask(grid, pack_notice("?"), NOTICE)
    assert isinstance(answer, BadAnswer)
    assert "IndexError" in str(answer)


@pytest.mark.parametrize(("alone", "is_whole"), [(0.0, False), (KEPT_SECONDS, True)])
def test_a_client_left_alone_too_long_receives_the_whole_tensors(
    make_settings: Make, alone: float, is_whole: bool
) -> None:
    layout = Layout.of({"weight": (4096,)})
    before, after = (
        RoundState(layout, tensors, bare_record(number, model_sha256(layout, tensors)))
        for number, tensors in enumerate(
            (torch.zeros(4096), torch.full((4096,), 1e-44))
        )
    )
    clients = Recording(LocalGrid(honest_app, 1))
    member = Member(0, "alpha", 2, 10)
    broadcast = Broadcast(clients, make_settings())
    broadcast.note_held(member, before.version, time.monotonic() - alone)
    after = replace(after, step=broadcast.step_from(before, after))
    list(broadcast.ask([member], after, TRAIN, 2))
    (request,) = clients.requests
    assert unpack_request(request.content).base == ("" if is_whole else before.version)


def test_a_notice_reaches_the_clients_log(caplog: pytest.LogCaptureFixture) -> None:
    grid = LocalGrid(honest_app, 1)
    assert isinstance(ask(grid, pack_notice("round 1: no"), NOTICE), RecordDict)
    assert '"round 1: no"' in caplog.text


def test_too_few_updates_end_the_run(make_settings: Make) -> None:
    settings = make_settings(CONTINUE, "strategy.min_sites=3")
    with pytest.raises(RunFailed, match=r"round 1: 2 .*strategy\.min_sites.* 3"):
        run_on(LocalGrid(tampering(not_finite), 3), settings)


def test_a_client_that_fails_is_named_but_its_texts_are_not(
    make_settings: Make,
) -> None:
    def train(message: Message, context: Context) -> Message:
        message.content.config_records["task"]["settings"] = '{"secret": "patient 17"}'
        return honest_app(message, context)

    with pytest.raises(RunFailed, match="round 1: client 0: ") as caught:
        run_on(LocalGrid(training_as(train), 3), make_settings())
    assert "patient" not in str(caught.value)


class Recording(GridClients):
    """Keeps the requests."""

    def ask(
        self, requests: Iterable[Request], kind: str, round: int, timeout: float
    ) -> Iterator[Answer]:
        self.requests = list(requests)
        return iter([RecordDict()] * len(self.requests))


class SilentGrid(LocalGrid):
    """One client never answers, or some never connect."""

    def __init__(self, silent: int | None, missing: int = 0) -> None:
        super().__init__(honest_app, 3)
        self.silent, self.missing = silent, missing

    def get_node_ids(self) -> Iterable[int]:
        return list(super().get_node_ids())[self.missing :]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        answered = []
        for message_id in message_ids:
            message = self._waiting.get(message_id)
            is_train = message is not None and message.metadata.message_type == "train"
            if message is None or not (
                is_train and message.metadata.dst_node_id == self.silent
            ):
                answered.append(message_id)
        return super().pull_messages(answered)


def test_a_silent_client_ends_the_run_after_the_timeout(make_settings: Make) -> None:
    settings = make_settings("num_rounds=1", "strategy.round_timeout_seconds=0.3")
    with pytest.raises(RunFailed, match=r"round 1: client 0: .*0\.3 s"):
        run_on(SilentGrid(silent=2), settings)


def test_the_other_answers_count_after_the_timeout(make_settings: Make) -> None:
    settings = make_settings(
        "num_rounds=1", "strategy.round_timeout_seconds=0.3", CONTINUE
    )
    run_on(SilentGrid(silent=2), settings)
    (last,) = history(Path(settings.run_dir))[1:]
    assert [entry["client"] for entry in last["clients"]] == [1, 2]


def test_clients_that_never_connect_end_the_run(make_settings: Make) -> None:
    settings = make_settings("strategy.wait_seconds=0.2")
    with pytest.raises(
        RunFailed, match=r"2 of 3 .*strategy\.wait_seconds=0\.2.* num_clients=2"
    ):
        run_on(SilentGrid(silent=None, missing=1), settings)


def test_a_model_that_diverged_is_not_kept(make_settings: Make) -> None:
    """One step: the training loss is finite, but the weights after it are absurd."""
    settings = make_settings(
        "num_clients=1",
        "train.batch_size=48",
        "train.local_epochs=1",
        "train.learning_rate=1e30",
    )
    folder = RunFolder(Path(settings.run_dir))
    with pytest.raises(RunFailed, match=f"round 1: client 0: .*: {DIVERGED}"):
        run_on(LocalGrid(honest_app, 1), settings)
    assert folder.status()["state"] == "failed"
    assert [line["round"] for line in history(folder.path)] == [0]
    kept = folder.load_checkpoint()
    assert kept is not None
    assert kept.record.round == 0
