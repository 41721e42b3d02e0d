"""Checks of the way to the server: proxy, address, port, TLS, clock, registration."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime

from wardround.client.kit.checks.findings import (
    SEE_ABOVE,
    Finding,
    NotChecked,
    listed,
    ok,
    problem,
    run_check,
    warning,
)
from wardround.client.kit.checks.subject import Subject
from wardround.client.kit.link import Link
from wardround.client.site_file import SiteFile, read_authority
from wardround.common.credentials import Certificate
from wardround.common.errors import Refused, Unreachable
from wardround.common.wire.invitation import registration_file
from wardround.common.words import LONGEST_TEXT, quoted

_SOON_DAYS = 30
# OpenSSL's numbers for the reasons to refuse a certificate.
_NOT_YET_VALID = 9
_EXPIRED = 10
_OTHER_NAME = 62
_OTHER_ADDRESS = 64
# Flower's server refuses a time stamp outside of these bounds.
_CLOCK_RULE = "at most 5 s ahead and 305 s behind"
_MINUTE = "%Y-%m-%d %H:%M"


def proxy(on: Subject) -> Finding:
    """Check if a proxy variable applies to the server's address."""
    link = on.link
    if link.proxy is None:
        return ok(f"no proxy is set for {link.host}")
    variable, host, port = link.proxy
    return warning(
        f"{variable} sends the connection to {link.host} through {host}:{port}",
        f"If the proxy may not open a tunnel to port {link.port}: "
        f"export no_proxy={link.host} (small letters).",
    )


def address(on: Subject) -> Finding:
    """Check that the server's name has an address."""
    found = on.link.addresses
    host = on.link.host
    if not isinstance(found, OSError):
        return ok(f"{host} is {', '.join(found)}")
    if on.link.proxy is not None:
        return warning(f"{host} is not known here; the proxy must know it")
    return problem(
        f"{host} is unknown to this machine's name servers ({found.strerror or found})",
        "Check server.address for a slip. If it is right, ask your network team for the "
        "name, or use the IP address.",
    )


def tcp(on: Subject) -> Finding:
    """Check that the server's port can be reached."""
    link = on.link
    error = link.unreached
    if error is None:
        return ok(f"port {link.port} of {link.host} accepts connections")
    if isinstance(link.addresses, OSError) and link.proxy is None:
        raise NotChecked("the address is not known", SEE_ABOVE)
    if isinstance(error, TimeoutError):
        reason = (
            f"no answer within {link.timeout_seconds:g} s: a firewall drops the "
            "connection"
        )
        step = (
            "Ask your network team to let this machine connect to "
            f"{link.host}, TCP port {link.port}."
        )
    elif isinstance(error, ConnectionRefusedError):
        reason = "refused: no server listens there, or a firewall refuses"
        step = (
            "Ask the coordinator if the server is up (wardround server up), and for "
            "host and port."
        )
    else:
        reason = error.strerror or str(error)
        step = (
            f"Check this machine's network; it must reach {link.host}, "
            f"TCP port {link.port}."
        )
    return problem(f"{link.host}:{link.port} cannot be reached ({reason})", step)


def tls(on: Subject) -> Finding:
    """Check that the site's authority signed the server's certificate, and HTTP/2."""
    link = on.link
    authority = read_authority(on.site)
    if link.unreached is not None:
        raise NotChecked("the server cannot be reached", SEE_ABOVE)
    error = link.handshake.error
    if error is not None:
        return _tls_problem(on.site, link, error, authority)
    if link.handshake.protocol == "h2":
        return ok(
            f"the certificate of {link.host} is valid, signed by {on.site.ca.name}"
        )
    return problem(
        "the server is trusted but does not speak HTTP/2, which gRPC needs",
        f"Ask the coordinator if {link.port} is the fleet port and if a web proxy is in "
        "front of it.",
    )


def _tls_problem(
    site: SiteFile, link: Link, error: OSError, authority: Certificate
) -> Finding:
    code = getattr(error, "verify_code", None)
    presented = link.handshake.certificate
    if code in (_NOT_YET_VALID, _EXPIRED):
        return problem(
            "the server's certificate, or the authority's, is outside its dates",
            "See the finding `certificate`.",
        )
    if code in (_OTHER_NAME, _OTHER_ADDRESS):
        names = "other names"
        if presented is not None:
            names = listed(presented.names) or "no name at all"
        return problem(
            f"the server's certificate is valid for {names}, not for {link.host}",
            "Set server.address to one of them, or ask the coordinator for a certificate "
            f"with {link.host}.",
        )
    if isinstance(error, ssl.SSLCertVerificationError):
        issuer = "another authority"
        if presented is not None:
            issuer = quoted(presented.issuer)
        return problem(
            f"the server's certificate is signed by {issuer}, not by "
            f"{quoted(authority.subject)} of {site.ca.name} ({error.verify_message})",
            "Ask the coordinator for the current ca.crt and compare fingerprints by "
            "telephone. If the signer is your own firewall, it opens TLS connections: "
            "ask your network team to exempt this server.",
        )
    return problem(
        f"TLS failed ({getattr(error, 'reason', None) or error})",
        "The port answers, but not as a wardround server: check server.address with the "
        "coordinator.",
    )


def certificate(on: Subject) -> Finding:
    """Check the dates of the server's certificate and of the authority's."""
    try:
        authority = read_authority(on.site)
    except ValueError:
        raise NotChecked("server.ca cannot be read", SEE_ABOVE) from None
    held = {}
    presented = None
    if on.link.unreached is None:
        presented = on.link.handshake.certificate
    if presented is not None:
        held["the server's certificate"] = presented
    held["the authority's certificate"] = authority
    now = datetime.now(UTC)
    for name, found in held.items():
        wrong = _date_problem(name, found, now)
        if wrong is not None:
            return wrong
    name, first = min(held.items(), key=lambda item: item[1].not_after)
    days = first.days_left(now)
    message = (
        f"valid for {days} more days ({name} ends first, {first.not_after:%Y-%m-%d})"
    )
    if presented is None:
        return warning(f"{message}; the server's own was not seen", SEE_ABOVE)
    if days < _SOON_DAYS:
        return warning(message, "Ask the coordinator to renew it before that day.")
    return ok(message)


def _date_problem(name: str, found: Certificate, now: datetime) -> Finding | None:
    here = f"this machine's time is {now:{_MINUTE}}"
    if found.not_after < now:
        return problem(
            f"{name} expired on {found.not_after:{_MINUTE}} UTC; {here}",
            "Ask the coordinator to run: wardround server renew. If the authority is "
            "new, install its ca.crt.",
        )
    if now < found.not_before:
        return problem(
            f"{name} is valid from {found.not_before:{_MINUTE}} UTC; {here}",
            "Correct this machine's clock (NTP).",
        )
    return None


def clock(on: Subject) -> Finding:
    """Compare this machine's time with the certificates' dates and the server's clock."""
    now = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
    dates = run_check("certificate", lambda: certificate(on))
    if dates.state == "problem":
        return warning(f"{now} is outside the certificates' dates", dates.next_step)
    answer = _answer(on.link)
    if answer == "wrong_time":
        return problem(
            f"the server refuses this machine's time, {now} (allowed: {_CLOCK_RULE})",
            "Switch on time synchronisation (timedatectl set-ntp true). If it is on, ask "
            "the coordinator.",
        )
    if answer in ("registered", "unknown_key"):
        return ok(f"the server accepts this machine's time, {now} ({_CLOCK_RULE})")
    return warning(f"{now}; compared with the certificates' dates only", SEE_ABOVE)


def registered(on: Subject) -> Finding:
    """Check that the server knows this site's public key. Asking activates nothing."""
    answer = _answer(on.link)
    if answer is None:
        raise NotChecked("the server cannot be asked yet", SEE_ABOVE)
    detail = quoted(getattr(on.link.refusal, "detail", ""), LONGEST_TEXT)
    registration = registration_file(on.site.name)
    match answer:
        case "registered":
            return ok("the server knows this site's key")
        case "unknown_key":
            return problem(
                "the server does not know this site's key",
                f"Send {registration} to the coordinator, who runs: wardround server "
                f"register {on.site.name} {registration}",
            )
        case "wrong_time":
            raise NotChecked("the clocks differ too much", SEE_ABOVE)
        case "version":
            return problem(
                f"the server refuses this version: {detail}",
                "Install the version the coordinator names.",
            )
    return problem(
        f"the server gave an unexpected answer: {detail}",
        "Ask the coordinator if this address is the fleet port of a wardround server.",
    )


def _answer(link: Link) -> str | None:
    """Ask the server for this site's key.

    Returns `registered`, the code of the refusal, or None if the server cannot be
    asked; another check reports why.
    """
    if link.unreached is not None:
        return None
    if not link.site.ca.is_file() or link.handshake.error is not None:
        return None
    try:
        refusal = link.refusal
    except ValueError:
        return None
    if isinstance(refusal, Refused):
        return refusal.why
    if isinstance(refusal, Unreachable):
        return None
    return "registered"
