"""Programs on loopback: free ports, keys, waits with an end, output in files."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

T = TypeVar("T")
PATIENCE = 180.0
"""Seconds for all that takes a few on a quiet machine: a busy one may be ten times as slow."""


def free_port() -> int:
    """A port of loopback nobody listens on now."""
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        port: int = door.getsockname()[1]
        return port


def wait_for(
    look: Callable[[], T], seconds: float, what: str, *, pause: float = 0.2
) -> T:
    """The first true value of `look`; fails the test after `seconds`.

    Args:
        pause: seconds between two looks.
    """
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"waited {seconds:g} s for {what}"
        time.sleep(pause)
    return found


@dataclass
class Process:
    """A program, in a process group of its own, and the file with what it prints."""

    popen: subprocess.Popen[bytes]
    log: Path

    def text(self) -> str:
        """What it has printed so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def is_alive(self) -> bool:
        """Whether it still runs."""
        return self.popen.poll() is None

    def send(self, kind: signal.Signals) -> None:
        """Signal the whole group, if it is there."""
        try:
            os.killpg(self.popen.pid, kind)
        except ProcessLookupError:
            return

    def wait(self, seconds: float) -> int:
        """Its exit code; fails the test after `seconds`."""
        return self.popen.wait(timeout=seconds)


def command_line(pid: int) -> str:
    """How that process was started; empty once it is gone."""
    try:
        return (
            (Path("/proc") / str(pid) / "cmdline")
            .read_bytes()
            .replace(b"\0", b" ")
            .decode()
        )
    except OSError:
        return ""


def write_keys(private: Path, public: Path) -> None:
    """A P-384 pair in OpenSSH form."""
    key = ec.generate_private_key(ec.SECP384R1())
    private.touch(mode=0o600)
    private.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    )
    public.write_bytes(
        key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) + b"\n"
    )
