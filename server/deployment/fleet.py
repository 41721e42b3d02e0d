"""The one door that sites knock at: Flower's Fleet API, for callers that may be up to anything.

    python -m wardround.server.deployment.fleet FOLDER [options of flower-superlink]

runs Flower's SuperLink in this process with four of its parts replaced: who may call, and how often
at a time (`KnownNodes`); the gRPC server, with bounds (`bounded_server`); what a caller may do
(`OwnMessages`); and where the objects of messages lie (`TreeStores`). Who is registered is read from
`sites.json` whenever that changes; what is known of each site stands in `fleet.json`.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from flwr.common import constant as flower
from flwr.server.superlink.linkstate.in_memory_linkstate import InMemoryLinkState
from flwr.superlink import config_loader
from flwr.superlink.cli.flower_superlink import flower_superlink

from wardround.common.credentials import pem_of
from wardround.common.files import write_json
from wardround.server.deployment.calls import Caller, KnownNodes, bounded_server
from wardround.server.deployment.folder import (
    RegisteredSite,
    ServerFolder,
)
from wardround.server.deployment.servicer import OwnMessages
from wardround.server.deployment.trees import TreeStores

_LOOK_SECONDS = 0.25
_UP_SECONDS = 120.0


class Registrar(threading.Thread):
    """Lets nodes in and out as `sites.json` says, and writes down what is known of them."""

    def __init__(
        self, folder: ServerFolder, state: InMemoryLinkState, say: Callable[[str], None]
    ) -> None:
        super().__init__(daemon=True, name="registrar")
        self._folder, self._state, self._say = folder, state, say
        self._sites: dict[str, RegisteredSite] = {}
        self._callers: dict[bytes, Caller] = {}
        self._refused: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._written: dict[str, Any] = {}
        self._trouble = ""
        self.look()

    def run(self) -> None:
        """For as long as the process lives; what goes wrong is said once, and tried again."""
        while True:
            time.sleep(_LOOK_SECONDS)
            try:
                self.look()
                self._trouble = ""
            except Exception as error:  # a torn file, a full disk: the sites at work are not its victims
                if str(error) != self._trouble:
                    self._say(f"the sites' files: {type(error).__name__}: {error}")
                self._trouble = str(error)

    def caller(self, key: bytes) -> Caller | None:
        """Who has this public key (PEM)."""
        return self._callers.get(key)

    def num_keys(self) -> int:
        """How many keys are registered."""
        return len(self._callers)

    def count(self, name: str, reason: str) -> None:
        """One more call that was refused; `name` is empty for a stranger."""
        self._refused[name][reason] += 1

    def count_of_node(self, node_id: int, reason: str) -> None:
        """As `count`; a node that is not let in any more is a stranger."""
        callers = list(self._callers.values())
        names = (caller.name for caller in callers if caller.node_id == node_id)
        self.count(next(names, ""), reason)

    def look(self) -> None:
        """Once. Raises OSError or ValueError."""
        sites = self._folder.sites()
        if sites != self._sites:
            self._register(sites)
            self._sites = sites
        told = self._told()
        if told != self._written:
            write_json(self._folder.fleet_file, told)
            self._written = told

    def _register(self, sites: dict[str, RegisteredSite]) -> None:
        wanted = {pem_of(site.public_key): name for name, site in sites.items()}
        for key, caller in list(self._callers.items()):
            if wanted.get(key) != caller.name:
                self._forget(key, caller)
        for key, name in wanted.items():
            if key not in self._callers:
                node_id = self._state.create_node(
                    flower.NOOP_FLWR_AID, flower.NOOP_ACCOUNT_NAME, key, 0
                )
                self._callers[key] = Caller(name, node_id)

    def _forget(self, key: bytes, caller: Caller) -> None:
        del self._callers[key]
        self._state.delete_node(flower.NOOP_FLWR_AID, caller.node_id)
        self._state.node_public_key_to_node_id.pop(
            key, None
        )  # so that it can be let in again
        self._refused.pop(caller.name, None)

    def _told(self) -> dict[str, Any]:
        nodes = {node.node_id: node for node in self._state.get_node_info()}
        told = {
            caller.name: {
                "status": nodes[caller.node_id].status,
                "online_since": nodes[caller.node_id].last_activated_at,
                "offline_at": nodes[caller.node_id].last_deactivated_at,
                "refused": dict(self._refused[caller.name]),
            }
            for caller in self._callers.values()
        }
        return {"sites": told, "strangers": dict(self._refused[""])}


def replace_parts(folder: ServerFolder, say: Callable[[str], None]) -> None:
    """Put the four parts in the place of Flower's own, before its SuperLink is made."""
    superlink = sys.modules[
        flower_superlink.__module__
    ]  # its package has a function of this name

    @cache
    def registrar(state_factory: Any) -> Registrar:
        made = Registrar(folder, state_factory.state(), say)
        made.start()
        return made

    def own_messages(state_factory: Any, **given: Any) -> OwnMessages:
        count = registrar(state_factory).count_of_node
        return OwnMessages(count, state_factory=state_factory, **given)

    parts: list[tuple[Any, str, Callable[..., Any]]] = [
        (
            superlink,
            "NodeAuthServerInterceptor",
            lambda states: KnownNodes(registrar(states)),
        ),
        (superlink, "FleetServicer", own_messages),
        (superlink, "generic_create_grpc_server", bounded_server),
        (config_loader, "ObjectStoreFactory", TreeStores),
    ]
    for module, name, part in parts:
        assert hasattr(module, name), (
            f"Flower's {module.__name__} has no {name} any more"
        )
        setattr(module, name, part)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201 - the terminal


def _say_when_up(folder: ServerFolder) -> None:
    from wardround.server.deployment.superlink import is_up

    until = time.monotonic() + _UP_SECONDS
    while time.monotonic() < until:
        if is_up(folder):
            num_sites = len(folder.sites())
            _say(
                f"the server is up; {num_sites} {'site' if num_sites == 1 else 'sites'} may connect"
            )
            return
        time.sleep(_LOOK_SECONDS)


def main(path: str, *options: str) -> None:
    """Serve until a signal comes."""
    folder = ServerFolder(Path(path))
    if "--insecure" not in options:
        os.umask(0o077)
        replace_parts(folder, _say)
    threading.Thread(target=_say_when_up, args=(folder,), daemon=True).start()
    sys.argv = ["flower-superlink", *options]
    flower_superlink()


if __name__ == "__main__":
    main(*sys.argv[1:])
