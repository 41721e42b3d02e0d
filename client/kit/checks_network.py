"""Checks of the way to the server: proxy, address, connection, TLS, certificate, clock, registered key."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from client.kit.findings import Finding, from_error
from client.kit.link import Link, read_authority

if TYPE_CHECKING:
    from cryptography.x509 import Certificate, Name

_SOON_DAYS = 30
# What OpenSSL calls the reasons for which a certificate is not taken.
_NOT_YET, _EXPIRED, _OTHER_NAME, _OTHER_ADDRESS = 9, 10, 62, 64
_EARLIER = "See the finding above first."
# How far this machine's clock may be off before Flower's server refuses what it signs.
_AHEAD_SECONDS, _BEHIND_SECONDS = 5, 305


def check_proxy(link: Link) -> Finding:
    """Proxy variables that would catch the server's address."""
    if link.proxy is None:
        return Finding("proxy", "ok", f"no proxy stands between this site and {link.host}")
    host, port = link.proxy.address
    return Finding(
        "proxy",
        "warning",
        f"{link.proxy.variable} sends the connection to {link.host} through {host}:{port}",
        f"If the proxy may not tunnel to port {link.port}: export no_proxy={link.host} (small letters).",
    )


def check_address(link: Link) -> Finding:
    """The server's name resolves."""
    found = link.addresses
    if not isinstance(found, OSError):
        return Finding("address", "ok", f"{link.host} is {', '.join(found)}")
    if link.proxy is not None:
        return Finding("address", "warning", f"{link.host} is not known here; the proxy has to know it")
    return Finding(
        "address",
        "problem",
        f"{link.host} is not known to this machine's name servers ({found.strerror or found})",
        "Check server.address for a slip; else ask your network team for the name, or use the IP address.",
    )


def check_tcp(link: Link) -> Finding:
    """A connection to the fleet port can be made."""
    error = link.reached
    if error is None:
        return Finding("tcp", "ok", f"port {link.port} of {link.host} takes connections")
    if isinstance(link.addresses, OSError) and link.proxy is None:
        return _skipped("tcp", "the address is not known")
    if isinstance(error, TimeoutError):
        reason = f"no answer within {link.timeout_seconds:g} s: a firewall drops the connection"
        step = f"Ask your network team to let this machine out to {link.host}, TCP port {link.port}."
    elif isinstance(error, ConnectionRefusedError):
        reason = "refused: nothing listens there, or a firewall says no"
        step = "Ask the coordinator whether the server is up (wardround server up), and for host and port."
    else:
        reason = error.strerror or str(error)
        step = f"Check the network of this machine; it must reach {link.host}, TCP port {link.port}."
    return Finding("tcp", "problem", f"{link.host}:{link.port} cannot be reached ({reason})", step)


def check_tls(link: Link) -> Finding:
    """The server proves its name with a certificate of the site's own authority, and speaks HTTP/2."""
    try:
        authority = read_authority(link.site.ca)
    except ValueError as error:
        return from_error("tls", error)
    if link.reached is not None:
        return _skipped("tls", "the server cannot be reached")
    done = link.handshake
    if done.error is not None:
        return _refused(link, done.error, done.certificate, authority)
    if done.protocol != "h2":
        return Finding(
            "tls",
            "problem",
            "the server is trusted but does not speak HTTP/2, which gRPC needs",
            f"Ask the coordinator whether {link.port} is the fleet port and no web proxy stands before it.",
        )
    return Finding("tls", "ok", f"{link.host} proved its name to the authority of {link.site.ca.name}")


def _refused(link: Link, error: OSError, shown: Certificate | None, authority: Certificate) -> Finding:
    code = getattr(error, "verify_code", None)
    if code in (_NOT_YET, _EXPIRED):
        what = "the server's certificate, or the authority's, is outside its dates"
        return Finding("tls", "problem", what, "See the finding `certificate`.")
    if code in (_OTHER_NAME, _OTHER_ADDRESS):
        names = ", ".join(_names(shown)) if shown else "other names"
        return Finding(
            "tls",
            "problem",
            f"the server's certificate is good for {names}, not for {link.host}",
            f"Set server.address to one of them, or ask the coordinator for a certificate with {link.host}.",
        )
    if isinstance(error, ssl.SSLCertVerificationError):
        issuer = f"'{_called(shown.issuer)}'" if shown else "somebody else"
        return Finding(
            "tls",
            "problem",
            f"the server's certificate is signed by {issuer}, not by '{_called(authority.subject)}' of "
            f"{link.site.ca.name} ({error.verify_message})",
            "Ask the coordinator for the current ca.crt and compare fingerprints by telephone. If the signer "
            "is your own firewall, it opens TLS: have this server exempted.",
        )
    return Finding(
        "tls",
        "problem",
        f"no TLS could be agreed on ({getattr(error, 'reason', None) or error})",
        "The port answers, but not as a server of this kind: check server.address with the coordinator.",
    )


def check_certificate(link: Link) -> Finding:
    """The server's certificate and the authority's are within their dates."""
    try:
        held = [("the authority's certificate", read_authority(link.site.ca))]
    except ValueError:
        return _skipped("certificate", "server.ca cannot be read")
    shown = link.handshake.certificate if link.reached is None else None
    if shown is not None:
        held.insert(0, ("the server's certificate", shown))
    now = datetime.now(UTC)
    for name, certificate in held:
        start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        renew = "Ask the coordinator to run: wardround server renew. For a new authority, install its ca.crt."
        if end < now:
            text = f"{name} expired on {end:%Y-%m-%d %H:%M} UTC; this machine has {now:%Y-%m-%d %H:%M}"
            return Finding("certificate", "problem", text, renew)
        if now < start:
            text = (
                f"{name} is valid from {start:%Y-%m-%d %H:%M} UTC on; this machine has {now:%Y-%m-%d %H:%M}"
            )
            return Finding("certificate", "problem", text, "Correct this machine's clock (NTP).")
    name, certificate = min(held, key=lambda pair: pair[1].not_valid_after_utc)
    left = (certificate.not_valid_after_utc - now).days
    said = f"valid for {left} more days ({name} ends first, {certificate.not_valid_after_utc:%Y-%m-%d})"
    if shown is None:
        return Finding("certificate", "warning", f"only ca.crt was seen: {said}", _EARLIER)
    if left < _SOON_DAYS:
        return Finding("certificate", "warning", said, "Ask the coordinator to renew it before that day.")
    return Finding("certificate", "ok", said)


def check_clock(link: Link) -> Finding:
    """This machine's time, against the certificates' dates and, where the server answers, its clock."""
    now = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
    dates = check_certificate(link)
    if dates.state == "problem":
        return Finding("clock", "warning", f"{now} is outside the certificates' dates", dates.next_step)
    if not _can_ask(link):
        return Finding("clock", "warning", f"{now}; compared with certificates' dates only", _EARLIER)
    if link.answer.kind == "wrong_time":
        return Finding(
            "clock",
            "problem",
            f"the server refuses this machine's time, {now}: more than {_AHEAD_SECONDS} s ahead of its clock "
            f"or {_BEHIND_SECONDS} s behind",
            "Switch on time synchronisation (timedatectl set-ntp true); if it is on, ask the coordinator.",
        )
    if link.answer.accepts_the_time:
        rule = f"at most {_AHEAD_SECONDS} s ahead and {_BEHIND_SECONDS} s behind"
        return Finding("clock", "ok", f"{now}; the server took a time stamp signed now ({rule})")
    return Finding("clock", "warning", f"{now}; compared with certificates' dates only", _EARLIER)


def check_registered(link: Link) -> Finding:
    """The server knows this site's public key. Nothing is activated by asking."""
    if not _can_ask(link):
        return _skipped("registered", "the server cannot be asked yet")
    answer = link.answer
    if answer.kind == "registered":
        return Finding("registered", "ok", "the server knows this site's key")
    if answer.kind == "unregistered":
        command = f"wardround server register {link.site.name} registration.json"
        return Finding(
            "registered",
            "problem",
            "the server does not know this site's key",
            f"Send registration.json to the coordinator, who runs: {command}",
        )
    if answer.kind == "wrong_time":
        return _skipped("registered", "the clocks differ too much")
    if answer.kind == "version":
        return Finding("registered", "problem", answer.detail, "Install the version the coordinator names.")
    step = "Ask the coordinator whether this address is the fleet port of a wardround server."
    return Finding("registered", "problem", f"the server gave another answer ({answer.detail})", step)


def _can_ask(link: Link) -> bool:
    """Whether the way is free and the key can be used; what is wrong with them, their own checks tell."""
    if link.reached is not None or not link.site.ca.is_file() or link.handshake.error is not None:
        return False
    try:
        return link.answer.kind != "unreachable"
    except ValueError:
        return False


def _skipped(check: str, reason: str) -> Finding:
    return Finding(check, "warning", f"not checked: {reason}", _EARLIER)


def _names(certificate: Certificate) -> list[str]:
    from cryptography.x509 import ExtensionNotFound, SubjectAlternativeName

    try:
        found = certificate.extensions.get_extension_for_class(SubjectAlternativeName).value
    except ExtensionNotFound:
        return ["no name at all"]
    return [str(name.value) for name in found]


def _called(name: Name) -> str:
    from cryptography.x509.oid import NameOID

    attributes = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(attributes[0].value) if attributes else name.rfc4514_string()
