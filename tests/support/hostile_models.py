"""Model folders of an attacker: they bring code, an adapter or other weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

_CODE = """from pathlib import Path
Path({marker!r}).write_text("the code of the folder was run")
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer
class EvilConfig(BertConfig):
    model_type = "evil"
class EvilModel(BertForSequenceClassification):
    config_class = EvilConfig
class EvilTokenizer(BertTokenizer):
    pass
"""
_MAP = {
    "AutoConfig": "evil.EvilConfig",
    "AutoModelForSequenceClassification": "evil.EvilModel",
    "AutoTokenizer": [None, "evil.EvilTokenizer"],
}


def change_json(file: Path, **changes: Any) -> None:
    """Set these keys of a JSON file."""
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | changes))


def copy_of(model: Path, folder: Path) -> Path:
    """Copy a model to a new folder. Return the folder."""
    shutil.copytree(model, folder)
    return folder


def bring_code(folder: Path, marker: Path) -> Path:
    """Let a model's folder name its own code, which writes `marker`. Return the folder."""
    (folder / "evil.py").write_text(_CODE.format(marker=str(marker)))
    change_json(folder / "config.json", model_type="evil", auto_map=_MAP)
    return folder


def bring_code_in_blends(folder: Path, marker: Path) -> Path:
    """Let the inner configuration of a blended model name code. Return the folder.

    transformers knows the type, but no text classifier of it, and looks for one in
    `auto_map`.
    """
    (folder / "evil.py").write_text(_CODE.format(marker=str(marker)))
    base = {"model_type": "vit", "name_or_path": str(folder), "auto_map": _MAP}
    config = {
        "model_type": "wardround_blended",
        "where": "head",
        "normalisation": "none",
        "base": base,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def bring_adapter(folder: Path) -> Path:
    """Put an adapter beside a model. transformers adds it silently. Return the folder."""
    adapter = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": str(folder),
        "r": 2,
        "lora_alpha": 64,
        "target_modules": ["query"],
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(adapter))
    config = json.loads((folder / "config.json").read_text())
    width = config["hidden_size"]
    tensors = {}
    for number in range(config["num_hidden_layers"]):
        layer = f"base_model.model.bert.encoder.layer.{number}.attention.self.query"
        tensors[f"{layer}.lora_A.weight"] = torch.ones(2, width)
        tensors[f"{layer}.lora_B.weight"] = torch.ones(width, 2)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def name_other_weights(folder: Path) -> Path:
    """Let `config.json` name other weights than `model.safetensors`. Return the folder."""
    tensors = {
        name: tensor + 1
        for name, tensor in load_file(folder / "model.safetensors").items()
    }
    save_file(tensors, folder / "other.safetensors", metadata={"format": "pt"})
    change_json(folder / "config.json", transformers_weights="other.safetensors")
    return folder


def change_tokenizer(folder: Path) -> Path:
    """Give every word another number, with the same weights. Return the folder."""
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    words = content["model"]["vocab"]
    numbers = [0, 1, 2, 3, 4, *range(len(words) - 1, 4, -1)]
    content["model"]["vocab"] = dict(zip(words, numbers, strict=True))
    file.write_text(json.dumps(content))
    return folder
