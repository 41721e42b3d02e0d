"""Is this site ready to take part? A table of checks, in the order in which a fault explains the next one."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from client.kit import checks_data as data
from client.kit import checks_machine as machine
from client.kit import checks_network as network
from client.kit.findings import Finding, Options
from client.kit.link import Link
from client.kit.site_file import SiteFile
from client.kit.texts import SiteTexts
from common.errors import nearest


@dataclass(frozen=True)
class Subject:
    """What the checks look at; each part is looked at once."""

    site: SiteFile
    options: Options

    @cached_property
    def link(self) -> Link:
        """The way to the server."""
        return Link(self.site, self.options.timeout_seconds)

    @cached_property
    def texts(self) -> SiteTexts:
        """The site's file."""
        return SiteTexts(self.site, self.options)


CHECKS: dict[str, Callable[[Subject], Finding]] = {
    "versions": lambda on: machine.check_versions(on.options.expect),
    "proxy": lambda on: network.check_proxy(on.link),
    "address": lambda on: network.check_address(on.link),
    "tcp": lambda on: network.check_tcp(on.link),
    "tls": lambda on: network.check_tls(on.link),
    "certificate": lambda on: network.check_certificate(on.link),
    "clock": lambda on: network.check_clock(on.link),
    "key": lambda on: machine.check_key(on.site),
    "registered": lambda on: network.check_registered(on.link),
    "disk": lambda on: machine.check_disk(on.site),
    "memory": lambda on: machine.check_memory(on.site),
    "device": lambda on: machine.check_device(on.site),
    "model": lambda on: machine.check_model(on.site, on.options.model, on.options.timeout_seconds),
    "data": lambda on: data.check_data(on.texts),
    "columns": lambda on: data.check_columns(on.texts),
    "labels": lambda on: data.check_labels(on.texts),
    "mapping": lambda on: data.check_mapping(on.texts),
    "empty": lambda on: data.check_empty(on.texts),
    "lengths": lambda on: data.check_lengths(on.texts),
    "batch": lambda on: data.check_batch(on.texts),
}
DATA_CHECKS = ("data", "columns", "labels", "mapping", "empty", "lengths", "batch")
"""Those that look at texts and labels; none of them opens a connection."""


def run_checks(site: SiteFile, options: Options, skip: Collection[str] = ()) -> list[Finding]:
    """All findings but those of the checks in `skip`, in the order of the table.

    Sends to the server, and only there: a TLS greeting, and the public key with a signed time stamp. With
    `options.model`, the hub is asked for that model's size.

    Raises:
        ValueError: `skip` names a check that does not exist.
    """
    for name in skip:
        if name not in CHECKS:
            raise ValueError(
                f"--skip-check is '{name}', which is no check.{nearest(name, list(CHECKS))} "
                f"There are: {', '.join(CHECKS)}."
            )
    subject = Subject(site, options)
    return [check(subject) for name, check in CHECKS.items() if name not in skip]


def is_ready(findings: Collection[Finding]) -> bool:
    """Whether nothing stands in the way of taking part."""
    return all(finding.state != "problem" for finding in findings)


def as_json(site: SiteFile, findings: Collection[Finding]) -> dict[str, Any]:
    """What `check --json` prints."""
    return {
        "site": site.name,
        "ready": is_ready(findings),
        "checks": [asdict(finding) for finding in findings],
    }
