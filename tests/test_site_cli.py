"""`wardround-site init` and `check`, run as programs."""

from __future__ import annotations

import base64
import json
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    load_ssh_private_key,
    load_ssh_public_key,
)

from tests.support.fake_fleet import FakeFleet, fleet_server
from tests.support.site_door import QUICK, environment, site_command
from tests.support.site_lab import WIDE, free_port, make_certificates, make_site
from tests.support.versions import later
from wardround.client.site_file import load_site_file, write_site_file
from wardround.common.credentials import new_key, public_line
from wardround.common.wire.invitation import (
    Invitation,
    Registration,
    read_document,
    write_document,
)


def init(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """Run `init` with its required options."""
    if not (folder / "invitation.json").exists():
        write_invitation(folder / "invitation.json")
    words = ("init", "--invitation", "invitation.json", "--data", "letters.csv")
    columns = ("--text", "text", "--label", "label")
    return site_command(*words, *columns, *more, folder=folder)


def write_invitation(path: Path, **changes: Any) -> str:
    """Write an invitation for st_marys. Returns its fingerprint."""
    key = new_key("signing")
    facts: dict[str, Any] = {
        "site": "st_marys",
        "address": "localhost:9092",
        "ca": "a certificate",
        "signing_key": public_line(key),
        "versions": {"flwr": "1.39.0"},
        "labels": ("health", "sport"),
    }
    return write_document(Invitation(**facts | changes), path, key)  # type: ignore[arg-type]


def test_help_is_quick_and_imports_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys, wardround.client.kit.cli as c\nsys.argv[1:] = ['--help']\n"
        "try: c.main()\nexcept SystemExit: pass\n"
        "assert not {'torch', 'transformers', 'flwr', 'grpc'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(),
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"join" in done.stdout


def lines_with(fact: str, text: str) -> list[str]:
    """Return the lines that hold a fact."""
    return [line for line in text.splitlines() if fact in line]


def test_init_makes_keys_and_kit(tmp_path: Path) -> None:
    invited = write_invitation(tmp_path / "invitation.json")
    words = ("--dir", "site", "--device", "cpu", "--image", "example/site:1")
    done = init(tmp_path, *words)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "site"
    private, public = folder / "site.key", folder / "site.pub"
    (sending,) = lines_with("SEND to the coordinator", done.stdout)
    (never,) = lines_with("NEVER send", done.stdout)
    assert str(folder / "registration-st_marys.json") in sending
    assert f"{private}, {folder / 'signing.key'}" in never
    assert lines_with(invited, done.stdout)
    for secret in (private, folder / "signing.key"):
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert stat.S_IMODE((folder / "state").stat().st_mode) == 0o700
    sent, fingerprint = read_document(
        Registration, folder / "registration-st_marys.json"
    )
    assert (sent.site, sent.invitation) == ("st_marys", invited)
    assert lines_with(fingerprint, done.stdout)
    signing = folder / "signing.pub"
    assert sent.node_key == " ".join(public.read_text().split()[:2])
    assert sent.signing_key == " ".join(signing.read_text().split()[:2])
    key = load_ssh_private_key(private.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert isinstance(key.curve, ec.SECP384R1)
    assert load_ssh_public_key(public.read_bytes()) == key.public_key()
    assert public.read_text().startswith("ecdsa-sha2-nistp384 ")
    assert public.read_text().endswith(" st_marys\n")
    site = load_site_file(folder / "site.yaml")
    assert (site.data_path, site.ca) == (tmp_path / "letters.csv", folder / "ca.crt")
    assert site.ca.read_text() == "a certificate"
    assert (site.private_key, site.device) == (private, "cpu")
    services = yaml.safe_load((folder / "compose.yaml").read_text())["services"]
    container = services["site"]
    assert container["image"] == "example/site:1"
    assert container["read_only"] is True
    assert container["restart"] == "unless-stopped"
    assert "ports" not in container
    state = str(folder / "state")
    mounts = container["volumes"]
    sources = {mount["source"] for mount in mounts}
    assert sources == {str(folder), str(site.data_path), state}
    writable = [mount["source"] for mount in mounts if not mount.get("read_only")]
    assert writable == [state]
    unit = (folder / "wardround-site.service").read_text()
    assert f'join --site "{folder}/site.yaml"' in unit
    assert "$" not in unit.replace("${", "")


def test_init_writes_delimiter_and_encoding(tmp_path: Path) -> None:
    form = ("--delimiter", ";", "--encoding", "windows-1252")
    assert init(tmp_path, *form).returncode == 0
    site = load_site_file(tmp_path / "site.yaml")
    assert (site.delimiter, site.encoding) == (";", "windows-1252")
    wrong = init(tmp_path, "--dir", "other", "--delimiter", ";;")
    assert wrong.returncode == 2, wrong.stderr
    assert "data.delimiter is ';;'" in wrong.stderr
    assert not (tmp_path / "other").exists()


def test_init_overwrites_nothing(tmp_path: Path) -> None:
    assert init(tmp_path).returncode == 0
    key = (tmp_path / "site.key").read_bytes()
    again = init(tmp_path)
    assert again.returncode == 2
    assert "exists" in again.stderr
    assert "--dir" in again.stderr
    assert (tmp_path / "site.key").read_bytes() == key
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "site.yaml").write_text("mine")
    assert init(tmp_path, "--dir", "other").returncode == 2
    assert [file.name for file in (tmp_path / "other").iterdir()] == ["site.yaml"]


INIT = "init --data d --text t --label l --dir new"


@pytest.mark.parametrize(
    ("words", "fact"),
    [
        ("check --site gone.yaml", "wardround-site init"),
        ("check --skip-check memmory", "Nearest: 'memory'"),
        ("check --expect flwr", "PACKAGE=VERSION"),
        ("check --no-such-option", "--no-such-option"),
        (f"{INIT} --invitation gone.json", "gone.json' cannot be read"),
        (f"{INIT} --invitation site.yaml", "site.yaml' is no invitation"),
        (f"{INIT} --invitation upper.json", "small letters"),
        (f"{INIT} --invitation port.json", "host:port"),
        (
            f"{INIT} --invitation forged.json",
            "forged.json' was changed after it was signed",
        ),
    ],
)
def test_bad_input_is_exit_code_2(
    words: str, fact: str, tmp_path: Path, tiny_texts: Path
) -> None:
    write_site_file(make_site(tmp_path, 9092, tiny_texts), tmp_path / "site.yaml")
    write_invitation(tmp_path / "upper.json", site="UPPER")
    write_invitation(tmp_path / "port.json", address="localhost")
    write_invitation(tmp_path / "forged.json")
    envelope = json.loads((tmp_path / "forged.json").read_text())
    payload = base64.b64decode(envelope["payload"]).replace(
        b"localhost:9092", b"attackers:9092"
    )
    envelope["payload"] = base64.b64encode(payload).decode()
    (tmp_path / "forged.json").write_text(json.dumps(envelope))
    done = site_command(*words.split(), folder=tmp_path)
    assert done.returncode == 2, done.stderr
    assert fact in done.stderr
    assert "Traceback" not in done.stderr


def test_check_prints_lines_or_json(tmp_path: Path, tiny_texts: Path) -> None:
    fleet = FakeFleet()
    with fleet_server(make_certificates(tmp_path), fleet) as port:
        write_site_file(make_site(tmp_path, port, tiny_texts), tmp_path / "site.yaml")
        plain = site_command("check", *QUICK, folder=tmp_path)
        fleet.refusal = "unknown_key"
        done = site_command(
            "check", "--json", "--labels", "sport,money", *QUICK, folder=tmp_path
        )
    assert plain.returncode == 0, plain.stdout + plain.stderr
    assert "ok      tls" in plain.stdout
    assert done.returncode == 1
    report = json.loads(done.stdout)
    assert set(report) == {"site", "ready", "checks"}
    assert report["site"] == "st_marys"
    assert report["ready"] is False
    checks = report["checks"]
    problems = [found["check"] for found in checks if found["state"] == "problem"]
    assert problems == ["registered", "mapping"]
    for finding in checks:
        assert set(finding) == {"check", "state", "message", "next_step"}
        assert finding["state"] in ("ok", "warning", "problem")
        assert finding["next_step"] or finding["state"] != "problem"


@pytest.mark.parametrize("own_labels", [False, True])
def test_join_compares_with_the_invitation_as_check_does(
    tmp_path: Path, tiny_texts: Path, own_labels: bool
) -> None:
    """A list of labels in the site's own policy replaces the invitation's."""
    write_invitation(tmp_path / "invitation.json", versions={"wardround": later(2)})
    labels = ("sport", "money", "health") if own_labels else None
    site = make_site(
        tmp_path,
        free_port(),
        tiny_texts,
        invitation=tmp_path / "invitation.json",
        policy=replace(WIDE, labels=labels),
    )
    write_site_file(site, tmp_path / "site.yaml")
    # So that `join` ends in any case.
    site.private_key.chmod(0o640)
    checked = site_command("check", *QUICK, folder=tmp_path)
    joined = site_command("join", *QUICK, folder=tmp_path)
    for done in (checked, joined):
        assert done.returncode == 1, done.stderr
        assert f"not {later(2)} as in the invitation" in done.stdout
        is_refused = "not among the consortium's labels" in done.stdout
        assert is_refused != own_labels
    assert "key" in joined.stdout.splitlines()[-1]
    assert ("mapping" in joined.stdout.splitlines()[-1]) != own_labels


def test_a_missing_model_is_a_line_of_the_table(
    tmp_path: Path, tiny_texts: Path
) -> None:
    write_site_file(
        make_site(tmp_path, free_port(), tiny_texts), tmp_path / "site.yaml"
    )
    gone = str(tmp_path / "no" / "such" / "model")
    plain = site_command("check", "--model", gone, *QUICK, folder=tmp_path)
    assert (plain.returncode, plain.stderr) == (1, "")
    assert f"problem model       --model {gone} " in plain.stdout
    assert "ok      labels      sport 16, money 16, health 16" in plain.stdout
    words = ("check", "--json", "--model", gone, *QUICK)
    report = json.loads(site_command(*words, folder=tmp_path).stdout)
    (found,) = [finding for finding in report["checks"] if finding["check"] == "model"]
    assert found["state"] == "problem"
    assert "--model" in found["next_step"]
