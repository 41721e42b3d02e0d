"""One site's personal mixture: two experts and a gate that weighs them text by text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from wardround.common.pretrained import (
    quietly,
    read_model,
    read_tokenizer,
    settings_of_model,
)
from wardround.common.runtime import torch_stream
from wardround.common.tasks.table import task_of
from wardround.common.tasks.task import Task

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

GATE = "gate.safetensors"
_LOCAL, _GLOBAL = "local", "global"


class Mixture(nn.Module):
    """ŷ = h(x)·f_local(x) + (1 − h(x))·f_global(x) (Listo Zec et al. 2020, arXiv:2010.02056,
    equation 1).

    Probabilities are mixed, not their logarithms, so that ŷ is a distribution. The logits of
    `forward` are log ŷ: their softmax is ŷ, and their cross-entropy is −log ŷ of the label. So a
    mixture can be trained and evaluated like any other model. The gate h is the sigmoid of a
    small network; its input is the output of the global model's encoder. The global expert is
    neither trained nor part of the state dict.
    """

    def __init__(self, local: Any, global_: Any, gate: nn.Module, task: Task) -> None:
        """Join two models for the same task and labels.

        Args:
            gate: (B, H) -> (B, 1), on the device of the models.
        """
        super().__init__()
        self.local = local
        self.gate = gate
        self.task = task
        # PyTorch neither trains nor copies a module in a tuple, nor puts it into training mode.
        self._frozen = (global_.eval().requires_grad_(False),)

    @property
    def global_(self) -> Any:
        """The frozen global expert."""
        return self._frozen[0]

    @property
    def config(self) -> Any:
        """Configuration of the local expert; both experts have the same labels."""
        return self.local.config

    def forward(self, **inputs: Tensor) -> Any:
        """Return an output whose `logits`, fp32, are log ŷ.

        Args: inputs: the same as for an expert.
        """
        with torch.no_grad():
            found = self.global_(**inputs, output_hidden_states=True)
        state = _mean_over_tokens(found.hidden_states[-1], inputs.get("attention_mask"))
        weight = self.gate(state).float()  # (B, 1), before the sigmoid
        local = self.local(**inputs).logits.float()
        mixed = self.task.mix(weight, local, found.logits.float())
        return type(found)(logits=mixed)


def _mean_over_tokens(states: Tensor, mask: Tensor | None) -> Tensor:
    """(B, T, H) -> (B, H): mean over the tokens of each text, without padding."""
    if mask is None:
        return states.mean(dim=1)
    counted = mask.unsqueeze(2).to(states.dtype)
    return (states * counted).sum(dim=1) / counted.sum(dim=1)


def new_gate(width: int, hidden: int, seed: int) -> nn.Sequential:
    """Draw a gate from stream `gate`: (B, width) -> (B, 1) over `hidden` units.

    At first h is near 1/2.
    """
    with torch_stream(seed, "gate"):
        return _gate(width, hidden)


def _gate(width: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, 1))


def save_mixture(
    folder: Path, mixture: Mixture, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Write the gate, and both experts as models of transformers in `local/` and `global/`."""
    with quietly():
        for name, expert in ((_LOCAL, mixture.local), (_GLOBAL, mixture.global_)):
            expert.save_pretrained(folder / name)
            tokenizer.save_pretrained(folder / name)
    gate = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in mixture.gate.state_dict().items()
    }
    save_file(gate, folder / GATE)


def load_mixture(
    folder: Path | str, device: torch.device | str = "cpu"
) -> tuple[PreTrainedTokenizerBase, Mixture]:
    """Load tokenizer and mixture; `model(**tokenizer(…)).logits.softmax(1)` is ŷ, (B, C).

    Raises:
        OSError, ValueError: a part is missing, is no model, or is refused (`check_folder`).
    """
    folder = Path(folder)
    tokenizer = read_tokenizer(folder / _LOCAL)
    task = task_of(settings_of_model(folder))
    local = _expert(folder / _LOCAL, task, device)
    global_ = _expert(folder / _GLOBAL, task, device)
    weights = load_file(folder / GATE)
    hidden, width = weights["0.weight"].shape
    gate = _gate(width, hidden)
    gate.load_state_dict(weights)
    return tokenizer, Mixture(local, global_, gate.to(device), task).eval()


def _expert(folder: Path, task: Task, device: torch.device | str) -> Any:
    model: Any
    model, _ = read_model(folder, task.model_class(), dtype="float32")
    return model.to(device)
