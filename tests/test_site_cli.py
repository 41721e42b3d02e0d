"""`wardround-site init` and `check` as an engineer at a site types them."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from client.site_file import load_site_file, write_site_file
from tests.site_door import QUICK, environment, site_command
from tests.site_lab import Fleet, fleet_server, make_certificates, make_site


def init(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """`init` with what it needs."""
    words = "init st_marys --server localhost:9092 --ca ca.crt --data letters.csv --text text --label label"
    return site_command(*words.split(), *more, folder=folder)


def test_help_is_quick_and_imports_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys, client.cli as c\nsys.argv[1:] = ['--help']\ntry: c.main()\nexcept SystemExit: pass\n"
        "assert not {'torch', 'transformers', 'flwr', 'grpc'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), cwd=tmp_path, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert b"join" in done.stdout


def test_init_makes_keys_and_kit(tmp_path: Path) -> None:
    done = init(tmp_path, "--dir", "site", "--device", "cpu", "--image", "example/site:1")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "site"
    private, public = folder / "site.key", folder / "site.pub"
    assert f"SEND to the coordinator:  {public}" in done.stdout
    assert f"NEVER send to anybody:    {private}" in done.stdout
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    key = load_ssh_private_key(private.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert isinstance(key.curve, ec.SECP384R1)
    assert load_ssh_public_key(public.read_bytes()) == key.public_key()
    assert public.read_text().startswith("ecdsa-sha2-nistp384 ")
    assert public.read_text().endswith(" st_marys\n")
    told = subprocess.run(
        ["ssh-keygen", "-lf", str(public)], capture_output=True, text=True, check=True
    ).stdout
    assert told.split()[:2] == ["384", done.stdout.partition("fingerprint is")[2].split()[0]]
    site = load_site_file(folder / "site.yaml")
    assert (site.data_path, site.ca) == (tmp_path / "letters.csv", tmp_path / "ca.crt")
    assert (site.private_key, site.device) == (private, "cpu")
    container = yaml.safe_load((folder / "compose.yaml").read_text())["services"]["site"]
    assert (container["image"], container["read_only"], container["restart"]) == (
        "example/site:1",
        True,
        "unless-stopped",
    )
    assert "ports" not in container
    assert {mount["source"] for mount in container["volumes"]} == {
        str(folder),
        str(site.data_path),
        str(site.ca),
    }
    assert all(mount["read_only"] for mount in container["volumes"])
    unit = (folder / "wardround-site.service").read_text()
    assert f'join --site "{folder}/site.yaml"' in unit
    assert "$" not in unit.replace("${", "")


def test_init_never_overwrites(tmp_path: Path) -> None:
    assert init(tmp_path).returncode == 0
    key = (tmp_path / "site.key").read_bytes()
    again = init(tmp_path)
    assert again.returncode == 2
    assert "never overwritten" in again.stderr
    assert (tmp_path / "site.key").read_bytes() == key
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "site.yaml").write_text("mine")
    assert init(tmp_path, "--dir", "other").returncode == 2
    assert [file.name for file in (tmp_path / "other").iterdir()] == ["site.yaml"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("check --site gone.yaml", "wardround-site init"),
        ("check --skip-check memmory", "Nearest: 'memory'"),
        ("check --expect flwr", "PACKAGE=VERSION"),
        ("check --no-such-option", "No such option"),
        ("init UPPER --server a:1 --ca c --data d --text t --label l --dir new", "small letters"),
        ("init a --server a --ca c --data d --text t --label l --dir new", "host:port"),
    ],
)
def test_bad_input_is_exit_code_2(words: str, told: str, tmp_path: Path, tiny_texts: Path) -> None:
    write_site_file(make_site(tmp_path, 9092, tiny_texts), tmp_path / "site.yaml")
    done = site_command(*words.split(), folder=tmp_path)
    assert (done.returncode, told in done.stderr) == (2, True), done.stderr
    assert "Traceback" not in done.stderr


def test_check_prints_words_and_json(tmp_path: Path, tiny_texts: Path) -> None:
    fleet = Fleet()
    with fleet_server(make_certificates(tmp_path), fleet) as port:
        write_site_file(make_site(tmp_path, port, tiny_texts), tmp_path / "site.yaml")
        plain = site_command("check", *QUICK, folder=tmp_path)
        fleet.code = 2004
        done = site_command("check", "--json", "--labels", "sport,money", *QUICK, folder=tmp_path)
    assert plain.returncode == 0, plain.stdout + plain.stderr
    assert "ok      tls" in plain.stdout
    assert done.returncode == 1
    told = json.loads(done.stdout)
    assert (set(told), told["site"], told["ready"]) == ({"site", "ready", "checks"}, "st_marys", False)
    problems = [finding["check"] for finding in told["checks"] if finding["state"] == "problem"]
    assert problems == ["registered", "mapping"]
    for finding in told["checks"]:
        assert set(finding) == {"check", "state", "message", "next_step"}
        assert finding["state"] in ("ok", "warning", "problem")
        assert finding["next_step"] or finding["state"] != "problem"
