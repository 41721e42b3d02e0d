"""A site's own file, site.yaml: the settings of a site that no server can change."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Annotated, Any

import yaml
from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
)
from pydantic_core import PydanticCustomError

from wardround.client.policy.limits import Policy, without_retired
from wardround.common.credentials import (
    NEW_KEYS,
    Certificate,
    check_public_line,
    read_certificate,
    read_private_key,
)
from wardround.common.data.tables import Columns
from wardround.common.explain import explain
from wardround.common.file_form import FileForm
from wardround.common.files import write_text
from wardround.common.places import from_home
from wardround.common.settings.data import DataSettings
from wardround.common.settings.values import LabelName, Seed
from wardround.common.tasks.label_names import label_column
from wardround.common.words import NAME, quoted

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_SECTIONS = ("server", "key", "data")
_STEPS = {
    "missing": "Set it.",
    "policy": "Write it as key: value.",
    "string_type": "Put it in quotes.",
    "bool_type": "Write true or false.",
    "data.text_columns": "Write for example text_columns: [subject, body].",
    "data.text_columns missing": "Write for example text_columns: [subject, body].",
}


def _text(value: Any) -> Any:
    if value is None:
        raise PydanticCustomError("missing", "There is no value")
    if not isinstance(value, str) or not value.strip():
        raise PydanticCustomError("string_type", "The value should be a text")
    return value


def _located(value: Any, info: ValidationInfo) -> Path:
    """Return a path; a relative one starts at the folder of the file."""
    folder: Any = info.context
    if isinstance(value, Path):
        return Path(folder, value)
    return Path(folder, from_home(_text(value)))


def _columns(value: Any) -> Any:
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        return value
    raise PydanticCustomError("columns", "The value should be a list of column names")


def _label_pairs(value: Any) -> list[tuple[str, str]]:
    if value is None or value == ():
        return []
    if not isinstance(value, dict):
        raise ValueError(
            f"data.labels is {value!r}; it must hold pairs of your own label name and the "
            'consortium\'s. Write for example labels: {"kardio": cardiology}, or labels: {} '
            "if the names are the same."
        )
    for own, common in value.items():
        # YAML reads 1 as a number, and a bare yes as true, which was a slip.
        has_bool = isinstance(own, bool) or isinstance(common, bool)
        if has_bool or not isinstance(common, str | int):
            raise ValueError(
                f"data.labels holds {own!r}: {common!r}; both must be names. Put them in "
                'quotes, for example "yes": "positive".'
            )
    return [(str(own), str(common)) for own, common in value.items()]


Text = Annotated[str, BeforeValidator(_text)]
Place = Annotated[Path, BeforeValidator(_located)]
ColumnNames = Annotated[tuple[str, ...], BeforeValidator(_columns)]
LabelPairs = Annotated[
    tuple[tuple[LabelName, LabelName], ...], BeforeValidator(_label_pairs)
]


@dataclass(frozen=True, kw_only=True)
class SiteFile:
    """The settings of one site, in the order of its file. Paths are absolute.

    The docstrings of the fields stand as comments in the site.yaml that `init` writes.

    Raises:
        ValueError: a name, address, column list, delimiter or encoding is wrong. The text
            has key, value, rule and next step.
    """

    __pydantic_config__ = ConfigDict(
        extra="forbid", validate_default=True, use_attribute_docstrings=True
    )

    name: Text
    """Name under which the coordinator registers the site: small letters, digits, `_`, `-`."""
    server_address: Annotated[Text, Field(alias="server.address")]
    """`host:port` of the server, the only address this site connects to."""
    ca: Annotated[Place, Field(alias="server.ca")]
    """The server's certificate authority (PEM), from the coordinator. No other is trusted."""
    coordinator_key: Annotated[Place | None, Field(alias="server.signing_key")] = None
    """The coordinator's public signing key. A message that it has not signed is refused."""
    private_key: Annotated[Place, Field(alias="key.private")]
    """The site's private key, in OpenSSH form. Only its owner may read it; it never leaves."""
    public_key: Annotated[Place, Field(alias="key.public")]
    """The public half, for the coordinator."""
    signing_key: Annotated[Place | None, Field(alias="key.signing")] = None
    """The private key that signs this site's answers, in OpenSSH form. It never leaves."""
    data_path: Annotated[Place, Field(alias="data.path")]
    """Labelled texts: a CSV file with a header, JSONL or Parquet."""
    delimiter: Annotated[str | None, Field(alias="data.delimiter")] = None
    """Column separator of a CSV: one character in quotes, or tab; null is a comma."""
    encoding: Annotated[str | None, Field(alias="data.encoding")] = None
    """Encoding of a CSV or JSONL file, for example windows-1252; null is UTF-8."""
    text_columns: Annotated[ColumnNames, Field(alias="data.text_columns")]
    """Columns that form the text, joined with one space."""
    label_column: Annotated[Text, Field(alias="data.label_column")]
    """Column of the label."""
    labels: Annotated[LabelPairs, Field(alias="data.labels")] = ()
    """Pairs of own label name: the consortium's name. A label without a pair keeps its name."""
    drop_empty: Annotated[StrictBool, Field(alias="data.drop_empty")] = False
    """true leaves out examples without a text. With false, one of them stops the training."""
    opt_out_column: Annotated[
        str | None, Field(alias="data.opt_out_column", min_length=1)
    ] = None
    """Column that is true, 1 or yes if a text takes part in no round; null: no such column.
    The text still serves this site's own models."""
    test_fraction: Annotated[float, Field(alias="data.test_fraction", gt=0, lt=1)] = 0.2
    """Share of the texts of each label that is never trained on; the same in every run."""
    split_seed: Annotated[Seed, Field(alias="data.split_seed")] = 0
    """Number that decides which texts are held out; the same in every run."""
    token_cache: Annotated[Place | None, Field(alias="data.token_cache")] = None
    """Folder that keeps texts as token ids, which can be turned back into texts; null: none."""
    model: Place | None = None
    """Folder of the pre-trained model; null takes the model that the run names, from a hub."""
    device: Text = "auto"
    """Device that trains: auto, cpu, cuda, cuda:1 …"""
    state: Place = Path("state")
    """Folder for plans, journal and ledger. They must survive a restart."""
    invitation: Place | None = None
    """The coordinator's invitation; `check` compares versions and labels with it."""
    policy: Policy = field(default_factory=Policy)
    """Limits that no plan can exceed."""

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ValueError(
                f"name is {quoted(self.name)}; it must be 1 to 64 small letters, digits, _ "
                "or -. Use the name you agreed on with the coordinator, for example st_marys."
            )
        self.host_and_port  # noqa: B018 - raises ValueError
        if not self.text_columns or not all(self.text_columns):
            raise ValueError(
                "data.text_columns is empty; name at least one column, for example "
                "text_columns: [text]."
            )
        self.form  # noqa: B018 - raises ValueError

    @property
    def columns(self) -> Columns:
        """The columns to read, with the site's own names of labels."""
        target = label_column(self.label_column)
        return Columns(self.text_columns, target, self.opt_out_column)

    @property
    def renamed_columns(self) -> Columns:
        """The columns to read, with the names of labels that all sites share."""
        target = label_column(self.label_column, dict(self.labels))
        return Columns(self.text_columns, target, self.opt_out_column)

    @property
    def form(self) -> FileForm:
        """The form of the file of texts."""
        return FileForm(self.delimiter, self.encoding, said_in="site.yaml")

    def data_settings(self, settings: DataSettings) -> DataSettings:
        """Replace everything about files in a plan's settings by this site's own."""
        return replace(
            settings,
            reader="files",
            path=str(self.data_path),
            test_path=None,
            text_columns=self.text_columns,
            label_column=self.label_column,
            delimiter=self.delimiter,
            encoding=self.encoding,
            label_map=self.labels,
            drop_empty=self.drop_empty,
            opt_out_column=self.opt_out_column,
            test_fraction=self.test_fraction,
            split_seed=self.split_seed,
            token_cache=None if self.token_cache is None else str(self.token_cache),
        )

    @property
    def host_and_port(self) -> tuple[str, int]:
        """The server's address in its two parts; the host of an IPv6 address has no brackets."""
        host, _, port = self.server_address.rpartition(":")
        is_bracketed = host.startswith("[") and host.endswith("]")
        bare = host[1:-1] if is_bracketed else host
        is_ambiguous = ":" in host and not is_bracketed
        is_port = port.isdecimal() and 0 < int(port) < 65536
        if is_ambiguous or not is_port or not _HOST.fullmatch(bare):
            raise ValueError(
                f"server.address is {quoted(self.server_address)}; it must be host:port "
                "without a scheme, and an IPv6 address needs brackets. The coordinator "
                "gives it, for example fl.example.org:9092."
            )
        return bare, int(port)


# A name, an IPv4 address, or an IPv6 address with its zone.
_HOST = re.compile(r"[A-Za-z0-9._:%-]+")
_FILE: TypeAdapter[SiteFile] = TypeAdapter(SiteFile)
_SCHEMA = _FILE.json_schema()
_KEYS = tuple(_SCHEMA["properties"])
_POLICY: dict[str, Any] = _SCHEMA["$defs"]["Policy"]["properties"]
_KNOWN = (*_KEYS, *(f"policy.{key}" for key in _POLICY))
_HEADING = (
    "# The settings of this site. The file stays here; the coordinator gets the public key.",
    "# Relative paths start at the folder of this file.",
)


def load_site_file(path: Path) -> SiteFile:
    """Read a site file. Its relative paths start at its own folder.

    Raises:
        ValueError: the file is missing or not YAML, or a key or value is wrong.
    """
    path = Path(from_home(str(path))).absolute()
    if not path.is_file():
        raise ValueError(
            f"{path} does not exist. Make one with: wardround-site init --invitation "
            "FILE …, or set --site."
        )
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read: {error.strerror}. Check its permissions."
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{path} is not YAML ({reason}). Compare it with docs/hospital.md."
        ) from None
    try:
        values = _dotted(content)
        steps = _STEPS | {key: _known(key) for key in values if key not in _KEYS}
        return _FILE.validate_python(values, context=path.parent)
    except ValidationError as error:
        raise ValueError(f"{path}: {explain(error, _KNOWN, steps)}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _known(key: str) -> str:
    """Return the next step for an unknown key."""
    section = key.rpartition(".")[0]
    known = [name for name in _KEYS if name.rpartition(".")[0] == section]
    return f"Known: {', '.join(known)}. Correct or remove it."


def _dotted(content: Any) -> dict[str, Any]:
    """Return the values by dotted key. Raises ValueError if a section is no mapping."""
    top = _mapping(content)
    for key in top:
        # Otherwise it would lose against the same key in its section, without a word.
        if "." in str(key):
            raise ValueError(
                f"{key} is no key of a site file. Write it as a key of its section."
            )
    values = {str(key): value for key, value in top.items() if key not in _SECTIONS}
    if "policy" in values:
        values["policy"] = without_retired(values["policy"])
    for section in _SECTIONS:
        held = _mapping(top.get(section) or {}, section)
        values |= {f"{section}.{key}": value for key, value in held.items()}
    return values


def _mapping(content: Any, section: str = "") -> dict[Any, Any]:
    if isinstance(content, dict):
        return content
    prefix = f"{section}." if section else ""
    keys = [key.removeprefix(prefix) for key in _KEYS if key.startswith(prefix)]
    known = dict.fromkeys(key.partition(".")[0] for key in keys)
    raise ValueError(
        f"{section or 'the file'} must hold: {', '.join(known)}. "
        "Write them as key: value."
    )


def write_site_file(site: SiteFile, path: Path) -> None:
    """Write a site file that `load_site_file` reads back to an equal object.

    Paths below its folder become relative. The docstring of each key is its comment.
    """
    folder = path.absolute().parent
    lines = [*_HEADING]
    previous = ""
    for key, value in _values(site).items():
        section, _, name = key.rpartition(".")
        if section and section != previous:
            lines.append(f"{section}:")
        previous = section
        indent = "  " if section else ""
        lines += [f"{indent}# {line}" for line in wrap(_description(key), 96)]
        lines.append(f"{indent}{name}: {_as_yaml(value, folder)}")
    write_text(path, "\n".join(lines) + "\n")


def _values(site: SiteFile) -> dict[str, Any]:
    """Return every value by its dotted key, the policy's last."""
    values: dict[str, Any] = _FILE.dump_python(site, by_alias=True)
    policy = values.pop("policy")
    values["data.labels"] = dict(site.labels)
    return values | {f"policy.{key}": value for key, value in policy.items()}


def _description(key: str) -> str:
    facts = _SCHEMA["properties"].get(key) or _POLICY[key.removeprefix("policy.")]
    text: str = facts.get("description", "")
    return text.replace("None", "null")  # as YAML writes it


def _as_yaml(value: Any, folder: Path) -> str:
    if isinstance(value, Path):
        value = str(
            value.relative_to(folder) if value.is_relative_to(folder) else value
        )
    return json.dumps(value, ensure_ascii=False)  # JSON is YAML


def read_authority(site: SiteFile) -> Certificate:
    """Read the certificate of the server's authority. Raises ValueError if it is wrong."""
    step = "Get the file ca.crt from the coordinator and set server.ca to it."
    return read_certificate(site.ca, "server.ca", step)


def signing_keys(site: SiteFile) -> tuple[Ed25519PrivateKey, str]:
    """Return the site's private signing key, and the coordinator's public one.

    The public key is in OpenSSH form.

    Raises:
        ValueError: one of them is missing or cannot be read.
    """
    own = read_private_key(
        _key_file(site.signing_key, "key.signing"), "signing", "key.signing", NEW_KEYS
    )
    path = _key_file(site.coordinator_key, "server.signing_key")
    try:
        coordinator = check_public_line(path.read_text(encoding="ascii"), "signing")
    except (OSError, ValueError) as error:
        reason = (
            f"cannot be read: {error.strerror}" if isinstance(error, OSError) else error
        )
        raise ValueError(f"server.signing_key: {path}: {reason}. {NEW_KEYS}") from None
    return own, coordinator  # type: ignore[return-value]


def _key_file(path: Path | None, setting: str) -> Path:
    if path is None:
        raise ValueError(f"{setting} is missing in site.yaml. {NEW_KEYS}")
    return path
