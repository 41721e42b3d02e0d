"""The files that `wardround-site init` writes: keys, site.yaml, registration, systemd unit, compose file."""

from __future__ import annotations

import json
import os
import pwd
import sys
from pathlib import Path
from string import Template

from client.kit.site_file import SiteFile, signing_keys, write_site_file
from common.credentials import new_key, public_line, refuse_to_overwrite, write_key_pair
from common.files import write_atomically
from common.wire.invitation import Invitation, Registration, Rotation, read_paper, write_paper

_TEMPLATES = Path(__file__).resolve().parent / "files"
UNIT, COMPOSE, SITE = "wardround-site.service", "compose.yaml", "site.yaml"
REGISTRATION, INVITATION, STATE = "registration.json", "invitation.json", "state"


def write_kit(site: SiteFile, invitation: Invitation, invited: Path, folder: Path, image: str) -> str:
    """Make the keys and write the files, readable in `folder`; returns the registration's fingerprint.

    Args:
        invited: the invitation's file, which is copied.

    Raises:
        ValueError: one of the files is there already; then none is written. Or a path cannot stand in them.
    """
    folder = folder.absolute()
    assert site.signing_key is not None
    assert site.coordinator_key is not None
    assert site.invitation is not None
    made = [site.private_key, site.public_key, site.signing_key, site.ca, site.coordinator_key]
    targets = [*made, *(folder / name for name in (SITE, UNIT, COMPOSE, REGISTRATION))]
    targets += [] if invited.absolute() == site.invitation else [site.invitation]
    for path in (folder, site.data_path, site.model or folder):
        if any(letter in str(path) for letter in "\"'\\\n$%"):
            raise ValueError(f"{path}: quotes, backslashes, $ and % cannot stand in a path here. Move it.")
    refuse_to_overwrite(*targets)
    folder.mkdir(parents=True, exist_ok=True)
    unit, compose = _unit(site, folder), _compose(site, folder, image)
    site.state.mkdir(mode=0o700, exist_ok=True)
    node, signing = new_key("node"), new_key("signing")
    write_key_pair(node, site.private_key, site.public_key, comment=site.name)
    public = site.signing_key.with_suffix(".pub")
    write_key_pair(signing, site.signing_key, public, comment=f"{site.name}-signing")
    if invited.absolute() != site.invitation:
        _write(site.invitation, invited.read_text(encoding="ascii"))
    _write(site.ca, invitation.ca)
    _write(site.coordinator_key, f"{invitation.signing_key} coordinator\n")
    write_site_file(site, folder / SITE)
    _write(folder / UNIT, unit)
    _write(folder / COMPOSE, compose)
    answer = Registration(site.name, public_line(node), public_line(signing), fingerprint_of(invited))
    return write_paper(answer, folder / REGISTRATION, signing)  # type: ignore[arg-type]


def fingerprint_of(invited: Path) -> str:
    """Of an invitation's file. Raises ValueError where it is none."""
    return read_paper(Invitation, invited)[1]


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
    mounted = [folder, *(path for path in outside if not path.is_relative_to(folder))]
    volumes = [
        f"      - {{type: bind, source: {_quoted(path)}, target: {_quoted(path)}, read_only: true}}"
        for path in dict.fromkeys(mounted)
    ]
    state = _quoted(site.state)
    volumes.append(f"      - {{type: bind, source: {state}, target: {state}}}")
    return _template(COMPOSE).substitute(
        name=site.name,
        image=json.dumps(image),
        site_file=_quoted(folder / SITE),
        uid=os.getuid(),
        gid=os.getgid(),
        volumes="\n".join(volumes),
    )


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
