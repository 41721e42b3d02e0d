"""Health check of the server's container: it answers over TLS with a certificate that sites
trust."""

from __future__ import annotations

import socket
import ssl
import sys
from pathlib import Path

AUTHORITY = Path("/server/ca.crt")


def main() -> None:
    """Raise OSError if the server does not answer."""
    trust = ssl.create_default_context(cafile=AUTHORITY)
    with socket.create_connection(("127.0.0.1", 9092), 5) as plain:
        trust.wrap_socket(plain, server_hostname="server").close()


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        sys.exit(f"not healthy: {error}")
