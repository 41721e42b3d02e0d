"""Plans: kept by a site, decided on, waited for by the server."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.fake_flwr import words_for, write_run
from tests.support.hostile_settings import with_changes
from tests.support.nasty import NASTY, faults
from tests.support.site_lab import WIDE, make_site
from tests.support.tiny import Make
from tests.support.versions import later
from wardround.client.answers import Answers, Begun
from wardround.client.decisions import approve, executed, limits_of
from wardround.client.kit.costs import measure_here
from wardround.client.kit.decisions import approve_plan, explain_plan
from wardround.client.kit.words.plan import (
    Costs,
    Here,
    describe,
    describe_all,
    list_of_plans,
)
from wardround.client.plans import Decision, Known, Plans
from wardround.client.policy.limits import Limits, Policy
from wardround.client.policy.verdict import refusals_of
from wardround.client.site_file import SiteFile, signing_keys, write_site_file
from wardround.client.sizes import Sizes
from wardround.client.versions import Versions
from wardround.common.credentials import fingerprint, new_key, public_line
from wardround.common.errors import NoAnswer, NotAuthentic, RunFailed, SiteRefusal
from wardround.common.files import file_sha256
from wardround.common.settings.tree import Settings
from wardround.common.versions import installed
from wardround.common.wire.codec import pack_introduction, pack_refusal
from wardround.common.wire.messages import TRAIN, Introduction
from wardround.common.wire.refusals import PENDING, REFUSALS
from wardround.common.wire.signing import PLAN, Plan, sign
from wardround.server.compose import compose
from wardround.server.deployment.folder import RegisteredSite
from wardround.server.deployment.plan import plan_id, plan_of
from wardround.server.deployment.status import read_status
from wardround.server.deployment.submit import settings_to_submit
from wardround.server.report.render import write_report
from wardround.server.rounds.clients import Answer, Request
from wardround.server.rounds.cohort import Cohort
from wardround.server.run_folder import RunFolder

DAY = 86_400.0


@pytest.fixture
def settings(make_settings: Make) -> Settings:
    """Settings of a deployment with two sites."""
    words = (
        "engine=deployment",
        "data.label_names=[health,money,sport]",
        "evaluation.where=server",
    )
    return make_settings(
        *words,
        "train.last_batch=even",
        "num_clients=2",
        "threads=1",
        "strategy.wait_seconds=20",
    )


# --- at the site ----------------------------------------------------------------------


class Lab:
    """A site, its coordinator, and plans between them."""

    def __init__(
        self, folder: Path, texts: Path, model: Path, settings: Settings
    ) -> None:
        self.coordinator: Any = new_key("signing")
        (folder / "coordinator.pub").write_text(
            public_line(self.coordinator), encoding="ascii"
        )
        policy = replace(WIDE, approve="by_hand")
        self.site: SiteFile = make_site(folder, 9092, texts, model=model, policy=policy)
        key, coordinator = signing_keys(self.site)
        self.plans = Plans(self.site, coordinator)
        self.limits = limits_of(self.site, key)
        sites = {
            self.site.name: fingerprint(public_line(key)),
            "lakeside": "SHA256:other",
        }
        said = settings.for_sites().to_dict()
        self.plan = Plan(1, said, sites, 0.0, 30 * DAY, {"torch": "0.0"}, "")

    def add(self, **changed: Any) -> str:
        """Give the site a plan; return the plan's SHA-256."""
        return self.plans.add(
            sign(PLAN, replace(self.plan, **changed), self.coordinator)
        )

    def code(self, digest: str, now: float = DAY) -> str:
        """Return the code of the refusal; empty if the plan is executed."""
        try:
            executed(self.plans, digest, self.site, self.limits, now)
        except SiteRefusal as no:
            return no.code
        return ""


@pytest.fixture
def lab(tmp_path: Path, tiny_texts: Path, tiny_model: Path, settings: Settings) -> Lab:
    """A site that has no plan yet."""
    folder = tmp_path / "site"
    folder.mkdir()
    return Lab(folder, tiny_texts, tiny_model, settings)


def test_a_plan_waits_is_approved_ends_and_is_revoked(lab: Lab) -> None:
    digest = lab.add()
    assert lab.code("f" * 64) == "plan_unknown"
    assert lab.code(digest) == PENDING
    approve(lab.plans, lab.plans.find(digest[:8]), lab.site, lab.limits, "hand")
    assert lab.code(digest) == ""
    assert lab.code(digest, now=31 * DAY) == "plan_over"
    assert lab.add() == digest  # a plan that comes again stays approved
    assert lab.code(digest) == ""
    lab.plans.decide(digest, Decision("revoked", DAY, "hand"))
    assert lab.code(digest) == "plan_revoked"


def test_a_stricter_policy_holds_for_plans_that_were_approved_before(lab: Lab) -> None:
    digest = lab.add()
    approve(lab.plans, lab.plans.find(digest), lab.site, lab.limits, "hand")
    lab.limits = replace(lab.limits, policy=replace(WIDE, min_sites=3))
    assert lab.code(digest) == "policy"
    with pytest.raises(SiteRefusal, match=r"policy\.min_sites is 3") as no:
        approve(lab.plans, lab.plans.find(digest), lab.site, lab.limits, "hand")
    assert no.value.code == "policy"


def test_no_more_than_sixty_four_plans_wait(lab: Lab) -> None:
    first = lab.add()
    for number in range(63):
        lab.add(not_after=40 * DAY + number)
    with pytest.raises(SiteRefusal) as no:
        lab.add(not_after=50 * DAY)
    assert no.value.code == "too_many_plans"
    lab.plans.decide(first, Decision("rejected", DAY, "hand", why="no"))
    assert lab.add(not_after=50 * DAY)


def test_a_plan_that_was_changed_on_the_disk_is_unknown(lab: Lab) -> None:
    digest, other = lab.add(), lab.add(not_after=40 * DAY)
    folder = lab.site.state / "plans"
    (folder / digest / "plan.json").write_text(
        (folder / other / "plan.json").read_text()
    )
    assert lab.plans.get(digest) is None
    assert lab.code(digest) == "plan_unknown"
    (folder / other / "decision.json").write_text('{"state": "yes"}')
    with pytest.raises(ValueError, match=r"decision\.json' is damaged"):
        lab.plans.get(other)


def test_a_plan_must_be_signed_and_hold_settings(lab: Lab) -> None:
    stranger: Any = new_key("signing")
    with pytest.raises(NotAuthentic) as refused:
        lab.plans.add(sign(PLAN, lab.plan, stranger))
    assert refused.value.reason == "forged"
    for wrong in ({}, {"train": 1}, lab.plan.settings | {"more": 1}):
        with pytest.raises(NotAuthentic) as refused:
            lab.add(settings=wrong)
        assert refused.value.reason == "damaged"
    assert lab.plans.all() == []


def test_a_plan_is_found_by_its_beginning(lab: Lab) -> None:
    digest = lab.add()
    assert lab.plans.find(digest[:3].upper()).digest == digest
    for name in ("", "x"):
        with pytest.raises(ValueError, match=rf"'{name}'.*{digest[:12]}"):
            lab.plans.find(name)


def test_a_plan_is_described_in_words(lab: Lab) -> None:
    first = lab.plans.find(lab.add())
    second = lab.plans.find(
        lab.add(settings=lab.plan.settings | {"num_rounds": 9}, parent=first.digest)
    )
    assert [line[:12] for line in list_of_plans(lab.plans.all()).splitlines()] == [
        first.short,
        second.short,
    ]
    words = "\n".join(read_out(second, first, lab.limits))
    for fact in (
        "sites     lakeside, st_marys",
        "code      torch 0.0 (HERE ",
        "labels    health, money, sport",
        "up to 9 rounds",
        "num_rounds: 3 -> 9",
        "seed = 7",
        f"Next: wardround-site approve {second.short}",
    ):
        assert fact in words
    strict = replace(lab.limits, policy=replace(WIDE, max_epochs=1))
    words = "\n".join(describe(second, None, strict))
    assert "NO  train.local_epochs is 2: at most 1 (policy.max_epochs)" in words
    assert f"Next: wardround-site reject {second.short}" in words
    assert "wardround-site approve" not in words


def read_out(known: Known, before: Known | None, limits: Limits) -> list[str]:
    """Return the lines of `plan --all`."""
    return [*describe(known, before, limits), *describe_all(known, before, limits)]


def test_a_plan_fits_a_screen(lab: Lab) -> None:
    """It does even if every part of the plan is as long as possible."""
    settings = json.loads(json.dumps(lab.plan.settings))
    settings["recipe"] = "fine_tune@1"
    settings["train"] |= {
        "frozen": "none",
        "last_batch": "short",
        "optimizer": "sgd",
        "max_length": 3,
    }
    settings["evaluation"]["where"] = "sites"
    settings["data"]["label_names"] = [f"label {number}" for number in range(100)]
    sites = lab.plan.sites | {
        f"site-{number}": f"SHA256:{number}" for number in range(60)
    }
    sites |= {"lakeside": "SHA256:another"}
    digest = lab.add(settings=settings, sites=sites)
    before = lab.plans.find(lab.add())
    lab.plans.decide(
        digest,
        Decision("rejected", DAY, "hand", why="not now", people={"anna": "SHA256:a"}),
    )
    pins = {f"site-{number}": f"SHA256:{number}" for number in range(30)}
    pins["lakeside"] = "SHA256:other"
    strict = replace(lab.limits, policy=Policy(), peers=pins)
    here = Here(Sizes(60, 10, 1000, 768), Costs(10**9, 3600.0), 17)
    words = list(describe(lab.plans.find(digest), before, strict, here))
    assert len(words) <= 40
    for fact in (
        "fine_tune@1 with ",
        "more (--all)",
        "60 texts to train on, 10 held out",
        "a round: up to 1.0 GB and about 60 min",
        "in all: up to 3.0 GB and about 3.0 h",
        "MEMBERSHIP",
        "(4 is allowed)",
        "17 of 600",
        "up to 3 more",
        "Approved by: anna",
    ):
        assert any(fact in line for line in words), (fact, words)
    crowded = lab.plans.find(lab.add(settings=settings, sites=sites, most_texts=6001))
    told = "\n".join(describe(crowded, None, strict, here))
    assert "6001 texts each, 100 times" in told
    assert "policy.max_size_ratio is " in told
    # 6001 is less than 100 x 61.
    larger = replace(here, sizes=Sizes(61, 9))
    assert "max_size_ratio" not in "\n".join(describe(crowded, None, strict, larger))
    few = replace(here, refusals=(("too_few_tokens", "", "1000 tokens to train on"),))
    everything = list(describe_all(lab.plans.find(digest), before, strict, few))
    assert any("NO  1000 tokens to train on" in line for line in everything)


def test_a_plan_is_compared_with_this_sites_own_recipe(lab: Lab) -> None:
    followed = compose_recipe("fine_tune")
    for changed, told in (
        ({}, "fine_tune@1 with no deviation"),
        ({"train.proximal_mu": 0.1}, "fine_tune@1 with 1 deviation:"),
        ({"recipe": "fine_tune@9"}, "recipe    fine_tune@9, "),
        ({"recipe": ""}, "recipe    no recipe"),
    ):
        known = lab.plans.find(
            lab.add(settings=with_changes(followed, changed).to_dict())
        )
        assert told in "\n".join(describe(known, None, lab.limits)), changed
        only = replace(lab.limits, policy=replace(WIDE, recipes=("fine_tune@1",)))
        refused = [key for _, key, _ in refusals_of(known.plan, known.settings, only)]
        assert ("recipe" in refused) == (changed != {}), changed


def compose_recipe(name: str) -> Settings:
    """Return a recipe's settings, as a plan of these tests holds them."""
    words = (
        f"recipe={name}",
        "engine=deployment",
        "data=files",
        "data.label_names=[health,money,sport]",
    )
    return compose(
        [*words, "model=minilm", "evaluation.where=sites", "run_dir=x"]
    ).settings.for_sites()


def test_a_plan_in_words_moves_no_cursor(lab: Lab) -> None:
    """The server's words reach the terminal of the person who decides."""
    hidden = "torch \x1b[2A\x1b[8m"
    known = lab.plans.find(lab.add(code={hidden: "1\r\n2"}))
    words = read_out(known, None, lab.limits)
    assert any('"torch [2A [8m" "1 2"' in line for line in words)
    assert all(
        line.isprintable()
        for line in [*words, *list_of_plans(lab.plans.all()).splitlines()]
    )


def hostile_plan(lab: Lab, word: str) -> list[str]:
    """Return the lines of `plans` and `plan`, for a plan with this word in every free place."""
    settings = json.loads(json.dumps(lab.plan.settings))
    settings["model"] |= {"name": word, "revision": word, "label": word}
    settings["data"] |= {
        "name": word,
        "label_names": [word, f"{word}2"],
        "text_columns": [word],
    }
    sites = lab.plan.sites | {word: "SHA256:third"}
    digest = lab.add(settings=settings, code={word: word, "torch": word}, sites=sites)
    known = lab.plans.find(digest)
    before = lab.plans.find(lab.add())
    lab.plans.decide(digest, Decision("rejected", DAY, "hand", why=word))
    strict = replace(
        lab.limits,
        policy=replace(WIDE, models=("a",), min_sites=9),
        has_own_model=False,
    )
    invited = replace(strict, labels=(word,))
    told = [
        *list_of_plans(lab.plans.all()).splitlines(),
        *read_out(known, before, invited),
    ]
    decided = lab.plans.find(digest)
    told += read_out(decided, None, invited)
    for folder in (lab.site.state / "plans").iterdir():
        shutil.rmtree(folder)
    return told


@pytest.mark.parametrize("name", sorted(NASTY.keys() - {"nothing"}))
def test_a_plan_in_words_imitates_no_line(lab: Lab, name: str) -> None:
    """It has the same lines and spaces as a plan with a readable name."""
    honest, hostile = hostile_plan(lab, "Word"), hostile_plan(lab, NASTY[name])
    assert len(hostile) == len(honest)
    for line, usual in zip(hostile, honest, strict=True):
        assert faults(line, 1000) == []
        assert re.findall(" {2,}", line) == re.findall(" {2,}", usual), line
        assert _beginning(line) == _beginning(usual)


def _beginning(line: str) -> str:
    """Return the beginning of a line, without the plan's number."""
    return re.sub("[0-9a-f]{12,}", "#", line)[:6]


def test_a_plan_with_an_impossible_date_or_parent_is_damaged(lab: Lab) -> None:
    """A date that nobody can show would end every `wardround-site plans`."""
    for wrong in (
        {"not_before": 1e300},
        {"not_after": 1e300},
        {"not_before": -1.0},
        {"parent": "x"},
    ):
        with pytest.raises(NotAuthentic) as refused:
            lab.add(**wrong)
        assert refused.value.reason == "damaged"


def test_a_package_that_does_not_exist_is_shown_as_not_installed(lab: Lab) -> None:
    known = lab.plans.find(lab.add(code={"": "1", "../..": "2"}))
    lines = read_out(known, None, lab.limits)
    (line,) = [line for line in lines if line.startswith("  code")]
    assert line.count("HERE not installed") == 2


# --- at the server --------------------------------------------------------------------


def test_a_plan_is_made_once(settings: Settings, tmp_path: Path) -> None:
    key: Any = new_key("signing")
    sites = {
        name: RegisteredSite("node", public_line(new_key("signing")), "")
        for name in ("b", "a")
    }
    assert plan_id(tmp_path) == ""
    first = plan_of(settings, sites, tmp_path, key)
    assert plan_of(settings, sites, tmp_path, key) == first
    digest = plan_id(tmp_path)
    new_b = {"b": RegisteredSite("node", public_line(new_key("signing")), "")}
    for changed, others in (
        (replace(settings, num_rounds=9), sites),
        (settings, sites | new_b),
    ):
        second = plan_of(changed, others, tmp_path, key)
        assert second != first
        assert digest in json.dumps(_payload(second))
        first, digest = second, plan_id(tmp_path)
    rotated: Any = new_key("signing")
    assert _payload(plan_of(settings, sites, tmp_path, rotated))["parent"] == ""


def _payload(envelope: str) -> dict[str, Any]:
    import base64

    content = base64.b64decode(json.loads(envelope)["payload"])
    found: dict[str, Any] = json.loads(content)
    return found


class Undecided:
    """Two sites, with answers to a greeting that the test chooses."""

    approve_plans = True
    most_bytes = 0.0

    def __init__(self, answer: Callable[[str, int], Answer]) -> None:
        self._answer = answer
        self.asked = {"a": 0, "b": 0}

    def online(self) -> Mapping[int, str]:
        """As in `Clients`."""
        return {1: "a", 2: "b"}

    def ask(
        self, requests: Iterable[Request], kind: str, round: int, timeout: float
    ) -> Iterator[Answer]:
        """As in `Clients`."""
        for request in requests:
            name = self.online()[request.node_id]
            self.asked[name] += 1
            yield self._answer(name, self.asked[name])

    def tell(self, request: Request, kind: str, round: int) -> None:
        """As in `Clients`."""


def gather(
    settings: Settings, run: RunFolder, answer: Callable[[str, int], Answer]
) -> tuple[Undecided, dict[str, str]]:
    """Wait for both; return the sites, and the codes in the run folder."""
    clients = Undecided(answer)
    run.path.mkdir(exist_ok=True)
    try:
        Cohort(clients, settings, {"a": None, "b": None}, run.write_approvals).gather()
    finally:
        said = {name: found["code"] for name, found in run.approvals().items()}
    return clients, said


def test_a_site_that_has_not_decided_is_asked_again(
    settings: Settings, tmp_path: Path
) -> None:
    card = pack_introduction(Introduction(-1, 10, 2))
    pending = NoAnswer("its people …", PENDING)
    clients, said = gather(
        settings,
        RunFolder(tmp_path / "run"),
        lambda name, number: card if (name, number) != ("b", 1) else pending,
    )
    assert clients.asked == {"a": 1, "b": 2}
    assert said == {"a": "", "b": ""}


def test_a_refusal_ends_the_wait(settings: Settings, tmp_path: Path) -> None:
    answers = {
        "a": NoAnswer("its people …", PENDING),
        "b": NoAnswer("rejected", "plan_rejected"),
    }
    run = RunFolder(tmp_path / "run")
    patient = replace(settings, strategy=replace(settings.strategy, wait_seconds=1e9))
    with pytest.raises(RunFailed, match=r"; b .*: rejected$"):
        gather(patient, run, lambda name, _: answers[name])
    assert {name: found["code"] for name, found in run.approvals().items()} == {
        "a": PENDING,
        "b": "plan_rejected",
    }


def test_a_wait_for_people_ends(settings: Settings, tmp_path: Path) -> None:
    short = replace(settings, strategy=replace(settings.strategy, wait_seconds=0.5))
    with pytest.raises(RunFailed, match=r"^a .*: its people"):
        gather(
            short,
            RunFolder(tmp_path / "run"),
            lambda name, _: NoAnswer("its people …", PENDING),
        )


def test_status_and_report_show_each_sites_decision(tmp_path: Path) -> None:
    settings = settings_to_submit(words_for(tmp_path, "num_rounds=4"))
    run = write_run(settings, "failed", "b cannot take part", 0.25)
    key: Any = new_key("signing")
    site = RegisteredSite("node", public_line(new_key("signing")), "")
    plan_of(settings, {"a": site}, run.path, key)
    run.write_approvals(
        {
            "a": {"code": "", "words": ""},
            "b": {"code": PENDING, "words": "b cannot take part: its people …"},
            "c": {
                "code": "policy",
                "words": "c cannot take part: its policy <does> not allow it (seed)",
            },
        }
    )
    standing = read_status(run, None)
    assert standing.approvals["c"]["code"] == "policy"
    lines = standing.to_text().splitlines()
    start = lines.index(f"plan {plan_id(run.path)[:12]}")
    assert lines[start + 1 : start + 4] == [
        "  a: takes part",
        "  b: undecided",
        "  c: c cannot take part: its policy <does> not allow it (seed)",
    ]
    write_report(run.path)
    page = (run.path / "report" / "index.html").read_text(encoding="utf-8")
    assert "a takes part; b cannot take part" in " ".join(page.split())
    assert "&lt;does&gt;" in page
    assert "a takes part; b cannot" in (run.path / "report" / "summary.md").read_text(
        encoding="utf-8"
    )


def test_a_refused_plan_is_not_tried_out(lab: Lab) -> None:
    """Its numbers can have any size, and must not exhaust the machine of the reader."""
    huge: dict[str, Any] = {
        "adapters.name": "lora",
        "adapters.rank": 10**9,
        "train.local_epochs": 10**12,
        "num_rounds": 10**9,
        "train.schedule": "linear",
        "train.schedule_rounds": 10**9,
    }
    settings = with_changes(Settings.from_json(json.dumps(lab.plan.settings)), huge)
    known = lab.plans.find(lab.add(settings=settings.to_dict()))
    strict = replace(lab.limits, policy=Policy())
    here = measure_here(replace(lab.site, policy=Policy()), known, strict)
    assert (here.sizes, here.costs) == (None, None)
    assert "it was not tried" in here.why_not
    words = "\n".join(
        [*describe(known, None, strict, here), *describe_all(known, None, strict, here)]
    )
    assert "NO  adapters.rank is 1000000000: at most 256" in words
    assert "The policy of this site allows" not in words


def test_a_plan_is_shown_with_the_reasons_against_it_at_this_site(lab: Lab) -> None:
    """The reasons are its days, the answers already given, and texts close to answered ones."""
    texts = Path(shutil.copy(lab.site.data_path, lab.site.state.parent / "own.csv"))
    lab.site = replace(lab.site, data_path=texts)
    data = file_sha256(texts)
    Versions(lab.site).keep("p" * 64, data, Versions(lab.site).read())
    answers = Answers(lab.site.state)
    answers.begin("p" * 64, TRAIN, 1, Begun("m" * 64, data), 0, 10)
    answers.keep("p" * 64, TRAIN, 1, pack_refusal("few_speak"), None)
    digest = lab.add(not_after=DAY)

    def told() -> list[str]:
        site = replace(
            lab.site, policy=replace(WIDE, max_total_answers=1, min_changed_texts=5)
        )
        found = measure_here(site, lab.plans.find(digest), lab.limits).refusals
        return [words for _, _, words in found]

    over, spent = told()
    assert "1970-01-02" in over
    assert "policy.max_total_answers is 1" in spent
    with texts.open("a", encoding="utf-8") as file:
        file.write("a text more,sport\n")
    *before, close = told()
    assert before == [over, spent]
    assert close.startswith("1 texts ")
    assert "plan pppppppppppp " in close
    assert "policy.min_changed_texts is 5" in close


def test_a_plan_that_is_shown_as_refused_cannot_be_approved(lab: Lab) -> None:
    """The number of tokens is known only after the texts and the model are read."""
    now = time.time()
    digest = lab.add(not_before=now, not_after=now + DAY)
    file = lab.site.state.parent / "site.yaml"
    policy = lab.site.policy
    for strict, code, key in (
        (replace(policy, min_token_ratio=1e6), "too_few_tokens", "min_token_ratio"),
        (replace(policy, min_examples=10**6), "too_few_texts", "min_examples"),
    ):
        write_site_file(replace(lab.site, policy=strict), file)
        words = explain_plan(file, digest, everything=False)
        assert f"Next: wardround-site reject {digest[:12]}" in words
        with pytest.raises(ValueError, match=rf"{code}.*policy\.{key}.*Reject it"):
            approve_plan(file, digest, None, None)
        assert lab.plans.find(digest).decision.state == "pending"
    write_site_file(lab.site, file)
    words = explain_plan(file, digest, everything=False)
    assert f"Next: wardround-site approve {digest[:12]}" in words
    assert approve_plan(file, digest, None, None).startswith("Approved")
    assert lab.plans.find(digest).decision.state == "approved"


# --- versions that differ from the coordinator's --------------------------------------


def code_of(lab: Lab, **changed: Any) -> tuple[str, str]:
    """Return the code of the refusal and its words; empty if the plan is accepted."""
    try:
        lab.add(**changed)
    except SiteRefusal as no:
        return no.code, str(no)
    return "", ""


def test_a_plan_of_a_distant_version_is_refused_with_the_next_step(lab: Lab) -> None:
    distant = later(2)
    code, words = code_of(lab, code={"wardround": distant})
    assert code == "other_version"
    assert f"coordinator runs wardround {distant}" in words
    assert f"{installed()} here" in words
    assert words.endswith(f"pip install 'wardround=={distant}'")
    assert "wardround-site check" in REFUSALS[code]


def test_a_plan_with_settings_of_a_newer_version_is_no_forgery(lab: Lab) -> None:
    newer = lab.plan.settings | {"invented_later": 1}
    code, _ = code_of(lab, settings=newer, code={"wardround": later(1)})
    assert code == "other_version"
    older = {key: value for key, value in lab.plan.settings.items() if key != "threads"}
    code, _ = code_of(lab, settings=older, code={"wardround": "0.0.1"})
    assert code == "other_version"


def test_a_plan_of_the_next_version_is_accepted_and_shows_its_versions(
    lab: Lab,
) -> None:
    digest = lab.add(code={"wardround": later(1), "torch": "0.0"})
    known = lab.plans.find(digest)
    words = "\n".join(describe(known, None, lab.limits))
    assert "  versions  the coordinator's: torch" in words
    assert f"wardround {later(1)} (HERE {installed()})" in words
    same = lab.plans.find(lab.add(code={"wardround": installed()}))
    assert "\n  versions" not in "\n".join(describe(same, None, lab.limits))


def test_plans_of_another_version_are_not_listed(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.add(code={"wardround": later(1)})
    monkeypatch.setattr("wardround.common.wire.signing.installed", lambda: later(3))
    assert lab.plans.all() == []
