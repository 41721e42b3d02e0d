"""Adapters: small tensors are trained and sent, the base stays, and the released model is plain."""

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
    """Settings with adapters, for a model by its kind."""
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
    """A fresh model, on its starting weights, without dropout."""
    state = open_model(settings, LABELS, fresh=True)
    state.text_model.model.eval()
    return state


def logits(state: ModelState) -> torch.Tensor:
    """Of a few token ids, (3, 3)."""
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
def test_adapters_and_the_whole_new_head_are_all_that_is_trained(
    make: Make, kind: str
) -> None:
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
def test_a_round_moves_nothing_else(make: Make, engine: tuple[str, ...]) -> None:
    settings = make("distilbert", "num_rounds=1", *engine)
    layout = opened(settings).layout
    simulate(settings)
    line = history(settings.run_dir)[-1]
    # fp32, three clients, both ways
    assert line["bytes"] == {"up": 3 * 4 * layout.size, "down": 3 * 4 * layout.size}
    saved = load_file(
        Path(settings.run_dir) / "checkpoint" / "round-000001" / "shared.safetensors"
    )
    assert set(saved) == set(layout.names)
    start, after = (
        load_file(
            Path(settings.run_dir)
            / "checkpoint"
            / "round-000000"
            / "shared.safetensors"
        ),
        saved,
    )
    assert all(
        not torch.equal(start[name], after[name])
        for name in layout.names
        if "lora_A" not in name
    )
    assert line["diagnostics"]["head_norm"] > 0
    assert line["diagnostics"]["body_norm"] > 0


@pytest.mark.long
@pytest.mark.slow
def test_workers_make_no_difference(make: Make) -> None:
    for workers in (1, 2):
        simulate(
            make(
                "bert", f"engine.workers={workers}", "threads=1", f"run_dir=w{workers}"
            )
        )
    assert hashes(Path("w1")) == hashes(Path("w2"))


@pytest.mark.parametrize("name", ["lora", "lora_ffa"])
def test_a_killed_run_goes_on(
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
    # Two sites, rank 1: B A is 1 * 1 and 3 * 5, whose mean is 8; the mean B is 2, the mean A is 3.
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
    first, second = (
        {
            name: tensor.clone()
            for name, tensor in opened(settings).text_model.model.state_dict().items()
        }
        for _ in range(2)
    )
    drawn = [name for name in first if "lora_A" in name]
    assert drawn
    assert all(torch.equal(first[name], second[name]) for name in drawn)
    other = opened(
        replace(settings, seed=settings.seed + 1)
    ).text_model.model.state_dict()
    assert not torch.equal(first[drawn[0]], other[drawn[0]])


def test_another_base_is_another_model(
    make: Make, models: dict[str, Path], tmp_path: Path
) -> None:
    settings = make("bert")
    ours = opened(settings).layout
    folder = Path(shutil.copytree(models["bert"], tmp_path / "other"))
    tensors = load_file(folder / "model.safetensors")
    tensors["encoder.layer.0.output.dense.bias"][0] += 1e-6
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    theirs = opened(
        replace(settings, model=replace(settings.model, name=str(folder)))
    ).layout
    assert ours.names == theirs.names
    assert ours.digest != theirs.digest


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_leaves_a_plain_model_and_its_adapter(
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
    assert (
        "| trained | lora of rank 2 and the head, merged here; by themselves in `adapter` |"
        in card
    )
    assert str(models[kind]) not in card
    out = io.StringIO()
    predict(folder, ["the match today", "a loan"], None, "text", "cpu", out)
    assert len(out.getvalue().splitlines()) == 3


def test_merging_is_w_plus_alpha_over_rank_b_a(make: Make) -> None:
    settings = make("bert", "adapters.alpha=6")
    state = opened(settings)
    state.flat.fill_(1.0)
    name = "bert.encoder.layer.0.attention.self.query.weight"
    base = state.text_model.model.state_dict()[
        name.replace(".weight", ".base_layer.weight")
    ]
    # B A of ones is the rank in every place: alpha / rank * rank = 6.
    torch.testing.assert_close(
        merged_tensors(state.text_model.model, settings.adapters)[name], base + 6
    )


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("padding", ["longest", "max_length"])
def test_a_decoders_logits_do_not_depend_on_the_batch(
    make: Make, kind: str, padding: str
) -> None:
    settings = make(kind, f"train.padding={padding}")
    corpus, state = open_corpus(settings), opened(settings)
    pad_to = settings.train.max_length if padding == "max_length" else None
    texts, everyone = corpus.test, np.arange(12)
    assert len(set(texts.lengths_of(everyone))) > 2
    with torch.no_grad():
        together, *single = (
            forward(
                state.text_model.model,
                texts.batch(rows, pad_to=pad_to, mask=True, device=torch.device("cpu")),
            )
            for rows in (
                everyone,
                *(everyone[number : number + 1] for number in everyone),
            )
        )
    torch.testing.assert_close(together, torch.cat(single), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(together[0], together[1])


def test_padding_is_no_token_that_texts_end_with(make: Make) -> None:
    found = {}
    for kind in DECODERS:
        classifier = opened(make(kind)).text_model
        assert classifier.model.config.pad_token_id == classifier.tokenizer.pad_token_id
        found[kind] = classifier.tokenizer.pad_token
    # The first has none of its own, and takes what texts begin with.
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


def test_recomputing_changes_no_number(make: Make) -> None:
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
        ValueError,
        match=r"adapters\.base_precision is bf16, with adapters\.name=lora and",
    ):
        make("bert", "adapters.base_precision=bf16")


def test_heads_per_site_and_warm_up_work_beside_adapters(make: Make) -> None:
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


def test_layers_that_are_not_there_are_named(
    make: Make, models: dict[str, Path]
) -> None:
    with pytest.raises(
        ValueError,
        match=r"the layers to adapt are q_lin.*type 'bert' has these: .*query",
    ):
        opened(make("bert", "adapters.targets=[q_lin]"))
    opened(make("bert", "adapters.targets=[key,dense]"))


def test_an_unknown_architecture_has_to_name_its_layers(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(
        __import__("wardround.common.model.adapters", fromlist=["TARGETS"]).TARGETS,
        "bert",
    )
    with pytest.raises(
        ValueError, match=r"are not known, and a model of type 'bert' has these: "
    ):
        opened(make("bert"))
