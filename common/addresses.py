"""Network addresses as text."""

from __future__ import annotations


def host_and_port(host: str, port: int) -> str:
    """Return `host:port`; an IPv6 address stands in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
