"""The way from this site to the server: address, connection, TLS, one signed question.

Each step runs once, for at most `timeout_seconds`, and keeps its outcome. No step reads the
site's data.
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

# In the order in which gRPC reads them; it knows small letters only.
_PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
_EXCEPTION_VARIABLES = ("no_grpc_proxy", "no_proxy")
_LONGEST_REPLY = 65536
_END_OF_HEADERS = b"\r\n\r\n"


class Proxy(NamedTuple):
    """The proxy that gRPC would use, and the variable that names it."""

    variable: str
    host: str
    port: int


class Handshake(NamedTuple):
    """The outcome of a TLS handshake."""

    error: OSError | None
    """None if the site's authority has signed the server's certificate."""
    protocol: str | None
    """The protocol that both sides agreed on; gRPC needs `h2`."""
    certificate: Certificate | None
    """The server's certificate, trusted or not."""


class Link:
    """One site's way to its server."""

    def __init__(self, site: SiteFile, timeout_seconds: float) -> None:
        self.site = site
        self.timeout_seconds = timeout_seconds
        self.host, self.port = site.host_and_port

    @cached_property
    def proxy(self) -> Proxy | None:
        """The proxy between this site and the server. Raises ValueError if it is wrong."""
        variable, url = _first_set(_PROXY_VARIABLES)
        _, exceptions = _first_set(_EXCEPTION_VARIABLES)
        if not url or is_excepted(self.host, exceptions):
            return None
        try:
            parts = urlsplit(url if "//" in url else f"//{url}")
            host = parts.hostname or ""
            return Proxy(variable, host, parts.port or 80)
        except ValueError:  # the value may hold a password, so it is not shown
            raise ValueError(
                f"{variable} is not a proxy's address. Correct it, or unset it."
            ) from None

    @cached_property
    def addresses(self) -> list[str] | OSError:
        """The IP addresses of the server's name, or the error of the name service."""
        try:
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except OSError as error:
            return error
        except UnicodeError as error:
            return OSError(str(error))
        addresses = [str(address[0]) for *_, address in found]
        return list(dict.fromkeys(addresses))

    @cached_property
    def unreached(self) -> OSError | None:
        """The error if the server cannot be connected to, else None."""
        try:
            self._connect().close()
        except OSError as error:
            return error
        return None

    @cached_property
    def handshake(self) -> Handshake:
        """TLS as gRPC does it: only this site's authority, the server's name, HTTP/2."""
        try:
            context = ssl.create_default_context(cafile=str(self.site.ca))
            # As in gRPC: alternative names only.
            context.hostname_checks_common_name = False
            return Handshake(None, *self._greet(context))
        except OSError as error:
            refused = error
        # Read the certificate of an untrusted server, to show it to a person.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        try:
            return Handshake(refused, *self._greet(context))
        except OSError:
            return Handshake(refused, None, None)

    @cached_property
    def refusal(self) -> Refused | Unreachable | None:
        """The error if the server does not know this site's key, or does not answer; else None.

        Raises:
            ValueError: as `Connection` does.
        """
        try:
            with Connection(self.site) as connection:
                connection.ask_if_registered(self.timeout_seconds)
        except (Refused, Unreachable) as error:
            return error
        return None

    def _greet(self, context: ssl.SSLContext) -> tuple[str | None, Certificate | None]:
        """Return the server's protocol and certificate. Raises OSError, also SSLError."""
        context.set_alpn_protocols(["h2"])
        connection = self._connect()
        with context.wrap_socket(connection, server_hostname=self.host) as wrapped:
            presented = wrapped.getpeercert(binary_form=True)
            protocol = wrapped.selected_alpn_protocol()
        if not presented:
            return protocol, None
        return protocol, certificate_of(presented)

    def _connect(self) -> socket.socket:
        """Connect to the server, through the proxy if there is one. Raises OSError."""
        address = (self.host, self.port)
        if self.proxy is not None:
            address = (self.proxy.host, self.proxy.port)
        connection = socket.create_connection(address, timeout=self.timeout_seconds)
        try:
            if self.proxy is not None:
                _open_tunnel(connection, host_and_port(self.host, self.port))
        except OSError:
            connection.close()
            raise
        return connection


def _first_set(variables: tuple[str, ...]) -> tuple[str, str]:
    """Return the first environment variable that is set; two empty texts if there is none."""
    for name in variables:
        value = os.environ.get(name)
        if value:
            return name, value
    return "", ""


def is_excepted(host: str, exceptions: str) -> bool:
    """Return True if `no_proxy` has this host, by the rules of gRPC.

    An entry is the last part of a host name, an address, or a network.
    """
    for part in exceptions.split(","):
        entry = part.strip()
        ending = entry.lower().removeprefix(".")
        if entry and host.lower().endswith(ending):
            return True
        try:
            if ip_address(host) in ip_network(entry, strict=False):
                return True
        except ValueError:
            continue
    return False


def _open_tunnel(connection: socket.socket, target: str) -> None:
    """Make an HTTP proxy open a tunnel. Raises OSError if it does not."""
    connection.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
    reply = b""
    # Nothing of the tunnel can be read too early: a TLS server waits for its client.
    while _END_OF_HEADERS not in reply and len(reply) < _LONGEST_REPLY:
        received = connection.recv(4096)
        if not received:
            break
        reply += received
    first_line, _, _ = reply.partition(b"\r\n")
    status = first_line.decode("latin-1")
    if status.split(" ")[1:2] != ["200"]:
        answer = quoted(status) if status else "no answer"
        raise OSError(f"the proxy did not open a tunnel: {answer}")
