"""The files that exchange keys between coordinator and site: invitation, registration, rotation.

    coordinator  -- NAME.json -->               site         address, keys and agreements
    site         -- registration-NAME.json -->  coordinator  the site's two public keys
    coordinator  -- rotation.json -->           sites        a new signing key, signed with the
                                                             old one

Nothing in them is secret. Each is signed with the keys in it, and people compare its fingerprint
on a separate channel, for example by telephone.
"""

from __future__ import annotations

import base64
import codecs
import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from wardround.common.credentials import check_public_line, sha256_text
from wardround.common.errors import NotAuthentic
from wardround.common.files import write_text
from wardround.common.settings.values import LabelName
from wardround.common.wire.signing import (
    INVITATION,
    REGISTRATION,
    ROTATION,
    open_envelope,
    sign,
)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_STRICT = ConfigDict(extra="forbid")
_MOST_BYTES = 1 << 20


@dataclass(frozen=True)
class Invitation:
    """The facts that a site needs before it joins."""

    __pydantic_config__ = _STRICT

    site: str
    """Name of the site in the federation."""
    address: str
    """`host:port` of the server's fleet port."""
    ca: str
    """Certificate of the authority behind the server's certificate, PEM."""
    signing_key: str
    """The coordinator's public key, OpenSSH form."""
    versions: dict[str, str]
    """Versions installed at the server, by package; `python` is one of them."""
    labels: tuple[LabelName, ...]
    """The consortium's label names, in the order of their numbers; () if they are not agreed on
    yet."""


@dataclass(frozen=True)
class Registration:
    """A site's answer to its invitation."""

    __pydantic_config__ = _STRICT

    site: str
    node_key: str
    """Public key of the site's node, OpenSSH form."""
    signing_key: str
    """Public key for the signatures of its answers, OpenSSH form."""
    invitation: str
    """Fingerprint of the invitation."""


@dataclass(frozen=True)
class Rotation:
    """The coordinator's next signing key."""

    __pydantic_config__ = _STRICT

    signing_key: str
    """Public key, OpenSSH form."""


def registration_file(site: str) -> str:
    """Return the name of the file that holds a site's registration."""
    return f"registration-{site}.json"


Document = TypeVar("Document", Invitation, Registration, Rotation)
_TYPES: dict[type, str] = {
    Invitation: INVITATION,
    Registration: REGISTRATION,
    Rotation: ROTATION,
}


def write_document(document: Document, path: Path, *keys: Ed25519PrivateKey) -> str:
    """Write a document, signed with each key; return its fingerprint. A file that is
    already at `path` is replaced."""
    envelope = sign(_TYPES[type(document)], document, *keys)
    write_text(path, envelope + "\n")
    return _fingerprint(envelope)


def read_document(
    kind: type[Document], path: Path, signed_with: Collection[str] = ()
) -> tuple[Document, str]:
    """Return the document in a file, and its fingerprint.

    Args:
        signed_with: public keys; one of them must have signed it. By default the key in the
            document.

    Raises:
        ValueError: the file cannot be read, is another document, or was changed after it was
            signed.
    """
    name = kind.__name__.lower()
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError
        # Programs for mail and notes may add a mark in front, which changes nothing.
        envelope = path.read_bytes().removeprefix(codecs.BOM_UTF8).decode("ascii")
        content = json.loads(base64.b64decode(json.loads(envelope)["payload"]))
        document: Document = TypeAdapter(kind).validate_python(content)
        check_public_line(document.signing_key, "signing")
    except OSError as error:
        raise ValueError(
            f"'{path}' cannot be read ({error.strerror}). Give the path of the {name}."
        ) from None
    except (ValidationError, ValueError, KeyError, TypeError, RecursionError):
        raise ValueError(
            f"'{path}' is no {name} of a Wardround federation. Ask for the file again."
        ) from None
    try:
        open_envelope(envelope, _TYPES[kind], signed_with or [document.signing_key])
    except NotAuthentic:
        by = " with a trusted key" if signed_with else ""
        raise ValueError(
            f"'{path}' was changed after it was signed, or is not signed{by}. "
            "Ask for the file again, and compare its fingerprint by telephone."
        ) from None
    return document, _fingerprint(envelope)


def _fingerprint(envelope: str) -> str:
    return sha256_text(base64.b64decode(json.loads(envelope)["payload"]))
