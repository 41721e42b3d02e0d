"""Requests for signatures, if the signing key is on another machine.

    server's machine    submit --unsigned FILE   writes plan and run statement; keeps the run's
    private key the key's machine   server sign FILE         shows the request in words, then signs
    it (sign.py) server's machine    submit --signed FILE     checks the signatures, and starts the
    run

A request is a JSON object of envelopes by name: `plan` and `run`, or `invitation`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from wardround.common.credentials import replace_secret
from wardround.common.errors import NotAuthentic
from wardround.common.files import write_json
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
    RegisteredSite,
    ServerFolder,
    coordinator_line,
)
from wardround.server.deployment.plan import draft_plan
from wardround.server.deployment.sites import draft_invitation
from wardround.server.deployment.ticket import Draft, draft_run

_TYPES = {"plan": PLAN, "run": RUN, "invitation": INVITATION}
_KINDS = ({"plan", "run"}, {"invitation"})
_MOST_BYTES = 1 << 20
_ENVELOPES: TypeAdapter[dict[str, str]] = TypeAdapter(dict[str, str])


def read_request(file: Path) -> dict[str, str]:
    """Return the envelopes of a request. Raises ValueError if the file is not a request."""
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
            f"'{file}' is not a request to sign. Give the file from `wardround submit --unsigned` "
            f"or "
            "`wardround server invite --unsigned`."
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
    """Write the request to sign a run; keep the rest here, with the run's private key.

    Args:
        sites: the sites that take part, by name.
        file: path of the request; an existing file is replaced.

    Raises:
        ValueError: two sites have the same key, or the folder holds no public key.
        OSError: a file cannot be written.
    """
    plan = draft_plan(settings, sites, Path(settings.run_dir), coordinator_line(folder))
    draft = draft_run(settings, sites, plan)
    for waiting, other in _drafts(folder):
        if other.settings.run_dir == settings.run_dir:
            waiting.unlink()
    replace_secret(_kept(folder, draft.name), draft.to_json())
    write_json(file, {"plan": draft.plan, "run": draft.run})
    return draft


def take_signed_run(folder: ServerFolder, file: Path) -> Draft:
    """Return the run of a signed request. Its draft stays here until `forget_run`.

    Raises:
        ValueError: the coordinator has not signed it, there is no such request here, or its sites
            have changed.
    """
    signed = read_request(file)
    if "run" not in signed:
        raise ValueError(
            f"'{file}' is not a signed run. Give the file that `wardround server sign` wrote."
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
    drafts = {draft.name: draft for _, draft in _drafts(folder)}
    draft = drafts.get(run.name)
    again = "Make a new request: wardround submit … --unsigned FILE"
    if draft is None:
        raise ValueError(
            f"'{file}' belongs to no open request in '{folder.path}': it was used or replaced. "
            f"{again}"
        )
    is_same_plan = payload_digest(draft.plan) == plan_digest
    is_same_run = payload_digest(draft.run) == digest(payload)
    if not is_same_plan or not is_same_run:
        raise ValueError(f"'{file}' differs from its request. {again}")
    registered = folder.sites()
    if {name: registered.get(name) for name in draft.sites} != draft.sites:
        raise ValueError(
            f"the sites of '{file}' have changed since the request. {again}"
        )
    assert plan.sites.keys() == draft.sites.keys()
    return replace(draft, plan=signed["plan"], run=signed["run"])


def forget_run(folder: ServerFolder, draft: Draft) -> None:
    """Delete the draft of a run that was started."""
    _kept(folder, draft.name).unlink(missing_ok=True)


def request_invitation(
    folder: ServerFolder,
    name: str,
    file: Path,
    *,
    address: str | None = None,
    labels: Sequence[str] = (),
) -> None:
    """Write the request to sign an invitation. Arguments and errors as for `invite_site`."""
    invitation = draft_invitation(folder, name, address=address, labels=labels)
    write_json(file, {"invitation": unsigned(INVITATION, invitation)})


def _kept(folder: ServerFolder, name: str) -> Path:
    return folder.path / "requests" / f"{name}.json"


def _drafts(folder: ServerFolder) -> Iterator[tuple[Path, Draft]]:
    """Yield the open requests, each with its file."""
    for path in sorted((folder.path / "requests").glob("*.json")):
        try:
            draft = Draft.from_json(path.read_bytes())
        except (ValueError, TypeError, KeyError, AttributeError):
            raise ValueError(
                f"'{path}' is damaged. Delete it, then make the request again."
            ) from None
        yield path, draft
