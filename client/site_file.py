"""A site's own file, site.yaml: the facts about a site that no server sets."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from string import Template
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

from wardround.client.policy import Policy, without_retired
from wardround.common.credentials import (
    NEW_KEYS,
    Certificate,
    check_public_line,
    read_certificate,
    read_private_key,
)
from wardround.common.data.read import Columns
from wardround.common.explain import explain
from wardround.common.file_form import FileForm
from wardround.common.files import write_atomically
from wardround.common.settings import DataSettings
from wardround.common.words import quoted

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_NAME = re.compile(r"[a-z0-9_-]{1,64}")
_SECTIONS = ("server", "key", "data")
_STEPS = {
    "missing": "Set it.",
    "string_type": "Put it in quotes.",
    "bool_type": "Write true or false.",
    **dict.fromkeys(
        ("data.text_columns", "data.text_columns missing"),
        "Write for example text_columns: [subject, body].",
    ),
}


def _text(value: Any) -> Any:
    if value is None:
        raise PydanticCustomError("missing", "Nothing stands there")
    if not isinstance(value, str) or not value.strip():
        raise PydanticCustomError("string_type", "The value should be a text")
    return value


def _located(value: Any, info: ValidationInfo) -> Path:
    """The path a text stands for; a relative one is taken from the folder of the file."""
    folder: Any = info.context
    return Path(
        folder, value if isinstance(value, Path) else Path(_text(value)).expanduser()
    )


def _columns(value: Any) -> Any:
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise PydanticCustomError(
            "columns", "The value should be a list of column names"
        )
    return value


def _label_pairs(value: Any) -> list[tuple[str, str]]:
    if value is None or value == ():
        return []
    if not isinstance(value, dict):
        raise ValueError(
            f"data.labels is {value!r}; own names and the consortium's are needed in pairs. "
            'Write for example labels: {"kardio": cardiology}, or labels: {} where they are the same.'
        )
    for own, common in value.items():
        # YAML reads 1 as a number and yes as a truth value; a label that is a truth value was a slip.
        if (
            isinstance(own, bool)
            or isinstance(common, bool)
            or not isinstance(common, str | int)
        ):
            raise ValueError(
                f"data.labels holds {own!r}: {common!r}; both must be names. Put them in quotes, for example "
                '"yes": "positive".'
            )
    return [(str(own), str(common)) for own, common in value.items()]


Text = Annotated[str, BeforeValidator(_text)]
Place = Annotated[Path, BeforeValidator(_located)]
ColumnNames = Annotated[tuple[str, ...], BeforeValidator(_columns)]
LabelPairs = Annotated[tuple[tuple[str, str], ...], BeforeValidator(_label_pairs)]


@dataclass(frozen=True, kw_only=True)
class SiteFile:
    """What one site says about itself, in the order of its file. Paths are absolute.

    Raises:
        ValueError: a name, an address, a column list, a delimiter or an encoding that cannot be; names key,
            value, rule and next step.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", validate_default=True)

    name: Text
    """As the coordinator registers the site; small letters, digits, `_` and `-`."""
    server_address: Annotated[Text, Field(alias="server.address")]
    """`host:port` of the server's fleet port, the one address this site dials."""
    ca: Annotated[Place, Field(alias="server.ca")]
    """Certificate of the authority that signed the server's certificate, PEM. No other server is trusted."""
    coordinator_key: Annotated[Place | None, Field(alias="server.signing_key")] = None
    """The coordinator's public signing key: what is not signed under it does not count. `join` needs it."""
    private_key: Annotated[Place, Field(alias="key.private")]
    """The site's private key, OpenSSH form; readable by its owner only, and never sent anywhere."""
    public_key: Annotated[Place, Field(alias="key.public")]
    """The public half, which the coordinator registers."""
    signing_key: Annotated[Place | None, Field(alias="key.signing")] = None
    """The private key that signs this site's answers, OpenSSH form. `join` needs it."""
    data_path: Annotated[Place, Field(alias="data.path")]
    """Labelled texts: a CSV file with a header, JSONL or Parquet."""
    delimiter: Annotated[str | None, Field(alias="data.delimiter")] = None
    """Stands between the columns of a CSV: one character or `tab`; None is a comma."""
    encoding: Annotated[str | None, Field(alias="data.encoding")] = None
    """Encoding of a CSV or JSONL file, a Python codec; None is UTF-8."""
    text_columns: Annotated[ColumnNames, Field(alias="data.text_columns")]
    """Columns joined with one space to make the text."""
    label_column: Annotated[Text, Field(alias="data.label_column")]
    """Column that holds the label."""
    labels: Annotated[LabelPairs, Field(alias="data.labels")] = ()
    """Pairs (own label name, the consortium's name); a label that is not here keeps its name."""
    drop_empty: Annotated[StrictBool, Field(alias="data.drop_empty")] = False
    """Leave out examples without a text; otherwise one of them stops the training."""
    opt_out_column: Annotated[
        str | None, Field(alias="data.opt_out_column", min_length=1)
    ] = None
    """Column that is true where a text takes part in no round; it still serves this site's own models."""
    test_fraction: Annotated[float, Field(alias="data.test_fraction", gt=0, lt=1)] = 0.2
    """Share of the texts that is held out, evenly by label, and never trained on; the same in every run."""
    split_seed: Annotated[int, Field(alias="data.split_seed", ge=0, lt=2**63)] = 0
    """Draws which texts are held out; the same in every run."""
    token_cache: Annotated[Place | None, Field(alias="data.token_cache")] = None
    """Folder to keep the texts in as token ids, which can be read back as texts; None keeps none."""
    model: Place | None = None
    """Folder with the pre-trained model, where no hub is in reach; None takes what the run names."""
    device: Text = "auto"
    """Where to train: `auto`, `cpu`, `cuda`, `cuda:1` …"""
    state: Place = Path("state")
    """Folder where `join` notes what it must not forget."""
    invitation: Place | None = None
    """What the coordinator sent; `check` compares versions and labels with it."""
    policy: Policy = field(default_factory=Policy)
    """What no plan can exceed."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(
                f"name is {quoted(self.name)}; a site's name is made of up to 64 small letters, digits, _ "
                "and -. Take the name you agreed on with the coordinator, for example st_marys."
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
        return Columns(self.text_columns, self.label_column, self.opt_out_column)

    @property
    def form(self) -> FileForm:
        """How the file of texts is written."""
        return FileForm(self.delimiter, self.encoding, is_in_site_file=True)

    def data_settings(self, settings: DataSettings) -> DataSettings:
        """How this site reads its texts, under a plan's labels."""
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
        bracketed = host.startswith("[") and host.endswith("]")
        bare = host[1:-1] if bracketed else host
        ambiguous = (
            ":" in host and not bracketed
        )  # an IPv6 address has to stand in brackets
        is_port = port.isdecimal() and 0 < int(port) < 65536
        if not bare or ambiguous or not _HOST.fullmatch(bare) or not is_port:
            raise ValueError(
                f"server.address is {quoted(self.server_address)}; it must be host:port without a scheme. "
                "The coordinator gives it, for example fl.example.org:9092."
            )
        return bare, int(port)


# A name, an IPv4 address, or an IPv6 address with its zone; no sign that a terminal takes for a command.
_HOST = re.compile(r"[A-Za-z0-9._:%-]+")
_FILE: TypeAdapter[SiteFile] = TypeAdapter(SiteFile)
_KEYS = tuple(_FILE.json_schema()["properties"])
_FORM = Path(__file__).parent / "kit" / "files" / "site.yaml"
"""A template; it is no part of the bundle, so that it is read only where a kit is written."""


def load_site_file(path: Path) -> SiteFile:
    """Read a site file; its relative paths are taken from its own folder.

    Raises:
        ValueError: the file is missing or no YAML, a key is unknown or missing, or a value cannot be.
    """
    path = path.expanduser().absolute()
    if not path.is_file():
        raise ValueError(
            f"{path} does not exist. Make one with: wardround-site init --invitation FILE …, or set --site."
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
        return _FILE.validate_python(_dotted(content), context=path.parent)
    except ValidationError as error:
        steps = _STEPS | {
            "unexpected_keyword_argument": f"Known: {', '.join(_KEYS)}. Correct or remove it."
        }
        raise ValueError(f"{path}: {explain(error, _KEYS, steps)}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _dotted(content: Any) -> dict[str, Any]:
    """The values by dotted key. Raises ValueError where the file, or a section of it, is no mapping."""
    top = _mapping(content)
    for key in top:
        if (
            "." in str(key)
        ):  # else it would pass for what stands in a section, and lose against it in silence
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
    keys = (
        key.removeprefix(f"{section}.").partition(".")[0]
        for key in _KEYS
        if key.startswith(section)
    )
    known = ", ".join(dict.fromkeys(keys))
    raise ValueError(
        f"{section or 'the file'} must hold: {known}. Write them as key: value."
    )


def write_site_file(site: SiteFile, path: Path) -> None:
    """Write a site file that `load_site_file` reads back to an equal object; paths below it are relative."""
    folder = path.absolute().parent

    def written(value: Any) -> str:
        if isinstance(value, Path):
            value = str(
                value.relative_to(folder) if value.is_relative_to(folder) else value
            )
        return json.dumps(value, ensure_ascii=False)  # JSON is YAML

    values = asdict(site.policy) | vars(site)
    values |= {"labels": dict(site.labels), "policy_labels": site.policy.labels}
    del values["policy"]
    form = Template(_FORM.read_text(encoding="utf-8"))
    text = form.substitute({name: written(value) for name, value in values.items()})
    write_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))


def read_authority(site: SiteFile) -> Certificate:
    """The certificate of the server's authority. Raises ValueError if the file does not hold one."""
    step = "Get the file ca.crt from the coordinator and set server.ca to it."
    return read_certificate(site.ca, "server.ca", step)


def signing_keys(site: SiteFile) -> tuple[Ed25519PrivateKey, str]:
    """The site's private signing key, and the coordinator's public one in OpenSSH form.

    Raises:
        ValueError: one of them is not there, or is no such key.
    """
    for setting, path in (
        ("key.signing", site.signing_key),
        ("server.signing_key", site.coordinator_key),
    ):
        if path is None:
            raise ValueError(f"{setting} is missing in site.yaml. {NEW_KEYS}")
    assert site.signing_key is not None
    assert site.coordinator_key is not None
    own = read_private_key(site.signing_key, "signing", "key.signing", NEW_KEYS)
    try:
        coordinator = check_public_line(
            site.coordinator_key.read_text(encoding="ascii"), "signing"
        )
    except OSError as error:
        raise ValueError(
            f"server.signing_key: {site.coordinator_key} cannot be read: {error.strerror}. {NEW_KEYS}"
        ) from None
    except ValueError as error:
        raise ValueError(
            f"server.signing_key: {site.coordinator_key}: {error}. {NEW_KEYS}"
        ) from None
    return own, coordinator  # type: ignore[return-value]
