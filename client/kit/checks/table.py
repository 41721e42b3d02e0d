"""All checks, in the order in which an earlier fault explains a later one."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import asdict
from typing import Any

from wardround.client.decisions import limits_of
from wardround.client.kit.checks import data, machine, model, network
from wardround.client.kit.checks.findings import Finding, ok, run_check
from wardround.client.kit.checks.subject import Options, Subject
from wardround.client.kit.words.policy import policy_in_words
from wardround.client.site_file import SiteFile, signing_keys
from wardround.common.explain import nearest


def _policy(on: Subject) -> Finding:
    """Describe the limits that no plan can exceed."""
    limits = limits_of(on.site, signing_keys(on.site)[0])
    return ok(";\n".join(policy_in_words(limits)))


CHECKS: dict[str, Callable[[Subject], Finding]] = {
    "versions": machine.versions,
    "proxy": network.proxy,
    "address": network.address,
    "tcp": network.tcp,
    "tls": network.tls,
    "certificate": network.certificate,
    "clock": network.clock,
    "key": machine.key,
    "registered": network.registered,
    "disk": machine.disk,
    "memory": machine.memory,
    "device": machine.device,
    "model": model.model,
    "policy": _policy,
    "data": data.data,
    "columns": data.columns,
    "labels": data.labels,
    "mapping": data.mapping,
    "empty": data.empty,
    "lengths": data.lengths,
    "batch": data.batch,
}
DATA_CHECKS = ("data", "columns", "labels", "mapping", "empty", "lengths", "batch")
"""Checks of texts and labels; they open no connection."""


def finding_of(name: str, subject: Subject) -> Finding:
    """Run one check of the table."""
    return run_check(name, lambda: CHECKS[name](subject))


def run_checks(
    site: SiteFile, options: Options, skip: Collection[str] = ()
) -> list[Finding]:
    """Run all checks except those in `skip`, in the order of the table.

    The server receives a TLS greeting, and the public key with a signed time stamp.
    With `options.model`, the hub is asked for the size of that model.

    Raises:
        ValueError: `skip` holds a name that is not in the table.
    """
    for name in skip:
        if name not in CHECKS:
            raise ValueError(
                f"--skip-check is '{name}', and there is no such check."
                f"{nearest(name, list(CHECKS))} There are: {', '.join(CHECKS)}."
            )
    subject = Subject(site, options)
    return [finding_of(name, subject) for name in CHECKS if name not in skip]


def is_ready(findings: Collection[Finding]) -> bool:
    """Return if the site can take part: no finding is a problem."""
    return all(finding.state != "problem" for finding in findings)


def findings_as_json(site: SiteFile, findings: Collection[Finding]) -> dict[str, Any]:
    """Return the content of `check --json`."""
    return {
        "site": site.name,
        "ready": is_ready(findings),
        "checks": [asdict(finding) for finding in findings],
    }
