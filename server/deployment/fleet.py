"""Flower's Fleet API, which sites call, made safe against hostile callers.

    python -m wardround.server.deployment.fleet FOLDER [options of flower-superlink]

runs Flower's SuperLink in this process with four replaced parts: authentication and the number of
calls (`KnownNodes`), a gRPC server with limits (`bounded_server`), the rights of a caller
(`OwnMessages`), and the store of message objects (`TreeStores`). The registered sites are read from
`sites.json` whenever it changes; the state of each site is written to `fleet.json`.
"""

from __future__ import annotations

import os
import signal
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
from wardround.common.exits import ending_signals, leave_terminal
from wardround.common.files import write_json
from wardround.server.deployment.calls import Caller, KnownNodes, bounded_server
from wardround.server.deployment.folder import (
    RegisteredSite,
    ServerFolder,
)
from wardround.server.deployment.servicer import OwnMessages
from wardround.server.deployment.superlink import is_up
from wardround.server.deployment.trees import TreeStores

_LOOK_SECONDS = 0.25
_UP_SECONDS = 120.0


class Registrar(threading.Thread):
    """Registers and removes nodes as `sites.json` changes, and writes their state to
    `fleet.json`."""

    def __init__(
        self, folder: ServerFolder, state: InMemoryLinkState, say: Callable[[str], None]
    ) -> None:
        super().__init__(daemon=True, name="registrar")
        self._folder = folder
        self._state = state
        self._say = say
        self._sites: dict[str, RegisteredSite] = {}
        self._callers: dict[bytes, Caller] = {}
        self._refused: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._written: dict[str, Any] = {}
        self._last_error = ""
        self.update()

    def run(self) -> None:
        """Update until the process ends. An error is printed once and tried again."""
        while True:
            time.sleep(_LOOK_SECONDS)
            try:
                self.update()
                self._last_error = ""
            except (
                Exception
            ) as error:  # a damaged file or a full disk must not stop connected sites
                if str(error) != self._last_error:
                    self._say(f"the sites' files: {type(error).__name__}: {error}")
                self._last_error = str(error)

    def caller(self, key: bytes) -> Caller | None:
        """Return the owner of this public key (PEM); None if it is not registered."""
        return self._callers.get(key)

    def num_keys(self) -> int:
        """Return the number of registered keys."""
        return len(self._callers)

    def count(self, name: str, reason: str) -> None:
        """Count a refused call; `name` is empty for an unknown key."""
        self._refused[name][reason] += 1

    def count_of_node(self, node_id: int, reason: str) -> None:
        """Count a refused call of a node. A node that was removed counts as unknown."""
        callers = list(self._callers.values())
        names = (caller.name for caller in callers if caller.node_id == node_id)
        self.count(next(names, ""), reason)

    def update(self) -> None:
        """Read `sites.json` and write `fleet.json`, if they changed. Raises OSError or
        ValueError."""
        sites = self._folder.sites()
        if sites != self._sites:
            self._register(sites)
            self._sites = sites
        states = self._states()
        if states != self._written:
            write_json(self._folder.fleet_file, states)
            self._written = states

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
        # So that the key can be registered again.
        self._state.node_public_key_to_node_id.pop(key, None)
        self._refused.pop(caller.name, None)

    def _states(self) -> dict[str, Any]:
        """Return the content of `fleet.json`."""
        nodes = {node.node_id: node for node in self._state.get_node_info()}
        sites = {
            caller.name: {
                "status": nodes[caller.node_id].status,
                "online_since": nodes[caller.node_id].last_activated_at,
                "offline_at": nodes[caller.node_id].last_deactivated_at,
                "refused": dict(self._refused[caller.name]),
            }
            for caller in self._callers.values()
        }
        return {"sites": sites, "strangers": dict(self._refused[""])}


def replace_parts(folder: ServerFolder, say: Callable[[str], None]) -> None:
    """Replace four parts of Flower's SuperLink before it is made."""
    # Its package has a function of the same name, which hides the module.
    superlink = sys.modules[flower_superlink.__module__]

    @cache
    def registrar(state_factory: Any) -> Registrar:
        made = Registrar(folder, state_factory.state(), say)
        made.start()
        return made

    def known_nodes(state_factory: Any) -> KnownNodes:
        return KnownNodes(registrar(state_factory))

    def own_messages(state_factory: Any, **options: Any) -> OwnMessages:
        count = registrar(state_factory).count_of_node
        return OwnMessages(count, state_factory=state_factory, **options)

    parts: list[tuple[Any, str, Callable[..., Any]]] = [
        (superlink, "NodeAuthServerInterceptor", known_nodes),
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
    until = time.monotonic() + _UP_SECONDS
    while time.monotonic() < until:
        if is_up(folder):
            num_sites = len(folder.sites())
            noun = "site" if num_sites == 1 else "sites"
            _say(f"the server is up; {num_sites} {noun} may connect")
            return
        time.sleep(_LOOK_SECONDS)


def main(path: str, *options: str) -> None:
    """Serve until a signal comes."""
    folder = ServerFolder(Path(path))
    if "--insecure" not in options:
        os.umask(0o077)
        replace_parts(folder, _say)
    if signal.SIGHUP in ending_signals():
        signal.signal(signal.SIGHUP, _end)
    threading.Thread(target=_say_when_up, args=(folder,), daemon=True).start()
    sys.argv = ["flower-superlink", *options]
    flower_superlink()


def _end(_number: int, _frame: object) -> None:
    """End as after SIGTERM, which Flower handles, when the terminal was closed."""
    leave_terminal()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main(*sys.argv[1:])
