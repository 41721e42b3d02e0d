"""Every architecture of transformers with a classification head, tried once with a tiny model.

    python -m benchmarks.architectures --results FOLDER [KIND ...]

Each trial is a process of its own: a tiny random model whose tokenizer pads on the left, one
round in process, `predict`, a pipeline of transformers on the released folder, and a site's check
of the model. FOLDER keeps one JSON file for each architecture, and a kept result is not computed
again. When all are there, docs/reference/architectures.md is written.
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import math
import multiprocessing
import os
import string
import tempfile
import textwrap
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import chdir
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from tests.support.site_lab import look, make_site
from wardround import api
from wardround.common.data.corpus import forget_corpora
from wardround.common.explain import first_line
from wardround.common.model.padding import HIDES_PADDING
from wardround.common.pretrained import quietly
from wardround.server.predict import open_predictor

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reference" / "architectures.md"
SECONDS = 120
MAX_LENGTH = 32
_TOLERANCE = 1e-4
"""Largest difference of two probabilities that count as equal."""
_VISIBLE = 5e-7
"""Smallest change of a logit in fp64, as a share of the largest logit, that shows padding."""
_MOST_LETTERS = 200
"""Length of a reason on the page."""
_MARKS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_WORDS = [
    "heart",
    "lung",
    "knee",
    "hip",
    "the",
    "a",
    "of",
    "pain",
    "and",
    "was",
    "good",
    "bad",
]
_SIZES = {
    32: "hidden_size d_model n_embd dim n_embed emb_dim embed_dim embedding_size "
    "word_embed_proj_dim input_embedding_size output_embedding_size d_latents "
    "entity_emb_size true_hidden_size intra_bottleneck_size pooler_hidden_size",
    2: "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers "
    "num_decoder_layers num_attention_heads n_head n_heads num_heads num_key_value_heads "
    "encoder_attention_heads decoder_attention_heads num_kv_heads num_experts_per_tok "
    "num_self_attention_heads num_cross_attention_heads linear_num_key_heads "
    "linear_num_value_heads num_experts_per_token mamba_n_heads n_mamba_heads",
    4: "num_experts num_local_experts n_routed_experts",
    8: "qk_rope_head_dim qk_nope_head_dim v_head_dim rotary_dim",
    16: "head_dim d_head d_kv linear_key_head_dim linear_value_head_dim kv_lora_rank "
    "q_lora_rank kv_channels attention_head_size mamba_headdim segment_means_seq_len",
    64: "intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim d_ff n_inner hidden_dim "
    "moe_intermediate_size shared_expert_intermediate_size d_inner max_position_embeddings "
    "n_positions max_seq_len",
}
SMALL = {name: size for size, names in _SIZES.items() for name in names.split()}
"""Sizes of a tiny model, by the names that configurations of transformers use."""
SPECIAL: dict[str, dict[str, Any]] = {
    "nystromformer": {"segment_means_seq_len": 64, "num_landmarks": 64},
    "lilt": {"channel_shrink_ratio": 4, "hidden_size": 48},
    "reformer": {"axial_pos_shape": (8, 8), "axial_pos_embds_dim": (16, 16)},
    "xmod": {"default_language": "en_XX"},
    "gpt_neo": {
        "attention_types": [[["global"], 2]],
        "attention_layers": ["global"] * 2,
    },
    "nemotron": {"num_key_value_heads": 2},
    "zamba": {"layer_types": ["mamba", "hybrid"]},
    "zamba2": {"layer_types": ["mamba", "hybrid"]},
    "jamba": {"attn_layer_offset": 1, "attn_layer_period": 2},
    "layoutlmv3": {"coordinate_size": 4, "shape_size": 8},
    "axk1": {"head_dim": 8, "n_group": 1, "topk_group": 1},
    "deepseek_v3": {"head_dim": 8},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "ministral": {"head_dim": 16},
    "cohere_compass_text": {"rope_parameters": None},
}
"""Further fields that one architecture needs, by `model_type`."""


@dataclass(frozen=True)
class Trial:
    """The result of one architecture."""

    kind: str
    outcome: str
    """`equal`, `refused`, `skipped` or `failed`."""
    reason: str = ""
    """Why it is not equal; empty if it is."""
    shift: float | None = None
    """Change of a logit by padding in fp64, as a share; None if that was not measured."""

    @property
    def padding(self) -> str:
        """Return how padding was measured: `hidden`, `visible`, or `-`."""
        if self.shift is None:
            return "-"
        return "visible" if self.shift > _VISIBLE else "hidden"


def kinds() -> list[str]:
    """Return `model_type` of every architecture with a head for classification."""
    from transformers.models.auto import modeling_auto

    return sorted(modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES)


def tokenizer_of_words(**more: Any) -> Any:
    """Return a WordPiece tokenizer that pads on the left. Args: more: further options."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    signs = string.ascii_lowercase + string.digits
    entries = [*_MARKS, *_WORDS, *signs, *(f"##{sign}" for sign in signs)]
    vocab = {entry: number for number, entry in enumerate(dict.fromkeys(entries))}
    core = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(mark, vocab[mark]) for mark in ("[CLS]", "[SEP]")],
    )
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    marks = dict(zip(names, _MARKS, strict=True))
    return PreTrainedTokenizerFast(
        tokenizer_object=core, padding_side="left", **marks | more
    )


def tiny_config(kind: str, vocab_size: int) -> Any:
    """Return a small configuration of this architecture, with two labels."""
    from transformers import CONFIG_MAPPING

    config_class: Any = CONFIG_MAPPING[kind]
    fields = {
        "vocab_size": vocab_size,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "initializer_range": 0.2,
    }
    defaults = config_class().to_dict()
    values = _shrunk(defaults, fields | SPECIAL.get(kind, {}))
    config = config_class(**values)
    config.num_labels = 2
    if getattr(config, "is_encoder_decoder", False):
        config.decoder_start_token_id = 2
    return config


def _shrunk(values: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a configuration with small sizes, at every depth."""
    depth = values.get("num_hidden_layers")
    found: dict[str, Any] = {}
    for key, value in values.items():
        is_number = isinstance(value, int) and not isinstance(value, bool)
        if key in fields:
            found[key] = fields[key]
        elif isinstance(value, dict) and key.endswith("config"):
            found[key] = _shrunk(value, fields)
        elif key in SMALL and (is_number or value is None):
            found[key] = SMALL[key] if is_number else None
        elif isinstance(value, list) and depth and len(value) == depth:
            found[key] = [value[0], value[-1]]
        elif key not in ("id2label", "label2id", "model_type", "architectures"):
            found[key] = copy.copy(value)
    return found


def write_texts(path: Path) -> list[str]:
    """Write 24 labelled texts of different lengths; return the texts."""
    rows = []
    for number in range(24):
        words = [
            _WORDS[(number * step) % len(_WORDS)] for step in range(1, 3 + number % 9)
        ]
        rows.append((" ".join([*words, str(number)]), ("sick", "well")[number % 2]))
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    return [text for text, _ in rows]


def shift_of(model: Any) -> float | None:
    """Return how much padding moves a logit in fp64, as a share; None if fp64 does not run."""
    wide = copy.deepcopy(model).double().eval()
    ids = torch.tensor([[2, 8, 20, 9, 30, 11, 3]])
    padded = torch.nn.functional.pad(ids, (0, 13))
    try:
        with torch.no_grad():
            alone = wide(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
            beside = wide(input_ids=padded, attention_mask=(padded > 0).long()).logits
    except Exception:  # some architectures compute in fp32 only
        return None
    share = float((alone - beside).abs().max() / alone.abs().max())
    return share if math.isfinite(share) else None


def try_out(kind: str, tokenizer: Any = None) -> Trial:
    """Try one architecture in the working folder."""
    tokenizer = tokenizer or tokenizer_of_words(model_max_length=64)
    try:
        model = _build(kind, tokenizer)
    except Exception as error:  # each configuration has rules of its own
        return Trial(kind, "skipped", f"no tiny model: {first_line(error)}")
    shift = shift_of(model)
    if shift is not None and shift > _VISIBLE and kind in HIDES_PADDING:
        return Trial(
            kind, "failed", "HIDES_PADDING names it, but it sees padding", shift
        )
    texts = write_texts(Path("texts.csv"))
    forget_corpora()
    try:
        _run()
    except ValueError as error:
        return Trial(kind, "refused", first_line(error), shift)
    except Exception:
        return Trial(kind, "failed", traceback.format_exc().splitlines()[-1], shift)
    try:
        reason = _difference(kind, texts)
    except Exception:
        return Trial(kind, "failed", traceback.format_exc().splitlines()[-1], shift)
    return Trial(kind, "failed" if reason else "equal", reason, shift)


def _build(kind: str, tokenizer: Any) -> Any:
    """Write a tiny model to the folder `model`."""
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    config = tiny_config(kind, len(tokenizer))
    with quietly():
        model = AutoModelForSequenceClassification.from_config(config)
        model.save_pretrained("model")
        tokenizer.save_pretrained("model")
    return model


def _run() -> None:
    """Train for one round."""
    api.simulate(
        "model=hf",
        "model.label=tiny",
        "model.name=model",
        "data=files",
        "data.path=texts.csv",
        "data.token_cache=null",
        "num_clients=2",
        "num_rounds=1",
        f"train.max_length={MAX_LENGTH}",
        "train.learning_rate=0.01",
        "threads=1",
        "run_dir=run",
    )


def _difference(kind: str, texts: Sequence[str]) -> str:
    """Return which answers of the released model differ; empty if none does."""
    predictor = open_predictor(Path("run"), "cpu")
    together = _probabilities(predictor.answer(texts))
    alone = [_probabilities(predictor.answer([text]))[0] for text in texts]
    if _gap(together, alone) > _TOLERANCE:
        return (
            f"predict: the texts beside it move a text by {_gap(together, alone):.1e}"
        )
    # A pipeline cannot take the memories in XLNet's output apart by text.
    piped = _pipeline(texts, batch_size=1 if kind == "xlnet" else 8)
    if _gap(together, piped) > _TOLERANCE:
        return f"pipeline and predict differ by {_gap(together, piped):.1e}"
    site = make_site(Path("site").absolute(), 9, Path("texts.csv").absolute())
    found = look(
        site, "model", model=str(Path("run/model").absolute()), max_length=MAX_LENGTH
    )
    if found["model"].state == "problem":
        return f"check: {found['model'].message}"
    return ""


def _probabilities(rows: Iterable[Sequence[Any]]) -> list[list[float]]:
    return [[float(value) for value in row[2:]] for row in rows]


def _pipeline(texts: Sequence[str], batch_size: int) -> list[list[float]]:
    """Return the probabilities of a pipeline of transformers, as the model card describes it."""
    from transformers import pipeline

    card = Path("run/model/README.md").read_text(encoding="utf-8")
    padding: Any = "max_length" if 'padding="max_length"' in card else True
    with quietly():
        labeller: Any = pipeline(
            "text-classification", "run/model", top_k=None, batch_size=batch_size
        )
        answers: Any = labeller(
            list(texts), truncation=True, max_length=MAX_LENGTH, padding=padding
        )
    names: dict[int, str] = labeller.model.config.id2label
    found: list[list[float]] = []
    for answer in answers:
        scores = {entry["label"]: entry["score"] for entry in answer}
        found.append([scores[names[number]] for number in range(len(names))])
    return found


def _gap(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]) -> float:
    return float((torch.tensor(first) - torch.tensor(second)).abs().max())


# --- all of them --------------------------------------------------------------------------


def try_apart(kind: str, results: Path) -> None:
    """Try one architecture in a process of its own, and keep its result."""
    process = multiprocessing.get_context("fork").Process(
        target=_work, args=(kind, results)
    )
    process.start()
    process.join(SECONDS)
    if process.is_alive():
        process.kill()
        process.join()
        _keep(Trial(kind, "skipped", f"no result after {SECONDS} seconds"), results)
    elif process.exitcode:
        _keep(Trial(kind, "failed", f"exit code {process.exitcode}"), results)


def _warm_up() -> None:
    """Import what every trial needs, once for all processes."""
    import peft  # noqa: F401
    from transformers import AutoModelForSequenceClassification, pipeline  # noqa: F401

    import wardround.client.app
    import wardround.server.app
    import wardround.server.compose
    import wardround.server.engines.simulate  # noqa: F401

    torch.set_num_threads(1)
    for kind in ("bert", "llama"):
        AutoModelForSequenceClassification.from_config(tiny_config(kind, 80))


def _work(kind: str, results: Path) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        trial = try_out(kind)
    _keep(trial, results)


def _keep(trial: Trial, results: Path) -> None:
    file = results / f"{trial.kind}.json"
    file.write_text(json.dumps(asdict(trial), indent=2) + "\n", encoding="utf-8")


def _kept(results: Path, names: Iterable[str]) -> Iterator[Trial]:
    for kind in names:
        file = results / f"{kind}.json"
        if file.exists():
            yield Trial(**json.loads(file.read_text(encoding="utf-8")))


def page(trials: Sequence[Trial]) -> str:
    """Return the page of all results, in Markdown."""
    counts = {
        outcome: sum(trial.outcome == outcome for trial in trials)
        for outcome in ("equal", "refused", "skipped", "failed")
    }
    said = ", ".join(
        f"{number} {outcome}" for outcome, number in counts.items() if number
    )
    rows = "".join(
        f"| `{trial.kind}` | {trial.outcome} | {trial.padding} | {_cell(trial.reason)} |\n"
        for trial in trials
    )
    return f"""# Architectures

Every architecture with a classification head that transformers {version("transformers")} knows,
tried once: {len(trials)} architectures, {said}. The command is
`python -m benchmarks.architectures --results FOLDER`.
Each trial takes a tiny random model whose tokenizer pads on the left. It trains one round,
labels texts with `predict`, alone and beside others, labels them with `transformers.pipeline`
on the released folder, and lets a site check the model.

- *equal*: all answers agree within {_TOLERANCE:g}.
- *refused*: one message before training says why.
- *skipped*: no tiny model could be made, so that nothing is known about it.
- *padding*: whether padding moves the logits of a text in fp64, although it is masked. If it
  does, or if that is not known (`-`), all batches are padded to `train.max_length`, in training,
  evaluation and `predict`.

| `model_type` | result | padding | reason |
|---|---|---|---|
{rows}"""


def _cell(text: str) -> str:
    line = text.replace("|", "/").replace("\n", " ")
    return textwrap.shorten(line, _MOST_LETTERS, placeholder=" …")


def main() -> None:
    """Try what has no result yet, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("kinds", nargs="*")
    asked = parser.parse_args()
    results: Path = asked.results.absolute()
    results.mkdir(parents=True, exist_ok=True)
    _warm_up()
    for kind in asked.kinds or kinds():
        if asked.kinds or not (results / f"{kind}.json").exists():
            try_apart(kind, results)
        print(*_kept(results, [kind]), flush=True)  # noqa: T201
    trials = list(_kept(results, kinds()))
    if len(trials) == len(kinds()):
        PAGE.parent.mkdir(parents=True, exist_ok=True)
        PAGE.write_text(page(trials), encoding="utf-8")


if __name__ == "__main__":
    main()
