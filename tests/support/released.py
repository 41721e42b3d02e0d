"""A site that took part in two rounds, and the model that its coordinator released later."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.support.hostile_models import copy_of
from tests.support.site_lab import WIDE, make_site
from wardround.client.node.ledger import Ledger
from wardround.client.plans import Decision, Plans
from wardround.client.site_file import SiteFile, signing_keys
from wardround.common.credentials import fingerprint, new_key, public_line
from wardround.common.ledger import Contents
from wardround.common.provenance import FILE_NAME, Provenance, folder_hashes
from wardround.common.settings.tree import Settings
from wardround.common.wire.messages import TRAIN
from wardround.common.wire.signing import (
    MODEL,
    PLAN,
    RUN,
    Plan,
    Question,
    RunStatement,
    Statement,
    sign,
)

DAY = 86_400.0
NUM_ROUNDS = 2


class Released:
    """A site with plan and ledger, and the released model folder with its provenance."""

    def __init__(
        self,
        place: Path,
        texts: Path,
        made: Path,
        settings: Settings,
        model_sha256: str,
        **facts: Any,
    ) -> None:
        """Make both sides.

        Args:
            made: a model folder without a provenance; it is copied.
            settings: the settings of the plan.
            model_sha256: the hash of the shared tensors in `made`.
            facts: fields of the `SiteFile`.
        """
        self.coordinator, self.run_key = _key(), _key()
        place.mkdir()
        (place / "coordinator.pub").write_text(
            public_line(self.coordinator), encoding="ascii"
        )
        policy = replace(WIDE, approve="by_hand")
        self.site: SiteFile = make_site(place, 9092, texts, policy=policy, **facts)
        own, coordinator = signing_keys(self.site)
        self.own = fingerprint(public_line(own))
        self.plans = Plans(self.site, coordinator)
        now = time.time()
        self.plan = Plan(
            version=1,
            settings=settings.for_sites().to_dict(),
            sites={self.site.name: self.own, "lakeside": "SHA256:other"},
            not_before=now - DAY,
            not_after=now + DAY,
            code={},
            parent="",
        )
        self.digest = self.plans.add(sign(PLAN, self.plan, self.coordinator))
        self.decide("approved")
        self.run = RunStatement(
            "trial", public_line(self.run_key), now - DAY, now + DAY, self.digest
        )
        self.site.state.mkdir(exist_ok=True)
        with Ledger(self.site.state, self.site.name, self.own) as ledger:
            ledger.opened()
            for number in range(1, NUM_ROUNDS + 1):
                ledger.leaves(TRAIN, self._question(number), Contents(), 0.5)
                ledger.left(answer_of(self.site.name, number))
        self.folder = copy_of(made, place / "model")
        updates = [
            (number, name, answer_of(name, number))
            for number in (1, 2)
            for name in sorted(self.plan.sites)
        ]
        self.provenance = Provenance(
            version=2,
            plan=self.digest,
            sites=self.plan.sites,
            model_sha256=model_sha256,
            updates=tuple(updates),
            round=NUM_ROUNDS,
            files=folder_hashes(self.folder),
        )
        self.write()

    def _question(self, number: int) -> Question:
        statement = Statement(
            1, "f" * 64, number, number, TRAIN, "run", self.own, "n", "", {}, 0.0
        )
        return Question(statement, f"{number:064x}", "key", 0.0, self.digest)

    def decide(self, state: Any) -> None:
        """Set the decision of the site's people about the plan."""
        self.plans.decide(self.digest, Decision(state, time.time(), "hand"))

    def write(self, *, run: str = "", run_key: Any = None, **changed: Any) -> None:
        """Write `provenance.json`.

        Args:
            run: the envelope of the run's key, in place of the honest one.
            run_key: signs the statement, in place of the run's key.
            changed: fields of the provenance.
        """
        provenance = replace(self.provenance, **changed)
        signed = {
            "run": run or sign(RUN, self.run, self.coordinator),
            "statement": sign(MODEL, provenance, run_key or self.run_key),
        }
        (self.folder / FILE_NAME).write_text(json.dumps(signed), encoding="ascii")


def answer_of(name: str, number: int) -> str:
    """Return the hash of a site's signed answer in a round."""
    return f"{number}{name}".encode().hex().ljust(64, "0")


def _key() -> Any:
    return new_key("signing")
