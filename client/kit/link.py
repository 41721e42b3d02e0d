"""The way from this site to the server, one step at a time: address, connection, TLS, one signed question.

Nothing about the data is known here. Every step is taken once, waits for `timeout_seconds` at most, and
remembers how it ended.
"""

from __future__ import annotations

import os
import socket
import ssl
from dataclasses import dataclass
from functools import cached_property
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

    from client.kit.site_file import SiteFile

# In the order in which gRPC looks at them; it knows small letters only.
_PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
_EXCEPTION_VARIABLES = ("no_grpc_proxy", "no_proxy")


@dataclass(frozen=True)
class Answer:
    """What the server says to a question signed with the site's key."""

    kind: Literal["registered", "unregistered", "wrong_time", "version", "unreachable", "other"]
    detail: str = ""

    @property
    def accepts_the_time(self) -> bool:
        """Whether the server looked at a time stamp of this machine and found it right."""
        return self.kind in ("registered", "unregistered")


@dataclass(frozen=True)
class Proxy:
    """A proxy that gRPC would send the connection through."""

    variable: str
    url: str

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        parts = urlsplit(self.url if "//" in self.url else f"//{self.url}")
        return parts.hostname or "", parts.port or 80


@dataclass(frozen=True)
class Handshake:
    """How TLS ended."""

    error: ssl.SSLError | OSError | None
    """None where the server proved its name with a certificate of the site's authority."""
    protocol: str | None = None
    """What both sides agreed to speak; gRPC needs `h2`."""
    certificate: Certificate | None = None
    """What the server showed, whether it is trusted or not."""


class Link:
    """One site's way to its server."""

    def __init__(self, site: SiteFile, timeout_seconds: float) -> None:
        self.site, self.timeout_seconds = site, timeout_seconds
        self.host, self.port = site.host_and_port

    @cached_property
    def proxy(self) -> Proxy | None:
        """The proxy that the environment puts between this site and the server."""
        found = ((name, os.environ.get(name)) for name in _PROXY_VARIABLES)
        variable, url = next(((name, url) for name, url in found if url), (None, None))
        if variable is None or url is None:
            return None
        exceptions = next((value for name in _EXCEPTION_VARIABLES if (value := os.environ.get(name))), "")
        return None if is_excepted(self.host, exceptions) else Proxy(variable, url)

    @cached_property
    def addresses(self) -> list[str] | OSError:
        """What the server's name stands for, or why that is not known."""
        try:
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            return error if isinstance(error, OSError) else OSError(str(error))
        return list(dict.fromkeys(str(entry[4][0]) for entry in found))

    @cached_property
    def reached(self) -> OSError | None:
        """Why no connection can be made, or None."""
        try:
            self._connect().close()
        except OSError as error:
            return error
        return None

    @cached_property
    def handshake(self) -> Handshake:
        """Try TLS as gRPC does it: this site's authority only, the server's name, HTTP/2."""
        try:
            context = ssl.create_default_context(cafile=str(self.site.ca))
            context.hostname_checks_common_name = False  # as in gRPC: alternative names only
            context.set_alpn_protocols(["h2"])
            with context.wrap_socket(self._connect(), server_hostname=self.host) as wrapped:
                shown = wrapped.getpeercert(binary_form=True)
                return Handshake(None, wrapped.selected_alpn_protocol(), _certificate(shown))
        except (ssl.SSLError, OSError) as error:
            return Handshake(error, None, self._shown())

    @cached_property
    def answer(self) -> Answer:
        """What the server says to this site's key. Raises ValueError where a site's file cannot be read."""
        from client.node.connection import Connection, Refused, Unreachable

        try:
            with Connection(self.site) as connection:
                connection.ask_if_registered(self.timeout_seconds)
        except Unreachable as error:
            return Answer("unreachable", str(error))
        except Refused as refused:
            kinds: dict[str, Literal["unregistered", "wrong_time", "version"]] = {
                "unknown_key": "unregistered",
                "wrong_time": "wrong_time",
                "version": "version",
            }
            return Answer(kinds.get(refused.why, "other"), refused.detail)
        return Answer("registered")

    def _shown(self) -> Certificate | None:
        """The certificate of a server that is not trusted, to tell a person about it."""
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            with context.wrap_socket(self._connect(), server_hostname=self.host) as wrapped:
                return _certificate(wrapped.getpeercert(binary_form=True))
        except (ssl.SSLError, OSError):
            return None

    def _connect(self) -> socket.socket:
        """A connection to the server, through the proxy where there is one. Raises OSError."""
        if self.proxy is None:
            return socket.create_connection((self.host, self.port), timeout=self.timeout_seconds)
        connection = socket.create_connection(self.proxy.address, timeout=self.timeout_seconds)
        try:
            _ask_proxy(connection, self.host, self.port)
        except OSError:
            connection.close()
            raise
        return connection


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
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    connection.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
    reply = b""
    while b"\r\n\r\n" not in reply and len(reply) < 65536:
        # One byte at a time would be safest; a server of TLS says nothing before its client does.
        received = connection.recv(4096)
        if not received:
            break
        reply += received
    status = reply.split(b"\r\n", 1)[0].decode("latin-1")
    if status.split(" ")[1:2] != ["200"]:
        raise OSError(f"the proxy did not open a tunnel: {status or 'no answer'}")


def _certificate(encoded: bytes | None) -> Certificate | None:
    from cryptography.x509 import load_der_x509_certificate

    return None if encoded is None else load_der_x509_certificate(encoded)


def read_authority(path: Path) -> Certificate:
    """The authority's certificate. Raises ValueError if the file does not hold one."""
    from cryptography.x509 import load_pem_x509_certificate

    step = "Get the file ca.crt from the coordinator and set server.ca to it."
    try:
        return load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise ValueError(f"server.ca: {path} cannot be read: {error.strerror}. {step}") from None
    except ValueError:
        raise ValueError(f"server.ca: {path} holds no certificate in PEM form. {step}") from None
