"""Where a released model comes from: `provenance.json`, and whether the folder is what that says.

The file holds two envelopes of `common/wire/signing.py`: `run`, in which the coordinator's key speaks
for the run's key, and `statement`, a `Provenance` that the run's key has signed.
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
    "Ask the coordinator for the folder as this version writes it; wardround submit --resume RUN_DIR "
    "writes that of an older run anew."
)


@dataclass(frozen=True)
class Provenance:
    """Where a model comes from, signed with the key of the run that made it."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    version: Literal[1, 2]
    """1 names no files, so that nothing proves its tokenizer and its configuration."""
    plan: str
    """SHA-256 of the plan."""
    sites: dict[str, str]
    """Name, and fingerprint of the key that its answers are signed with."""
    model_sha256: str
    """Of the shared tensors, as in the round's line of the history."""
    updates: tuple[tuple[int, str, str], ...]
    """Round, site, and SHA-256 of the signed answer of every update in the means."""
    round: int = 0
    """After which it is the model; 0 in version 1."""
    files: dict[str, str] = field(default_factory=dict)
    """SHA-256 of every file in the folder but this one, by path from there; empty in version 1."""
    tensors_as_trained: bool = True
    """Whether the tensors in the files hash to `model_sha256`; false if adapters were merged."""


_PROVENANCE = TypeAdapter(Provenance)


def folder_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder but `provenance.json`, by its path from there.

    What is neither a file nor a folder, and a link to a folder, stands there with words for a hash.

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
    """What `provenance.json` says of its folder; each check gives words, or raises NotProven."""

    folder: Path
    coordinator: str | None
    """Public signing key that is trusted, OpenSSH form; None where none is at hand."""

    @cached_property
    def envelopes(self) -> Mapping[str, str]:
        """`run` and `statement`."""
        path = self.folder / FILE_NAME
        try:
            if path.stat().st_size > _MOST_BYTES:
                raise NotProven(
                    f"{FILE_NAME} is larger than {_MOST_BYTES // 2**20} MiB"
                )
            content = json.loads(path.read_text(encoding="ascii"))
        except FileNotFoundError:
            raise NotProven(
                f"there is no {FILE_NAME}: nobody says where the model is from"
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
        """The coordinator's word for the run's key; nobody's, where no key is at hand."""
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
        """What the run's key has signed."""
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
                "the statement is none of version 1 or 2. A later version of this program may read it"
            ) from None
        if found.plan != self.run.plan:
            raise NotProven(
                "the statement names another plan than the run's key is good for"
            )
        return found

    def check_run(self) -> str:
        """The coordinator's signature of the run's key."""
        return f"the coordinator's key speaks for the key of run {self.run.name}"

    def check_statement(self) -> str:
        """The run's signature of the statement."""
        found = self.provenance
        return f"signed with the run's key; version {found.version}, plan {found.plan}"

    def check_files(self) -> str:
        """Every file of the folder is as it was signed, and there is no other."""
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
        told = [f"{what}: {_some(names)}" for what, names in odd.items() if names]
        if told:
            raise NotProven("; ".join(told))
        return f"all {len(found)} files are as they were signed, and there is no other"

    def check_tensors(self) -> str:
        """The weights are those of the round, as far as the files can tell."""
        from safetensors import SafetensorError

        from wardround.common.model.flat import files_sha256

        if not self.provenance.tensors_as_trained:
            return (
                "not compared, for adapters were merged into the weights, or embeddings were frozen: the "
                "files prove them"
            )
        try:
            files = read_model_files(self.folder)
            found = files_sha256([self.folder / name for name in files.weights()])
        except (ValueError, OSError, SafetensorError) as error:
            raise NotProven(f"the weights cannot be read ({error})") from None
        if found != self.provenance.model_sha256:
            older = (
                ", or adapters were merged into them"
                if self.provenance.version == 1
                else ""
            )
            raise NotProven(f"the weights are not those that the run made{older}")
        return f"the weights are those of the run, {found}"


def _some(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(names[:_MOST_SHOWN])
    more = len(names) - _MOST_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown
