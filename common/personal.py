"""What each site made of a released model, `personal.json`: in a run folder all sites', at a site its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from wardround.common.files import write_json
from wardround.common.settings.evaluation import PersonalisationSettings
from wardround.common.tasks.sums import Sums
from wardround.common.tasks.task import Task

FILE_NAME = "personal.json"
HEADER = ("Site", "Texts", "Local", "Global", "Fine-tuned", "Mixture", "Chosen")
_COLUMNS = ("local", "global", "fine_tuned", "mixture")
METHODS = ("global", "fine_tuned", "mixture", "local")
"""Between equals in everything the site takes the one that stands first."""
TRAINED = {"none": (), "all": METHODS[1:], **{name: (name,) for name in METHODS[1:]}}
"""By `personalisation.name`: what is trained and compared with the global model."""
Share = Annotated[float, Field(ge=0, le=1)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class Measure(_Record):
    """What a model makes of some texts."""

    num_examples: int
    accuracy: Share
    accuracy_interval: tuple[Share, Share]
    """95 %, Wilson's."""
    macro_f1: Share
    macro_f1_interval: tuple[Share, Share]
    """95 %, percentile bootstrap."""

    @classmethod
    def of(cls, task: Task, sums: Sums) -> Measure:
        """Return the metrics of an evaluation with their intervals."""
        intervals = {
            f"{name}_interval": interval
            for name, interval in task.intervals(sums).items()
        }
        metrics = task.metrics(sums)
        return cls.model_validate(
            {"num_examples": sums.num_examples} | metrics | intervals
        )


class Candidate(_Record):
    """One model that the site can choose."""

    epoch: int
    """Pass over the site's own texts after which its weights were kept; 0 are those it started from."""
    validation_accuracy: Share
    """What the choice goes by."""
    validation_loss: float | None = None
    """Mean cross-entropy, which decides between equals; None in files from before it was written."""
    test: Measure
    everyone: Measure | None = None
    """On the test texts of all clients; None where they are not at hand, or not asked for."""


class SiteRecord(_Record):
    """What one site has."""

    name: str
    """Of the site, or the number of a client that is none."""
    num_examples: int
    """Own texts to train on."""
    num_opted_out: int
    """Of these, how many took part in no round."""
    num_validation: int
    candidates: Mapping[str, Candidate]
    """By method, a row of `METHODS`."""
    chosen: str
    """One of them, by `choose`."""


def _cell(candidate: Candidate | None, measure: str) -> str:
    if candidate is None:
        return "–"
    low, high = getattr(candidate.test, f"{measure}_interval")
    return f"{getattr(candidate.test, measure):.3f} ({low:.2f}–{high:.2f})"


def choose(candidates: Mapping[str, Candidate]) -> str:
    """The method with the most right validation texts; of several, the one with the lowest loss on them.

    A site with few texts has several methods that get all of them right.
    """

    def rank(method: str) -> tuple[float, float]:
        candidate = candidates[method]
        return candidate.validation_accuracy, -(candidate.validation_loss or 0.0)

    return max((method for method in METHODS if method in candidates), key=rank)


class PersonalRecord(_Record):
    """All sites of a run, or one."""

    model_sha256: str
    """Of the released model that all of it started from."""
    settings: PersonalisationSettings
    """How it was trained, beside the run's own settings."""
    sites: list[SiteRecord] = []

    @classmethod
    def read(cls, folder: Path) -> PersonalRecord | None:
        """Of a folder; None where there is none. Raises ValueError where the file is none of ours."""
        file = folder / FILE_NAME
        return (
            cls.model_validate_json(file.read_text(encoding="utf-8"))
            if file.exists()
            else None
        )

    def or_started(self, folder: Path) -> PersonalRecord:
        """What a folder holds of the same model under the same settings, sites and all; else this record."""
        started = self.read(folder)
        is_same = (
            started is not None
            and started.model_copy(update={"sites": self.sites}) == self
        )
        return started if started is not None and is_same else self

    def write(self, folder: Path) -> None:
        """Inverse of `read`, whole or not at all."""
        write_json(folder / FILE_NAME, self.model_dump(mode="json"))

    def rows(self, measure: str) -> list[list[str]]:
        """Below `HEADER`, of the test part: a line a site, and where there are several their mean.

        Args: measure: `accuracy` or `macro_f1`; with its interval, but for the mean.
        """
        rows = [
            [
                site.name,
                str(site.num_examples),
                *(_cell(site.candidates.get(method), measure) for method in _COLUMNS),
                f"{site.chosen.replace('_', '-')} {_cell(site.candidates[site.chosen], measure)}",
            ]
            for site in self.sites
        ]
        return rows if len(rows) < 2 else [*rows, ["mean", "", *self._means(measure)]]

    def _means(self, measure: str) -> list[str]:
        tests = [
            [site.candidates.get(method) for site in self.sites] for method in _COLUMNS
        ]
        tests.append([site.candidates[site.chosen] for site in self.sites])
        return [
            "–"
            if None in tested
            else f"{mean(getattr(one.test, measure) for one in tested if one):.3f}"
            for tested in tests
        ]

    @property
    def worst(self) -> SiteRecord:
        """The site whose chosen model has the lowest test accuracy; of several, the first."""
        return min(
            self.sites, key=lambda site: site.candidates[site.chosen].test.accuracy
        )
