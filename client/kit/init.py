"""The files that `wardround-site init` writes: keys, site.yaml, registration, systemd unit, compose file."""

from __future__ import annotations

import json
import os
import pwd
import sys
from dataclasses import replace
from pathlib import Path
from string import Template
from typing import Any

from wardround.client.policy import Policy
from wardround.client.site_file import SiteFile, signing_keys, write_site_file
from wardround.common.credentials import (
    new_key,
    public_line,
    refuse_to_overwrite,
    write_key_pair,
)
from wardround.common.errors import ModelNotLoaded
from wardround.common.files import write_atomically
from wardround.common.model_files import FILES_PREFIX, WEIGHTS_PREFIX, read_model_files
from wardround.common.wire.invitation import (
    Invitation,
    Registration,
    Rotation,
    read_paper,
    write_paper,
)

_TEMPLATES = Path(__file__).resolve().parent / "files"
UNIT, COMPOSE, REGISTRATION = (
    "wardround-site.service",
    "compose.yaml",
    "registration.json",
)
_MEMORY_SHARE = 0.8


def write_kit(
    invited: Path, folder: Path, image: str, **facts: Any
) -> tuple[SiteFile, str, str]:
    """Make the keys and write the files, readable in `folder`.

    Args:
        invited: the invitation's file, which is copied.
        facts: of the `SiteFile`, beside what the invitation says and where the files stand.

    Returns:
        The site, the fingerprint of the invitation, and that of the registration.

    Raises:
        ValueError: one of the files is there already, then none is written; a path cannot stand in them; or
            the invitation or a fact is none.
    """
    folder, invited = folder.absolute(), invited.absolute()
    invitation, fingerprint = read_paper(Invitation, invited)
    names = (
        "ca.crt",
        "coordinator.pub",
        "site.key",
        "site.pub",
        "signing.key",
        "state",
        "invitation.json",
    )
    ca, coordinator, private, public, secret, state, copy = (
        folder / name for name in names
    )
    site = SiteFile(
        name=invitation.site,
        server_address=invitation.address,
        ca=ca,
        coordinator_key=coordinator,
        private_key=private,
        public_key=public,
        signing_key=secret,
        state=state,
        invitation=copy,
        **_with_pinned_model(facts),
    )
    for path in (folder, site.data_path, site.model or folder):
        if any(letter in str(path) for letter in "\"'\\\n$%"):
            raise ValueError(
                f"{path}: quotes, backslashes, $ and % cannot stand in a path here. Move it."
            )
    texts = {
        copy: invited.read_text(encoding="ascii"),
        ca: invitation.ca,
        coordinator: f"{invitation.signing_key} coordinator\n",
        folder / UNIT: _unit(site, folder),
        folder / COMPOSE: _compose(site, folder, image),
    }
    if invited == copy:
        del texts[copy]
    others = (folder / name for name in ("site.yaml", REGISTRATION))
    refuse_to_overwrite(private, public, secret, *texts, *others)
    folder.mkdir(parents=True, exist_ok=True)
    state.mkdir(exist_ok=True)
    state.chmod(0o700)
    node, signing = new_key("node"), new_key("signing")
    write_key_pair(node, private, public, comment=site.name)
    write_key_pair(
        signing, secret, secret.with_suffix(".pub"), comment=f"{site.name}-signing"
    )
    for path, text in texts.items():
        _write(path, text)
    write_site_file(site, folder / "site.yaml")
    answer = Registration(
        site.name, public_line(node), public_line(signing), fingerprint
    )
    return site, fingerprint, write_paper(answer, folder / REGISTRATION, signing)  # type: ignore[arg-type]


def _with_pinned_model(facts: dict[str, Any]) -> dict[str, Any]:
    """The facts with the model's folder pinned in the policy, unless the policy lists models itself."""
    model, policy = facts.get("model"), facts.get("policy", Policy())
    if policy.models is not None or model is None:
        return facts
    try:
        files = read_model_files(model)
    except (ModelNotLoaded, OSError):
        return facts  # `check` says what is wrong with the folder
    weights = files.weights_digest()
    pin = (
        f"{FILES_PREFIX}{files.digest()}"
        if weights is None
        else f"{WEIGHTS_PREFIX}{weights}"
    )
    return facts | {"policy": replace(policy, models=(pin,))}


def _write(path: Path, text: str) -> None:
    write_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))


def _unit(site: SiteFile, folder: Path) -> str:
    return _template(UNIT).substitute(
        name=site.name,
        user=_user(),
        folder=folder,
        executable=Path(sys.executable).with_name("wardround-site"),
        server=site.host_and_port[0],
    )


def _compose(site: SiteFile, folder: Path, image: str) -> str:
    outside = [path for path in (site.data_path, site.model) if path is not None]
    read = [folder, *(path for path in outside if not path.is_relative_to(folder))]
    mounts = {_quoted(path): ", read_only: true" for path in read} | {
        _quoted(site.state): ""
    }
    return _template(COMPOSE).substitute(
        name=site.name,
        image=json.dumps(image),
        site_file=_quoted(folder / "site.yaml"),
        uid=os.getuid(),
        gid=os.getgid(),
        memory=_most_memory_mib(),
        volumes="\n".join(
            f"      - {{type: bind, source: {path}, target: {path}{how}}}"
            for path, how in mounts.items()
        ),
    )


def _most_memory_mib() -> int:
    """How much memory the container may take, in MiB: as the unit's MemoryMax, of this machine's."""
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
    """Trust the key of a rotation in place of the coordinator's present one.

    Raises:
        ValueError: it is not signed with the present key, or its fingerprint is another one.
    """
    _, present = signing_keys(site)
    assert site.coordinator_key is not None
    announced, found = read_paper(Rotation, rotation, signed_with=[present])
    if found != fingerprint.strip():
        raise ValueError(
            f"--fingerprint is '{fingerprint}', but the fingerprint of '{rotation}' is {found}. Ask the "
            "coordinator by telephone, and change nothing until they are the same."
        )
    _write(site.coordinator_key, f"{announced.signing_key} coordinator\n")
