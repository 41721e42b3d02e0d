"""Settings of local training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from wardround.common.settings.values import require


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """The training of one client in one round."""

    local_epochs: PositiveInt
    """Passes over the client's own examples, E in the paper."""
    batch_size: PositiveInt
    """Examples per optimiser step, B in the paper."""
    learning_rate: PositiveFloat
    """Step size; with a schedule, its highest value."""
    max_length: Annotated[int, Field(ge=3)]
    """Tokens per text; longer texts are cut."""
    optimizer: Literal["sgd", "adamw"]
    """Row of the table in `common/model/train.py`."""
    weight_decay: Annotated[float, Field(ge=0)]
    """Decoupled for adamw, L2 for sgd."""
    schedule: Literal["constant", "linear"]
    """`linear`: warm up, then decay to zero over `schedule_rounds` rounds."""
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)]
    """Share of the schedule that warms up (`linear`)."""
    schedule_rounds: NonNegativeInt | None
    """Length of a `linear` schedule in rounds; after it, the step size stays at its end."""
    max_grad_norm: PositiveFloat | None
    """Clip the L2 norm of the gradient to this; None does not clip."""
    shuffle: bool
    """Draw a new order in each epoch; False always repeats one order (the authors' code)."""
    drop_last: bool
    """Leave out the short last batch of an epoch (the authors' code)."""
    last_batch: Literal["even", "short"]
    """`short`: batches of `batch_size`, and the rest in a shorter last one. `even`: as many
    batches as fit into the epoch whole; their sizes differ by at most one."""
    frozen: Literal["none", "embeddings"]
    """`embeddings`: the embedding layer is not trained and does not travel."""
    attention_mask: bool
    """Hide padding from attention; False attends to it (the authors' code)."""
    padding: Literal["max_length", "longest"]
    """Pad each batch to `max_length` tokens, or to its longest text."""
    micro_batches: Literal["none", "by_length"]
    """Row of MICRO_BATCHES in `common/data/batches.py`: work through a batch at once, or in
    parts of similar length."""
    group_by_length: bool
    """Put texts of similar length into one batch; the paper does not."""
    head_init: Literal["shared", "shared_shrunk", "per_site", "per_site_rescaled"]
    """`shared`: one new head for all. `per_site`: each client draws one in round 1 (the
    authors' code). `shared_shrunk`: one head divided by sqrt(K), which is the norm of a mean of
    K drawn heads. `per_site_rescaled`: the mean of round 1 is scaled to the heads' norm."""
    head_learning_rate: PositiveFloat | None
    """Step size of the new head; None is `learning_rate`."""
    head_warmup_rounds: NonNegativeInt
    """Number of first rounds that train only the new head."""
    gradient_checkpointing: bool
    """Compute activations again in the backward pass: less memory, more time."""
    proximal_mu: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """Pull of the round's global model on each trained weight, mu of FedProx (Li et al. 2020);
    0 is FedAvg."""
    control_variates: bool
    """Correct each step by how the client's mean step differs from all clients' (SCAFFOLD)."""
    on_collapse: Literal["warn", "stop"]
    """If the run has collapsed: warn and continue, or stop."""
    collapse_rounds: PositiveInt
    """Number of consecutive rounds with predictions in one class, accuracy at chance or an
    exploded loss that count as a collapse."""

    @property
    def draws_heads(self) -> bool:
        """Whether each client draws a head of its own in round 1."""
        return self.head_init.startswith("per_site")

    def __post_init__(self) -> None:
        require(
            self.schedule == "constant" or self.schedule_rounds is not None,
            "train.schedule_rounds is missing; schedule "
            f"'{self.schedule}' needs its length. Set train.schedule_rounds to "
            "num_rounds.",
        )
        require(
            self.attention_mask or self.padding == "max_length",
            "train.attention_mask=false with train.padding=longest would make a text's "
            "logits depend on the other texts of its batch. Set "
            "train.padding=max_length.",
        )
        require(
            self.attention_mask or self.micro_batches == "none",
            f"train.micro_batches={self.micro_batches} pads less, but with "
            "train.attention_mask=false the model sees the padding. Set "
            "train.micro_batches=none.",
        )
        require(
            self.last_batch == "short" or not self.drop_last,
            "train.drop_last=true leaves out the short last batch, and "
            "train.last_batch=even makes no short batch. Set train.drop_last=false, or "
            "train.last_batch=short.",
        )
        saves_padding = self.padding == "longest" or self.micro_batches == "by_length"
        require(
            not self.group_by_length or saves_padding,
            "train.group_by_length=true saves nothing if every batch is padded to "
            "train.max_length. Set train.padding=longest or "
            "train.micro_batches=by_length.",
        )
