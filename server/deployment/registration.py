"""Which sites may take part: they are invited, answer with their keys, and are let in under a name.

    invite NAME -> invitations/NAME.json -> the site -> registration.json -> register NAME

Who is registered stands in sites.json, which the running server reads whenever it changes.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from common.credentials import check_public_line, new_key, public_line, read_private_key, write_private_key
from common.wire.invitation import Invitation, Registration, Rotation, read_paper, write_paper
from server.deployment.folder import RegisteredSite, ServerFolder

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_SITE_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_ADDRESS = re.compile(r"(\[[0-9a-fA-F:]+\]|[A-Za-z0-9.-]+):[0-9]{1,5}")
_TOLD_PACKAGES = ("wardround", "flwr", "torch", "transformers")


def invite_site(
    folder: ServerFolder, name: str, *, address: str | None = None, labels: Sequence[str] = ()
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
    if not _SITE_NAME.fullmatch(name):
        raise ValueError(f"'{name}' is no site name; use small letters, digits, '-' and '_', as in st-mary.")
    if name in folder.sites():
        raise ValueError(
            f"a site '{name}' is registered already. To let it come with new keys: "
            f"wardround server unregister {name}, then invite it again."
        )
    address = address or folder.fleet_address
    if not _ADDRESS.fullmatch(address):
        raise ValueError(f"--address is '{address}'; it must be HOST:PORT, for example fl.example.org:9092.")
    if len(set(labels)) != len(labels) or not all(labels):
        raise ValueError(f"--labels is '{','.join(labels)}'; every label needs a name of its own.")
    key = signing_key(folder)
    invitation = Invitation(
        site=name,
        address=address,
        ca=folder.authority.certificate.read_text(encoding="ascii"),
        signing_key=public_line(key),
        versions=_versions(),
        labels=tuple(labels),
    )
    file = _invitation(folder, name)
    return file, write_paper(invitation, file, key)


def register_site(
    folder: ServerFolder, name: str, answer: Path, *, max_examples: int | None = None
) -> tuple[RegisteredSite, str]:
    """Let a site in, with the keys in its answer to the invitation; a running server does so at once.

    Args:
        answer: the site's registration.json.
        max_examples: the most texts it may claim to have trained on in a round.

    Returns:
        The site, and its registration's fingerprint.

    Raises:
        ValueError: it was not invited, the file is wrong or for another name, a key is registered already, or
            `max_examples` is below 1.
    """
    if max_examples is not None and max_examples < 1:
        raise ValueError(f"--max-examples is {max_examples}; a site trains on at least one text.")
    registration, fingerprint = read_paper(Registration, answer)
    if registration.site != name:
        raise ValueError(f"'{answer}' is the registration of '{registration.site}', not of '{name}'.")
    _check_invited(folder, registration, answer)
    try:
        node_key = check_public_line(registration.node_key, "node")
        signing = check_public_line(registration.signing_key, "signing")
    except ValueError as error:
        raise ValueError(f"'{answer}': {error}. Ask the site for the file again.") from None
    with folder.changing_sites() as sites:
        if name in sites:
            raise ValueError(
                f"a site '{name}' is registered already. For new keys: wardround server unregister {name}, "
                "then invite it again."
            )
        for other, site in sites.items():
            if {site.public_key, site.signing_key} & {node_key, signing}:
                raise ValueError(
                    f"'{answer}' holds a key of site '{other}'. Every site makes keys of its own, with: "
                    "wardround-site init"
                )
        sites[name] = RegisteredSite(node_key, signing, fingerprint, max_examples)
        return sites[name], fingerprint


def unregister_site(folder: ServerFolder, name: str) -> None:
    """Let a site in no more, from now on; its invitation is void. Raises ValueError for an unknown name."""
    with folder.changing_sites() as sites:
        if name not in sites:
            raise ValueError(f"no site '{name}' is registered. There are: {', '.join(sites) or 'none'}.")
        del sites[name]
    _invitation(folder, name).unlink(missing_ok=True)


def signing_key(folder: ServerFolder) -> Ed25519PrivateKey:
    """What signs invitations and the keys of runs. Raises ValueError if there is none that can be read."""
    step = "Make the first one, or the next, with: wardround server rotate-key"
    return read_private_key(folder.signing_key, "signing", "the signing key", step)  # type: ignore[return-value]


def rotate_key(folder: ServerFolder) -> tuple[Path, str] | None:
    """Put a new signing key in the present one's place, and say so in a file signed with both.

    A kill leaves the old key or the new one; the same command then goes on where it stopped.

    Returns:
        The file for the sites and its fingerprint; None if there was no key yet, so that nobody trusts one.
    """
    coming = folder.signing_key.with_name("signing.key.next")
    if not folder.signing_key.exists():
        write_private_key(new_key("signing"), folder.signing_key)
        return None
    present = signing_key(folder)
    if not coming.exists():
        write_private_key(new_key("signing"), coming)
    new = read_private_key(coming, "signing", "the next signing key", f"Delete '{coming}', then try again.")
    file = folder.path / "rotation.json"
    fingerprint = write_paper(Rotation(public_line(new)), file, present, new)  # type: ignore[arg-type]
    coming.replace(folder.signing_key)
    return file, fingerprint


def _check_invited(folder: ServerFolder, registration: Registration, answer: Path) -> None:
    file = _invitation(folder, registration.site)
    again = f"Invite it with: wardround server invite {registration.site}"
    if not file.exists():
        raise ValueError(f"'{registration.site}' was not invited, or its invitation is void. {again}")
    invitation, fingerprint = read_paper(Invitation, file)
    if registration.invitation != fingerprint:
        raise ValueError(
            f"'{answer}' answers another invitation (fingerprint {registration.invitation}) than the last "
            f"one of '{registration.site}' ({fingerprint}). Have it answer '{file}'; if it did, it was given "
            "another file on the way."
        )
    if invitation.signing_key != public_line(signing_key(folder)):
        raise ValueError(f"the invitation of '{registration.site}' is older than the signing key. {again}")


def _invitation(folder: ServerFolder, name: str) -> Path:
    return folder.path / "invitations" / f"{name}.json"


def _versions() -> dict[str, str]:
    """What is installed here, by package."""
    found = {"python": platform.python_version()}
    for package in _TOLD_PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # a wheel of the server alone may lack one
            continue
    return found
