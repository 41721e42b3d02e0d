"""Low-rank adapters: small matrices are trained, and the model itself stays as it was loaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from transformers.pytorch_utils import Conv1D

from wardround.common.model.build import TextModel
from wardround.common.runtime import stream_seed
from wardround.common.settings.model import AdapterSettings

if TYPE_CHECKING:
    from peft import LoraConfig
    from torch import Tensor, nn

_ATTENTION = ("q_proj", "v_proj")
TARGETS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ("bert", "roberta", "xlm-roberta", "electra", "albert"), ("query", "value")
    ),
    "distilbert": ("q_lin", "v_lin"),
    **dict.fromkeys(("gpt2", "openai-gpt"), ("c_attn",)),
    "deberta-v2": ("query_proj", "value_proj"),
    **dict.fromkeys(
        ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"),
        _ATTENTION,
    ),
}
"""Linear layers to adapt by `model_type`: those of queries and values, as LoRA's authors do."""
_NAME = "default"  # peft's name of an adapter without one
_A = f"lora_A.{_NAME}."
_B = f"lora_B.{_NAME}."
_BASE = "base_layer."


def add_adapters(
    text_model: TextModel, settings: AdapterSettings, seed: int
) -> TextModel:
    """Add LoRA to a model, and freeze all except it and the head.

    LoRA is by Hu et al. 2022, arXiv:2106.09685:
    W x becomes W x + alpha/rank B A x. A is drawn from stream `adapter`, uniform in
    ±1/sqrt(inputs), and B is 0, so that the model starts unchanged. With `lora_ffa` A is frozen too
    (FFA-LoRA, Sun et al. 2024, arXiv:2403.12313): every site draws the same A, so that the mean of
    the B gives the mean of the products B A.

    Raises:
        ValueError: the layers to adapt are unknown or missing.
    """
    from peft import inject_adapter_in_model

    model = text_model.model
    _check_targets(settings, text_model)
    inject_adapter_in_model(lora_config(settings, model), model)
    parameters = dict(model.named_parameters())
    generator = torch.Generator()
    generator.manual_seed(stream_seed(seed, "adapter"))
    with torch.no_grad():
        for name in sorted(parameters):
            if _A in name:
                drawn = torch.empty(parameters[name].shape)
                bound = 1 / sqrt(drawn.shape[1])
                drawn.uniform_(-bound, bound, generator=generator)
                parameters[name].copy_(drawn)
    moving = (_B,) if settings.name == "lora_ffa" else (_A, _B)
    frozen = set()
    for name, parameter in parameters.items():
        is_moving = any(part in name for part in moving)
        is_trained = is_moving or name in text_model.new_head
        parameter.requires_grad_(is_trained)
        if is_trained:
            continue
        frozen.add(name)
        is_matrix = parameter.dim() > 1 and _A not in name
        if is_matrix and settings.base_precision == "bf16":
            parameter.data = parameter.data.bfloat16()
    return replace(text_model, frozen=frozenset(frozen))


def lora_config(settings: AdapterSettings, model: Any, **more: Any) -> LoraConfig:
    """Return these adapters as a configuration of peft. Args: more: further fields of it."""
    from peft import LoraConfig

    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # used as a factor only
        lora_dropout=settings.dropout,
        target_modules=list(settings.targets or TARGETS[model.config.model_type]),
        fan_in_fan_out=_is_transposed(model),
        **more,
    )


def _check_targets(settings: AdapterSettings, text_model: TextModel) -> None:
    model = text_model.model
    kind = model.config.model_type
    targets = settings.targets or TARGETS.get(kind)
    layers = list(_linear_layers(model))
    linear = sorted({name.rpartition(".")[2] for name in layers})
    if not linear:
        raise ValueError(
            f"adapters.name is '{settings.name}', but a model of type '{kind}' has no linear "
            "layers that adapters can change. Set adapters=none."
        )
    if targets is None or not set(targets) <= set(linear):
        named = f"are {', '.join(targets)}" if targets else "are not known"
        raise ValueError(
            f"adapters.targets: the layers to adapt {named}, and a model of type "
            f"'{kind}' has these: {', '.join(linear)}. Set "
            "adapters.targets=[…] to some of them."
        )
    for name in layers:
        last = name.rpartition(".")[2]
        if f"{name}.weight" in text_model.frozen and last in targets:
            raise ValueError(
                f"adapters.targets names '{last}', which train.frozen=embeddings freezes. Remove "
                "it from adapters.targets, or set train.frozen=none."
            )


def _linear_layers(model: Any) -> Iterator[str]:
    """Yield the names of the linear layers of the encoder or decoder under the head."""
    prefix = f"{model.base_model_prefix}."
    for name, module in model.named_modules():
        if name.startswith(prefix) and isinstance(module, (torch.nn.Linear, Conv1D)):
            yield name


def _is_transposed(model: nn.Module) -> bool:
    """Return true if the layers to adapt hold their weights as (inputs, outputs): GPT-2."""
    return any(isinstance(module, Conv1D) for module in model.modules())


def merged_tensors(model: nn.Module, settings: AdapterSettings) -> dict[str, Tensor]:
    """Return the state dict of the model without adapters: weights W + alpha/rank B A in fp32.

    GPT-2 holds W transposed.
    """
    state = model.state_dict()
    transposed = {
        f"{name}.weight".replace(_BASE, "")
        for name, module in model.named_modules()
        if isinstance(module, Conv1D)
    }
    merged = {}
    for name, tensor in state.items():
        if _A in name or _B in name:
            continue
        weight = name.replace(_BASE, "")
        merged[weight] = tensor
        if tensor.is_floating_point():
            merged[weight] = tensor.float()
    scale = settings.alpha / settings.rank
    for name, a in state.items():
        if _A in name:
            b = state[name.replace(_A, _B)]
            change = b.float() @ a.float()
            weight = name.replace(_A, "")
            if weight in transposed:
                change = change.T
            merged[weight] = merged[weight] + scale * change
    return merged


def save_adapter(
    text_model: TextModel, settings: AdapterSettings, base: str, folder: Path
) -> None:
    """Write adapters and new head for `PeftModel.from_pretrained(base_model, folder)` of peft.

    Args:
        base: name of the model that was loaded, for `adapter_config.json`.
    """
    heads = sorted({name.rpartition(".")[0] for name in text_model.new_head})
    config = lora_config(
        settings,
        text_model.model,
        inference_mode=True,
        # With a task, peft looks for a trained head in the folder.
        task_type=text_model.task.peft_type if heads else None,
        modules_to_save=heads,
        base_model_name_or_path=base,
    )
    config.save_pretrained(str(folder))
    tensors = {}
    for name, tensor in text_model.model.named_parameters():
        if _A in name or _B in name or name in text_model.new_head:
            own = name.replace(f".{_NAME}.", ".")
            copied = tensor.detach().cpu().contiguous().clone()
            tensors[f"base_model.model.{own}"] = copied
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
