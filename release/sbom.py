"""Add to a list of installed packages the SHA-256 of the files from which they can be installed.

    python -m release.sbom ENVIRONMENT.json OUT.json      (or: make sbom)

ENVIRONMENT.json is CycloneDX 1.6 from `cyclonedx-py environment`: names, versions, licences and
dependencies. An installed package does not record its file. So the hashes are all those that the
package index published for its version, from requirements/*.txt.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[1] / "requirements"
_INDEX = "https://pypi.org/simple/{name}/"


def main(environment: str, out: str) -> None:
    """Write the list with hashes, and print the packages without a hash.

    Raises:
        ValueError: the list is not CycloneDX 1.6.
    """
    bom = json.loads(Path(environment).read_text(encoding="utf-8"))
    unhashed = add_hashes(bom, published_hashes(FOLDER))
    text = json.dumps(bom, indent=2, ensure_ascii=False) + "\n"
    _validate(text)
    Path(out).write_text(text, encoding="utf-8")
    num_all = len(bom["components"])
    sys.stdout.write(
        f"{out}: {num_all} packages, {num_all - len(unhashed)} of them with hashes\n"
    )
    sys.stdout.write("".join(f"  no published hash: {name}\n" for name in unhashed))


def published_hashes(folder: Path) -> dict[tuple[str, str], list[str]]:
    """Return the SHA-256 (hex) of every file of a package, by normalised name and version."""
    found: dict[tuple[str, str], list[str]] = {}
    for file in sorted(folder.glob("*.txt")):
        text = file.read_text(encoding="ascii")
        for block in re.findall(r"^\S+==.*(?:\n +.*)*", text, re.MULTILINE):
            name, version = block.split()[0].split("==")
            found[_normalised(name), version] = re.findall(
                r"--hash=sha256:([0-9a-f]{64})", block
            )
    return found


def add_hashes(
    bom: dict[str, Any], published: dict[tuple[str, str], list[str]]
) -> list[str]:
    """Add the hashes of its files to every component, in place.

    Returns:
        Name and version of each component without a hash.
    """
    unhashed = []
    for component in bom["components"]:
        name = _normalised(component["name"])
        hashes = published.get((name, component["version"]))
        if not hashes:
            unhashed.append(f"{component['name']} {component['version']}")
            continue
        reference = {
            "type": "distribution",
            "url": _INDEX.format(name=name),
            "comment": "one of the files that the package index has of this version",
            "hashes": [{"alg": "SHA-256", "content": digest} for digest in hashes],
        }
        component.setdefault("externalReferences", []).append(reference)
    return sorted(unhashed)


def _normalised(name: str) -> str:
    """Return the form in which the package index compares names (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _validate(text: str) -> None:
    # `make sbom` installs it, in an environment of its own.
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if error is not None:
        raise ValueError(f"the list is not CycloneDX 1.6: {error}")


if __name__ == "__main__":
    main(*sys.argv[1:])
