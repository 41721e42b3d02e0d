"""The parts of a release: hashes of all packages, a list of them, images, and a site's unit."""

from __future__ import annotations

import configparser
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.markers import Marker
from packaging.utils import canonicalize_name

from release.requirements import is_for_linux, without
from release.sbom import add_hashes, published_hashes

ROOT = Path(__file__).resolve().parents[1]
REQUIREMENTS = ROOT / "requirements"
INSTALLED = ("build", "run", "torch", "demo", "dev")
"""The files of hashes, without sbom.txt: its packages have an environment of their own."""
_KIT = ROOT / "client" / "kit" / "files"


def pins(text: str) -> dict[str, str]:
    """Return the version of every line NAME==VERSION, by normalised name."""
    found = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;]+)", text, re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


def text_of(name: str) -> str:
    """Return one file of hashes."""
    return (REQUIREMENTS / f"{name}.txt").read_text(encoding="ascii")


# --- hashes ---------------------------------------------------------------------------


def test_every_pinned_package_has_hashes_of_the_same_version() -> None:
    pinned = pins((ROOT / "constraints.txt").read_text(encoding="ascii"))
    assert len(pinned) > 100
    hashed: dict[str, set[str]] = {}
    for name in INSTALLED:
        for package, version in pins(text_of(name)).items():
            hashed.setdefault(package, set()).add(version)
    assert hashed == {package: {version} for package, version in pinned.items()}


@pytest.mark.parametrize("name", [*INSTALLED, "sbom"])
def test_every_package_of_a_file_has_hashes(name: str) -> None:
    text = text_of(name)
    blocks = re.findall(r"^[^#\s].*(?:\n +.*)*", text, re.MULTILINE)
    assert len(blocks) == len(pins(text)) > 0
    for block in blocks:
        hashes = re.findall(
            r"^    --hash=sha256:[0-9a-f]{64}(?: \\)?$", block, re.MULTILINE
        )
        assert len(hashes) == len(block.splitlines()) - 1 > 0, block.splitlines()[0]


def test_pip_reads_the_files_and_their_packages_are_installed_here() -> None:
    """pip fetches nothing, so another version than the installed one would be an error."""
    words = ["install", "--dry-run", "--no-index", "--no-deps"]
    words += ["--require-hashes", "--quiet"]
    for name in ("run", "demo", "dev"):
        words += ["-r", str(REQUIREMENTS / f"{name}.txt")]
    done = subprocess.run(
        [sys.executable, "-m", "pip", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_a_package_for_another_system_is_left_out() -> None:
    for marker, is_kept in (
        ("sys_platform == 'win32'", False),
        ("sys_platform == 'linux'", True),
        ("platform_machine == 'aarch64'", True),
        ("python_full_version < '3.11'", False),
        ("python_full_version >= '3.13'", True),
    ):
        assert is_for_linux(Marker(marker)) is is_kept, marker
    assert is_for_linux(None)
    assert without({"a": "1", "b": "2"}, {"b": "3"}) == {"a": "1"}


def test_the_images_install_nothing_without_a_hash() -> None:
    text = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
    installs = re.findall(r"pip install ([^&;\n]*)", text.replace("\\\n", " "))
    assert len(installs) == 5
    without_hash = [
        words.strip() for words in installs if "--require-hashes" not in words
    ]
    assert without_hash == ["--no-deps --no-build-isolation /src"]


# --- the list of installed packages ---------------------------------------------------


def test_every_package_gets_its_hashes_and_the_others_are_returned() -> None:
    yaml_version = pins(text_of("run"))["pyyaml"]
    components: list[dict[str, Any]] = [
        {"name": "PyYAML", "version": yaml_version},
        {"name": "torch", "version": "2.13.0+cpu"},
        {"name": "own", "version": "1", "externalReferences": [{"type": "vcs"}]},
    ]
    bom = {"components": [{"type": "library"} | part for part in components]}
    without_hash = add_hashes(bom, published_hashes(REQUIREMENTS))
    assert without_hash == ["own 1", "torch 2.13.0+cpu"]
    known, *others = bom["components"]
    (reference,) = known["externalReferences"]
    assert reference["type"] == "distribution"
    assert reference["url"] == "https://pypi.org/simple/pyyaml/"
    block = text_of("run").split("\npyyaml==")[1].split("\n", 1)[1]
    first = re.findall(r"--hash=sha256:([0-9a-f]{64})", block)[0]
    assert reference["hashes"][0] == {"alg": "SHA-256", "content": first}
    assert "hashes" not in json.dumps(others)


# --- a site's unit and container ------------------------------------------------------


def unit() -> dict[str, list[str]]:
    """Return the values of every key of the section Service; a key can occur several times."""
    parser = configparser.ConfigParser(
        strict=False, interpolation=None, delimiters=("=",)
    )
    parser.optionxform = str  # type: ignore[method-assign,assignment]
    text = (_KIT / "wardround-site.service").read_text(encoding="utf-8")
    parser.read_string(text)
    assert parser.sections() == ["Unit", "Service", "Install"]
    lines = text.split("[Service]")[1].split("[Install]")[0].splitlines()
    found: dict[str, list[str]] = {}
    for line in lines:
        if line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def test_the_unit_has_bounds_and_few_rights() -> None:
    said = unit()
    for key, value in {
        "UMask": "0077",
        "MemoryMax": "80%",
        "TasksMax": "4096",
        "NoNewPrivileges": "true",
        "CapabilityBoundingSet": "",
        "ProtectSystem": "strict",
        "SystemCallArchitectures": "native",
        "RestrictAddressFamilies": "AF_INET AF_INET6 AF_UNIX AF_NETLINK",
    }.items():
        assert said[key] == [value], key
    assert said["SystemCallFilter"] == ["@system-service", "~@privileged"]
    # PyTorch writes code while it runs; gRPC binds a socket to find out whether there is IPv6.
    assert {"MemoryDenyWriteExecute", "SocketBindDeny"} & set(said) == set()


def test_containers_have_bounds() -> None:
    template = (_KIT / "compose.yaml").read_text(encoding="utf-8")
    filled = template.replace("${memory}", "1000").replace("$volumes", "")
    site = yaml.safe_load(filled)["services"]["site"]
    assert site["mem_limit"] == "1000m"
    assert site["memswap_limit"] == "1000m"
    assert site["pids_limit"] == 4096
    services = services_of(ROOT / "docker-compose.yml")
    services |= services_of(ROOT / "docker" / "client.yml")
    for name in ("init", "server", "run", "client"):
        assert {"mem_limit", "pids_limit", "read_only"} <= set(services[name]), name


def services_of(file: Path) -> dict[str, Any]:
    """Return the services of a compose file, by name."""
    found: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))["services"]
    return found


def test_the_links_of_the_security_page_lead_to_headings_that_exist() -> None:
    page = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([\w./-]+)(?:#([\w-]+))?\)", page)
    assert len(links) >= 4
    for path, anchor in links:
        linked = (ROOT / path).read_text(encoding="utf-8")
        headings = re.findall(r"^#+ (.+)$", linked, re.MULTILINE)
        slugs = {
            re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-")
            for heading in headings
        }
        assert not anchor or anchor in slugs, (path, anchor)
