"""The coordinator's folder: certificates, addresses, registered sites, and Flower's own files."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated

import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from filelock import FileLock, Timeout
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from wardround.common.credentials import public_line, refuse_to_overwrite
from wardround.common.explain import explain
from wardround.common.files import write_json, write_text
from wardround.server.deployment.addresses import Addresses
from wardround.server.deployment.certificates import (
    SERVER_DAYS,
    Pair,
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

SUPERLINK = "wardround"
"""Name of this federation's SuperLink on the Flower command line."""
_LOCK_SECONDS = 30.0


@dataclass(frozen=True)
class RegisteredSite:
    """A site that may connect."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    public_key: str
    """Key of its node, OpenSSH form."""
    signing_key: str
    """Key that signs its answers, OpenSSH form."""
    fingerprint: str
    """SHA256:… of its registration, to compare by telephone."""
    max_examples: Annotated[int, Field(ge=1)] | None = None
    """Limit on the training texts that it may report for a round, and on its test texts; None:
    no limit."""

    @property
    def bound(self) -> str:
        """Its limit in words."""
        if self.max_examples is None:
            return "no limit on its texts"
        return f"at most {self.max_examples} texts a round"


_ADDRESSES: TypeAdapter[Addresses] = TypeAdapter(Addresses)
_SITES: TypeAdapter[dict[str, RegisteredSite]] = TypeAdapter(dict[str, RegisteredSite])


class ServerFolder:
    """The files under `path`. Only their owner can read the keys."""

    def __init__(self, path: Path) -> None:
        """Open a folder. Raises ValueError if it is not one, or if its `server.yaml` is wrong."""
        self.path = path.absolute()
        self.authority = Pair(self.path / "ca.crt", self.path / "ca.key")
        self.server = Pair(self.path / "server.crt", self.path / "server.key")
        self.signing_key = self.path / "signing.key"
        self.public_key = public_half(self.signing_key)
        self.flower_home = self.path / "flwr"
        self.fleet_file = self.path / "fleet.json"
        self.addresses = self._read_addresses()
        self.server.finish_renewal()
        self._sites: dict[str, RegisteredSite] = {}
        self._sites_version: tuple[int, int] | None = None
        """Inode and time of change of the `sites.json` that was read last."""

    @classmethod
    def create(
        cls,
        path: Path,
        addresses: Addresses,
        days: int = SERVER_DAYS,
        passphrase: str = "",
        signing_line: str = "",
    ) -> ServerFolder:
        """Make a new folder with a certificate authority, a server certificate and a signing key.

        Args:
            days: validity of the server certificate.
            passphrase: encrypts the authority's key; "" leaves it plain.
            signing_line: public half of a signing key on another machine, OpenSSH form; "" makes a
                key here.

        Raises:
            ValueError: one of the files exists already.
        """
        names = ("server.yaml", "sites.json", "signing.key", "signing.pub")
        refuse_to_overwrite(*(path / name for name in names))
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        authority = Pair(path / "ca.crt", path / "ca.key")
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
        content = asdict(addresses) | {"names": list(addresses.names)}
        # Last, because a folder without it does not count as a server folder.
        write_text(path / "server.yaml", yaml.safe_dump(content, sort_keys=False))
        folder = cls(path)
        folder.write_flower_config(insecure=False)
        return folder

    def renew(self, days: int = SERVER_DAYS, passphrase: str = "") -> None:
        """Make a new server key and certificate from the same authority. Sites need no change."""
        issue_server_certificate(
            self.authority,
            self.server,
            self.addresses.certified,
            days=days,
            renew=True,
            passphrase=passphrase,
        )

    def _read_addresses(self) -> Addresses:
        file = self.path / "server.yaml"
        if not file.exists():
            raise ValueError(
                f"'{self.path}' is not a server folder (it has no server.yaml). Make one with: "
                "wardround server init --name NAME, or name another with --dir."
            )
        try:
            content = yaml.safe_load(file.read_text(encoding="utf-8"))
            return _ADDRESSES.validate_python(content)
        except yaml.YAMLError as error:
            raise ValueError(f"'{file}' is not YAML: {error}") from None
        except ValidationError as error:
            steps = {"names": "Give the DNS name or IP address that sites dial."}
            known = [key.name for key in fields(Addresses)]
            raise ValueError(
                f"'{file}' is wrong: {explain(error, known, steps)}"
            ) from None

    @property
    def is_insecure(self) -> bool:
        """True if the server was last started without TLS and node authentication."""
        file = self.flower_home / "config.toml"
        try:
            config = tomllib.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return False
        return bool(config["superlink"][SUPERLINK].get("insecure", False))

    def write_flower_config(self, *, insecure: bool) -> None:
        """Write the file in which Flower's command line finds this SuperLink and its
        certificate."""
        if insecure:
            trust = "insecure = true"
        else:
            trust = f"root-certificates = {toml_string(self.authority.certificate)}"
        lines = (
            "[superlink]",
            f"default = {toml_string(SUPERLINK)}",
            "",
            f"[superlink.{SUPERLINK}]",
            f"address = {toml_string(self.addresses.control)}",
            trust,
            "",
        )
        write_text(self.flower_home / "config.toml", "\n".join(lines))

    def sites(self) -> dict[str, RegisteredSite]:
        """Return the registered sites by name, sorted. Reads the file again if it has changed.

        If the file was deleted, the sites that were read last remain.

        Raises:
            ValueError: the file is wrong.
        """
        file = self.path / "sites.json"
        try:
            status = file.stat()
            version = (status.st_ino, status.st_mtime_ns)
            if version != self._sites_version:
                sites = _SITES.validate_json(file.read_bytes())
                self._sites = dict(sorted(sites.items()))
                self._sites_version = version
        except FileNotFoundError:
            pass
        except ValidationError as error:
            raise ValueError(
                f"'{file}' is wrong, or an earlier version wrote it: {explain(error)} Move it "
                f"away, then "
                "register each site again from its registration-NAME.json."
            ) from None
        return dict(self._sites)

    @contextmanager
    def changing_sites(self) -> Iterator[dict[str, RegisteredSite]]:
        """Lock the sites for one process, yield them to be changed in place, and write any change.

        Raises:
            ValueError: another process has held the lock for half a minute.
        """
        file = self.path / "sites.json"
        try:
            with FileLock(self.path / ".sites.lock", timeout=_LOCK_SECONDS):
                sites = self.sites()
                yield sites
                if sites != self.sites():
                    content = {name: asdict(site) for name, site in sites.items()}
                    write_json(file, content)
        except Timeout:
            raise ValueError(
                f"another command has been changing '{file}' for {_LOCK_SECONDS:.0f} s. "
                "Wait until it ends, then try again."
            ) from None

    def remember_run(self, run_id: str, run_dir: str) -> None:
        """Note the run that was submitted last, for `wardround status`."""
        write_json(self.path / "last_run.json", {"run_id": run_id, "run_dir": run_dir})

    def last_run(self) -> dict[str, str] | None:
        """Return `run_id` and `run_dir` of the run that was submitted last; None if there is
        none."""
        file = self.path / "last_run.json"
        with suppress(FileNotFoundError):
            found: dict[str, str] = json.loads(file.read_text(encoding="utf-8"))
            return found
        return None

    def invitation(self, site: str) -> Path:
        """Return the path of a site's invitation."""
        return self.path / "invitations" / f"{site}.json"


def toml_string(text: object) -> str:
    """Return a TOML basic string: as in JSON, except that DEL is escaped too."""
    return json.dumps(str(text), ensure_ascii=False).replace("\x7f", "\\u007f")


def signing_key(folder: ServerFolder) -> Ed25519PrivateKey:
    """Return the key that signs plans, invitations and the keys of runs. Raises ValueError if
    there is none."""
    if is_signed_elsewhere(folder):
        raise ValueError(
            f"the signing key is not in '{folder.path}': it is on another machine. Give the same "
            "command with --unsigned FILE, then on that machine: wardround server sign FILE"
        )
    return read_signing_key(folder.signing_key)


def is_signed_elsewhere(folder: ServerFolder) -> bool:
    """Return True if the folder has only the public half of the signing key."""
    return folder.public_key.exists() and not folder.signing_key.exists()


def coordinator_line(folder: ServerFolder) -> str:
    """Return the public key by which sites know the coordinator, OpenSSH form. Updates its file.

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
