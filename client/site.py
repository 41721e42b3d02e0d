"""A client's own facts: which texts are its own, and under which settings it works here."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wardround.client.answers import Answers
from wardround.client.carried import Carried, CarriedFiles, CarriedMemory, What
from wardround.client.held import Held
from wardround.client.sizes import Sizes, size_refusals
from wardround.client.versions import Versions
from wardround.common.data.corpus import Corpus, forget_corpora, open_corpus
from wardround.common.data.labels import numbered_by_name
from wardround.common.data.opt_outs import NO_LATE_OPT_OUTS, LateOptOuts
from wardround.common.data.partitions import partition, split_held_out
from wardround.common.errors import SiteRefusal
from wardround.common.files import file_sha256
from wardround.common.settings.data import PartitionSettings
from wardround.common.settings.tree import Settings

if TYPE_CHECKING:
    from wardround.client.site_file import SiteFile


@dataclass(frozen=True)
class Examples:
    """A client's own share of a corpus."""

    corpus: Corpus
    train: np.ndarray  # (n_k,) int64, indices into corpus.train
    test: np.ndarray  # (m_k,) int64, indices into corpus.test, held out by this client
    validation: (
        np.ndarray
    )  # (v_k,) int64, as above: they choose the best model, and are not reported
    opted_out: (
        np.ndarray
    )  # (o_k,) int64, indices into corpus.opted_out: they take part in no round

    @classmethod
    def of(
        cls,
        corpus: Corpus,
        train: np.ndarray,
        held_out: np.ndarray,
        opted_out: np.ndarray,
        settings: Settings,
    ) -> Examples:
        """Split what is held out. Raises ValueError where there is too little of it."""
        data, fraction = settings.data, settings.evaluation.validation_fraction
        seed = settings.seed if data.split_seed is None else data.split_seed
        kinds = numbered_by_name(corpus.test.labels, corpus.label_names)
        validation, test = split_held_out(kinds, held_out, fraction, seed)
        return cls(corpus, train, test, validation, opted_out)


@dataclass(frozen=True)
class Order:
    """What a site has approved, of the plan a message belongs to. It counts, whatever the message says."""

    plan: str
    """SHA-256 of the plan."""
    settings: Settings
    client: int
    """Number of this site among those of the plan, by name."""
    round: int
    """As signed."""
    age: int
    """How many rounds the model that is sent has behind it: 0 for the first."""
    data: str
    """SHA-256 of the data file when the plan was approved."""
    most_texts: int = 0
    """The most training texts that a site of the plan may have; 0 if the plan does not say."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for another process of this machine."""
        return vars(self) | {"settings": self.settings.to_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Order:
        """Inverse of `to_dict`."""
        return cls(**values | {"settings": Settings.from_dict(values["settings"])})


@dataclass
class Kept:
    """What a site's process keeps from one message to the next."""

    version: str = ""
    """Of `tensors`; empty before the first."""
    tensors: np.ndarray | None = None
    """(P,) fp32, the global tensors as received last."""
    came_with: tuple[str, int] = ("", 0)
    """Plan and age of `tensors`."""
    carried: dict[What, CarriedMemory] = field(
        default_factory=lambda: defaultdict(CarriedMemory)
    )
    data_stamp: tuple[int, ...] = ()
    """Of the site's data file when it was read."""
    update_norm: float | None = None
    """L2 norm of the last update, for the site's ledger; None where the last message asked for none."""
    held: Held | None = None
    """What is kept of the plan that was executed last."""


@dataclass(frozen=True)
class SimulatedSite:
    """Client `client` of a simulation: its texts are a part of the run's."""

    client: int
    kept: None = None
    """The server's tensors are within reach."""
    order: None = None

    def carried(self, what: What, settings: Settings) -> Carried:
        """In the run folder."""
        return CarriedFiles(Path(settings.run_dir) / what, self.client)

    def localise(self, settings: Settings) -> Settings:
        """The settings as they are: a simulation shares one machine."""
        return settings

    def examples(self, settings: Settings) -> Examples:
        """This client's part of the run's texts. Raises ValueError for bad data."""
        corpus = open_corpus(settings)
        dealt = _deal(corpus, settings.partition, settings.num_clients, settings.seed)
        return Examples.of(corpus, *dealt[self.client], settings)


@lru_cache(maxsize=1)
def _deal(
    corpus: Corpus, how: PartitionSettings, num_clients: int, seed: int
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Every client's examples, to train on, held out and opted out: dealt once, for it takes as long as a
    small round."""
    parts = partition(how, corpus.train.labels, num_clients, seed, corpus.site_sizes)
    everyone = np.arange(len(corpus.test))
    if how.name == "by_site" and corpus.test_sizes:
        held_out = np.split(everyone, np.cumsum(corpus.test_sizes)[:-1])
    else:
        held_out = np.array_split(everyone, num_clients)
    # Without sites there are none (Settings).
    sizes = corpus.opted_out_sizes if how.name == "by_site" else [0] * num_clients
    opted_out = np.split(np.arange(len(corpus.opted_out)), np.cumsum(sizes)[:-1])
    return list(zip(parts, held_out, opted_out, strict=True))


@dataclass(frozen=True)
class RealSite:
    """A site with a file of its own. The server can name neither paths nor columns nor the device."""

    file: SiteFile
    kept: Kept | None = None
    """None where this process ends with the message."""
    order: Order | None = None
    """None behind a stock SuperNode, whose messages bring their settings: nothing was approved there."""
    client: int = -1

    def carried(self, what: What, settings: Settings) -> Carried | None:
        """In memory; a process that ends with the message has nowhere to keep it."""
        return None if self.kept is None else self.kept.carried[what]

    def localise(self, settings: Settings) -> Settings:
        """The server's learning settings with this site's own facts put in."""
        file = self.file
        data = file.data_settings(settings.data)
        model = settings.model
        if file.model is not None:
            model = replace(model, source="hub", name=str(file.model), revision=None)
        elif model.source == "hub" and Path(model.name).expanduser().exists():
            raise ValueError(
                f"model.name is '{model.name}', which is a path at this site; the server may not name one. "
                "Set model: in the site's own file."
            )
        return replace(settings, data=data, model=model, device=file.device)

    @property
    def held(self) -> Held:
        """What is kept of the plan that is executed."""
        assert self.order is not None, "asked for only if there is a plan"
        assert self.kept is not None, "a site that executes plans keeps something"
        folder = Answers(self.file.state).folder(self.order.plan)
        if self.kept.held is None or self.kept.held.folder != folder:
            self.kept.held = Held(folder)
        return self.kept.held

    def examples(self, settings: Settings) -> Examples:
        """All texts of the site's file; the same part is held out in every run.

        Raises:
            ValueError: bad data.
            SiteRefusal: the file is not the one for which the plan was approved, or its texts are too few for
                the plan.
        """
        self._notice_changes()
        late = (
            NO_LATE_OPT_OUTS if self.order is None else self._late_opt_outs(self.order)
        )
        corpus = open_corpus(settings, self.file.name, late)
        train, held_out, opted_out = (
            np.arange(len(part))
            for part in (corpus.train, corpus.test, corpus.opted_out)
        )
        examples = Examples.of(corpus, train, held_out, opted_out, settings)
        if self.order is not None:
            self.check_sizes(settings, examples)
        return examples

    def check_sizes(
        self, settings: Settings, examples: Examples, hidden_size: int | None = None
    ) -> None:
        """Raise SiteRefusal if the texts are too few, or a step of the plan is too much, for the policy.

        Args:
            hidden_size: of the model; None before it is opened.
        """
        num_tokens = int(examples.corpus.train.lengths_of(examples.train).sum())
        num_held_out = len(examples.test) + len(examples.validation)
        sizes = Sizes(len(examples.train), num_held_out, num_tokens, hidden_size)
        for code, key, words in size_refusals(settings, sizes, self.file.policy):
            raise SiteRefusal(code, key, words)

    def _late_opt_outs(self, order: Order) -> LateOptOuts:
        """Texts that have opted out since the approval. Raises SiteRefusal if the file changed otherwise."""
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
        # What is answered for these texts is compared with later ones, too.
        versions.keep(order.plan, found, version)
        return NO_LATE_OPT_OUTS if late is None else late

    def _notice_changes(self) -> None:
        """Let texts go that were read from a file which has changed since. Raises OSError if it is gone."""
        if self.kept is None:
            return
        found = self.file.data_path.stat()
        stamp = (found.st_ino, found.st_size, found.st_mtime_ns)
        if stamp != self.kept.data_stamp:
            forget_corpora()
            self.kept.data_stamp = stamp


Site = SimulatedSite | RealSite


def site_from(node_config: Mapping[str, object]) -> Site:
    """Who this client is: a real site where the node was started with `site-file`, else a simulated one."""
    site_file = node_config.get("site-file")
    if site_file is not None:
        from wardround.client.site_file import load_site_file

        return RealSite(load_site_file(Path(str(site_file))))
    return SimulatedSite(int(str(node_config["partition-id"])))
