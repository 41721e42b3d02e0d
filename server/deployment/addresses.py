"""The addresses of a server: where it listens, and under which names sites reach it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Annotated

from pydantic import ConfigDict, Field

from wardround.common.addresses import host_and_port
from wardround.server.deployment.certificates import general_name

_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""The host that local programs dial if the server listens on every interface."""
Port = Annotated[int, Field(ge=1, le=65535)]


@dataclass(frozen=True)
class Addresses:
    """The content of `server.yaml`."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    names: Annotated[tuple[str, ...], Field(min_length=1)]
    """DNS names and IP addresses under which the sites reach the server."""
    fleet_host: str = "0.0.0.0"
    fleet_port: Port = 9092
    """The one port that sites need."""
    control_host: str = "127.0.0.1"
    """Anyone who reaches it can run code on this machine: keep it off the sites' network."""
    control_port: Port = 8000

    def __post_init__(self) -> None:
        for name in self.names:
            general_name(name)

    @property
    def fleet(self) -> str:
        """`host:port` that the server binds for the sites."""
        return host_and_port(self.fleet_host, self.fleet_port)

    @property
    def is_loopback(self) -> bool:
        """True if only programs on this machine can reach the sites' port."""
        try:
            address = ip_address(self.fleet_host)
        except ValueError:
            return self.fleet_host == "localhost"
        return address.is_loopback

    def listening(self, fleet_host: str | None, *, insecure: bool) -> Addresses:
        """Return these addresses with another host for the sites' port.

        Args:
            fleet_host: the host. None keeps that of `server.yaml`; without TLS it means this
                machine only.
        """
        if fleet_host is not None:
            return replace(self, fleet_host=fleet_host)
        if not insecure:
            return self
        own_host = "127.0.0.1"
        is_ipv6 = ":" in self.fleet_host
        if is_ipv6:
            own_host = "::1"
        return replace(self, fleet_host=own_host)

    @property
    def control(self) -> str:
        """`host:port` for commands on this machine."""
        return host_and_port(self.control_name, self.control_port)

    @property
    def control_name(self) -> str:
        """The host under which commands on this machine reach the control port."""
        return _LOOPBACK.get(self.control_host, self.control_host)

    @property
    def certified(self) -> tuple[str, ...]:
        """Every name in the server certificate: those for the sites and those of this machine."""
        local = ("localhost", "127.0.0.1", self.control_name)
        names = (*self.names, *local)
        return tuple(dict.fromkeys(names))
