"""The commands `check` and `join`: check the site, print the findings, take part."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from wardround.client.kit.checks.findings import Finding, warning
from wardround.client.kit.checks.subject import Options
from wardround.client.kit.checks.table import (
    CHECKS,
    findings_as_json,
    is_ready,
    run_checks,
)
from wardround.client.kit.reconnect import HEALING_CHECKS, LinkJudge
from wardround.client.node.join import join, say
from wardround.client.site_file import SiteFile, load_site_file
from wardround.common.exits import DONE, FAILED
from wardround.common.places import IMPORT_ROOT
from wardround.common.wire.invitation import Invitation, read_document
from wardround.common.words import label_name, pasteable

_COMPARED = ("wardround", "flwr")
"""Packages whose versions must fit the server's; those of Python and PyTorch may differ."""
_NEED_TORCH = ("model", "lengths")
"""Checks that load torch, which takes seconds and memory; a site that waits needs neither."""
_APART_SECONDS = 600.0
_COLOURS = {"ok": "green", "warning": "yellow", "problem": "bold red"}


def read_options(
    site: SiteFile,
    expect: Sequence[str],
    labels: str,
    model: str | None,
    max_length: int | None,
) -> Options:
    """Return the options of `check`: those typed, and those of the invitation.

    Args:
        expect: texts of the form PACKAGE=VERSION.
        labels: the consortium's labels, with commas between them.

    Raises:
        ValueError: an item of `expect` has another form.
    """
    versions = {}
    for item in expect:
        package, _, number = item.partition("=")
        if not package or not number:
            raise ValueError(
                f"--expect is '{item}'; it must be PACKAGE=VERSION, for example "
                "flwr=1.39.0."
            )
        versions[package] = number
    typed = map(label_name, labels.split(","))
    names = tuple(filter(None, typed))
    invited = _invited_options(site)
    return replace(
        invited,
        expect=versions,
        labels=names or invited.labels,
        model=model,
        max_length=max_length,
    )


def _invited_options(site: SiteFile) -> Options:
    """Return the labels that a plan must have, and the versions of the invitation."""
    own_labels = site.policy.labels
    if site.invitation is None or not site.invitation.exists():
        return Options(labels=own_labels or ())
    invited, _ = read_document(Invitation, site.invitation)
    labels = invited.labels if own_labels is None else own_labels
    versions = {
        package: number
        for package, number in invited.versions.items()
        if package in _COMPARED
    }
    return Options(labels=labels, invited=versions)


def check(
    site: SiteFile, options: Options, skip: Collection[str], *, as_json: bool
) -> int:
    """Run the checks and print the findings. Returns the exit code.

    Raises:
        ValueError: `skip` names no check.
    """
    findings = run_checks(site, options, skip)
    if as_json:
        content = findings_as_json(site, findings)
        typer.echo(json.dumps(content, indent=2))
    else:
        print_findings(findings)
    return DONE if is_ready(findings) else FAILED


def print_findings(findings: Sequence[Finding]) -> None:
    """Print a table on a terminal, and plain lines of the same words elsewhere."""
    console = Console(highlight=False)
    if not console.is_terminal:
        for finding in findings:
            typer.echo(_line(finding))
        return
    table = Table("", "check", "finding", show_lines=False)
    for finding in findings:
        text = finding.message
        if finding.next_step:
            text += f"\n-> {finding.next_step}"
        state = Text(finding.state, _COLOURS[finding.state])
        words = Text(text)
        table.add_row(state, finding.check, words)
    console.print(table)


def _line(finding: Finding) -> str:
    line = f"{finding.state:<8}{finding.check:<12}{finding.message}"
    if finding.next_step:
        line += f"\n{'':<20}-> {finding.next_step}"
    return line


def check_and_join(path: Path, skip: Collection[str], retry_seconds: float) -> int:
    """Run the checks, then take part. Returns the exit code.

    Raises:
        ValueError: `skip` names no check, or a file of the site is wrong.
    """
    site = load_site_file(path)
    findings = run_checks(site, _invited_options(site), [*skip, *_NEED_TORCH])
    findings += check_apart(path, skip)
    print_findings(findings)
    lasting = [finding.check for finding in findings if _is_lasting(finding)]
    if lasting:
        say(f"not ready: {', '.join(lasting)}. Nothing was started.")
        return FAILED
    return join(path, site, LinkJudge(site), retry_seconds)


def check_apart(path: Path, skip: Collection[str]) -> list[Finding]:
    """Run the checks that need torch in another process, whose memory is free when it ends."""
    needed = [name for name in _NEED_TORCH if name not in skip]
    if not needed:
        return []
    words = [sys.executable, "-P", "-m", "wardround.client.kit.cli"]
    words += ["check", "--json", "--site", str(path)]
    for name in CHECKS:
        if name not in needed:
            words += ["--skip-check", name]
    folders = filter(None, [str(IMPORT_ROOT), os.environ.get("PYTHONPATH")])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(folders)}
    try:
        done = subprocess.run(
            words,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            check=False,
            timeout=_APART_SECONDS,
        )
        found = json.loads(done.stdout)["checks"]
    except (subprocess.TimeoutExpired, ValueError, KeyError):
        missing = warning(
            "not checked: the process of this check ended early, or took too long",
            f"Look at it alone: wardround-site check --site {pasteable(path)}",
        )
        return [replace(missing, check=name) for name in needed]
    return [Finding(**finding) for finding in found]


def _is_lasting(finding: Finding) -> bool:
    return finding.state == "problem" and finding.check not in HEALING_CHECKS
