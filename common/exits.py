"""Exit codes of the command lines, the signals that end them, and errors as people see them."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Callable
from typing import Any

from wardround.common.errors import Failed
from wardround.common.words import cleaned

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


def ending_signals() -> tuple[signal.Signals, ...]:
    """Return the signals that end a program: Ctrl-C, a request to end, and a closed terminal.

    A closed terminal (SIGHUP) does not count if the caller ignores it, as `nohup` does.
    """
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        return (signal.SIGINT, signal.SIGTERM)
    return (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def leave_terminal() -> None:
    """Send output to nowhere if it goes to a terminal, which no longer exists after SIGHUP."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (1, 2):
        if stat.S_ISCHR(os.fstat(descriptor).st_mode):
            os.dup2(nowhere, descriptor)
    os.close(nowhere)


def guarded(run: Callable[[], Any], say: Callable[[str], None], stopped: str) -> int:
    """Run a command line and return its exit code. People's errors show no traceback.

    Args:
        run: the typer app, called with `standalone_mode=False`.
        say: shows one text to the person.
        stopped: the text to show after Ctrl-C.
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
        say(f"error: {cleaned(_explained(error))}")
        return BAD_INPUT if isinstance(error, ValueError) else FAILED
    if code == INTERRUPTED:  # typer turns Ctrl-C into an exit code
        say(stopped)
    return code if isinstance(code, int) else DONE


def _explained(error: Exception) -> str:
    if not isinstance(error, OSError):
        return str(error)
    place = f"{error.filename}: " if error.filename else ""
    reason = error.strerror or error
    return (
        f"{place}{reason}. Make room or give access, then run the same command again."
    )
