"""SCAFFOLD has the numbers of the published algorithm and the traffic of FedAvg."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from math import inf, nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.support.runs import bare_record, hashes, history, measured
from tests.support.site_lab import make_site
from tests.support.tiny import Make, write_texts
from wardround.client.round import answer
from wardround.client.site import Kept, RealSite, SimulatedSite
from wardround.client.variates import Variates
from wardround.common.data.batches import training_steps
from wardround.common.errors import BadAnswer, RunFailed
from wardround.common.model.flat import tensors_to_flat
from wardround.common.model.state import open_model
from wardround.common.model.train import forward
from wardround.common.runtime import numpy_stream
from wardround.common.settings.tree import Settings
from wardround.common.wire.codec import check_answered
from wardround.common.wire.forms import whole as whole_payload
from wardround.common.wire.messages import TrainRequest
from wardround.server.app import conduct
from wardround.server.engines.simulate import simulate
from wardround.server.record import RoundRecord
from wardround.server.rounds.clients import Answer, Request
from wardround.server.rounds.members import Member, mean_steps
from wardround.server.run_folder import RunFolder

ON = "train.control_variates=true"
OFF = "train.control_variates=false"
LABELS = "data.label_names=[health,money,sport]"


# --- two clients with one weight each -------------------------------------------------

RATE = 0.25
# The loss of client i is CURVATURES[i] / 2 (y - OPTIMA[i])^2.
CURVATURES = (1.0, 3.0)
OPTIMA = (0.0, 4.0)


class Quadratics:
    """Clients with known gradients. Their variates are kept as in a run."""

    def __init__(
        self, settings: Settings, steps: tuple[int, int], weights: tuple[float, float]
    ) -> None:
        self.settings, self.steps, self.weights = settings, steps, weights
        self.sites = [SimulatedSite(0), SimulatedSite(1)]
        self.mean = float(np.dot(steps, weights) / sum(weights))
        self.x = np.zeros(1, dtype=np.float32)
        self.corrections: list[float] = []

    def round(self, number: int, *, corrected: bool = True) -> None:
        """Train both clients, and average."""
        mean_steps = self.mean if corrected and number > 1 else 0.0
        task = TrainRequest(number, "", whole_payload(self.x), mean_steps=mean_steps)
        trained, self.corrections = [], []
        for site, steps, curvature, optimum in zip(
            self.sites, self.steps, CURVATURES, OPTIMA, strict=True
        ):
            variates = Variates.open(task, self.settings, site, self.x, steps)
            assert not variates.is_lacking
            correction = np.zeros_like(self.x)
            if variates.correction is not None:
                correction = variates.correction
            y = self.x.copy()
            for _ in range(steps):
                y -= RATE * curvature * (y - optimum) + correction
            variates.keep(task.round, self.settings, site, self.x, y)
            trained.append(y)
            self.corrections.append(correction.item())
        self.x = np.average(trained, axis=0, weights=self.weights).astype(np.float32)


def test_control_variates_reach_the_optimum_and_fedavg_does_not(
    make_settings: Make,
) -> None:
    # The mean loss is smallest if 1 (x - 0) + 3 (x - 4) = 0: at 3.
    # After two steps the clients have (3/4)^2 x and 4 + (1/4)^2 (x - 4).
    # FedAvg stops if 2 x = 10/16 x + 60/16: at 30/11.
    for corrected, stop in ((False, 30 / 11), (True, 3.0)):
        clients = Quadratics(make_settings(ON), steps=(2, 2), weights=(1, 1))
        for number in range(1, 101):
            clients.round(number, corrected=corrected)
        assert clients.x.item() == pytest.approx(stop, abs=1e-5)


def test_equal_clients_take_the_steps_of_the_published_algorithm(
    make_settings: Make,
) -> None:
    """Karimireddy et al. 2020, algorithm 1 with option II and server step size 1.

    All clients take part in each round.
    """
    clients = Quadratics(make_settings(ON), steps=(2, 2), weights=(1, 1))
    x, c, own = 0.0, 0.0, [0.0, 0.0]
    for number in range(1, 21):
        models, variates = [], []
        for curvature, optimum, c_i in zip(CURVATURES, OPTIMA, own, strict=True):
            y = x
            for _ in range(2):
                y -= RATE * (curvature * (y - optimum) - c_i + c)
            models.append(y)
            variates.append(c_i - c + (x - y) / (2 * RATE))
        x += sum(y - x for y in models) / 2
        c += sum(new - old for new, old in zip(variates, own, strict=True)) / 2
        own = variates
        clients.round(number)
        assert clients.x.item() == pytest.approx(x, abs=1e-6)


def test_corrections_cancel_if_clients_take_unequal_steps(
    make_settings: Make,
) -> None:
    steps, weights = (2, 1), (1, 3)
    clients = Quadratics(make_settings(ON), steps=steps, weights=weights)
    for number in range(1, 101):
        clients.round(number)
        rows = zip(weights, steps, clients.corrections, strict=True)
        sums = [weight * k * correction for weight, k, correction in rows]
        assert sum(sums) == pytest.approx(0, abs=1e-5)
    # The corrections are not 0.
    assert sums[0] == pytest.approx(-2 * 36 / 11 * RATE, rel=1e-4)
    # A client counts by weight times steps, as in FedAvg.
    # 2 (x - 0) + 3 * 3 (x - 4) = 0 at 36/11.
    assert clients.x.item() == pytest.approx(36 / 11, abs=1e-4)


# --- a transformer --------------------------------------------------------------------

SKEWED = ("partition=label_sorted", "num_clients=2", "train.learning_rate=0.1")


def published(settings: Settings, num_rounds: int) -> torch.Tensor:
    """Return the global tensors after rounds of algorithm 1, (P,) fp32.

    The clients are equal, and there is no dropout.
    """
    clients = range(settings.num_clients)
    examples = [SimulatedSite(client).examples(settings) for client in clients]
    corpus = examples[0].corpus
    state = open_model(settings, corpus.label_names, fresh=True)
    model, rate = state.text_model.model.train(), settings.train.learning_rate
    x = state.flat.clone()
    c, own = torch.zeros_like(x), [torch.zeros_like(x) for _ in clients]
    for number in range(1, num_rounds + 1):
        models, variates = [], []
        for client in clients:
            state.load(x)
            order = numpy_stream(settings.seed, "shuffle", round=number, client=client)
            train, num_steps = examples[client].train, 0
            for (batch,) in training_steps(
                corpus.train, train, settings.train, order, state.device
            ):
                model.zero_grad()
                cross_entropy(forward(model, batch), batch.targets).backward()
                gradients = {
                    name: p.grad
                    for name, p in model.named_parameters()
                    if p.grad is not None
                }
                with torch.no_grad():
                    g = tensors_to_flat(state.layout, gradients)
                    state.flat.sub_(rate * (g - own[client] + c))
                num_steps += 1
            models.append(state.flat.clone())
            variates.append(own[client] - c + (x - models[-1]) / (num_steps * rate))
        x = torch.stack(models).mean(dim=0)
        changes = [new - old for new, old in zip(variates, own, strict=True)]
        c = c + torch.stack(changes).mean(dim=0)
        own = variates
    return x


def trained(run_dir: Path) -> torch.Tensor:
    """Return the global tensors of the newest checkpoint, joined."""
    checkpoint = RunFolder(run_dir).load_checkpoint()
    assert checkpoint is not None
    tensors = checkpoint.tensors
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)])


def test_a_run_takes_the_steps_of_the_published_algorithm(
    make_settings: Make, still_model: Path, tmp_path: Path
) -> None:
    common = (*SKEWED, f"model.name={still_model}", "num_rounds=3")
    settings = make_settings(*common, ON, f"run_dir={tmp_path / 'on'}")
    simulate(settings)
    simulate(make_settings(*common, f"run_dir={tmp_path / 'off'}"))
    expected = published(settings, 3)
    state = open_model(settings, SimulatedSite(0).examples(settings).corpus.label_names)
    views = state.layout.views(expected)
    flat = torch.cat([views[name].flatten() for name in sorted(views)])
    assert float((trained(tmp_path / "on") - flat).abs().max()) < 1e-5
    assert float((trained(tmp_path / "off") - flat).abs().max()) > 1e-3


def test_the_first_round_and_a_single_client_are_fedavg_bit_for_bit(
    make_settings: Make, tmp_path: Path
) -> None:
    for num_clients, num_same in ((1, 4), (2, 2)):
        off, on = (tmp_path / f"{name}{num_clients}" for name in ("off", "on"))
        words = (*SKEWED, f"num_clients={num_clients}")
        simulate(make_settings(*words, OFF, f"run_dir={off}"))
        simulate(make_settings(*words, ON, f"run_dir={on}"))
        assert same_rounds(on, off) == [number < num_same for number in range(4)]


def same_rounds(ours: Path, theirs: Path) -> list[bool]:
    """Return for each round if both runs have the same model."""
    pairs = zip(hashes(ours), hashes(theirs), strict=True)
    return [our_hash == their_hash for our_hash, their_hash in pairs]


def test_a_head_may_have_its_own_rate_and_a_warm_up(
    make_settings: Make, tmp_path: Path
) -> None:
    words = [
        "train.head_warmup_rounds=1",
        "train.head_learning_rate=0.2",
        "train.proximal_mu=0.1",
        "train.max_grad_norm=1",
        "train.weight_decay=0.01",
    ]
    simulate(make_settings(*SKEWED, *words, ON))
    assert len(set(hashes(tmp_path / "run"))) == 4
    # In round 1 neither the encoder nor its variates moved, only classifier and pooler.
    kept = np.load(tmp_path / "run" / "variates" / "client-00000-round-000001.npy")
    own = np.split(kept, 2)[1]
    assert 0 < np.count_nonzero(own) <= (3 * 16 + 3) + (16 * 16 + 16)


def test_adapters_are_corrected_from_round_two(
    make_settings: Make, tmp_path: Path
) -> None:
    on, off = tmp_path / "on", tmp_path / "off"
    words = (*SKEWED, "adapters=lora")
    simulate(make_settings(*words, OFF, f"run_dir={off}"))
    simulate(make_settings(*words, ON, f"run_dir={on}"))
    assert same_rounds(on, off) == [True, True, False, False]


@pytest.mark.parametrize(
    "more",
    [
        pytest.param((), id="equal", marks=pytest.mark.slow),
        pytest.param(("data.train_examples=47", "num_clients=3"), id="unequal"),
    ],
)
def test_a_stopped_run_continues_in_one_process_or_two(
    make_settings: Make, tmp_path: Path, more: tuple[str, ...]
) -> None:
    whole, parts, workers = (tmp_path / name for name in ("whole", "parts", "workers"))
    common = [*SKEWED, *more, ON, "num_rounds=4"]
    simulate(make_settings(*common, f"run_dir={whole}"))
    for rounds in (2, 4):
        simulate(make_settings(*common, f"run_dir={parts}", f"num_rounds={rounds}"))
    simulate(make_settings(*common, f"run_dir={workers}", "engine.workers=2"))
    assert measured(parts) == measured(whole)
    assert measured(workers) == measured(whole)
    assert not any(uncorrected(whole))


def warnings(run_dir: Path) -> list[str]:
    """Return the warnings since the last start of the run."""
    return list(json.loads((run_dir / "live.json").read_text())["warnings"])


def uncorrected(run_dir: Path) -> list[list[int]]:
    """Return the clients that lacked their variate, by round."""
    return [
        [client["client"] for client in line["clients"] if client.get("uncorrected")]
        for line in history(run_dir)
    ]


def test_after_a_lost_variate_all_variates_start_again_one_round_later(
    make_settings: Make, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    simulate(make_settings(*SKEWED, ON, "num_rounds=2"))
    (run / "variates" / "client-00001-round-000002.npy").unlink()
    simulate(make_settings(*SKEWED, ON, "num_rounds=5"))
    assert uncorrected(run) == [[], [], [], [1], [], []]
    assert warnings(run) == ["round 4: the control variates start anew"]


def test_the_server_sends_the_mean_of_steps_only_if_corrections_cancel() -> None:
    clients = [
        {"client": 0, "num_examples": 30, "num_steps": 8, "share": 0.75},
        {"client": 1, "num_examples": 10, "num_steps": 4, "share": 0.25},
    ]
    record = RoundRecord.read(json.dumps({"round": 3, "clients": clients}))
    members = [Member(0, "a", 10, 30), Member(1, "b", 11, 10)]
    weights = {0: 30.0, 1: 10.0}
    assert mean_steps(record, members, weights) == 0.75 * 8 + 0.25 * 4
    assert mean_steps(bare_record(0), members, weights) == 0
    grown = [Member(0, "a", 10, 31), members[1]]
    assert mean_steps(record, grown, weights) == 0
    assert mean_steps(record, members, {0: 1.0, 1: 1.0}) == 0
    assert mean_steps(record, members[:1], {0: 30.0}) == 0
    record.clients[1].uncorrected = True
    assert mean_steps(record, members, weights) == 0


# --- sites ----------------------------------------------------------------------------


class Sites:
    """Real sites in this process, without a wire."""

    approve_plans = False
    most_bytes = 0.0

    def __init__(self, sites: Mapping[str, RealSite]) -> None:
        self.sites = dict(sites)
        self.before: Callable[[int], None] = lambda round: None

    def online(self) -> Mapping[int, str]:
        """As in `Clients`."""
        return dict(enumerate(sorted(self.sites), 100))

    def ask(
        self, requests: Iterable[Request], kind: str, round: int, timeout: float
    ) -> Iterator[Answer]:
        """As in `Clients`."""
        self.before(round)
        names = self.online()
        for request in requests:
            try:
                site = self.sites[names[request.node_id]]
                found = answer(kind, request.content, lambda: site)  # noqa: B023
                yield check_answered(found.content)
            except BadAnswer as refusal:
                yield refusal

    def tell(self, request: Request, kind: str, round: int) -> None:
        """As in `Clients`."""


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Write one file for each site, with unequal numbers of texts."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for seed, (name, size) in enumerate({"alpha": 20, "beta": 36}.items()):
        write_texts(folder / f"{name}.csv", size, seed=seed)
    return folder


def sites_of(texts: Path, model: Path, *, keep: bool = True) -> Sites:
    """Return the sites of these files. With `keep` their memory keeps variates."""
    sites = {}
    for path in sorted(texts.glob("*.csv")):
        folder = texts.parent / "sites" / path.stem
        file = make_site(folder, 9092, path, name=path.stem, model=model)
        sites[path.stem] = RealSite(file, Kept() if keep else None)
    return Sites(sites)


def deployed(make_settings: Make, run_dir: Path, *more: str) -> Settings:
    """Return settings of a run over the two sites."""
    words = ("engine=deployment", "evaluation.where=sites", "num_clients=2", LABELS, ON)
    return make_settings(*words, "num_rounds=4", f"run_dir={run_dir}", *more)


def test_sites_give_the_numbers_of_the_simulation(
    make_settings: Make, tiny_model: Path, texts: Path, tmp_path: Path
) -> None:
    conduct(
        sites_of(texts, tiny_model),
        deployed(make_settings, tmp_path / "sites_run"),
        dict.fromkeys(("alpha", "beta")),
    )
    words = (
        "evaluation.where=sites",
        LABELS,
        ON,
        f"data.path={texts}",
        "data.test_path=null",
        "partition=by_site",
        "data.split_seed=0",
        "num_rounds=4",
        "num_clients=2",
    )
    simulate(make_settings(*words))
    assert hashes(tmp_path / "sites_run") == hashes(tmp_path / "run")
    assert len(set(hashes(tmp_path / "run"))) == 5
    # The variates are only in the memory of a site.
    assert list((tmp_path / "sites").rglob("*.npy")) == []


def test_a_restarted_site_costs_one_round_without_corrections(
    make_settings: Make, tiny_model: Path, texts: Path, tmp_path: Path
) -> None:
    sites = sites_of(texts, tiny_model)

    def restart(round: int) -> None:
        if round == 2:
            sites.sites["beta"] = RealSite(sites.sites["beta"].file, Kept())

    sites.before = restart
    conduct(
        sites,
        deployed(make_settings, tmp_path / "run"),
        dict.fromkeys(("alpha", "beta")),
    )
    assert uncorrected(tmp_path / "run") == [[], [], [1], [], []]
    assert warnings(tmp_path / "run") == ["round 3: the control variates start anew"]


def test_a_site_that_keeps_no_variates_ends_the_run(
    make_settings: Make,
    tiny_model: Path,
    texts: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    sites = sites_of(texts, tiny_model, keep=False)
    with pytest.raises(RunFailed, match="round 1: alpha: "):
        conduct(
            sites,
            deployed(make_settings, tmp_path / "run"),
            dict.fromkeys(("alpha", "beta")),
        )
    assert "wardround-site" in caplog.text
    assert "set train.control_variates=false" in caplog.text


@pytest.mark.parametrize("claimed", [nan, inf, -inf, -1.0, 1e-300, 3.9])
def test_an_impossible_mean_of_steps_is_refused(
    make_settings: Make, claimed: float
) -> None:
    # One of two clients takes 8 steps here: the mean is at least 4.
    x = np.zeros(4, dtype=np.float32)
    settings = make_settings(ON, "num_clients=2")

    def open_with(mean_steps: float) -> None:
        task = TrainRequest(2, "", whole_payload(x), mean_steps=mean_steps)
        Variates.open(task, settings, SimulatedSite(0), x, 8)

    expected = (
        rf"mean of {re.escape(str(claimed))} .*8 here and num_clients=2 .*impossible"
    )
    with pytest.raises(ValueError, match=expected):
        open_with(claimed)
    open_with(4.0)


@pytest.mark.parametrize(
    ("override", "problem", "step"),
    [
        (
            "train.optimizer=adamw",
            "train.optimizer is 'adamw'",
            "train.optimizer=sgd",
        ),
        (
            "train.schedule=linear",
            "train.schedule is 'linear'",
            "train.schedule=constant",
        ),
        (
            "train.head_init=per_site",
            "train.head_init is 'per_site'",
            "train.head_init=shared",
        ),
        (
            "strategy.on_missing=continue",
            "strategy.on_missing is 'continue'",
            "strategy.on_missing=fail",
        ),
        (
            "strategy.on_excess=clip",
            "strategy.on_excess is 'clip'",
            "strategy.on_excess=refuse",
        ),
        (
            "strategy.optimizer=adam",
            "strategy.optimizer is 'adam'",
            "strategy.optimizer=sgd",
        ),
        (
            "strategy.server_learning_rate=2",
            "strategy.server_learning_rate is 2",
            "strategy.server_learning_rate=1",
        ),
        (
            "strategy.server_momentum=0.9",
            "strategy.server_momentum is 0.9",
            "strategy.server_momentum=0",
        ),
        (
            "transforms=int8",
            "transforms.name is 'int8'",
            "transforms.name=exact",
        ),
    ],
)
def test_conflicting_settings_are_refused(
    make_settings: Make, override: str, problem: str, step: str
) -> None:
    beside = {
        "train.schedule": "train.schedule_rounds=3",
        "strategy.optimizer": "strategy.server_learning_rate=0.1",
    }
    more = [word for key, word in beside.items() if override.startswith(key)]
    make_settings(override, *more)
    expected = rf"{re.escape(problem)}.*Set {re.escape(step)}, or {re.escape(OFF)}"
    with pytest.raises(ValueError, match=expected):
        make_settings(override, *more, ON)


def test_settings_of_older_runs_have_no_control_variates(make_settings: Make) -> None:
    values: dict[str, Any] = make_settings().to_dict()
    del values["train"]["control_variates"]
    assert Settings.from_dict(values) == make_settings()
