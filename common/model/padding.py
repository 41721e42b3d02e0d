"""Models that see padding: each of their batches has the same width.

Most models hide padding by the attention mask, so that a text's logits do not depend on the
texts beside it. Others have no mask (FNet), or mix neighbours by other means (the convolutions of
ConvBERT, the pieces of CANINE and Nyströmformer).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from wardround.common.explain import first_line
from wardround.common.runtime import torch_stream

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

_MEASURED = """
albert arcee bart bert big_bird bigbird_pegasus biogpt bloom camembert ctrl
data2vec-text deberta deberta-v2 deepseek_v3 diffllama distilbert doge
electra ernie esm esmc eurobert exaone4 falcon flaubert gemma gemma2 gemma3
gemma3_text glm glm4 gpt-sw3 gpt2 gpt_bigcode gpt_neo gpt_neox gptj gte
helium hunyuan_v1_dense ibert jetmoe jina_embeddings_v3 layoutlm layoutlmv3
lilt llama longformer luke markuplm mbart megatron-bert minicpm3 ministral
ministral3 mistral mobilebert modernbert modernbert-decoder modernvbert
mpnet mpt mt5 mvp nemotron nomic_bert olmo olmo2 olmo3 openai-gpt opt
perceiver persimmon phi phi3 plbart qwen2 qwen3 qwen3_5 qwen3_5_text rembert
roberta roberta-prelayernorm roc_bert roformer seed_oss smollm3 squeezebert
stablelm starcoder2 t5 tapas ultrabert ultravbert umt5 xlm xlm-roberta
xlm-roberta-xl
"""
HIDES_PADDING = frozenset(_MEASURED.split())
"""Architectures by `model_type` that were measured to hide padding. They are listed in
docs/reference/architectures.md. All others are padded as in training, which is always right and
takes more time."""
_WIDTHS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
_TEXT = "a b c"


def sees_padding(model: nn.Module) -> bool:
    """Return true unless the architecture is known to hide padding."""
    config = getattr(model, "config", None)
    return config is not None and config.model_type not in HIDES_PADDING


def check_width(
    model: Any, tokenizer: PreTrainedTokenizerBase, max_length: int, has_mask: bool
) -> None:
    """Try a batch of `max_length` tokens, if padding is visible. The model stays as it is.

    Args:
        has_mask: `train.attention_mask`.

    Raises:
        ValueError: the architecture takes no such batch, or none at all.
    """
    if not sees_padding(model):
        return
    error = _fault(model, tokenizer, max_length, has_mask)
    if error is None:
        return
    kind = model.config.model_type
    reason = first_line(error)
    fitting = [
        str(width)
        for width in _WIDTHS
        if width <= tokenizer.model_max_length
        and _fault(model, tokenizer, width, has_mask) is None
    ]
    if fitting:
        raise ValueError(
            f"train.max_length is {max_length}, but a model of type '{kind}' with this "
            f"configuration takes no texts of that many tokens ({reason}). Set train.max_length "
            f"to one of these: {', '.join(fitting)}."
        )
    if has_mask and _fault(model, tokenizer, max_length, False) is None:
        raise ValueError(
            f"train.attention_mask is true, but a model of type '{kind}' with this configuration "
            f"takes no mask ({reason}). Set train.attention_mask=false."
        )
    raise ValueError(
        f"a model of type '{kind}' with this configuration cannot be computed from texts alone "
        f"({reason}). Choose a model of another architecture; they are listed in "
        "docs/reference/architectures.md."
    )


@torch.no_grad()
def _fault(
    model: Any, tokenizer: PreTrainedTokenizerBase, width: int, has_mask: bool
) -> Exception | None:
    """Return the error of a forward pass over one padded text; None if there is none."""
    ids = tokenizer(_TEXT, truncation=True, max_length=width)["input_ids"]
    pad = [tokenizer.pad_token_id or 0] * (width - len(ids))
    inputs = {"input_ids": torch.tensor([ids + pad], device=model.device)}
    if has_mask:
        mask = [1] * len(ids) + [0] * len(pad)
        inputs["attention_mask"] = torch.tensor([mask], device=model.device)
    was_training = model.training
    try:
        for is_training in (True, False):  # Reformer has rules for training alone
            model.train(is_training)
            with torch_stream(0, "probe", device=model.device):
                model(**inputs)
    except Exception as error:  # each architecture fails in its own way
        return error
    finally:
        model.train(was_training)
    return None
