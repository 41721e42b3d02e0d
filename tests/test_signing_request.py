"""Requests that are signed on another machine: what crosses, what is shown, what is refused."""

from __future__ import annotations

import base64
import json
import stat
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.door import wardround
from tests.support.fake_flwr import Flwr, words_for
from wardround.common.credentials import fingerprint, new_key, public_line
from wardround.common.settings.tree import Settings
from wardround.common.wire.invitation import (
    Invitation,
    Registration,
    read_document,
    write_document,
)
from wardround.common.wire.roster import roster_fingerprint
from wardround.common.wire.signing import (
    PLAN,
    RUN,
    Plan,
    RunStatement,
    open_envelope,
    open_plan,
    payload_digest,
    read_envelope,
    read_statement,
    sign,
    unsigned,
)
from wardround.server.deployment import superlink
from wardround.server.deployment.addresses import Addresses
from wardround.server.deployment.folder import (
    RegisteredSite,
    ServerFolder,
    coordinator_line,
    signing_key,
)
from wardround.server.deployment.plan import plan_id, roster_of
from wardround.server.deployment.sign import sign_request
from wardround.server.deployment.signing_key import (
    make_signing_key,
    public_half,
    read_public_line,
    read_signing_key,
    rotate_key,
    take_rotation,
)
from wardround.server.deployment.signing_request import (
    forget_run,
    request_invitation,
    request_run,
    take_signed_run,
)
from wardround.server.deployment.sites import (
    invite_site,
    keep_invitation,
    register_site,
)
from wardround.server.deployment.submit import settings_to_submit, submit, submit_signed


def yes(words: Sequence[str]) -> None:
    """Whoever reads the lines agrees."""


class Office:
    """A server folder without its signing key, and the key somewhere else."""

    def __init__(self, root: Path) -> None:
        self.key = root / "office" / "signing.key"
        self.key.parent.mkdir()
        make_signing_key(self.key)
        self.line = read_public_line(public_half(self.key))
        self.folder = ServerFolder.create(
            root / "server", Addresses(("localhost",)), signing_line=self.line
        )
        with self.folder.changing_sites() as sites:
            for name in ("a", "b"):
                keys = (public_line(new_key("node")), public_line(new_key("signing")))
                sites[name] = RegisteredSite(*keys, f"SHA256:{name}")
        self.request, self.signed = root / "request.json", root / "signed.json"
        self.settings: Settings = settings_to_submit(words_for(root))

    def ask(self) -> None:
        """Request the run's signatures."""
        self.drafted = request_run(
            self.folder, self.settings, self.folder.sites(), self.request
        )

    def sign(self, **how: Any) -> list[str]:
        """Sign the request; what was shown."""
        shown: list[str] = []
        sign_request(
            self.request, how.pop("key", self.key), self.signed, shown.extend, **how
        )
        return shown


@pytest.fixture
def office(tmp_path: Path) -> Office:
    """Nothing was requested yet."""
    return Office(tmp_path)


# --- on the server's machine ----------------------------------------------------------------------


def test_the_folder_has_no_key_and_says_what_to_do(office: Office) -> None:
    assert not office.folder.signing_key.exists()
    assert coordinator_line(office.folder) == office.line
    with pytest.raises(
        ValueError, match=r"--unsigned FILE, then .* wardround server sign FILE"
    ):
        signing_key(office.folder)
    with pytest.raises(ValueError, match=r"--unsigned FILE"):
        invite_site(office.folder, "c")


def test_a_folder_of_an_earlier_version_gets_its_public_half(tmp_path: Path) -> None:
    folder = ServerFolder.create(tmp_path / "server", Addresses(("localhost",)))
    folder.public_key.unlink()
    assert coordinator_line(folder) == public_line(signing_key(folder))
    assert read_public_line(folder.public_key) == coordinator_line(folder)


def test_the_runs_private_key_stays(office: Office) -> None:
    office.ask()
    assert set(json.loads(office.request.read_text())) == {"plan", "run"}
    assert b"PRIVATE" in office.drafted.key.encode()
    assert b"PRIVATE" not in office.request.read_bytes()
    (kept,) = (office.folder.path / "requests").iterdir()
    modes = (
        stat.S_IMODE(kept.stat().st_mode),
        stat.S_IMODE(kept.parent.stat().st_mode),
    )
    assert modes == (0o600, 0o700)


def test_what_was_signed_is_what_was_requested(office: Office) -> None:
    office.ask()
    office.sign()
    taken = take_signed_run(office.folder, office.signed)
    plan, digest = open_plan(taken.plan, office.line)
    run = json.loads(open_envelope(taken.run, RUN, [office.line]))
    assert (taken.key, taken.settings, plan.sites) == (
        office.drafted.key,
        office.settings,
        roster_of(office.folder.sites()),
    )
    assert (run["plan"], run["name"]) == (digest, taken.name)
    forget_run(office.folder, taken)
    with pytest.raises(ValueError, match="belongs to no open request"):
        take_signed_run(office.folder, office.signed)


def test_a_strangers_signature_starts_nothing(office: Office, tmp_path: Path) -> None:
    office.ask()
    make_signing_key(tmp_path / "stranger.key")
    office.sign(key=tmp_path / "stranger.key")
    with pytest.raises(ValueError, match="is not signed with the coordinator's key"):
        take_signed_run(office.folder, office.signed)
    with pytest.raises(ValueError, match="is not signed with the coordinator's key"):
        take_signed_run(office.folder, office.request)  # nobody's


def test_a_signed_plan_of_another_request_starts_nothing(office: Office) -> None:
    """Both are signed: what was signed before cannot be put in the place of what was requested."""
    office.ask()
    office.sign()
    first = json.loads(office.signed.read_text())
    office.settings = replace(office.settings, num_rounds=99)
    office.ask()
    office.sign()
    second = json.loads(office.signed.read_text())
    office.signed.write_text(json.dumps(first))
    with pytest.raises(
        ValueError, match="belongs to no open request"
    ):  # the new one took its place
        take_signed_run(office.folder, office.signed)
    office.signed.write_text(json.dumps(first | {"run": second["run"]}))
    with pytest.raises(ValueError, match="differs from its request"):
        take_signed_run(office.folder, office.signed)
    assert len(list((office.folder.path / "requests").iterdir())) == 1


def test_sites_that_changed_meanwhile_stop_it(office: Office) -> None:
    office.ask()
    office.sign()
    with office.folder.changing_sites() as sites:
        del sites["b"]
    with pytest.raises(ValueError, match=r"have changed .* --unsigned FILE"):
        take_signed_run(office.folder, office.signed)


@pytest.mark.e2e
@pytest.mark.slow
def test_a_signed_request_is_submitted(
    office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flwr = Flwr(tmp_path / "bin")
    flwr.ends("finished:failed", "the end")
    monkeypatch.setattr(superlink, "BIN", flwr.folder)
    monkeypatch.setattr(superlink, "is_up", lambda folder: True)
    with pytest.raises(ValueError, match="--unsigned FILE"):
        submit(words_for(tmp_path), office.folder)
    assert not (flwr.folder / "asked.jsonl").exists()
    office.ask()
    office.sign()
    assert submit_signed(office.signed, office.folder).reason == "the end"
    assert [words[0] for words in flwr.asked() if words[0] == "run"] == ["run"]
    envelope = json.loads(office.signed.read_text())["plan"]
    assert plan_id(tmp_path / "run") == open_plan(envelope, office.line)[1]
    # The next one of the same run has the same plan, which is signed: approvals hold.
    office.ask()
    assert office.drafted.plan == envelope
    assert "which you have signed before" in office.sign()[0]


def test_options_that_contradict_each_other_are_refused(office: Office) -> None:
    where = ("--dir", str(office.folder.path))
    for words in (
        ("submit", "--signed", "x.json", "num_rounds=3", *where),
        ("submit", "--signed", "x.json", "--resume", "outputs", *where),
        ("server", "invite", "c", "--signed", "x.json", "--labels", "a,b", *where),
        ("server", "rotate-key", "--signed", "x.json", "--key", "y.key", *where),
    ):
        said = wardround(*words)
        assert (said.code, "--signed" in said.err) == (2, True), said.err


# --- on the machine that has the key --------------------------------------------------------------


def test_what_is_signed_is_shown(office: Office) -> None:
    office.ask()
    shown = "\n".join(office.sign())
    run = json.loads(
        open_envelope(json.loads(office.signed.read_text())["run"], RUN, [office.line])
    )
    for words in (
        "which is new",
        "labels   a, b",
        f"rounds   {office.settings.num_rounds}, each {office.settings.train.local_epochs} times",
        "sites    2: a, b",
        f"roster   {roster_fingerprint(roster_of(office.folder.sites()))}",
        f"Key of the run {fingerprint(run['key'])}",
    ):
        assert words in shown
    assert "train.weight_decay" not in shown
    everything = "\n".join(office.sign(shows_all=True))
    for words in (
        "train.weight_decay = ",
        f"a signs with {roster_of(office.folder.sites())['a']}",
    ):
        assert words in everything


def test_nothing_is_signed_that_nobody_agreed_to(office: Office) -> None:
    office.ask()

    def no(words: Sequence[str]) -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match=r"^no$"):
        sign_request(office.request, office.key, office.signed, no)
    words = (
        "server",
        "sign",
        str(office.request),
        "--key",
        str(office.key),
        "--out",
        str(office.signed),
    )
    said = wardround(*words)
    assert (said.code, "give --yes" in said.err) == (2, True), said.err
    assert not office.signed.exists()
    assert wardround(*words, "--yes").code == 0
    assert office.signed.exists()


def test_a_request_that_cannot_be_good_is_not_signed(office: Office) -> None:
    office.ask()
    good = json.loads(office.request.read_text())
    plan = read_statement(Plan, read_envelope(good["plan"], PLAN)[0])
    twins = unsigned(PLAN, replace(plan, sites={"a": "SHA256:a", "b": "SHA256:a"}))
    run = RunStatement("name", public_line(new_key("signing")), 0.0, 1.0, "0" * 64)
    stranger: Any = new_key("signing")
    for changed, told in (
        ({"run": unsigned(RUN, run)}, "belongs to another plan"),
        ({"plan": twins}, "belongs to another plan"),
        (
            {
                "plan": twins,
                "run": unsigned(RUN, replace(run, plan=payload_digest(twins))),
            },
            "have the same key",
        ),
        ({"plan": sign(PLAN, plan, stranger)}, "is damaged"),
        ({"plan": good["run"]}, "is damaged"),
        ({"plan": _with_a_second_roster(good["plan"])}, "is damaged"),
        ({"plan": "no envelope"}, "is damaged"),
        ({"more": "x"}, "wardround submit --unsigned"),
    ):
        office.request.write_text(json.dumps(good | changed))
        with pytest.raises(ValueError, match=told):
            office.sign()
    office.request.write_text("[]")
    with pytest.raises(ValueError, match="wardround submit --unsigned"):
        office.sign()
    assert not office.signed.exists()


def _with_a_second_roster(envelope: str) -> str:
    """The same plan, with a key that stands in it twice."""
    content = json.loads(envelope)
    payload = base64.b64decode(content["payload"])
    twice = payload.replace(
        b'"sites": ', b'"sites": {"shown": "SHA256:a"}, "sites": ', 1
    )
    assert twice != payload
    return json.dumps(content | {"payload": base64.b64encode(twice).decode()})


def test_a_plan_of_no_calendar_is_not_signed(office: Office) -> None:
    office.ask()
    good = json.loads(office.request.read_text())
    plan = read_statement(Plan, read_envelope(good["plan"], PLAN)[0])
    endless = unsigned(PLAN, replace(plan, not_after=1e300))
    run = read_statement(RunStatement, read_envelope(good["run"], RUN)[0])
    statement = unsigned(RUN, replace(run, plan=payload_digest(endless)))
    office.request.write_text(json.dumps({"plan": endless, "run": statement}))
    with pytest.raises(ValueError, match="is damaged"):
        office.sign()


def test_a_request_moves_no_cursor(office: Office) -> None:
    """A server that was taken over writes what is shown on the machine with the key."""
    labels = ("health\x1b[2A", "a\nLabels agreed on")
    data = replace(office.settings.data, label_names=labels)
    office.settings = replace(office.settings, data=data)
    office.ask()
    assert all(line.isprintable() for line in office.sign(shows_all=True))


# --- invitations and rotations --------------------------------------------------------------------


def test_an_invitation_is_signed_elsewhere_and_answered(
    office: Office, tmp_path: Path
) -> None:
    request_invitation(office.folder, "c", office.request, labels=["x", "y"])
    shown = "\n".join(office.sign())
    assert (
        f"Invitation of c\n  dials      localhost:{office.folder.addresses.fleet_port}"
        in shown
    )
    told = keep_invitation(office.folder, "c", office.signed)
    invitation, seen = read_document(Invitation, office.folder.invitation("c"))
    assert (seen, invitation.signing_key, invitation.labels) == (
        told,
        office.line,
        ("x", "y"),
    )
    key: Any = new_key("signing")
    answer = Registration("c", public_line(new_key("node")), public_line(key), told)
    write_document(answer, tmp_path / "registration.json", key)
    register_site(office.folder, "c", tmp_path / "registration.json")
    assert list(office.folder.sites()) == ["a", "b", "c"]


def test_an_invitation_that_brings_another_key_is_not_signed_and_not_kept(
    office: Office, tmp_path: Path
) -> None:
    request_invitation(office.folder, "c", office.request)
    make_signing_key(tmp_path / "stranger.key")
    with pytest.raises(ValueError, match="another signing key than this one"):
        office.sign(key=tmp_path / "stranger.key")
    other = ServerFolder.create(tmp_path / "other", Addresses(("localhost",)))
    stranger, _ = invite_site(other, "c")
    with pytest.raises(ValueError, match="not signed with a trusted key"):
        keep_invitation(office.folder, "c", stranger)
    office.sign()
    with pytest.raises(ValueError, match="the invitation of 'c', not of 'd'"):
        keep_invitation(office.folder, "d", office.signed)


def test_a_key_that_stands_elsewhere_is_changed_there(
    office: Office, tmp_path: Path
) -> None:
    rotated = rotate_key(office.key)
    assert rotated is not None
    new = read_public_line(public_half(office.key))
    assert new == public_line(read_signing_key(office.key)) != office.line
    make_signing_key(tmp_path / "stranger.key")
    forged = rotate_key(tmp_path / "stranger.key")
    assert forged is not None
    with pytest.raises(ValueError, match="not signed with a trusted key"):
        take_rotation(office.folder.public_key, forged[0])
    assert coordinator_line(office.folder) == office.line
    take_rotation(office.folder.public_key, rotated[0])
    assert coordinator_line(office.folder) == new
