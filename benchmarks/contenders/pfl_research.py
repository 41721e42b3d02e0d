"""pfl-research: its SimulatedBackend and FederatedAveraging, written as its own benchmarks are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn

from benchmarks.contenders.job import BATCH, LEARNING_RATE, Clock, Job, read_job


class Classifier(nn.Module):
    """The classifier, with the two methods pfl asks for."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        from transformers import AutoModelForSequenceClassification, logging

        logging.set_verbosity_error()
        self.inner: Any = AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=2
        )

    def loss(self, input_ids: Tensor, labels: Tensor, eval: bool = False) -> Tensor:
        """Return the mean cross-entropy of a batch."""
        self.inner.train(not eval)
        loss: Tensor = self.inner(
            input_ids=input_ids.long(),
            attention_mask=torch.ones_like(input_ids),
            labels=labels.long(),
        ).loss
        return loss

    def metrics(
        self, input_ids: Tensor, labels: Tensor, eval: bool = True
    ) -> dict[str, Any]:
        """Return no metrics: nothing is evaluated."""
        return {}


class Times(TrainingProcessCallback):  # type: ignore[misc]
    """Notes the rounds' ends."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def on_train_begin(self, *, model: Any) -> Any:
        """Note that training begins."""
        self._clock.begin()
        return super().on_train_begin(model=model)

    def after_central_iteration(
        self, aggregate_metrics: Any, model: Any, *, central_iteration: int
    ) -> Any:
        """Note that a round has ended."""
        self._clock.end(central_iteration + 1)
        return super().after_central_iteration(
            aggregate_metrics, model, central_iteration=central_iteration
        )


def datasets(job: Job) -> FederatedDataset:
    """Return every client's texts, dealt like cards."""
    content = json.loads(Path(job.token_ids).read_text(encoding="utf-8"))
    input_ids, labels = (
        torch.tensor(content["input_ids"]),
        torch.tensor(content["labels"]),
    )
    data = {
        k: [input_ids[k :: job.num_clients], labels[k :: job.num_clients]]
        for k in range(job.num_clients)
    }
    return FederatedDataset.from_slices(
        data, get_user_sampler("minimize_reuse", list(data))
    )


def main() -> None:
    """Run the command line."""
    job = read_job()
    torch.set_num_threads(job.threads)
    clock, network = Clock(job), Classifier(job.model)
    model = PyTorchModel(
        model=network,
        local_optimizer_create=torch.optim.SGD,
        central_optimizer=torch.optim.SGD(network.parameters(), lr=1.0),
    )
    data = datasets(job)
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=job.num_rounds,
            evaluation_frequency=job.num_rounds + 1,
            train_cohort_size=job.num_clients,
            val_cohort_size=None,
        ),
        backend=SimulatedBackend(
            training_data=data, val_data=data, postprocessors=[WeightByDatapoints()]
        ),
        model=model,
        model_train_params=NNTrainHyperParams(
            local_batch_size=BATCH,
            local_num_epochs=1 if job.has_steps else 0,
            local_learning_rate=LEARNING_RATE,
        ),
        model_eval_params=NNEvalHyperParams(local_batch_size=BATCH),
        callbacks=[Times(clock)],
    )
    clock.write()


if __name__ == "__main__":
    main()
