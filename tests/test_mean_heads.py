"""The mean of separately drawn heads, which the study of the collapse measures."""

from __future__ import annotations

from math import sqrt
from pathlib import Path

import pytest
import torch

from studies.mean_heads import mean_head, table
from tests.support.tiny import Make, model_at
from wardround.common.model.build import build_model
from wardround.common.model.heads import draw_head
from wardround.common.tasks.label import LABEL


def test_the_mean_is_of_the_heads_that_sites_draw(tiny_model: Path) -> None:
    settings = model_at(tiny_model, "distilbert")
    classifier = build_model(LABEL, settings, ("a", "b"), seed=0)
    weight = classifier.model.get_parameter("pre_classifier.weight")
    drawn = []
    for client in (1, 2):
        draw_head(classifier.model, classifier.new_head, 0, client=client)
        drawn.append(weight.detach().clone())
    name = "distilbert.embeddings.word_embeddings.weight"
    encoder = classifier.model.get_parameter(name)
    before = encoder.clone()
    mean_head(classifier, 0, 2)
    assert torch.allclose(weight, (drawn[0] + drawn[1]) / 2)
    assert torch.equal(encoder, before)


def test_a_mean_of_k_heads_is_shorter_by_the_root_of_k(make_settings: Make) -> None:
    lines = table(make_settings(), (9,), (0, 1)).splitlines()
    rows = [
        [cell.strip() for cell in line.strip("| ").split("|")] for line in lines[2:]
    ]
    assert [row[1] for row in rows] == ["1", "9", "1", "9"]
    assert {value for row in rows if row[1] == "1" for value in row[2:]} == {"1.00"}
    own, distil = ([float(value) for value in row[2:]] for row in rows if row[1] == "9")
    assert own[0] == pytest.approx(1 / sqrt(9), abs=0.1)
    assert distil[0] == pytest.approx(1 / sqrt(9), abs=0.1)
    # One short layer (with tanh) makes logits a third as wide, two (with ReLU) a ninth.
    assert own[1] == pytest.approx(1 / 3, abs=0.12)
    assert distil[1] == pytest.approx(1 / 9, abs=0.08)
