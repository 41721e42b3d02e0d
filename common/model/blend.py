"""Adaptive blending units: each layer learns its activation as a weighted sum of known ones.

Everything that a study does to activations is here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from wardround.common.model_files import CONFIG, WEIGHTS, read_json
from wardround.common.pretrained import empty_model, settings_of_model
from wardround.common.settings.model import ModelSettings
from wardround.common.tasks.table import task_of

MODEL_TYPE = "wardround_blended"
"""`model_type` in the `config.json` of a blended model; plain transformers refuses this name."""
_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "elu": nn.functional.elu,
    "tanh": torch.tanh,
    "identity": lambda x: x,
    "gelu": nn.functional.gelu,
}
"""All functions except swish, x sigmoid(beta x), whose beta is trained."""
# Names of the functions by the class of activation in transformers and PyTorch.
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
"""Maps from alpha to the weights of the functions, by `model.abu_normalisation`."""


class Blend(nn.Module):
    """sum_i a_i f_i(x), with a from the trained `alpha` (Sütfeld et al. 2018, arXiv:1806.10064,
    section 2).

    The functions are the paper's (ReLU, ELU, tanh, swish, identity) and GELU. At first all
    weight is on the activation that it replaces, so that it equals that one bit for bit. With
    `softmax` this is impossible: it starts with equal weights.
    """

    def __init__(self, own: nn.Module, normalisation: str) -> None:
        """Args: own: the activation to replace, one of `_OWN`."""
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
        """Blend the functions of x, element by element; x has any shape."""
        weights = self.normalise(self.alpha)
        parts = zip(weights, self.functions.values(), strict=True)
        return sum(
            (weight * function(x) for weight, function in parts), torch.zeros_like(x)
        )

    def _swish(self, x: Tensor) -> Tensor:
        # beta[0] has no dimension, so that a bf16 tensor of autocast stays bf16.
        return x * torch.sigmoid(self.beta[0] * x)


def blend_activations(model: Any, settings: ModelSettings) -> None:
    """Replace the activation of a model's head by a blend, or also those of all feed-forward
    layers.

    Raises:
        ValueError: the architecture has no such activation, or one that no blend can start as.
    """
    places = list(_places(model))
    if settings.abu_where == "head":
        places = [(module, name) for module, name in places if _is_head(module, name)]
    kinds = {type(getattr(module, name)).__name__ for module, name in places}
    unknown = sorted(kinds - _OWN.keys())
    if unknown or not places:
        found = "no activation there"
        if unknown:
            found = f"activations of kind {', '.join(unknown)}"
        raise ValueError(
            f"model.activation is abu in {settings.abu_where}, but '{settings.name}' has "
            f"{found}. Set model.activation=own, or model.abu_where=all if only the head has none."
        )
    for module, name in places:
        setattr(module, name, Blend(getattr(module, name), settings.abu_normalisation))


def _places(model: Any) -> Iterator[tuple[Any, str]]:
    """Yield every module with an activation, and the name of its attribute."""
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
    """Return DistilBERT's classifier with its ReLU as a module; the original calls a function."""
    from transformers import DistilBertForSequenceClassification
    from transformers.modeling_outputs import SequenceClassifierOutput

    class BlendedDistilBert(DistilBertForSequenceClassification):
        head_activation: nn.Module

        def forward(
            self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any
        ) -> Any:
            encoded = self.distilbert(
                input_ids=input_ids, attention_mask=attention_mask
            )
            state = encoded[0][:, 0]  # (B, d)
            state = self.dropout(self.head_activation(self.pre_classifier(state)))
            return SequenceClassifierOutput(logits=self.classifier(state))

    return BlendedDistilBert


def blend_parameters(model: nn.Module) -> set[str]:
    """Return the names of the parameters of all blends.

    They have no weight decay, as in the paper.
    """
    return {
        f"{name}.{parameter}"
        for name, module in model.named_modules()
        if isinstance(module, Blend)
        for parameter in ("alpha", "beta")
    }


def save_blended(model: Any, settings: ModelSettings, folder: Path) -> None:
    """Write a model with blends, for `load_blended`. Plain transformers refuses the folder."""
    config = model.config.to_dict()
    content = {
        "model_type": MODEL_TYPE,
        "where": settings.abu_where,
        "normalisation": settings.abu_normalisation,
        "base": config | {"architectures": None},
    }
    (folder / CONFIG).write_text(json.dumps(content, indent=2), encoding="utf-8")
    tensors = {
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in model.state_dict().items()
    }
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def is_blended(folder: Path) -> bool:
    """Return true if `save_blended` wrote the folder."""
    return bool(read_json(folder / CONFIG).get("model_type") == MODEL_TYPE)


def load_blended(folder: Path) -> Any:
    """Load the model of a run with `model.activation=abu` from `<run_dir>/model`.

    Raises:
        OSError, KeyError, RuntimeError, ValueError: `save_blended` did not write the folder.
    """
    content = read_json(folder / CONFIG)
    task = task_of(settings_of_model(folder))
    model: Any = empty_model(folder, content["base"], task.model_class())
    where = ModelSettings(
        "",
        "hub",
        str(folder),
        None,
        "own",
        "abu",
        content["where"],
        content["normalisation"],
        None,
    )
    blend_activations(model, where)
    try:
        model.load_state_dict(load_file(folder / WEIGHTS))
    except SafetensorError as error:
        raise ValueError(f"'{folder / WEIGHTS}' is damaged: {error}") from None
    return model.eval()
