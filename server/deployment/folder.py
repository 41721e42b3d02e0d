"""The coordinator's folder: certificates, addresses, registered sites, and Flower's own files."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from pydantic import ConfigDict, TypeAdapter, ValidationError

from common.credentials import new_key, write_private_key
from common.files import write_atomically, write_json
from server.deployment.certificates import (
    SERVER_DAYS,
    Pair,
    check_days,
    general_name,
    issue_server_certificate,
    make_authority,
)

SUPERLINK = "wardround"
"""What the Flower command line calls this federation's SuperLink."""
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}
_LOCK_SECONDS = 30.0


@dataclass(frozen=True)
class Addresses:
    """Where the server listens (`server.yaml`)."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    names: tuple[str, ...]
    """DNS names and IP addresses under which the sites reach the server."""
    fleet_host: str = "0.0.0.0"
    fleet_port: int = 9092
    """The one port that sites need."""
    control_host: str = "127.0.0.1"
    """Who reaches it can send code to every site: it must not be on the sites' network."""
    control_port: int = 8000

    def __post_init__(self) -> None:
        if not self.names:
            raise ValueError("names is empty; say under which DNS name or IP address sites reach the server.")
        for name in self.names:
            general_name(name)
        for key in ("fleet_port", "control_port"):
            if not 1 <= getattr(self, key) <= 65535:
                raise ValueError(f"{key} is {getattr(self, key)}; a port lies between 1 and 65535.")

    @property
    def fleet(self) -> str:
        """`host:port` that the sites' gRPC door is bound to."""
        return _joined(self.fleet_host, self.fleet_port)

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
        return tuple(dict.fromkeys((*self.names, "localhost", "127.0.0.1", self.control_name)))


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
    max_examples: int | None = None
    """The most texts it may claim to have trained on in a round; None for no bound."""


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
        self.flower_home = self.path / "flwr"
        self.fleet_file = self.path / "fleet.json"
        self.addresses = self._read_addresses()
        self.server.finish_renewal()

    @classmethod
    def create(
        cls, path: Path, addresses: Addresses, days: int = SERVER_DAYS, passphrase: str = ""
    ) -> ServerFolder:
        """Make a new folder with its authority, server certificate, valid for `days`, and signing key.

        Args:
            passphrase: encrypts the authority's key; "" leaves it plain.

        Raises:
            ValueError: something is there already, or a name or `days` is wrong.
        """
        check_days(days)
        authority = Pair(path / "ca.crt", path / "ca.key")
        for name in ("server.yaml", "sites.json", "signing.key"):
            if (path / name).exists():
                raise ValueError(f"'{path / name}' is there already. Choose another --dir, or move it away.")
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        make_authority(authority, passphrase=passphrase)
        server = Pair(path / "server.crt", path / "server.key")
        issue_server_certificate(authority, server, addresses.certified, days=days, passphrase=passphrase)
        write_private_key(new_key("signing"), path / "signing.key")
        write_json(path / "sites.json", {})
        text = yaml.safe_dump(asdict(addresses) | {"names": list(addresses.names)}, sort_keys=False)
        # Last: a folder without it is no folder yet.
        write_atomically(path / "server.yaml", lambda part: part.write_text(text, encoding="utf-8"))
        folder = cls(path)
        folder.write_flower_config(insecure=False)
        return folder

    def renew(self, days: int = SERVER_DAYS, passphrase: str = "") -> None:
        """A new server key and certificate from the same authority: no site has to change anything."""
        names = self.addresses.certified
        issue_server_certificate(
            self.authority, self.server, names, days=days, renew=True, passphrase=passphrase
        )

    def _read_addresses(self) -> Addresses:
        file = self.path / "server.yaml"
        if not file.exists():
            raise ValueError(
                f"'{self.path}' is no server folder (it has no server.yaml). Make one with: "
                "wardround server init --name NAME, or name another with --dir."
            )
        try:
            return _ADDRESSES.validate_python(yaml.safe_load(file.read_text(encoding="utf-8")))
        except yaml.YAMLError as error:
            raise ValueError(f"'{file}' is not YAML: {error}") from None
        except ValidationError as error:
            raise ValueError(f"'{file}' is wrong: {_findings(error)}") from None

    @property
    def is_insecure(self) -> bool:
        """Whether the server was last started without TLS and node authentication."""
        return bool(self._flower_config().get("insecure", False))

    def write_flower_config(self, *, insecure: bool) -> None:
        """Tell the Flower command line where this SuperLink is, and whom to trust."""
        trust = (
            "insecure = true"
            if insecure
            else f"root-certificates = {toml_string(self.authority.certificate)}"
        )
        text = (
            f"[superlink]\ndefault = {toml_string(SUPERLINK)}\n\n[superlink.{SUPERLINK}]\n"
            f"address = {toml_string(self.addresses.control)}\n{trust}\n"
        )
        file = self.flower_home / "config.toml"
        write_atomically(file, lambda part: part.write_text(text, encoding="utf-8"))

    def _flower_config(self) -> dict[str, Any]:
        file = self.flower_home / "config.toml"
        if not file.exists():
            return {}
        read: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))["superlink"][SUPERLINK]
        return read

    @property
    def fleet_address(self) -> str:
        """`host:port` that sites are told to dial, unless an invitation says another."""
        return _joined(self.addresses.names[0], self.addresses.fleet_port)

    def sites(self) -> dict[str, RegisteredSite]:
        """The registered sites by name, in order of name."""
        file = self.path / "sites.json"
        try:
            sites = _SITES.validate_json(file.read_bytes())
        except FileNotFoundError:
            return {}
        except ValidationError as error:
            raise ValueError(
                f"'{file}' is wrong, or was written by an earlier version: {_findings(error)}. Move it away, "
                "and register the sites again from the registration.json of each."
            ) from None
        return dict(sorted(sites.items()))

    @contextmanager
    def changing_sites(self) -> Iterator[dict[str, RegisteredSite]]:
        """The sites, to be changed in place by one process at a time; written at the end if they did.

        Raises:
            ValueError: another process has been changing them for half a minute.
        """
        lock = FileLock(self.path / ".sites.lock")
        try:
            lock.acquire(timeout=_LOCK_SECONDS)
        except Timeout:
            raise ValueError(
                f"another command has been changing '{self.path / 'sites.json'}' for {_LOCK_SECONDS:.0f} s. "
                "Wait for it to end, then try again."
            ) from None
        try:
            before = self.sites()
            sites = dict(before)
            yield sites
        finally:
            if sites != before:
                write_json(self.path / "sites.json", {name: asdict(site) for name, site in sites.items()})
            lock.release()

    def remember_run(self, run_id: str, run_dir: str) -> None:
        """Note which run was submitted last, for `wardround status`."""
        write_json(self.path / "last_run.json", {"run_id": run_id, "run_dir": run_dir})

    def last_run(self) -> dict[str, str] | None:
        """`run_id` and `run_dir` of the run that was submitted last."""
        file = self.path / "last_run.json"
        if not file.exists():
            return None
        read: dict[str, str] = json.loads(file.read_text(encoding="utf-8"))
        return read


def _joined(host: str, port: int) -> str:
    try:
        return f"[{host}]:{port}" if ip_address(host).version == 6 else f"{host}:{port}"
    except ValueError:
        return f"{host}:{port}"


def toml_string(text: object) -> str:
    """A TOML basic string: as in JSON, but DEL is escaped too."""
    return json.dumps(str(text), ensure_ascii=False).replace("\x7f", "\\u007f")


def _findings(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(map(str, item['loc']))}: {item['msg'].removeprefix('Value error, ')}".lstrip(": ")
        for item in error.errors()
    )
