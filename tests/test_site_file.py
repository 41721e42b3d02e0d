"""site.yaml: its values, its errors, and a file that is written and read back."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from wardround.client.site_file import SiteFile, load_site_file, write_site_file

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "hospital.md").read_text(
    encoding="utf-8"
)
WHOLE = """
name: st_marys
server: {address: "fl.example.org:9092", ca: ca.crt, signing_key: coordinator.pub}
key: {private: site.key, public: /keys/site.pub, signing: /keys/signing.key}
data:
  path: letters.csv
  delimiter: ";"
  encoding: windows-1252
  text_columns: [subject, body]
  label_column: ward
  labels: {"1": health, kardio: heart}
  drop_empty: true
  token_cache: tokens
model: ../models/bert
device: cuda:1
state: /var/lib/site
invitation: invitation.json
"""


def written(folder: Path, text: str = WHOLE) -> Path:
    """Write a site file of this text."""
    path = folder / "site.yaml"
    path.write_text(text)
    return path


def test_every_field_is_read_and_relative_paths_begin_at_the_file(
    tmp_path: Path,
) -> None:
    site = load_site_file(written(tmp_path))
    assert site == SiteFile(
        name="st_marys",
        server_address="fl.example.org:9092",
        ca=tmp_path / "ca.crt",
        private_key=tmp_path / "site.key",
        public_key=Path("/keys/site.pub"),
        data_path=tmp_path / "letters.csv",
        text_columns=("subject", "body"),
        label_column="ward",
        delimiter=";",
        encoding="windows-1252",
        labels=(("1", "health"), ("kardio", "heart")),
        drop_empty=True,
        token_cache=tmp_path / "tokens",
        model=tmp_path / "../models/bert",
        device="cuda:1",
        coordinator_key=tmp_path / "coordinator.pub",
        signing_key=Path("/keys/signing.key"),
        state=Path("/var/lib/site"),
        invitation=tmp_path / "invitation.json",
    )
    assert site.host_and_port == ("fl.example.org", 9092)


def test_missing_keys_have_their_defaults(tmp_path: Path) -> None:
    short = WHOLE.split("  labels")[0]
    site = load_site_file(written(tmp_path, short))
    assert site.labels == ()
    assert site.drop_empty is False
    assert site.model is None
    assert site.device == "auto"
    assert site.token_cache is None
    bare = WHOLE.replace('  delimiter: ";"\n  encoding: windows-1252\n', "")
    plain = load_site_file(written(tmp_path, bare))
    assert plain.delimiter is None
    assert plain.encoding is None
    assert plain.form.codec == "utf-8-sig"


def test_a_written_file_is_read_back(tmp_path: Path) -> None:
    text = WHOLE.replace("kardio", "'kardio \"x\": é'")
    site = load_site_file(written(tmp_path, text))
    for target in (tmp_path / "other" / "site.yaml", tmp_path / "site.yaml"):
        write_site_file(site, target)
        assert load_site_file(target) == site
    assert 'ca: "ca.crt"' in (tmp_path / "site.yaml").read_text()


@pytest.mark.parametrize(
    ("yaml_value", "read", "separator"),
    [
        ('"\\t"', "\t", "\t"),
        ("tab", "tab", "\t"),
        (r"\t", r"\t", "\t"),
        ("'|'", "|", "|"),
        ("null", None, ","),
    ],
)
def test_a_delimiter_is_written_as_it_was_read(
    tmp_path: Path, yaml_value: str, read: str | None, separator: str
) -> None:
    text = WHOLE.replace('delimiter: ";"', f"delimiter: {yaml_value}")
    site = load_site_file(written(tmp_path, text))
    assert (site.delimiter, site.form.separator) == (read, separator)
    write_site_file(site, tmp_path / "again.yaml")
    assert load_site_file(tmp_path / "again.yaml") == site


@pytest.mark.parametrize(
    ("old", "new", "facts"),
    [
        ("device:", "devise:", ["devise", "Nearest: 'device'"]),
        (
            "label_column: ward",
            "label_colum: ward",
            ["data.label_colum is 'ward'", "Nearest: 'data.label_column'"],
        ),
        (
            "ca: ca.crt",
            "insecure: true",
            ["server.insecure is True", "server.address, server.ca"],
        ),
        ("name: st_marys", "name: St. Mary", ['name is "St. Mary"', "small letters"]),
        ("name: st_marys", "", ["name is missing"]),
        ("name: st_marys", "name:", ["name is missing"]),
        ("key: {", "keys: {", ["key.private is missing", "keys is {"]),
        ("key: {", "key: 3 #", ["key must hold", ": private, public"]),
        (
            "device:",
            "data.path: other.csv\ndevice:",
            ["data.path", "section"],
        ),
        (
            "fl.example.org:9092",
            "https://fl.example.org:9092",
            ["server.address is", "host:port", "scheme"],
        ),
        ("fl.example.org:9092", "fl.example.org", ["server.address is", "host:port"]),
        (
            "fl.example.org:9092",
            "fl.example.org\\x1b[8m:9092",
            ["server.address is", "host:port"],
        ),
        ("fl.example.org:9092", "::1:9092", ["server.address is", "host:port"]),
        (
            "fl.example.org:9092",
            "fl.example.org:90920",
            ["server.address is", "host:port"],
        ),
        ("[subject, body]", "[]", ["data.text_columns is empty"]),
        ("[subject, body]", "{a: b}", ["data.text_columns", "list of column names"]),
        (
            "drop_empty: true",
            "drop_empty: maybe",
            ["data.drop_empty is 'maybe'", "true or false"],
        ),
        (
            'delimiter: ";"',
            "delimiter: ;;",
            ["data.delimiter is ';;'", "one character"],
        ),
        (
            'delimiter: ";"',
            "delimiter: '\"'",
            ["data.delimiter is '\"'", "one character"],
        ),
        ('delimiter: ";"', "delimiter: 1", ["data.delimiter is 1", "quotes"]),
        ('delimiter: ";"', "seperator: ;", ["data.seperator is ';'", "data.delimiter"]),
        (
            "encoding: windows-1252",
            "encoding: 1252",
            ["data.encoding is 1252", "quotes"],
        ),
        (
            "encoding: windows-1252",
            "encoding: rot13",
            ["data.encoding is 'rot13'", "windows-1252"],
        ),
        (
            "encoding: windows-1252",
            "encoding: windoof",
            ["data.encoding is 'windoof'", "windows-1252"],
        ),
        ("kardio: heart", "yes: heart", ["data.labels holds True", "quotes"]),
        ("device: cuda:1", "device: 3", ["device is 3", "text"]),
        ("data:\n", "data: [\n", ["YAML"]),
        (
            "device:",
            "policy: {max_epoch: 3}\ndevice:",
            ["policy.max_epoch is 3", "Nearest: 'policy.max_epochs'"],
        ),
        (
            "device:",
            "policy: {forms: exact}\ndevice:",
            ["policy.forms is 'exact'", "[a, b]"],
        ),
    ],
)
def test_a_mistake_is_named_with_the_next_step(
    tmp_path: Path, old: str, new: str, facts: list[str]
) -> None:
    assert old in WHOLE
    path = written(tmp_path, WHOLE.replace(old, new))
    with pytest.raises(ValueError, match=r"site\.yaml") as caught:
        load_site_file(path)
    for fact in facts:
        assert fact in str(caught.value)


def test_a_missing_file_names_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"site\.yaml.* wardround-site init"):
        load_site_file(tmp_path / "site.yaml")


def test_an_ipv6_address_in_brackets_is_read(tmp_path: Path) -> None:
    text = WHOLE.replace("fl.example.org:9092", "[fd00::5]:9092")
    site = load_site_file(written(tmp_path, text))
    assert site.host_and_port == ("fd00::5", 9092)


def test_every_key_has_a_comment_and_is_on_the_page(tmp_path: Path) -> None:
    site = load_site_file(written(tmp_path))
    write_site_file(site, tmp_path / "again.yaml")
    lines = (tmp_path / "again.yaml").read_text().splitlines()
    own_keys = lines[: lines.index("policy:")]
    bare = [
        line
        for before, line in pairwise(own_keys)
        if not line.endswith(":")
        and not line.lstrip().startswith("#")
        and not before.lstrip().startswith("#")
    ]
    assert bare == []
    (example,) = re.findall(
        r"^```yaml\n(name: .*?)^```", PAGE, re.DOTALL | re.MULTILINE
    )
    shown = yaml.safe_load(example)
    written_keys = yaml.safe_load((tmp_path / "again.yaml").read_text())
    assert shown.keys() == written_keys.keys()
    for section in ("server", "key", "data"):
        assert shown[section].keys() == written_keys[section].keys()
