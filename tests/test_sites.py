"""Sites that hold out their own texts: their counts add up to the exact accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.runs import hashes, history
from tests.support.tiny import Make, write_texts
from wardround.client.app import app as client_app
from wardround.client.site import RealSite
from wardround.client.site_file import SiteFile, load_site_file, write_site_file
from wardround.common.data.dataset import read_texts
from wardround.common.errors import RunFailed
from wardround.common.pretrained import locate
from wardround.common.tasks.label import LABEL
from wardround.server.app import conduct
from wardround.server.engines.local_grid import LocalGrid
from wardround.server.engines.simulate import simulate
from wardround.server.rounds.clients import GridClients


def test_counts_of_sites_add_up_to_the_central_test(
    make_settings: Make, tmp_path: Path
) -> None:
    """All parts of the sites together are the test set: same numbers in both ways."""
    learn = ["train.optimizer=adamw", "train.learning_rate=0.02", "num_rounds=4"]
    for where in ("server", "sites"):
        place = (f"evaluation.where={where}", f"run_dir={tmp_path / where}")
        simulate(make_settings(*place, *learn))
    central, summed = history(tmp_path / "server"), history(tmp_path / "sites")
    assert hashes(tmp_path / "server") == hashes(tmp_path / "sites")
    for one, other in zip(central, summed, strict=True):
        assert one["test"]["num_examples"] == other["test"]["num_examples"] == 30
        assert one["test"]["accuracy"] == other["test"]["accuracy"]
        assert one["test"]["macro_f1"] == other["test"]["macro_f1"]
        # Sites round their losses.
        assert abs(one["test"]["loss"] - other["test"]["loss"]) <= 0.005 + 1e-9
    assert central[-1]["test"]["accuracy"] > central[0]["test"]["accuracy"]
    first, *_, last = summed
    names = [site["site"] for site in first["sites"]]
    assert names == ["client 0", "client 1", "client 2"]
    num_correct = sum(site["correct"] for site in last["sites"])
    assert num_correct == last["test"]["accuracy"] * 30


def test_a_target_accuracy_stops_a_run_whose_sites_evaluate(
    make_settings: Make,
) -> None:
    settings = make_settings(
        "evaluation.where=sites",
        "evaluation.target_accuracy=0.5",
        "num_rounds=30",
        "train.optimizer=adamw",
        "train.learning_rate=0.02",
    )
    simulate(settings)
    accuracies = [line["test"]["accuracy"] for line in history(Path(settings.run_dir))]
    # The sites measure the model one round later.
    assert accuracies[-2] >= 0.5 > max(accuracies[:-2])


def test_one_sites_file_is_read_as_its_part_of_the_folder(
    make_settings: Make, tmp_path: Path
) -> None:
    folder = tmp_path / "sites"
    folder.mkdir()
    for number, (name, size) in enumerate((("b", 30), ("a", 12), ("c", 21))):
        write_texts(folder / f"{name}.csv", size, seed=number)
    data = make_settings(f"data.path={folder}", "data.test_path=null").data
    together = read_texts(LABEL, data, seed=5)
    assert together.site_sizes == (("a", 10), ("b", 24), ("c", 17))
    assert together.test_sizes == (2, 6, 4)
    alone = []
    for name in ("a", "b", "c"):
        own = make_settings(f"data.path={folder / name}.csv", "data.test_path=null")
        alone.append(read_texts(LABEL, own.data, 5, site=name))
    for part in ("train", "test"):
        of_sites = [text for data in alone for text in getattr(data, part).texts]
        assert of_sites == getattr(together, part).texts


def test_a_sites_own_label_names_are_translated(
    make_settings: Make, tmp_path: Path
) -> None:
    own = tmp_path / "own.csv"
    own.write_text(
        "text,label\nflu and fever,G\nthe match,S\na goal,S\nnurse,G\ncoach,S\nward,G\n"
    )
    settings = make_settings(
        f"data.path={own}",
        "data.test_path=null",
        "data.label_names=[health,sport]",
        "data.label_map=[[G,health],[S,sport]]",
    )
    data = read_texts(LABEL, settings.data, seed=0)
    assert data.label_names == ("health", "sport")
    health = {"flu and fever", "nurse", "ward"}
    for part in (data.train, data.test):
        is_health = [text in health for text in part.texts]
        assert [label == 0 for label in part.targets] == is_health
    assert len(data.train) + len(data.test) == 6


class RealSites(LocalGrid):
    """The in-process grid. Each node has a site file and no number."""

    def __init__(self, site_files: dict[str, Path]) -> None:
        super().__init__(client_app, len(site_files))
        # Names and node ids in different orders, as real registrations have them.
        self.names = dict(
            zip(self.contexts, sorted(site_files, reverse=True), strict=True)
        )
        for node_id, name in self.names.items():
            self.contexts[node_id].node_config = {"site-file": str(site_files[name])}
        self.bounds: dict[str, int | None] = dict.fromkeys(site_files)


class NamedClients(GridClients):
    """Clients with the names of their sites, which a deployment takes from their keys."""

    def __init__(self, grid: RealSites) -> None:
        super().__init__(grid)
        self._names = grid.names

    def online(self) -> Mapping[int, str]:
        return self._names


def write_site(folder: Path, name: str, data: Path, **data_keys: Any) -> Path:
    """Write a site.yaml without the files for a network."""
    site = SiteFile(
        name=name,
        server_address="localhost:9092",
        ca=folder / "ca.crt",
        private_key=folder / "site.key",
        public_key=folder / "site.pub",
        data_path=data,
        text_columns=("text",),
        label_column="label",
        device="cpu",
        **data_keys,
    )
    file = folder / f"{name}.yaml"
    write_site_file(site, file)
    return file


@pytest.mark.parametrize(
    ("drawn", "num_examples"),
    [
        ((), [10, 24, 17]),
        (("data.train_examples=12", "data.test_examples=3"), [10, 12, 12]),
    ],
)
def test_real_sites_equal_the_simulation(
    drawn: tuple[str, ...],
    num_examples: list[int],
    make_settings: Make,
    tiny_model: Path,
    tmp_path: Path,
) -> None:
    """Three sites with unequal files: same model and same counts in every round."""
    folder = tmp_path / "data"
    folder.mkdir()
    sizes = {"beta": 30, "alpha": 12, "gamma": 21}
    for number, (name, size) in enumerate(sizes.items()):
        write_texts(folder / f"{name}.csv", size, seed=number)
    labels = "data.label_names=[health,money,sport]"
    common = [
        "evaluation.where=sites",
        labels,
        f"data.path={folder}",
        "data.test_path=null",
        "data.split_seed=0",
        *drawn,
    ]
    run_dir = f"run_dir={tmp_path / 'simulated'}"
    simulate(make_settings(*common, "partition=by_site", run_dir))
    run_dir = f"run_dir={tmp_path / 'deployed'}"
    deployed = make_settings(*common, "engine=deployment", run_dir)
    files = {
        name: write_site(tmp_path, name, folder / f"{name}.csv", model=tiny_model)
        for name in sizes
    }
    grid = RealSites(files)
    conduct(NamedClients(grid), deployed, grid.bounds)
    ours, theirs = history(tmp_path / "simulated"), history(tmp_path / "deployed")
    assert len(ours) == 4
    for one, other in zip(ours, theirs, strict=True):
        assert one["model_sha256"] == other["model_sha256"]
        assert one["test"] == other["test"]
        assert [site["site"] for site in one["sites"]] == ["alpha", "beta", "gamma"]
        assert one["sites"] == other["sites"]
        assert clients_of(one) == clients_of(other)
    assert clients_of(theirs[0]) == []
    for line in theirs[1:]:
        assert clients_of(line) == list(
            zip((0, 1, 2), ("alpha", "beta", "gamma"), num_examples, strict=True)
        )


def clients_of(line: dict[str, Any]) -> list[tuple[int, str, int]]:
    """Return number, name and count of examples of each client of a round."""
    return [
        (client["client"], client["site"], client["num_examples"])
        for client in line["clients"]
    ]


def test_the_server_can_name_no_path_of_a_site(
    make_settings: Make,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts = write_texts(tmp_path / "texts.csv", 6, seed=0)
    labels = "data.label_names=[health,money,sport]"
    asked = make_settings("engine=deployment", "evaluation.where=sites", labels)
    own = RealSite(load_site_file(write_site(tmp_path, "own", texts, model=tiny_model)))
    none = RealSite(load_site_file(write_site(tmp_path, "none", texts)))
    monkeypatch.chdir(tiny_model.parent)
    for name in (str(tiny_model), tiny_model.name):
        named = replace(asked, model=replace(asked.model, source="hub", name=name))
        assert own.localise(named).model.name == str(tiny_model)
        with pytest.raises(ValueError, match=f"model.name is '{name}'.* Set model:"):
            none.localise(named)


@pytest.mark.parametrize("folder", ["/srv/models/old", "../old", "good/../../old"])
def test_a_models_folder_must_be_inside_its_package(
    make_settings: Make, folder: str
) -> None:
    model = replace(make_settings().model, source="package", name=f"numpy:{folder}")
    with pytest.raises(ValueError, match=f"'numpy:{folder}'.* outside of the package"):
        locate(model)


@pytest.mark.parametrize("package", ["numpy.testing", "", "a-b", "os.path"])
def test_looking_for_a_package_imports_nothing(
    make_settings: Make, package: str
) -> None:
    model = replace(make_settings().model, source="package", name=f"{package}:model")
    with pytest.raises(ValueError, match=f"'{package}:model'.* package:folder"):
        locate(model)


def test_a_site_with_unknown_labels_cannot_take_part(
    make_settings: Make, tmp_path: Path
) -> None:
    odd = tmp_path / "odd.csv"
    odd.write_text("text,label\n" + "the match,CONFIDENTIAL\na goal,sport\n" * 6)
    settings = make_settings(
        "evaluation.where=sites",
        "data.label_names=[health,money,sport]",
        "engine=deployment",
        "num_clients=1",
        "data.path=null",
        "data.test_path=null",
        "data.reader=hub",
    )
    grid = RealSites({"odd": write_site(tmp_path, "odd", odd)})
    with pytest.raises(RunFailed, match=r"^odd ") as end:
        conduct(NamedClients(grid), settings, grid.bounds)
    assert "CONFIDENTIAL" not in str(end.value)


def test_the_number_of_sites_must_be_the_number_of_clients(
    make_settings: Make, tmp_path: Path
) -> None:
    settings = make_settings(
        "engine=deployment", "data.label_names=[a,b]", "num_clients=3"
    )
    grid = RealSites({"odd": write_site(tmp_path, "odd", tmp_path / "x.csv")})
    with pytest.raises(ValueError, match=r"1 sites .*odd.* Set num_clients=1"):
        conduct(NamedClients(grid), settings, grid.bounds)
