"""The mixture of a local and a global model: arithmetic, gate, trained parts."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from wardround.common.model.mixture import Mixture, new_gate
from wardround.common.tasks.label import LABEL


class Expert(nn.Module):
    """A classifier with the same output for every text."""

    def __init__(self, *probabilities: float) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.tensor(probabilities).log())

    def forward(self, input_ids: Tensor, output_hidden_states: bool = False) -> Any:
        states = (torch.zeros(*input_ids.shape, 4),)
        return SimpleNamespace(
            logits=self.scores.expand(len(input_ids), -1), hidden_states=states
        )


def fixed_gate(weight: float) -> nn.Sequential:
    """Return a gate with h(x) = `weight` for every text."""
    gate = new_gate(4, 2, seed=0)
    for parameter in gate.parameters():
        nn.init.zeros_(parameter)
    odds = weight / (1 - weight) if weight < 1 else math.inf
    nn.init.constant_(gate[2].bias, math.log(odds) if odds else -math.inf)  # type: ignore[arg-type]
    return gate


def test_a_mixture_mixes_probabilities_and_not_logarithms() -> None:
    # 0.25 · (0.9, 0.1) + 0.75 · (0.5, 0.5) = (0.6, 0.4).
    # Mixed logarithms would give (0.634, 0.366).
    mixture = Mixture(Expert(0.9, 0.1), Expert(0.5, 0.5), fixed_gate(0.25), LABEL)
    logits = mixture(input_ids=torch.zeros(3, 5, dtype=torch.long)).logits
    expected = np.tile([0.6, 0.4], (3, 1))
    assert logits.exp().detach().numpy() == pytest.approx(expected, abs=1e-6)
    loss = nn.functional.cross_entropy(logits, torch.tensor([0, 0, 1]))
    expected_loss = -(2 * math.log(0.6) + math.log(0.4)) / 3
    assert loss.item() == pytest.approx(expected_loss, abs=1e-6)


def test_an_expert_that_excludes_the_label_keeps_the_loss_finite() -> None:
    sure = Expert(0.5, 0.5)
    sure.scores.data = torch.tensor([1000.0, -1000.0])
    mixture = Mixture(sure, Expert(0.5, 0.5), fixed_gate(0.5), LABEL)
    logits = mixture(input_ids=torch.zeros(1, 1, dtype=torch.long)).logits
    # 0.5 · (1, 0) + 0.5 · (0.5, 0.5) = (0.75, 0.25)
    expected = np.array([[0.75, 0.25]])
    assert logits.exp().detach().numpy() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("weight", "expert"), [(0.0, "global"), (1.0, "local")])
def test_a_gate_at_0_or_1_is_the_global_or_the_local_model(
    weight: float, expert: str, still_model: Path
) -> None:
    """With a real encoder the log-probabilities are equal bit for bit."""
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    local, global_ = (
        AutoModelForSequenceClassification.from_pretrained(
            still_model, num_labels=3
        ).eval()
        for _ in "ab"
    )
    gate = new_gate(16, 4, seed=0)
    nn.init.constant_(gate[2].bias, math.inf if weight else -math.inf)  # type: ignore[arg-type]
    batch = {"input_ids": torch.tensor([[2, 7, 9, 3], [2, 8, 3, 0]])}
    batch["attention_mask"] = (batch["input_ids"] > 0).long()
    alone = (local if expert == "local" else global_)(**batch).logits
    assert not torch.equal(local(**batch).logits, global_(**batch).logits)
    mixed = Mixture(local, global_, gate, LABEL).eval()(**batch).logits
    assert torch.equal(mixed, nn.functional.log_softmax(alone, dim=1))


def test_only_the_local_expert_and_the_gate_are_trained() -> None:
    mixture = Mixture(Expert(0.5, 0.5), Expert(0.5, 0.5), fixed_gate(0.5), LABEL)
    names = {name.split(".")[0] for name, _ in mixture.named_parameters()}
    assert names == {"local", "gate"}
    saved = {name.split(".")[0] for name in mixture.state_dict()}
    assert saved == {"local", "gate"}
    mixture.train()
    assert not mixture.global_.training
    for parameter in mixture.global_.parameters():
        assert not parameter.requires_grad
