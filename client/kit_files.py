"""The files that `wardround-site init` writes: key pair, site.yaml, systemd unit, compose file."""

from __future__ import annotations

import json
import os
import pwd
import sys
from pathlib import Path
from string import Template

from client.keys import make_key_pair, refuse_to_overwrite
from client.site_file import SiteFile, write_site_file
from common.runs import write_atomically

_TEMPLATES = Path(__file__).resolve().parent / "kit"
UNIT, COMPOSE, SITE = "wardround-site.service", "compose.yaml", "site.yaml"


def write_kit(site: SiteFile, folder: Path, image: str) -> None:
    """Make the keys and write the files, readable in `folder`.

    Raises:
        ValueError: one of the files is there already; then none is written. Or a path cannot stand in them.
    """
    folder = folder.absolute()
    targets = [site.private_key, site.public_key, *(folder / name for name in (SITE, UNIT, COMPOSE))]
    for path in (folder, site.ca, site.data_path, site.model or folder):
        if any(letter in str(path) for letter in "\"'\\\n$%"):
            raise ValueError(f"{path}: quotes, backslashes, $ and % cannot stand in a path here. Move it.")
    refuse_to_overwrite(*targets)
    folder.mkdir(parents=True, exist_ok=True)
    unit, compose = _unit(site, folder), _compose(site, folder, image)
    make_key_pair(site.private_key, site.public_key, comment=site.name)
    write_site_file(site, folder / SITE)
    write_atomically(folder / UNIT, lambda part: part.write_text(unit, encoding="utf-8"))
    write_atomically(folder / COMPOSE, lambda part: part.write_text(compose, encoding="utf-8"))


def _unit(site: SiteFile, folder: Path) -> str:
    return _template(UNIT).substitute(
        name=site.name,
        user=_user(),
        folder=folder,
        executable=Path(sys.executable).with_name("wardround-site"),
        server=site.host_and_port[0],
    )


def _compose(site: SiteFile, folder: Path, image: str) -> str:
    outside = [path for path in (site.ca, site.data_path, site.model) if path is not None]
    mounted = [folder, *(path for path in outside if not path.is_relative_to(folder))]
    volumes = [
        f"      - {{type: bind, source: {_quoted(path)}, target: {_quoted(path)}, read_only: true}}"
        for path in dict.fromkeys(mounted)
    ]
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
