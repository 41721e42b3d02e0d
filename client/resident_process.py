"""The resident process of a site: answers one message after the other until its socket closes."""

from __future__ import annotations

import logging
import os
import socket
import sys
from contextlib import suppress
from functools import partial
from threading import Thread

from client.resident import receive_content, send_content
from common.frames import Gone, end_with, receive_frame

ANSWERED = b"."


def main(descriptor: int) -> None:
    """Serve the sockets that come through `descriptor`; never returns."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    control = socket.socket(fileno=descriptor)
    Thread(target=end_with, args=(control,), daemon=True).start()
    from client.answers import answer
    from client.site import Kept, site_from

    kept = Kept()
    with suppress(Gone):
        while True:
            _, (connection_fd,) = receive_frame(control)
            with socket.socket(fileno=connection_fd) as connection, suppress(Gone):
                words, content = receive_content(connection)
                find_site = partial(site_from, {"site-file": words["site_file"]}, kept)
                send_content(connection, {}, answer(words["kind"], content, find_site))
            control.sendall(ANSWERED)
    os._exit(0)  # nothing is left to tidy up, and PyTorch takes its time to leave


if __name__ == "__main__":
    main(int(sys.argv[1]))
