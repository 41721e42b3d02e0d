"""Certificates, keys, a site and a TLS server on loopback, for tests of a site."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from wardround.client.kit.checks.findings import Finding
from wardround.client.kit.checks.subject import Options, Subject
from wardround.client.kit.checks.table import finding_of
from wardround.client.policy.limits import Policy
from wardround.client.site_file import SiteFile
from wardround.common.credentials import new_key, public_line, write_key_pair
from wardround.common.errors import ModelNotLoaded
from wardround.common.model_files import read_model_files
from wardround.server.deployment.certificates import (
    Pair,
    issue_server_certificate,
    make_authority,
)

WIDE = Policy(
    approve="within_policy",
    max_answers=1_000_000,
    min_batch_size=1,
    min_max_length=3,
    counts=True,
    min_count=1,
    min_sites=1,
    min_examples=1,
    max_learning_rate=10.0,
    max_learning_rate_adamw=10.0,
    max_influence=1e9,
    min_speaking_texts=0.0,
    min_token_ratio=0.0,
    frozen="none",
    control_variates=True,
    models="any",
    max_step_ratio=1e6,
    max_total_answers=1_000_000,
    min_changed_texts=1,
)
"""Limits that allow the tiny runs of the tests."""


def make_certificates(
    folder: Path,
    names: tuple[str, ...] = ("localhost", "127.0.0.1"),
    *,
    started_days_ago: int = 0,
    days: int = 90,
) -> Pair:
    """Make an authority `ca.crt` in `folder`. Return a server certificate from it."""
    folder.mkdir(parents=True, exist_ok=True)
    authority, server = (
        Pair(folder / f"{name}.crt", folder / f"{name}.key")
        for name in ("ca", "server")
    )
    make_authority(authority, now=datetime.now(UTC) - timedelta(days=400))
    start = datetime.now(UTC) - timedelta(days=started_days_ago)
    issue_server_certificate(authority, server, names, days=days, now=start)
    return server


def pinned(policy: Policy, model: Path | None) -> Policy:
    """List a model by its hash if a policy approves by itself and allows any model."""
    if model is None or policy.approve == "by_hand" or policy.models != "any":
        return policy
    try:
        digest = read_model_files(model).digest()
    except ModelNotLoaded:
        digest = "0" * 64
    return replace(policy, models=(f"files:{digest}",))


def make_site(folder: Path, port: int, data: Path, **facts: Any) -> SiteFile:
    """Make a site with its own key pair, whose server is on this machine."""
    folder.mkdir(parents=True, exist_ok=True)
    private, public = folder / "site.key", folder / "site.pub"
    signing, coordinator = folder / "signing.key", folder / "coordinator.pub"
    if not private.exists():
        write_key_pair(new_key("node"), private, public, "st_marys")
        write_key_pair(new_key("signing"), signing, folder / "signing.pub", "st_marys")
    if not coordinator.exists():
        coordinator.write_text(
            public_line(new_key("signing")) + " coordinator\n", encoding="ascii"
        )
    values: dict[str, Any] = {
        "name": "st_marys",
        "server_address": f"localhost:{port}",
        "ca": folder / "ca.crt",
        "private_key": private,
        "public_key": public,
        "data_path": data,
        "text_columns": ("text",),
        "label_column": "label",
        "device": "cpu",
        "signing_key": signing,
        "coordinator_key": coordinator,
        "state": folder / "state",
        "policy": WIDE,
    }
    values |= facts
    values["policy"] = pinned(values["policy"], values.get("model"))
    return SiteFile(**values)


@contextmanager
def tls_server(pair: Pair, protocols: tuple[str, ...] = ("h2",)) -> Iterator[int]:
    """Run a server that does a TLS handshake and then hangs up. Yield its port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    if protocols:
        context.set_alpn_protocols(list(protocols))

    def shake(connection: socket.socket) -> None:
        connection.settimeout(5)
        context.wrap_socket(connection, server_side=True).close()

    with raw_server(shake) as port:
        yield port


@contextmanager
def raw_server(serve: Any) -> Iterator[int]:
    """Run a server on loopback that passes every connection to `serve`. Yield its port."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.1)
    over = threading.Event()

    def loop() -> None:
        while not over.is_set():
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            with connection:
                try:
                    serve(connection)
                except OSError:
                    continue

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        over.set()
        thread.join()
        listener.close()


def free_port() -> int:
    """Return a port on which no program listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def look(site: SiteFile, *names: str, **options: Any) -> dict[str, Finding]:
    """Return the findings of these checks, by name."""
    subject = Subject(site, Options(**({"timeout_seconds": 2.0} | options)))
    findings = {name: finding_of(name, subject) for name in names}
    # Every problem has a next step.
    for finding in findings.values():
        assert finding.next_step or finding.state != "problem", findings
    return findings


def states(findings: dict[str, Finding]) -> dict[str, str]:
    """Return the states of findings, by name."""
    return {name: finding.state for name, finding in findings.items()}
