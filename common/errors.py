"""How a command line ends: what went wrong in words, and an exit code a shell can use."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
DIVERGED = "training diverged"
"""Stands in the text of every failure whose cause is a number that is none, so that it can be told apart."""


class Failed(Exception):
    """The work could not be finished. The text says what, where and the next step."""


def guarded(run: Callable[[], Any], say: Callable[[str], None], stopped: str) -> int:
    """Run a command line to its exit code; whatever a person can act on is said, not traced.

    Args:
        run: the typer app, called with `standalone_mode=False`.
        say: shows one text to the person.
        stopped: what to say after Ctrl-C.
    """
    from click.exceptions import Abort, ClickException, Exit

    try:
        code = run()
    except Exit as error:
        code = error.exit_code
    except (KeyboardInterrupt, Abort):
        code = INTERRUPTED
    except ClickException as error:
        error.show()
        return BAD_INPUT
    except (ValueError, OSError, Failed) as error:
        if os.environ.get("WARDROUND_DEBUG"):
            raise
        say(f"error: {_explained(error)}")
        return BAD_INPUT if isinstance(error, ValueError) else FAILED
    if code == INTERRUPTED:  # typer makes Ctrl-C an exit of its own
        say(stopped)
    return code if isinstance(code, int) else DONE


def _explained(error: Exception) -> str:
    if not isinstance(error, OSError):
        return str(error)
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}. Make room or give access, then run the same command again."
