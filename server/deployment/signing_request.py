"""What the coordinator signs on another machine: written as a request, taken back once it is signed.

    server's machine    submit --unsigned FILE   plan and run's statement; the run's private key stays
    the key's machine   server sign FILE         says in words what it is, then signs (sign.py)
    server's machine    submit --signed FILE     checks the signatures, and starts the run

A request is a JSON object of envelopes by name: `plan` and `run`, or `invitation`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import TypeAdapter, ValidationError

from wardround.common.credentials import write_secret
from wardround.common.errors import NotAuthentic
from wardround.common.files import write_atomically, write_json
from wardround.common.settings.tree import Settings
from wardround.common.wire.signing import (
    INVITATION,
    PLAN,
    RUN,
    RunStatement,
    digest,
    open_envelope,
    open_plan,
    payload_digest,
    read_envelope,
    read_statement,
    unsigned,
)
from wardround.server.deployment.folder import (
    ServerFolder,
    coordinator_line,
)
from wardround.server.deployment.plan import draft_plan
from wardround.server.deployment.sites import draft_invitation
from wardround.server.deployment.ticket import Draft, draft_run

if TYPE_CHECKING:
    from wardround.server.deployment.folder import RegisteredSite

_TYPES = {"plan": PLAN, "run": RUN, "invitation": INVITATION}
_KINDS = ({"plan", "run"}, {"invitation"})
_MOST_BYTES = 1 << 20
_ENVELOPES: TypeAdapter[dict[str, str]] = TypeAdapter(dict[str, str])


def read_request(file: Path) -> dict[str, str]:
    """The envelopes of a request. Raises ValueError if the file is none."""
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise ValueError
        found = _ENVELOPES.validate_json(file.read_bytes())
    except OSError as error:
        raise ValueError(
            f"'{file}' cannot be read ({error.strerror}). Give the path of the request."
        ) from None
    except (ValidationError, ValueError):
        found = {}
    if set(found) not in _KINDS:
        raise ValueError(
            f"'{file}' is no request to sign. Give what `wardround submit --unsigned` or "
            "`wardround server invite --unsigned` wrote."
        )
    try:
        for name, envelope in found.items():
            read_envelope(envelope, _TYPES[name])
    except NotAuthentic:
        raise ValueError(f"'{file}' is damaged. Ask for it again.") from None
    return found


def request_run(
    folder: ServerFolder,
    settings: Settings,
    sites: Mapping[str, RegisteredSite],
    file: Path,
) -> Draft:
    """Write what is to be signed for a run, and keep the rest here, the run's private key with it.

    Args:
        sites: those that take part, by name.
        file: where the request goes; what was there is replaced whole.

    Raises:
        ValueError: two sites have one key, or the folder holds no public key.
        OSError: a file cannot be written.
    """
    plan = draft_plan(settings, sites, Path(settings.run_dir), coordinator_line(folder))
    draft = draft_run(settings, sites, plan)
    for waiting, other in _drafts(folder):
        if other.settings.run_dir == settings.run_dir:
            waiting.unlink()
    kept = _kept(folder, draft.name)
    kept.parent.mkdir(mode=0o700, exist_ok=True)
    write_atomically(kept, lambda part: write_secret(part, draft.to_json()))
    write_json(file, {"plan": draft.plan, "run": draft.run})
    return draft


def take_signed_run(folder: ServerFolder, file: Path) -> Draft:
    """The run of a request that was signed; it stays here until `forget_run`.

    Raises:
        ValueError: the coordinator has not signed it, nothing of it waits here, or its sites have
            changed.
    """
    signed = read_request(file)
    if "run" not in signed:
        raise ValueError(
            f"'{file}' is no signed run. Give what `wardround server sign` wrote of the request."
        )
    coordinator = coordinator_line(folder)
    try:
        plan, plan_digest = open_plan(signed["plan"], coordinator)
        payload = open_envelope(signed["run"], RUN, [coordinator])
        run = read_statement(RunStatement, payload)
    except NotAuthentic:
        raise ValueError(
            f"'{file}' is not signed with the coordinator's key, whose public half is "
            f"'{folder.public_key}'. On the machine that has the key: wardround server sign FILE"
        ) from None
    draft = next(
        (found for _, found in _drafts(folder) if found.name == run.name), None
    )
    again = "Make a new request: wardround submit … --unsigned FILE"
    if draft is None:
        raise ValueError(
            f"'{file}' answers no request that waits in '{folder.path}': it was used, or replaced. {again}"
        )
    if (payload_digest(draft.plan), payload_digest(draft.run)) != (
        plan_digest,
        digest(payload),
    ):
        raise ValueError(f"'{file}' says something else than its request did. {again}")
    registered = folder.sites()
    if {name: registered.get(name) for name in draft.sites} != draft.sites:
        raise ValueError(
            f"the sites of '{file}' have changed since it was requested. {again}"
        )
    assert plan.sites.keys() == draft.sites.keys()
    return replace(draft, plan=signed["plan"], run=signed["run"])


def forget_run(folder: ServerFolder, draft: Draft) -> None:
    """A run was started: its request is answered."""
    _kept(folder, draft.name).unlink(missing_ok=True)


def request_invitation(
    folder: ServerFolder,
    name: str,
    file: Path,
    *,
    address: str | None = None,
    labels: Sequence[str] = (),
) -> None:
    """Write an invitation that is to be signed. Arguments and errors as of `invite_site`."""
    invitation = draft_invitation(folder, name, address=address, labels=labels)
    write_json(file, {"invitation": unsigned(INVITATION, invitation)})


def _kept(folder: ServerFolder, name: str) -> Path:
    return folder.path / "requests" / f"{name}.json"


def _drafts(folder: ServerFolder) -> Iterator[tuple[Path, Draft]]:
    """The requests that wait for their signature, each with its file."""
    for path in sorted((folder.path / "requests").glob("*.json")):
        try:
            draft = Draft.from_json(path.read_bytes())
        except (ValueError, TypeError, KeyError, AttributeError):
            raise ValueError(
                f"'{path}' is not what this program wrote. Delete it, and make the request again."
            ) from None
        yield path, draft
