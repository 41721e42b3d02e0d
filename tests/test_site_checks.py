"""Checks of a site's machine, model and texts: states, values and next steps."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.nasty import NASTY, faults
from tests.support.site_lab import free_port, look, make_site, states
from tests.support.versions import later
from wardround.client.kit.checks import machine
from wardround.client.kit.checks.subject import Options
from wardround.client.kit.checks.table import (
    CHECKS,
    DATA_CHECKS,
    findings_as_json,
    is_ready,
    run_checks,
)
from wardround.client.kit.readiness import check_apart, print_findings
from wardround.client.site_file import write_site_file


def test_a_wrong_or_missing_version_is_a_problem(
    tmp_path: Path, tiny_texts: Path
) -> None:
    site = make_site(tmp_path, 9092, tiny_texts)
    for expect in ({}, {"flwr": version("flwr"), "python": "3"}):
        assert look(site, "versions", expect=expect)["versions"].state == "ok"
    wrong = {"flwr": "1.38.0", "no-such-package": "1"}
    found = look(site, "versions", expect=wrong)["versions"]
    assert found.state == "problem"
    assert "not 1.38.0" in found.message
    assert "no-such-package is missing, not 1" in found.message
    # The server may have been updated since the invitation.
    found = look(site, "versions", invited={"wardround": later(2)})["versions"]
    assert found.state == "warning"
    assert f"not {later(2)} as in the invitation" in found.message
    options = {"invited": {"flwr": "1.38.0"}, "expect": {"flwr": version("flwr")}}
    assert look(site, "versions", **options)["versions"].state == "ok"


def test_a_key_that_is_readable_or_of_another_pair_is_a_problem(
    tmp_path: Path, tiny_texts: Path
) -> None:
    site = make_site(tmp_path, 9092, tiny_texts)
    assert look(site, "key")["key"].state == "ok"
    site.private_key.chmod(0o640)
    loose = look(site, "key")["key"]
    assert loose.state == "problem"
    assert "mode 0640" in loose.message
    site.private_key.chmod(0o600)
    other = make_site(tmp_path / "other", 9092, tiny_texts)
    site.public_key.write_text(other.public_key.read_text())
    foreign = look(site, "key")["key"]
    assert foreign.state == "problem"
    assert f"key.public: {site.public_key} is not the other half" in foreign.message
    site.private_key.write_text("nonsense")
    assert look(site, "key")["key"].state == "problem"


def test_a_key_of_another_curve_is_a_problem(tmp_path: Path, tiny_texts: Path) -> None:
    site = make_site(tmp_path, 9092, tiny_texts)
    site.private_key.unlink()
    kind = ("-t", "ecdsa", "-b", "256", "-N", "")
    subprocess.run(["ssh-keygen", "-q", *kind, "-f", str(site.private_key)], check=True)
    assert "P-384" in look(site, "key")["key"].message


def test_little_disk_is_a_problem_and_little_memory_a_warning(
    tmp_path: Path, tiny_texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = make_site(tmp_path, 9092, tiny_texts)
    usage = type("Usage", (), {"free": 2**20})
    monkeypatch.setattr(
        "wardround.client.kit.checks.machine.shutil.disk_usage", lambda _: usage
    )
    assert look(site, "disk")["disk"].state == "problem"
    usage.free = 2**40  # type: ignore[attr-defined]
    assert look(site, "disk")["disk"].state == "ok"
    monkeypatch.setattr(machine, "available_memory", lambda: 2**30)
    scarce = look(site, "memory")["memory"]
    # 4 x 440 MB + 2 GiB = 3.6 GiB
    assert scarce.state == "warning"
    assert "3.6 GiB needed" in scarce.message
    assert "1.0 GiB free" in scarce.message
    assert scarce.next_step
    monkeypatch.setattr(machine, "available_memory", lambda: 2**35)
    assert look(site, "memory")["memory"].state == "ok"


def test_a_missing_device_or_model_is_a_problem(
    tmp_path: Path, tiny_texts: Path, tiny_model: Path
) -> None:
    good = make_site(tmp_path, 9092, tiny_texts, model=tiny_model)
    assert states(look(good, "device", "model")) == {"device": "ok", "model": "ok"}
    empty = tmp_path / "empty"
    empty.mkdir()
    site = make_site(tmp_path, 9092, tiny_texts, model=empty, device="cuda:77")
    bad = look(site, "device", "model")
    assert states(bad) == {"device": "problem", "model": "problem"}
    assert "config.json, model.safetensors, tokenizer.json" in bad["model"].message
    unnamed = make_site(tmp_path, 9092, tiny_texts)
    assert look(unnamed, "model")["model"].state == "warning"


@dataclass(frozen=True)
class Model:
    """A folder at `path`, its damage, and a fact of the finding."""

    path: str
    spoil: Callable[[Path], object]
    fact: str


def without(pattern: str) -> Callable[[Path], object]:
    """Return a function that removes these files of a model's folder."""

    def spoil(folder: Path) -> None:
        for file in folder.glob(pattern):
            file.unlink()

    return spoil


def a_file(folder: Path) -> None:
    """Replace the folder by a file."""
    shutil.rmtree(folder)
    folder.write_text("x")


MODELS = [
    Model("gone", shutil.rmtree, "does not exist"),
    Model("gone/too/deep", shutil.rmtree, "does not exist"),
    Model("file", a_file, "is a file; a folder is"),
    Model(
        "letters", without("*"), "lacks config.json, model.safetensors, tokenizer.json"
    ),
    Model("half", without("model.safetensors"), "lacks model.safetensors"),
    Model(
        "adapter",
        lambda folder: (folder / "model.safetensors").rename(
            folder / "adapter_model.safetensors"
        ),
        "lacks model.safetensors",
    ),
    Model(
        "cut",
        lambda folder: (folder / "config.json").write_text('{"model_ty'),
        "cannot be read as JSON",
    ),
    Model(
        "other",
        lambda folder: (folder / "config.json").write_text("{}"),
        "without model_type",
    ),
]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.path)
@pytest.mark.parametrize("is_in_site_file", [True, False])
def test_a_damaged_model_is_a_finding(
    tmp_path: Path,
    tiny_texts: Path,
    tiny_model: Path,
    model: Model,
    is_in_site_file: bool,
) -> None:
    folder = tmp_path / model.path
    shutil.copytree(tiny_model, folder)
    model.spoil(folder)
    named = {"model": folder} if is_in_site_file else {}
    site = make_site(tmp_path / "site", free_port(), tiny_texts, **named)
    options = Options(
        model=None if is_in_site_file else str(folder), timeout_seconds=1.0
    )
    findings = {finding.check: finding for finding in run_checks(site, options)}
    assert list(findings) == list(CHECKS)
    found = findings["model"]
    setting = "model:" if is_in_site_file else "--model"
    assert found.state == "problem"
    assert found.message.startswith(f"{setting} {folder} ")
    assert model.fact in found.message
    assert found.next_step
    # The other checks need no model.
    assert findings["labels"].message == "sport 16, money 16, health 16"


def test_a_name_that_is_neither_hub_id_nor_folder_is_a_problem(
    tmp_path: Path, tiny_texts: Path
) -> None:
    site = make_site(tmp_path, 9092, tiny_texts)
    for name in ("./gone", "../gone", "~/gone", "two words", "a/b/c", "models/gone"):
        found = look(site, "model", "lengths", model=name)["model"]
        assert found.state == "problem", found
        assert found.message.startswith("--model"), found
        assert "Repo id" not in found.message


def test_a_model_that_site_yaml_does_not_name_is_a_warning(
    tmp_path: Path, tiny_texts: Path, tiny_model: Path
) -> None:
    site = make_site(tmp_path, 9092, tiny_texts)
    found = look(site, "model", model=str(tiny_model))["model"]
    assert found.state == "warning"
    assert f"model: {tiny_model}" in found.next_step


def test_pickled_weights_are_a_problem(
    tmp_path: Path, tiny_texts: Path, tiny_model: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    found = look(make_site(tmp_path, 9092, tiny_texts, model=folder), "model")["model"]
    assert found.state == "problem"
    assert "pickle" in found.message
    assert "model.safetensors" in found.next_step


@pytest.mark.parametrize(
    ("files", "state", "fact"),
    [
        (
            {"model.safetensors": 5_000_000, "pytorch_model.bin": 9_000_000},
            "ok",
            "first round: 5 MB",
        ),
        (
            {"pytorch_model.bin": 9_000_000},
            "problem",
            "9 MB; its weights are pickled",
        ),
        ({"tf_model.h5": 9_000_000}, "problem", "no weights for PyTorch"),
    ],
)
def test_the_weights_of_a_model_on_the_hub_are_judged_by_their_files(
    tmp_path: Path,
    tiny_texts: Path,
    monkeypatch: pytest.MonkeyPatch,
    files: dict[str, int],
    state: str,
    fact: str,
) -> None:
    siblings = [
        SimpleNamespace(rfilename=name, size=size) for name, size in files.items()
    ]
    facts = SimpleNamespace(siblings=siblings)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: facts)
    site = make_site(tmp_path, 9092, tiny_texts)
    found = look(site, "model", model="some/model")["model"]
    assert found.state == state, found
    assert fact in found.message, found


def test_data_checks_open_no_connection(
    tmp_path: Path, tiny_texts: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = make_site(tmp_path, 9092, tiny_texts, model=tiny_model)

    def forbidden(*_: Any, **__: Any) -> Any:
        raise AssertionError("a check of the data opened a socket")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, forbidden)
    findings = look(site, *DATA_CHECKS, labels=("sport", "money", "health"))
    assert set(states(findings).values()) == {"ok"}, findings
    assert "48 examples" in findings["data"].message
    assert findings["labels"].message == "sport 16, money 16, health 16"
    assert "48 texts tokenised" in findings["lengths"].message


def letters(folder: Path, *rows: str, header: str = "text,label") -> Path:
    """Write a CSV file of these lines."""
    path = folder / "letters.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_data_that_cannot_be_read_are_a_problem(tmp_path: Path) -> None:
    gone = look(make_site(tmp_path, 9092, tmp_path / "gone.csv"), *DATA_CHECKS)
    assert states(gone) == {"data": "problem"} | dict.fromkeys(
        DATA_CHECKS[1:], "warning"
    )
    broken = look(make_site(tmp_path, 9092, letters(tmp_path, "a,b,c")), "data")["data"]
    assert broken.state == "problem"
    assert "line 2: 3 fields" in broken.message
    kind = tmp_path / "letters.xlsx"
    kind.write_text("x")
    assert ".parquet" in look(make_site(tmp_path, 9092, kind), "data")["data"].message
    if os.getuid():
        secret = letters(tmp_path, "a,b")
        secret.chmod(0)
        found = look(make_site(tmp_path, 9092, secret), "data")["data"]
        assert "read access" in found.message


def test_a_missing_column_is_named_with_the_nearest(tmp_path: Path) -> None:
    site = make_site(tmp_path, 9092, letters(tmp_path, "a,b", header="txt,label"))
    findings = look(site, *DATA_CHECKS)
    assert states(findings) == {"data": "ok", "columns": "problem"} | dict.fromkeys(
        DATA_CHECKS[2:], "warning"
    )
    assert "Nearest: 'txt'" in findings["columns"].message
    assert "data.text_columns" in findings["columns"].next_step


def test_labels_are_counted_mapped_and_compared(tmp_path: Path) -> None:
    path = letters(tmp_path, *["x,S"] * 3, *["y,M"] * 2, "z,Q", "z,Q")
    known = ("sport", "money")
    site = make_site(tmp_path, 9092, path, labels=(("S", "sport"), ("M", "money")))
    strange = look(site, "labels", "mapping", labels=known)
    assert strange["labels"].message == "S 3, M 2, Q 2"
    assert strange["mapping"].state == "problem"
    assert "Q" in strange["mapping"].message
    assert "own name: Q" in look(site, "mapping")["mapping"].message
    names = (("S", "sport"), ("M", "money"), ("Q", "money"))
    whole = make_site(tmp_path, 9092, path, labels=names)
    found = look(whole, "mapping", labels=known)["mapping"]
    assert found.message == "M -> money, Q -> money, S -> sport"
    spare = make_site(tmp_path, 9092, path, labels=(("Sprot", "sport"),))
    assert "Sprot" in look(spare, "mapping")["mapping"].message


@pytest.mark.parametrize("name", sorted(NASTY.keys() - {"nothing"}))
def test_labels_and_columns_of_others_imitate_no_finding(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """A label comes from a file, or from the coordinator's invitation."""
    word = NASTY[name]
    path = tmp_path / "letters.jsonl"
    rows = [
        {"text": "x", "label": word if at % 2 else "b", word: "y"} for at in range(8)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    site = make_site(tmp_path, 9092, path)
    names = (f"{word}2", "b")
    found = look(site, *DATA_CHECKS, labels=names, expect={"flwr": word})
    findings = [*found.values()]
    findings += look(site, "versions", expect={"flwr": word, word: word}).values()
    missing = make_site(tmp_path, 9092, path, text_columns=("txt",))
    findings += look(missing, "columns").values()
    for finding in findings:
        for line in (finding.message, finding.next_step):
            assert faults(line, 2000) == [], finding
            assert "  " not in line, finding
    print_findings(findings)
    lines = capsys.readouterr().out.splitlines()
    steps = [finding for finding in findings if finding.next_step]
    assert len(lines) == len(findings) + len(steps)


def test_examples_without_label_or_text_are_counted_and_placed(tmp_path: Path) -> None:
    path = letters(tmp_path, "x,a", "y,", " ,b", "z,b")
    site = make_site(tmp_path, 9092, path)
    findings = look(site, "labels", "empty")
    assert states(findings) == {"labels": "problem", "empty": "problem"}
    assert findings["labels"].message.startswith("1 examples have no label")
    assert "line 3" in findings["labels"].message
    assert "line 4" in findings["empty"].message
    dropped = look(make_site(tmp_path, 9092, path, drop_empty=True), "empty")["empty"]
    assert dropped.state == "warning"


def test_a_short_model_is_compared_with_a_known_length_only(
    tmp_path: Path, tiny_texts: Path, tiny_model: Path
) -> None:
    """`join` does not know how many tokens the run will take; the tiny model takes 32."""
    site = make_site(tmp_path, 9092, tiny_texts, model=tiny_model)
    assert look(site, "model")["model"].state == "ok"
    assert look(site, "model", max_length=32)["model"].state == "ok"
    long = look(site, "model", max_length=33)["model"]
    assert long.state == "problem"
    assert "at most 32 tokens" in long.message


def test_texts_that_are_cut_and_few_texts_are_warnings(
    tmp_path: Path, tiny_model: Path
) -> None:
    # 3 short texts and 1 of 30 words: with [CLS] and [SEP] 32 tokens, above 16.
    path = letters(tmp_path, *["the a,x"] * 3, f"{'the ' * 30},y")
    site = make_site(tmp_path, 9092, path, model=tiny_model)
    findings = look(site, "lengths", "batch", max_length=16)
    assert states(findings) == {"lengths": "warning", "batch": "warning"}
    message = findings["lengths"].message
    assert message.startswith("25% of the texts")
    assert "longer than 16 tokens" in message
    assert "longest 32" in message
    estimated = look(make_site(tmp_path, 9092, path), "lengths")["lengths"]
    assert "estimated" in estimated.message
    alone = look(make_site(tmp_path, 9092, letters(tmp_path, "a,b")), "batch")["batch"]
    assert alone.state == "problem"


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_jsonl_and_parquet_files_pass_the_checks(kind: str, tmp_path: Path) -> None:
    rows = [{"text": f"t{number}", "label": "ab"[number % 2]} for number in range(40)]
    path = tmp_path / f"letters.{kind}"
    if kind == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows))
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
    findings = look(
        make_site(tmp_path, 9092, path), "data", "columns", "labels", "batch"
    )
    assert set(states(findings).values()) == {"ok"}, findings


def test_checks_run_in_order_and_can_be_skipped(
    tmp_path: Path, tiny_texts: Path
) -> None:
    site = make_site(tmp_path, free_port(), tiny_texts)
    skip = [name for name in CHECKS if name not in ("versions", "key", "tcp", "batch")]
    findings = run_checks(site, Options(timeout_seconds=1.0), skip)
    names = [finding.check for finding in findings]
    assert names == ["versions", "tcp", "key", "batch"]
    assert not is_ready(findings)
    assert findings_as_json(site, findings)["ready"] is False
    with pytest.raises(ValueError, match="Nearest: 'memory'"):
        run_checks(site, Options(), ["memmory"])


@pytest.mark.slow
def test_join_sees_the_findings_of_checks_in_a_process_of_their_own(
    tmp_path: Path, tiny_texts: Path
) -> None:
    """A model that is missing is a problem there too."""
    site = make_site(tmp_path, 9092, tiny_texts, model=tmp_path / "missing")
    write_site_file(site, tmp_path / "site.yaml")
    found = check_apart(tmp_path / "site.yaml", ["device"])
    assert [finding.check for finding in found] == ["model", "lengths"]
    assert found[0].state == "problem"
    assert check_apart(tmp_path / "site.yaml", ["model", "lengths"]) == []


@pytest.mark.parametrize("end", ["late", "broken"])
def test_a_check_whose_process_ends_early_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    def run(words: list[str], **_: Any) -> SimpleNamespace:
        if end == "late":
            raise subprocess.TimeoutExpired(words, 1)
        return SimpleNamespace(stdout="")

    monkeypatch.setattr(subprocess, "run", run)
    found = check_apart(tmp_path / "site.yaml", ["lengths"])
    assert [(finding.check, finding.state) for finding in found] == [
        ("model", "warning")
    ]
    assert "wardround-site check" in found[0].next_step
