"""Results of personal models, `personal.json`, of one site or of all sites of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, model_validator

from wardround.common.files import write_json
from wardround.common.settings.evaluation import PersonalisationSettings
from wardround.common.tasks.sums import Sums
from wardround.common.tasks.table import check_ranges
from wardround.common.tasks.task import Task, merit

FILE_NAME = "personal.json"
HEADER = ("Site", "Texts", "Local", "Global", "Fine-tuned", "Mixture", "Chosen")
_COLUMNS = ("local", "global", "fine_tuned", "mixture")
METHODS = ("global", "fine_tuned", "mixture", "local")
"""Between methods that are equal in everything, a site takes the first."""
TRAINED = {"none": (), "all": METHODS[1:], **{name: (name,) for name in METHODS[1:]}}
"""Methods that are trained and compared with the global model, by `personalisation.name`."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class Measure(_Record):
    """Metrics of a model on some texts.

    The further keys are the metrics of the task, each with an interval: `accuracy` and
    `accuracy_interval`, with 95 % confidence.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, float | tuple[float, float]]

    num_examples: int

    @model_validator(mode="after")
    def _in_range(self) -> Self:
        check_ranges(self.__pydantic_extra__)
        return self

    @classmethod
    def of(cls, task: Task, sums: Sums) -> Measure:
        """Return the metrics of an evaluation with their intervals."""
        intervals = task.intervals(sums)
        values: dict[str, Any] = {"num_examples": sums.num_examples}
        for name, value in task.metrics(sums).items():
            values[name] = value
            values[f"{name}_interval"] = intervals[name]
        return cls.model_validate(values)

    def metric(self, name: str) -> float:
        """Return a metric by its name."""
        value = self.__pydantic_extra__[name]
        assert not isinstance(value, tuple), f"{name} is an interval"
        return value

    def interval(self, name: str) -> tuple[float, float]:
        """Return the interval of a metric."""
        value = self.__pydantic_extra__[f"{name}_interval"]
        assert isinstance(value, tuple), f"{name}_interval is a number"
        return value


class Candidate(_Record):
    """One model that the site can choose."""

    epoch: int
    """Pass over the site's own texts whose weights were kept; 0 for the weights at the start."""
    validation_accuracy: float
    """Score on the validation texts. The model with the best score is chosen."""
    validation_loss: float | None = None
    """Mean loss, which decides between equal scores; None in older files."""
    test: Measure
    everyone: Measure | None = None
    """Metrics on the test texts of all clients; None if they were not measured."""


class SiteRecord(_Record):
    """Results of one site."""

    name: str
    """Name of the site, or number of a simulated client."""
    num_examples: int
    """Number of its own training texts."""
    num_opted_out: int
    """Number of these texts that took part in no round."""
    num_validation: int
    candidates: Mapping[str, Candidate]
    """Candidates by method, one of `METHODS`."""
    chosen: str
    """Method that `choose` has chosen."""


def _cell(candidate: Candidate | None, measure: str) -> str:
    if candidate is None:
        return "–"
    low, high = candidate.test.interval(measure)
    return f"{candidate.test.metric(measure):.3f} ({low:.2f}–{high:.2f})"


def _row(site: SiteRecord, measure: str) -> list[str]:
    cells = (_cell(site.candidates.get(method), measure) for method in _COLUMNS)
    method = site.chosen.replace("_", "-")
    chosen = f"{method} {_cell(site.candidates[site.chosen], measure)}"
    return [site.name, str(site.num_examples), *cells, chosen]


def _mean(candidates: Sequence[Candidate | None], measure: str) -> str:
    values = [one.test.metric(measure) for one in candidates if one]
    if len(values) < len(candidates):
        return "–"
    return f"{mean(values):.3f}"


def choose(candidates: Mapping[str, Candidate], task: Task) -> str:
    """Return the method with the best validation score, then the lowest loss.

    At a site with few texts, several methods answer all of them right.
    """

    def rank(method: str) -> tuple[float, float]:
        candidate = candidates[method]
        score = merit(task, candidate.validation_accuracy)
        return score, -(candidate.validation_loss or 0.0)

    return max((method for method in METHODS if method in candidates), key=rank)


class PersonalRecord(_Record):
    """Results of all sites of a run, or of one."""

    model_sha256: str
    """Hash of the released model from which training started."""
    settings: PersonalisationSettings
    """Settings of the training, in addition to those of the run."""
    sites: list[SiteRecord] = []

    @classmethod
    def read(cls, folder: Path) -> PersonalRecord | None:
        """Read the record of a folder; None if there is none.

        Raises ValueError for other content.
        """
        file = folder / FILE_NAME
        if not file.exists():
            return None
        return cls.model_validate_json(file.read_text(encoding="utf-8"))

    def or_started(self, folder: Path) -> PersonalRecord:
        """Return the record in a folder if model and settings are the same; else this one."""
        started = self.read(folder)
        if started is None:
            return self
        is_same = started.model_copy(update={"sites": self.sites}) == self
        return started if is_same else self

    def write(self, folder: Path) -> None:
        """Write the file, whole or not at all."""
        write_json(folder / FILE_NAME, self.model_dump(mode="json"))

    def rows(self, measure: str) -> list[list[str]]:
        """Return a table of the test part: one row a site, and their mean if there are several.

        Args:
            measure: name of a metric. Each cell has its interval, except the mean.
        """
        rows = [_row(site, measure) for site in self.sites]
        if len(rows) > 1:
            rows.append(["mean", "", *self._means(measure)])
        return rows

    def _means(self, measure: str) -> list[str]:
        tests = [
            [site.candidates.get(method) for site in self.sites] for method in _COLUMNS
        ]
        tests.append([site.candidates[site.chosen] for site in self.sites])
        return [_mean(candidates, measure) for candidates in tests]

    def worst(self, task: Task) -> SiteRecord:
        """Return the site whose chosen model has the worst test score; of several, the first."""

        def quality(site: SiteRecord) -> float:
            return merit(task, site.candidates[site.chosen].test.metric(task.score))

        return min(self.sites, key=quality)
