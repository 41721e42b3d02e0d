"""Health of the server's container: sites are served over TLS, and every registered one may connect."""

from __future__ import annotations

import socket
import ssl
import sys
from pathlib import Path

SERVER = Path("/server")
# In memory, so it goes when the container is started anew, as the SuperLink's own knowledge does.
_LET_IN = Path("/tmp/sites-let-in")


def main() -> None:
    """Raise OSError or RuntimeError if it is not well."""
    trust = ssl.create_default_context(cafile=SERVER / "ca.crt")
    with socket.create_connection(("127.0.0.1", 9092), 5) as plain:
        trust.wrap_socket(plain, server_hostname="server").close()
    if not _LET_IN.exists():
        _check_sites()
        _LET_IN.touch()


def _check_sites() -> None:
    """Ask once after a start: it takes seconds."""
    from server.deployment import superlink
    from server.deployment.server_folder import ServerFolder

    folder = ServerFolder(SERVER)
    known = superlink.node_states(folder)
    waiting = [name for name, site in folder.sites().items() if site.node_id not in known]
    if waiting:
        raise RuntimeError(f"not let in yet: {', '.join(waiting)}")


if __name__ == "__main__":
    try:
        main()
    except (OSError, RuntimeError) as error:
        sys.exit(f"not healthy: {error}")
