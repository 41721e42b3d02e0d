"""Decides if a site tries again after its connection has ended."""

from __future__ import annotations

import ssl
import time

from wardround.client.kit.checks.findings import Finding
from wardround.client.kit.checks.subject import Options, Subject
from wardround.client.kit.checks.table import finding_of
from wardround.client.node.join import Verdict
from wardround.client.site_file import SiteFile
from wardround.common.errors import Refused, Unreachable
from wardround.common.words import LONGEST_TEXT, quoted

# A network that is down at boot comes up, and a server that is down comes back.
HEALING_CHECKS = frozenset({"address", "tcp"})
"""Checks whose problems do not end `join`."""
_STILL_ONLINE = (
    "the server still counts this site as online; after an unclean stop that lasts for "
    "a minute"
)
_TWICE = "; by now it must be another machine or process that uses this site's key"
_TWICE_SECONDS = 180.0
# A site may be let in again under the same key.
_FORGOTTEN_SECONDS = 900.0


class LinkJudge:
    """Judges a lost connection by the server's answer and by the way to the server."""

    def __init__(self, site: SiteFile, timeout_seconds: float = 5.0) -> None:
        self._site = site
        self._options = Options(timeout_seconds=timeout_seconds)
        self._was_accepted = False
        self._refused_since: float | None = None

    def accepted(self) -> None:
        """Note that the server accepted this site's key."""
        self._was_accepted = True
        self._refused_since = None

    def __call__(self, error: Refused | Unreachable) -> Verdict:
        """Decide what follows after this error."""
        if isinstance(error, Unreachable):
            return self._lost(error)
        return self._refused(error)

    def _lost(self, error: Unreachable) -> Verdict:
        on = self._subject()
        if on.link.unreached is not None:
            reason = on.link.unreached.strerror or on.link.unreached
            return Verdict(f"the server cannot be reached ({reason})")
        if _is_broken_off(on.link.handshake.error):
            return Verdict(
                "the server, or a proxy in front of it, closed the connection during "
                "the TLS handshake"
            )
        for name in ("certificate", "tls"):
            finding = finding_of(name, on)
            if finding.state == "problem":
                return _final(finding)
        return Verdict(f"the connection was lost ({error})")

    def _refused(self, refused: Refused) -> Verdict:
        match refused.why:
            case "version":
                detail = quoted(refused.detail, LONGEST_TEXT)
                step = "Install the version of Flower that the coordinator names."
                return Verdict(
                    f"the server refuses this version: {detail}. {step}", is_final=True
                )
            case "wrong_time":
                return Verdict(
                    "the server refuses this machine's time; correct its clock (NTP)"
                )
            case "unknown_key":
                if self._was_accepted and self._refused_for() < _FORGOTTEN_SECONDS:
                    return Verdict(
                        "the server no longer knows this site's key", is_soon=True
                    )
                return _final(finding_of("registered", self._subject()))
            case "still_online":
                reason = _STILL_ONLINE
                if self._refused_for() > _TWICE_SECONDS:
                    reason += _TWICE
                return Verdict(reason, is_soon=True)
        self._refused_since = None
        if refused.why == "other_node":
            return Verdict(
                "the server was restarted, and this site must connect again",
                is_soon=True,
            )
        return Verdict(
            f"the server refused this site: {quoted(str(refused), LONGEST_TEXT)}"
        )

    def _subject(self) -> Subject:
        return Subject(self._site, self._options)

    def _refused_for(self) -> float:
        """Return the seconds since the server first refused."""
        now = time.monotonic()
        if self._refused_since is None:
            self._refused_since = now
        return now - self._refused_since


def _final(finding: Finding) -> Verdict:
    return Verdict(f"{finding.message}. {finding.next_step}", is_final=True)


def _is_broken_off(error: OSError | None) -> bool:
    """Return if a handshake ended without a word about certificates.

    That happens while a server starts or stops.
    """
    if error is None or error.filename is not None:
        return False
    return isinstance(error, ssl.SSLEOFError) or not isinstance(error, ssl.SSLError)
