"""The coordinator's signing key: made, read, and changed for the next one.

It signs plans, the keys of runs, and invitations. It need not lie on the server's machine; its public
half does.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from wardround.common.credentials import (
    check_public_line,
    new_key,
    public_line,
    read_private_key,
    write_private_key,
)
from wardround.common.files import write_atomically
from wardround.common.wire.invitation import Rotation, read_paper, write_paper

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

ROTATION = "rotation.json"


def public_half(key: Path) -> Path:
    """Where the public half of a private key stands: signing.pub beside signing.key."""
    return key.with_suffix(".pub")


def make_signing_key(path: Path) -> None:
    """A new key at `path`, mode 0600, and its public half beside it.

    Raises:
        ValueError: a key is there already.
        OSError: a file cannot be written.
    """
    key = new_key("signing")
    write_private_key(key, path)
    keep_public_line(public_half(path), public_line(key))


def read_signing_key(path: Path) -> Ed25519PrivateKey:
    """The private key in a file. Raises ValueError if there is none."""
    step = "Make the first one, or the next, with: wardround server rotate-key"
    return read_private_key(path, "signing", "the signing key", step)  # type: ignore[return-value]


def read_public_line(path: Path) -> str:
    """The public key in a file, OpenSSH form. Raises ValueError if there is none."""
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
    """Write a public key to a file; what was there is replaced whole. Raises OSError."""
    write_atomically(
        path, lambda part: part.write_text(f"{line} coordinator\n", encoding="ascii")
    )


def rotate_key(key: Path) -> tuple[Path, str] | None:
    """Put a new signing key in the place of the present one, and say so in a file signed with both.

    A kill leaves the old key or the new one; the same command then goes on where it stopped.

    Args:
        key: the private key's file; its public half and the file for the sites stand beside it.

    Returns:
        The file for the sites and its fingerprint; None if there was no key yet, so that nobody
        trusts one.

    Raises:
        ValueError: only the public half is here, or a file holds no key.
        OSError: a file cannot be written.
    """
    coming = key.with_name(f"{key.name}.next")
    if not key.exists():
        if public_half(key).exists():
            raise ValueError(
                f"'{key}' is not here, but its public half is. If the key is kept on another "
                "machine, change it there, then here: "
                f"wardround server rotate-key --signed {ROTATION}. If it is lost, delete "
                f"'{public_half(key)}' first."
            )
        make_signing_key(key)
        return None
    present = read_signing_key(key)
    if not coming.exists():
        write_private_key(new_key("signing"), coming)
    step = f"Delete '{coming}', then try again."
    new = read_private_key(coming, "signing", "the next signing key", step)
    file = key.with_name(ROTATION)
    told = write_paper(Rotation(public_line(new)), file, present, new)  # type: ignore[arg-type]
    coming.replace(key)
    keep_public_line(public_half(key), public_line(new))
    return file, told


def take_rotation(public_key: Path, rotation: Path) -> None:
    """Put the next public key in the place of the present one, as a rotation from elsewhere says.

    Raises:
        ValueError: it is not signed with the present key.
        OSError: the file cannot be written.
    """
    present = read_public_line(public_key)
    announced, _ = read_paper(Rotation, rotation, signed_with=[present])
    keep_public_line(public_key, check_public_line(announced.signing_key, "signing"))
