"""Adaptive blending units: activations that are learned as a weighted sum of known ones, layer by layer."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from wardround.common.model_files import CONFIG, WEIGHTS, read_json
from wardround.common.pretrained import empty_model, settings_of_model
from wardround.common.settings.model import ModelSettings
from wardround.common.tasks.table import task_of

if TYPE_CHECKING:
    from torch import Tensor

MODEL_TYPE = "wardround_blended"
"""In the `config.json` of a folder whose activations are blended: plain transformers refuses it by name."""
_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "elu": nn.functional.elu,
    "tanh": torch.tanh,
    "identity": lambda x: x,
    "gelu": nn.functional.gelu,
}
"""Beside swish, x sigmoid(beta x), whose beta is trained."""
# The names that classes of activations have in transformers and PyTorch.
_OWN = {
    "ReLU": "relu",
    "Tanh": "tanh",
    **dict.fromkeys(
        ("GELUActivation", "NewGELUActivation", "GELUTanh", "GELU"), "gelu"
    ),
    **dict.fromkeys(("SiLUActivation", "SiLU"), "swish"),
}
_PLACES = ("intermediate_act_fn", "activation", "act_fn", "pooler_activation")
NORMALISATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda alpha: alpha,
    "sum": lambda alpha: alpha / alpha.sum(),
    "abs": lambda alpha: alpha / alpha.abs().sum(),
    "positive": lambda alpha: alpha.clamp(min=0) / alpha.clamp(min=0).sum(),
    "softmax": lambda alpha: alpha.softmax(dim=0),
}
"""By `model.abu_normalisation`, from alpha to the weights of the functions."""


class Blend(nn.Module):
    """sum_i a_i f_i(x), with a from the trained `alpha` (Sütfeld et al. 2018, arXiv:1806.10064, section 2).

    The functions are the paper's (ReLU, ELU, tanh, swish, identity) and GELU. It begins as the activation it
    takes the place of, bit for bit: all weight on that one. `softmax` cannot; it begins even.
    """

    def __init__(self, own: nn.Module, normalisation: str) -> None:
        """Args: own: the activation whose place is taken, one of `_OWN`."""
        super().__init__()
        name = _OWN[type(own).__name__]
        self.functions: dict[str, Callable[[Tensor], Tensor]] = {
            **_FUNCTIONS,
            "swish": self._swish,
            name: own,
        }
        self.normalise = NORMALISATIONS[normalisation]
        start = [
            float(function == name and normalisation != "softmax")
            for function in self.functions
        ]
        self.alpha = nn.Parameter(torch.tensor(start))
        self.beta = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        weights = self.normalise(self.alpha)
        parts = zip(weights, self.functions.values(), strict=True)
        return sum(
            (weight * function(x) for weight, function in parts), torch.zeros_like(x)
        )

    def _swish(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(
            self.beta[0] * x
        )  # a number: what autocast made bf16 stays bf16


def blend_activations(model: Any, settings: ModelSettings) -> None:
    """Put blends in the place of a model's activations: that of its head, or of every feed-forward layer too.

    Raises:
        ValueError: the architecture has no such place, or an activation that no blend can begin as.
    """
    places = list(_places(model))
    if settings.abu_where == "head":
        places = [(module, name) for module, name in places if _is_head(module, name)]
    odd = {
        type(getattr(module, name)).__name__ for module, name in places
    } - _OWN.keys()
    if odd or not places:
        what = (
            f"activations of kind {', '.join(sorted(odd))}"
            if odd
            else "no activation there"
        )
        raise ValueError(
            f"model.activation is abu in {settings.abu_where}, but '{settings.name}' has {what}. Set "
            "model.activation=own, or model.abu_where=all where only the head has none."
        )
    for module, name in places:
        setattr(module, name, Blend(getattr(module, name), settings.abu_normalisation))


def _places(model: Any) -> Iterator[tuple[Any, str]]:
    """Modules, and under which name each holds an activation."""
    if type(model).__name__ == "DistilBertForSequenceClassification":
        model.__class__ = _blended_distilbert()
        model.head_activation = nn.ReLU()
        yield model, "head_activation"
    for module in list(model.modules()):
        for name in _PLACES:
            if isinstance(getattr(module, name, None), nn.Module):
                yield module, name


def _is_head(module: Any, name: str) -> bool:
    return (
        name in ("head_activation", "pooler_activation")
        or "Pooler" in type(module).__name__
    )


def _blended_distilbert() -> type:
    """DistilBERT's classifier writes its ReLU into `forward`; this one has it in a place of its own."""
    from transformers import DistilBertForSequenceClassification
    from transformers.modeling_outputs import SequenceClassifierOutput

    class BlendedDistilBert(DistilBertForSequenceClassification):
        head_activation: nn.Module

        def forward(
            self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any
        ) -> Any:
            state = self.distilbert(input_ids=input_ids, attention_mask=attention_mask)[
                0
            ][:, 0]  # (B, d)
            state = self.dropout(self.head_activation(self.pre_classifier(state)))
            return SequenceClassifierOutput(logits=self.classifier(state))

    return BlendedDistilBert


def blend_parameters(model: nn.Module) -> set[str]:
    """Names of the parameters of all blends: they are kept out of weight decay, as in the paper."""
    return {
        f"{name}.{parameter}"
        for name, module in model.named_modules()
        if isinstance(module, Blend)
        for parameter in ("alpha", "beta")
    }


def save_blended(model: Any, settings: ModelSettings, folder: Path) -> None:
    """Write a model with blends: for `load_blended`, while plain transformers says that it cannot."""
    from safetensors.torch import save_file

    config = model.config.to_dict()
    told = {
        "model_type": MODEL_TYPE,
        "where": settings.abu_where,
        "normalisation": settings.abu_normalisation,
        "base": config | {"architectures": None},
    }
    (folder / CONFIG).write_text(json.dumps(told, indent=2), encoding="utf-8")
    tensors = {
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in model.state_dict().items()
    }
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def is_blended(folder: Path) -> bool:
    """Whether `save_blended` wrote it."""
    told = read_json(folder / CONFIG)
    return bool(told.get("model_type") == MODEL_TYPE)


def load_blended(folder: Path) -> Any:
    """The classifier that a run with `model.activation=abu` left in `<run_dir>/model`.

    Raises:
        OSError, KeyError, RuntimeError, ValueError: the folder is not one that `save_blended` wrote.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    told = read_json(folder / CONFIG)
    task = task_of(settings_of_model(folder))
    model: Any = empty_model(folder, told["base"], task.model_class())
    where = ModelSettings(
        "",
        "hub",
        str(folder),
        None,
        "own",
        "abu",
        told["where"],
        told["normalisation"],
        None,
    )
    blend_activations(model, where)
    try:
        model.load_state_dict(load_file(folder / WEIGHTS))
    except SafetensorError as error:
        raise ValueError(f"'{folder / WEIGHTS}' is damaged: {error}") from None
    return model.eval()
