"""The programs of the training benchmark. Each takes a job and returns its speed."""

from __future__ import annotations

import importlib.util
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.inputs import LABELS
from wardround.common.data.tokens import TokenisedTexts
from wardround.common.model.state import open_model
from wardround.common.model.train import Place, train_epochs
from wardround.common.pretrained import read_model, read_tokenizer
from wardround.common.tasks.label import LABEL
from wardround.server.compose import compose

BATCH, LONGEST = 32, 128
_LEARNING_RATE = 1e-4
_FIRST_WORD, _LAST_WORD = 5, 1000


@dataclass(frozen=True)
class Job:
    """A model, its texts, and the way to train."""

    model: Path
    precision: str
    device: str
    threads: int
    lengths: np.ndarray  # (N,) int64, tokens of each text
    overrides: tuple[str, ...] = ()
    """Of Wardround's settings."""

    def texts(self) -> list[np.ndarray]:
        """Return token ids, the same every time: N arrays (T_i,) int64."""
        random = np.random.default_rng(0)
        return [
            random.integers(_FIRST_WORD, _LAST_WORD, length) for length in self.lengths
        ]

    def labels(self) -> np.ndarray:
        """Return labels in turns, (N,) int64."""
        return np.arange(len(self.lengths)) % len(LABELS)


class NotInstalled(RuntimeError):
    """A contender is not installed. The text names the missing package."""


@dataclass(frozen=True)
class Speed:
    """The speed of a job."""

    texts_a_second: float
    gpu_bytes: int
    """The most that PyTorch held there; 0 on a CPU."""

    @classmethod
    def since(cls, started: float, num_texts: int) -> Speed:
        """Args: started: of `time.perf_counter`."""
        speed = num_texts / (time.perf_counter() - started)
        return cls(
            speed, torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
        )


def wardround(job: Job) -> Speed:
    """Train with `wardround.common.model.train.train_epochs`."""
    settings = compose(
        [
            *(
                "model=hf",
                f"model.name={job.model}",
                "data=files",
                "data.path=unused.csv",
            ),
            *(
                f"device={job.device}",
                f"precision={job.precision}",
                f"threads={job.threads}",
            ),
            *(
                "train.local_epochs=1",
                f"train.batch_size={BATCH}",
                f"train.max_length={LONGEST}",
            ),
            *(f"train.learning_rate={_LEARNING_RATE}", *job.overrides),
        ]
    ).settings
    model_state = open_model(settings, LABELS)
    texts = TokenisedTexts(
        ids=np.concatenate(job.texts()).astype(np.int32),
        starts=np.concatenate([[0], np.cumsum(job.lengths)]),
        targets=job.labels(),
        pad_id=0,
    )

    def train(num_texts: int, number: int) -> float:
        place = Place(
            seed=0,
            round=number,
            client=0,
            device=model_state.device,
            precision=job.precision,
        )
        return train_epochs(
            model_state.text_model.model,
            model_state.text_model.task,
            texts,
            np.arange(num_texts),
            settings.train,
            place,
        )

    train(min(BATCH, len(texts)), 1)
    started = time.perf_counter()
    train(len(texts), 2)  # reads its loss from the device, so all work is done
    return Speed.since(started, len(texts))


def hugging_face(job: Job) -> Speed:
    """Train with `transformers.Trainer`.

    Raises:
        NotInstalled: `accelerate`, which it needs, is missing.
    """
    if importlib.util.find_spec("accelerate") is None:
        raise NotInstalled(
            "not installed: accelerate, which the Hugging Face Trainer needs; its rows are empty."
        )
    from transformers import (
        DataCollatorWithPadding,
        PrinterCallback,
        Trainer,
        TrainingArguments,
        logging,
    )

    logging.set_verbosity_error()
    torch.set_num_threads(job.threads)
    model: Any
    model, _ = read_model(job.model, LABEL.model_class(), num_labels=len(LABELS))
    collator = DataCollatorWithPadding(read_tokenizer(job.model))
    rows = [
        {
            "input_ids": ids.tolist(),
            "attention_mask": [1] * len(ids),
            "labels": int(label),
        }
        for ids, label in zip(job.texts(), job.labels(), strict=True)
    ]
    with tempfile.TemporaryDirectory(prefix="wardround-bench-") as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=BATCH,
            num_train_epochs=1,
            learning_rate=_LEARNING_RATE,
            optim="sgd",
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            bf16=job.precision == "bf16",
            use_cpu=job.device == "cpu",
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=job.device != "cpu",
        )

        def train(num_texts: int) -> None:
            chosen: Any = rows[:num_texts]
            trainer = Trainer(
                model=model,
                args=arguments,
                train_dataset=chosen,
                data_collator=collator,
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
            if job.device != "cpu":
                torch.cuda.synchronize()

        train(min(BATCH, len(rows)))
        started = time.perf_counter()
        train(len(rows))
        return Speed.since(started, len(rows))
