"""Every setting of a run, one frozen group each; checked at birth, carried as JSON.

`conf/` owns the values that a run begins with. A value that stands here is what runs did before its key was
there: run folders of earlier versions are read with it.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, is_dataclass, replace
from operator import attrgetter
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import (
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    ValidationError,
)

from wardround.common.explain import explain
from wardround.common.file_form import FileForm

# What a resumed run may change: how far it goes and the machine it runs on, never its numbers.
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
        # After the last round; who takes part in none (opt_out_clients) is another matter.
        *(
            f"personalisation.{key}"
            for key in ("name", "epochs", "learning_rate", "gate_hidden")
        ),
        *(f"personalisation.{key}" for key in ("everyone", "keep_models")),
    }
)


Bound = Annotated[float, Field(gt=0, allow_inf_nan=False)]
"""Of a wait, in seconds."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True)
class ModelSettings:
    """Which classifier is fine-tuned."""

    label: str
    """Short name used in folder and figure names, for example `bert`."""
    source: Literal["hub", "package"]
    """`hub`: a model id or a local folder; `package`: a folder inside an installed package."""
    name: str
    """Hub id, local folder, or `package:folder` for source `package`."""
    revision: str | None
    """Commit, tag or branch on the hub; None is the default branch."""
    head: Literal["own", "distilbert"]
    """Row of HEADS in `common/model/heads.py`: the architecture's own, or DistilBERT's on a BERT encoder."""
    activation: Literal["own", "abu"] = "own"
    """`abu`: adaptive blending units in place of activations (`common/model/blend.py`)."""
    abu_where: Literal["head", "all"] = "head"
    """In the head alone, or in every feed-forward layer too."""
    abu_normalisation: Literal["none", "sum", "abs", "positive", "softmax"] = "none"
    """How the weights of a blend are kept in bounds."""
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    """SHA-256 that the file of weights must have; None takes any. `wardround submit` fills it in."""

    def __post_init__(self) -> None:
        _require(
            (self.activation, self.abu_normalisation) != ("abu", "softmax")
            or self.abu_where == "head",
            f"model.abu_normalisation is softmax with model.abu_where={self.abu_where}; no softmax gives all "
            "weight to one function, so that pre-trained layers would not begin as themselves. Set "
            "model.abu_where=head, or another normalisation.",
        )

    @property
    def short_name(self) -> str:
        """The label as a file name: no path of this machine is left in it."""
        return _folder_safe(self.label)


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Which labelled texts are learned, and how they are read."""

    name: str
    """Short name used in folder and figure names, for example `ag_news`."""
    reader: Literal[
        "hub", "bbc_package", "imdb_folders", "zhang_csv", "spooky_csv", "files"
    ]
    """Row of the table of readers in `common/data/texts.py`."""
    hub_name: str | None
    """Data set id on the hub, or a local folder in hub layout (reader `hub`)."""
    hub_revision: str | None
    """Commit, tag or branch on the hub; None is the default branch."""
    path: str | None
    """Local copy: a folder in the form of its source, or a CSV, JSONL or Parquet file."""
    local_reader: Literal["imdb_folders", "zhang_csv", "spooky_csv", "files"] | None
    """The reader that takes over from `hub` when `path` is set."""
    test_path: str | None
    """Test file for reader `files`; None holds out `test_fraction` of the training texts."""
    text_columns: Annotated[tuple[str, ...], Field(min_length=1)]
    """Columns joined with one space to make the text."""
    label_column: str
    """Column that holds the label."""
    delimiter: str | None = None
    """Stands between the columns of a CSV (reader `files`): one character or `tab`; None is a comma."""
    encoding: str | None = None
    """Encoding of CSV and JSONL files (reader `files`), a Python codec; None is UTF-8."""
    opt_out_column: str | None = None
    """Column of training files (reader `files`) that is true where a text takes part in no round; None for
    no such texts."""
    label_names: tuple[str, ...] | None
    """Labels in the order of their numbers; None takes the sorted labels found in training."""
    test_fraction: Annotated[float, Field(gt=0, lt=1)]
    """Share of the texts held out where the source has no test set, in (0, 1)."""
    split_seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    """Draws what is held out; None is `seed`. A site's is its own, the same in every run."""
    train_examples: PositiveInt | None
    """Use this many training texts, drawn evenly by seed; None uses all."""
    test_examples: PositiveInt | None
    """Use this many test texts, drawn evenly by seed; None uses all."""
    max_words: PositiveInt | None
    """Keep this many words of each text, cut at white space; None keeps all."""
    drop_empty: bool
    """Leave out examples whose text is empty or missing; otherwise they are an error."""
    label_map: tuple[tuple[str, str], ...]
    """Pairs (name in the file, name in `label_names`), where a file names labels its own way."""
    token_cache: Annotated[str, Field(pattern="^auto$|/")] | None
    """Folder of token ids to keep from run to run: `auto` is the user's own cache, None keeps none."""
    budget_rounds: NonNegativeInt
    """Rounds at which accuracies are compared (Figure 1 of the paper)."""
    second_threshold_rounds: int
    """Rounds after which a run that has not reached its target is a failure (Figure 2)."""

    @property
    def short_name(self) -> str:
        """The name as a file name."""
        return _folder_safe(self.name)

    @property
    def form(self) -> FileForm:
        """How the files of reader `files` are written."""
        return FileForm(self.delimiter, self.encoding)

    def __post_init__(self) -> None:
        self.form  # noqa: B018 - checked at birth
        for key in ("delimiter", "encoding", "opt_out_column"):
            value = getattr(self, key)
            _require(
                value is None or "files" in (self.reader, self.local_reader),
                f"data.{key} is {value!r}, but it is about files of your own; reader '{self.reader}' knows "
                f"how its source is written. Set data=files, or data.{key}=null.",
            )
        _require(
            self.second_threshold_rounds >= self.budget_rounds,
            f"data.second_threshold_rounds is {self.second_threshold_rounds}, below "
            f"data.budget_rounds ({self.budget_rounds}).",
        )


@dataclass(frozen=True)
class ProtocolSettings:
    """The named set of switches this run started from."""

    name: str
    """`paper`, `authors_code` or `modern`; switches may have been turned alone since."""
    ag_news_columns: tuple[str, ...]
    """Columns of AG News that make its text (the authors' code leaves the title out)."""


@dataclass(frozen=True)
class PartitionSettings:
    """How the training examples are dealt to simulated clients."""

    name: Literal["iid", "dirichlet", "label_sorted", "by_site"]
    """Row of the table in `common/data/partitions.py`."""
    alpha: PositiveFloat | None
    """Concentration of the Dirichlet distribution; small is skewed (`dirichlet` only)."""
    drop_remainder: bool
    """Make all parts equal by leaving out N mod K examples (the authors' code)."""

    def __post_init__(self) -> None:
        _require(
            self.name != "dirichlet" or self.alpha is not None,
            "partition.alpha is None; a dirichlet partition needs a positive number.",
        )
        _require(
            not self.drop_remainder or self.name in ("iid", "label_sorted"),
            f"partition.drop_remainder=true asks for equal parts, which partition '{self.name}' does not "
            "make. Set partition.drop_remainder=false.",
        )


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """What one client does in one round."""

    local_epochs: PositiveInt
    """Passes over the client's own examples, E in the paper."""
    batch_size: PositiveInt
    """Examples per optimiser step, B in the paper."""
    learning_rate: PositiveFloat
    """Step size; the peak where a schedule is set."""
    max_length: Annotated[int, Field(ge=3)]
    """Tokens per text; longer texts are cut."""
    optimizer: Literal["sgd", "adamw"]
    """Row of the table in `common/model/train.py`."""
    weight_decay: Annotated[float, Field(ge=0)]
    """Decoupled for adamw, L2 for sgd."""
    schedule: Literal["constant", "linear"]
    """`linear`: warm up, then decay to zero over `schedule_rounds` of the run."""
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)]
    """Share of the schedule spent warming up (`linear` only)."""
    schedule_rounds: NonNegativeInt | None
    """Rounds a `linear` schedule spans; a run that goes on past it stays at its end."""
    max_grad_norm: PositiveFloat | None
    """Clip the gradient's L2 norm to this; None does not clip."""
    shuffle: bool
    """New order of examples each epoch; False repeats one order for ever (the authors' code)."""
    drop_last: bool
    """Leave out the short last batch of an epoch (the authors' code)."""
    last_batch: Literal["even", "short"] = "short"
    """How an epoch is cut into batches. `short`: batches of `batch_size`, and a shorter last one with the
    rest. `even`: as many batches as `batch_size` goes into the epoch; their sizes differ by one at most."""
    frozen: Literal["none", "embeddings"] = "none"
    """`embeddings`: what turns tokens into vectors is not trained and does not travel."""
    attention_mask: bool
    """Hide padding from attention; False attends to it (the authors' code)."""
    padding: Literal["max_length", "longest"]
    """Pad each batch to `max_length` tokens, or to its longest text."""
    micro_batches: Literal["none", "by_length"]
    """Row of `common/data/batches.py`: work through a batch at once, or in parts of like length."""
    group_by_length: bool
    """Put texts of like length into the same batch; another choice of batches than the paper's."""
    head_init: Literal["shared", "shared_shrunk", "per_site", "per_site_rescaled"]
    """One new head for all, or one drawn by each client in round 1 (the authors' code). `shared_shrunk`: one
    head over sqrt(K), the norm that a mean of K drawn heads has. `per_site_rescaled`: the mean of round 1
    gets the norm back that the heads had."""
    head_learning_rate: PositiveFloat | None
    """Step size of the new head alone; None is `learning_rate`."""
    head_warmup_rounds: NonNegativeInt
    """First rounds in which only the new head is trained, and the encoder stands still."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, more time."""
    proximal_mu: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Pull of the round's global model on every weight that is trained, mu of FedProx (Li et al. 2020); 0
    is FedAvg."""
    control_variates: bool = False
    """Correct each step by how the client's mean step differs from all clients' (SCAFFOLD)."""
    on_collapse: Literal["warn", "stop"]
    """When the run has collapsed: say so and go on, or end it."""
    collapse_rounds: PositiveInt
    """Rounds in a row after which predictions in one class, accuracy at chance or an exploded loss are a
    collapse."""

    @property
    def draws_heads(self) -> bool:
        """Whether each client draws a head of its own in round 1."""
        return self.head_init.startswith("per_site")

    def __post_init__(self) -> None:
        _require(
            self.schedule == "constant" or self.schedule_rounds is not None,
            f"train.schedule_rounds is missing; schedule '{self.schedule}' has to know its length.",
        )
        _require(
            self.attention_mask or self.padding == "max_length",
            "train.attention_mask=false with train.padding=longest would make a text's logits depend "
            "on its neighbours. Set train.padding=max_length.",
        )
        _require(
            self.attention_mask or self.micro_batches == "none",
            f"train.micro_batches={self.micro_batches} pads less, which train.attention_mask=false does not "
            "allow: there the model sees the padding. Set train.micro_batches=none.",
        )
        _require(
            self.last_batch == "short" or not self.drop_last,
            "train.drop_last=true leaves out the short last batch, and train.last_batch=even makes no short "
            "batch. Set train.drop_last=false, or train.last_batch=short.",
        )
        _require(
            not self.group_by_length
            or self.padding == "longest"
            or self.micro_batches == "by_length",
            "train.group_by_length=true saves nothing while every batch is padded to train.max_length. Set "
            "train.padding=longest or train.micro_batches=by_length.",
        )


@dataclass(frozen=True)
class AdapterSettings:
    """What is trained: the whole model, or small matrices beside its layers, and the new head."""

    name: Literal["none", "lora", "lora_ffa"] = "none"
    """`lora`: both matrices of each pair; `lora_ffa`: the second alone, whose mean is exact."""
    rank: PositiveInt = 8
    """Rows of the first matrix, and columns of the second."""
    alpha: PositiveFloat = 16.0
    """Their product counts alpha / rank times."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of a layer's inputs that the adapter does not see in training."""
    targets: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Last parts of the names of the linear layers to adapt; None takes those of queries and values."""
    base_precision: Literal["fp32", "bf16"] = "fp32"
    """Of the frozen matrices in memory; adapters and head stay fp32."""


@dataclass(frozen=True)
class TransformSettings:
    """What is done to a client's update on its way to the server."""

    name: Literal["exact", "bf16", "fp16", "int8"]
    """Row of the table in `common/wire/forms.py`; all but `exact` lose something."""
    error_feedback: bool
    """Add what rounding lost to the client's next update (of no account for `exact`)."""


@dataclass(frozen=True, kw_only=True)
class StrategySettings:
    """How the server averages and how long it waits."""

    weighting: Literal["examples", "uniform"]
    """Weight of an update in the mean: its example count, or one (the authors' code)."""
    optimizer: Literal["sgd", "adam", "yogi", "adagrad"] = "sgd"
    """What makes the server's step of the mean update: a row of the table in `server/rounds/server_step.py`."""
    server_learning_rate: PositiveFloat
    """How far the server goes from the old global model towards the mean; 1 is FedAvg with `sgd`. For the
    others about the largest step of a single weight."""
    server_momentum: Annotated[float, Field(ge=0, lt=1)]
    """Share of the last step that is added to the next (FedAvgM, Hsu et al. 2019); 0 is FedAvg (`sgd`)."""
    beta_1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay of the mean of updates (`adam`, `yogi`, `adagrad`)."""
    beta_2: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Decay of the mean of squared updates (`adam`, `yogi`)."""
    tau: PositiveFloat = 1e-3
    """Added to the root of the squares: weights that move less are moved as by `sgd` (all but `sgd`)."""
    min_sites: PositiveInt
    """Fewest updates a round may be closed with when `on_missing` is `continue`."""
    wait_seconds: Bound
    """Longest wait for the sites to connect at the start of the run."""
    round_timeout_seconds: Bound
    """Longest wait for the updates of one round."""
    ask_again_seconds: Bound = 300.0
    """A site that has not answered for so long is asked again in the same round (deployments)."""
    on_missing: Literal["fail", "continue"]
    """When a client refuses or stays away: end the run, or go on while `min_sites` take part."""
    max_share: PositiveFloat | None = None
    """Largest share of one client in the mean, of the clients there are; None bounds nothing."""
    max_update_norm: PositiveFloat | None = None
    """Largest L2 norm of an update (trained minus global tensors); None bounds nothing."""
    max_norm_ratio: PositiveFloat | None = None
    """The same as a multiple of the median norm of what earlier rounds took; None bounds nothing."""
    on_excess: Literal["refuse", "clip"] = "refuse"
    """An update beyond its largest norm, or with more examples than its site is registered for: leave it out,
    or shrink it, or its weight, to the bound."""

    def __post_init__(self) -> None:
        _require(
            self.optimizer == "sgd" or self.server_momentum == 0,
            f"strategy.server_momentum is {self.server_momentum}, but strategy.optimizer={self.optimizer} "
            "has strategy.beta_1 for it. Set strategy.server_momentum=0.",
        )
        _require(
            self.optimizer == "sgd" or self.server_learning_rate < 1,
            f"strategy.server_learning_rate is {self.server_learning_rate}, and strategy.optimizer="
            f"{self.optimizer} moves a weight by about as much in one round; it must be less than 1. Set "
            "strategy.server_learning_rate=0.001, say.",
        )
        _require(
            self.max_norm_ratio is None or self.max_update_norm is not None,
            f"strategy.max_norm_ratio is {self.max_norm_ratio}, which needs earlier rounds, and round 1 has "
            "none. Set strategy.max_update_norm too.",
        )


@dataclass(frozen=True)
class EvaluationSettings:
    """How the global model is measured after each round."""

    where: Literal["server", "sites"]
    """`server`: on a central test set; `sites`: each site counts on a part it holds out, counts are added."""
    mode: Literal["test", "parts"]
    """`test`: over all test examples; `parts`: mean over K parts of mean batch accuracy (authors)."""
    batch_size: PositiveInt
    """Examples per forward pass; in `parts` mode it also weighs the last batch."""
    target_accuracy: Annotated[float, Field(ge=0, le=1)] | None
    """Stop the run at the first round that reaches this accuracy; None never stops early."""
    validation_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the held-out texts that chooses the best model and is not reported; 0: the last is kept."""
    patience: PositiveInt | None = None
    """Stop after so many rounds in a row without a better model on the validation part; None never does."""

    def __post_init__(self) -> None:
        _require(
            self.patience is None or self.validation_fraction > 0,
            f"evaluation.patience is {self.patience}, but no texts choose the best model. Set "
            "evaluation.validation_fraction=0.2, or evaluation.patience=null.",
        )
        _require(
            self.where == "server" or self.mode == "test",
            "evaluation.mode=parts cuts a central test set, which evaluation.where=sites does not have. "
            "Set evaluation.mode=test.",
        )


@dataclass(frozen=True)
class PersonalisationSettings:
    """What each client makes of the run's model, after the last round and for itself: nothing is sent."""

    name: Literal["none", "mixture", "fine_tuned", "local", "all"] = "none"
    """Which models a client trains and compares with the global one; `all` are three (docs/personal.md)."""
    epochs: PositiveInt = 5
    """Passes over the client's own texts; what did best on its validation part after one of them is kept."""
    learning_rate: PositiveFloat | None = None
    """Step size; None is `train.learning_rate`."""
    gate_hidden: PositiveInt = 32
    """Units of the mixture's gate, between the encoder's state and the weight."""
    everyone: bool = False
    """Measure each client's models on the test texts of all clients too (simulations)."""
    keep_models: bool = False
    """Keep the chosen models in the run folder, `personal/<client>/` (simulations)."""
    opt_out_clients: tuple[NonNegativeInt, ...] = ()
    """Numbers of simulated clients that take part in no round, and still make personal models."""


@dataclass(frozen=True)
class EngineSettings:
    """Where the clients of a simulation run."""

    name: Literal["inprocess", "ray", "deployment"]
    """A row of the table in `server/engines/simulate.py`, or `deployment`: real sites over gRPC."""
    num_cpus: Annotated[float, Field(ge=0)]
    """CPUs reserved for one client at a time (`ray`)."""
    num_gpus: Annotated[float, Field(ge=0)]
    """GPUs reserved for one client at a time; fractions share a GPU (`ray`)."""
    address: str | None
    """Address of a running Ray cluster, or `auto`; None starts one on this machine (`ray`)."""
    workers: PositiveInt | Literal["auto"]
    """Processes that train side by side (`inprocess`); 1 trains in the simulation's own process."""

    def __post_init__(self) -> None:
        _require(
            self.num_cpus + self.num_gpus > 0,
            "engine.num_cpus and engine.num_gpus are both 0; a client needs some of either.",
        )

    @property
    def is_simulated(self) -> bool:
        """Whether the clients are made up by this project, and share this machine's files."""
        return self.name != "deployment"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One run, whole. Built from Hydra at a door, or from JSON anywhere else.

    Raises:
        ValueError: a value is out of range or two settings contradict each other; the text names
            the key, the value, the rule and the next step.
    """

    # The groups take it over. What is written holds every key.
    __pydantic_config__ = ConfigDict(
        extra="forbid", json_schema_serialization_defaults_required=True
    )

    model: ModelSettings
    data: DataSettings
    protocol: ProtocolSettings
    partition: PartitionSettings
    train: TrainSettings
    adapters: AdapterSettings = AdapterSettings()
    transforms: TransformSettings
    strategy: StrategySettings
    evaluation: EvaluationSettings
    engine: EngineSettings
    personalisation: PersonalisationSettings = PersonalisationSettings()
    num_clients: PositiveInt
    """K: clients that take part in every round."""
    num_rounds: NonNegativeInt
    """Communication rounds; 0 evaluates the initial model only."""
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    """Root of every random stream of the run."""
    recipe: Annotated[str, Field(pattern="^([a-z_]+@[0-9]+)?$")] = ""
    """Name and version of the recipe that the run began with, as `fine_tune@1`; empty for no recipe."""
    arm: Annotated[str, Field(pattern=r"^([A-Za-z0-9]([A-Za-z0-9._]*[A-Za-z0-9])?)?$")]
    """Name of the arm of a sweep that the run belongs to, part of folder names; empty for none."""
    run_dir: str
    """Folder the run writes."""
    device: str
    """`auto`, `cpu`, `cuda`, `cuda:1`, `mps` …; `auto` takes the first accelerator there is."""
    precision: Literal["fp32", "bf16"]
    """`bf16` runs the forward pass under autocast; weights and updates stay fp32."""
    attention: Literal["auto", "sdpa", "eager"]
    """How attention is computed; `auto` is the fastest known for device and precision, and for fp32 always
    the model's own."""
    threads: PositiveInt | Literal["auto"]
    """CPU threads for the arithmetic; part of a run's identity, since sums depend on it."""

    def __post_init__(self) -> None:
        _require(
            self.strategy.min_sites <= self.num_clients,
            f"strategy.min_sites is {self.strategy.min_sites} but num_clients is {self.num_clients}; a "
            "round can never have more updates than clients.",
        )
        _require(
            self.train.schedule_rounds != 0 or self.num_rounds == 0,
            f"train.schedule_rounds is 0 with num_rounds={self.num_rounds}: no step would move a weight. Set "
            "it to num_rounds.",
        )
        _require(
            self.adapters.base_precision == "fp32"
            or (self.adapters.name != "none" and self.precision == "bf16"),
            f"adapters.base_precision is bf16, with adapters.name={self.adapters.name} and precision="
            f"{self.precision}; it needs adapters, and a forward pass in bf16. Set adapters=lora and "
            "precision=bf16, or adapters.base_precision=fp32.",
        )
        _require(
            self.model.activation == "own" or self.adapters.name == "none",
            f"model.activation is abu with adapters.name={self.adapters.name}; adapters are merged into "
            "plain models, which have no blends. Set adapters=none, or model.activation=own.",
        )
        self._check_opt_out()
        self._check_personalisation()
        share, taking_part = self.strategy.max_share, self.num_taking_part
        _require(
            share is None or share * taking_part >= 1,
            f"strategy.max_share is {share}, but with num_clients={taking_part} somebody has at least "
            f"1/{taking_part} of the mean. Raise it, or set it to null.",
        )
        if self.train.control_variates:
            for key, value, why in _WITH_CONTROL_VARIATES:
                found = attrgetter(key)(self)
                _require(
                    found == value,
                    f"{key} is {found!r}, which does not go with train.control_variates=true: {why}. Set "
                    f"{key}={value}, or train.control_variates=false.",
                )
        if not self.engine.is_simulated:
            self.declared_labels()  # each site would number the labels that it finds in its own way
        if self.engine.is_simulated or self.evaluation.where == "server":
            local = ("imdb_folders", "zhang_csv", "spooky_csv", "files")
            _require(
                self.data.reader not in local or self.data.path is not None,
                f"data.path is missing; reader '{self.data.reader}' reads a local copy. Set data.path=...",
            )

    def _check_opt_out(self) -> None:
        """Nobody's wish is passed over in silence: what cannot be heeded here is refused."""
        out = self.personalisation.opt_out_clients
        _require(
            not out or self.engine.is_simulated,
            f"personalisation.opt_out_clients is {list(out)}, but it is about clients of a simulation. A "
            "real site that opts out does not join; set it to [].",
        )
        is_known = all(client < self.num_clients for client in out)
        _require(
            is_known and self.num_taking_part >= self.strategy.min_sites,
            f"personalisation.opt_out_clients is {list(out)}, but there are clients 0 to "
            f"{self.num_clients - 1}, of which at least {self.strategy.min_sites} must take part "
            "(strategy.min_sites). Name fewer.",
        )
        _require(
            self.data.opt_out_column is None
            or not self.engine.is_simulated
            or self.partition.name == "by_site",
            f"data.opt_out_column is '{self.data.opt_out_column}', but partition '{self.partition.name}' "
            "deals texts to any client: one that opts out is its own site's. Set partition=by_site.",
        )

    def _check_personalisation(self) -> None:
        name = self.personalisation.name
        _require(
            name == "none" or self.evaluation.validation_fraction > 0,
            f"personalisation.name is '{name}' and evaluation.validation_fraction is 0: "
            "which model is a client's best is decided on a validation part, never on the test part. Set "
            "evaluation.validation_fraction=0.5, or personalisation=none.",
        )
        _require(
            name == "none"
            or self.evaluation.where == "sites"
            or not self.engine.is_simulated,
            f"personalisation.name is '{name}' and evaluation.where is server: the best round would be "
            "chosen by texts on which clients judge their own models. Set evaluation.where=sites: no text "
            "that chooses a model then judges one.",
        )
        _require(
            name == "none" or self.model.activation == "own",
            f"personalisation.name is '{name}' with model.activation=abu; personal models are left as plain "
            "ones, which have no blends. Set model.activation=own, or personalisation=none.",
        )

    @property
    def cell(self) -> str:
        """Name of this run in a sweep: `<model>-<data>[-<arm>]-k<K>-s<seed>`, safe as a folder name."""
        names = [
            self.model.short_name,
            self.data.short_name,
            *([self.arm] if self.arm else []),
        ]
        return "-".join([*names, f"k{self.num_clients}", f"s{self.seed}"])

    @property
    def num_taking_part(self) -> int:
        """Clients that have not opted out."""
        return self.num_clients - len(set(self.personalisation.opt_out_clients))

    def declared_labels(self) -> tuple[str, ...]:
        """`data.label_names`, where no text is at hand to find them in. Raises ValueError if it is unset."""
        if self.data.label_names is None:
            raise ValueError(
                "data.label_names is missing; every site reads texts of its own, so the labels all of them "
                "share must be named, in the same order for ever. Set data.label_names=[...]."
            )
        return self.data.label_names

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, ready for JSON."""
        return asdict(self)

    def to_json(self) -> str:
        """One line of JSON with sorted keys; `from_json` reads it back to an equal object."""
        return json.dumps(self.to_dict(), sort_keys=True)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Settings:
        """Build and check.

        Raises:
            ValueError: with one line per finding, each naming its key.
        """
        try:
            return _ADAPTER.validate_python(values)
        except ValidationError as error:
            raise ValueError(explain(error, known_keys(), _STEPS)) from None

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """Inverse of `to_json`. Raises ValueError as `from_dict` does."""
        return cls.from_dict(json.loads(text))

    def for_sites(self) -> Settings:
        """What a site is told; clients of a simulation share this machine's files."""
        return self if self.engine.is_simulated else self.without_places()

    def without_places(self) -> Settings:
        """Learning settings, and no place on the coordinator's machine."""
        name = (
            self.model.name
            if self.model.source == "package"
            else _hub_id(self.model.name)
        )
        model = replace(self.model, name=name, label=self.model.short_name)
        places = (
            "path",
            "test_path",
            "hub_name",
            "token_cache",
            "delimiter",
            "encoding",
            "opt_out_column",
        )
        nowhere: dict[str, Any] = dict.fromkeys(places)
        data = replace(self.data, reader="hub", **nowhere)
        return replace(
            self,
            run_dir="",
            data=data,
            model=model,
            engine=replace(self.engine, address=None),
        )

    def flat(self) -> dict[str, object]:
        """Every setting by its dotted key: `train.batch_size`, `seed` …"""
        return {
            key: attrgetter(key)(self) for key in known_keys() if not _TREE.get(key)
        }

    def identity(self) -> dict[str, object]:
        """The part of `flat` that makes a run's numbers."""
        flat = self.flat()
        return {
            key: flat[key]
            for key in flat
            if not NOT_IDENTITY & {key, key.split(".")[0]}
        }

    def differences(self, other: Settings) -> list[str]:
        """Keys whose values differ and would change a run's numbers, as `key: ours -> theirs`."""
        mine, theirs = self.identity(), other.identity()
        return [
            f"{key}: {mine[key]!r} -> {theirs[key]!r}"
            for key in mine
            if mine[key] != theirs[key]
        ]


_ADAPTER = TypeAdapter(Settings)
_TREE = {
    name: tuple(get_type_hints(kind)) if is_dataclass(kind) else ()
    for name, kind in get_type_hints(Settings).items()
}
# What SCAFFOLD needs, and why: without it the corrections would not cancel in the mean, or not be gradients.
_MEAN = "each client reads the mean of all steps off the model that follows, which must be the clients' mean"
_WITH_CONTROL_VARIATES: tuple[tuple[str, object, str], ...] = (
    ("train.optimizer", "sgd", "a variate corrects plain gradient steps"),
    (
        "train.schedule",
        "constant",
        "the steps of one round stand for those of the next",
    ),
    (
        "train.head_init",
        "shared",
        "the variates are of the one head that all begin with",
    ),
    (
        "strategy.on_missing",
        "fail",
        "the corrections cancel only where every client is in every mean",
    ),
    (
        "strategy.on_excess",
        "refuse",
        "an update that is shrunk is not what its client remembers",
    ),
    ("strategy.optimizer", "sgd", _MEAN),
    ("strategy.server_learning_rate", 1, _MEAN),
    ("strategy.server_momentum", 0, _MEAN),
    ("transforms.name", "exact", "what rounding loses would stay in the variates"),
)
# What to do about a value that cannot be.
_STEPS = {
    "missing": "Settings that another version wrote cannot be read.",
    "seed": "Give a whole number from 0 to 2**63 - 1.",
    "arm": "A folder is named after it: use letters, digits, '.' and '_'.",
    "threads": "Give a positive number, or auto.",
    "data.text_columns": "Name at least one column: [text].",
    "data.test_fraction": "Give a share between 0 and 1.",
    "data.token_cache": "Give auto, null, or a folder, written with a / (./tokens).",
    "partition.alpha": "A dirichlet partition needs a positive number; for any other set it to null.",
    "train.local_epochs": "A client must train at least one epoch. To evaluate only, set num_rounds=0.",
    "train.max_length": "A text has 3 tokens at least, with its markers.",
    "train.warmup_fraction": "Give a number in [0, 1).",
    "train.max_grad_norm": "Set it to null for no clipping.",
    "train.head_learning_rate": "Set it to null for that of the whole model.",
    **{
        f"strategy.{key}": "Give a number in [0, 1)."
        for key in ("server_momentum", "beta_1", "beta_2")
    },
    "engine.workers": "Give a positive number, or auto.",
    **dict.fromkeys(
        ("data.train_examples", "data.test_examples", "data.max_words"),
        "Set it to null for all.",
    ),
    **{
        f"strategy.{what}_seconds": "A wait needs a positive bound in seconds."
        for what in ("wait", "round_timeout", "ask_again")
    },
    **{
        f"strategy.max_{what}": "Set it to null for no bound."
        for what in ("share", "update_norm", "norm_ratio")
    },
}


def known_keys() -> list[str]:
    """Dotted names of every setting and group, for telling a user the nearest one."""
    return [
        key
        for group, members in _TREE.items()
        for key in (group, *(f"{group}.{member}" for member in members))
    ]


def _folder_safe(text: str) -> str:
    return (
        re.sub(r"[^A-Za-z0-9._]+", "_", text.rstrip("/").rsplit("/", 1)[-1]).strip("._")
        or "unnamed"
    )


def _hub_id(name: str) -> str:
    """A hub id as it is; of a folder on this machine only its last part."""
    return (
        name
        if name.count("/") <= 1 and not name.startswith((".", "/", "~"))
        else _folder_safe(name)
    )
