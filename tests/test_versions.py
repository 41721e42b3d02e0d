"""The texts for which a site has answered, and the number that may differ."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.site_lab import make_site
from wardround.client.policy.limits import Policy
from wardround.client.site import RealSite
from wardround.client.versions import Version, Versions
from wardround.common.data.dataset import read_texts
from wardround.common.data.opt_outs import NO_LATE_OPT_OUTS
from wardround.common.errors import SiteRefusal
from wardround.common.files import file_sha256
from wardround.common.settings.data import DataSettings
from wardround.common.tasks.label import LABEL
from wardround.server.compose import compose

PLAN = "p" * 64
KINDS = ("even", "odd")


def rows(*numbers: int, out: tuple[int, ...] = ()) -> str:
    """Return a file of these texts; those in `out` have opted out."""
    lines = (
        f"text {number},{KINDS[number % 2]},{'yes' if number in out else 'no'}"
        for number in numbers
    )
    return "\n".join(["text,label,out", *lines]) + "\n"


OTHER_LABEL = rows(*range(20)).replace("text 3,odd", "text 3,even")
OTHER_SPACES = rows(*range(20)).replace("text 3,", "text  3,")


class Lab:
    """A site with a file that changes."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "texts.csv"
        policy = Policy(min_changed_texts=5)
        self.site = make_site(
            folder, 9092, self.file, opt_out_column="out", policy=policy
        )
        self.versions = Versions(self.site)

    def read(self, text: str) -> Version:
        """Return the version of a file with this content."""
        self.file.write_text(text)
        return self.versions.read()

    def code(self, text: str) -> str:
        """Return the code that refuses this content; empty if it is accepted.

        `PLAN` was answered for the data `d1`.
        """
        try:
            self.versions.check_distance(self.read(text), iter([(PLAN, "d1")]))
        except SiteRefusal as no:
            return no.code
        return ""


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    """A site with twenty texts, for which `PLAN` was answered."""
    made = Lab(tmp_path / "site")
    made.versions.keep(PLAN, "d1", made.read(rows(*range(20))))
    return made


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (rows(*range(20)), ""),
        (rows(*reversed(range(20))), ""),  # another order of the same texts
        (rows(*range(21)), "data_too_close"),
        (rows(*range(19)), "data_too_close"),
        (rows(*range(19), 99), "data_too_close"),  # one removed and one added
        (rows(*range(24)), "data_too_close"),
        (rows(*range(25)), ""),
        (rows(*range(100, 120)), ""),
        (rows(*range(20), out=(3,)), "data_too_close"),
        (rows(*range(20), 3), "data_too_close"),  # a text twice
        (OTHER_LABEL, "data_too_close"),
        (OTHER_SPACES, "data_too_close"),
    ],
)
def test_texts_that_differ_by_a_few_are_refused(
    lab: Lab, content: str, code: str
) -> None:
    assert lab.code(content) == code


def test_hashes_of_texts_depend_on_the_sites_own_key(lab: Lab, tmp_path: Path) -> None:
    (kept,) = (lab.site.state / "plans" / PLAN).glob("texts-*.json")
    assert kept.stat().st_mode & 0o077 == 0
    key = lab.site.state / "texts.key"
    assert key.stat().st_mode & 0o077 == 0
    other = Lab(tmp_path / "other")
    ours, theirs = lab.read(rows(1, 2, 3)), other.read(rows(1, 2, 3))
    assert not ours.taking_part & theirs.taking_part


def test_opt_outs_are_distinguished_from_other_changes(lab: Lab) -> None:
    def late(content: str) -> int | None:
        lab.file.write_text(content)
        found = lab.versions.late_opt_outs(PLAN, "d1")
        return None if found is None else len(found.hashes)

    assert late(rows(*range(20), out=(3, 4))) == 2
    assert late(rows(*range(20))) == 0
    assert late(rows(*range(19))) is None
    assert late(rows(*range(21), out=(3,))) is None
    assert lab.versions.late_opt_outs("q" * 64, "d1") is None
    # A text that opts in again takes part in the next plan.
    lab.versions.keep(PLAN, "d2", lab.read(rows(*range(20), out=(3,))))
    lab.file.write_text(rows(*range(20)))
    assert lab.versions.late_opt_outs(PLAN, "d2") is None


def test_a_late_opt_out_moves_no_other_text(lab: Lab) -> None:
    """The same texts are held out as before. Else test texts would be used for training."""
    data = lab.site.data_settings(_plain())
    lab.file.write_text(rows(*range(20)))
    before = read_texts(LABEL, data, 0, lab.site.name, late=NO_LATE_OPT_OUTS)
    lab.file.write_text(rows(*range(20), out=(3, 8, 11)))
    late = lab.versions.late_opt_outs(PLAN, "d1")
    assert late is not None
    after = read_texts(LABEL, data, 0, lab.site.name, late=late)
    gone = {"text 3", "text 8", "text 11"}
    stay = [text for text in before.train.texts if text not in gone]
    assert after.train.texts == stay
    stay = [text for text in before.test.texts if text not in gone]
    assert after.test.texts == stay


def _plain() -> DataSettings:
    words = ["data=files", "data.path=texts.csv", "data.label_names=[even,odd]"]
    return compose(words).settings.data


def test_a_missing_version_stops_every_plan(lab: Lab) -> None:
    """Without it, the distance between the texts is unknown."""
    (kept,) = (lab.site.state / "plans" / PLAN).glob("texts-*.json")
    kept.unlink()
    assert lab.code(rows(*range(100, 120))) == "data_too_close"


def test_texts_without_late_opt_outs_are_a_version_of_their_own(lab: Lab) -> None:
    """A later plan is compared with the answered texts, not with those of the approval."""
    lab.file.write_text(rows(*range(20), out=tuple(range(6))))
    data = file_sha256(lab.file)
    order: Any = SimpleNamespace(plan=PLAN, data="d1")
    RealSite(lab.site)._late_opt_outs(order)
    answered = [(PLAN, "d1"), (PLAN, data)]
    after = lab.read(rows(*range(20), out=tuple(range(7))))
    # 7 texts differ from those of the approval, 1 from the answered ones.
    lab.versions.check_distance(after, iter(answered[:1]))
    with pytest.raises(SiteRefusal, match=r"^1 texts ") as refused:
        lab.versions.check_distance(after, iter(answered))
    assert refused.value.code == "data_too_close"
