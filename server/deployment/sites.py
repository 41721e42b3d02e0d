"""Sites are invited, registered and removed.

invite NAME -> invitations/NAME.json -> the site -> registration-NAME.json -> register NAME
"""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from wardround.common.addresses import host_and_port
from wardround.common.credentials import check_public_line, fingerprint
from wardround.common.files import write_atomically
from wardround.common.versions import PACKAGES
from wardround.common.wire.invitation import (
    Invitation,
    Registration,
    read_document,
    write_document,
)
from wardround.common.words import label_name, quoted, shown
from wardround.server.deployment.folder import (
    RegisteredSite,
    ServerFolder,
    coordinator_line,
    signing_key,
)

_SITE_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_ADDRESS = re.compile(r"(\[[0-9a-fA-F:]+\]|[A-Za-z0-9.-]+):[0-9]{1,5}")


def invite_site(
    folder: ServerFolder,
    name: str,
    *,
    address: str | None = None,
    labels: Sequence[str] = (),
) -> tuple[Path, str]:
    """Write the invitation of a site. It replaces an earlier one.

    Args:
        address: `host:port` that the site dials. Default: the server's first name and its fleet
            port.
        labels: label names of the consortium, in the order of their numbers.

    Returns:
        The file and its fingerprint.

    Raises:
        ValueError: name, address or labels are wrong, or the site is already registered.
    """
    key = signing_key(folder)
    invitation = draft_invitation(folder, name, address=address, labels=labels)
    file = folder.invitation(name)
    return file, write_document(invitation, file, key)


def draft_invitation(
    folder: ServerFolder,
    name: str,
    *,
    address: str | None = None,
    labels: Sequence[str] = (),
) -> Invitation:
    """Return an invitation that is not signed yet. Arguments and errors as for `invite_site`."""
    if not _SITE_NAME.fullmatch(name):
        raise ValueError(
            f"'{name}' is not a site name. Use small letters, digits, '-' and '_', for example "
            f"st-mary."
        )
    _refuse_to_replace(name, folder.sites())
    if not address:
        addresses = folder.addresses
        address = host_and_port(addresses.names[0], addresses.fleet_port)
    if not _ADDRESS.fullmatch(address):
        raise ValueError(
            f"--address is '{address}'. Write HOST:PORT, for example fl.example.org:9092."
        )
    labels = [label_name(label) for label in labels]
    if len(set(labels)) != len(labels) or not all(labels):
        raise ValueError(
            f"--labels is '{','.join(labels)}'. Give every label a different name."
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
    """Store an invitation that was signed on another machine; return its fingerprint.

    Raises:
        ValueError: the coordinator has not signed it, it is for another site, or the site is
            already registered.
        OSError: it cannot be written.
    """
    invitation, found = read_document(
        Invitation, signed, signed_with=[coordinator_line(folder)]
    )
    if invitation.site != name:
        raise ValueError(
            f"'{signed}' is the invitation of '{invitation.site}', not of '{name}'."
        )
    _refuse_to_replace(name, folder.sites())
    content = signed.read_bytes()
    write_atomically(folder.invitation(name), lambda part: part.write_bytes(content))
    return found


def register_site(
    folder: ServerFolder, name: str, answer: Path, *, max_examples: int | None = None
) -> RegisteredSite:
    """Register a site with the keys in its answer. A running server accepts it at once.

    Args:
        answer: the site's registration-NAME.json.
        max_examples: limit on the training texts that the site may report for a round, and on
            its test texts; None for no limit.

    Raises:
        ValueError: the site was not invited, the file is wrong or for another site, or a key is
            already registered.
    """
    registration, registered = read_document(Registration, answer)
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
            if new & {fingerprint(site.public_key), fingerprint(site.signing_key)}:
                raise ValueError(
                    f"'{answer}' holds a key of site '{other}'. Each site must make its own keys "
                    f"with: "
                    "wardround-site init"
                )
        sites[name] = RegisteredSite(node_key, signing, registered, max_examples)
        return sites[name]


def unregister_site(folder: ServerFolder, name: str) -> None:
    """Remove a site at once, and its invitation. Raises ValueError for an unknown name."""
    with folder.changing_sites() as sites:
        if name not in sites:
            raise ValueError(
                f"no site '{name}' is registered. Registered: {', '.join(sites) or 'none'}."
            )
        del sites[name]
    folder.invitation(name).unlink(missing_ok=True)


def _refuse_to_replace(name: str, sites: Mapping[str, RegisteredSite]) -> None:
    if name in sites:
        raise ValueError(
            f"site '{name}' is already registered. To give it new keys: "
            f"wardround server unregister {name}, then invite it again."
        )


def _check_invited(
    folder: ServerFolder, registration: Registration, answer: Path
) -> None:
    file = folder.invitation(registration.site)
    again = f"Invite it with: wardround server invite {registration.site}"
    if not file.exists():
        raise ValueError(
            f"'{registration.site}' was not invited, or its invitation was withdrawn. {again}"
        )
    invitation, fingerprint = read_document(Invitation, file)
    if registration.invitation != fingerprint:
        raise ValueError(
            f"'{answer}' answers another invitation (fingerprint "
            f"{shown(registration.invitation)}) than "
            f"the last one for '{registration.site}' ({fingerprint}). Ask the site to answer "
            f"'{file}'. If it "
            "did, somebody exchanged the file on its way."
        )
    if check_public_line(invitation.signing_key, "signing") != coordinator_line(folder):
        raise ValueError(
            f"the invitation of '{registration.site}' is older than the signing key. {again}"
        )


def _versions() -> dict[str, str]:
    """Return the installed version of each package that a site compares with its own."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        # A server-only installation may lack one.
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
