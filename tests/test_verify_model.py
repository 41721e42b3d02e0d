"""The proofs that an approved plan made a model folder, and each attack that they detect."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.support.door import CommandResult, run_dir_of, wardround
from tests.support.hostile_models import bring_adapter, change_tokenizer
from tests.support.released import Released, answer_of
from tests.support.runs import hashes
from tests.support.tiny import Make
from wardround.client.kit.cli import main
from wardround.client.kit.personalise import personalise
from wardround.client.kit.verify import PROOFS, is_verified, verdict, verify_model
from wardround.client.node.ledger import Ledger
from wardround.client.site_file import write_site_file
from wardround.common.credentials import new_key, public_line
from wardround.common.errors import NotProven
from wardround.common.model.flat import files_sha256
from wardround.common.model.state import open_model
from wardround.common.provenance import FILE_NAME, Claim, Provenance
from wardround.common.settings.tree import Settings
from wardround.common.wire.signing import (
    MODEL,
    RUN,
    RunStatement,
    open_envelope,
    read_statement,
    sign,
)
from wardround.server.engines.simulate import simulate
from wardround.server.model_folder import save_model
from wardround.server.record import RoundRecord
from wardround.server.run_folder import RunFolder

ALL = tuple(PROOFS)


@pytest.fixture
def plan_settings(make_settings: Make) -> Settings:
    """Settings of a deployment with two sites and two rounds."""
    words = (
        "engine=deployment",
        "data.label_names=[health,money,sport]",
        "evaluation.where=server",
    )
    return make_settings(*words, "num_clients=2", "num_rounds=2", "threads=1")


@pytest.fixture
def released(
    learned_run: tuple[list[str], CommandResult],
    tiny_texts: Path,
    plan_settings: Settings,
    tmp_path: Path,
) -> Released:
    """The model of an honest run."""
    run = run_dir_of(learned_run[0])
    return Released(
        tmp_path / "world", tiny_texts, run / "model", plan_settings, hashes(run)[-1]
    )


def states(made: Released) -> dict[str, str]:
    """Return the state of each check."""
    return {check.name: check.state for check in verify_model(made.site, made.folder)}


def test_the_model_of_an_approved_plan_is_verified(
    released: Released, tmp_path: Path
) -> None:
    checks = verify_model(released.site, released.folder)
    found = [(check.name, check.state) for check in checks]
    assert found == [(name, "ok") for name in ALL]
    assert is_verified(checks)
    updates = checks[ALL.index("updates")]
    assert "2 of this site are in it, of 2 that left" in updates.words
    assert verdict(released.folder, checks).startswith("verified: ")


@dataclass(frozen=True)
class Attack:
    """A folder that no plan made: its forgery, the check that fails, and a fact of the finding."""

    name: str
    make: Callable[[Released], object]
    check: str
    fact: str


def file_of(made: Released, name: str) -> Path:
    """Return a file of the model folder."""
    return made.folder / name


def change_weight(made: Released) -> None:
    """Change one number of one tensor."""
    file = made.folder / "model.safetensors"
    tensors = load_file(file)
    tensors["classifier.bias"][0] += 60
    save_file(tensors, file, metadata={"format": "pt"})


def of_another_coordinator(made: Released) -> None:
    """Sign everything with the key of a stranger."""
    stranger: Any = new_key("signing")
    made.write(run=sign(RUN, made.run, stranger))


def of_another_run(made: Released) -> None:
    """Join the statement of one run with the key of another run of the same coordinator."""
    other: Any = new_key("signing")
    run = replace(made.run, key=public_line(other))
    made.write(run=sign(RUN, run, made.coordinator))


def of_another_plan(made: Released) -> None:
    """Use an honest run of a plan that this site has not received."""
    run = replace(made.run, plan="e" * 64)
    made.write(run=sign(RUN, run, made.coordinator), plan="e" * 64)


def other_plan_than_the_keys(made: Released) -> None:
    """Let the statement name another plan than that of the run's key."""
    made.write(run=sign(RUN, replace(made.run, plan="e" * 64), made.coordinator))


def updates(made: Released, **changed: str) -> tuple[tuple[int, str, str], ...]:
    """Return the updates of the provenance, with these hashes for the answers of these sites."""
    return tuple(
        (number, name, changed.get(name, answer))
        for number, name, answer in made.provenance.updates
    )


def no_ledger_line(made: Released) -> None:
    """Remove the site's updates from provenance and ledger: nothing left for this plan."""
    ledger = made.site.state / "ledger.jsonl"
    ledger.unlink()
    others = [entry for entry in made.provenance.updates if entry[1] == "lakeside"]
    made.write(updates=tuple(others))
    with Ledger(made.site.state, made.site.name, made.own) as opened:
        opened.opened()


ATTACKS = [
    Attack(
        "tokenizer",
        lambda made: change_tokenizer(made.folder),
        "files",
        "changed: tokenizer.json",
    ),
    Attack("weight", change_weight, "files", "changed: model.safetensors"),
    Attack(
        "settings",
        lambda made: file_of(made, "wardround.json").write_text("{}"),
        "files",
        "changed: wardround.json",
    ),
    Attack(
        "adapter",
        lambda made: bring_adapter(made.folder),
        "files",
        "not named there: adapter_config.json, adapter_model.safetensors",
    ),
    Attack(
        "gone",
        lambda made: file_of(made, "README.md").unlink(),
        "files",
        "missing: README.md",
    ),
    Attack(
        "link to a folder",
        lambda made: file_of(made, "more").symlink_to(made.site.state),
        "files",
        "not named there: more",
    ),
    Attack(
        "tensors",
        lambda made: made.write(model_sha256="0" * 64),
        "tensors",
        "the weights are not those",
    ),
    Attack("another coordinator", of_another_coordinator, "run", "forged"),
    Attack("another run", of_another_run, "statement", "not signed with the run's key"),
    Attack(
        "another hand",
        lambda made: made.write(run_key=new_key("signing")),
        "statement",
        "not signed with",
    ),
    Attack(
        "another plan", of_another_plan, "plan", "did not receive plan eeeeeeeeeeee"
    ),
    Attack(
        "plan of another key",
        other_plan_than_the_keys,
        "statement",
        "names another plan",
    ),
    Attack(
        "pending",
        lambda made: made.decide("pending"),
        "plan",
        "waits for your decision",
    ),
    Attack("rejected", lambda made: made.decide("rejected"), "plan", "rejected"),
    Attack("revoked", lambda made: made.decide("revoked"), "plan", "approval revoked"),
    Attack(
        "another roster",
        lambda made: made.write(sites=made.provenance.sites | {"mallory": "SHA256:m"}),
        "sites",
        "differ from the plan",
    ),
    Attack(
        "an update it did not send",
        lambda made: made.write(updates=updates(made, st_marys="a" * 64)),
        "updates",
        "update of round 1 did not leave",
    ),
    Attack(
        "its update in another round",
        lambda made: made.write(updates=((2, "st_marys", answer_of("st_marys", 1)),)),
        "updates",
        "update of round 2",
    ),
    Attack(
        "an update of a stranger",
        lambda made: made.write(
            updates=(*made.provenance.updates, (1, "mallory", "a" * 64))
        ),
        "updates",
        "round 1 of mallory",
    ),
    Attack(
        "an update twice",
        lambda made: made.write(updates=made.provenance.updates * 2),
        "updates",
        "twice",
    ),
    Attack(
        "more rounds than it had",
        lambda made: made.write(
            updates=(*made.provenance.updates, (3, "lakeside", "a" * 64))
        ),
        "updates",
        "round 3 of lakeside",
    ),
    Attack("not executed", no_ledger_line, "updates", "no update left this site"),
    Attack(
        "changed ledger",
        lambda made: (made.site.state / "ledger.jsonl").write_text("{}\n"),
        "updates",
        "the ledger cannot be read",
    ),
    Attack(
        "version 1",
        lambda made: made.write(version=1, files={}, round=0),
        "files",
        "version 1 names no files",
    ),
    Attack(
        "nothing said",
        lambda made: file_of(made, FILE_NAME).unlink(),
        "run",
        "there is no prov",
    ),
    Attack(
        "no JSON",
        lambda made: file_of(made, FILE_NAME).write_text("["),
        "run",
        "cannot be read",
    ),
    Attack(
        "other JSON",
        lambda made: file_of(made, FILE_NAME).write_text("{}"),
        "run",
        "does not hold",
    ),
    Attack(
        "a later version",
        lambda made: made.write(version=3),
        "statement",
        "version 1 or 2",
    ),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_a_folder_that_no_plan_made_is_not_verified(
    attack: Attack, released: Released
) -> None:
    attack.make(released)
    checks = {
        check.name: check for check in verify_model(released.site, released.folder)
    }
    assert tuple(checks) == ALL
    assert checks[attack.check].state == "no"
    assert attack.fact in checks[attack.check].words
    assert not is_verified(list(checks.values()))
    assert attack.check in verdict(released.folder, list(checks.values()))
    # Earlier checks do not fail. A changed weight fails two checks.
    before = ALL[: ALL.index(attack.check)]
    assert {checks[name].state for name in before} <= {"ok"}
    has_other_tensors = attack.name in ("weight", "tensors", "adapter")
    assert (checks["tensors"].state == "no") == has_other_tensors


def test_without_the_coordinators_signature_nothing_more_is_checked(
    released: Released,
) -> None:
    of_another_coordinator(released)
    assert states(released) == {"run": "no"} | dict.fromkeys(ALL[1:], "--")


def test_a_model_with_merged_adapters_is_proved_by_its_files(
    released: Released,
) -> None:
    released.write(model_sha256="0" * 64, tensors_as_trained=False)
    checks = {
        check.name: check for check in verify_model(released.site, released.folder)
    }
    assert checks["tensors"].state == "ok"
    assert "adapters were merged" in checks["tensors"].words


def test_a_foreign_name_moves_no_cursor(released: Released) -> None:
    (released.folder / "\x1b[2Jclear").write_text("x")
    run = replace(released.run, name="\x1b[2Jtrial")
    released.write(run=sign(RUN, run, released.coordinator))
    checks = verify_model(released.site, released.folder)
    assert [check.state for check in checks[:2]] == ["ok", "ok"]
    assert "\x1b" not in "".join(check.in_words() for check in checks)


def test_the_command_verify_model_has_a_line_for_each_check(
    released: Released,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = released.folder.parent
    write_site_file(released.site, place / "site.yaml")

    def said(*words: str) -> tuple[object, list[str]]:
        monkeypatch.setattr("sys.argv", ["wardround-site", "verify-model", *words])
        with pytest.raises(SystemExit) as end:
            main()
        told = capsys.readouterr()
        return end.value.code, (told.out + told.err).splitlines()

    monkeypatch.chdir(place)
    code, lines = said("--model", "model")
    assert code == 0
    assert [line.split()[:2] for line in lines[:-1]] == [["ok", name] for name in ALL]
    assert lines[-1].startswith("verified: ")
    assert "'model'" in lines[-1]
    change_tokenizer(released.folder)
    code, lines = said("--model", "model", "--site", "site.yaml")
    assert code == 1
    assert [line.split()[0] for line in lines[:-1]].count("no") == 1
    assert lines[-1].startswith("NOT verified: ")
    code, lines = said("--model", "gone")
    assert code == 2
    assert "--model is 'gone'" in lines[-1]
    code, lines = said("--model", "model", "--site", "gone.yaml")
    assert code == 2


def test_personalise_accepts_verified_models_only(
    make_settings: Make, tiny_texts: Path, tmp_path: Path
) -> None:
    settings = make_settings(
        "evaluation.where=sites",
        "evaluation.validation_fraction=0.5",
        "data.test_path=null",
        "data.test_fraction=0.4",
        "num_rounds=1",
    )
    simulate(settings)
    run = Path(settings.run_dir)
    told = make_settings(
        "engine=deployment",
        "data.label_names=[health,money,sport]",
        "evaluation.where=server",
        "num_clients=2",
        "num_rounds=2",
        "threads=1",
    )
    facts: dict[str, Any] = {"model": Path(settings.model.name), "test_fraction": 0.4}
    kept = files_sha256([run / "model" / "model.safetensors"])
    assert kept in hashes(run)
    made = Released(tmp_path / "world", tiny_texts, run / "model", told, kept, **facts)
    asked = {"name": "fine_tuned", "epochs": 1}
    record = personalise(made.site, made.folder, tmp_path / "own", asked)
    assert record.sites[0].name == "st_marys"
    file = made.folder / "wardround.json"
    file.write_text(file.read_text() + " ")
    with pytest.raises(
        ValueError, match=r"files: changed: wardround\.json.*--unverified"
    ):
        personalise(made.site, made.folder, tmp_path / "two", asked)
    assert not (tmp_path / "two").exists()
    personalise(made.site, made.folder, tmp_path / "three", asked, unverified=True)
    # Code and adapters are refused even with `unverified`.
    bring_adapter(made.folder)
    with pytest.raises(ValueError, match="merge_and_unload"):
        personalise(made.site, made.folder, tmp_path / "four", asked, unverified=True)


# --- the coordinator and a researcher -------------------------------------------------


def predicted(made: Released, *words: str) -> CommandResult:
    """Run `wardround predict` with the folder."""
    return wardround("predict", str(made.folder), "--text", "goal match", *words)


def test_predict_compares_a_folder_with_its_provenance(
    released: Released, tmp_path: Path
) -> None:
    honest = predicted(released)
    assert honest.code == 0
    assert "--key coordinator.pub" in honest.err
    key = str(released.site.coordinator_key)
    trusted = predicted(released, "--key", key)
    assert (trusted.code, trusted.out, trusted.err) == (0, honest.out, "")
    stranger = tmp_path / "stranger.pub"
    stranger.write_text(public_line(new_key("signing")))
    refused = predicted(released, "--key", str(stranger))
    assert refused.code == 2
    assert "not signed with the coordinator's key" in refused.err
    stranger.write_text("no key")
    assert predicted(released, "--key", str(stranger)).code == 2
    change_tokenizer(released.folder)
    for more in ((), ("--key", key)):
        said = predicted(released, *more)
        assert (said.code, said.out) == (2, "")
        assert "provenance.json: changed: tokenizer.json" in said.err


def test_predict_warns_of_a_provenance_of_version_1(released: Released) -> None:
    released.write(version=1, files={}, round=0)
    said = predicted(released)
    assert said.code == 0
    assert "provenance.json of version 1" in said.err


def test_predict_accepts_a_folder_without_a_provenance_if_no_key_is_given(
    learned_run: tuple[list[str], CommandResult], released: Released
) -> None:
    run = run_dir_of(learned_run[0])
    said = wardround("predict", str(run), "--text", "goal match")
    assert (said.code, said.err) == (0, "")
    key = str(released.site.coordinator_key)
    said = wardround("predict", str(run), "--text", "a", "--key", key)
    assert said.code == 2
    assert "holds no provenance.json" in said.err


# --- the server's signature -----------------------------------------------------------


class Signer:
    """Signs like the clients of a run."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.key: Any = new_key("signing")
        self.coordinator: Any = new_key("signing")

    def provenance_of(self, run: RunFolder, kept: RoundRecord) -> Provenance:
        """As in `Certifier`."""
        assert kept.model_sha256 is not None
        return Provenance(
            2, "0" * 64, {"alpha": "SHA256:a"}, kept.model_sha256, (), kept.round
        )

    def sign_provenance(self, provenance: Provenance) -> dict[str, str]:
        """As in `Certifier`."""
        run = RunStatement("trial", public_line(self.key), 0.0, 1.0, "0" * 64)
        signed = {
            "run": sign(RUN, run, self.coordinator),
            "statement": sign(MODEL, provenance, self.key),
        }
        payload = open_envelope(signed["run"], RUN, [public_line(self.coordinator)])
        assert read_statement(RunStatement, payload) == run
        return signed


@pytest.mark.parametrize(
    "more", [(), ("adapters=lora",), ("model.activation=abu",)], ids=str
)
def test_a_released_folder_names_all_its_files(
    more: tuple[str, ...], make_settings: Make
) -> None:
    settings = make_settings("num_rounds=1", *more)
    simulate(settings)
    folder = RunFolder(Path(settings.run_dir))
    state = open_model(settings, ("health", "money", "sport"), fresh=True)
    checkpoint = folder.load_checkpoint()
    assert checkpoint is not None
    for name, view in state.layout.views(state.flat).items():
        view.copy_(checkpoint.tensors[name])
    signer = Signer(settings)
    save_model(folder, settings, state.text_model, signer)
    model = folder.path / "model"
    claim = Claim(model, public_line(signer.coordinator))
    assert claim.provenance.tensors_as_trained == (more != ("adapters=lora",))
    there = {
        path.relative_to(model).as_posix()
        for path in model.rglob("*")
        if path.is_file()
    }
    assert set(claim.provenance.files) == there - {FILE_NAME}
    assert claim.provenance.round == 1
    claim.check_files()
    claim.check_tensors()
    if claim.provenance.tensors_as_trained:
        assert files_sha256([model / "model.safetensors"]) == hashes(folder.path)[-1]
    (model / "README.md").write_text("another card")
    with pytest.raises(NotProven, match=r"changed: README\.md"):
        claim.check_files()


def test_a_provenance_of_version_1_is_read(released: Released) -> None:
    """Version 1 lacks some fields of version 2."""
    told = {
        name: getattr(released.provenance, name)
        for name in ("plan", "sites", "model_sha256", "updates")
    }

    @dataclass(frozen=True)
    class Old:
        version: int
        plan: str
        sites: dict[str, str]
        model_sha256: str
        updates: tuple[tuple[int, str, str], ...]

    signed = json.loads((released.folder / FILE_NAME).read_text())
    signed["statement"] = sign(MODEL, Old(1, **told), released.run_key)
    (released.folder / FILE_NAME).write_text(json.dumps(signed))
    assert states(released) == dict.fromkeys(ALL, "ok") | {"files": "no"}
