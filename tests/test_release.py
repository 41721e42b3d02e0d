"""What a release is made of: hashes of all packages, a list of them, images, and a site's unit."""

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
"""Beside sbom.txt, whose packages have an environment of their own."""
_KIT = ROOT / "client" / "kit" / "files"


def pins(text: str) -> dict[str, str]:
    """Version by normalised name of every line NAME==VERSION."""
    found = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;]+)", text, re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


def text_of(name: str) -> str:
    """One file of hashes."""
    return (REQUIREMENTS / f"{name}.txt").read_text(encoding="ascii")


# --- hashes ---------------------------------------------------------------------------------------


def test_what_is_pinned_is_hashed_in_the_same_version() -> None:
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


def test_pip_reads_the_files_and_these_tests_run_with_what_they_say() -> None:
    """All of it is installed already, so that nothing is fetched: another version would have to be."""
    files = [
        word
        for name in ("run", "demo", "dev")
        for word in ("-r", str(REQUIREMENTS / f"{name}.txt"))
    ]
    words = (
        "install",
        "--dry-run",
        "--no-index",
        "--no-deps",
        "--require-hashes",
        "--quiet",
        *files,
    )
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
    text = (
        (ROOT / "docker" / "Dockerfile")
        .read_text(encoding="utf-8")
        .replace("\\\n", " ")
    )
    installs = re.findall(r"pip install ([^&;\n]*)", text)
    assert len(installs) == 5
    assert [words.strip() for words in installs if "--require-hashes" not in words] == [
        "--no-deps --no-build-isolation /src"
    ]


# --- the list of what is installed ----------------------------------------------------------------


def test_every_package_gets_its_hashes_and_the_others_are_told() -> None:
    bom: dict[str, Any] = {
        "components": [
            {
                "name": "PyYAML",
                "version": pins(text_of("run"))["pyyaml"],
                "type": "library",
            },
            {"name": "torch", "version": "2.13.0+cpu", "type": "library"},
            {
                "name": "own",
                "version": "1",
                "type": "library",
                "externalReferences": [{"type": "vcs"}],
            },
        ]
    }
    assert add_hashes(bom, published_hashes(REQUIREMENTS)) == [
        "own 1",
        "torch 2.13.0+cpu",
    ]
    known, *others = bom["components"]
    (reference,) = known["externalReferences"]
    assert (reference["type"], reference["url"]) == (
        "distribution",
        "https://pypi.org/simple/pyyaml/",
    )
    block = text_of("run").split("\npyyaml==")[1].split("\n", 1)[1]
    first = re.findall(r"--hash=sha256:([0-9a-f]{64})", block)[0]
    assert reference["hashes"][0] == {"alg": "SHA-256", "content": first}
    assert "hashes" not in json.dumps(others)


# --- a site's unit and container ------------------------------------------------------------------


def unit() -> dict[str, list[str]]:
    """The values of every key of the section Service; one key can stand there several times."""
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


def test_the_unit_has_bounds_and_no_rights() -> None:
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
    site = yaml.safe_load(
        template.replace("${memory}", "1000").replace("$volumes", "")
    )["services"]["site"]
    assert (site["mem_limit"], site["memswap_limit"], site["pids_limit"]) == (
        "1000m",
        "1000m",
        4096,
    )
    services = yaml.safe_load(
        (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    )["services"]
    client = yaml.safe_load(
        (ROOT / "docker" / "client.yml").read_text(encoding="utf-8")
    )["services"]["client"]
    for name in ("init", "server", "run"):
        assert {"mem_limit", "pids_limit", "read_only"} <= set(services[name]), name
    assert {"mem_limit", "pids_limit", "read_only"} <= set(client)


def test_the_page_for_reports_links_to_what_is_there() -> None:
    page = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([\w./-]+)(?:#([\w-]+))?\)", page)
    assert len(links) >= 4
    for path, anchor in links:
        headings = re.findall(
            r"^#+ (.+)$", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE
        )
        slugs = {
            re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-")
            for heading in headings
        }
        assert not anchor or anchor in slugs, (path, anchor)
