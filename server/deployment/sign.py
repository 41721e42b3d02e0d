"""Sign a request from the server's machine, on the machine that has the coordinator's key."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from pydantic import TypeAdapter

from wardround.common.credentials import (
    certificate_of,
    check_public_line,
    fingerprint,
    public_line,
)
from wardround.common.errors import NotAuthentic, damaged_if_unreadable
from wardround.common.files import write_json, write_text
from wardround.common.settings.tree import Settings
from wardround.common.wire.invitation import Invitation
from wardround.common.wire.roster import names_with_one_key, roster_fingerprint
from wardround.common.wire.signing import (
    INVITATION,
    PLAN,
    RUN,
    Plan,
    RunStatement,
    is_signed,
    open_plan,
    payload_digest,
    read_envelope,
    read_statement,
    unsigned,
    with_signatures,
)
from wardround.common.words import cleaned, printable, printable_day, shown
from wardround.server.deployment.signing_key import read_signing_key
from wardround.server.deployment.signing_request import read_request

_INVITATION: TypeAdapter[Invitation] = TypeAdapter(Invitation)


def sign_request(
    file: Path,
    key: Path,
    out: Path,
    agree: Callable[[Sequence[str]], None],
    *,
    shows_all: bool = False,
) -> None:
    """Sign a request after a person has agreed to it.

    Args:
        key: file of the coordinator's private key.
        out: file for the signed envelopes. A signed invitation is the file for the site.
        agree: receives the content of the request as lines, and raises if the person does not
            agree.
        shows_all: include every setting of the plan in the lines.

    Raises:
        ValueError: the file is not a request, is damaged or contradictory, or is for another key.
        OSError: `out` cannot be written.
    """
    request = read_request(file)
    signer = read_signing_key(key)
    line = public_line(signer)
    try:
        if "invitation" in request:
            lines = list(_invitation_in_words(request["invitation"], line))
        else:
            lines = list(_run_in_words(request, line, shows_all))
    except (NotAuthentic, TypeError, KeyError, AttributeError):
        raise ValueError(
            f"'{file}' is damaged, or another version made it. Ask for it again."
        ) from None
    except ValueError as error:
        raise ValueError(f"'{file}' cannot be signed: {error}") from None
    agree([cleaned(text) for text in lines])
    signed = {
        name: with_signatures(envelope, signer) for name, envelope in request.items()
    }
    if "invitation" in signed:
        write_text(out, signed["invitation"] + "\n")
    else:
        write_json(out, signed)


def _run_in_words(
    request: Mapping[str, str], signer: str, shows_all: bool
) -> Iterator[str]:
    """Describe the request of a run. Raises NotAuthentic or ValueError if it is wrong."""
    plan = read_statement(Plan, read_envelope(request["plan"], PLAN)[0])
    run = read_statement(RunStatement, read_envelope(request["run"], RUN)[0])
    _check_written_whole(request["plan"], PLAN, plan)
    _check_written_whole(request["run"], RUN, run)
    plan_digest = payload_digest(request["plan"])
    run_key = fingerprint(check_public_line(run.key, "signing"))
    settings = Settings.from_json(json.dumps(plan.settings))
    if run.plan != plan_digest:
        raise ValueError("its run belongs to another plan.")
    twins = names_with_one_key(plan.sites)
    if twins:
        raise ValueError(
            f"{' and '.join(twins)} have the same key and would be counted twice."
        )
    if is_signed(request["plan"]):
        open_plan(request["plan"], signer)
        yield f"Plan {plan_digest[:12]}, which you have signed before; nothing in it has changed"
    else:
        yield f"Plan {plan_digest[:12]}, which is new"
    train = settings.train
    model = shown(settings.model.name)
    if settings.model.revision:
        model += f"@{shown(settings.model.revision)}"
    parent = f"plan {plan.parent[:12]}" if plan.parent else "no other plan"
    yield f"  SHA-256  {plan_digest}"
    yield f"  follows  {parent}"
    yield f"  model    {model}"
    yield f"  labels   {', '.join(map(shown, settings.data.label_names or ()))}"
    rounds = (
        f"{settings.num_rounds}, each {train.local_epochs} times over each site's texts"
    )
    yield f"  rounds   {rounds}"
    yield f"  by       {train.optimizer}, learning rate {train.learning_rate:g}"
    yield f"  batches  of {train.batch_size} texts"
    yield f"  sites    {len(plan.sites)}: {', '.join(map(shown, sorted(plan.sites)))}"
    yield f"  roster   {roster_fingerprint(plan.sites)}"
    yield f"  valid    from {_days(plan)}"
    if shows_all:
        for name, value in settings.flat().items():
            yield f"  {name} = {printable(str(value), None)}"
        for site, key in sorted(plan.sites.items()):
            yield f"  {shown(site)} signs with {shown(key)}"
    yield f"Key of the run {run_key}"
    yield f"  it may sign questions of this plan from {_days(run)}"


def _days(signed: Plan | RunStatement) -> str:
    """Return the first and the last day on which a statement is valid."""
    return f"{printable_day(signed.not_before)} to {printable_day(signed.not_after)}"


def _invitation_in_words(envelope: str, signer: str) -> Iterator[str]:
    """Describe an invitation. Raises NotAuthentic or ValueError if it is wrong."""
    payload, _ = read_envelope(envelope, INVITATION)
    with damaged_if_unreadable():
        invitation = _INVITATION.validate_json(payload)
        authority = certificate_of(invitation.ca.encode()).fingerprint
    _check_written_whole(envelope, INVITATION, invitation)
    if check_public_line(invitation.signing_key, "signing") != signer:
        raise ValueError("it names another signing key than this one.")
    yield f"Invitation of {shown(invitation.site)}"
    yield f"  dials      {shown(invitation.address)}"
    yield f"  trusts     the authority SHA-256 {authority}"
    yield f"  and        the signing key {fingerprint(signer)}"
    yield f"  labels     {', '.join(map(shown, invitation.labels)) or 'not agreed yet'}"


def _check_written_whole(envelope: str, payload_type: str, shown: object) -> None:
    """Raise NotAuthentic unless an envelope holds exactly the shown statement, byte for byte.

    JSON can name a key twice, and two readers may then take different values.
    """
    if payload_digest(envelope) != payload_digest(unsigned(payload_type, shown)):
        raise NotAuthentic("damaged")
