"""Checks whether a site is ready to take part: a table, in the order in which a fault explains the next one.

A check takes the `Subject` and returns a finding; a ValueError it meets is a problem in the error's words.
The checks of the data open no connection; a test runs them with sockets forbidden.
"""

from __future__ import annotations

import os
import platform
import shutil
import ssl
import stat
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from wardround.client.kit.link import Link
from wardround.client.kit.policy import in_words
from wardround.client.node.connection import Refused, Unreachable
from wardround.client.plans import limits_of
from wardround.client.site_file import SiteFile, read_authority, signing_keys
from wardround.common.credentials import NEW_KEYS, public_line, read_private_key
from wardround.common.data.read import MissingColumn, Table, read_file
from wardround.common.errors import nearest
from wardround.common.model_files import (
    ADAPTER,
    CONFIG,
    FILES_PREFIX,
    WEIGHTS_PREFIX,
    ModelFiles,
    read_json,
    read_model_files,
)
from wardround.common.runtime import available_memory
from wardround.common.versions import NAME, work_together
from wardround.common.words import LONGEST_TEXT, cleaned, quoted, shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_EXPECTED = ("wardround", "flwr", "torch", "transformers")
# The Flower this project talks; later ones have dropped gRPC between site and server.
_FLOWER = "1.39"
_GIB = 2**30
# BERT-base in fp32: 110 million parameters of 4 bytes.
_USUAL_MODEL_BYTES = 440_000_000
# Weights, gradients and at most two numbers of the optimiser per weight; nothing is kept twice in training.
_MEMORY_PER_MODEL = 4
# Python, PyTorch and the activations of a batch of 32 texts of 128 tokens.
_MEMORY_BESIDE = 2 * _GIB
_DISK_BESIDE = _GIB
_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
_TOKENIZERS = ("tokenizer.json", "vocab.txt", "spiece.model", "vocab.json")
_SOON_DAYS = 30
# What OpenSSL calls the reasons for which a certificate is not taken.
_NOT_YET, _EXPIRED, _OTHER_NAME, _OTHER_ADDRESS = 9, 10, 62, 64
# How far this machine's clock may be off before Flower's server refuses what it signs.
_AHEAD_SECONDS, _BEHIND_SECONDS = 5, 305
_EARLIER = "See the finding above first."
_TOKENISED = 2000  # texts, taken evenly from the file
_TOKENS_PER_WORD = 1.3
_MUCH_CUT = 0.2
_MOST_SHOWN = 20
_DATA_KEY = "data.path"
_MINUTE = "%Y-%m-%d %H:%M"


@dataclass(frozen=True)
class Finding:
    """The outcome of one check. It may name paths, labels and counts: it is for the site's eyes."""

    check: str
    """Row of the table `CHECKS`."""
    state: Literal["ok", "warning", "problem"]
    """`problem`: the site cannot take part like this; `warning`: it can, and should know."""
    message: str
    """What was found."""
    next_step: str = ""
    """What to do about it; empty where nothing has to be done."""


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(shown, names))


_ok, _warning, _problem = (
    partial(Finding, "", state) for state in ("ok", "warning", "problem")
)


class _NotChecked(Exception):
    """Something before it fails, which has a finding of its own: why, and the next step."""


@dataclass(frozen=True)
class Options:
    """What the run will ask for, as far as the site was told."""

    expect: Mapping[str, str] = field(default_factory=dict)
    """Versions that must be installed, by package; `python` is one of them."""
    labels: tuple[str, ...] = ()
    """The consortium's label names; () where they were not told."""
    model: str | None = None
    """Hub id or folder of the pre-trained model, where site.yaml names no local copy."""
    max_length: int = 128
    """Tokens after which texts are cut."""
    batch_size: int = 32
    """Examples of one optimiser step."""
    timeout_seconds: float = 5.0
    """Longest wait for each step on the network."""


@dataclass(frozen=True)
class Subject:
    """What the checks look at; each part is looked at once."""

    site: SiteFile
    options: Options

    @cached_property
    def link(self) -> Link:
        """The way to the server."""
        return Link(self.site, self.options.timeout_seconds)

    @cached_property
    def table(self) -> Table | ValueError:
        """All rows of the site's file, or why they cannot be read."""
        path, form = self.site.data_path, self.site.form
        try:
            form.require_use([path])
            return read_file(path, self.site.columns, _DATA_KEY, form)
        except ValueError as error:
            return error
        except OSError as error:
            return ValueError(
                f"{_DATA_KEY}: {path} cannot be read: {error.strerror}. Give it read access."
            )

    @property
    def rows(self) -> Table:
        """All rows. Raises _NotChecked where the checks before have said why there are none."""
        if isinstance(self.table, Table):
            return self.table
        raise _NotChecked("the file could not be read", _EARLIER)

    @cached_property
    def texts(self) -> list[str]:
        """Every text that is one."""
        return [text for text in self.rows.texts if text]

    @cached_property
    def label_counts(self) -> Counter[str]:
        """Examples with a text, by their own label name."""
        rows = zip(self.rows.texts, self.rows.labels, strict=True)
        return Counter(label for text, label in rows if label is not None and text)


# --- the machine ------------------------------------------------------------------------------------------


def _versions(on: Subject) -> Finding:
    """Installed versions; compared with those that were told."""
    expect = on.options.expect
    found = {
        name: _installed(name) for name in (*_EXPECTED, *expect) if name != "python"
    }
    found["python"] = platform.python_version()
    said = ", ".join(
        f"{shown(name)} {number or 'missing'}" for name, number in found.items()
    )
    wrong = [
        f"{shown(name)} is {found[name] or 'missing'}, not {shown(number)}"
        for name, number in ({"flwr": _FLOWER} | dict(expect)).items()
        if not _fits(name, found[name] or "", number)
    ]
    if wrong:
        step = "Install the versions the coordinator names, for example: pip install 'flwr==1.39.*'"
        return _problem(f"{'; '.join(wrong)} (here: {said})", step)
    if not expect:
        return _ok(f"{said}; not compared with the server's (--expect flwr=…)")
    theirs = expect.get(NAME, "")
    if theirs and not str(found[NAME]).startswith(theirs):
        return _ok(
            f"{said}; the coordinator's {NAME} is {shown(theirs)}, which works with this one"
        )
    return _ok(said)


def _fits(name: str, here: str, wanted: str) -> bool:
    """Whether an installed version does: Wardround's may be one minor version apart."""
    if name == NAME:
        return work_together(here, wanted)
    return here == wanted or here.startswith((f"{wanted}.", f"{wanted}+"))


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _key(on: Subject) -> Finding:
    """The private keys are the site's own and of the right kinds, and the public file is the other half."""
    private, public = on.site.private_key, on.site.public_key
    key = read_private_key(private, "node", "key.private", NEW_KEYS)
    signing_keys(on.site)
    for setting, secret in (
        ("key.private", private),
        ("key.signing", on.site.signing_key or private),
    ):
        mode = stat.S_IMODE(secret.stat().st_mode)
        if mode & 0o077:
            step = f"chmod 600 {secret}; if others have logins here, make new keys and have them registered."
            return _problem(
                f"{setting}: {secret} can be read by others (mode {mode:04o})", step
            )
    anew = f"ssh-keygen -yf {private} > {public}"
    try:
        given = public.read_text(encoding="ascii").split()[:2]
    except (OSError, UnicodeDecodeError):
        return _problem(f"key.public: {public} cannot be read", anew)
    if given != public_line(key).split():
        said = f"key.public: {public} is not the other half of {private.name}"
        return _problem(said, f"{anew}; have it registered if another one was sent.")
    said = f"{private.name} is P-384, readable by its owner only, and matches {public.name}"
    return _ok(f"{said}; the key that signs answers and the coordinator's are there")


def _weights(folder: Path) -> list[Path]:
    """Files of the weights that are loaded: the first kind there is."""
    try:
        kinds = [[*folder.glob(pattern)] for pattern in _WEIGHTS]
    except PermissionError:  # the finding `model` says so
        return []
    return next(filter(None, kinds), [])


def _disk(on: Subject) -> Finding:
    """Room for the model, if it has to be fetched, and 1 GiB beside it, where Flower and the hub write."""
    needed = _DISK_BESIDE + (_USUAL_MODEL_BYTES if on.site.model is None else 0)
    homes = [
        Path(os.environ.get(name) or Path.home()).absolute()
        for name in ("FLWR_HOME", "HF_HOME")
    ]
    folders = {
        next(path for path in (home, *home.parents) if path.exists()): None
        for home in homes
    }
    for folder in folders:
        free = shutil.disk_usage(folder).free
        if free < needed:
            said = f"{free / _GIB:.1f} GiB free in {folder}; {needed / _GIB:.1f} are needed"
            return _problem(
                said, "Make room, or set FLWR_HOME and HF_HOME to a larger disk."
            )
    return _ok(
        f"at least {needed / _GIB:.1f} GiB free in {' and '.join(map(str, folders))}"
    )


def _memory(on: Subject) -> Finding:
    """Free memory of 4 x the weights and 2 GiB: a rule of thumb, for fp32 and batches of 32 x 128."""
    available = available_memory()
    if available is None:
        return _warning("not checked: this system does not tell its free memory")
    weights = [] if on.site.model is None else _weights(on.site.model)
    size = sum(file.stat().st_size for file in weights) or _USUAL_MODEL_BYTES
    needed = _MEMORY_PER_MODEL * size + _MEMORY_BESIDE
    said = f"{available / _GIB:.1f} GiB free, about {needed / _GIB:.1f} needed"
    said += ", for a model of BERT-base's size" if on.site.model is None else ""
    if available < needed:
        step = "End other programs, give the container more, or agree on a smaller model or batch."
        return _warning(said, step)
    return _ok(said)


def _device(on: Subject) -> Finding:
    """The device of the site file exists."""
    import torch

    from wardround.common.runtime import resolve_device

    try:
        device = resolve_device(on.site.device)
    except ValueError as error:
        step = f"nvidia-smi shows what there is; this is torch {torch.__version__}."
        return _problem(str(error), step)
    if device.type == "cuda":
        facts = torch.cuda.get_device_properties(device)
        return _ok(f"{device}: {facts.name}, {facts.total_memory / _GIB:.0f} GiB")
    if on.site.device == "auto" and device.type == "cpu":
        step = "Without a GPU all is well, but slow: set device: cpu. "
        step += "With one: install PyTorch's build for it."
        return _warning("auto found no accelerator: this site trains on the CPU", step)
    return _ok(f"{device}, {os.cpu_count()} CPUs")


def _model(on: Subject) -> Finding:
    """The pre-trained model and its tokenizer are here, or how much has to be fetched. Fetches nothing."""
    named = on.options.model
    if on.site.model is not None:
        return _local_model(on.site.model, "model:")
    if named is None:
        step = "Ask the coordinator for its name and check again with --model NAME."
        return _warning("not checked: the run names the model", step)
    folder = Path(named).expanduser()
    if folder.exists() or named.startswith(("/", ".", "~")) or named.count("/") > 1:
        found = _local_model(folder.absolute(), "--model")
        if found.state != "ok":
            return found
        step = f"Set model: {folder.absolute()} in site.yaml; else the site looks for what the run names."
        return _warning(f"{found.message}, but site.yaml does not name it", step)
    return _hub_model(named, on.options.timeout_seconds)


def _hub_model(name: str, timeout_seconds: float) -> Finding:
    from huggingface_hub import HfApi

    from wardround.common.pretrained import in_cache

    cached = in_cache(name)
    if cached is not None and (cached / CONFIG).is_file() and _weights(cached):
        try:
            return _ok(
                f"{name} is in this machine's cache{_hashes(read_model_files(cached))}"
            )
        except ValueError as error:
            return _refused(f"--model: {name}", error)
    try:
        facts = HfApi().model_info(name, files_metadata=True, timeout=timeout_seconds)
    except Exception as error:  # the hub's client raises kinds of four libraries
        step = "Copy the model's folder here and set model: <that folder>, or let this machine out to the hub."
        said = f"--model: {name} is no folder here, not in the cache, and the hub does not give it"
        return _problem(f"{said} ({type(error).__name__})", step)
    sizes = {file.rfilename: file.size or 0 for file in facts.siblings or ()}
    if ADAPTER in sizes:
        step = "Ask the coordinator for a model in which the adapter is merged."
        return _problem(
            f"--model: {name} holds {ADAPTER}, and adapters are not read here", step
        )
    for suffix in (".safetensors", ".bin"):
        weights = [size for file, size in sizes.items() if file.endswith(suffix)]
        if weights:
            said = f"{name} will be fetched from the hub in the first round: {sum(weights) / 1e6:.0f} MB"
            return _if_safe(said, suffix)
    said = f"--model: {name} is on the hub, but holds no weights for PyTorch"
    return _problem(said, "Ask the coordinator for the name of the model.")


def _local_model(folder: Path, setting: str) -> Finding:
    """A folder that should hold a model, and how it was named."""
    named = f"{setting} {folder}"
    if not folder.is_dir():
        what = "is a file; a folder is needed" if folder.exists() else "is not there"
        where = "--model" if setting == "--model" else "model: in site.yaml"
        return _problem(
            f"{named} {what}",
            f"Copy the folder of the pre-trained model there, or correct {where}.",
        )
    weights = _weights(folder)
    missing = [] if (folder / "config.json").is_file() else ["config.json"]
    missing += [] if weights else ["model.safetensors"]
    missing += (
        []
        if any((folder / name).is_file() for name in _TOKENIZERS)
        else ["tokenizer.json"]
    )
    if missing:
        step = "Copy the whole folder of the pre-trained model there."
        return _problem(f"{named} lacks {', '.join(missing)}", step)
    try:
        files = read_model_files(folder)
        config = read_json(folder / CONFIG)
    except ValueError as error:
        return _refused(named, error)
    if "model_type" not in config:
        step = "Copy the folder of a pre-trained text model there, as save_pretrained writes it."
        return _problem(
            f"{named} has a config.json without model_type, so that it is no model's",
            step,
        )
    size = sum((folder / name).stat().st_size for name in files.weights()) / 1e6
    return _ok(
        f"{folder} holds a model of {size:.0f} MB and its tokenizer{_hashes(files)}"
    )


def _refused(named: str, error: ValueError) -> Finding:
    """Args: error: its last sentence is the next step."""
    words, _, step = str(error).rpartition(". ")
    return _problem(f"{named} is refused: {words}", step)


def _hashes(files: ModelFiles) -> str:
    """The two hashes of a model, as `policy.models` names them."""
    weights = files.weights_digest()
    alone = (
        "they lie in several files" if weights is None else f"{WEIGHTS_PREFIX}{weights}"
    )
    names = ", ".join(files.names)
    return f";\nweights alone: {alone};\nall files:     {FILES_PREFIX}{files.digest()} ({names})"


def _if_safe(said: str, suffix: str) -> Finding:
    if suffix == ".safetensors":
        return _ok(said)
    step = "Ask for the model with model.safetensors: such a file of weights can run no code."
    return _problem(f"{said}; its weights are pickled, which is not read here", step)


# --- the way to the server --------------------------------------------------------------------------------


def _proxy(on: Subject) -> Finding:
    """Proxy variables that would catch the server's address."""
    link = on.link
    if link.proxy is None:
        return _ok(f"no proxy stands between this site and {link.host}")
    variable, host, port = link.proxy
    step = f"If the proxy may not tunnel to port {link.port}: export no_proxy={link.host} (small letters)."
    return _warning(
        f"{variable} sends the connection to {link.host} through {host}:{port}", step
    )


def _address(on: Subject) -> Finding:
    """The server's name resolves."""
    found, host = on.link.addresses, on.link.host
    if not isinstance(found, OSError):
        return _ok(f"{host} is {', '.join(found)}")
    if on.link.proxy is not None:
        return _warning(f"{host} is not known here; the proxy has to know it")
    return _problem(
        f"{host} is not known to this machine's name servers ({found.strerror or found})",
        "Check server.address for a slip; else ask your network team for the name, or use the IP address.",
    )


def _tcp(on: Subject) -> Finding:
    """A connection to the fleet port can be made."""
    link, error = on.link, on.link.unreached
    if error is None:
        return _ok(f"port {link.port} of {link.host} takes connections")
    if isinstance(link.addresses, OSError) and link.proxy is None:
        raise _NotChecked("the address is not known", _EARLIER)
    if isinstance(error, TimeoutError):
        reason = f"no answer within {link.timeout_seconds:g} s: a firewall drops the connection"
        step = f"Ask your network team to let this machine out to {link.host}, TCP port {link.port}."
    elif isinstance(error, ConnectionRefusedError):
        reason = "refused: nothing listens there, or a firewall says no"
        step = "Ask the coordinator whether the server is up (wardround server up), and for host and port."
    else:
        reason = error.strerror or str(error)
        step = f"Check the network of this machine; it must reach {link.host}, TCP port {link.port}."
    return _problem(f"{link.host}:{link.port} cannot be reached ({reason})", step)


def _tls(on: Subject) -> Finding:
    """The server proves its name with a certificate of the site's own authority, and speaks HTTP/2."""
    link, authority = on.link, read_authority(on.site)
    if link.unreached is not None:
        raise _NotChecked("the server cannot be reached", _EARLIER)
    error, protocol, presented = link.handshake
    code = getattr(error, "verify_code", None)
    if error is None and protocol == "h2":
        return _ok(f"{link.host} proved its name to the authority of {on.site.ca.name}")
    if error is None:
        said = "the server is trusted but does not speak HTTP/2, which gRPC needs"
        step = f"Ask the coordinator whether {link.port} is the fleet port and no web proxy stands before it."
    elif code in (_NOT_YET, _EXPIRED):
        said = "the server's certificate, or the authority's, is outside its dates"
        step = "See the finding `certificate`."
    elif code in (_OTHER_NAME, _OTHER_ADDRESS):
        names = (
            _listed(presented.names) or "no name at all" if presented else "other names"
        )
        said = f"the server's certificate is good for {names}, not for {link.host}"
        step = f"Set server.address to one of them, or ask the coordinator for a certificate with {link.host}."
    elif isinstance(error, ssl.SSLCertVerificationError):
        issuer = quoted(presented.issuer) if presented else "somebody else"
        said = f"the server's certificate is signed by {issuer}, not by {quoted(authority.subject)} of "
        said += f"{on.site.ca.name} ({error.verify_message})"
        step = "Ask the coordinator for the current ca.crt and compare fingerprints by telephone. If the "
        step += "signer is your own firewall, it opens TLS: have this server exempted."
    else:
        said = f"no TLS could be agreed on ({getattr(error, 'reason', None) or error})"
        step = "The port answers, but not as a server of this kind: check server.address with the coordinator."
    return _problem(said, step)


def _certificate(on: Subject) -> Finding:
    """The server's certificate and the authority's are within their dates."""
    try:
        authority = read_authority(on.site)
    except ValueError:
        raise _NotChecked("server.ca cannot be read", _EARLIER) from None
    presented = on.link.handshake.certificate if on.link.unreached is None else None
    held = {"the server's certificate": presented} if presented is not None else {}
    held["the authority's certificate"] = authority
    now = datetime.now(UTC)
    for name, certificate in held.items():
        start, end, here = (
            certificate.not_before,
            certificate.not_after,
            f"this machine has {now:{_MINUTE}}",
        )
        if end < now:
            step = "Ask the coordinator to run: wardround server renew. For a new authority, install its ca.crt."
            return _problem(f"{name} expired on {end:{_MINUTE}} UTC; {here}", step)
        if now < start:
            said = f"{name} is valid from {start:{_MINUTE}} UTC on; {here}"
            return _problem(said, "Correct this machine's clock (NTP).")
    name, first = min(held.items(), key=lambda item: item[1].not_after)
    said = f"valid for {first.days_left(now)} more days ({name} ends first, {first.not_after:%Y-%m-%d})"
    if presented is None:
        return _warning(f"only ca.crt was seen: {said}", _EARLIER)
    if first.days_left(now) < _SOON_DAYS:
        return _warning(said, "Ask the coordinator to renew it before that day.")
    return _ok(said)


def _clock(on: Subject) -> Finding:
    """This machine's time, against the certificates' dates and, where the server answers, its clock."""
    now = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
    dates = finding_of("certificate", on)
    if dates.state == "problem":
        return _warning(f"{now} is outside the certificates' dates", dates.next_step)
    why = _answer(on.link)
    if why == "wrong_time":
        rule = f"more than {_AHEAD_SECONDS} s ahead of its clock or {_BEHIND_SECONDS} s behind"
        step = "Switch on time synchronisation (timedatectl set-ntp true); if it is on, ask the coordinator."
        return _problem(f"the server refuses this machine's time, {now}: {rule}", step)
    if why in ("registered", "unknown_key"):
        rule = f"at most {_AHEAD_SECONDS} s ahead and {_BEHIND_SECONDS} s behind"
        return _ok(f"{now}; the server took a time stamp signed now ({rule})")
    return _warning(f"{now}; compared with certificates' dates only", _EARLIER)


def _registered(on: Subject) -> Finding:
    """The server knows this site's public key. Nothing is activated by asking."""
    why = _answer(on.link)
    if why is None:
        raise _NotChecked("the server cannot be asked yet", _EARLIER)
    detail = getattr(on.link.refusal, "detail", "")
    match why:
        case "registered":
            return _ok("the server knows this site's key")
        case "unknown_key":
            command = f"wardround server register {on.site.name} registration.json"
            step = f"Send registration.json to the coordinator, who runs: {command}"
            return _problem("the server does not know this site's key", step)
        case "wrong_time":
            raise _NotChecked("the clocks differ too much", _EARLIER)
        case "version":
            said = f"the server says: {quoted(detail, LONGEST_TEXT)}"
            return _problem(said, "Install the version the coordinator names.")
    step = "Ask the coordinator whether this address is the fleet port of a wardround server."
    return _problem(
        f"the server gave another answer: {quoted(detail, LONGEST_TEXT)}", step
    )


def _answer(link: Link) -> str | None:
    """`registered`, why the server refuses the key, or None where it cannot be asked: other checks tell."""
    if (
        link.unreached is not None
        or not link.site.ca.is_file()
        or link.handshake.error is not None
    ):
        return None
    try:
        refusal = link.refusal
    except ValueError:
        return None
    if isinstance(refusal, Refused):
        return refusal.why
    return None if isinstance(refusal, Unreachable) else "registered"


# --- the data ---------------------------------------------------------------------------------------------


def _data(on: Subject) -> Finding:
    """The file can be read, whole."""
    if isinstance(on.table, MissingColumn):
        return _ok(
            f"{on.site.data_path} can be read; its rows were not, for want of a column"
        )
    if isinstance(on.table, ValueError):
        raise on.table
    out = len(on.table.opted_out)
    said = f", of which {out} have opted out and take part in no round" if out else ""
    return _ok(f"{on.site.data_path}: {len(on.table.texts)} examples{said}")


def _columns(on: Subject) -> Finding:
    """The columns of the site file are there."""
    if isinstance(on.table, MissingColumn):
        raise on.table
    _ = on.rows  # or why there are none
    texts = " + ".join(map(shown, on.site.text_columns))
    return _ok(f"text is {texts}, label is {shown(on.site.label_column)}")


def _labels(on: Subject) -> Finding:
    """Every example has a label; how many there are of each."""
    bare = [row for row, label in enumerate(on.rows.labels) if label is None]
    if bare:
        said = (
            f"{len(bare)} examples have no label, the first in {on.rows.place(bare[0])}"
        )
        return _problem(said, "Label them or take them out.")
    counts = on.label_counts
    said = ", ".join(
        f"{shown(label)} {count}" for label, count in counts.most_common(_MOST_SHOWN)
    )
    said += (
        f" and {len(counts) - _MOST_SHOWN} more labels"
        if len(counts) > _MOST_SHOWN
        else ""
    )
    if len(counts) > max(_MOST_SHOWN, len(on.texts) // 2):
        return _problem(
            said, "Almost every example has its own: check data.label_column."
        )
    if len(counts) < 2:
        return _warning(said, "One label teaches little: check data.label_column.")
    few = [label for label, count in counts.items() if count < 2]
    if few:
        return _warning(said, f"Of {_listed(few)} none can be held out for testing.")
    return _ok(said)


def _mapping(on: Subject) -> Finding:
    """Every label, under the name it gets here, is one of the consortium's."""
    mapping, known = dict(on.site.labels), on.options.labels
    named = {own: mapping.get(own, own) for own in on.label_counts}
    strange = [own for own, name in named.items() if known and name not in known]
    if strange:
        said = (
            f"not among the consortium's labels ({_listed(known)}): {_listed(strange)}"
        )
        step = f"Map it: data.labels: {{{quoted(strange[0])}: …}}.{nearest(named[strange[0]], known)}"
        return _problem(said, step)
    unused = [own for own in mapping if own not in named]
    if unused:
        said = f"data.labels maps labels that no example has: {_listed(unused)}"
        return _warning(said, "Correct their spelling, or take them out.")
    pairs = sorted(named.items())[:_MOST_SHOWN]
    said = ", ".join(
        shown(own) if own == name else f"{shown(own)} -> {shown(name)}"
        for own, name in pairs
    )
    if known:
        return _ok(said)
    kept = [own for own in named if own not in mapping and own not in mapping.values()]
    if mapping and kept:
        said = f"these keep their own name: {_listed(kept)}"
    step = "Ask the coordinator for the labels and check again with --labels a,b,c."
    return _warning(f"{said}; not compared with the consortium's labels", step)


def _empty(on: Subject) -> Finding:
    """Every example has a text."""
    empty = [row for row, text in enumerate(on.rows.texts) if not text]
    if not empty:
        return _ok("every example has a text")
    said = f"{len(empty)} of {len(on.rows.texts)} examples have none, the first in {on.rows.place(empty[0])}"
    if on.site.drop_empty:
        return _warning(f"{said}; they are left out (data.drop_empty)")
    return _problem(said, "Complete them, or set data.drop_empty: true.")


def _lengths(on: Subject) -> Finding:
    """How many texts are longer than the model is given; counted with its own tokenizer if that is here."""
    if not on.texts:
        raise _NotChecked("no example has a text", _EARLIER)
    step = max(1, len(on.texts) // _TOKENISED)
    sample, limit = on.texts[::step][:_TOKENISED], on.options.max_length
    tokenizer = _tokenizer(on)
    if tokenizer is None:
        lengths = np.array([len(text.split()) * _TOKENS_PER_WORD for text in sample])
        how = f"estimated from words; no tokenizer here, {len(sample)} texts looked at"
    else:
        lengths = np.array(
            [len(ids) for ids in tokenizer(sample, verbose=False)["input_ids"]]
        )
        how = f"{len(sample)} texts tokenised"
    cut = float(np.mean(lengths > limit))
    said = f"{cut:.0%} of the texts are longer than {limit} tokens and are cut; half have at most "
    said += f"{int(np.median(lengths))}, the longest {int(lengths.max())} ({how})"
    if cut > _MUCH_CUT:
        return _warning(said, "Tell the coordinator: train.max_length may be too low.")
    return _ok(said) if tokenizer is not None else _warning(said)


def _tokenizer(on: Subject) -> PreTrainedTokenizerBase | None:
    """The model's tokenizer if it is on this machine; nothing is fetched."""
    name = on.site.model or on.options.model
    if name is None:
        return None
    from wardround.common.pretrained import in_cache, read_tokenizer

    folder = Path(name) if Path(name).is_dir() else in_cache(str(name))
    try:
        return None if folder is None else read_tokenizer(folder)
    except (OSError, ValueError):  # the finding `model` says why
        return None


def _policy(on: Subject) -> Finding:
    """What no plan can exceed, in words."""
    return _ok(";\n".join(in_words(limits_of(on.site, signing_keys(on.site)[0]))))


def _batch(on: Subject) -> Finding:
    """Enough examples for one batch."""
    number, size = len(on.texts), on.options.batch_size
    if number < 2:
        return _problem(
            f"{number} example(s)", "A site needs one to train on, one to test on."
        )
    if number < size:
        step = "It works, with short batches; the site's weight in the mean is small."
        return _warning(f"{number} examples, less than one batch of {size}", step)
    return _ok(f"{number} examples, {number // size} batches of {size}")


_TABLE = (
    *(_versions, _proxy, _address, _tcp, _tls, _certificate, _clock, _key, _registered),
    *(_disk, _memory, _device, _model),
    _policy,
    *(_data, _columns, _labels, _mapping, _empty, _lengths, _batch),
)
CHECKS: dict[str, Callable[[Subject], Finding]] = {
    check.__name__.removeprefix("_"): check for check in _TABLE
}
DATA_CHECKS = ("data", "columns", "labels", "mapping", "empty", "lengths", "batch")
"""Those that look at texts and labels; none of them opens a connection."""


def finding_of(check: str, subject: Subject) -> Finding:
    """What one check of the table says."""
    try:
        found = CHECKS[check](subject)
    except _NotChecked as error:
        reason, step = error.args
        found = _warning(f"not checked: {reason}", step)
    except PermissionError as error:
        step = "Give it read access to the folder and all above it."
        found = _problem(f"{error.filename} cannot be read by this user", step)
    except ValueError as error:  # its last sentence is the next step
        message, _, step = str(error).rpartition(". ")
        found = _problem(message or step, step if message else "")
    # Names of the data, of the invitation and of certificates were written by others.
    return replace(
        found,
        check=check,
        message=cleaned(found.message),
        next_step=cleaned(found.next_step),
    )


def run_checks(
    site: SiteFile, options: Options, skip: Collection[str] = ()
) -> list[Finding]:
    """All findings but those of the checks in `skip`, in the order of the table.

    Sends to the server, and only there: a TLS greeting, and the public key with a signed time stamp. With
    `options.model`, the hub is asked for that model's size.

    Raises:
        ValueError: `skip` names a check that does not exist.
    """
    for name in skip:
        if name not in CHECKS:
            raise ValueError(
                f"--skip-check is '{name}', which is no check.{nearest(name, list(CHECKS))} "
                f"There are: {', '.join(CHECKS)}."
            )
    subject = Subject(site, options)
    return [finding_of(name, subject) for name in CHECKS if name not in skip]


def is_ready(findings: Collection[Finding]) -> bool:
    """Whether nothing stands in the way of taking part."""
    return all(finding.state != "problem" for finding in findings)


def as_json(site: SiteFile, findings: Collection[Finding]) -> dict[str, Any]:
    """What `check --json` prints."""
    return {
        "site": site.name,
        "ready": is_ready(findings),
        "checks": [asdict(finding) for finding in findings],
    }
