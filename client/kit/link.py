"""The way from this site to the server, one step at a time: address, connection, TLS, one signed question.

Nothing about the data is known here. Every step is taken once, waits for `timeout_seconds` at most, and
remembers how it ended.
"""

from __future__ import annotations

import os
import socket
import ssl
from functools import cached_property
from ipaddress import ip_address, ip_network
from typing import NamedTuple
from urllib.parse import urlsplit

from wardround.client.node.connection import Connection
from wardround.client.site_file import SiteFile
from wardround.common.addresses import host_and_port
from wardround.common.credentials import Certificate, certificate_of
from wardround.common.errors import Refused, Unreachable
from wardround.common.words import quoted

# In the order in which gRPC looks at them; it knows small letters only.
_PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
_EXCEPTION_VARIABLES = ("no_grpc_proxy", "no_proxy")


class Proxy(NamedTuple):
    """A proxy that gRPC would send the connection through, and the variable that names it."""

    variable: str
    host: str
    port: int


class Handshake(NamedTuple):
    """How TLS ended."""

    error: OSError | None
    """None where the server proved its name with a certificate of the site's authority."""
    protocol: str | None
    """What both sides agreed to speak; gRPC needs `h2`."""
    certificate: Certificate | None
    """What the server showed, whether it is trusted or not."""


class Link:
    """One site's way to its server."""

    def __init__(self, site: SiteFile, timeout_seconds: float) -> None:
        self.site, self.timeout_seconds = site, timeout_seconds
        self.host, self.port = site.host_and_port

    @cached_property
    def proxy(self) -> Proxy | None:
        """The proxy that the environment puts between this site and the server. Raises ValueError."""
        variable, url = _first_set(_PROXY_VARIABLES)
        if not url or is_excepted(self.host, _first_set(_EXCEPTION_VARIABLES)[1]):
            return None
        try:
            parts = urlsplit(url if "//" in url else f"//{url}")
            return Proxy(variable, parts.hostname or "", parts.port or 80)
        except ValueError:  # the value may hold a password, and is not shown
            raise ValueError(
                f"{variable} is no address of a proxy. Correct it, or unset it."
            ) from None

    @cached_property
    def addresses(self) -> list[str] | OSError:
        """What the server's name stands for, or why that is not known."""
        try:
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            return error if isinstance(error, OSError) else OSError(str(error))
        return list(dict.fromkeys(str(entry[4][0]) for entry in found))

    @cached_property
    def unreached(self) -> OSError | None:
        """Why no connection can be made, or None."""
        try:
            self._connect().close()
        except OSError as error:
            return error
        return None

    @cached_property
    def handshake(self) -> Handshake:
        """TLS as gRPC does it: this site's authority only, the server's name, HTTP/2."""
        try:
            context = ssl.create_default_context(cafile=str(self.site.ca))
            context.hostname_checks_common_name = (
                False  # as in gRPC: alternative names only
            )
            return Handshake(None, *self._greet(context))
        except OSError as error:
            refused = error
        # The certificate of a server that is not trusted, to tell a person about it.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        try:
            return Handshake(refused, *self._greet(context))
        except OSError:
            return Handshake(refused, None, None)

    @cached_property
    def refusal(self) -> Refused | Unreachable | None:
        """Why the server does not take this site's key, or None. Raises ValueError as `Connection` does."""
        try:
            with Connection(self.site) as connection:
                connection.ask_if_registered(self.timeout_seconds)
        except (Refused, Unreachable) as error:
            return error
        return None

    def _greet(self, context: ssl.SSLContext) -> tuple[str | None, Certificate | None]:
        """Protocol and certificate of the server. Raises OSError, of which SSLError is one."""
        context.set_alpn_protocols(["h2"])
        with context.wrap_socket(self._connect(), server_hostname=self.host) as wrapped:
            shown = wrapped.getpeercert(binary_form=True)
            return wrapped.selected_alpn_protocol(), certificate_of(
                shown
            ) if shown else None

    def _connect(self) -> socket.socket:
        """A connection to the server, through the proxy where there is one. Raises OSError."""
        address = (
            (self.host, self.port)
            if self.proxy is None
            else (self.proxy.host, self.proxy.port)
        )
        connection = socket.create_connection(address, timeout=self.timeout_seconds)
        try:
            if self.proxy is not None:
                _ask_proxy(connection, self.host, self.port)
        except OSError:
            connection.close()
            raise
        return connection


def _first_set(variables: tuple[str, ...]) -> tuple[str, str]:
    """Name and value of the first environment variable that is set; empty where none is."""
    return next(
        ((name, value) for name in variables if (value := os.environ.get(name))),
        ("", ""),
    )


def is_excepted(host: str, exceptions: str) -> bool:
    """Whether `no_proxy` names this host, by the rules of gRPC: ends of names, addresses and networks."""
    for entry in (part.strip() for part in exceptions.split(",")):
        if entry and host.lower().endswith(entry.lower().removeprefix(".")):
            return True
        try:
            if ip_address(host) in ip_network(entry, strict=False):
                return True
        except ValueError:
            continue
    return False


def _ask_proxy(connection: socket.socket, host: str, port: int) -> None:
    """Have an HTTP proxy open a tunnel. Raises OSError if it does not."""
    target = host_and_port(host, port)
    connection.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
    reply = b""
    # One byte at a time would be safest; a server of TLS says nothing before its client does.
    while (
        b"\r\n\r\n" not in reply
        and len(reply) < 65536
        and (received := connection.recv(4096))
    ):
        reply += received
    status = reply.split(b"\r\n", 1)[0].decode("latin-1")
    if status.split(" ")[1:2] != ["200"]:
        raise OSError(
            f"the proxy did not open a tunnel: {quoted(status) if status else 'no answer'}"
        )
