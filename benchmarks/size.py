"""The house in numbers, with each goal beside its number.

    python -m benchmarks.size [FILE ...]

It reads every Python file that is installed, and the studies. A *code line* holds
code: blank lines, comments and docstrings do not count. A *token* is a token of
Python's tokenizer on such a line. With files named, it prints one row for each of
them and nothing else. The exit code is 1 if a goal is missed.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import grimp

from benchmarks.report import Table

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("common", "client", "server", "studies")
PACKAGES = ("wardround", "studies")
ROUND_AT_THE_SERVER = "server/rounds/"

MOST_TOKENS = 168_609
"""Tokens before this table was made (commit 25a7c00)."""
MOST_TOKENS_A_LINE = 7.0
LONGEST_LINE = 100
FEWEST_CODE_LINES = 20
"""Shorter files do not count in the median of tokens a line."""

_LAYOUT = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}
_RIDDLES = re.compile(r"\b(what|whatever|none)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Source:
    """The numbers of one file."""

    name: str
    """Its path below the repository."""
    code_lines: int
    tokens: int
    long_lines: int
    """Lines of more than `LONGEST_LINE` characters, code or not."""
    conditional_expressions: int
    paired_assignments: int
    """Statements such as `a, b = x, y`."""
    local_imports: int
    words: int
    """Words in docstrings."""
    riddles: int
    """Of these, how many are "what", "whatever" or "none"."""

    @classmethod
    def read(cls, name: str, text: str) -> Source:
        """Count in this text."""
        nodes = list(ast.walk(ast.parse(text)))
        docstrings = [node for node in nodes if _is_docstring(node)]
        prose = {line for node in docstrings for line in _span(node)}
        lines: set[int] = set()
        tokens = 0
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type not in _LAYOUT and token.start[0] not in prose:
                tokens += 1
                lines.update(range(token.start[0], token.end[0] + 1))
        words = [word for node in docstrings for word in ast.unparse(node).split()]
        return cls(
            name=name,
            code_lines=len(lines),
            tokens=tokens,
            long_lines=sum(len(line) > LONGEST_LINE for line in text.splitlines()),
            conditional_expressions=sum(isinstance(node, ast.IfExp) for node in nodes),
            paired_assignments=sum(_is_paired(node) for node in nodes),
            local_imports=_local_imports(nodes),
            words=len(words),
            riddles=sum(bool(_RIDDLES.search(word)) for word in words),
        )

    @property
    def tokens_a_line(self) -> float:
        """Tokens for each code line; 0.0 in a file without code."""
        return self.tokens / self.code_lines if self.code_lines else 0.0


def _is_docstring(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _is_paired(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Tuple)
        and isinstance(node.targets[0], ast.Tuple)
    )


def _span(node: ast.AST) -> range:
    assert isinstance(node, ast.Expr)
    return range(node.lineno, (node.end_lineno or node.lineno) + 1)


def _local_imports(nodes: Sequence[ast.AST]) -> int:
    functions = [
        node
        for node in nodes
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    inner = {
        id(node)
        for function in functions
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    return len(inner)


def read_house(root: Path = ROOT) -> list[Source]:
    """Every file that a reader of the house opens, `wardround/*.py` included."""
    paths = [path for folder in FOLDERS for path in (root / folder).rglob("*.py")]
    paths += (root / "wardround").glob("*.py")
    return [read_file(path, root) for path in sorted(paths)]


def read_file(path: Path, root: Path = ROOT) -> Source:
    """The numbers of this file."""
    name = path.resolve().relative_to(root).as_posix()
    return Source.read(name, path.read_text(encoding="utf-8"))


def circles(imports: Mapping[str, set[str]]) -> list[set[str]]:
    """Groups of modules in which each imports each other, directly or through others.

    Args:
        imports: for each module, the modules that it imports.
    """
    reached = {module: _reached(module, imports) for module in imports}
    groups: list[set[str]] = []
    for module in sorted(imports):
        group = {other for other in reached[module] if module in reached[other]}
        if group and group not in groups:
            groups.append(group)
    return groups


def _reached(start: str, imports: Mapping[str, set[str]]) -> set[str]:
    found: set[str] = set()
    waiting = list(imports[start])
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.add(module)
            waiting.extend(imports[module])
    return found


def imports_of_the_house() -> dict[str, set[str]]:
    """Who imports whom; imports for types alone count too."""
    graph = grimp.build_graph(
        *PACKAGES, exclude_type_checking_imports=False, cache_dir=None
    )
    return {
        module: graph.find_modules_directly_imported_by(module)
        for module in graph.modules
    }


def rows(
    sources: Sequence[Source], in_circles: int
) -> Iterator[list[str | float | int | None]]:
    """Name, number, goal and verdict of each line of the table."""

    def total(name: str) -> int:
        return sum(getattr(source, name) for source in sources)

    def row(
        name: str, now: float, goal: float | None = None
    ) -> list[str | float | int | None]:
        verdict = "" if goal is None else "met" if now <= goal else "missed"
        return [name, round(now, 2), goal, verdict]

    hundred_lines = total("code_lines") / 100
    counted = [one for one in sources if one.code_lines >= FEWEST_CODE_LINES]
    at_the_server = [one for one in sources if one.name.startswith(ROUND_AT_THE_SERVER)]
    yield row("files", len(sources))
    yield row("code lines", total("code_lines"))
    yield row("tokens", total("tokens"), MOST_TOKENS)
    density = median(one.tokens_a_line for one in counted)
    yield row("tokens a line, median file", density, MOST_TOKENS_A_LINE)
    yield row(f"lines over {LONGEST_LINE} characters", total("long_lines"), 0)
    yield row(
        "conditional expressions / 100 lines",
        total("conditional_expressions") / hundred_lines,
    )
    yield row("a, b = x, y / 100 lines", total("paired_assignments") / hundred_lines)
    yield row("imports in functions", total("local_imports"))
    yield row(
        "what, whatever, none / 1,000 words of docstrings",
        1000 * total("riddles") / total("words"),
    )
    yield row("modules in circles, types counted", in_circles, 0)
    yield row("files of a round at the server", len(at_the_server))
    yield row(
        "code lines of its largest file", max(one.code_lines for one in at_the_server)
    )


def print_files(sources: Sequence[Source]) -> None:
    """One row a file."""
    table = Table(
        ["file", "tokens", "a line", "long", "if-else", "a, b =", "local", "riddles"]
    )
    for one in sources:
        table.rows.append(
            [
                one.name,
                one.tokens,
                round(one.tokens_a_line, 2),
                one.long_lines,
                one.conditional_expressions,
                one.paired_assignments,
                one.local_imports,
                one.riddles,
            ]
        )
    sys.stdout.write(f"{table.text()}\n")


def main(arguments: Sequence[str]) -> int:
    """Print the table."""
    if arguments:
        print_files([read_file(Path(name)) for name in arguments])
        return 0
    in_circles = circles(imports_of_the_house())
    table = Table(["", "now", "goal", ""])
    table.rows.extend(rows(read_house(), sum(len(group) for group in in_circles)))
    sys.stdout.write(f"{table.text()}\n")
    for group in in_circles:
        sys.stdout.write(f"a circle: {', '.join(sorted(group))}\n")
    return int(any("missed" in line for line in table.rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
