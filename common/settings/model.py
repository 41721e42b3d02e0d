"""Settings of the model, and of the adapters beside its layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from wardround.common.settings.values import file_name, require


@dataclass(frozen=True)
class ModelSettings:
    """The classifier that is fine-tuned."""

    label: str
    """Short name used in folder and figure names, for example `bert`."""
    source: Literal["hub", "package"]
    """`hub`: a model id or a local folder; `package`: a folder inside an installed package."""
    name: str
    """Hub id, local folder, or `package:folder` for source `package`."""
    revision: str | None
    """Commit, tag or branch on the hub; None is the default branch."""
    head: Literal["own", "new", "distilbert"]
    """Row of HEADS in `common/model/heads.py`: the model's own, its own drawn anew, or
    DistilBERT's on BERT."""
    activation: Literal["own", "abu"]
    """`abu`: adaptive blending units replace the activations (`common/model/blend.py`)."""
    abu_where: Literal["head", "all"]
    """`head`: in the head only; `all`: in every feed-forward layer too."""
    abu_normalisation: Literal["none", "sum", "abs", "positive", "softmax"]
    """How the weights of a blend are kept in bounds."""
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None
    """SHA-256 that the weights file must have; None accepts any. `wardround submit` sets it."""

    def __post_init__(self) -> None:
        require(
            (self.activation, self.abu_normalisation) != ("abu", "softmax")
            or self.abu_where == "head",
            "model.abu_normalisation is softmax with model.abu_where="
            f"{self.abu_where}; softmax cannot give all weight to one function, so "
            "pre-trained layers would change at once. Set model.abu_where=head, or "
            "another normalisation.",
        )

    @property
    def short_name(self) -> str:
        """The label as a file name, without any path of this machine."""
        return file_name(self.label)


@dataclass(frozen=True)
class AdapterSettings:
    """Small matrices that are trained beside frozen layers."""

    name: Literal["none", "lora", "lora_ffa"]
    """`none`: the whole model is trained. `lora`: both matrices of each pair and the new head.
    `lora_ffa`: only the second matrix and the head; the mean of the sites is then exact."""
    rank: PositiveInt
    """Rows of the first matrix, and columns of the second."""
    alpha: PositiveFloat
    """The product of the two matrices is multiplied by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)]
    """Share of a layer's inputs that the adapter does not see in training."""
    targets: Annotated[tuple[str, ...], Field(min_length=1)] | None
    """Last parts of the names of the linear layers to adapt; None: queries and values."""
    base_precision: Literal["fp32", "bf16"]
    """Precision of the frozen matrices in memory; adapters and head stay fp32."""
