"""The released model of a run: a folder that `transformers` can load, with a model card."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from wardround.common.files import write_atomically
from wardround.common.model.adapters import merged_tensors, save_adapter
from wardround.common.model.blend import save_blended
from wardround.common.model.build import TextModel
from wardround.common.model.flat import files_sha256
from wardround.common.model.padding import sees_padding
from wardround.common.model_files import read_model_files
from wardround.common.pretrained import RUN_SETTINGS, quietly
from wardround.common.provenance import FILE_NAME as PROVENANCE
from wardround.common.provenance import Provenance, folder_hashes
from wardround.common.settings.tree import Settings
from wardround.common.tasks.task import Task
from wardround.server.record import RoundRecord, TestRecord, best_of
from wardround.server.run_folder import RunFolder

ADAPTER = "adapter"


class Certifier(Protocol):
    """Signs the origin of a model."""

    def provenance_of(self, run: RunFolder, kept: RoundRecord) -> Provenance:
        """Return the origin of the model after the round `kept`, still without its files.

        Raises:
            ValueError: the answers in the run's folder have changed.
        """

    def sign_provenance(self, provenance: Provenance) -> dict[str, str]:
        """Return the content of `provenance.json`: signed envelopes by name."""


def save_model(
    folder: RunFolder,
    settings: Settings,
    text_model: TextModel,
    certifier: Certifier | None = None,
) -> None:
    """Write `model/`: weights, config with label names, tokenizer, settings, card and provenance.

    If a validation part chose a round, the model is that of the best round, else that of the last.
    """
    history = folder.history()
    kept = best_of(history, text_model.task) or history[-1]
    provenance = certifier.provenance_of(folder, kept) if certifier else None
    label_names = tuple((text_model.model.config.id2label or {}).values())
    # The labels are in the order of the model's outputs, whether they were declared or found.
    data = replace(settings.data, label_names=label_names)
    public = replace(settings, data=data).without_places()

    def write(part: Path) -> None:
        part.mkdir()
        with quietly():
            if settings.adapters.name != "none":
                _save_adapted(text_model, settings, part)
            elif settings.model.activation == "abu":
                save_blended(text_model.model, settings.model, part)
            else:
                text_model.model.save_pretrained(part)
            _save_tokenizer(text_model, settings, part)
        (part / "README.md").write_text(
            _card(kept, history[-1].round, settings, text_model, provenance),
            encoding="utf-8",
        )
        (part / RUN_SETTINGS).write_text(public.to_json() + "\n", encoding="utf-8")
        if certifier is not None and provenance is not None:
            signed = certifier.sign_provenance(_with_files(provenance, part))
            (part / PROVENANCE).write_text(
                json.dumps(signed, indent=2), encoding="ascii"
            )

    write_atomically(folder.path / "model", write)


def _save_tokenizer(text_model: TextModel, settings: Settings, part: Path) -> None:
    """Write the tokenizer, so that it gives a pipeline what training gave the model."""
    names = text_model.tokenizer.model_input_names
    if not settings.train.attention_mask:
        text_model.tokenizer.model_input_names = ["input_ids"]
    text_model.tokenizer.save_pretrained(part)
    text_model.tokenizer.model_input_names = names


def _with_files(provenance: Provenance, part: Path) -> Provenance:
    """Add the hashes of the files that were written; the file itself is left out."""
    weights = [part / name for name in read_model_files(part).weights()]
    as_trained = files_sha256(weights) == provenance.model_sha256
    return replace(provenance, files=folder_hashes(part), tensors_as_trained=as_trained)


def _save_adapted(text_model: TextModel, settings: Settings, part: Path) -> None:
    """Write the merged model; also the adapters alone, if their base model has its own head."""
    merged = merged_tensors(text_model.model, settings.adapters)
    text_model.model.save_pretrained(part, state_dict=merged)
    if settings.model.head != "distilbert":
        base = settings.for_sites().model.name
        save_adapter(text_model, settings.adapters, base, part / ADAPTER)


def _card(
    kept: RoundRecord,
    last_round: int,
    settings: Settings,
    text_model: TextModel,
    provenance: Provenance | None,
) -> str:
    assert kept.test is not None, "a run ends with a model that was measured"
    labels = ", ".join(
        f"`{name}`" for name in (text_model.model.config.id2label or {}).values()
    )
    train = settings.train
    choice = _choice(kept, last_round, text_model.task)
    return f"""---
library_name: transformers
pipeline_tag: {text_model.task.pipeline}
tags: [federated-learning, wardround]
---
# {settings.cell}

{settings.model.short_name}, fine-tuned on {settings.data.name} by federated averaging over
{settings.num_taking_part} client(s) with Wardround. The texts never left the clients.

| | |
|---|---|
| labels | {labels} |
{_metrics(kept.test, text_model.task)}| rounds | {kept.round}{choice} |
| protocol | {settings.protocol.name}, partition {settings.partition.name}, seed {settings.seed} |
| local training | {train.local_epochs} epoch(s) a round, batch {train.batch_size}, \
{train.optimizer}, learning rate {train.learning_rate:g} |
{_trained(settings)}| text length | cut to {train.max_length} tokens |
| SHA-256 of the shared tensors | `{kept.model_sha256}` |
{_provenance(provenance)}
Use: {_use(settings, text_model)}. The licence of the base model and the terms of the \
data apply.
"""


def _metrics(test: TestRecord, task: Task) -> str:
    """Return a row of the card for each metric."""
    found = test.metrics
    first, *others = (
        f"| test {words} | {found[name]:.4f}"
        for name, words in task.metric_words.items()
    )
    first = f"{first} on {test.num_examples} examples"
    return "".join(f"{row} |\n" for row in (first, *others))


def _use(settings: Settings, text_model: TextModel) -> str:
    """Return how to load the folder."""
    task = text_model.task
    if settings.model.activation == "abu":
        return (
            "its activations are blended, which plain transformers cannot load: "
            "`wardround predict`, or\n"
            "`wardround.common.model.blend.load_blended(<this folder>)` in Python"
        )
    loaded = f'`transformers.pipeline("{task.pipeline}", <this folder>)`'
    cut = f"truncation=True,\nmax_length={settings.train.max_length}"
    if sees_padding(text_model.model) or not settings.train.attention_mask:
        return (
            f'{loaded}; pass `padding="max_length", {cut}`\nwith every text: '
            "the model sees padding, and was trained with it"
        )
    return f"{loaded}; pass `{cut}` for long texts"


def _trained(settings: Settings) -> str:
    """Return the card's row about adapters; empty if there are none."""
    adapters = settings.adapters
    if adapters.name == "none":
        return ""
    beside = (
        f"; by themselves in `{ADAPTER}`" if settings.model.head != "distilbert" else ""
    )
    trained = f"{adapters.name} of rank {adapters.rank} and the head"
    return f"| trained | {trained}, merged here{beside} |\n"


def _choice(kept: RoundRecord, last_round: int, task: Task) -> str:
    """Return how the round was chosen; empty if it is the last."""
    if kept.validation is None:
        return ""
    found = kept.validation.score(task)
    num_examples = kept.validation.num_examples
    return (
        f", the best of {last_round} on the validation part ({found:.4f} on {num_examples} "
        "examples)"
    )


def _provenance(found: Provenance | None) -> str:
    """Return the card's rows about the content of `PROVENANCE`; empty if nothing is signed."""
    if found is None:
        return ""
    sites = ", ".join(f"{name} (`{key}`)" for name, key in found.sites.items())
    return f"""| plan | `{found.plan}` |
| sites, and fingerprints of their keys | {sites} |
| updates in it | {len(found.updates)}, each with the hash of the site's signed answer in \
`{PROVENANCE}` |
"""
