"""The house in numbers, each beside its goal: lines, rooms, the depth of a step, import circles.

    python -m benchmarks.size

A code line holds code: not a blank one, a comment or a docstring. The exit code is 1 where a goal is missed.
"""

from __future__ import annotations

import ast
import io
import os
import sys
import tempfile
import tokenize
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from types import FrameType
from typing import Any

import grimp

from benchmarks.report import Table

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("common", "client", "server", "studies")

# Came after the review, with the site that is one program and signs what it sends; the goal is for the rest.
CAME_AFTER_THE_REVIEW = {
    "common/wire/objects.py": "what is signed: the objects of a message, and their hashes",
    "common/wire/signing.py": "signed envelopes",
    "common/wire/invitation.py": "the keys that a site and a server trust",
    "common/file_form.py": "the form of a site's files, checked before they are read",
    "client/node/connection.py": "a site's own calls to the SuperLink, instead of Flower's SuperNode",
    "common/ledger.py": "what came to a site and what left it",
    "client/node/journal.py": "what a site has answered, so that nothing is answered twice",
    "client/node/loop.py": "the loop of a site's program",
    "server/deployment/fleet.py": "a SuperLink that takes registered sites only",
    "server/deployment/signed.py": "letters to and from sites, signed and checked",
    "client/policy.py": "what a site allows, and a rule for every setting",
    "client/plans.py": "the plans a site was told of, and what was decided",
    "client/kit/plans.py": "both in plain words",
    "server/deployment/plan.py": "the signed plan of a run",
    "server/deployment/audit.py": "what sites have signed, and their ledgers compared with it",
    "server/deployment/ticket.py": "the whole run on the server's machine, of which sites are told no more",
    "server/deployment/runtime_link.py": "messages taken from the SuperLink one by one",
    "client/personal.py": "a site's own models, made of the released one",
    "client/variates.py": "SCAFFOLD's control variates, kept at the site",
    "client/kit/personalise.py": "the command that makes a site's own models",
    "common/personal.py": "what personal models came to, in a file",
    "common/model/adapters.py": "LoRA",
    "common/model/blend.py": "activations that are learned",
    "common/model/mixture.py": "a gate between two models",
    "studies/blending.py": "the study of activations that are learned",
    "studies/personal.py": "the study of personal models",
    "studies/mean_heads.py": "what a mean of drawn heads is worth",
    "studies/pooler.py": "a pooler that has learned something, for the study of the collapse",
}
A_ROUND_AT_THE_SERVER = ("server/rounds/", "server/record.py")
_LAYOUT = ("COMMENT", "NL", "NEWLINE", "INDENT", "DEDENT", "ENDMARKER")


@dataclass(frozen=True)
class Source:
    """A module, read."""

    name: str
    lines: frozenset[int]
    """Numbers of its code lines."""
    functions: list[int]
    """Code lines of each function, those of its inner ones included."""

    @classmethod
    def read(cls, name: str, text: str) -> Source:
        """Read a module of this text."""
        lines: set[int] = set()
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if tokenize.tok_name[token.type] not in _LAYOUT:
                lines.update(range(token.start[0], token.end[0] + 1))
        nodes = list(ast.walk(ast.parse(text)))
        for node in nodes:
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                lines.difference_update(_span(node))
        functions = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        return cls(name, frozenset(lines), [len(lines.intersection(_span(node))) for node in functions])


def _span(node: ast.stmt) -> range:
    return range(node.lineno, (node.end_lineno or node.lineno) + 1)


def frames_to_a_step() -> list[str]:
    """Functions on the stack of an optimiser's first step, from its caller to what the round loop calls.

    Measured in a simulation of one client in this process. Torch's wrapper of `step` does not count, nor do
    comprehensions, which newer interpreters give no frame.
    """
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    from server.compose import compose
    from server.engines.simulate import simulate
    from tests.support.tiny import write_model, write_texts

    stack: list[tuple[str, str]] = []

    def look(*_: Any) -> None:
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            stack.append((frame.f_code.co_filename, frame.f_code.co_qualname))
            frame = frame.f_back
        hook.remove()

    hook = register_optimizer_step_pre_hook(look)
    with tempfile.TemporaryDirectory() as name, redirect_stderr(io.StringIO()):
        folder = Path(name)
        model = ["model=hf", f"model.name={write_model(folder / 'model', 'bert')}"]
        train, test = (write_texts(folder / f"{seed}.csv", 12, seed) for seed in (0, 1))
        data = ["data=files", f"data.path={train}", f"data.test_path={test}"]
        run = [f"run_dir={folder / 'run'}", "num_clients=1", "num_rounds=1", "device=cpu", "threads=1"]
        simulate(compose([*model, *data, *run, "train.max_length=8"]).settings)
    rooms = str(ROOT / "server" / "rounds")
    loop = max(number for number, (file, _) in enumerate(stack) if file.startswith(rooms))
    return [
        function
        for file, function in stack[:loop]
        if "/torch/optim/" not in file and not function.endswith(("comp>", "genexpr>"))
    ]


def modules_in_circles() -> list[str]:
    """Modules that import themselves by way of others; imports for types alone do not count."""
    graph = grimp.build_graph(*PACKAGES, exclude_type_checking_imports=True, cache_dir=None)
    imported = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    return sorted(a for a in imported if any(graph.chain_exists(importer=b, imported=a) for b in imported[a]))


def size(sources: Sequence[Source]) -> int:
    """Code lines of them all."""
    return sum(len(source.lines) for source in sources)


def main() -> int:
    """Print the table."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    every = [Source.read(path.relative_to(ROOT).as_posix(), path.read_text("utf-8")) for path in paths]
    sources = [source for source in every if source.lines]
    rounds = [source for source in sources if source.name.startswith(A_ROUND_AT_THE_SERVER)]
    later = [source for source in sources if source.name in CAME_AFTER_THE_REVIEW]
    frames, circles = frames_to_a_step(), modules_in_circles()
    rows: list[tuple[str, float, int | None, int | None]] = [
        ("code lines", size(sources), None, None),
        ("of them what came after the review", size(later), None, None),
        ("the rest", size(sources) - size(later), 10919, 7500),
        ("modules", len(sources), 102, None),
        ("code lines of a module, median", median(len(source.lines) for source in sources), None, None),
        ("code lines of a function, median", median(n for s in sources for n in s.functions), 7, None),
        ("code lines of a round at the server", size(rounds), None, 900),
        ("files of a round at the server", len(rounds), None, 6),
        ("frames from the round loop to optimizer.step", len(frames), 15, 9),
        ("modules in import circles", len(circles), 2, 0),
    ]
    table = Table(["", "now", "at the review", "goal", ""])
    for what, now, review, goal in rows:
        table.rows.append(
            [what, now, review, goal, "" if goal is None else "met" if now <= goal else "missed"]
        )
    after = Table(["came after the review", "code lines", ""])
    after.rows.extend([s.name, len(s.lines), CAME_AFTER_THE_REVIEW[s.name]] for s in later)
    sys.stdout.write(f"{table.text()}\n{after.text()}\n")
    sys.stdout.write(
        f"frames, innermost first: {', '.join(frames)}\nin circles: {', '.join(circles) or 'none'}\n"
    )
    return int(any(goal is not None and now > goal for _, now, _, goal in rows))


if __name__ == "__main__":
    sys.exit(main())
