"""Checks of the site's machine: versions, key files, disk, memory, device, pre-trained model."""

from __future__ import annotations

import json
import os
import platform
import shutil
import stat
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from client.kit.findings import Finding, from_error
from client.kit.site_file import SiteFile, signing_keys
from common.credentials import NEW_KEYS, public_line, read_private_key

PACKAGES = ("wardround", "flwr", "torch", "transformers")
FLOWER = "1.39"
"""The Flower this project talks; later ones have dropped gRPC between site and server."""
_GIB = 2**30
# BERT-base in fp32: 110 million parameters of 4 bytes.
_USUAL_MODEL_BYTES = 440_000_000
# Weights, gradients and at most two numbers of the optimiser per weight; nothing is kept twice in training.
MEMORY_PER_MODEL = 4
# Python, PyTorch and the activations of a batch of 32 texts of 128 tokens.
_MEMORY_BESIDE = 2 * _GIB
_DISK_BESIDE = _GIB
_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
_TOKENIZERS = ("tokenizer.json", "vocab.txt", "spiece.model", "vocab.json")


def check_versions(expect: Mapping[str, str]) -> Finding:
    """Installed versions; compared with those that were told."""
    found = {name: _installed(name) for name in dict.fromkeys([*PACKAGES, *expect]) if name != "python"}
    found["python"] = platform.python_version()
    said = ", ".join(f"{name} {number or 'missing'}" for name, number in found.items())
    wanted = {"flwr": FLOWER} | dict(expect)
    wrong = [
        f"{name} is {found[name] or 'missing'}, not {number}"
        for name, number in wanted.items()
        if not _matches(found[name], number)
    ]
    if wrong:
        step = "Install the versions the coordinator names, for example: pip install 'flwr==1.39.*'"
        return Finding("versions", "problem", f"{'; '.join(wrong)} (here: {said})", step)
    compared = "" if expect else "; not compared with the server's (--expect flwr=…)"
    return Finding("versions", "ok", said + compared)


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _matches(found: str | None, wanted: str) -> bool:
    return found is not None and (found == wanted or found.startswith((f"{wanted}.", f"{wanted}+")))


def check_key(site: SiteFile) -> Finding:
    """The private keys are the site's own and of the right kinds, and the public file is the other half."""
    private, public = site.private_key, site.public_key
    try:
        key = read_private_key(private, "node", "key.private", NEW_KEYS)
        signing_keys(site)
    except ValueError as error:
        return from_error("key", error)
    for setting, secret in (("key.private", private), ("key.signing", site.signing_key or private)):
        mode = stat.S_IMODE(secret.stat().st_mode)
        if mode & 0o077:
            text = f"{setting}: {secret} can be read by others (mode {mode:04o})"
            step = f"chmod 600 {secret}; if others have logins here, make new keys and have them registered."
            return Finding("key", "problem", text, step)
    try:
        given = public.read_text(encoding="ascii").split()[:2]
    except (OSError, UnicodeDecodeError):
        return Finding(
            "key", "problem", f"key.public: {public} cannot be read", f"ssh-keygen -yf {private} > {public}"
        )
    if given != public_line(key).split():
        return Finding(
            "key",
            "problem",
            f"key.public: {public} is not the other half of {private.name}",
            f"ssh-keygen -yf {private} > {public}; have it registered if another one was sent.",
        )
    return Finding(
        "key",
        "ok",
        f"{private.name} is P-384, readable by its owner only, and matches {public.name}; the key "
        "that signs answers and the coordinator's are there",
    )


def model_bytes(site: SiteFile) -> int:
    """Size of the weights of the local copy; of a BERT-base where there is none."""
    weights = [] if site.model is None else _weights(site.model)
    return sum(file.stat().st_size for file in weights) or _USUAL_MODEL_BYTES


def _weights(folder: Path) -> list[Path]:
    """Files of the weights that are loaded: the first kind there is."""
    try:
        kinds = [[*folder.glob(pattern)] for pattern in _WEIGHTS]
    except PermissionError:  # the finding `model` says so
        return []
    return next(filter(None, kinds), [])


def check_disk(site: SiteFile) -> Finding:
    """Room for the model, if it has to be fetched, and 1 GiB beside it, where Flower and the hub write."""
    needed = _DISK_BESIDE + (0 if site.model is not None else model_bytes(site))
    home = Path(os.environ.get("FLWR_HOME") or Path.home())
    hub = Path(os.environ.get("HF_HOME") or Path.home())
    folders = dict.fromkeys((_existing(home), _existing(hub)))
    for folder in folders:
        free = shutil.disk_usage(folder).free
        if free < needed:
            text = f"{free / _GIB:.1f} GiB free in {folder}; {needed / _GIB:.1f} are needed"
            return Finding(
                "disk", "problem", text, "Make room, or set FLWR_HOME and HF_HOME to a larger disk."
            )
    return Finding(
        "disk", "ok", f"at least {needed / _GIB:.1f} GiB free in {' and '.join(map(str, folders))}"
    )


def _existing(folder: Path) -> Path:
    return next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())


def check_memory(site: SiteFile) -> Finding:
    """Free memory of 4 x the weights and 2 GiB: a rule of thumb, for fp32 and batches of 32 x 128."""
    available = available_memory()
    if available is None:
        return Finding("memory", "warning", "not checked: this system does not tell its free memory")
    needed = MEMORY_PER_MODEL * model_bytes(site) + _MEMORY_BESIDE
    assumed = "" if site.model is not None else ", for a model of BERT-base's size"
    said = f"{available / _GIB:.1f} GiB free, about {needed / _GIB:.1f} needed{assumed}"
    if available < needed:
        step = "End other programs, give the container more, or agree on a smaller model or batch."
        return Finding("memory", "warning", said, step)
    return Finding("memory", "ok", said)


def available_memory() -> int | None:
    """Bytes this process may still take: free in the machine, or less where a container is limited."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    free = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        used = int((group / "memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return free
    if free is None or limit == "max":
        return free
    return min(free, int(limit) - used)


def check_device(site: SiteFile) -> Finding:
    """The device of the site file exists."""
    import torch

    from common.runtime import resolve_device

    try:
        device = resolve_device(site.device)
    except ValueError as error:
        return Finding(
            "device",
            "problem",
            str(error),
            f"nvidia-smi shows what there is; this is torch {torch.__version__}.",
        )
    if device.type == "cuda":
        facts = torch.cuda.get_device_properties(device)
        return Finding("device", "ok", f"{device}: {facts.name}, {facts.total_memory / _GIB:.0f} GiB")
    if site.device == "auto" and device.type == "cpu":
        step = (
            "Without a GPU all is well, but slow: set device: cpu. With one: install PyTorch's build for it."
        )
        return Finding("device", "warning", "auto found no accelerator: this site trains on the CPU", step)
    return Finding("device", "ok", f"{device}, {os.cpu_count()} CPUs")


def check_model(site: SiteFile, named: str | None, timeout_seconds: float) -> Finding:
    """The pre-trained model and its tokenizer are here, or how much has to be fetched. Fetches nothing.

    Args: named: a hub id, or a folder that site.yaml should name.
    """
    try:
        return _look_for_model(site, named, timeout_seconds)
    except PermissionError as error:
        text = f"{error.filename} cannot be read by this user"
        return Finding("model", "problem", text, "Give it read access to the folder and all above it.")


def _look_for_model(site: SiteFile, named: str | None, timeout_seconds: float) -> Finding:
    if site.model is not None:
        return _local_model(site.model, "model:")
    if named is None:
        return Finding(
            "model",
            "warning",
            "not checked: the run names the model",
            "Ask the coordinator for its name and check again with --model NAME.",
        )
    folder = Path(named).expanduser()
    if folder.exists() or named.startswith(("/", ".", "~")) or named.count("/") > 1:
        found = _local_model(folder.absolute(), "--model")
        if found.state != "ok":
            return found
        step = f"Set model: {folder.absolute()} in site.yaml; else the site looks for what the run names."
        return Finding("model", "warning", f"{found.message}, but site.yaml does not name it", step)
    return _hub_model(named, timeout_seconds)


def _hub_model(name: str, timeout_seconds: float) -> Finding:
    from huggingface_hub import HfApi, try_to_load_from_cache

    step = "Copy the model's folder here and set model: <that folder>, or let this machine out to the hub."
    try:
        files = ("config.json", "model.safetensors")
        if all(isinstance(try_to_load_from_cache(name, file), str) for file in files):
            return Finding("model", "ok", f"{name} is in this machine's cache")
        facts = HfApi().model_info(name, files_metadata=True, timeout=timeout_seconds)
    except Exception as error:  # the hub's client raises kinds of four libraries
        text = f"{name} is no folder here, not in the cache, and the hub does not give it"
        return Finding("model", "problem", f"--model: {text} ({type(error).__name__})", step)
    sizes = {file.rfilename: file.size or 0 for file in facts.siblings or ()}
    for suffix, state in ((".safetensors", "ok"), (".bin", "warning")):
        weights = [size for file, size in sizes.items() if file.endswith(suffix)]
        if weights:
            text = f"{name} will be fetched from the hub in the first round: {sum(weights) / 1e6:.0f} MB"
            return Finding("model", "ok", text) if state == "ok" else _without_safetensors(text)
    text = f"--model: {name} is on the hub, but holds no weights for PyTorch"
    return Finding("model", "problem", text, "Ask the coordinator for the name of the model.")


def _local_model(folder: Path, setting: str) -> Finding:
    """A folder that should hold a model, and how it was named."""

    def problem(what: str, step: str) -> Finding:
        return Finding("model", "problem", f"{setting} {folder} {what}", step)

    if not folder.is_dir():
        what = "is a file; a folder is needed" if folder.exists() else "is not there"
        where = "--model" if setting == "--model" else "model: in site.yaml"
        return problem(what, f"Copy the folder of the pre-trained model there, or correct {where}.")
    weights = _weights(folder)
    missing = [] if (folder / "config.json").is_file() else ["config.json"]
    missing += [] if weights else ["model.safetensors"]
    missing += [] if any((folder / name).is_file() for name in _TOKENIZERS) else ["tokenizer.json"]
    if missing:
        return problem(f"lacks {', '.join(missing)}", "Copy the whole folder of the pre-trained model there.")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        return problem(f"has a config.json that cannot be read ({type(error).__name__})", "Copy it anew.")
    if not isinstance(config, dict) or "model_type" not in config:
        step = "Copy the folder of a pre-trained text model there, as save_pretrained writes it."
        return problem("has a config.json without model_type, so that it is no model's", step)
    size = sum(file.stat().st_size for file in weights) / 1e6
    text = f"{folder} holds a model of {size:.0f} MB and its tokenizer"
    return Finding("model", "ok", text) if weights[0].suffix == ".safetensors" else _without_safetensors(text)


def _without_safetensors(text: str) -> Finding:
    step = "Ask for the model with model.safetensors: such a file of weights can run no code."
    return Finding("model", "problem", f"{text}; its weights are pickled, which is not read here", step)
