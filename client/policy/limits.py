"""The limits of a site: the section `policy` of its site.yaml, and the facts rules need."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from wardround.common.errors import SiteRefusal
from wardround.common.settings.values import LabelName

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Multiple = Annotated[float, Field(ge=1, allow_inf_nan=False)]

Refusal = tuple[str, str, str]
"""A code of `REFUSALS`, the setting that is meant or "", and a text for the site."""


def refuse_first(refusals: Iterable[Refusal]) -> None:
    """Raise SiteRefusal for the first of these reasons, if there is any."""
    for code, key, words in refusals:
        raise SiteRefusal(code, key, words)


@dataclass(frozen=True, kw_only=True)
class Policy:
    """The section `policy` of site.yaml, in the order of that file."""

    __pydantic_config__ = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    approve: Literal["by_hand", "within_policy"] = "by_hand"
    """`by_hand`: a person approves each plan. `within_policy`: every plan inside these
    limits is approved."""
    approvals: Literal[1, 2] = 1
    """Number of people who must approve a plan, each with a name and a key of their own
    (`by_hand` only)."""
    recipes: tuple[str, ...] | None = None
    """Recipes, as `fine_tune@1`, that a plan must follow without a deviation. None asks
    for no recipe."""
    max_answers: Count = 200
    """Most rounds of one plan. Each round is answered at most three times, if answers get
    lost."""
    max_epochs: Count = 10
    """Most passes over the site's texts in one round."""
    max_steps: Count = 20_000
    """Most optimiser steps in one round."""
    max_days: Positive = 90.0
    """Longest time from a plan's first to its last day."""
    min_batch_size: Count = 8
    """Smallest batch. A step on one text reveals more about it than a step on many."""
    max_batch_size: Count = 512
    """Largest batch, in training and in evaluation."""
    min_max_length: Count = 16
    """Fewest tokens to which a text may be cut."""
    max_max_length: Count = 4096
    """Most tokens to which a text may be padded."""
    max_learning_rate: Positive = 0.1
    """Largest learning rate with SGD, for the whole model and for its head."""
    max_learning_rate_adamw: Positive = 0.001
    """Largest learning rate with AdamW, whose steps have about this length for every
    weight."""
    max_weight_decay: NotNegative = 0.5
    max_influence: Multiple = 4.0
    """Largest share of an update that one text may have, as a multiple of its even
    share."""
    min_speaking_texts: NotNegative = 10.0
    """Fewest texts that contribute to an update; with fewer, it stays here. A crafted
    model can silence all texts except one."""
    min_token_ratio: NotNegative = 4.0
    """Fewest tokens of the training texts, as a multiple of the model's hidden size."""
    frozen: Literal["embeddings", "none"] = "embeddings"
    """`embeddings`: word embeddings must not be trained, because their updates reveal
    which words occur."""
    control_variates: bool = False
    """True if a plan may correct steps by control variates. The server can invent them."""
    models: tuple[str, ...] | Literal["any"] | None = None
    """Models that may be trained: `sha256:` and the SHA-256 of model.safetensors, `files:`
    and the digest of all files, `name` or `name@revision`. None allows the models that a
    recipe of this version pins. `any` leaves the decision to the person who approves."""
    labels: tuple[LabelName, ...] | None = None
    """The labels, in their order. None takes those of the invitation, if it has any."""
    counts: bool = False
    """True if counts of right and wrong held-out texts, for each pair of labels, may
    leave."""
    min_count: Count = 5
    """The counts stay here if one of them is above 0 and below this."""
    forms: tuple[Literal["exact", "bf16", "fp16", "int8"], ...] = (
        "exact",
        "bf16",
        "fp16",
        "int8",
    )
    """Forms in which updates may leave."""
    min_sites: Count = 3
    """Fewest sites of a plan, and of a round. Of two sites, each can compute the other's
    update."""
    max_sites: Count = 64
    """Most sites of a plan. A coordinator can invent sites, and people do not read a list
    of hundreds."""
    require_peers: bool = False
    """True if every other site of a plan must be pinned here with its key
    (`wardround-site peers add`)."""
    min_examples: Count = 50
    """Fewest training texts; with fewer, nothing leaves."""
    same_start: bool = True
    """True if the first model must be, bit for bit, the one that this site computes from
    its own model files."""
    max_step_ratio: Positive | None = 10.0
    """Largest move of each tensor of the model from round to round, as a multiple of this
    site's own move (`client/bounds.py`). None sets no bound."""
    max_size_ratio: Multiple = 100.0
    """Largest move by the other sites and the server's momentum, as a multiple of this
    site's own: a site of 50 texts can take part beside one of 5,000."""
    max_total_answers: Count = 600
    """Most rounds that this site answers in total, over all plans and files. The count is
    never reset."""
    min_changed_texts: Count = 50
    """Fewest texts that must differ from an answered version of the file. With fewer, the
    difference of two updates would be that of these texts, so the plan is refused."""
    data_may_change: bool = False
    """True if a plan stays approved when texts are added or removed."""
    require_privacy: bool = False
    """Only plans with differential privacy. This version has no differential privacy, so
    with true every plan is refused."""
    max_epsilon: Positive | None = None
    """Not in effect yet: there is no differential privacy in this version."""
    delta: Positive | None = None
    """Not in effect yet, for the same reason."""
    require_aggregation: bool = False
    """Only plans whose updates are added up before they can be read. This version has no
    secure aggregation, so with true every plan is refused."""


RETIRED = {"max_global_step": "max_step_ratio"}
"""Keys of earlier versions, which are ignored, and the keys that replaced them."""


def without_retired(policy: Any) -> Any:
    """Return a section `policy`, as read from YAML, without keys of earlier versions."""
    if not isinstance(policy, dict):
        return policy
    return {key: value for key, value in policy.items() if key not in RETIRED}


@dataclass(frozen=True)
class Limits:
    """A policy, and the facts about its site that rules need."""

    policy: Policy
    site: str
    key: str
    """Fingerprint of the key that signs the site's answers."""
    has_own_model: bool
    """True if the site trains a model from a folder of its own."""
    labels: tuple[str, ...] = ()
    """The labels of the invitation."""
    peers: Mapping[str, str] = field(default_factory=dict)
    """Fingerprint of the signing key of each pinned site, by the site's name."""

    @property
    def allowed_labels(self) -> tuple[str, ...]:
        """The labels that a plan must have; empty if any labels are allowed."""
        return self.labels if self.policy.labels is None else self.policy.labels
