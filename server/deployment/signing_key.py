"""The coordinator's signing key: make, read and replace it.

It signs plans, the keys of runs, and invitations. It may stay on another machine; the server needs
only its public half.
"""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from wardround.common.credentials import (
    check_public_line,
    new_key,
    public_line,
    read_private_key,
    write_private_key,
)
from wardround.common.files import write_text
from wardround.common.wire.invitation import Rotation, read_document, write_document

ROTATION = "rotation.json"


def public_half(key: Path) -> Path:
    """Return the path of the public half of a private key: signing.pub beside signing.key."""
    return key.with_suffix(".pub")


def make_signing_key(path: Path) -> None:
    """Write a new key to `path`, mode 0600, and its public half beside it.

    Raises:
        ValueError: a key exists there already.
        OSError: a file cannot be written.
    """
    key = new_key("signing")
    write_private_key(key, path)
    keep_public_line(public_half(path), public_line(key))


def read_signing_key(path: Path) -> Ed25519PrivateKey:
    """Return the private key in a file. Raises ValueError if there is none."""
    step = "Make the first one, or the next, with: wardround server rotate-key"
    return read_private_key(path, "signing", "the signing key", step)  # type: ignore[return-value]


def read_public_line(path: Path) -> str:
    """Return the public key in a file, OpenSSH form. Raises ValueError if there is none."""
    try:
        return check_public_line(path.read_text(encoding="ascii"), "signing")
    except OSError as error:
        raise ValueError(
            f"'{path}' cannot be read ({error.strerror}). Give the coordinator's .pub file."
        ) from None
    except ValueError as error:
        raise ValueError(
            f"'{path}': {error}. Give the coordinator's .pub file."
        ) from None


def keep_public_line(path: Path, line: str) -> None:
    """Write or replace the file of a public key. Raises OSError if that fails."""
    write_text(path, f"{line} coordinator\n")


def rotate_key(key: Path) -> tuple[Path, str] | None:
    """Replace the signing key, and write a file for the sites that is signed with both keys.

    If it is interrupted, either the old or the new key is in place; call it again to continue.

    Args:
        key: file of the private key. Its public half and the file for the sites stand beside it.

    Returns:
        The file for the sites and its fingerprint; None if there was no key yet, so that there is
        nothing to send.

    Raises:
        ValueError: only the public half is here, or a file holds no key.
        OSError: a file cannot be written.
    """
    next_key = key.with_name(f"{key.name}.next")
    if not key.exists():
        if public_half(key).exists():
            raise ValueError(
                f"'{key}' is missing, but its public half is here. If the key is on another "
                "machine, replace it there, then here: "
                f"wardround server rotate-key --signed {ROTATION}. If it is lost, delete "
                f"'{public_half(key)}' first."
            )
        make_signing_key(key)
        return None
    old = read_signing_key(key)
    if not next_key.exists():
        write_private_key(new_key("signing"), next_key)
    step = f"Delete '{next_key}', then try again."
    new = read_private_key(next_key, "signing", "the next signing key", step)
    file = key.with_name(ROTATION)
    rotation = Rotation(public_line(new))
    fingerprint = write_document(rotation, file, old, new)  # type: ignore[arg-type]
    next_key.replace(key)
    keep_public_line(public_half(key), public_line(new))
    return file, fingerprint


def take_rotation(public_key: Path, rotation: Path) -> None:
    """Replace the public key by the one in a rotation file from another machine.

    Raises:
        ValueError: the file is not signed with the current key.
        OSError: the file cannot be written.
    """
    current = read_public_line(public_key)
    read, _ = read_document(Rotation, rotation, signed_with=[current])
    keep_public_line(public_key, check_public_line(read.signing_key, "signing"))
