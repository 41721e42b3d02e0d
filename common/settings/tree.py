"""All settings of one run: made from Hydra's tree or from JSON, and written as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, is_dataclass, replace
from functools import cache
from operator import attrgetter
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from pydantic import (
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    TypeAdapter,
    ValidationError,
)

from wardround.common.explain import explain
from wardround.common.settings import rules
from wardround.common.settings.data import (
    DataSettings,
    PartitionSettings,
    ProtocolSettings,
)
from wardround.common.settings.earlier import with_earlier
from wardround.common.settings.engine import EngineSettings
from wardround.common.settings.evaluation import (
    EvaluationSettings,
    PersonalisationSettings,
)
from wardround.common.settings.model import AdapterSettings, ModelSettings
from wardround.common.settings.steps import STEPS
from wardround.common.settings.strategy import StrategySettings, TransformSettings
from wardround.common.settings.train import TrainSettings
from wardround.common.settings.values import Seed, file_name

NOT_IDENTITY = frozenset(
    {
        "num_rounds",
        "run_dir",
        "arm",
        "recipe",
        "model.sha256",
        "engine",
        "evaluation.target_accuracy",
        "evaluation.patience",
        "data.token_cache",
        "strategy.ask_again_seconds",
        "train.on_collapse",
        "train.collapse_rounds",
        "train.gradient_checkpointing",
        # They act after the last round; opt_out_clients acts in every round.
        "personalisation.name",
        "personalisation.epochs",
        "personalisation.learning_rate",
        "personalisation.gate_hidden",
        "personalisation.everyone",
        "personalisation.keep_models",
    }
)
"""Keys and groups that a resumed run may change: its length and its machine, not its numbers."""
_PLACES = (
    "path",
    "test_path",
    "hub_name",
    "token_cache",
    "delimiter",
    "encoding",
    "opt_out_column",
)
"""Keys of `data` that describe files of the coordinator's machine."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings of one run. A command makes them with Hydra, everything else from JSON.

    Raises:
        ValueError: a value is out of range, or two settings contradict each other. The text
            names the key, the value, the rule and the next step.
    """

    # It holds for the groups too.
    __pydantic_config__ = ConfigDict(extra="forbid")

    model: ModelSettings
    data: DataSettings
    protocol: ProtocolSettings
    partition: PartitionSettings
    train: TrainSettings
    adapters: AdapterSettings
    transforms: TransformSettings
    strategy: StrategySettings
    evaluation: EvaluationSettings
    engine: EngineSettings
    personalisation: PersonalisationSettings
    num_clients: PositiveInt
    """K, the number of clients; all of them take part in every round."""
    num_rounds: NonNegativeInt
    """Communication rounds; 0 only evaluates the initial model."""
    seed: Seed
    """Root of every random stream of the run."""
    recipe: Annotated[str, Field(pattern="^([a-z_]+@[0-9]+)?$")]
    """Name and version of the recipe that the run began with, such as `fine_tune@1`; or empty."""
    arm: Annotated[str, Field(pattern=r"^([A-Za-z0-9]([A-Za-z0-9._]*[A-Za-z0-9])?)?$")]
    """Name of the sweep's arm that the run belongs to, part of folder names; or empty."""
    run_dir: str
    """Folder that the run writes."""
    device: str
    """`auto`, `cpu`, `cuda`, `cuda:1`, `mps` …; `auto` is the first accelerator, or the CPU."""
    precision: Literal["fp32", "bf16"]
    """`bf16` runs the forward pass under autocast; weights and updates stay fp32."""
    attention: Literal["auto", "sdpa", "eager"]
    """How attention is computed. `auto` is the fastest known way for device and precision; for
    fp32 it is always the model's own."""
    threads: PositiveInt | Literal["auto"]
    """CPU threads for the arithmetic; part of a run's identity, since sums depend on it."""

    def __post_init__(self) -> None:
        rules.check_rounds(self.train, self.strategy, self.num_clients, self.num_rounds)
        rules.check_model(self.model, self.adapters, self.precision)
        rules.check_opt_out(
            self.personalisation,
            self.engine,
            self.data,
            self.partition,
            self.num_clients,
            self.strategy.min_sites,
        )
        rules.check_personalisation(
            self.personalisation.name, self.evaluation, self.engine, self.model
        )
        rules.check_share(self.strategy.max_share, self.num_taking_part)
        rules.check_control_variates(self.train, self.strategy, self.transforms)
        if not self.engine.is_simulated:
            self.declared_labels()
        rules.check_places(self.data, self.engine, self.evaluation)

    @property
    def cell(self) -> str:
        """The run's name in a sweep, a folder name: `<model>-<data>[-<arm>]-k<K>-s<seed>`."""
        names = [self.model.short_name, self.data.short_name]
        if self.arm:
            names.append(self.arm)
        return "-".join([*names, f"k{self.num_clients}", f"s{self.seed}"])

    @property
    def num_taking_part(self) -> int:
        """Number of clients that have not opted out."""
        return self.num_clients - len(set(self.personalisation.opt_out_clients))

    def declared_labels(self) -> tuple[str, ...]:
        """Return `data.label_names`, which sites need. Raises ValueError if it is not set."""
        if self.data.label_names is None:
            raise ValueError(
                "data.label_names is missing; every site reads its own texts, so the "
                "labels of all sites must be named, always in this order. Set "
                "data.label_names=[...]."
            )
        return self.data.label_names

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain values, ready for JSON."""
        return asdict(self)

    def to_json(self) -> str:
        """Return one line of JSON with sorted keys; `from_json` reads it back."""
        return json.dumps(self.to_dict(), sort_keys=True)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Settings:
        """Make checked settings of nested values, of this version or an earlier one.

        Raises:
            ValueError: one line for each finding, with its key.
        """
        try:
            return _ADAPTER.validate_python(with_earlier(values))
        except ValidationError as error:
            raise ValueError(explain(error, known_keys(), STEPS)) from None

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """Read what `to_json` wrote. Raises ValueError as `from_dict` does."""
        return cls.from_dict(json.loads(text))

    def for_sites(self) -> Settings:
        """Return the settings that clients receive; simulated ones share this machine's files."""
        return self if self.engine.is_simulated else self.without_places()

    def without_places(self) -> Settings:
        """Return the same settings without any place on the coordinator's machine."""
        name = self.model.name
        if self.model.source != "package":
            name = _hub_id(name)
        nowhere: dict[str, Any] = dict.fromkeys(_PLACES)
        return replace(
            self,
            run_dir="",
            data=replace(self.data, reader="hub", **nowhere),
            model=replace(self.model, name=name, label=self.model.short_name),
            engine=replace(self.engine, address=None),
        )

    def flat(self) -> dict[str, object]:
        """Return every setting by its dotted key: `train.batch_size`, `seed` …"""
        return {
            key: attrgetter(key)(self) for key in known_keys() if not _TREE.get(key)
        }

    def identity(self) -> dict[str, object]:
        """Return the settings that a run's numbers depend on, by dotted key."""
        return {
            key: value
            for key, value in self.flat().items()
            if not NOT_IDENTITY & {key, key.split(".")[0]}
        }

    def differences(self, other: Settings) -> list[str]:
        """Return `key: ours -> theirs` for each difference that changes a run's numbers."""
        theirs = other.identity()
        return [
            f"{key}: {value!r} -> {theirs[key]!r}"
            for key, value in self.identity().items()
            if value != theirs[key]
        ]


_ADAPTER = TypeAdapter(Settings)
_TREE = {
    name: tuple(get_type_hints(kind)) if is_dataclass(kind) else ()
    for name, kind in get_type_hints(Settings).items()
}
"""Names of the settings of each group; () for a setting of no group."""


def known_keys() -> list[str]:
    """Return the dotted names of every setting and every group."""
    keys = []
    for group, members in _TREE.items():
        keys.append(group)
        keys.extend(f"{group}.{member}" for member in members)
    return keys


@cache
def text_depths() -> dict[str, int]:
    """Return the settings that are texts, by dotted key.

    0: one text, 1: a list of texts, 2: a list of such lists.
    """
    found: dict[str, int] = {}
    for group, kind in get_type_hints(Settings).items():
        members = {group: kind}
        if is_dataclass(kind):
            hints = get_type_hints(kind)
            members = {f"{group}.{name}": hint for name, hint in hints.items()}
        for key, hint in members.items():
            depth = _text_depth(hint)
            if depth is not None:
                found[key] = depth
    return found


def _text_depth(hint: Any) -> int | None:
    """Return the depth of a type, see `text_depths`; None for other types."""
    if hint is str:
        return 0
    inner = {
        _text_depth(part) for part in get_args(hint) if part not in (NoneType, Ellipsis)
    }
    if len(inner) != 1:
        return None
    (depth,) = inner
    if depth is not None and get_origin(hint) is tuple:
        return depth + 1
    return depth


def _hub_id(name: str) -> str:
    """Return a hub id unchanged, and only the last part of a folder's path."""
    is_hub_id = name.count("/") <= 1 and not name.startswith((".", "/", "~"))
    return name if is_hub_id else file_name(name)
