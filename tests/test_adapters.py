"""Adapters: only small tensors are trained and sent. The released model is a plain one."""

from __future__ import annotations

import io
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.runs import PowerCut, hashes, history, measured
from tests.support.tiny import Make, write_model
from wardround.common.data.corpus import open_corpus
from wardround.common.model.adapters import merged_tensors
from wardround.common.model.build import build_model
from wardround.common.model.state import ModelState, open_model
from wardround.common.model.train import forward
from wardround.common.settings.tree import Settings
from wardround.common.tasks.label import LABEL
from wardround.server.engines.simulate import simulate
from wardround.server.predict import predict
from wardround.server.rounds.mean import WeightedMean
from wardround.server.rounds.recorder import Recorder

KINDS = ("bert", "distilbert", "albert", "llama", "qwen2")
DECODERS = ("llama", "qwen2")
LABELS = ("health", "money", "sport")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each architecture."""
    return {kind: write_model(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}


@pytest.fixture
def make(
    make_settings: Make,
    models: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Any:
    """Return a function that makes settings with adapters for a kind of model."""
    monkeypatch.chdir(tmp_path)

    def settings(kind: str = "bert", *more: str) -> Settings:
        return make_settings(
            "model=hf",
            f"model.name={models[kind]}",
            "adapters=lora",
            "adapters.rank=2",
            *more,
        )

    return settings


def opened(settings: Settings) -> ModelState:
    """Return a fresh model with its starting weights and without dropout."""
    state = open_model(settings, LABELS, fresh=True)
    state.text_model.model.eval()
    return state


def logits(state: ModelState) -> torch.Tensor:
    """Return the logits of a few token ids, (3, 3)."""
    ids = torch.arange(5, 23).reshape(3, 6)
    with torch.no_grad():
        found: torch.Tensor = state.text_model.model(input_ids=ids).logits
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["lora", "lora_ffa"])
def test_round_0_is_the_base_model(make: Make, kind: str, name: str) -> None:
    settings = make(kind, f"adapters={name}")
    plain = build_model(LABEL, settings.model, LABELS, settings.seed).model.eval()
    with torch.no_grad():
        expected = plain(input_ids=torch.arange(5, 23).reshape(3, 6)).logits
    assert torch.equal(logits(opened(settings)), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_only_adapters_and_the_new_head_are_trained(make: Make, kind: str) -> None:
    for name, parts in (("lora", ("lora_A", "lora_B")), ("lora_ffa", ("lora_B",))):
        state = opened(make(kind, f"adapters={name}"))
        new_head = state.text_model.new_head
        assert new_head
        assert set(new_head) <= set(state.layout.names)
        for tensor in set(state.layout.names) - set(new_head):
            assert any(part in tensor for part in parts), tensor
        trained = {
            name
            for name, weight in state.text_model.model.named_parameters()
            if weight.requires_grad
        }
        assert trained == set(state.layout.names)


@pytest.mark.parametrize("engine", [(), ("engine.workers=2", "threads=1")])
def test_a_round_sends_and_changes_only_trained_tensors(
    make: Make, engine: tuple[str, ...]
) -> None:
    settings = make("distilbert", "num_rounds=1", *engine)
    layout = opened(settings).layout
    simulate(settings)
    line = history(settings.run_dir)[-1]
    # fp32, three clients, both ways
    assert line["bytes"] == {"up": 3 * 4 * layout.size, "down": 3 * 4 * layout.size}
    checkpoints = Path(settings.run_dir) / "checkpoint"
    start = load_file(checkpoints / "round-000000" / "shared.safetensors")
    after = load_file(checkpoints / "round-000001" / "shared.safetensors")
    assert set(after) == set(layout.names)
    for name in layout.names:
        if "lora_A" not in name:
            assert not torch.equal(start[name], after[name]), name
    assert line["diagnostics"]["head_norm"] > 0
    assert line["diagnostics"]["body_norm"] > 0


@pytest.mark.long
@pytest.mark.slow
def test_the_number_of_workers_changes_no_hash(make: Make) -> None:
    for workers in (1, 2):
        words = (f"engine.workers={workers}", "threads=1", f"run_dir=w{workers}")
        simulate(make("bert", *words))
    assert hashes(Path("w1")) == hashes(Path("w2"))


@pytest.mark.parametrize("name", ["lora", "lora_ffa"])
def test_a_killed_run_continues_to_the_same_result(
    make: Make, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    words = (f"adapters={name}", "transforms=int8")
    simulate(make("bert", *words, "run_dir=whole"))
    original = Recorder.after_average

    def cut(self: Recorder, record: Any, *rest: Any) -> None:
        if record.round == 2:
            raise PowerCut
        original(self, record, *rest)

    settings = make("bert", *words, "run_dir=cut")
    monkeypatch.setattr(Recorder, "after_average", cut)
    with pytest.raises(PowerCut):
        simulate(settings)
    monkeypatch.setattr(Recorder, "after_average", original)
    simulate(settings)
    assert measured(Path("cut")) == measured(Path("whole"))


def test_one_frozen_matrix_makes_the_mean_exact() -> None:
    # Two sites, rank 1: B A is 1 * 1 and 3 * 5, whose mean is 8.
    # The mean of B is 2 and the mean of A is 3.
    def mean(*values: list[float]) -> list[float]:
        fold = WeightedMean(torch.zeros(len(values[0])))
        for value in values:
            fold.add(torch.tensor(value), 1)
        return fold.finish().tensors.tolist()

    b, a = mean([1.0, 1.0], [3.0, 5.0])
    assert b * a == 6.0 != (1.0 * 1.0 + 3.0 * 5.0) / 2
    # With A frozen at 5: (1 * 5 + 3 * 5) / 2 = 10, and 2 * 5.
    assert mean([1.0], [3.0])[0] * 5.0 == (1.0 * 5.0 + 3.0 * 5.0) / 2


def test_sites_draw_the_same_frozen_matrix(make: Make) -> None:
    settings = make("bert", "adapters=lora_ffa")

    def tensors(settings: Settings) -> dict[str, torch.Tensor]:
        state = opened(settings).text_model.model.state_dict()
        return {name: tensor.clone() for name, tensor in state.items()}

    first = tensors(settings)
    second = tensors(settings)
    drawn = [name for name in first if "lora_A" in name]
    assert drawn
    assert all(torch.equal(first[name], second[name]) for name in drawn)
    other = tensors(replace(settings, seed=settings.seed + 1))
    assert not torch.equal(first[drawn[0]], other[drawn[0]])


def test_another_base_gives_another_layout_digest(
    make: Make, models: dict[str, Path], tmp_path: Path
) -> None:
    settings = make("bert")
    ours = opened(settings).layout
    folder = Path(shutil.copytree(models["bert"], tmp_path / "other"))
    tensors = load_file(folder / "model.safetensors")
    tensors["encoder.layer.0.output.dense.bias"][0] += 1e-6
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    other_model = replace(settings.model, name=str(folder))
    theirs = opened(replace(settings, model=other_model)).layout
    assert ours.names == theirs.names
    assert ours.digest != theirs.digest


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_writes_a_plain_model_and_its_adapter(
    make: Make, models: dict[str, Path], kind: str
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    settings = make(kind, "num_rounds=1", "train.learning_rate=0.5")
    simulate(settings)
    state = opened(settings)
    folder = Path(settings.run_dir)
    saved = load_file(folder / "checkpoint" / "round-000001" / "shared.safetensors")
    for name, view in state.layout.views(state.flat).items():
        view.copy_(saved[name])
    trained = logits(state)
    ids = torch.arange(5, 23).reshape(3, 6)
    plain, info = AutoModelForSequenceClassification.from_pretrained(
        folder / "model", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    base = AutoModelForSequenceClassification.from_pretrained(
        models[kind], num_labels=3, pad_token_id=plain.config.pad_token_id
    )
    beside = PeftModel.from_pretrained(base, str(folder / "model" / "adapter"))
    with torch.no_grad():
        torch.testing.assert_close(
            plain.eval()(input_ids=ids).logits, trained, rtol=1e-4, atol=1e-5
        )
        assert torch.equal(beside.eval()(input_ids=ids).logits, trained)
    card = (folder / "model" / "README.md").read_text()
    (trained_row,) = [
        line for line in card.splitlines() if line.startswith("| trained |")
    ]
    assert "lora of rank 2" in trained_row
    assert "`adapter`" in trained_row
    assert str(models[kind]) not in card
    out = io.StringIO()
    predict(folder, ["the match today", "a loan"], None, "text", "cpu", out)
    assert len(out.getvalue().splitlines()) == 3


def test_merging_is_w_plus_alpha_over_rank_b_a(make: Make) -> None:
    settings = make("bert", "adapters.alpha=6")
    state = opened(settings)
    state.flat.fill_(1.0)
    name = "bert.encoder.layer.0.attention.self.query.weight"
    model = state.text_model.model
    base = model.state_dict()[name.replace(".weight", ".base_layer.weight")]
    # If A and B hold ones, every element of B A is the rank: alpha / rank * rank = 6.
    merged = merged_tensors(model, settings.adapters)[name]
    torch.testing.assert_close(merged, base + 6)


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("padding", ["longest", "max_length"])
def test_a_decoders_logits_do_not_depend_on_the_batch(
    make: Make, kind: str, padding: str
) -> None:
    settings = make(kind, f"train.padding={padding}")
    texts = open_corpus(settings).test
    model = opened(settings).text_model.model
    pad_to = settings.train.max_length if padding == "max_length" else None
    everyone = np.arange(12)
    assert len(set(texts.lengths_of(everyone))) > 2

    def logits_of(rows: np.ndarray) -> torch.Tensor:
        cpu = torch.device("cpu")
        with torch.no_grad():
            return forward(
                model, texts.batch(rows, pad_to=pad_to, mask=True, device=cpu)
            )

    together = logits_of(everyone)
    single = [logits_of(everyone[number : number + 1]) for number in everyone]
    torch.testing.assert_close(together, torch.cat(single), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(together[0], together[1])


def test_the_padding_token_is_not_the_token_that_ends_texts(make: Make) -> None:
    found = {}
    for kind in DECODERS:
        classifier = opened(make(kind)).text_model
        assert classifier.model.config.pad_token_id == classifier.tokenizer.pad_token_id
        found[kind] = classifier.tokenizer.pad_token
    # The tokenizer of llama has no padding token: the token that begins texts is used.
    assert found == {"llama": "<s>", "qwen2": "<pad>"}


@pytest.mark.parametrize("kind", DECODERS)
def test_a_decoder_learns(make: Make, kind: str) -> None:
    words = (
        "train.optimizer=adamw",
        "train.learning_rate=0.02",
        "train.local_epochs=4",
        "adapters.rank=8",
    )
    settings = make(kind, "num_rounds=6", "num_clients=2", *words)
    simulate(settings)
    losses = [line["train"]["loss"] for line in history(settings.run_dir)]
    assert losses[-1] < 0.8 * losses[1]


def test_gradient_checkpointing_changes_no_hash(make: Make) -> None:
    for kind in ("bert", "llama"):
        for is_on in ("true", "false"):
            words = (
                f"train.gradient_checkpointing={is_on}",
                f"run_dir={kind}-{is_on}",
                "num_rounds=1",
            )
            simulate(make(kind, *words))
        assert hashes(Path(f"{kind}-true")) == hashes(Path(f"{kind}-false"))


def test_a_frozen_base_may_be_bf16(make: Make) -> None:
    settings = make(
        "bert", "adapters.base_precision=bf16", "precision=bf16", "num_rounds=1"
    )
    simulate(settings)
    state = opened(settings)
    kinds = {
        name: weight.dtype
        for name, weight in state.text_model.model.named_parameters()
        if weight.dim() > 1
    }
    frozen = state.text_model.frozen
    assert {kind for name, kind in kinds.items() if name in frozen} == {torch.bfloat16}
    assert {kind for name, kind in kinds.items() if name not in frozen} == {
        torch.float32
    }
    with pytest.raises(
        ValueError, match=r"^adapters\.base_precision is bf16.*precision=fp32"
    ):
        make("bert", "adapters.base_precision=bf16")


def test_heads_per_site_and_warm_up_work_with_adapters(make: Make) -> None:
    settings = make(
        "distilbert",
        "train.head_init=per_site",
        "train.head_warmup_rounds=1",
        "num_rounds=2",
    )
    simulate(settings)
    first, second = history(settings.run_dir)[1:]
    assert first["diagnostics"]["body_norm"] == pytest.approx(0, abs=1e-6)
    assert second["diagnostics"]["body_norm"] > 1e-6


def test_missing_layers_are_refused_and_the_models_layers_named(
    make: Make, models: dict[str, Path]
) -> None:
    with pytest.raises(
        ValueError, match=r"^adapters\.targets: .*q_lin.*'bert'.*query.*=\[…\]"
    ):
        opened(make("bert", "adapters.targets=[q_lin]"))
    opened(make("bert", "adapters.targets=[key,dense]"))


def test_an_unknown_architecture_needs_adapters_targets(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(
        __import__("wardround.common.model.adapters", fromlist=["TARGETS"]).TARGETS,
        "bert",
    )
    with pytest.raises(
        ValueError, match=r"^adapters\.targets: .*'bert'.*query.*=\[…\]"
    ):
        opened(make("bert"))
