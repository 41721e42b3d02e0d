"""A client's own texts, and its settings on this machine."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from wardround.client.answers import Answers
from wardround.client.carried import ArrayKind, Carried, CarriedFiles, CarriedMemory
from wardround.client.held import Held
from wardround.client.policy.limits import refuse_first
from wardround.client.site_file import SiteFile
from wardround.client.sizes import Sizes, size_refusals
from wardround.client.versions import Versions
from wardround.common.data.corpus import Corpus, forget_corpora, open_corpus
from wardround.common.data.opt_outs import NO_LATE_OPT_OUTS, LateOptOuts
from wardround.common.data.partitions import deal_held_out, partition, split_held_out
from wardround.common.errors import SiteRefusal
from wardround.common.files import file_sha256, stamp_of
from wardround.common.settings.data import PartitionSettings
from wardround.common.settings.tree import Settings
from wardround.common.tasks.table import task_of
from wardround.common.tasks.task import Task


@dataclass(frozen=True)
class Examples:
    """A client's own share of a corpus."""

    corpus: Corpus
    train: np.ndarray
    """(n_k,) int64, indices into corpus.train."""
    test: np.ndarray
    """(m_k,) int64, indices into corpus.test: texts that this client holds out."""
    validation: np.ndarray
    """(v_k,) int64, indices into corpus.test: texts that choose the best model. They are not
    reported."""
    opted_out: np.ndarray
    """(o_k,) int64, indices into corpus.opted_out: texts that take part in no round."""

    @classmethod
    def of(
        cls,
        corpus: Corpus,
        train: np.ndarray,
        held_out: np.ndarray,
        opted_out: np.ndarray,
        settings: Settings,
    ) -> Examples:
        """Split the held-out texts. Raises ValueError if there are too few."""
        if settings.evaluation.where == "sites" and len(held_out) == 0:
            raise ValueError(
                "this site holds out no text, but evaluation.where is sites. Add texts, or "
                "set evaluation.where=server."
            )
        fraction = settings.evaluation.validation_fraction
        split_seed = settings.data.split_seed
        seed = settings.seed if split_seed is None else split_seed
        strata = task_of(settings).strata_by_name(
            corpus.test.targets, corpus.label_names
        )
        validation, test = split_held_out(strata, held_out, fraction, seed)
        return cls(corpus, train, test, validation, opted_out)

    @property
    def num_held_out(self) -> int:
        """Number of texts that are not trained on, without those that have opted out."""
        return len(self.test) + len(self.validation)

    def sizes(self, hidden_size: int | None = None) -> Sizes:
        """Count them. Args: hidden_size: as in `Sizes`."""
        num_tokens = int(self.corpus.train.lengths_of(self.train).sum())
        return Sizes(len(self.train), self.num_held_out, num_tokens, hidden_size)


@dataclass(frozen=True)
class Order:
    """The approved plan that a message belongs to. It overrides the message."""

    plan: str
    """SHA-256 of the plan."""
    settings: Settings
    client: int
    """Number of this site among those of the plan, by name."""
    round: int
    """Round in the signed message."""
    age: int
    """Number of rounds behind the model in the message: 0 for the first."""
    data: str
    """SHA-256 of the data file when the plan was approved."""
    most_texts: int = 0
    """The most training texts that a site of the plan may have; 0 if the plan does not say."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for another process of this machine."""
        return vars(self) | {"settings": self.settings.to_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Order:
        """Inverse of `to_dict`."""
        return cls(**values | {"settings": Settings.from_dict(values["settings"])})


@dataclass
class Kept:
    """State of a site's process between two messages."""

    version: str = ""
    """SHA-256 of `tensors`; empty before the first."""
    tensors: np.ndarray | None = None
    """(P,) fp32, the global tensors that were received last."""
    carried: dict[ArrayKind, CarriedMemory] = field(
        default_factory=lambda: defaultdict(CarriedMemory)
    )
    data_stamp: tuple[int, ...] = ()
    """`stamp_of` the site's data file when it was read."""
    held: Held | None = None
    """Files of the plan that was executed last."""


@dataclass(frozen=True)
class SimulatedSite:
    """Client `client` of a simulation: its texts are a part of the run's."""

    client: int
    kept: None = None
    """Nothing is kept: the server's tensors are in the same process."""
    order: None = None

    def carried(self, what: ArrayKind, settings: Settings) -> Carried:
        """Return the place in the run folder."""
        return CarriedFiles(Path(settings.run_dir) / what, self.client)

    def localise(self, settings: Settings) -> Settings:
        """Return the same settings: a simulation shares one machine."""
        return settings

    def examples(self, settings: Settings) -> Examples:
        """Return this client's part of the run's texts. Raises ValueError for bad data."""
        corpus = open_corpus(settings)
        dealt = _deal(
            corpus,
            task_of(settings),
            settings.partition,
            settings.num_clients,
            settings.seed,
        )
        return Examples.of(corpus, *dealt[self.client], settings)


@lru_cache(maxsize=1)
def _deal(
    corpus: Corpus, task: Task, how: PartitionSettings, num_clients: int, seed: int
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return the training, held-out and opted-out examples of every client.

    They are dealt once, because this takes as long as a small round.
    """
    strata = task.strata(corpus.train.targets)
    parts = partition(how, strata, num_clients, seed, corpus.site_sizes)
    held_out = deal_held_out(how, len(corpus.test), num_clients, corpus.test_sizes)
    # Without sites no text can opt out (Settings).
    sizes = corpus.opted_out_sizes if how.name == "by_site" else [0] * num_clients
    opted_out = np.split(np.arange(len(corpus.opted_out)), np.cumsum(sizes)[:-1])
    return list(zip(parts, held_out, opted_out, strict=True))


@dataclass(frozen=True)
class RealSite:
    """A site with its own file. The server can name no path, no column and no device."""

    file: SiteFile
    kept: Kept | None = None
    """None if this process ends with the message."""
    order: Order | None = None
    """None behind a stock SuperNode: its messages have the settings, and nobody approved a plan."""
    client: int = -1

    def carried(self, what: ArrayKind, settings: Settings) -> Carried | None:
        """Return the place in memory; None if the process ends with the message."""
        return None if self.kept is None else self.kept.carried[what]

    def localise(self, settings: Settings) -> Settings:
        """Return the server's settings with this site's own data, model and device."""
        file = self.file
        data = file.data_settings(settings.data)
        model = settings.model
        if file.model is not None:
            model = replace(model, source="hub", name=str(file.model), revision=None)
        elif model.source == "hub" and Path(model.name).exists():
            raise ValueError(
                f"model.name is '{model.name}', which is a path at this site; the server may not "
                "name paths. Set model: in the site's own file."
            )
        return replace(settings, data=data, model=model, device=file.device)

    @property
    def held(self) -> Held:
        """Files of the plan that is executed."""
        assert self.order is not None, "asked for only if there is a plan"
        assert self.kept is not None, "a site that executes plans keeps something"
        folder = Answers(self.file.state).folder(self.order.plan)
        if self.kept.held is None or self.kept.held.folder != folder:
            self.kept.held = Held(folder)
        return self.kept.held

    def examples(self, settings: Settings) -> Examples:
        """Return all texts of the site's file; the same part is held out in every run.

        Raises:
            ValueError: bad data.
            SiteRefusal: the plan was approved for another file, or the texts are too few for the
                plan.
        """
        self._notice_changes()
        late = (
            NO_LATE_OPT_OUTS if self.order is None else self._late_opt_outs(self.order)
        )
        corpus = open_corpus(settings, self.file.name, late)
        parts = (corpus.train, corpus.test, corpus.opted_out)
        train, held_out, opted_out = (np.arange(len(part)) for part in parts)
        examples = Examples.of(corpus, train, held_out, opted_out, settings)
        if self.order is not None:
            self.check_sizes(settings, examples)
        return examples

    def check_sizes(
        self, settings: Settings, examples: Examples, hidden_size: int | None = None
    ) -> None:
        """Raise SiteRefusal if the policy demands more texts, or forbids such large steps.

        Args:
            hidden_size: width of the model; None before the model is opened.
        """
        sizes = examples.sizes(hidden_size)
        refuse_first(size_refusals(settings, sizes, self.file.policy))

    def _late_opt_outs(self, order: Order) -> LateOptOuts:
        """Return the texts that have opted out since the approval.

        Raises:
            SiteRefusal: the file has other changes.
        """
        found = file_sha256(self.file.data_path)
        if found == order.data:
            return NO_LATE_OPT_OUTS
        versions = Versions(self.file)
        late = versions.late_opt_outs(order.plan, order.data)
        if late is None and not self.file.policy.data_may_change:
            raise SiteRefusal("data_changed")
        version = versions.read()
        if late is None:
            versions.check_distance(version, Answers(self.file.state).answered())
        # Later versions of the file are compared with this one, too.
        versions.keep(order.plan, found, version)
        return NO_LATE_OPT_OUTS if late is None else late

    def _notice_changes(self) -> None:
        """Forget the texts if their file has changed. Raises OSError if the file is missing."""
        if self.kept is None:
            return
        stamp = stamp_of(self.file.data_path)
        if stamp != self.kept.data_stamp:
            forget_corpora()
            self.kept.data_stamp = stamp


Site = SimulatedSite | RealSite


def site_from(node_config: Mapping[str, object]) -> Site:
    """Return a real site if the node was started with `site-file`, else a simulated one."""
    site_file = node_config.get("site-file")
    if site_file is not None:
        from wardround.client.site_file import load_site_file

        return RealSite(load_site_file(Path(str(site_file))))
    return SimulatedSite(int(str(node_config["partition-id"])))
