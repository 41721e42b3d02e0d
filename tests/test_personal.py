"""Personal models: the mixture, the choice, opting out, and the command of a site."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from studies.personal import table
from tests.support.door import contents, wardround
from tests.support.runs import PowerCut, hashes, measured
from tests.support.site_door import site_command
from tests.support.tiny import Make, write_texts
from tests.test_sites import write_site
from wardround.client.kit.personalise import personalise
from wardround.client.personaliser import Personaliser, load_released, texts_of_clients
from wardround.client.site_file import load_site_file
from wardround.common.data.corpus import forget_corpora
from wardround.common.data.partitions import deal_alike
from wardround.common.errors import MissingColumn
from wardround.common.model.mixture import GATE, load_mixture, new_gate
from wardround.common.model.state import open_model
from wardround.common.personal_record import (
    Candidate,
    Measure,
    PersonalRecord,
    SiteRecord,
    choose,
)
from wardround.common.settings.tree import Settings
from wardround.common.tasks.label import LABEL, label_sums
from wardround.common.tasks.sums import Sums
from wardround.server.engines.simulate import simulate
from wardround.server.run_folder import RunFolder

SIZES = {"alpha": 36, "beta": 60, "gamma": 45}
LEARN = [
    "train.optimizer=adamw",
    "train.learning_rate=0.01",
    "train.batch_size=8",
    "num_rounds=2",
]


@pytest.fixture
def site_files(tmp_path: Path) -> Path:
    """One file of texts for each of three sites."""
    folder = tmp_path / "data"
    folder.mkdir()
    for number, (name, size) in enumerate(SIZES.items()):
        write_texts(folder / f"{name}.csv", size, seed=number)
    return folder


@pytest.fixture
def by_site(make_settings: Make, site_files: Path, tmp_path: Path) -> Make:
    """Settings of a run over these files; half of the held-out texts are for the choice."""

    def make(*more: str) -> Settings:
        return make_settings(
            "partition=by_site",
            "evaluation.where=sites",
            "evaluation.validation_fraction=0.5",
            "data.test_path=null",
            "data.test_fraction=0.4",
            "data.split_seed=0",
            *LEARN,
            f"data.path={site_files}",
            *more,
        )

    return make


def opt_out(file: Path, rows: set[int]) -> None:
    """Give a file of texts a column that is true in these rows, counted from 0."""
    header, *lines = file.read_text().splitlines()
    wishes = ["yes" if row in rows else "no" for row in range(len(lines))]
    marked = [f"{line},{wish}" for line, wish in zip(lines, wishes, strict=True)]
    file.write_text("\n".join([f"{header},keep_out", *marked]) + "\n")


def without(file: Path, rows: set[int]) -> None:
    """Remove these rows from a file of texts."""
    header, *lines = file.read_text().splitlines()
    kept = [line for row, line in enumerate(lines) if row not in rows]
    file.write_text("\n".join([header, *kept]) + "\n")


# --- numbers -------------------------------------------------------------------------


def test_intervals_of_measures_are_those_of_wilson_and_of_fixed_draws() -> None:
    counts = label_sums(0.0, np.array([[4, 1], [1, 4]]))
    # Wilson (1927) for 8 of 10: (0.8 + z²/20 ± z √(0.016 + z²/400)) / (1 + z²/10), z = 1.96
    found = LABEL.intervals(counts)
    assert found["accuracy"] == pytest.approx((0.4902, 0.9433), abs=1e-4)
    low, high = found["macro_f1"]
    assert low < LABEL.metrics(counts)["macro_f1"] < high
    assert LABEL.intervals(counts) == found  # the same draws each time
    all_right = LABEL.intervals(label_sums(0.0, np.diag([5, 5])))
    assert all_right["accuracy"] == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert all_right["macro_f1"] == (1.0, 1.0)
    for number in range(1, 200):
        for right in (0, number):
            counts = label_sums(0.0, np.array([[right, number - right], [0, 0]]))
            low, high = LABEL.intervals(counts)["accuracy"]
            assert 0 <= low <= high <= 1


def candidate(
    validation_accuracy: float, accuracy: float = 0.5, loss: float | None = None
) -> Candidate:
    one = Measure.model_validate(
        {
            "num_examples": 10,
            "accuracy": accuracy,
            "accuracy_interval": (0, 1),
            "macro_f1": 0.5,
            "macro_f1_interval": (0, 1),
        }
    )
    return Candidate(
        epoch=0, validation_accuracy=validation_accuracy, validation_loss=loss, test=one
    )


def test_the_choice_is_by_validation_accuracy_then_loss_then_simplicity() -> None:
    by_accuracy = {
        "local": candidate(0.8),
        "mixture": candidate(0.9, 0.1),
        "global": candidate(0.7),
    }
    assert choose(by_accuracy, LABEL) == "mixture"
    by_loss = {"global": candidate(0.8, loss=0.6), "local": candidate(0.8, 0.1, 0.5)}
    assert choose(by_loss | {"mixture": candidate(0.7, loss=0.1)}, LABEL) == "local"
    same = {
        name: candidate(0.8) for name in ("local", "mixture", "fine_tuned", "global")
    }
    order = []
    while same:
        order.append(choose(same, LABEL))
        del same[order[-1]]
    assert order == ["global", "fine_tuned", "mixture", "local"]


def test_held_out_texts_are_dealt_as_the_training_texts_are() -> None:
    # Label 0: clients train on 3 and 1 texts, and get 3 and 1 of the 4 held out.
    # Label 1 belongs to client 1; no client has label 2.
    train_labels = np.array([0, 0, 0, 0, 1])
    labels = np.array([0, 1, 0, 2, 0, 1, 0])
    parts = [np.array([0, 1, 2]), np.array([3, 4])]
    dealt = deal_alike(parts, train_labels, labels, np.arange(7))
    assert [part.tolist() for part in dealt] == [[0, 2, 4], [1, 5, 6]]


def test_a_client_of_a_skewed_partition_is_judged_on_its_own_labels(
    make_settings: Make,
) -> None:
    skewed = (
        "partition=label_sorted",
        "evaluation.where=sites",
        "evaluation.validation_fraction=0.5",
    )
    own = texts_of_clients(make_settings(*skewed, "personalisation.everyone=true"))
    assert [set(site.train.targets.tolist()) for site in own] == [{0}, {1}, {2}]
    held_out = [
        set(site.test.targets.tolist()) | set(site.validation.targets.tolist())
        for site in own
    ]
    assert held_out == [{0}, {1}, {2}]
    assert sum(len(site.test) + len(site.validation) for site in own) == 30
    assert own[0].everyone is not None
    assert len(own[0].everyone) == sum(len(site.test) for site in own)


# --- training ------------------------------------------------------------------------


def test_the_best_weights_are_kept_if_training_ruins_the_model(by_site: Make) -> None:
    """If the step size ruins every model at once, the starting weights are kept."""
    settings = by_site("personalisation=all", "num_rounds=1")
    simulate(replace(settings, personalisation=by_site().personalisation))
    ruinous = replace(
        settings, personalisation=replace(settings.personalisation, learning_rate=50.0)
    )
    maker = Personaliser(
        ruinous, ("health", "money", "sport"), Path(settings.run_dir) / "model"
    )
    own = texts_of_clients(ruinous)[0]
    start = open_model(ruinous, ("health", "money", "sport"), fresh=True).flat.clone()
    for method, flat in (
        ("fine_tuned", maker.released),
        ("local", start),
        ("mixture", maker.released),
    ):
        found, weights = maker._candidate(method, own)
        assert found.epoch == 0
        views = maker._state.layout.views(flat)
        prefix = "local." if method == "mixture" else ""
        assert all(
            torch.equal(weights[f"{prefix}{name}"], view)
            for name, view in views.items()
        ), method


def test_the_epoch_with_the_smallest_validation_loss_is_kept(
    by_site: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = by_site("personalisation=all", "num_rounds=1")
    simulate(replace(settings, personalisation=by_site().personalisation))
    maker = Personaliser(
        settings, ("health", "money", "sport"), Path(settings.run_dir) / "model"
    )
    own, losses = texts_of_clients(settings)[1], list[float]()
    measure = Personaliser._measure

    def noted(self: Personaliser, model: nn.Module, texts: Any) -> Sums:
        counts = measure(self, model, texts)
        if texts is own.validation:
            losses.append(counts.loss)
        return counts

    monkeypatch.setattr(Personaliser, "_measure", noted)
    for method in ("fine_tuned", "mixture", "local"):
        losses.clear()
        found, _ = maker._candidate(method, own)
        *by_epoch, at_end = losses
        assert len(by_epoch) == 1 + settings.personalisation.epochs
        assert found.epoch == int(np.argmin(by_epoch)) > 0
        # The weights are those of that epoch, bit for bit.
        assert at_end == min(by_epoch)


def test_a_folder_that_is_another_model_is_refused(
    by_site: Make, tiny_model: Path, tmp_path: Path
) -> None:
    layout = open_model(by_site(), ("health", "money", "sport"), fresh=True).layout
    with pytest.raises(ValueError, match=f"'{tiny_model}' .*classifier"):
        load_released(tiny_model, layout)  # it has no head
    with pytest.raises(ValueError, match=r"no model\.safetensors.* folder `model`"):
        load_released(tmp_path, layout)


# --- a simulation, and the site itself -----------------------------------------------


@pytest.mark.parametrize("method", ["fine_tuned", "mixture", "local", "all"])
def test_the_site_makes_the_models_of_the_simulation(
    method: str, by_site: Make, site_files: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """The model folder and the site's own file give the same files, bit for bit."""
    opt_out(site_files / "beta.csv", {3, 4, 11})
    for other in ("alpha", "gamma"):
        opt_out(site_files / f"{other}.csv", set())
    settings = by_site(
        f"personalisation={method}",
        "personalisation.keep_models=true",
        "personalisation.epochs=3",
        "personalisation.learning_rate=0.02",
        "data.opt_out_column=keep_out",
    )
    simulate(settings)
    run = Path(settings.run_dir)
    record = PersonalRecord.read(run)
    assert record is not None
    assert [site.name for site in record.sites] == list(SIZES)
    # Of beta's 60 texts 3 have opted out, 23 are held out.
    beta = record.sites[1]
    assert (beta.num_examples, beta.num_opted_out, beta.num_validation) == (37, 3, 12)
    forget_corpora()
    file = write_site(
        tmp_path,
        "beta",
        site_files / "beta.csv",
        model=tiny_model,
        test_fraction=0.4,
        opt_out_column="keep_out",
    )
    own = personalise(
        load_site_file(file),
        run / "model",
        tmp_path / "own",
        {"name": method},
        unverified=True,
    )
    assert own.model_sha256 == record.model_sha256
    assert own.sites == [beta]
    assert own.sites[0].chosen != "global"  # the global model would be no comparison
    assert method in (own.sites[0].chosen, "all")
    weights = {
        name: raw
        for name, raw in contents(tmp_path / "own").items()
        if name.endswith("safetensors")
    }
    assert weights
    assert weights == {
        name: raw
        for name, raw in contents(run / "personal" / "beta").items()
        if name.endswith("safetensors")
    }


def test_personal_models_change_nothing_of_the_run(
    by_site: Make, tmp_path: Path
) -> None:
    """The rounds, their bytes and the model stay the same, also if it is done later."""
    plain, personal = by_site(f"run_dir={tmp_path / 'a'}"), f"run_dir={tmp_path / 'b'}"
    simulate(plain)
    simulate(by_site("personalisation=mixture", personal))
    assert measured(tmp_path / "a") == measured(tmp_path / "b")
    assert not (tmp_path / "a" / "personal.json").exists()
    # Models are kept only if the settings ask for them.
    assert not (tmp_path / "b" / "personal").exists()
    simulate(by_site("personalisation=mixture", f"run_dir={tmp_path / 'a'}"))
    assert PersonalRecord.read(tmp_path / "a") == PersonalRecord.read(tmp_path / "b")
    assert measured(tmp_path / "a") == measured(tmp_path / "b")


def test_a_run_with_adapters_can_be_personalised(by_site: Make) -> None:
    """Personal models have no adapters, and are trained without FedProx's pull."""
    settings = by_site(
        "adapters=lora",
        "personalisation=mixture",
        "train.proximal_mu=0.1",
        "num_rounds=1",
    )
    simulate(settings)
    record = PersonalRecord.read(Path(settings.run_dir))
    assert record is not None
    assert [set(site.candidates) for site in record.sites] == [
        {"global", "mixture"}
    ] * 3
    assert any(site.candidates["mixture"].epoch for site in record.sites)


def test_a_client_with_too_few_held_out_texts_is_left_out(
    make_settings: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    """A client with 1 held-out text has no second one to test with."""
    settings = make_settings(
        "evaluation.where=sites",
        "evaluation.validation_fraction=0.5",
        "personalisation=fine_tuned",
        "partition=label_sorted",
        "num_rounds=0",
        "data.test_examples=6",
    )
    simulate(settings)
    record = PersonalRecord.read(Path(settings.run_dir))
    assert record is not None
    left = [name for name in "012" if name not in [site.name for site in record.sites]]
    own = {site.owner: site for site in texts_of_clients(settings)}
    assert left == [
        name
        for name in "012"
        if not len(own[name].validation) or not len(own[name].test)
    ]
    printed = capsys.readouterr().err
    assert all(name in printed.split("personal models of client ")[1] for name in left)


def test_a_personalisation_continues_after_a_power_cut(
    by_site: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = (
        by_site("personalisation=all", f"run_dir={tmp_path / name}")
        for name in ("whole", "cut")
    )
    simulate(whole)
    work, done = Personaliser.personalise, list[str]()

    def until_second(self: Personaliser, own: Any) -> Any:
        if len(done) == 1:
            done.append("cut")
            raise PowerCut
        done.append(own.owner)
        return work(self, own)

    monkeypatch.setattr(Personaliser, "personalise", until_second)
    with pytest.raises(PowerCut):
        simulate(cut)
    before = PersonalRecord.read(tmp_path / "cut")
    assert before is not None
    assert [site.name for site in before.sites] == ["alpha"]
    status = tmp_path / "cut" / "status.json"
    assert json.loads(status.read_text())["state"] == "failed"
    simulate(cut)
    assert done == ["alpha", "cut", "beta", "gamma"]
    after = PersonalRecord.read(tmp_path / "cut")
    assert after == PersonalRecord.read(tmp_path / "whole")
    assert json.loads(status.read_text())["state"] == "finished"
    # With other settings, all models are made anew.
    done[:] = ["no", "more"]
    simulate(replace(cut, personalisation=replace(cut.personalisation, epochs=1)))
    assert done == ["no", "more", *SIZES]


def test_one_model_loads_in_transformers_and_a_mixture_with_its_loader(
    by_site: Make, tmp_path: Path
) -> None:
    from transformers import pipeline

    settings = by_site("personalisation=all", "num_rounds=1")
    simulate(settings)
    maker = Personaliser(
        settings, ("health", "money", "sport"), Path(settings.run_dir) / "model"
    )
    own = texts_of_clients(settings)[1]
    made = maker.personalise(own)
    for method in ("fine_tuned", "mixture"):
        _, weights = maker._candidate(method, own)
        chosen = made.record.model_copy(update={"chosen": method})
        maker.save(tmp_path / method, replace(made, record=chosen, weights=weights))
    text = "the doctor said a nurse was new today"
    (predicted,) = pipeline("text-classification", str(tmp_path / "fine_tuned"))(text)
    assert predicted["label"] in ("health", "money", "sport")
    tokenizer, mixture = load_mixture(str(tmp_path / "mixture"))
    with torch.no_grad():
        row = mixture(**tokenizer(text, return_tensors="pt")).logits.softmax(1)[0]
    done = wardround("predict", str(tmp_path / "mixture"), "--text", text)
    assert done.code == 0, done.err
    assert done.out.splitlines()[1].split(",")[2:] == [
        f"{value:.4f}" for value in row.tolist()
    ]
    released = load_file(Path(settings.run_dir) / "model" / "model.safetensors")
    frozen = load_file(tmp_path / "mixture" / "global" / "model.safetensors")
    assert all(torch.equal(frozen[name], released[name]) for name in released)
    trained = load_file(tmp_path / "mixture" / GATE)
    drawn = new_gate(16, 32, maker._seed("beta")).state_dict()
    assert not torch.equal(trained["2.bias"], drawn["2.bias"])


def test_bad_input_of_a_site_has_a_next_step(
    by_site: Make, site_files: Path, tiny_model: Path, tmp_path: Path
) -> None:
    settings = replace(
        by_site("num_rounds=0"),
        evaluation=replace(by_site().evaluation, validation_fraction=0.0),
    )
    simulate(settings)
    model = Path(settings.run_dir) / "model"
    site = load_site_file(
        write_site(
            tmp_path,
            "beta",
            site_files / "beta.csv",
            model=tiny_model,
            test_fraction=0.4,
        )
    )
    with pytest.raises(
        ValueError,
        match=r"evaluation\.validation_fraction.* --validation-fraction 0\.5",
    ):
        personalise(site, model, tmp_path / "out", {}, unverified=True)
    with pytest.raises(ValueError, match=r"personalisation\.learning_rate is -1"):
        personalise(
            site,
            model,
            tmp_path / "out",
            {"validation_fraction": 0.5, "learning_rate": -1.0},
            unverified=True,
        )
    with pytest.raises(ValueError, match=r"wardround\.json.*folder `model`"):
        personalise(site, tiny_model, tmp_path / "out", {}, unverified=True)
    (tmp_path / "there").mkdir()
    with pytest.raises(ValueError, match=r"--out is .*there'"):
        personalise(site, model, tmp_path / "there", {})
    asked = {"validation_fraction": 0.5, "name": "mixture", "epochs": 1}
    record = personalise(site, model, tmp_path / "out", asked, unverified=True)
    assert PersonalRecord.read(tmp_path / "out") == record
    assert set(record.sites[0].candidates) == {"global", "mixture"}


@pytest.mark.e2e
@pytest.mark.slow
def test_the_command_personalise_writes_results_and_refuses_a_second_time(
    by_site: Make, site_files: Path, tiny_model: Path, tmp_path: Path
) -> None:
    settings = by_site("num_rounds=0")
    simulate(settings)
    write_site(
        tmp_path, "beta", site_files / "beta.csv", model=tiny_model, test_fraction=0.4
    )
    words = (
        "personalise",
        "--site",
        "beta.yaml",
        "--model",
        f"{settings.run_dir}/model",
        "--out",
        "own",
    )
    done = site_command(
        *words, "--unverified", "--method", "mixture", "--epochs", "1", folder=tmp_path
    )
    assert done.returncode == 0, done.stderr
    record = PersonalRecord.read(tmp_path / "own")
    assert record is not None
    (row,) = record.rows("accuracy")
    assert done.stdout.startswith("beta: 36 texts")
    assert f"accuracy  global      {row[3]}" in done.stdout
    assert f"accuracy  mixture     {row[5]}" in done.stdout
    assert f"chosen: {record.sites[0].chosen}, in own" in done.stdout
    again = site_command(*words, folder=tmp_path)
    assert again.returncode == 2
    assert "--out is 'own'" in again.stderr


def test_the_model_folder_names_no_path(
    by_site: Make, site_files: Path, tiny_model: Path
) -> None:
    settings = by_site("num_rounds=0")
    simulate(settings)
    written = (Path(settings.run_dir) / "model" / "wardround.json").read_text()
    assert Settings.from_json(written).data.label_names == ("health", "money", "sport")
    for place in (site_files, tiny_model, settings.run_dir):
        assert str(place) not in written


# --- opting out ----------------------------------------------------------------------


def test_texts_that_opt_out_are_as_if_they_were_not_there(
    by_site: Make, site_files: Path, tmp_path: Path
) -> None:
    """Rounds and model are the same as without them. Only personal models train on them."""
    rows = {"alpha": {0, 5}, "beta": {1, 2, 30}, "gamma": set[int]()}
    bare = tmp_path / "bare"
    shutil.copytree(site_files, bare)
    for name, out in rows.items():
        without(bare / f"{name}.csv", out)
        opt_out(site_files / f"{name}.csv", out)
    bare_run, run, workers = (
        tmp_path / name for name in ("bare_run", "run", "workers")
    )
    asked = ("personalisation=fine_tuned", "data.opt_out_column=keep_out")
    simulate(
        by_site(
            f"data.path={bare}", "personalisation=fine_tuned", f"run_dir={bare_run}"
        )
    )
    simulate(by_site(*asked, f"run_dir={run}"))
    assert measured(run) == measured(bare_run)
    simulate(by_site(*asked, f"run_dir={workers}", "engine.workers=2"))
    assert hashes(workers) == hashes(run)
    with_them, without_them = PersonalRecord.read(run), PersonalRecord.read(bare_run)
    assert with_them is not None
    assert without_them is not None
    assert [site.num_opted_out for site in with_them.sites] == [2, 3, 0]
    alone = [site.num_examples for site in without_them.sites]
    together = [site.num_examples for site in with_them.sites]
    assert together == [alone[0] + 2, alone[1] + 3, alone[2]]
    assert with_them.sites[2] == without_them.sites[2]


def test_a_site_that_opts_out_takes_part_in_no_round_but_gets_a_personal_model(
    by_site: Make, site_files: Path, tmp_path: Path
) -> None:
    labels = "data.label_names=[health,money,sport]"
    gamma_out = ("personalisation=mixture", "personalisation.opt_out_clients=[2]")
    simulate(by_site(*gamma_out, labels))
    fewer = tmp_path / "fewer"
    shutil.copytree(site_files, fewer)
    (fewer / "gamma.csv").unlink()
    two = tmp_path / "two"
    simulate(by_site(f"data.path={fewer}", "num_clients=2", labels, f"run_dir={two}"))
    run = Path(by_site().run_dir)
    assert hashes(run) == hashes(two)
    assert measured(run) == measured(two)
    record = PersonalRecord.read(run)
    assert record is not None
    own = record.sites[2].num_examples
    assert [site.num_opted_out for site in record.sites] == [0, 0, own]
    assert "over\n2 client(s)" in (run / "model" / "README.md").read_text()


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_an_opt_out_column_must_hold_yes_or_no(
    kind: str, by_site: Make, tmp_path: Path
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from wardround.common.data.dataset import read_texts

    wishes = ["TRUE", "1", " yes ", "False", "0", "no", "", "false"]

    def write(values: list[Any]) -> Path:
        rows = [
            {"text": f"text {row}", "label": "ab"[row % 2], "out": wish}
            for row, wish in enumerate(values)
        ]
        file = tmp_path / f"texts.{kind}"
        if kind == "csv":
            lines = [",".join(str(value) for value in row.values()) for row in rows]
            file.write_text("\n".join(["text,label,out", *lines]) + "\n")
        elif kind == "jsonl":
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            pq.write_table(pa.Table.from_pylist(rows), file)
        return file

    data = replace(by_site().data, path=str(write(wishes)), opt_out_column="out")
    texts = read_texts(LABEL, data, seed=0)
    assert texts.opted_out.texts == ["text 0", "text 1", "text 2"]
    assert texts.opted_out.targets.tolist() == [0, 1, 0]
    assert len(texts.train) + len(texts.test) == 5
    if kind != "csv":
        typed = [True, 1, None, False, 0, None, False, False]
        write(typed if kind == "jsonl" else [bool(wish) for wish in typed])
        assert read_texts(LABEL, data, seed=0).opted_out.texts == ["text 0", "text 1"]
    write([*wishes[:-1], "maybe"])
    with pytest.raises(
        ValueError, match=r"(line|row) [89]: column 'out'.* data\.opt_out_column"
    ):
        read_texts(LABEL, data, seed=0)
    write(["yes"] * 8)
    with pytest.raises(ValueError, match=r"all 8 .* personalisation\.opt_out_clients"):
        read_texts(LABEL, data, seed=0)
    with pytest.raises(
        MissingColumn, match=r"no column 'opt'.*Set data\.opt_out_column"
    ):
        read_texts(LABEL, replace(data, opt_out_column="opt"), seed=0)


# --- settings ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["evaluation.validation_fraction=0"],
            r"evaluation\.validation_fraction is 0.* Set evaluation\.validation_fraction=0\.5",
        ),
        (
            ["evaluation.where=server"],
            r"evaluation\.where is server.* Set evaluation\.where=sites",
        ),
        (
            ["personalisation.opt_out_clients=[3]"],
            r"opt_out_clients is \[3\], .* 0 to 2",
        ),
        (
            ["personalisation.opt_out_clients=[0,1,2]"],
            r"opt_out_clients is \[0, 1, 2\].* at least 1 .*strategy\.min_sites",
        ),
        (
            ["personalisation.opt_out_clients=[0]", "strategy.min_sites=3"],
            r"opt_out_clients is \[0\].* at least 3 .*strategy\.min_sites",
        ),
        (
            ["partition=iid", "data.opt_out_column=x"],
            r"data\.opt_out_column is 'x'.* 'iid' .* Set partition=by_site",
        ),
        (["personalisation.epochs=0"], r"personalisation\.epochs is 0"),
        (
            [
                "engine=deployment",
                "personalisation.opt_out_clients=[0]",
                "data.label_names=[a,b]",
            ],
            r"opt_out_clients is \[0\].* set it to \[\]",
        ),
        (
            ["data=bbc_news", "data.opt_out_column=x", "data.path=null"],
            r"data\.opt_out_column.* Set data=files",
        ),
    ],
)
def test_impossible_settings_are_refused_with_a_next_step(
    words: list[str], message: str, by_site: Make
) -> None:
    with pytest.raises(ValueError, match=message):
        by_site("personalisation=mixture", *words)


def test_settings_of_an_earlier_version_are_read(by_site: Make) -> None:
    values = by_site().to_dict()
    del values["personalisation"]
    del values["data"]["opt_out_column"]
    assert Settings.from_dict(values) == by_site()


# --- status, report, study -----------------------------------------------------------


def test_report_and_status_show_each_client_and_name_the_worst(by_site: Make) -> None:
    settings = by_site("personalisation=all", "personalisation.epochs=1")
    simulate(settings)
    record = PersonalRecord.read(Path(settings.run_dir))
    assert record is not None
    row, *_, mean = record.rows("accuracy")
    assert row[:2] == ["alpha", str(record.sites[0].num_examples)]
    test = record.sites[0].candidates["mixture"].test
    accuracy = test.metric("accuracy")
    low, high = test.interval("accuracy")
    assert row[5] == f"{accuracy:.3f} ({low:.2f}–{high:.2f})"
    locals_ = [
        site.candidates["local"].test.metric("accuracy") for site in record.sites
    ]
    assert mean[:3] == ["mean", "", f"{sum(locals_) / 3:.3f}"]
    worst = record.worst(LABEL)
    lowest = min(
        site.candidates[site.chosen].test.metric("accuracy") for site in record.sites
    )
    assert worst.candidates[worst.chosen].test.metric("accuracy") == lowest
    printed = wardround("status", settings.run_dir).out
    assert f"worst off: {worst.name}" in printed
    assert f"alpha: local {row[2]}, global {row[3]}" in printed
    as_json = json.loads(wardround("status", settings.run_dir, "--json").out)
    assert as_json["personal"] == json.loads(
        (Path(settings.run_dir) / "personal.json").read_text()
    )
    assert wardround("report", settings.run_dir).code == 0
    page = (Path(settings.run_dir) / "report" / "index.html").read_text()
    assert f"least accuracy is {worst.name}" in page
    assert row[5] in page


def test_the_study_groups_runs_that_differ_only_in_the_seed(
    tmp_path: Path, by_site: Make
) -> None:
    for seed, accuracies in ((0, (0.5, 0.7)), (1, (0.9, 0.9))):
        settings = by_site(
            "personalisation=mixture", f"seed={seed}", f"run_dir={tmp_path / str(seed)}"
        )
        sites = [
            SiteRecord(
                name=str(number),
                num_examples=9,
                num_opted_out=0,
                num_validation=9,
                candidates={
                    "global": candidate(0.1, 0.4),
                    "mixture": candidate(0.9, accuracy),
                },
                chosen="mixture",
            )
            for number, accuracy in enumerate(accuracies)
        ]
        record = PersonalRecord(
            model_sha256="0", settings=settings.personalisation, sites=sites
        )
        with RunFolder(tmp_path / str(seed)).open(settings):
            record.write(tmp_path / str(seed))
    # Means over clients 0.6 and 0.9, so 0.75; their standard error is 0.3 / √2 / √2.
    means, gains = (
        part.splitlines()[-1]
        for part in table([tmp_path / "0", tmp_path / "1"]).split("\n\n")
    )
    row = [
        "by_site, files, K = 3",
        "2",
        "–",
        "0.400 ± 0.000",
        "–",
        "0.750 ± 0.150",
        "0.750 ± 0.150",
    ]
    assert means.strip("| ").split(" | ") == [*row, *("–",) * 4, "mixture 4"]
    # Gains of 20 and 50 points: 35 ± 12.706 x 15.
    assert gains.split(" | ")[2] == "+35.0 [-155.6, +225.6] (+20.0, +50.0)"
    with pytest.raises(ValueError, match=f"{tmp_path} .*personalisation=all"):
        table([tmp_path])
