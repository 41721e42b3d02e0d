"""A site that is killed once, after it has written an answer and before it sends it.

Python loads this file if its folder is on the path. WARDROUND_TEST_DIES names a file that is
written when it has happened.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

_DONE = Path(os.environ.get("WARDROUND_TEST_DIES", os.devnull))

if not _DONE.exists() and "join" in sys.orig_argv:
    from wardround.client.node.connection import Connection, Letter

    _push = Connection.push

    def _dies(self: Connection, letter: Letter, *given: Any) -> None:
        if letter.kind == "train" and not _DONE.exists():
            _DONE.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        _push(self, letter, *given)

    setattr(Connection, "push", _dies)  # noqa: B010 - it has another signature
