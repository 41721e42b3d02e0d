"""Adaptive blending units start as the activation they replace, and learn like other weights."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.support.runs import PowerCut, hashes, measured
from tests.support.tiny import Make, model_at, write_model
from wardround.common.errors import ModelNotLoaded
from wardround.common.model.blend import Blend, blend_parameters, load_blended
from wardround.common.model.build import build_model
from wardround.common.model.state import open_model
from wardround.common.model.train import _parameter_groups
from wardround.common.settings.tree import Settings
from wardround.common.tasks.label import LABEL
from wardround.server.engines.simulate import simulate
from wardround.server.predict import predict
from wardround.server.rounds.recorder import Recorder

IDS = torch.arange(5, 23).reshape(3, 6)
KINDS = ("bert", "distilbert", "albert", "llama")
X = torch.tensor([-2.0, -0.5, 0.0, 0.5, 2.0])


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a model folder of each architecture."""
    return {kind: write_model(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}


@pytest.mark.parametrize(
    "own", [nn.ReLU(), nn.Tanh(), nn.GELU(), nn.GELU(approximate="tanh"), nn.SiLU()]
)
@pytest.mark.parametrize("normalisation", ["none", "sum", "abs", "positive"])
def test_a_blend_starts_as_the_activation_it_replaces(
    own: nn.Module, normalisation: str
) -> None:
    assert torch.equal(Blend(own, normalisation)(X), own(X))


def test_a_blend_keeps_the_dtype_that_autocast_chose() -> None:
    blend, low = Blend(nn.ReLU(), "none"), X.bfloat16()
    assert blend(low).dtype == torch.bfloat16
    assert torch.equal(blend(low), low.relu())


@pytest.mark.parametrize("kind", ["bert", "albert"])
def test_equal_first_weights_are_for_new_heads(
    models: dict[str, Path], kind: str
) -> None:
    even = {"abu_normalisation": "softmax"}
    expected = r"^model\.abu_normalisation is 'softmax'.*model\.head=distilbert"
    with pytest.raises(ValueError, match=expected):
        build_model(LABEL, model_at(models[kind], **even), ("a", "b"), seed=0)
    build_model(LABEL, model_at(models["distilbert"], **even), ("a", "b"), seed=0)
    build_model(
        LABEL, model_at(models["bert"], "distilbert", **even), ("a", "b"), seed=0
    )


def test_softmax_begins_with_equal_weights() -> None:
    blend = Blend(nn.ReLU(), "softmax")
    x = torch.tensor([1.0])
    # relu, elu and identity of 1 are 1; tanh is 0.7616, gelu 0.8413, swish 0.7311.
    # Each has a weight of 1/6.
    expected = (1 + 1 + 1 + 0.761594 + 0.841345 + 0.731059) / 6
    assert blend(x).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("normalisation", "factor"),
    [
        # relu(2) = 2 has weight 3, identity(2) = 2 has weight -1: 6 - 2 = 4 …
        ("none", 4.0),
        # … over the sum of the weights, 2, or of their absolute values, 4.
        ("sum", 4 / 2),
        ("abs", 4 / 4),
        # Only relu has a positive weight: 6, over 3.
        ("positive", 6 / 3),
    ],
)
def test_weights_are_normalised(normalisation: str, factor: float) -> None:
    blend = Blend(nn.ReLU(), normalisation)
    names = list(blend.functions)
    with torch.no_grad():
        blend.alpha[names.index("relu")] = 3.0
        blend.alpha[names.index("identity")] = -1.0
    assert blend(torch.tensor([2.0])).item() == pytest.approx(factor)


def test_every_weight_of_a_blend_is_learned() -> None:
    for normalisation in ("none", "sum", "positive", "softmax"):
        blend = Blend(nn.ReLU(), normalisation)
        (blend(X) * torch.arange(5)).sum().backward()
        assert blend.alpha.grad is not None
        # If weights are divided by their sum, a larger only weight changes nothing.
        learned = [
            name
            for name, found in zip(blend.functions, blend.alpha.grad, strict=True)
            if found != 0
        ]
        assert set(blend.functions) - set(learned) <= {"relu"}, normalisation
    with torch.no_grad():
        blend.alpha[list(blend.functions).index("swish")] = 1.0
    blend(X).sum().backward()
    assert blend.beta.grad is not None
    assert blend.beta.grad.item() != 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", ["head", "all"])
def test_blends_do_not_change_the_model_of_round_0(
    models: dict[str, Path], kind: str, where: str
) -> None:
    if (kind, where) == ("llama", "head"):
        expected = r"^model\.activation is abu in head, .*model\.activation=own"
        with pytest.raises(ValueError, match=expected):
            build_model(LABEL, model_at(models[kind], abu_where="head"), ("a", "b"), 0)
        return
    plain = build_model(LABEL, model_at(models[kind]), ("a", "b"), 0)
    blended = build_model(LABEL, model_at(models[kind], abu_where=where), ("a", "b"), 0)
    # The layers of ALBERT share one activation.
    num_layers = {"bert": 2, "distilbert": 2, "albert": 1, "llama": 2}[kind]
    num_blends = 0 if kind == "llama" else 1
    if where == "all":
        num_blends += num_layers
    assert len(blend_parameters(blended.model)) == 2 * num_blends
    assert blended.new_head == plain.new_head
    with torch.no_grad():
        ours, theirs = (
            each.model.eval()(input_ids=IDS).logits for each in (blended, plain)
        )
    assert torch.equal(ours, theirs)


def test_blends_have_no_weight_decay(
    models: dict[str, Path], make_settings: Make
) -> None:
    settings = make_settings("train.weight_decay=0.1").train
    plain, blended = (
        build_model(LABEL, where, ("a", "b"), 0).model
        for where in (
            model_at(models["bert"]),
            model_at(models["bert"], abu_where="all"),
        )
    )
    assert len(_parameter_groups(plain, settings, 1, frozenset(), ())) == 2
    groups = _parameter_groups(blended, settings, 1, frozenset(), ())
    assert groups[2]["weight_decay"] == 0
    assert len(groups[2]["params"]) == len(blend_parameters(blended)) == 6


def blended_run(make_settings: Make, folder: Path, *more: str) -> Settings:
    """Return settings of a run with blends everywhere."""
    words = (
        "model=hf",
        f"model.name={folder}",
        "model.activation=abu",
        "model.abu_where=all",
    )
    return make_settings(*words, "train.learning_rate=0.1", *more)


def test_a_run_learns_blends_and_its_folder_needs_our_loader(
    make_settings: Make, models: dict[str, Path]
) -> None:
    from transformers import AutoModelForSequenceClassification

    settings = blended_run(make_settings, models["distilbert"], "num_rounds=2")
    simulate(settings)
    run, labels = Path(settings.run_dir), ("health", "money", "sport")
    state = open_model(settings, labels, fresh=True)
    start = state.flat.clone()
    saved = load_file(run / "checkpoint" / "round-000002" / "shared.safetensors")
    for name, view in state.layout.views(state.flat).items():
        view.copy_(saved[name])
    alphas = [
        slice(offset, offset + 6)
        for name, offset in zip(state.layout.names, state.layout.offsets, strict=True)
        if "alpha" in name
    ]
    assert len(alphas) == 3
    assert all(not torch.equal(state.flat[part], start[part]) for part in alphas)
    with torch.no_grad():
        expected = state.text_model.model.eval()(input_ids=IDS).logits
        assert torch.equal(load_blended(run / "model")(input_ids=IDS).logits, expected)
    # Without the blends the weights would be another model: plain transformers refuses them.
    with pytest.raises(ValueError, match="wardround_blended"):
        AutoModelForSequenceClassification.from_pretrained(run / "model")
    card = (run / "model" / "README.md").read_text()
    assert "wardround.common.model.blend.load_blended" in card
    out = io.StringIO()
    predict(run, ["the match today", "a loan"], None, "text", "cpu", out)
    assert out.getvalue().startswith("text,label,health,money,sport")
    weights = run / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ModelNotLoaded, match=r"model\.safetensors' is damaged"):
        predict(run, ["a loan"], None, "text", "cpu", out)


def test_a_killed_run_continues_to_the_same_result(
    make_settings: Make,
    models: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    simulate(blended_run(make_settings, models["bert"], "run_dir=whole"))
    original = Recorder.after_average

    def cut(self: Recorder, record: object, *rest: object) -> None:
        if getattr(record, "round", 0) == 2:
            raise PowerCut
        original(self, record, *rest)  # type: ignore[arg-type]

    settings = blended_run(make_settings, models["bert"], "run_dir=cut")
    monkeypatch.setattr(Recorder, "after_average", cut)
    with pytest.raises(PowerCut):
        simulate(settings)
    monkeypatch.setattr(Recorder, "after_average", original)
    simulate(settings)
    assert measured(Path("cut")) == measured(Path("whole"))
    plain = blended_run(
        make_settings, models["bert"], "model.activation=own", "run_dir=plain"
    )
    simulate(plain)
    assert hashes(Path("plain"))[1] != hashes(Path("whole"))[1]


@pytest.mark.parametrize(
    ("words", "pattern"),
    [
        (
            ("model.abu_normalisation=softmax", "model.abu_where=all"),
            r"abu_normalisation is softmax with model\.abu_where=all",
        ),
        (("adapters=lora",), r"model\.activation is abu with adapters\.name=lora"),
        (
            (
                "personalisation=mixture",
                "evaluation.where=sites",
                "evaluation.validation_fraction=0.5",
            ),
            r"personalisation\.name is 'mixture' with model\.activation=abu",
        ),
    ],
)
def test_impossible_combinations_are_refused(
    make_settings: Make, words: tuple[str, ...], pattern: str
) -> None:
    with pytest.raises(ValueError, match=pattern):
        make_settings("model.activation=abu", *words)
