"""Checks of this machine: versions, keys, disk, memory, device."""

from __future__ import annotations

import os
import platform
import shutil
import stat
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from wardround.client.kit.checks.findings import Finding, ok, problem, warning
from wardround.client.kit.checks.model import find_weights
from wardround.client.kit.checks.subject import Subject
from wardround.client.site_file import SiteFile, signing_keys
from wardround.common.credentials import NEW_KEYS, public_line, read_private_key
from wardround.common.runtime import available_memory, resolve_device
from wardround.common.versions import NAME, PACKAGES, work_together
from wardround.common.words import pasteable, shown

# Later versions of Flower have dropped gRPC between site and server.
_FLOWER = "1.39"
_GIB = 2**30
# BERT-base in fp32: 110 million parameters of 4 bytes.
_USUAL_MODEL_BYTES = 440_000_000
# Weights, gradients and at most two numbers of the optimiser per weight.
_MEMORY_PER_MODEL = 4
# Python, PyTorch and the activations of a batch of 32 texts of 128 tokens.
_MEMORY_BESIDE = 2 * _GIB
_DISK_BESIDE = _GIB


def versions(on: Subject) -> Finding:
    """Compare the installed versions with the required ones, and with the invitation's.

    The server may have been updated since the invitation, so another version than the
    invitation's is a warning. At the greeting the server's own version counts.
    """
    expect = dict(on.options.expect)
    invited = {
        name: number
        for name, number in on.options.invited.items()
        if name not in expect
    }
    found = _installed_versions(expect)
    here = ", ".join(
        f"{shown(name)} {number or 'missing'}" for name, number in found.items()
    )
    wrong = _differences(found, {"flwr": _FLOWER} | expect)
    if wrong:
        return problem(
            f"{wrong} (here: {here})",
            "Install the coordinator's versions, for example: pip install 'flwr==1.39.*'",
        )
    wrong = _differences(found, invited)
    if wrong:
        return warning(
            f"{wrong} as in the invitation (here: {here})",
            "Ask the coordinator for the server's versions, and install the same ones: "
            "they may have changed since the invitation.",
        )
    theirs = (invited | expect).get(NAME, "")
    if not invited and not expect:
        return ok(f"{here}; not compared with the server's (use --expect flwr=…)")
    if not str(found[NAME]).startswith(theirs):
        return ok(
            f"{here}; works with the coordinator's {NAME}, which is {shown(theirs)}"
        )
    return ok(here)


def _differences(found: Mapping[str, str | None], required: Mapping[str, str]) -> str:
    """Return the versions that do not fit the required ones, in words; "" if all fit."""
    return "; ".join(
        f"{shown(name)} is {found[name] or 'missing'}, not {shown(number)}"
        for name, number in required.items()
        if not fits(name, found[name] or "", number)
    )


def _installed_versions(expect: Mapping[str, str]) -> dict[str, str | None]:
    """Return the version of each package; None for one that is missing."""
    names = [name for name in (*PACKAGES, *expect) if name != "python"]
    found = {name: _installed(name) for name in names}
    found["python"] = platform.python_version()
    return found


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def fits(name: str, here: str, required: str) -> bool:
    """Return if an installed version will do.

    Wardround's may be one minor version apart; others must begin with the required one.
    """
    if name == NAME:
        return work_together(here, required)
    return here == required or here.startswith((f"{required}.", f"{required}+"))


def key(on: Subject) -> Finding:
    """Check that the site's keys are private, of the right kinds, and in pairs."""
    private = on.site.private_key
    public = on.site.public_key
    node_key = read_private_key(private, "node", "key.private", NEW_KEYS)
    signing_keys(on.site)
    readable = _readable_by_others(on.site)
    if readable is not None:
        return readable
    make_public = f"ssh-keygen -yf {private} > {public}"
    try:
        line = public.read_text(encoding="ascii").split()[:2]
    except (OSError, UnicodeDecodeError):
        return problem(f"key.public: {public} cannot be read", make_public)
    if line != public_line(node_key).split():
        return problem(
            f"key.public: {public} is not the other half of {private.name}",
            f"{make_public}; register it anew if the coordinator has another one.",
        )
    return ok(
        f"{private.name} (P-384) is private and matches {public.name}; "
        "this site's signing key and the coordinator's are there"
    )


def _readable_by_others(site: SiteFile) -> Finding | None:
    """Return a problem if another user can read a private key."""
    secrets = {
        "key.private": site.private_key,
        "key.signing": site.signing_key or site.private_key,
    }
    for setting, secret in secrets.items():
        mode = stat.S_IMODE(secret.stat().st_mode)
        if mode & 0o077:
            return problem(
                f"{setting}: {secret} can be read by others (mode {mode:04o})",
                f"chmod 600 {pasteable(secret)}. If other people have logins here, make new keys "
                "and have them registered.",
            )
    return None


def disk(on: Subject) -> Finding:
    """Check the room for the model, if it is fetched, and 1 GiB for Flower and the hub."""
    needed = _DISK_BESIDE
    if on.site.model is None:
        needed += _USUAL_MODEL_BYTES
    for variable in ("FLWR_HOME", "HF_HOME"):
        try:
            home = Path(os.environ.get(variable) or Path.home()).absolute()
        except RuntimeError:
            if variable == "HF_HOME" and on.site.model is None:
                return problem(
                    "this user has no home folder, so a fetched model has no place",
                    "Set HF_HOME to a folder that this user may write.",
                )
            continue  # nothing is written there
        folder = next(path for path in (home, *home.parents) if path.exists())
        free = shutil.disk_usage(folder).free
        if free < needed:
            return problem(
                f"{needed / _GIB:.1f} GiB needed; {free / _GIB:.1f} GiB free in {folder}",
                "Make room, or set FLWR_HOME and HF_HOME to folders on a larger disk.",
            )
    return ok(f"{needed / _GIB:.1f} GiB needed; enough is free")


def memory(on: Subject) -> Finding:
    """Compare the free memory with 4 x the weights and 2 GiB.

    This is a rule of thumb, for fp32 and batches of 32 texts of 128 tokens.
    """
    available = available_memory()
    if available is None:
        return warning("not checked: this system does not report its free memory")
    weights = [] if on.site.model is None else find_weights(on.site.model)
    size = sum(file.stat().st_size for file in weights) or _USUAL_MODEL_BYTES
    needed = _MEMORY_PER_MODEL * size + _MEMORY_BESIDE
    message = f"about {needed / _GIB:.1f} GiB needed"
    if on.site.model is None:
        message += " for a model of the size of BERT-base"
    message += f"; {available / _GIB:.1f} GiB free"
    if available < needed:
        return warning(
            message,
            "End other programs, give the container more memory, or agree on a smaller "
            "model or batch.",
        )
    return ok(message)


def device(on: Subject) -> Finding:
    """Check that the device of site.yaml exists."""
    on_the_cpu = ok(f"cpu, {os.cpu_count()} CPUs")
    if on.site.device == "cpu":
        return on_the_cpu

    # It takes seconds, and a site that trains on the CPU needs it in its worker alone.
    import torch

    try:
        found = resolve_device(on.site.device)
    except ValueError as error:
        return problem(
            str(error),
            f"nvidia-smi lists the GPUs. This is torch {torch.__version__}.",
        )
    if found.type == "cuda":
        facts = torch.cuda.get_device_properties(found)
        return ok(f"{found}: {facts.name}, {facts.total_memory / _GIB:.0f} GiB")
    if on.site.device == "auto" and found.type == "cpu":
        return warning(
            "no GPU found (device: auto), so this site trains on the CPU",
            "Without a GPU: set device: cpu; it works, but is slow. "
            "With a GPU: install PyTorch's build for it.",
        )
    return on_the_cpu if found.type == "cpu" else ok(f"{found}")
