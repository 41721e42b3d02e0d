"""Simulates a signed plan: the plan's settings, with files of this machine."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from wardround.common.errors import NotAuthentic
from wardround.common.pretrained import weights_digest
from wardround.common.settings.model import ModelSettings
from wardround.common.settings.tree import Settings
from wardround.common.wire.signing import Plan, read_statement
from wardround.server.compose import compose, parse

_OWN_GROUPS = frozenset({"data", "partition", "engine"})
_OWN_KEYS = frozenset(
    {
        "run_dir",
        "device",
        "model",
        "model.name",
        "model.source",
        "model.revision",
        "arm",
    }
)


def settings_of_plan(file: Path, overrides: Sequence[str]) -> Settings:
    """Return the settings of a simulation of a plan.

    Args:
        file: `plan.json` of a run folder, or of a site's state. Its signature is not
            checked, since the simulation runs in the name of no one.
        overrides: settings that every site chooses: the place of the texts, how they are
            dealt, the output folder.

    Raises:
        ValueError: the file is not a plan, an override would change the plan, or the
            model's weights are not those of the plan.
    """
    for override in parse(overrides):
        key = override.key_or_group
        if key.split(".")[0] not in _OWN_GROUPS and key not in _OWN_KEYS:
            raise ValueError(
                f"{key} is part of the plan and cannot be changed. Leave out "
                f"'{override.input_line}'; you may set {', '.join(sorted(_OWN_GROUPS))}.* and "
                f"{', '.join(sorted(_OWN_KEYS))}."
            )
    planned = _read(file)
    own = compose(overrides).settings
    named = {override.key_or_group for override in parse(overrides)}
    data = replace(
        own.data,
        name=planned.data.name,
        label_names=planned.data.label_names,
        # A site holds the same texts out in every run.
        split_seed=own.data.split_seed if "data.split_seed" in named else 0,
    )
    model = planned.model
    if named & {"model", "model.name"}:
        place = own.model
        model = replace(
            model, name=place.name, source=place.source, revision=place.revision
        )
    _check_weights(model)
    return replace(
        planned,
        data=data,
        model=model,
        partition=own.partition,
        engine=own.engine,
        device=own.device,
        run_dir=own.run_dir,
        arm=own.arm,
    )


def _read(file: Path) -> Settings:
    try:
        envelope = json.loads(file.read_text(encoding="ascii"))
        plan = read_statement(
            Plan, base64.b64decode(envelope["payload"], validate=True)
        )
        return Settings.from_json(json.dumps(plan.settings))
    except OSError as error:
        raise ValueError(
            f"--plan is '{file}', which cannot be read: {error.strerror}."
        ) from None
    except (ValueError, KeyError, TypeError, NotAuthentic) as error:
        raise ValueError(
            f"--plan is '{file}', which is not a plan of this version "
            f"({type(error).__name__}). Give the plan.json of a run folder."
        ) from None


def _check_weights(model: ModelSettings) -> None:
    if model.sha256 is None:
        return
    found = weights_digest(model)
    if found != model.sha256:
        raise ValueError(
            f"model.name is '{model.name}', whose weights have the SHA-256 {found}; the plan "
            f"has {model.sha256}. Give the folder of the plan's model: model=hf "
            "model.name=FOLDER"
        )
