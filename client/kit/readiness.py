"""The commands `check` and `join`: check the site, print the findings, take part."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path

import typer

from wardround.client.kit.checks.findings import Finding
from wardround.client.kit.checks.printing import print_findings
from wardround.client.kit.checks.subject import Options
from wardround.client.kit.checks.table import (
    findings_as_json,
    is_ready,
    run_checks,
)
from wardround.client.kit.reconnect import HEALING_CHECKS, LinkJudge
from wardround.client.node.join import join, say
from wardround.client.site_file import SiteFile, load_site_file
from wardround.common.exits import DONE, FAILED
from wardround.common.wire.invitation import Invitation, read_document


def read_options(
    site: SiteFile,
    expect: Sequence[str],
    labels: str,
    model: str | None,
    max_length: int,
) -> Options:
    """Return the options of `check`: those typed, then those of the invitation.

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
    names = tuple(name.strip() for name in labels.split(",") if name.strip())
    if site.invitation is not None and site.invitation.exists():
        invited, _ = read_document(Invitation, site.invitation)
        # Versions of Python and PyTorch may differ; these two must fit.
        for package in ("wardround", "flwr"):
            if package in invited.versions:
                versions.setdefault(package, invited.versions[package])
        names = names or invited.labels
    return Options(versions, names, model, max_length)


def check(
    site: SiteFile, options: Options, skip: Collection[str], *, as_json: bool
) -> int:
    """Run the checks and print the findings. Returns the exit code.

    Raises:
        ValueError: `skip` names no check.
    """
    findings = run_checks(site, options, skip)
    if as_json:
        typer.echo(json.dumps(findings_as_json(site, findings), indent=2))
    else:
        print_findings(findings)
    return DONE if is_ready(findings) else FAILED


def check_and_join(path: Path, skip: Collection[str], retry_seconds: float) -> int:
    """Run the checks, then take part. Returns the exit code.

    Raises:
        ValueError: `skip` names no check, or a file of the site is wrong.
    """
    site = load_site_file(path)
    findings = run_checks(site, Options(), skip)
    print_findings(findings)
    lasting = [finding.check for finding in findings if _is_lasting(finding)]
    if lasting:
        say(f"not ready: {', '.join(lasting)}. Nothing was started.")
        return FAILED
    return join(path, site, LinkJudge(site), retry_seconds)


def _is_lasting(finding: Finding) -> bool:
    return finding.state == "problem" and finding.check not in HEALING_CHECKS
