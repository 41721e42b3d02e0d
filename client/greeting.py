"""One signed question to the server: is this site's key registered?

Flower has no call for it, but answers it on the way: asked to activate a node with a heartbeat interval that
is out of bounds, the server first looks the key up, then refuses the interval. So the refusal tells whether
the key is known, nothing is activated, and a node that is at work is not disturbed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from client.keys import read_private_key
from client.site_file import SiteFile

# Flower's codes and headers, as they stand on the wire.
_INVALID_INTERVAL, _NOT_ACTIVATED, _OTHER_VERSION = 2003, 2004, 1001
_KEY, _TIME, _SIGNATURE = "flwr-public-key-bin", "flwr-timestamp", "flwr-signature-bin"
_FLEET = "/flwr.proto.Fleet"
AHEAD_SECONDS, BEHIND_SECONDS = 5, 305
"""How far this machine's clock may be off before the server refuses what it signs."""


@dataclass(frozen=True)
class Answer:
    """What the server said."""

    kind: Literal["registered", "unregistered", "wrong_time", "version", "unreachable", "other"]
    detail: str = ""

    @property
    def accepts_the_time(self) -> bool:
        """Whether the server looked at a time stamp of this machine and found it right."""
        return self.kind in ("registered", "unregistered")


def greet(site: SiteFile, timeout_seconds: float) -> Answer:
    """Ask. Sends the public key, the time and a signature of the time; waits `timeout_seconds` at most.

    Raises:
        ValueError: the site's private key or authority cannot be read.
    """
    import grpc  # type: ignore[import-untyped]

    from client.link import read_authority

    read_authority(site.ca)
    signed = _signed(site)
    host, port = site.host_and_port
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    credentials = grpc.ssl_channel_credentials(site.ca.read_bytes())
    with grpc.secure_channel(target, credentials) as channel:
        try:
            _activate_with_an_impossible_interval(channel, site, signed, timeout_seconds)
        except grpc.RpcError as error:
            return _understand(error)
    return Answer(
        "other", "the server took a heartbeat interval of -1 s; it is not the Flower this was made for"
    )


def _signed(site: SiteFile) -> list[tuple[str, Any]]:
    """The headers with which Flower knows a node."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    key = read_private_key(site.private_key)
    now = datetime.now(UTC).isoformat()
    signature = key.sign(now.encode("ascii"), ec.ECDSA(hashes.SHA256()))
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return [(_KEY, public), (_TIME, now), (_SIGNATURE, signature)]


def _activate_with_an_impossible_interval(
    channel: Any, site: SiteFile, signed: list[tuple[str, Any]], timeout_seconds: float
) -> None:
    from flwr.proto.fleet_pb2 import (
        ActivateNodeRequest,
        ActivateNodeResponse,
        DeactivateNodeRequest,
        DeactivateNodeResponse,
    )

    ask = channel.unary_unary(
        f"{_FLEET}/ActivateNode", ActivateNodeRequest.SerializeToString, ActivateNodeResponse.FromString
    )
    request = ActivateNodeRequest(public_key=dict(signed)[_KEY], heartbeat_interval=-1.0)
    node = ask(request, timeout=timeout_seconds, metadata=signed).node_id
    # No Flower known comes here. One that does has put the node online: take it off again.
    leave = channel.unary_unary(
        f"{_FLEET}/DeactivateNode", DeactivateNodeRequest.SerializeToString, DeactivateNodeResponse.FromString
    )
    leave(DeactivateNodeRequest(node_id=node), timeout=timeout_seconds, metadata=signed)


def _understand(error: Any) -> Answer:
    status, details = error.code().name, str(error.details() or "")
    try:
        content = json.loads(details)
        code = content["code"]
    except (ValueError, KeyError, TypeError):
        content, code = {}, None
    if code == _INVALID_INTERVAL:
        return Answer("registered")
    if code == _NOT_ACTIVATED:
        return Answer("unregistered")
    if code == _OTHER_VERSION:
        return Answer("version", str(content.get("public_details") or content.get("public_message") or ""))
    if status == "UNAUTHENTICATED" and details == "Invalid timestamp":
        return Answer("wrong_time")
    if status in ("UNAVAILABLE", "DEADLINE_EXCEEDED"):
        return Answer("unreachable", details)
    return Answer("other", f"{status}: {details}")
