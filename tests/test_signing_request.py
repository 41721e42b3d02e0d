"""Requests that are signed on another machine: their content, their words, their refusals."""

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

NO_REQUEST = r"signed\.json' belongs to no open request .* --unsigned FILE"
DAMAGED = r"request\.json' is damaged"


def yes(words: Sequence[str]) -> None:
    """Agree to everything."""


class Office:
    """A server folder without its signing key, and the key in another place."""

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
        """Sign the request; return the lines that were shown."""
        shown: list[str] = []
        sign_request(
            self.request, how.pop("key", self.key), self.signed, shown.extend, **how
        )
        return shown


@pytest.fixture
def office(tmp_path: Path) -> Office:
    """A server folder and a key, without a request."""
    return Office(tmp_path)


# --- on the server's machine ----------------------------------------------------------


def test_a_folder_without_its_key_names_the_next_step(office: Office) -> None:
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


def test_the_runs_private_key_stays_at_the_server(office: Office) -> None:
    office.ask()
    assert set(json.loads(office.request.read_text())) == {"plan", "run"}
    assert b"PRIVATE" in office.drafted.key.encode()
    assert b"PRIVATE" not in office.request.read_bytes()
    (kept,) = (office.folder.path / "requests").iterdir()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert stat.S_IMODE(kept.parent.stat().st_mode) == 0o700


def test_a_signed_run_is_the_requested_one_and_is_used_once(office: Office) -> None:
    office.ask()
    office.sign()
    taken = take_signed_run(office.folder, office.signed)
    plan, digest = open_plan(taken.plan, office.line)
    run = json.loads(open_envelope(taken.run, RUN, [office.line]))
    assert taken.key == office.drafted.key
    assert taken.settings == office.settings
    assert plan.sites == roster_of(office.folder.sites())
    assert run["plan"] == digest
    assert run["name"] == taken.name
    forget_run(office.folder, taken)
    with pytest.raises(ValueError, match=NO_REQUEST):
        take_signed_run(office.folder, office.signed)


def test_a_strangers_signature_starts_nothing(office: Office, tmp_path: Path) -> None:
    office.ask()
    make_signing_key(tmp_path / "stranger.key")
    office.sign(key=tmp_path / "stranger.key")
    wrong_key = r"not signed with the coordinator's key.* wardround server sign FILE"
    with pytest.raises(ValueError, match=wrong_key):
        take_signed_run(office.folder, office.signed)
    # The request itself has no signature.
    with pytest.raises(ValueError, match=wrong_key):
        take_signed_run(office.folder, office.request)


def test_a_signed_plan_of_another_request_starts_nothing(office: Office) -> None:
    """Both are signed, but an earlier signature cannot stand in the place of the new request's."""
    office.ask()
    office.sign()
    first = json.loads(office.signed.read_text())
    office.settings = replace(office.settings, num_rounds=99)
    office.ask()
    office.sign()
    second = json.loads(office.signed.read_text())
    office.signed.write_text(json.dumps(first))
    # The new request has replaced the first.
    with pytest.raises(ValueError, match=NO_REQUEST):
        take_signed_run(office.folder, office.signed)
    office.signed.write_text(json.dumps(first | {"run": second["run"]}))
    with pytest.raises(
        ValueError, match=r"differs from its request\. .* --unsigned FILE"
    ):
        take_signed_run(office.folder, office.signed)
    assert len(list((office.folder.path / "requests").iterdir())) == 1


def test_sites_that_changed_since_the_request_stop_the_run(office: Office) -> None:
    office.ask()
    office.sign()
    with office.folder.changing_sites() as sites:
        del sites["b"]
    with pytest.raises(ValueError, match=r"the sites of .* changed .* --unsigned FILE"):
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
    # The next request of the same run has the same signed plan, so approvals stay valid.
    office.ask()
    assert office.drafted.plan == envelope
    assert "signed before" in office.sign()[0]


def test_options_that_contradict_each_other_are_refused(office: Office) -> None:
    where = ("--dir", str(office.folder.path))
    for words in (
        ("submit", "--signed", "x.json", "num_rounds=3", *where),
        ("submit", "--signed", "x.json", "--resume", "outputs", *where),
        ("server", "invite", "c", "--signed", "x.json", "--labels", "a,b", *where),
        ("server", "rotate-key", "--signed", "x.json", "--key", "y.key", *where),
    ):
        said = wardround(*words)
        assert said.code == 2, said.err
        assert "--signed" in said.err


# --- on the machine that has the key --------------------------------------------------


def test_a_request_is_shown_before_it_is_signed(office: Office) -> None:
    office.ask()
    shown = "\n".join(office.sign())
    envelope = json.loads(office.signed.read_text())["run"]
    run = json.loads(open_envelope(envelope, RUN, [office.line]))
    roster = roster_of(office.folder.sites())
    num_rounds = office.settings.num_rounds
    epochs = office.settings.train.local_epochs
    for fact in (
        "which is new",
        "labels   a, b",
        f"rounds   {num_rounds}, each {epochs} times",
        "sites    2: a, b",
        f"roster   {roster_fingerprint(roster)}",
        f"Key of the run {fingerprint(run['key'])}",
    ):
        assert fact in shown
    assert "train.weight_decay" not in shown
    everything = "\n".join(office.sign(shows_all=True))
    assert "train.weight_decay = " in everything
    assert f"a signs with {roster['a']}" in everything


def test_nothing_is_signed_without_a_persons_consent(office: Office) -> None:
    office.ask()

    def no(words: Sequence[str]) -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match=r"^no$"):
        sign_request(office.request, office.key, office.signed, no)
    request, key, out = str(office.request), str(office.key), str(office.signed)
    words = ("server", "sign", request, "--key", key, "--out", out)
    said = wardround(*words)
    assert said.code == 2, said.err
    assert "--yes" in said.err
    assert not office.signed.exists()
    assert wardround(*words, "--yes").code == 0
    assert office.signed.exists()


def test_a_contradictory_or_damaged_request_is_not_signed(office: Office) -> None:
    office.ask()
    good = json.loads(office.request.read_text())
    plan = read_statement(Plan, read_envelope(good["plan"], PLAN)[0])
    twins = unsigned(PLAN, replace(plan, sites={"a": "SHA256:a", "b": "SHA256:a"}))
    run = RunStatement("name", public_line(new_key("signing")), 0.0, 1.0, "0" * 64)
    run_of_twins = unsigned(RUN, replace(run, plan=payload_digest(twins)))
    stranger: Any = new_key("signing")
    for changed, facts in (
        ({"run": unsigned(RUN, run)}, "its run belongs to another plan"),
        ({"plan": twins}, "its run belongs to another plan"),
        ({"plan": twins, "run": run_of_twins}, "a and b have the same key"),
        ({"plan": sign(PLAN, plan, stranger)}, DAMAGED),
        ({"plan": good["run"]}, DAMAGED),
        ({"plan": _with_a_second_roster(good["plan"])}, DAMAGED),
        ({"plan": "no envelope"}, DAMAGED),
        ({"more": "x"}, "wardround submit --unsigned"),
    ):
        office.request.write_text(json.dumps(good | changed))
        with pytest.raises(ValueError, match=facts):
            office.sign()
    office.request.write_text("[]")
    with pytest.raises(ValueError, match="wardround submit --unsigned"):
        office.sign()
    assert not office.signed.exists()


def _with_a_second_roster(envelope: str) -> str:
    """Return the same plan, with a key that occurs twice in it."""
    content = json.loads(envelope)
    payload = base64.b64decode(content["payload"])
    twice = payload.replace(
        b'"sites": ', b'"sites": {"shown": "SHA256:a"}, "sites": ', 1
    )
    assert twice != payload
    return json.dumps(content | {"payload": base64.b64encode(twice).decode()})


def test_a_plan_with_an_impossible_date_is_not_signed(office: Office) -> None:
    office.ask()
    good = json.loads(office.request.read_text())
    plan = read_statement(Plan, read_envelope(good["plan"], PLAN)[0])
    endless = unsigned(PLAN, replace(plan, not_after=1e300))
    run = read_statement(RunStatement, read_envelope(good["run"], RUN)[0])
    statement = unsigned(RUN, replace(run, plan=payload_digest(endless)))
    office.request.write_text(json.dumps({"plan": endless, "run": statement}))
    with pytest.raises(ValueError, match=DAMAGED):
        office.sign()


def test_a_request_moves_no_cursor(office: Office) -> None:
    """A server that was taken over can write every word of a request."""
    labels = ("health\x1b[2A", "a\nLabels agreed on")
    data = replace(office.settings.data, label_names=labels)
    office.settings = replace(office.settings, data=data)
    office.ask()
    assert all(line.isprintable() for line in office.sign(shows_all=True))


# --- invitations and rotations --------------------------------------------------------


def test_an_invitation_is_signed_elsewhere_and_answered(
    office: Office, tmp_path: Path
) -> None:
    request_invitation(office.folder, "c", office.request, labels=["x", "y"])
    shown = "\n".join(office.sign())
    assert "Invitation of c" in shown
    assert f"dials      localhost:{office.folder.addresses.fleet_port}" in shown
    told = keep_invitation(office.folder, "c", office.signed)
    invitation, seen = read_document(Invitation, office.folder.invitation("c"))
    assert seen == told
    assert invitation.signing_key == office.line
    assert invitation.labels == ("x", "y")
    key: Any = new_key("signing")
    answer = Registration("c", public_line(new_key("node")), public_line(key), told)
    write_document(answer, tmp_path / "registration.json", key)
    register_site(office.folder, "c", tmp_path / "registration.json")
    assert list(office.folder.sites()) == ["a", "b", "c"]


def test_an_invitation_with_another_key_is_not_signed_and_not_kept(
    office: Office, tmp_path: Path
) -> None:
    request_invitation(office.folder, "c", office.request)
    make_signing_key(tmp_path / "stranger.key")
    with pytest.raises(ValueError, match="names another signing key"):
        office.sign(key=tmp_path / "stranger.key")
    other = ServerFolder.create(tmp_path / "other", Addresses(("localhost",)))
    stranger, _ = invite_site(other, "c")
    with pytest.raises(ValueError, match="not signed with a trusted key"):
        keep_invitation(office.folder, "c", stranger)
    office.sign()
    with pytest.raises(ValueError, match="of 'c', not of 'd'"):
        keep_invitation(office.folder, "d", office.signed)


def test_a_key_on_another_machine_is_rotated_there(
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
