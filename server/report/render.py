"""Write reports from Jinja2 templates: self-contained HTML, the same as Markdown, and figures."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from wardround.common.errors import DIVERGED
from wardround.common.files import write_atomically
from wardround.common.personal_record import HEADER
from wardround.server.diagnostics.collapse import (
    Collapse,
    Episode,
    find_episodes,
    in_rounds,
    label_name,
)
from wardround.server.report.findings import TEMPLATES, Findings
from wardround.server.report.names import (
    display_name,
    joined,
)
from wardround.server.report.run import (
    RunData,
    load_run,
)
from wardround.server.report.sweep import (
    SweepData,
    load_sweep,
)

if TYPE_CHECKING:
    from wardround.server.report.figures import Drawing

RUN_FILES = ("settings.json", "history.jsonl", "status.json")
PAGES = {"html": "index.html", "md": "summary.md"}
"""File of each kind of page; the kind names its template."""
EXPECTED_TO_DIFFER = (
    "run_dir",
    "arm",
    "model.",
    "data.",
    "num_clients",
    "num_rounds",
    "seed",
    "evaluation.target_accuracy",
)
"""Prefixes of the settings in which the cells of a sweep are meant to differ."""


def write_report(
    folder: Path, study: Callable[[SweepData], Findings] | None = None
) -> Path:
    """Write `<folder>/report/` again and return the path of its `index.html`.

    The same input files give the same bytes. Each file is replaced in one step.

    Args:
        study: makes the findings of a sweep. Default: the paper's claims, or none if the sweep has
            arms.

    Raises:
        ValueError: `folder` is neither a sweep nor a run, or its `sweep.csv` is damaged.
    """
    folder = folder.resolve()
    if (folder / "sweep.csv").is_file():
        files = sweep_files(load_sweep(folder), study)
    elif any((folder / name).is_file() for name in RUN_FILES):
        files = run_files(folder.name, load_run(folder))
    else:
        problem = "holds neither" if folder.is_dir() else "is not a folder with"
        raise ValueError(
            f"{folder} {problem} a sweep (sweep.csv) or a run ({', '.join(RUN_FILES)}). Give the "
            f"folder that "
            "`wardround sweep` or `wardround simulate` printed when it started, for example: "
            "wardround report outputs/demo"
        )
    target = folder / "report"
    target.mkdir(exist_ok=True)
    for name, content in files.items():
        write_atomically(target / name, partial(Path.write_bytes, data=content))
    return target / "index.html"


def sweep_files(
    sweep: SweepData, study: Callable[[SweepData], Findings] | None = None
) -> dict[str, bytes]:
    """Return the files of a sweep's report, by name."""
    # Here, because importing matplotlib takes half a second, which not every user of this file
    # needs.
    from wardround.server.report.sweep_figures import sweep_figures

    found = (study or own_findings)(sweep)
    drawings = sweep_figures(sweep) if found.drawings is None else found.drawings
    states = sweep.cells["status"].value_counts(sort=False)
    budgets = {display_name(data): sweep.budget(data) for data in sweep.data_sets}
    pages = render_pages(
        found.template,
        f"Wardround sweep: {sweep.name}",
        sweep.runs,
        name=sweep.name,
        sweep=sweep,
        drawings=drawings,
        states=joined(f"{count} {status}" for status, count in states.items()),
        budgets=joined(
            f"{budget} rounds on {data}" for data, budget in budgets.items() if budget
        ),
        result_table=_result_table(sweep),
        entries=found.entries,
        **found.facts,
    )
    files = pages | _pictures(drawings)
    if found.file:
        entries = [asdict(entry) for entry in found.entries]
        text = json.dumps(entries, indent=2, ensure_ascii=False) + "\n"
        files[found.file] = text.encode()
    return files


def own_findings(sweep: SweepData) -> Findings:
    """Return the paper's claims, or results only if the sweep has arms."""
    if sweep.arms:
        return Findings(TEMPLATES / "sweep.j2", "", ())
    # Here, because it composes the paper's settings, which takes a second.
    from wardround.server.report import claims

    return claims.findings(sweep)


def run_files(name: str, run: RunData) -> dict[str, bytes]:
    """Return the files of a run's report, by name."""
    from wardround.server.report.run_figures import run_figures

    drawings = run_figures(run)
    gains = []
    if run.personal and run.personal.sites:
        for measure in run.task.metric_words:
            rows = run.personal.rows(measure)
            gains.append(pd.DataFrame(rows, columns=HEADER))
    pages = render_pages(
        TEMPLATES / "run.j2",
        f"Wardround run: {name}",
        [run],
        name=name,
        run=run,
        drawings=drawings,
        story=tell_story(run),
        totals=_totals(run),
        gains=gains,
    )
    return pages | _pictures(drawings)


def render_pages(
    template: Path, title: str, runs: Iterable[RunData], **facts: Any
) -> dict[str, bytes]:
    """Render a template as HTML and Markdown, with the settings that the runs share and those
    that differ."""
    flat = [run.settings.flat() for run in runs if run.settings]
    keys = sorted({key for settings in flat for key in settings})
    shared = [key for key in keys if all(one.get(key) == flat[0][key] for one in flat)]
    rows = [(key, _value(flat[0][key])) for key in shared if key != "run_dir"]
    differing = set(keys) - set(shared)
    facts["shared"] = pd.DataFrame(rows, columns=["Setting", "Value"])
    facts["odd"] = [
        key for key in sorted(differing) if not key.startswith(EXPECTED_TO_DIFFER)
    ]
    pages = {}
    for kind, file in PAGES.items():
        environment = _environment(kind, template.parent)
        say: Any = environment.get_template(f"{kind}.j2").module
        body = environment.get_template(template.name).render(facts, say=say)
        page = say.page(title, body)
        pages[file] = (re.sub(r"\n{3,}", "\n\n", page).strip() + "\n").encode()
    return pages


def tell_story(run: RunData) -> str:
    """Describe the run in one paragraph; empty before the first round."""
    plateaus = find_episodes(
        [look for look in run.looks if look.round > 0], "at chance"
    )
    template = _environment("text", TEMPLATES).get_template("story.j2")
    text = template.render(run=run, plateaus=plateaus, diverged=DIVERGED, when=_when)
    return " ".join(text.split())


def _when(episode: Episode, collapse: Collapse) -> str:
    is_up = collapse.is_up and episode.last == collapse.last
    return (
        f"since round {episode.first}"
        if is_up
        else in_rounds(episode.first, episode.last)
    )


def _result_table(sweep: SweepData) -> pd.DataFrame:
    rows = [
        {
            "Model": display_name(group.model),
            "Data": display_name(group.data),
            "K": str(group.num_clients),
            "Accuracy": group.accuracy.text(".3f") if group.accuracy else "–",
            "Share of baseline": group.share.text(".1%") if group.share else "–",
            "Rounds to target": group.rounds_text,
            "Status": group.words("status"),
        }
        for group in sweep.groups()
    ]
    return pd.DataFrame(rows)


def _totals(run: RunData) -> pd.DataFrame:
    phases = {
        "train": "seconds_train",
        "aggregate": "seconds_aggregate",
        "evaluate": "seconds_evaluate",
    }
    sums = run.table[[*phases.values(), "seconds", "bytes_down", "bytes_up"]].sum(
        min_count=1
    )
    rows = []
    for phase, column in (phases | {"total": "seconds"}).items():
        if not math.isnan(sums[column]):
            rows.append((f"Seconds: {phase}", f"{sums[column]:.1f}"))
    sent = {"Sent to the clients": "bytes_down", "Sent by the clients": "bytes_up"}
    for name, column in sent.items():
        count = 0 if math.isnan(sums[column]) else sums[column]
        rows.append((name, _bytes(count)))
    return pd.DataFrame(rows, columns=["What", "Total"])


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.4g} {unit}"
        count /= 1000
    return f"{count:.4g} TB"


def _pictures(drawings: Sequence[Drawing]) -> dict[str, bytes]:
    return {
        f"{drawing.name}.{kind}": getattr(drawing, kind)
        for drawing in drawings
        for kind in ("png", "svg")
    }


def _value(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return "none" if value is None else str(value)


def _environment(kind: str, templates: Path) -> Environment:
    """Return the template environment for a kind of text, a key of `_WORDS`."""
    environment = Environment(
        loader=FileSystemLoader([templates, TEMPLATES]),
        autoescape=kind == "html",
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {
        "words": _WORDS[kind],
        "name": display_name,
        "joined": joined,
        "num": _number,
        "span": _span,
        "texts": _texts,
        "log": math.log,
        "label": label_name,
        "sentence": lambda text: " ".join(text.split()).rstrip(".") + ".",
        "base64": lambda content: base64.b64encode(content).decode("ascii"),
    }
    environment.tests |= {
        "missing": pd.isna,
        "number": lambda text: re.match(r"-?\d", text),
    }
    return environment


def _html(text: str) -> Markup:
    """Put text on one line, with no line break between K and its number."""
    return Markup(" ".join(escape(text).split()).replace("K = ", "K&nbsp;=&nbsp;"))


def _plain(text: str) -> str:
    """Put text on one line and escape the signs of Markdown."""
    return re.sub(r"([\\`*_|<\[\]])", r"\\\1", " ".join(text.split()))


_WORDS: dict[str, Callable[[str], str]] = {"html": _html, "md": _plain, "text": str}


def _number(value: float | None, pattern: str) -> str:
    return "–" if pd.isna(value) else format(value, pattern)


def _span(values: Iterable[float], pattern: str) -> str:
    """Return `0.2 to 0.5`, or one number if all are written the same."""
    known = sorted(values)
    low, high = format(known[0], pattern), format(known[-1], pattern)
    return low if low == high else f"{low} to {high}"


def _texts(table: pd.DataFrame, columns: Mapping[str, tuple[str, str]]) -> pd.DataFrame:
    """Return a table for readers, from (column, number format) by header."""
    shown = {
        head: table[column].map(lambda v, p=pattern: _number(v, p))
        for head, (column, pattern) in columns.items()
    }
    return pd.DataFrame(shown)
