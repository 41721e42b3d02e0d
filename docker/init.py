"""First start of the compose demo: make certificates, and keys and a file of texts for each client.

It runs as root with two capabilities and without a network. It keeps everything that exists
already.
"""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from wardround.common.data.dataset import read_texts
from wardround.common.data.texts import TextsAndTargets
from wardround.common.tasks.table import task_of
from wardround.common.wire.invitation import registration_file
from wardround.server.compose import compose
from wardround.server.deployment.folder import ServerFolder
from wardround.server.deployment.sites import (
    invite_site,
    register_site,
    unregister_site,
)

AUTHORITY = Path("/authority")
SERVER = Path("/server")
SITES = Path("/sites")
OUTPUTS = Path("/wardround/outputs")
POLICY = Path(__file__).with_name("policy.yaml")
TEXTS_PER_CLIENT = 60
"""Mean number of texts; the last client has three times as many as the first."""
MOST_EXAMPLES = 2 * TEXTS_PER_CLIENT
"""Limit on the texts that a client may report: more than the largest part has."""


def main() -> None:
    """Make all missing files, and give them to the user of the other containers."""
    num_clients, owner = _read_environment()
    os.umask(0o077)
    _check_outputs(owner)
    _make_server_folder()
    names = [f"client-{number}" for number in range(1, num_clients + 1)]
    _make_texts(names)
    _register(names)
    for folder in (SERVER, *(SITES / name for name in names)):
        _change_owner(folder, owner)
    files = f"a key pair and a file of texts for {num_clients} clients"
    print(f"ready: the server's certificate, and {files}")  # noqa: T201


def _read_environment() -> tuple[int, tuple[int, int]]:
    """Return the number of clients, and user and group of the other containers."""
    num_clients = os.environ["CLIENTS"]
    wanted = os.environ.get("CLIENTS_ASKED_FOR", "")
    if wanted not in ("", num_clients):
        raise ValueError(
            f"CLIENTS is {wanted}, but {num_clients} clients are set up, each with a network of "
            f"its own. "
            f"Run: docker/clients.sh {wanted}, then the same command again without CLIENTS."
        )
    user, _, group = os.environ["OWNER"].partition(":")
    if not (user.isdecimal() and group.isdecimal()) or user == "0":
        raise ValueError(
            f"WARDROUND_USER is '{os.environ['OWNER']}'; give two numbers that are not those of "
            f"root. "
            "Set it to what this prints: echo $(id -u):$(id -g)"
        )
    return int(num_clients), (int(user), int(group))


def _check_outputs(owner: tuple[int, int]) -> None:
    """Make sure that the server can write to ./outputs. Docker creates a missing folder for
    root."""
    found = OUTPUTS.stat()
    if found.st_uid == 0:
        os.chown(OUTPUTS, *owner)
    elif found.st_uid != owner[0]:
        raise ValueError(
            f"./outputs belongs to user {found.st_uid}, but the containers run as {owner[0]}. Run: "
            f"export WARDROUND_USER={found.st_uid}:{found.st_gid}, then the same command again."
        )


def _make_server_folder() -> None:
    """Make the server folder. The authority's key stays in a volume that only this program can
    read."""
    if not (AUTHORITY / "server.yaml").exists():
        _empty(AUTHORITY)
        _run("wardround", "server", "init", "--name", "server", "--dir", str(AUTHORITY))
    if not (SERVER / "server.yaml").exists():
        # server.yaml is last: without it the folder does not count.
        for name in (
            "ca.crt",
            "server.crt",
            "server.key",
            "signing.key",
            "sites.json",
            "server.yaml",
        ):
            shutil.copy2(AUTHORITY / name, SERVER / name)


def _make_texts(names: list[str]) -> None:
    """Give unequal parts of the demo's texts to the clients that have none."""
    if all((SITES / name / "texts.csv").exists() for name in names):
        return
    settings = compose(["experiment=compose", f"num_clients={len(names)}"]).settings
    data = read_texts(task_of(settings), settings.data, settings.seed)
    assert settings.data.label_names is not None
    parts = _deal(data.train, len(names), settings.seed)
    for name, texts in zip(names, parts, strict=True):
        file = SITES / name / "texts.csv"
        if not file.exists():
            _write_csv(file, texts, settings.data.label_names)


def _deal(
    texts: TextsAndTargets, num_parts: int, seed: int
) -> Iterator[TextsAndTargets]:
    """Yield disjoint parts with a mean of TEXTS_PER_CLIENT texts, or less if there are too few
    texts."""
    total = min(TEXTS_PER_CLIENT * num_parts, len(texts))
    weights = np.linspace(1, 3, num_parts)
    ends = np.cumsum(weights / weights.sum() * total).round().astype(int)
    rows = np.random.default_rng(seed).permutation(len(texts))
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        yield texts.take(rows[start:end])


def _write_csv(
    path: Path, texts: TextsAndTargets, label_names: tuple[str, ...]
) -> None:
    part = path.with_suffix(".part")
    with part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows(
            (text, label_names[label])
            for text, label in zip(texts.texts, texts.targets, strict=True)
        )
    part.replace(path)


def _register(names: list[str]) -> None:
    """Invite each client, run `wardround-site init` for it, and register it."""
    folder = ServerFolder(SERVER)
    registered = folder.sites()
    for name in registered.keys() - set(names):
        unregister_site(folder, name)
    for name in names:
        site = SITES / name
        if name in registered:
            if (site / "site.yaml").exists():
                continue
            unregister_site(folder, name)
        # Files from an interrupted init or an earlier version.
        for path in site.iterdir():
            if path.name not in ("texts.csv", "state"):
                path.unlink()
        invitation, _ = invite_site(folder, name)
        options = ["--invitation", str(invitation), "--dir", str(site)]
        options += ["--data", str(site / "texts.csv"), "--policy", str(POLICY)]
        options += ["--text", "text", "--label", "label"]
        _run("wardround-site", "init", *options)
        register_site(
            folder, name, site / registration_file(name), max_examples=MOST_EXAMPLES
        )


def _change_owner(folder: Path, owner: tuple[int, int]) -> None:
    for path in (folder, *folder.rglob("*")):
        os.chown(path, *owner, follow_symlinks=False)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _run(*words: str) -> None:
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise ValueError(f"`{' '.join(words[:3])}` failed: {done.stderr.strip()}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
