"""Settings of the texts, of how they are dealt to clients, and of the named protocol."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from wardround.common.file_form import FileForm
from wardround.common.settings.values import LabelName, Seed, file_name, require


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """The labelled texts, and how they are read."""

    name: str
    """Short name used in folder and figure names, for example `ag_news`."""
    reader: Literal[
        "hub", "bbc_package", "imdb_folders", "zhang_csv", "spooky_csv", "files"
    ]
    """Row of READERS in `common/data/sources/readers.py`."""
    hub_name: str | None
    """Data set id on the hub, or a local folder in hub layout (reader `hub`)."""
    hub_revision: str | None
    """Commit, tag or branch on the hub; None is the default branch."""
    path: str | None
    """Local copy: a folder in the form of its source, or a CSV, JSONL or Parquet file."""
    local_reader: Literal["imdb_folders", "zhang_csv", "spooky_csv", "files"] | None
    """The reader that replaces `hub` when `path` is set."""
    test_path: str | None
    """Test file (reader `files`); None holds out `test_fraction` of the training texts."""
    text_columns: Annotated[tuple[str, ...], Field(min_length=1)]
    """Columns that are joined with one space to make the text."""
    label_column: str
    """Column that holds the label."""
    delimiter: str | None
    """Separates the columns of a CSV (reader `files`): one character or `tab`; None: a comma."""
    encoding: str | None
    """Encoding of CSV and JSONL (reader `files`), a Python codec; None is UTF-8."""
    opt_out_column: str | None
    """Column of training files (reader `files`) that is true for a text that takes part in no
    round; None: there are no such texts."""
    label_names: tuple[LabelName, ...] | None
    """Labels in the order of their numbers; None: the sorted labels of the training texts."""
    test_fraction: Annotated[float, Field(gt=0, lt=1)]
    """Share of the texts that is held out if the source has no test set, in (0, 1)."""
    split_seed: Seed | None
    """Draws the held-out texts; None is `seed`. Each site has its own, the same in every run."""
    train_examples: PositiveInt | None
    """Use this many training texts, drawn evenly by seed; None uses all."""
    test_examples: PositiveInt | None
    """Use this many test texts, drawn evenly by seed; None uses all."""
    max_words: PositiveInt | None
    """Keep this many words of each text, cut at white space; None keeps all."""
    drop_empty: bool
    """Leave out examples without a text; otherwise they are an error."""
    label_map: tuple[tuple[LabelName, LabelName], ...]
    """Pairs (name in the file, name in `label_names`) for files with other label names."""
    token_cache: Annotated[str, Field(pattern="^auto$|/")] | None
    """Folder that keeps token ids between runs; `auto`: the user's cache; None keeps none."""
    budget_rounds: NonNegativeInt
    """Rounds after which accuracies are compared (Figure 1 of the paper)."""
    second_threshold_rounds: int
    """Rounds after which a run below its target has failed (Figure 2 of the paper)."""

    @property
    def short_name(self) -> str:
        """The name as a file name."""
        return file_name(self.name)

    @property
    def form(self) -> FileForm:
        """Delimiter and encoding of the files of reader `files`."""
        return FileForm(self.delimiter, self.encoding)

    def __post_init__(self) -> None:
        self.form  # noqa: B018 - raises ValueError for a delimiter that cannot be
        reads_files = "files" in (self.reader, self.local_reader)
        for key in ("delimiter", "encoding", "opt_out_column"):
            value = getattr(self, key)
            require(
                value is None or reads_files,
                f"data.{key} is {value!r}, but it is for files of your own; reader "
                f"'{self.reader}' has a fixed format. Set data=files, or "
                f"data.{key}=null.",
            )
        require(
            self.second_threshold_rounds >= self.budget_rounds,
            f"data.second_threshold_rounds is {self.second_threshold_rounds}, below "
            f"data.budget_rounds ({self.budget_rounds}).",
        )


@dataclass(frozen=True)
class PartitionSettings:
    """How the training examples are dealt to simulated clients."""

    name: Literal["iid", "dirichlet", "label_sorted", "by_site"]
    """Row of PARTITIONS in `common/data/partitions.py`."""
    alpha: PositiveFloat | None
    """Concentration of the Dirichlet distribution (`dirichlet`); small values are skewed."""
    drop_remainder: bool
    """Make all parts equal by leaving out N mod K examples (the authors' code)."""

    def __post_init__(self) -> None:
        require(
            self.name != "dirichlet" or self.alpha is not None,
            "partition.alpha is not set; a dirichlet partition needs a positive "
            "number. Set partition.alpha=0.5, for example.",
        )
        require(
            not self.drop_remainder or self.name in ("iid", "label_sorted"),
            f"partition.drop_remainder=true needs equal parts, which partition "
            f"'{self.name}' does not make. Set partition.drop_remainder=false.",
        )


@dataclass(frozen=True)
class ProtocolSettings:
    """The named set of switches that this run started from."""

    name: str
    """`paper`, `authors_code` or `modern`; single switches may have been changed since."""
    ag_news_columns: tuple[str, ...]
    """Columns of AG News that make its text: the authors' code leaves out the title.

    Only `conf/data/ag_news.yaml` reads it. It stays here because plans and run folders hold it."""
