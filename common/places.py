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


def from_home(path: str) -> str:
    """Return the path with a leading `~` replaced by the home folder.

    Raises:
        ValueError: this user has no home folder, or there is no user of that name.
    """
    try:
        return str(Path(path).expanduser()) if path.startswith("~") else path
    except RuntimeError:
        raise ValueError(
            f"'{path}' begins with ~, but this machine knows no such home folder. "
            "Write the whole path."
        ) from None


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
