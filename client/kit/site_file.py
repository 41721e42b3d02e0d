"""A site's own file, site.yaml: the facts about a site that no server sets."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from common.credentials import NEW_KEYS, check_public_line, read_private_key
from common.data.file_form import FileForm
from common.data.read import Columns
from common.errors import nearest
from common.files import write_atomically

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_NAME = re.compile(r"[a-z0-9_-]+")
_KEYS: dict[str, tuple[str, ...]] = {
    "": ("name", "server", "key", "data", "model", "device", "state", "invitation"),
    "server": ("address", "ca", "signing_key"),
    "key": ("private", "public", "signing"),
    "data": (
        "path",
        "delimiter",
        "encoding",
        "text_columns",
        "label_column",
        "labels",
        "drop_empty",
        "token_cache",
    ),
}


@dataclass(frozen=True)
class SiteFile:
    """What one site says about itself. Paths are absolute.

    Raises:
        ValueError: a name, an address, a column list, a delimiter or an encoding that cannot be; names key,
            value, rule and next step.
    """

    name: str
    """As the coordinator registers the site; small letters, digits, `_` and `-`."""
    server_address: str
    """`host:port` of the server's fleet port, the one address this site dials."""
    ca: Path
    """Certificate of the authority that signed the server's certificate, PEM. No other server is trusted."""
    private_key: Path
    """The site's private key, OpenSSH form; readable by its owner only, and never sent anywhere."""
    public_key: Path
    """The public half, which the coordinator registers."""
    data_path: Path
    """Labelled texts: a CSV file with a header, JSONL or Parquet."""
    text_columns: tuple[str, ...]
    """Columns joined with one space to make the text."""
    label_column: str
    """Column that holds the label."""
    delimiter: str | None = None
    """Stands between the columns of a CSV: one character or `tab`; None is a comma."""
    encoding: str | None = None
    """Encoding of a CSV or JSONL file, a Python codec; None is UTF-8."""
    labels: tuple[tuple[str, str], ...] = ()
    """Pairs (own label name, the consortium's name); a label that is not here keeps its name."""
    drop_empty: bool = False
    """Leave out examples without a text; otherwise one of them stops the training."""
    token_cache: Path | None = None
    """Folder to keep the texts in as token ids, which can be read back as texts; None keeps none."""
    model: Path | None = None
    """Folder with the pre-trained model, where no hub is in reach; None takes what the run names."""
    device: str = "auto"
    """Where to train: `auto`, `cpu`, `cuda`, `cuda:1` …"""
    coordinator_key: Path | None = None
    """The coordinator's public signing key: what is not signed under it does not count. `join` needs it."""
    signing_key: Path | None = None
    """The private key that signs this site's answers, OpenSSH form. `join` needs it."""
    state: Path = Path("state")
    """Folder where `join` notes what it must not forget."""
    invitation: Path | None = None
    """What the coordinator sent; `check` compares versions and labels with it."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(
                f"name is '{self.name}'; a site's name is made of small letters, digits, _ and -. "
                "Take the name you agreed on with the coordinator, for example st_marys."
            )
        self.host_and_port  # noqa: B018 - checked at birth
        if not self.text_columns or not all(self.text_columns):
            raise ValueError(
                "data.text_columns is empty; name at least one column, for example text_columns: [text]."
            )
        self.form  # noqa: B018 - checked at birth

    @property
    def columns(self) -> Columns:
        """The columns that are read."""
        return Columns(self.text_columns, self.label_column)

    @property
    def form(self) -> FileForm:
        """How the file of texts is written."""
        return FileForm(self.delimiter, self.encoding, is_in_site_file=True)

    @property
    def host_and_port(self) -> tuple[str, int]:
        """The server's address in its two parts; the host of an IPv6 address has no brackets."""
        host, _, port = self.server_address.rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        bare = host[1:-1] if bracketed else host
        ambiguous = ":" in host and not bracketed  # an IPv6 address has to stand in brackets
        is_port = port.isdecimal() and 0 < int(port) < 65536
        if not bare or ambiguous or re.search(r"[\s/@]", bare) or not is_port:
            raise ValueError(
                f"server.address is '{self.server_address}'; it must be host:port without a scheme. "
                "The coordinator gives it, for example fl.example.org:9092."
            )
        return bare, int(port)


def load_site_file(path: Path) -> SiteFile:
    """Read a site file; its relative paths are taken from its own folder.

    Raises:
        ValueError: the file is missing or no YAML, a key is unknown or missing, or a value cannot be.
    """
    path = path.expanduser().absolute()
    if not path.is_file():
        raise ValueError(f"{path} does not exist. Make one with: wardround-site init NAME …, or set --site.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}. Check its permissions.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is not YAML ({reason}). Compare it with docs/hospital.md.") from None
    try:
        return _build(_section({"": content}, ""), path.parent)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _build(top: Mapping[str, Any], folder: Path) -> SiteFile:
    server, key, data = (_section(top, name) for name in ("server", "key", "data"))

    def located(text: str) -> Path:
        return folder / Path(text).expanduser()

    def given(section: Mapping[str, Any], key: str, name: str) -> Path | None:
        return None if section.get(key) is None else located(_text(section, key, name))

    return SiteFile(
        name=_text(top, "name", ""),
        server_address=_text(server, "address", "server"),
        ca=located(_text(server, "ca", "server")),
        private_key=located(_text(key, "private", "key")),
        public_key=located(_text(key, "public", "key")),
        data_path=located(_text(data, "path", "data")),
        text_columns=_columns(data.get("text_columns")),
        label_column=_text(data, "label_column", "data"),
        delimiter=_string(data, "delimiter", "data"),
        encoding=_string(data, "encoding", "data"),
        labels=_labels(data.get("labels")),
        drop_empty=_truth(data.get("drop_empty", False)),
        token_cache=None if data.get("token_cache") is None else located(_text(data, "token_cache", "data")),
        model=None if top.get("model") is None else located(_text(top, "model", "")),
        device=_text(top, "device", "") if "device" in top else "auto",
        coordinator_key=given(server, "signing_key", "server"),
        signing_key=given(key, "signing", "key"),
        state=located(_text(top, "state", "") if "state" in top else "state"),
        invitation=given(top, "invitation", ""),
    )


def _section(parent: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The mapping `name` of `parent`, all its keys known."""
    content, what = parent.get(name), name or "the file"
    if not isinstance(content, dict):
        raise ValueError(f"{what} must hold: {', '.join(_KEYS[name])}. Write them as key: value.")
    for key in content:
        if key not in _KEYS[name]:
            full = f"{name}.{key}" if name else str(key)
            raise ValueError(
                f"{full} is no key of a site file.{nearest(str(key), _KEYS[name])} Known in {what}: "
                f"{', '.join(_KEYS[name])}. Correct or remove it."
            )
    return content


def _text(section: Mapping[str, Any], key: str, name: str) -> str:
    value, full = section.get(key), f"{name}.{key}" if name else key
    if value is None:
        raise ValueError(f"{full} is missing. Set it.")
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{full} is {value!r}; a text is needed. Put it in quotes.")
    return value


def _string(section: Mapping[str, Any], key: str, name: str) -> str | None:
    """A text that may be white space, or is not set."""
    value = section.get(key)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{name}.{key} is {value!r}; a text is needed. Put it in quotes.")
    return value


def _columns(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ValueError(
            f"data.text_columns is {value!r}; a list of column names is needed. "
            "Write for example text_columns: [subject, body]."
        )
    return tuple(value)


def _labels(value: Any) -> tuple[tuple[str, str], ...]:
    if value is None:
        return ()
    if not isinstance(value, dict):
        raise ValueError(
            f"data.labels is {value!r}; own names and the consortium's are needed in pairs. "
            'Write for example labels: {"kardio": cardiology}, or labels: {} where they are the same.'
        )
    pairs = []
    for own, common in value.items():
        # YAML reads 1 as a number and yes as a truth value; a label that is a truth value was a slip.
        if isinstance(own, bool) or isinstance(common, bool) or not isinstance(common, str | int):
            raise ValueError(
                f"data.labels holds {own!r}: {common!r}; both must be names. Put them in quotes, for example "
                '"yes": "positive".'
            )
        pairs.append((str(own), str(common)))
    return tuple(pairs)


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"data.drop_empty is {value!r}; it must be true or false.")
    return value


def signing_keys(site: SiteFile) -> tuple[Ed25519PrivateKey, str]:
    """The site's private signing key, and the coordinator's public one in OpenSSH form.

    Raises:
        ValueError: one of them is not there, or is no such key.
    """
    for setting, path in (("key.signing", site.signing_key), ("server.signing_key", site.coordinator_key)):
        if path is None:
            raise ValueError(f"{setting} is missing in site.yaml. {NEW_KEYS}")
    assert site.signing_key is not None
    assert site.coordinator_key is not None
    own = read_private_key(site.signing_key, "signing", "key.signing", NEW_KEYS)
    try:
        coordinator = check_public_line(site.coordinator_key.read_text(encoding="ascii"), "signing")
    except OSError as error:
        raise ValueError(
            f"server.signing_key: {site.coordinator_key} cannot be read: {error.strerror}. {NEW_KEYS}"
        ) from None
    except ValueError as error:
        raise ValueError(f"server.signing_key: {site.coordinator_key}: {error}. {NEW_KEYS}") from None
    return own, coordinator  # type: ignore[return-value]


_FORM = """\
# What this site says about itself. It stays here: the coordinator gets the public key, nothing of this file.
# Relative paths are taken from this file's folder.
name: {name}  # as the coordinator registers it
server:
  address: {address}  # the one address this site dials
  ca: {ca}  # got from the coordinator; no other server is trusted
  signing_key: {coordinator_key}  # the coordinator's; what is not signed under it does not count
key:
  private: {private}  # never leaves this machine
  public: {public}  # goes to the coordinator
  signing: {signing_key}  # signs this site's answers; never leaves this machine
data:
  path: {data}  # CSV with a header, JSONL or Parquet
  delimiter: {delimiter}  # between the columns of a CSV: one character in quotes, or tab; null is a comma
  encoding: {encoding}  # for example windows-1252; null is UTF-8
  text_columns: {columns}  # joined with one space to make the text
  label_column: {label}
  labels: {labels}  # own label name: the consortium's name; {{}} where they are the same
  drop_empty: {drop_empty}  # true leaves out examples without a text
  token_cache: {token_cache}  # folder to keep texts in as numbers between rounds; they can be read back
model: {model}  # folder with the pre-trained model, where no hub is in reach
device: {device}  # auto, cpu, cuda, cuda:1 …
state: {state}  # folder for what must survive a restart; this user writes there
invitation: {invitation}  # what the coordinator sent; `check` compares versions and labels with it
"""


def write_site_file(site: SiteFile, path: Path) -> None:
    """Write a site file that `load_site_file` reads back to an equal object; paths below it are relative."""
    folder = path.absolute().parent

    def placed(target: Path) -> str:
        inside = target.is_relative_to(folder)
        return _quoted(str(target.relative_to(folder) if inside else target))

    def optional(target: Path | None) -> str:
        return "null" if target is None else placed(target)

    text = _FORM.format(
        name=_quoted(site.name),
        address=_quoted(site.server_address),
        ca=placed(site.ca),
        private=placed(site.private_key),
        public=placed(site.public_key),
        data=placed(site.data_path),
        delimiter=json.dumps(site.delimiter, ensure_ascii=False),
        encoding=json.dumps(site.encoding),
        columns=_listed(_quoted(name) for name in site.text_columns),
        label=_quoted(site.label_column),
        labels=json.dumps(dict(site.labels), ensure_ascii=False),
        drop_empty=json.dumps(site.drop_empty),
        token_cache=optional(site.token_cache),
        model=optional(site.model),
        device=_quoted(site.device),
        coordinator_key=optional(site.coordinator_key),
        signing_key=optional(site.signing_key),
        state=placed(site.state),
        invitation=optional(site.invitation),
    )
    write_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)  # a JSON string is a YAML string


def _listed(items: Iterable[str]) -> str:
    return f"[{', '.join(items)}]"
