"""Rules of the source that an import graph does not show.

pyproject.toml has the allowed imports, and `lint-imports` checks them. It knows a foreign package
by its first name only (`flwr`), so Flower's private modules are checked here.
"""

from __future__ import annotations

import ast
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("wardround", "common", "client", "server", "studies")
FILES = sorted(
    path.relative_to(ROOT)
    for package in PACKAGES
    for path in (ROOT / package).rglob("*.py")
)
TREES = {
    path.as_posix(): ast.parse((ROOT / path).read_text(encoding="utf-8"))
    for path in FILES
}
Public = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef

# Modules that Flower documents, and its constants. It may change the rest at any time, so the
# files that use the rest are read again with every new version.
PUBLIC = {
    "flwr.app",
    "flwr.clientapp",
    "flwr.serverapp",
    "flwr.simulation",
    "flwr.common.constant",
}
USERS_OF_THE_REST = {
    "client/node/connection.py",
    "server/deployment/servicer.py",
    "server/deployment/fleet.py",
    "server/deployment/runtime_link.py",
    "server/deployment/trees.py",
    "server/engines/local_grid.py",
}


def imports(tree: ast.AST) -> set[str]:
    """Return the dotted names of every module that the code imports, anywhere in the file."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            found.add(node.module)
    return found


def test_the_walk_sees_every_kind_of_import() -> None:
    tree = ast.parse(
        "import a.b\nfrom c import d\ndef f():\n    if f:\n        import e as g\n"
    )
    assert imports(tree) == {"a.b", "c", "e"}


def test_no_module_imports_itself_through_others() -> None:
    """`lint-imports` looks at neighbours; this looks at every module."""
    graph = grimp.build_graph(
        "wardround", "studies", exclude_type_checking_imports=True, cache_dir=None
    )
    imported = {
        module: graph.find_modules_directly_imported_by(module)
        for module in graph.modules
    }
    in_circles = []
    for module, others in imported.items():
        if any(graph.chain_exists(importer=o, imported=module) for o in others):
            in_circles.append(module)
    assert in_circles == []


def test_only_these_files_use_private_names_of_flower() -> None:
    flower = {
        path: {name for name in imports(tree) if name.split(".")[0] == "flwr"}
        for path, tree in TREES.items()
    }
    users = {path for path, names in flower.items() if names - PUBLIC}
    assert users == USERS_OF_THE_REST


def test_no_text_becomes_code() -> None:
    """Names resolve in closed tables: a server cannot make a site import or run something."""
    called = {
        (ast.unparse(node.func), path)
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
    }
    forbidden = {
        "eval",
        "exec",
        "compile",
        "__import__",
        "import_module",
        "importlib.import_module",
    }
    assert {(name, path) for name, path in called if name in forbidden} == set()


# Benchmarks: rivals load models from the folder that they got; architectures are random models.
RIVALS = {
    "benchmarks/architectures.py",
    "benchmarks/contenders/nvflare_client.py",
    "benchmarks/contenders/pfl_research.py",
    "benchmarks/contenders/plain.py",
    "benchmarks/stock/stock_quickstart/task.py",
}
LOADS = {"from_pretrained", "from_config", "pipeline", "torch.load", "torch.hub.load"}
# A run reads their CSV word for word; people do not open it.
INPUTS = {
    "benchmarks/architectures.py",
    "benchmarks/bounds.py",
    "benchmarks/hospitals.py",
    "benchmarks/inputs.py",
    "docker/init.py",
}
WRITES = {"csv.writer", "csv.DictWriter", "to_csv"}


def callers(names: set[str]) -> set[str]:
    """Return the files, also of benchmarks and containers, that call one of these names."""
    more = [
        path
        for folder in ("benchmarks", "docker")
        for path in (ROOT / folder).rglob("*.py")
    ]
    trees = TREES | {
        path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
        for path in more
    }
    return {
        path
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and {ast.unparse(node.func), ast.unparse(node.func).rpartition(".")[2]} & names
    }


def test_models_are_loaded_in_one_file() -> None:
    """That room refuses code in a model folder, and weights with another hash."""
    assert callers(LOADS) == {"common/pretrained.py"} | RIVALS


def test_csv_for_people_is_written_in_one_file() -> None:
    assert callers(WRITES) == {"server/spreadsheet.py"} | INPUTS


def public_without_docstring(path: str) -> list[str]:
    """Return the public functions, classes and methods without a docstring."""
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


@pytest.mark.parametrize(
    "path", [path for path in TREES if not path.endswith("__init__.py")]
)
def test_every_public_name_has_a_docstring(path: str) -> None:
    assert ast.get_docstring(TREES[path]), f"{path} has no docstring"
    assert public_without_docstring(path) == []
