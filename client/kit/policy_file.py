"""Reads a policy from a file of its own."""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import TypeAdapter, ValidationError

from wardround.client.policy.limits import Policy, without_retired
from wardround.common.explain import explain

_POLICY: TypeAdapter[Policy] = TypeAdapter(Policy)


def read_policy(path: Path) -> Policy:
    """Read a policy from YAML, one `key: value` a line.

    Raises:
        ValueError: the file cannot be read as YAML, or a key or value is wrong.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        return _POLICY.validate_python(without_retired(content))
    except ValidationError as error:
        keys = list(_POLICY.json_schema()["properties"])
        raise ValueError(f"{path}: {explain(error, keys)}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"--policy is '{path}', which cannot be read as YAML ({reason})."
        ) from None
