"""Paths of the code and of the files beside it, in a checkout or in a wheel."""

from __future__ import annotations

from pathlib import Path

_CODE = Path(__file__).resolve().parents[1]
"""Folder of server, client, common and conf: `wardround` in a wheel, the root of a checkout."""
_IS_CHECKOUT = (_CODE / "wardround" / "__init__.py").is_file()
IMPORT_ROOT = _CODE if _IS_CHECKOUT else _CODE.parent
"""The folder from which `wardround` is imported."""
CONF = _CODE / "conf"
_BUNDLE = _CODE / "server" / "bundle"


def project_file(name: str) -> Path:
    """Return a file from the root of a checkout, or from `server/bundle` of a wheel.

    Raises:
        ValueError: this installation lacks it.
    """
    for folder in (_BUNDLE, _CODE):
        if (folder / name).is_file():
            return folder / name
    raise ValueError(
        f"'{name}' is missing from this installation. Install Wardround again."
    )
