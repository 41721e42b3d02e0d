"""The coordinator's folder: its files, its refusals, and its settings for Flower."""

from __future__ import annotations

import base64
import codecs
import io
import json
import shutil
import ssl
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.support.door import CommandResult, wardround
from tests.support.nasty import NASTY, faults
from wardround.common.credentials import (
    fingerprint,
    new_key,
    public_line,
    read_private_key,
)
from wardround.common.wire.invitation import (
    Invitation,
    Registration,
    Rotation,
    read_document,
    write_document,
)
from wardround.server.deployment import superlink
from wardround.server.deployment.addresses import Addresses
from wardround.server.deployment.cli import UNLIMITED
from wardround.server.deployment.folder import (
    RegisteredSite,
    ServerFolder,
    signing_key,
    toml_string,
)
from wardround.server.deployment.signing_key import rotate_key
from wardround.server.deployment.sites import (
    invite_site,
    register_site,
    unregister_site,
)


@pytest.fixture
def folder(tmp_path: Path) -> ServerFolder:
    """A new server folder without a running server."""
    return ServerFolder.create(
        tmp_path / "server", Addresses(("fl.example.org", "10.1.2.3"))
    )


def answer(folder: ServerFolder, name: str, target: Path, **changed: str) -> Path:
    """A site's registration, as `wardround-site init --invitation` writes it."""
    _, told = read_document(Invitation, folder.path / "invitations" / f"{name}.json")
    node, signing = new_key("node"), new_key("signing")
    facts = {
        "site": name,
        "node_key": public_line(node),
        "signing_key": public_line(signing),
        "invitation": told,
    }
    write_document(Registration(**(facts | changed)), target, signing)  # type: ignore[arg-type]
    return target


def test_a_new_folder_holds_what_a_server_needs(folder: ServerFolder) -> None:
    assert sorted(path.name for path in folder.path.iterdir()) == [
        "ca.crt",
        "ca.key",
        "flwr",
        "server.crt",
        "server.key",
        "server.yaml",
        "signing.key",
        "signing.pub",
        "sites.json",
    ]
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    names = ("fl.example.org", "10.1.2.3", "localhost", "127.0.0.1")
    assert folder.server.read().names == names
    assert folder.sites() == {}
    assert folder.addresses.fleet == "0.0.0.0:9092"
    # A program that reaches the control port can send code to every site.
    assert folder.addresses.control == "127.0.0.1:8000"


def test_flowers_configuration_names_the_address_and_the_authority(
    folder: ServerFolder,
) -> None:
    file = folder.flower_home / "config.toml"
    assert tomllib.loads(file.read_text()) == {
        "superlink": {
            "default": "wardround",
            "wardround": {
                "address": "127.0.0.1:8000",
                "root-certificates": str(folder.authority.certificate),
            },
        }
    }
    assert not folder.is_insecure
    folder.write_flower_config(insecure=True)
    assert folder.is_insecure


def test_only_the_option_insecure_turns_off_tls_and_keys(folder: ServerFolder) -> None:
    words = superlink.options(folder, insecure=False)
    assert "--enable-supernode-auth" in words
    assert "--insecure" not in words
    assert words[words.index("--ssl-keyfile") + 1] == str(folder.server.key)
    assert words[words.index("--host") + 1] == "127.0.0.1"
    assert "--disable-runtime-dependency-installation" in words
    words = superlink.options(folder, insecure=True)
    assert "--insecure" in words
    assert not {"--enable-supernode-auth", "--ssl-keyfile"} & set(words)


def test_flowers_programs_send_no_telemetry_and_use_no_proxy(
    folder: ServerFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "example.org")
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "1")
    given = superlink.environment(folder)
    assert given["FLWR_TELEMETRY_ENABLED"] == "0"
    assert given["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert given["FLWR_HOME"] == str(folder.path / "flwr")
    assert given["NO_PROXY"] == "example.org,localhost,127.0.0.1"
    assert given["PATH"].startswith(str(superlink.BIN))


def test_an_existing_folder_is_not_overwritten(folder: ServerFolder) -> None:
    before = folder.authority.key.read_bytes()
    with pytest.raises(ValueError, match=f"{folder.path}.* exists .*--dir"):
        ServerFolder.create(folder.path, Addresses(("other.org",)))
    assert folder.authority.key.read_bytes() == before


def test_a_folder_that_is_no_server_folder_names_the_next_step(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="wardround server init"):
        ServerFolder(tmp_path)


@pytest.mark.parametrize("name", NASTY)
def test_words_of_a_registration_imitate_no_line(
    folder: ServerFolder, tmp_path: Path, name: str
) -> None:
    invite_site(folder, "a")
    invite_site(folder, "b")
    for file in (
        answer(folder, "a", tmp_path / "one", site=NASTY[name]),
        answer(folder, "b", tmp_path / "two", invitation=NASTY[name]),
    ):
        # The file is for another site, or answers another invitation.
        with pytest.raises(
            ValueError, match=rf"'{file}' .*(not of 'b'|invitations/b\.json)"
        ) as refused:
            register_site(folder, "b", file)
        said = str(refused.value)
        assert faults(said, 1000) == []
        assert "  " not in said


@pytest.mark.parametrize("name", NASTY)
def test_the_list_of_sites_has_a_line_for_each(folder: ServerFolder, name: str) -> None:
    """This holds for every name, also for one that a stranger wrote into the file."""
    nasty = NASTY[name]
    with folder.changing_sites() as sites:
        sites[nasty] = RegisteredSite(
            "ecdsa-sha2-nistp384 QQ==", "ssh-ed25519 QQ==", nasty
        )
        sites["b"] = RegisteredSite(
            "ecdsa-sha2-nistp384 Qg==", "ssh-ed25519 Qg==", "SHA256:b"
        )
    said = wardround("server", "sites", "--dir", str(folder.path))
    *lines, roster = said.out.splitlines()
    assert len(lines) == 2
    assert roster.startswith("roster of these 2 sites: SHA256:")
    for line in (*lines, roster):
        assert faults(line, 200) == []


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("fleet_port: 70000", "70000"),
        ("fleet_prt: 9", "fleet_prt"),
        ("names: []", "names"),
        ("{", "YAML"),
    ],
)
def test_a_wrong_server_yaml_names_the_key(
    folder: ServerFolder, line: str, named: str
) -> None:
    file = folder.path / "server.yaml"
    key = line.split(":")[0]
    kept = [text for text in file.read_text().splitlines() if text.split(":")[0] != key]
    if key == "names":
        # Its two values are on lines of their own.
        kept = kept[2:]
    file.write_text("\n".join([*kept, line]))
    with pytest.raises(ValueError, match=rf"server\.yaml' is .*{named}"):
        ServerFolder(folder.path)


def test_a_site_is_invited_registered_and_unregistered(
    folder: ServerFolder, tmp_path: Path
) -> None:
    file, told = invite_site(folder, "st-mary", labels=["low", "high"])
    invitation, seen = read_document(Invitation, file)
    assert seen == told
    assert invitation.site == "st-mary"
    assert invitation.address == "fl.example.org:9092"
    assert invitation.ca == folder.authority.certificate.read_text()
    assert invitation.signing_key == public_line(signing_key(folder))
    assert invitation.labels == ("low", "high")
    assert invitation.versions["flwr"] == "1.39.0"
    assert b"PRIVATE" not in file.read_bytes()
    marked = tmp_path / "marked.json"
    marked.write_bytes(codecs.BOM_UTF8 + file.read_bytes())
    assert read_document(Invitation, marked) == (invitation, seen)
    registration = answer(folder, "st-mary", tmp_path / "a")
    site = register_site(folder, "st-mary", registration, max_examples=9)
    written = json.loads((folder.path / "sites.json").read_text())["st-mary"]
    assert written["fingerprint"] == site.fingerprint
    assert written["max_examples"] == 9
    assert folder.sites() == {"st-mary": site}
    unregister_site(folder, "st-mary")
    assert folder.sites() == {}
    with pytest.raises(ValueError, match="wardround server invite st-mary"):
        register_site(folder, "st-mary", tmp_path / "a")


def test_wrong_names_and_answers_are_refused(
    folder: ServerFolder, tmp_path: Path
) -> None:
    for name in ("a", "b", "c"):
        invite_site(folder, name)
    good = answer(folder, "a", tmp_path / "a")
    register_site(folder, "a", good)
    node = folder.sites()["a"].public_key
    changed = answer(folder, "b", tmp_path / "changed")
    envelope = json.loads(changed.read_text())
    content = json.loads(base64.b64decode(envelope["payload"]))
    content["node_key"] = public_line(new_key("node"))
    envelope["payload"] = base64.b64encode(json.dumps(content).encode()).decode()
    changed.write_text(json.dumps(envelope))
    torn = tmp_path / "torn"
    torn.write_text(good.read_text().replace('"payload": "', '"payload": "e'))
    other = answer(folder, "b", tmp_path / "other", invitation="SHA256:other")
    twin = answer(folder, "b", tmp_path / "twin", node_key=node)
    weak = answer(folder, "b", tmp_path / "weak", node_key="ssh-rsa AAAA")
    named = answer(folder, "c", tmp_path / "c")
    invite_site(folder, "c")
    for name, file, facts in (
        ("a", good, "site 'a' .* wardround server unregister a"),
        ("b", good, "\"a\", not of 'b'"),
        ("b", changed, "changed' was changed after it was signed"),
        ("b", torn, "torn' is no registration"),
        ("b", other, r"SHA256:other.*invitations/b\.json"),
        ("b", twin, "a key of site 'a'"),
        ("b", weak, "ECDSA key on P-384"),
        ("b", tmp_path / "missing", "missing' cannot be read"),
        ("b", folder.path / "invitations" / "b.json", r"b\.json' is no registration"),
    ):
        with pytest.raises(ValueError, match=facts):
            register_site(folder, name, file)
    with pytest.raises(ValueError, match="no site 'b'"):
        unregister_site(folder, "b")
    with pytest.raises(ValueError, match="wardround server unregister a"):
        invite_site(folder, "a")
    for words, facts in (
        ({"name": "St Mary"}, "'St Mary' is not a site name"),
        ({"name": "../a"}, r"'\.\./a' is not a site name"),
        ({"name": "d", "address": "nowhere"}, "HOST:PORT"),
        ({"name": "d", "labels": ["x", "x"]}, "--labels is 'x,x'"),
    ):
        with pytest.raises(ValueError, match=facts):
            invite_site(folder, **words)
    assert list(folder.sites()) == ["a"]
    assert named.exists()


@pytest.mark.parametrize(
    ("words", "option"),
    [
        ("init --name a.org --days 0", "--days"),
        ("init --name a.org --fleet-port 70000", "--fleet-port"),
        ("renew --days 0", "--days"),
        ("register b FILE --max-examples 0", "--max-examples"),
        ("register b FILE --max-examples=-5", "--max-examples"),
        ("register b FILE --max-examples many", "--max-examples"),
    ],
)
def test_numbers_out_of_range_are_refused_by_name(
    words: str, option: str, tmp_path: Path
) -> None:
    said = wardround("server", *words.split(), "--dir", str(tmp_path / "server"))
    assert said.code == 2
    assert option in said.err
    assert not (tmp_path / "server").exists()


def registered(folder: ServerFolder, tmp_path: Path, *words: str) -> CommandResult:
    """Invite site `a`, and register its answer."""
    invite_site(folder, "a")
    file = answer(folder, "a", tmp_path / "a")
    return wardround(
        "server", "register", "a", str(file), "--dir", str(folder.path), *words
    )


def test_without_a_terminal_the_bound_of_a_site_must_be_an_option(
    folder: ServerFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("5000\n"))
    said = registered(folder, tmp_path)
    assert said.code == 2
    assert "--max-examples N" in said.err
    assert UNLIMITED in said.err
    assert folder.sites() == {}


@pytest.mark.parametrize(("typed", "bound"), [("5000", 5000), (UNLIMITED, None)])
def test_at_a_terminal_the_bound_of_a_site_is_asked_for(
    folder: ServerFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    typed: str,
    bound: int | None,
) -> None:
    terminal = io.StringIO(f"{typed}\n")
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdin", terminal)
    assert registered(folder, tmp_path).code == 0
    assert folder.sites()["a"].max_examples == bound


@pytest.mark.parametrize(("word", "bound"), [("9", 9), (UNLIMITED, None)])
def test_the_bound_of_a_site_can_be_an_option(
    folder: ServerFolder, tmp_path: Path, word: str, bound: int | None
) -> None:
    said = registered(folder, tmp_path, "--max-examples", word)
    assert said.code == 0
    assert "SHA256:" in said.out
    assert folder.sites()["a"].max_examples == bound


@pytest.mark.parametrize(
    ("written", "named", "insecure", "host", "is_loopback"),
    [
        ("0.0.0.0", None, False, "0.0.0.0", False),
        ("0.0.0.0", None, True, "127.0.0.1", True),
        ("10.1.2.3", None, True, "127.0.0.1", True),
        ("::", None, True, "::1", True),
        ("0.0.0.0", "0.0.0.0", True, "0.0.0.0", False),
        ("0.0.0.0", "10.1.2.3", False, "10.1.2.3", False),
        ("localhost", None, False, "localhost", True),
    ],
)
def test_without_tls_the_server_listens_on_its_own_machine_by_default(
    written: str, named: str | None, insecure: bool, host: str, is_loopback: bool
) -> None:
    addresses = Addresses(("fl.example.org",), fleet_host=written)
    found = addresses.listening(named, insecure=insecure)
    assert (found.fleet_host, found.is_loopback) == (host, is_loopback)


def test_a_new_signing_key_is_signed_with_the_old_one(
    folder: ServerFolder, tmp_path: Path
) -> None:
    invite_site(folder, "a")
    old = public_line(signing_key(folder))
    rotated = rotate_key(folder.signing_key)
    assert rotated is not None
    rotation, told = read_document(Rotation, rotated[0], signed_with=[old])
    assert told == rotated[1]
    assert rotation.signing_key == public_line(signing_key(folder)) != old
    assert stat.S_IMODE(folder.signing_key.stat().st_mode) == 0o600
    registration = answer(folder, "a", tmp_path / "a")
    with pytest.raises(
        ValueError,
        match=r"'a' is older than the signing key.* wardround server invite a",
    ):
        register_site(folder, "a", registration)
    stranger = public_line(new_key("signing"))
    with pytest.raises(ValueError, match="not signed with a trusted key"):
        read_document(Rotation, rotated[0], signed_with=[stranger])


def test_a_killed_rotation_continues_with_the_same_key(
    folder: ServerFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = public_line(signing_key(folder))

    def killed(*_: object) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(
            "wardround.server.deployment.signing_key.write_document", killed
        )
        with pytest.raises(KeyboardInterrupt):
            rotate_key(folder.signing_key)
    assert public_line(signing_key(folder)) == old
    coming = read_private_key(folder.path / "signing.key.next", "signing", "", "")
    rotated = rotate_key(folder.signing_key)
    assert rotated is not None
    assert public_line(signing_key(folder)) == public_line(coming)
    folder.signing_key.unlink()
    with pytest.raises(
        ValueError, match=r"rotate-key --signed .* delete .*signing\.pub"
    ):
        rotate_key(folder.signing_key)
    folder.public_key.unlink()
    assert rotate_key(folder.signing_key) is None
    assert folder.signing_key.exists()


def test_a_killed_renewal_leaves_one_whole_pair(
    folder: ServerFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = folder.server.read().fingerprint
    moves: list[Path] = []
    replace = Path.replace

    def killed(path: Path, target: Path) -> Path:
        moves.append(path)
        if path.name == "server.crt.next":
            raise KeyboardInterrupt
        return replace(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            folder.renew()
    assert folder.server.read().fingerprint == old  # with the new key: torn
    again = ServerFolder(folder.path)
    assert again.server.read().fingerprint != old
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # Raises if the key is not that of the certificate.
    context.load_cert_chain(again.server.certificate, again.server.key)
    assert not again.server.next.certificate.exists()


def test_an_encrypted_authoritys_key_needs_its_passphrase(tmp_path: Path) -> None:
    folder = ServerFolder.create(
        tmp_path / "server", Addresses(("localhost",)), passphrase="a long one"
    )
    assert folder.authority.is_encrypted
    with pytest.raises(ValueError, match=r"ca\.key' .* passphrase"):
        folder.renew()
    before = folder.server.read().fingerprint
    folder.renew(passphrase="a long one")
    assert folder.server.read().fingerprint != before


@pytest.mark.skipif(
    shutil.which("ssh-keygen") is None, reason="there is no ssh-keygen here"
)
def test_fingerprints_are_those_of_ssh_keygen(tmp_path: Path) -> None:
    line = public_line(new_key("node"))
    file = tmp_path / "a.pub"
    file.write_text(line + "\n")
    told = subprocess.run(
        ["ssh-keygen", "-lf", file],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert fingerprint(line) == told.stdout.split()[1]


def test_sites_of_an_earlier_version_are_registered_anew(folder: ServerFolder) -> None:
    old = {
        "a": {
            "node_id": "1",
            "public_key": "ecdsa-sha2-nistp384 QQ==",
            "fingerprint": "SHA256:a",
        }
    }
    (folder.path / "sites.json").write_text(json.dumps(old))
    with pytest.raises(ValueError, match=r"registration-NAME\.json"):
        folder.sites()


@pytest.mark.parametrize("text", ["plain", 'a "b" \\ \n\t\x00\x7f é 🩺', "'"])
def test_text_survives_toml(text: str) -> None:
    assert tomllib.loads(f"key = {toml_string(text)}")["key"] == text
