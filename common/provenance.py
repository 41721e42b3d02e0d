"""Origin of a released model: `provenance.json`, and checks of the folder against it.

The file holds two envelopes of `common/wire/signing.py`: `run`, in which the coordinator's key
certifies the run's key, and `statement`, a `Provenance` that the run's key has signed.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from wardround.common.errors import NotAuthentic, NotProven
from wardround.common.files import file_sha256
from wardround.common.model_files import read_model_files
from wardround.common.wire.signing import (
    MODEL,
    RUN,
    RunStatement,
    open_envelope,
    read_statement,
)

FILE_NAME = "provenance.json"
_MOST_BYTES = 64 * 2**20
_MOST_SHOWN = 3
_AGAIN = (
    "Ask the coordinator for the folder in the format of this version; wardround submit --resume "
    "RUN_DIR writes the folder of an older run again."
)


@dataclass(frozen=True)
class Provenance:
    """Origin of a model, signed with the key of the run that made it."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    version: Literal[1, 2]
    """Version 1 names no files, so that it does not prove tokenizer and configuration."""
    plan: str
    """SHA-256 of the plan."""
    sites: dict[str, str]
    """Fingerprint of the key that signs a site's answers, by site name."""
    model_sha256: str
    """Hash of the shared tensors, as in the round's line of the history."""
    updates: tuple[tuple[int, str, str], ...]
    """Round, site, and SHA-256 of the signed answer of every update in the means."""
    round: int = 0
    """The model is that after this round; 0 in version 1."""
    files: dict[str, str] = field(default_factory=dict)
    """SHA-256 of every other file in the folder, by relative path; empty in version 1."""
    tensors_as_trained: bool = True
    """True if the tensors in the files have the hash `model_sha256`; false if adapters were
    merged."""


_PROVENANCE = TypeAdapter(Provenance)


def folder_hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below a folder except `provenance.json`, by relative path.

    Special files and links to folders have a text instead of a hash.

    Raises:
        OSError: a file cannot be read.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file():
            found[name] = file_sha256(path)
        elif path.is_symlink() or not path.is_dir():
            found[name] = "no file"
    found.pop(FILE_NAME, None)
    return found


@dataclass(frozen=True)
class Claim:
    """The content of `provenance.json`. Each check returns a text, or raises NotProven."""

    folder: Path
    coordinator: str | None
    """Trusted public signing key, in OpenSSH form; None if there is none."""

    @cached_property
    def envelopes(self) -> Mapping[str, str]:
        """The envelopes `run` and `statement`."""
        path = self.folder / FILE_NAME
        try:
            if path.stat().st_size > _MOST_BYTES:
                raise NotProven(
                    f"{FILE_NAME} is larger than {_MOST_BYTES // 2**20} MiB"
                )
            content = json.loads(path.read_text(encoding="ascii"))
        except FileNotFoundError:
            raise NotProven(
                f"there is no {FILE_NAME}: the origin of the model is unknown"
            ) from None
        except (OSError, ValueError, RecursionError) as error:
            raise NotProven(
                f"{FILE_NAME} cannot be read ({type(error).__name__})"
            ) from None
        if not isinstance(content, dict) or set(content) != {"run", "statement"}:
            raise NotProven(f"{FILE_NAME} does not hold run and statement")
        return {name: str(envelope) for name, envelope in content.items()}

    @cached_property
    def run(self) -> RunStatement:
        """The coordinator's statement about the run's key; unverified if there is no trusted
        key.
        """
        envelope = self.envelopes["run"]
        try:
            if self.coordinator is None:
                payload = base64.b64decode(
                    json.loads(envelope)["payload"], validate=True
                )
            else:
                payload = open_envelope(envelope, RUN, [self.coordinator])
            return read_statement(RunStatement, payload)
        except NotAuthentic as error:
            raise NotProven(
                "the run's key is not signed with the coordinator's key that is trusted here "
                f"({error.reason})"
            ) from None
        except (ValueError, KeyError, TypeError, RecursionError):
            raise NotProven("the run's key cannot be read (damaged)") from None

    @cached_property
    def provenance(self) -> Provenance:
        """The statement that the run's key has signed."""
        try:
            payload = open_envelope(self.envelopes["statement"], MODEL, [self.run.key])
        except NotAuthentic as error:
            reason = error.reason
            raise NotProven(
                f"the statement is not signed with the run's key ({reason})"
            ) from None
        try:
            found = _PROVENANCE.validate_json(payload)
        except (ValidationError, RecursionError):
            raise NotProven(
                "the statement is not of version 1 or 2. A later version of this program may "
                "read it"
            ) from None
        if found.plan != self.run.plan:
            raise NotProven(
                "the statement names another plan than that of the run's key"
            )
        return found

    def check_run(self) -> str:
        """Check the coordinator's signature of the run's key."""
        return f"the coordinator has signed the key of run {self.run.name}"

    def check_statement(self) -> str:
        """Check the run's signature of the statement."""
        found = self.provenance
        return f"signed with the run's key; version {found.version}, plan {found.plan}"

    def check_files(self) -> str:
        """Check that every file of the folder is as it was signed, and that there is no other."""
        claimed = self.provenance.files
        if self.provenance.version == 1:
            unproved = "tokenizer and configuration are not proved"
            raise NotProven(f"version 1 names no files: {unproved}. {_AGAIN}")
        found = folder_hashes(self.folder)
        both = found.keys() & claimed.keys()
        odd = {
            "changed": sorted(name for name in both if found[name] != claimed[name]),
            "missing": sorted(claimed.keys() - found.keys()),
            "not named there": sorted(found.keys() - claimed.keys()),
        }
        faults = [f"{kind}: {_some(names)}" for kind, names in odd.items() if names]
        if faults:
            raise NotProven("; ".join(faults))
        return f"all {len(found)} files are as they were signed, and there is no other"

    def check_tensors(self) -> str:
        """Check that the weights are those of the round, if the files allow it."""
        from safetensors import SafetensorError

        from wardround.common.model.flat import files_sha256

        if not self.provenance.tensors_as_trained:
            return (
                "not compared, because adapters were merged into the weights or embeddings were "
                "frozen: the files prove them"
            )
        try:
            files = read_model_files(self.folder)
            found = files_sha256([self.folder / name for name in files.weights()])
        except (ValueError, OSError, SafetensorError) as error:
            raise NotProven(f"the weights cannot be read ({error})") from None
        if found != self.provenance.model_sha256:
            reason = "the weights are not those that the run made"
            if self.provenance.version == 1:
                reason = f"{reason}, or adapters were merged into them"
            raise NotProven(reason)
        return f"the weights are those of the run, {found}"


def _some(names: list[str]) -> str:
    """Return the first few names, and the number of the others."""
    shown = ", ".join(names[:_MOST_SHOWN])
    more = len(names) - _MOST_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown
