"""The house's rules of direction, read from the source: who may import whom, and what is written down."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("common", "client", "server")
FILES = sorted(path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
TREES = {path.as_posix(): ast.parse((ROOT / path).read_text(encoding="utf-8")) for path in FILES}
Public = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def imports(tree: ast.AST) -> set[str]:
    """Dotted names of every module that the code imports, wherever in the file it does."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def importers(name: str) -> set[str]:
    """Files that import the package `name` or something below it."""
    return {
        path
        for path, tree in TREES.items()
        if any(module == name or module.startswith(f"{name}.") for module in imports(tree))
    }


def test_the_walk_sees_every_kind_of_import() -> None:
    tree = ast.parse("import a.b\nfrom c import d\ndef f():\n    if f:\n        import e as g\n")
    assert imports(tree) == {"a.b", "c", "c.d", "e"}


def test_common_imports_neither_client_nor_server() -> None:
    above = importers("client") | importers("server")
    assert {path for path in above if path.startswith("common/")} == set()


def test_client_imports_no_server() -> None:
    assert {path for path in importers("server") if path.startswith("client/")} == set()


def test_server_imports_client_at_the_simulation_door_only() -> None:
    assert {path for path in importers("client") if path.startswith("server/")} == {
        "server/engines/simulate.py"
    }


def test_hydra_stands_at_the_doors_only() -> None:
    assert importers("hydra") == {"server/compose.py"}
    assert importers("omegaconf") == {"server/compose.py", "server/sweeps/run.py", "server/sweeps/plan.py"}


def test_common_knows_flower_in_messages_and_their_form_only() -> None:
    found = {path for path in importers("flwr") if path.startswith("common/")}
    assert found == {"common/wire/arrays.py", "common/wire/messages.py", "common/wire/objects.py"}


def test_flowers_private_names_stand_in_one_file_a_side() -> None:
    """At the server in one for each process, SuperLink and server app; and in the grid of a simulation."""
    private = ("supercore", "superlink", "server", "proto", "supernode", "common.serde", "common.inflatable")
    found = set().union(*(importers(f"flwr.{name}") for name in private))
    at_the_server = {"server/deployment/fleet.py", "server/deployment/runtime_link.py"}
    assert found == {"client/node/connection.py", *at_the_server, "server/engines/local_grid.py"}


@pytest.mark.parametrize("name", ["pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"])
def test_nothing_imports_pickle(name: str) -> None:
    assert importers(name) == set()


def test_no_text_becomes_code() -> None:
    """Names resolve in closed tables: a server cannot make a site import or run something."""
    called = {
        (ast.unparse(node.func), path)
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
    }
    forbidden = {"eval", "exec", "compile", "__import__", "import_module", "importlib.import_module"}
    assert {(name, path) for name, path in called if name in forbidden} == set()


def public_without_docstring(path: str) -> list[str]:
    """Public functions, classes and methods of public classes that say nothing about themselves."""
    missing: list[str] = []

    def look(body: list[ast.stmt], prefix: str, inherits: bool) -> None:
        for node in body:
            if not isinstance(node, Public) or node.name.startswith("_"):
                continue
            # A method that overrides one with a docstring has it already.
            if ast.get_docstring(node) is None and not inherits:
                missing.append(f"{path}: {prefix}{node.name}")
            if isinstance(node, ast.ClassDef):
                look(node.body, f"{node.name}.", inherits=bool(node.bases))

    look(TREES[path].body, "", inherits=False)
    return missing


@pytest.mark.parametrize("path", [path for path in TREES if not path.endswith("__init__.py")])
def test_what_is_public_has_a_docstring(path: str) -> None:
    assert ast.get_docstring(TREES[path]), f"{path} opens without its one job"
    assert public_without_docstring(path) == []
