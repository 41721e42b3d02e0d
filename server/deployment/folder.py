"""The coordinator's folder: certificates, addresses, Flower's own files, and the sites that may take part.

A site is invited, answers with its keys, and is let in under a name:

    invite NAME -> invitations/NAME.json -> the site -> registration.json -> register NAME

Who is registered stands in sites.json, which the running server reads whenever it changes.
"""

from __future__ import annotations

import json
import platform
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import PackageNotFoundError, version
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import yaml
from filelock import FileLock, Timeout
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from wardround.common.credentials import (
    check_public_line,
    fingerprint,
    public_line,
    refuse_to_overwrite,
)
from wardround.common.errors import explain
from wardround.common.files import write_atomically, write_json
from wardround.common.wire.invitation import (
    Invitation,
    Registration,
    read_paper,
    write_paper,
)
from wardround.common.words import quoted, shown
from wardround.server.deployment.certificates import (
    SERVER_DAYS,
    Pair,
    general_name,
    issue_server_certificate,
    make_authority,
)
from wardround.server.deployment.signing_key import (
    keep_public_line,
    make_signing_key,
    public_half,
    read_public_line,
    read_signing_key,
)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SUPERLINK = "wardround"
"""What the Flower command line calls this federation's SuperLink."""
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}
_LOCK_SECONDS = 30.0
_SITE_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_ADDRESS = re.compile(r"(\[[0-9a-fA-F:]+\]|[A-Za-z0-9.-]+):[0-9]{1,5}")
_TOLD_PACKAGES = ("wardround", "flwr", "torch", "transformers")
Port = Annotated[int, Field(ge=1, le=65535)]


@dataclass(frozen=True)
class Addresses:
    """Where the server listens (`server.yaml`)."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    names: Annotated[tuple[str, ...], Field(min_length=1)]
    """DNS names and IP addresses under which the sites reach the server."""
    fleet_host: str = "0.0.0.0"
    fleet_port: Port = 9092
    """The one port that sites need."""
    control_host: str = "127.0.0.1"
    """Who reaches it runs code on this machine: it must not be on the sites' network."""
    control_port: Port = 8000

    def __post_init__(self) -> None:
        for name in self.names:
            general_name(name)

    @property
    def fleet(self) -> str:
        """`host:port` that the sites' gRPC door is bound to."""
        return _joined(self.fleet_host, self.fleet_port)

    @property
    def is_loopback(self) -> bool:
        """Whether only programs of this machine can reach the sites' door."""
        try:
            return ip_address(self.fleet_host).is_loopback
        except ValueError:
            return self.fleet_host == "localhost"

    def listening(self, fleet_host: str | None, *, insecure: bool) -> Addresses:
        """The same, with another host for the sites' door.

        Args:
            fleet_host: the host; None for that of `server.yaml`, or, without TLS, this machine alone.
        """
        if fleet_host is None and insecure:
            fleet_host = "::1" if ":" in self.fleet_host else "127.0.0.1"
        return self if fleet_host is None else replace(self, fleet_host=fleet_host)

    @property
    def control(self) -> str:
        """`host:port` for commands on this machine."""
        return _joined(self.control_name, self.control_port)

    @property
    def control_name(self) -> str:
        """The host under which commands on this machine reach the control port."""
        return _EVERYWHERE.get(self.control_host, self.control_host)

    @property
    def certified(self) -> tuple[str, ...]:
        """Every name the server certificate must hold: the sites', and this machine's for itself."""
        return tuple(
            dict.fromkeys((*self.names, "localhost", "127.0.0.1", self.control_name))
        )


@dataclass(frozen=True)
class RegisteredSite:
    """A site that may connect."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    public_key: str
    """Of its node, OpenSSH form."""
    signing_key: str
    """What its answers are signed with, OpenSSH form."""
    fingerprint: str
    """SHA256:… of its registration, to compare by telephone."""
    max_examples: Annotated[int, Field(ge=1)] | None = None
    """The most texts it may claim to have trained on in a round, and the most it may claim to hold out; None
    for no bound."""

    @property
    def bound(self) -> str:
        """How many texts it may claim, in words."""
        if self.max_examples is None:
            return "as many texts as it claims"
        return f"at most {self.max_examples} texts a round"


_ADDRESSES: TypeAdapter[Addresses] = TypeAdapter(Addresses)
_SITES: TypeAdapter[dict[str, RegisteredSite]] = TypeAdapter(dict[str, RegisteredSite])


class ServerFolder:
    """The files under `path`. Keys are readable for their owner only."""

    def __init__(self, path: Path) -> None:
        """Open an existing folder. Raises ValueError if it is none, or its `server.yaml` is wrong."""
        self.path = path.absolute()
        self.authority = Pair(self.path / "ca.crt", self.path / "ca.key")
        self.server = Pair(self.path / "server.crt", self.path / "server.key")
        self.signing_key = self.path / "signing.key"
        self.public_key = public_half(self.signing_key)
        self.flower_home = self.path / "flwr"
        self.fleet_file = self.path / "fleet.json"
        self.addresses = self._read_addresses()
        self.server.finish_renewal()
        self._sites: tuple[object, dict[str, RegisteredSite]] = None, {}

    @classmethod
    def create(
        cls,
        path: Path,
        addresses: Addresses,
        days: int = SERVER_DAYS,
        passphrase: str = "",
        signing_line: str = "",
    ) -> ServerFolder:
        """Make a new folder with its authority, server certificate, valid for `days`, and signing key.

        Args:
            passphrase: encrypts the authority's key; "" leaves it plain.
            signing_line: public half of a signing key that is kept on another machine, OpenSSH form; "" makes
                a key here.

        Raises:
            ValueError: something is there already.
        """
        authority = Pair(path / "ca.crt", path / "ca.key")
        names = ("server.yaml", "sites.json", "signing.key", "signing.pub")
        refuse_to_overwrite(*(path / name for name in names))
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        make_authority(authority, passphrase=passphrase)
        server = Pair(path / "server.crt", path / "server.key")
        issue_server_certificate(
            authority, server, addresses.certified, days=days, passphrase=passphrase
        )
        if signing_line:
            keep_public_line(path / "signing.pub", signing_line)
        else:
            make_signing_key(path / "signing.key")
        write_json(path / "sites.json", {})
        text = yaml.safe_dump(
            asdict(addresses) | {"names": list(addresses.names)}, sort_keys=False
        )
        # Last: a folder without it is no folder yet.
        write_atomically(
            path / "server.yaml", lambda part: part.write_text(text, encoding="utf-8")
        )
        folder = cls(path)
        folder.write_flower_config(insecure=False)
        return folder

    def renew(self, days: int = SERVER_DAYS, passphrase: str = "") -> None:
        """A new server key and certificate from the same authority: no site has to change anything."""
        names = self.addresses.certified
        issue_server_certificate(
            self.authority,
            self.server,
            names,
            days=days,
            renew=True,
            passphrase=passphrase,
        )

    def _read_addresses(self) -> Addresses:
        file = self.path / "server.yaml"
        if not file.exists():
            raise ValueError(
                f"'{self.path}' is no server folder (it has no server.yaml). Make one with: "
                "wardround server init --name NAME, or name another with --dir."
            )
        try:
            return _ADDRESSES.validate_python(
                yaml.safe_load(file.read_text(encoding="utf-8"))
            )
        except yaml.YAMLError as error:
            raise ValueError(f"'{file}' is not YAML: {error}") from None
        except ValidationError as error:
            steps = {
                "names": "Say under which DNS name or IP address sites reach the server."
            }
            known = [key.name for key in fields(Addresses)]
            raise ValueError(
                f"'{file}' is wrong: {explain(error, known, steps)}"
            ) from None

    @property
    def is_insecure(self) -> bool:
        """Whether the server was last started without TLS and node authentication."""
        with suppress(FileNotFoundError):
            read = tomllib.loads(
                (self.flower_home / "config.toml").read_text(encoding="utf-8")
            )
            return bool(read["superlink"][SUPERLINK].get("insecure", False))
        return False

    def write_flower_config(self, *, insecure: bool) -> None:
        """Tell the Flower command line where this SuperLink is, and whom to trust."""
        trust = f"root-certificates = {toml_string(self.authority.certificate)}"
        text = (
            f"[superlink]\ndefault = {toml_string(SUPERLINK)}\n\n[superlink.{SUPERLINK}]\n"
            f"address = {toml_string(self.addresses.control)}\n{'insecure = true' if insecure else trust}\n"
        )
        file = self.flower_home / "config.toml"
        write_atomically(file, lambda part: part.write_text(text, encoding="utf-8"))

    def sites(self) -> dict[str, RegisteredSite]:
        """The registered sites by name, in order of name; the file is read again whenever it changed.

        Where it is taken away while it is served, those that it held last stay.
        """
        file = self.path / "sites.json"
        try:
            found = file.stat()
            stamp = (found.st_ino, found.st_mtime_ns)
            if stamp != self._sites[0]:
                self._sites = (
                    stamp,
                    dict(sorted(_SITES.validate_json(file.read_bytes()).items())),
                )
        except FileNotFoundError:
            pass
        except ValidationError as error:
            raise ValueError(
                f"'{file}' is wrong, or was written by an earlier version: {explain(error)} Move it away, "
                "and register the sites again from the registration.json of each."
            ) from None
        return dict(self._sites[1])

    @contextmanager
    def changing_sites(self) -> Iterator[dict[str, RegisteredSite]]:
        """The sites, to be changed in place by one process at a time; written at the end if they did.

        Raises:
            ValueError: another process has been changing them for half a minute.
        """
        try:
            with FileLock(self.path / ".sites.lock", timeout=_LOCK_SECONDS):
                sites = self.sites()
                yield sites
                if sites != self.sites():
                    write_json(
                        self.path / "sites.json",
                        {name: asdict(site) for name, site in sites.items()},
                    )
        except Timeout:
            raise ValueError(
                f"another command has been changing '{self.path / 'sites.json'}' for {_LOCK_SECONDS:.0f} s. "
                "Wait for it to end, then try again."
            ) from None

    def remember_run(self, run_id: str, run_dir: str) -> None:
        """Note which run was submitted last, for `wardround status`."""
        write_json(self.path / "last_run.json", {"run_id": run_id, "run_dir": run_dir})

    def last_run(self) -> dict[str, str] | None:
        """`run_id` and `run_dir` of the run that was submitted last."""
        with suppress(FileNotFoundError):
            read: dict[str, str] = json.loads(
                (self.path / "last_run.json").read_text(encoding="utf-8")
            )
            return read
        return None

    def invitation(self, site: str) -> Path:
        """Where the invitation of a site stands."""
        return self.path / "invitations" / f"{site}.json"


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def toml_string(text: object) -> str:
    """A TOML basic string: as in JSON, but DEL is escaped too."""
    return json.dumps(str(text), ensure_ascii=False).replace("\x7f", "\\u007f")


def invite_site(
    folder: ServerFolder,
    name: str,
    *,
    address: str | None = None,
    labels: Sequence[str] = (),
) -> tuple[Path, str]:
    """Write what a site needs to know before it joins; a later invitation takes an earlier one's place.

    Args:
        address: `host:port` that the site dials; by default the server's first name and its fleet port.
        labels: the consortium's label names, in the order of their numbers.

    Returns:
        The file and its fingerprint.

    Raises:
        ValueError: the name, address or labels are wrong, or the site is registered already.
    """
    key = signing_key(folder)
    invitation = draft_invitation(folder, name, address=address, labels=labels)
    file = folder.invitation(name)
    return file, write_paper(invitation, file, key)


def draft_invitation(
    folder: ServerFolder,
    name: str,
    *,
    address: str | None = None,
    labels: Sequence[str] = (),
) -> Invitation:
    """An invitation that is not signed yet. Arguments and ValueError as of `invite_site`."""
    if not _SITE_NAME.fullmatch(name):
        raise ValueError(
            f"'{name}' is no site name; use small letters, digits, '-' and '_', as in st-mary."
        )
    _refuse_to_replace(name, folder.sites())
    address = address or _joined(folder.addresses.names[0], folder.addresses.fleet_port)
    if not _ADDRESS.fullmatch(address):
        raise ValueError(
            f"--address is '{address}'; it must be HOST:PORT, for example fl.example.org:9092."
        )
    if len(set(labels)) != len(labels) or not all(labels):
        raise ValueError(
            f"--labels is '{','.join(labels)}'; every label needs a name of its own."
        )
    return Invitation(
        site=name,
        address=address,
        ca=folder.authority.certificate.read_text(encoding="ascii"),
        signing_key=coordinator_line(folder),
        versions=_versions(),
        labels=tuple(labels),
    )


def keep_invitation(folder: ServerFolder, name: str, signed: Path) -> str:
    """Take over an invitation that was signed on another machine; returns its fingerprint.

    Raises:
        ValueError: the coordinator has not signed it, it is for another site, or that is registered already.
        OSError: it cannot be written.
    """
    invitation, told = read_paper(
        Invitation, signed, signed_with=[coordinator_line(folder)]
    )
    if invitation.site != name:
        raise ValueError(
            f"'{signed}' is the invitation of '{invitation.site}', not of '{name}'."
        )
    _refuse_to_replace(name, folder.sites())
    content = signed.read_bytes()
    write_atomically(folder.invitation(name), lambda part: part.write_bytes(content))
    return told


def register_site(
    folder: ServerFolder, name: str, answer: Path, *, max_examples: int | None = None
) -> RegisteredSite:
    """Let a site in, with the keys in its answer to the invitation; a running server does so at once.

    Args:
        answer: the site's registration.json.
        max_examples: the most texts it may claim to have trained on in a round, and the most it may claim to
            hold out; None for no bound.

    Raises:
        ValueError: it was not invited, the file is wrong or for another name, or a key is registered already.
    """
    registration, registered = read_paper(Registration, answer)
    if registration.site != name:
        raise ValueError(
            f"'{answer}' is the registration of {quoted(registration.site)}, not of '{name}'."
        )
    _check_invited(folder, registration, answer)
    try:
        node_key = check_public_line(registration.node_key, "node")
        signing = check_public_line(registration.signing_key, "signing")
    except ValueError as error:
        raise ValueError(
            f"'{answer}': {error}. Ask the site for the file again."
        ) from None
    with folder.changing_sites() as sites:
        _refuse_to_replace(name, sites)
        new = {fingerprint(node_key), fingerprint(signing)}
        for other, site in sites.items():
            if {fingerprint(site.public_key), fingerprint(site.signing_key)} & new:
                raise ValueError(
                    f"'{answer}' holds a key of site '{other}'. Every site makes keys of its own, with: "
                    "wardround-site init"
                )
        sites[name] = RegisteredSite(node_key, signing, registered, max_examples)
        return sites[name]


def unregister_site(folder: ServerFolder, name: str) -> None:
    """Let a site in no more, from now on; its invitation is void. Raises ValueError for an unknown name."""
    with folder.changing_sites() as sites:
        if name not in sites:
            raise ValueError(
                f"no site '{name}' is registered. There are: {', '.join(sites) or 'none'}."
            )
        del sites[name]
    folder.invitation(name).unlink(missing_ok=True)


def signing_key(folder: ServerFolder) -> Ed25519PrivateKey:
    """What signs plans, invitations and the keys of runs. Raises ValueError if there is none to read."""
    if is_signed_elsewhere(folder):
        raise ValueError(
            f"the signing key is not in '{folder.path}': it is kept on another machine. Give the same "
            "command with --unsigned FILE, then on that machine: wardround server sign FILE"
        )
    return read_signing_key(folder.signing_key)


def is_signed_elsewhere(folder: ServerFolder) -> bool:
    """Whether the signing key is kept on another machine, and only its public half here."""
    return folder.public_key.exists() and not folder.signing_key.exists()


def coordinator_line(folder: ServerFolder) -> str:
    """The public key that sites know the coordinator by, OpenSSH form. Its file is brought up to date.

    Raises:
        ValueError: there is no key.
        OSError: the file cannot be written.
    """
    if is_signed_elsewhere(folder):
        return read_public_line(folder.public_key)
    line = public_line(signing_key(folder))
    if not folder.public_key.exists() or read_public_line(folder.public_key) != line:
        keep_public_line(folder.public_key, line)
    return line


def _refuse_to_replace(name: str, sites: Mapping[str, RegisteredSite]) -> None:
    if name in sites:
        raise ValueError(
            f"a site '{name}' is registered already. To let it come with new keys: "
            f"wardround server unregister {name}, then invite it again."
        )


def _check_invited(
    folder: ServerFolder, registration: Registration, answer: Path
) -> None:
    file = folder.invitation(registration.site)
    again = f"Invite it with: wardround server invite {registration.site}"
    if not file.exists():
        raise ValueError(
            f"'{registration.site}' was not invited, or its invitation is void. {again}"
        )
    invitation, fingerprint = read_paper(Invitation, file)
    if registration.invitation != fingerprint:
        raise ValueError(
            f"'{answer}' answers another invitation (fingerprint {shown(registration.invitation)}) than "
            f"the last one of '{registration.site}' ({fingerprint}). Have it answer '{file}'; if it did, it "
            "was given another file on the way."
        )
    if check_public_line(invitation.signing_key, "signing") != coordinator_line(folder):
        raise ValueError(
            f"the invitation of '{registration.site}' is older than the signing key. {again}"
        )


def _versions() -> dict[str, str]:
    """What is installed here, by package."""
    found = {"python": platform.python_version()}
    for package in _TOLD_PACKAGES:
        with suppress(PackageNotFoundError):  # a wheel of the server alone may lack one
            found[package] = version(package)
    return found
