"""Which sites may connect: their public keys, checked, registered, and registered again."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import time
from dataclasses import replace
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key

from server.deployment import superlink
from server.deployment.server_folder import RegisteredSite, ServerFolder
from server.deployment.superlink import SuperLinkError

_SITE_NAME = re.compile(r"[a-z0-9_-]+")
_POLL_SECONDS = 0.3


def register_site(folder: ServerFolder, name: str, key_file: Path) -> RegisteredSite:
    """Let a site in, under a name and with the public key it sent.

    Raises:
        ValueError: the name or the key is wrong, or registered already. SuperLinkError: not possible now.
    """
    if not _SITE_NAME.fullmatch(name):
        raise ValueError(f"'{name}' is no site name; use small letters, digits, '-' and '_', as in st-mary.")
    public_key = read_public_key(key_file)
    fingerprint = fingerprint_of(public_key)
    with folder.changing_sites() as sites:
        if name in sites:
            raise ValueError(
                f"a site '{name}' is registered already. For a new key: wardround server unregister {name}, "
                "then register it again."
            )
        for other, site in sites.items():
            if site.fingerprint == fingerprint:
                raise ValueError(
                    f"'{key_file}' is the key of site '{other}'. Every site makes a key of its own, "
                    "with: wardround-site init"
                )
        sites[name] = RegisteredSite(superlink.register(folder, public_key), public_key, fingerprint)
        return sites[name]


def unregister_site(folder: ServerFolder, name: str) -> None:
    """Let a site in no more. Raises ValueError for an unknown name, SuperLinkError if not possible now."""
    with folder.changing_sites() as sites:
        if name not in sites:
            there = ", ".join(sites) or "none"
            raise ValueError(f"no site '{name}' is registered. There are: {there}.")
        if sites[name].node_id in superlink.node_states(folder):
            superlink.unregister(folder, sites[name].node_id)
        del sites[name]


def register_again(folder: ServerFolder) -> list[str]:
    """Tell a newly started SuperLink of the sites it does not know; returns their names.

    A SuperLink keeps nothing over its end, and gives each node a new number at the next start.

    Raises:
        SuperLinkError: not possible now.
    """
    with folder.changing_sites() as sites:
        known = superlink.node_states(folder) if sites else {}
        unknown = [name for name, site in sites.items() if site.node_id not in known]
        for name in unknown:
            node_id = superlink.register(folder, sites[name].public_key)
            sites[name] = replace(sites[name], node_id=node_id)
        return unknown


def wait_until_up(folder: ServerFolder, seconds: float, process: int | None = None) -> None:
    """Return as soon as the SuperLink answers.

    Raises:
        SuperLinkError: after `seconds`, or once `process`, its number, is gone.
    """
    deadline = time.monotonic() + seconds
    while not superlink.is_up(folder):
        if time.monotonic() > deadline or (process is not None and not _is_alive(process)):
            raise SuperLinkError(f"waited up to {seconds:g} s, but {superlink.not_running(folder)}")
        time.sleep(_POLL_SECONDS)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def read_public_key(file: Path) -> str:
    """The key in OpenSSH form, without a comment.

    Raises:
        ValueError: the file is missing, holds a private key, or no ECDSA key on the curve P-384.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ValueError(f"'{file}' cannot be read ({error.strerror}).") from None
    if b"PRIVATE KEY" in content:
        raise ValueError(
            f"'{file}' holds a PRIVATE key, which must never leave its site. Delete this copy; the site "
            "makes a new pair (wardround-site init) and sends the file that ends in .pub."
        )
    try:
        key = load_ssh_public_key(content.strip())
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise ValueError(
            f"'{file}' does not hold an ECDSA public key on the curve P-384 in OpenSSH form (a line that "
            "begins with ecdsa-sha2-nistp384). The site makes one with: wardround-site init"
        )
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def fingerprint_of(public_key: str) -> str:
    """SHA-256 of a key in OpenSSH form, as `ssh-keygen -lf` prints it."""
    digest = hashlib.sha256(base64.b64decode(public_key.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")
