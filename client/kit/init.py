"""The files that `wardround-site init` writes, and the key that `trust` replaces."""

from __future__ import annotations

import json
import os
import pwd
import sys
from dataclasses import replace
from pathlib import Path
from string import Template
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from wardround.client.policy.limits import Policy, without_retired
from wardround.client.site_file import SiteFile, signing_keys, write_site_file
from wardround.common.credentials import (
    new_key,
    public_line,
    refuse_to_overwrite,
    write_key_pair,
)
from wardround.common.errors import ModelNotLoaded
from wardround.common.explain import explain
from wardround.common.files import write_text
from wardround.common.model_files import FILES_PREFIX, WEIGHTS_PREFIX, read_model_files
from wardround.common.wire.invitation import (
    Invitation,
    Registration,
    Rotation,
    read_document,
    registration_file,
    write_document,
)

_POLICY: TypeAdapter[Policy] = TypeAdapter(Policy)
_TEMPLATES = Path(__file__).resolve().parent / "files"
UNIT = "wardround-site.service"
COMPOSE = "compose.yaml"
_MEMORY_SHARE = 0.8
_UNSAFE_LETTERS = "\"'\\\n$%"


def write_kit(
    invited: Path, folder: Path, image: str, **facts: Any
) -> tuple[SiteFile, str, str]:
    """Make the keys and write the site's files to `folder`.

    Args:
        invited: the invitation's file, which is copied.
        image: container image for the compose file.
        facts: fields of `SiteFile` that the invitation does not hold.

    Returns:
        The site, the fingerprint of the invitation, and that of the registration.

    Raises:
        ValueError: one of the files exists (then none is written), a path holds a letter
            that the files cannot hold, or the invitation or a fact is wrong.
    """
    folder = folder.absolute()
    invited = invited.absolute()
    invitation, fingerprint = read_document(Invitation, invited)
    copy = folder / "invitation.json"
    secret = folder / "signing.key"
    coordinator = folder / "coordinator.pub"
    site = SiteFile(
        name=invitation.site,
        server_address=invitation.address,
        ca=folder / "ca.crt",
        coordinator_key=coordinator,
        private_key=folder / "site.key",
        public_key=folder / "site.pub",
        signing_key=secret,
        state=folder / "state",
        invitation=copy,
        **_with_pinned_model(facts),
    )
    for path in (folder, site.data_path, site.model or folder):
        if any(letter in str(path) for letter in _UNSAFE_LETTERS):
            raise ValueError(
                f"{path}: this path holds a quote, a backslash, $ or %. Rename it."
            )
    texts = {
        site.ca: invitation.ca,
        coordinator: f"{invitation.signing_key} coordinator\n",
        folder / UNIT: _unit(site, folder),
        folder / COMPOSE: _compose(site, folder, image),
    }
    if invited != copy:
        texts[copy] = invited.read_text(encoding="ascii")
    site_file = folder / "site.yaml"
    registration = folder / registration_file(site.name)
    refuse_to_overwrite(
        site.private_key, site.public_key, secret, *texts, site_file, registration
    )
    folder.mkdir(parents=True, exist_ok=True)
    site.state.mkdir(exist_ok=True)
    site.state.chmod(0o700)
    node, signing = new_key("node"), new_key("signing")
    write_key_pair(node, site.private_key, site.public_key, comment=site.name)
    write_key_pair(
        signing, secret, secret.with_suffix(".pub"), comment=f"{site.name}-signing"
    )
    for path, text in texts.items():
        write_text(path, text)
    write_site_file(site, site_file)
    answer = Registration(
        site.name, public_line(node), public_line(signing), fingerprint
    )
    written = write_document(answer, registration, signing)  # type: ignore[arg-type]
    return site, fingerprint, written


def read_policy(path: Path) -> Policy:
    """Read a policy from YAML, one `key: value` a line.

    Raises:
        ValueError: the file cannot be read as YAML, or a key or value is wrong.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        return _POLICY.validate_python(without_retired(content))
    except ValidationError as error:
        keys = list(_POLICY.json_schema()["properties"])
        raise ValueError(f"{path}: {explain(error, keys)}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"--policy is '{path}', which cannot be read as YAML ({reason})."
        ) from None


def _with_pinned_model(facts: dict[str, Any]) -> dict[str, Any]:
    """Pin the model's folder in the policy, unless the policy lists models itself."""
    model = facts.get("model")
    policy = facts.get("policy", Policy())
    if policy.models is not None or model is None:
        return facts
    try:
        files = read_model_files(model)
    except (ModelNotLoaded, OSError):
        return facts  # `check` reports what is wrong with the folder
    weights = files.weights_digest()
    pin = f"{WEIGHTS_PREFIX}{weights}"
    if weights is None:
        pin = f"{FILES_PREFIX}{files.digest()}"
    return facts | {"policy": replace(policy, models=(pin,))}


def _unit(site: SiteFile, folder: Path) -> str:
    return _template(UNIT).substitute(
        name=site.name,
        user=_user(),
        folder=folder,
        executable=Path(sys.executable).with_name("wardround-site"),
        server=site.host_and_port[0],
    )


def _compose(site: SiteFile, folder: Path, image: str) -> str:
    mounts = {folder: ", read_only: true"}
    for path in (site.data_path, site.model):
        if path is not None and not path.is_relative_to(folder):
            mounts[path] = ", read_only: true"
    mounts[site.state] = ""
    volumes = [
        f"      - {{type: bind, source: {_quoted(path)}, target: {_quoted(path)}{mode}}}"
        for path, mode in mounts.items()
    ]
    return _template(COMPOSE).substitute(
        name=site.name,
        image=json.dumps(image),
        site_file=_quoted(folder / "site.yaml"),
        uid=os.getuid(),
        gid=os.getgid(),
        memory=_most_memory_mib(),
        volumes="\n".join(volumes),
    )


def _most_memory_mib() -> int:
    """Return the container's memory limit in MiB, the same share as the unit's MemoryMax."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(_MEMORY_SHARE * total / 2**20)


def _template(name: str) -> Template:
    return Template((_TEMPLATES / name).read_text(encoding="utf-8"))


def _quoted(path: Path) -> str:
    return json.dumps(str(path), ensure_ascii=False)


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container may run under a number without a name
        return str(os.getuid())


def trust_next_key(site: SiteFile, rotation: Path, fingerprint: str) -> None:
    """Replace the coordinator's current key by that of a rotation.

    Raises:
        ValueError: the current key has not signed it, or its fingerprint differs.
    """
    _, current = signing_keys(site)
    assert site.coordinator_key is not None
    announced, found = read_document(Rotation, rotation, signed_with=[current])
    if found != fingerprint.strip():
        raise ValueError(
            f"--fingerprint is '{fingerprint}', but the fingerprint of '{rotation}' is "
            f"{found}. Ask the coordinator by telephone, and change nothing until they "
            "are the same."
        )
    write_text(site.coordinator_key, f"{announced.signing_key} coordinator\n")
