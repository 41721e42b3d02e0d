"""What went wrong, in words a person can act on, and an exit code a shell can use."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from wardround.common.words import cleaned, printable

if TYPE_CHECKING:
    from pydantic import ValidationError

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
        say(f"error: {cleaned(_explained(error))}")
        return BAD_INPUT if isinstance(error, ValueError) else FAILED
    if code == INTERRUPTED:  # typer makes Ctrl-C an exit of its own
        say(stopped)
    return code if isinstance(code, int) else DONE


def explain(
    error: ValidationError,
    known: Iterable[str] = (),
    steps: Mapping[str, str] | None = None,
) -> str:
    """What pydantic found, a line each: the dotted key, its value, the rule and the next step.

    Args:
        known: the keys there are, to name the one that is nearest to an unknown one.
        steps: next steps by dotted key, by pydantic's type of error, for example `missing`, or by both, with
            a space between them; the most particular counts, and a type of error before a key.
    """
    lines: dict[str, str] = {}
    steps = steps or {}
    for item in error.errors(include_url=False):
        # Which of several types a value was held against stands behind its key.
        parts = [
            str(part)
            for part in item["loc"]
            if not re.match(r"constrained-|literal\[", str(part))
        ]
        key, kind = ".".join(parts) or "the whole", item["type"]
        step = next(
            (steps[name] for name in (f"{key} {kind}", kind, key) if name in steps), ""
        )
        match kind:
            case "value_error":  # a whole sentence, about several keys
                line = item["msg"].removeprefix("Value error, ")
            case "missing":
                line = f"{key} is missing."
            case "extra_forbidden" | "unexpected_keyword_argument":
                line = f"{key} is {item['input']!r}, but there is no such key.{nearest(key, known)}"
            case "string_pattern_mismatch" if step:  # which says it in words
                line = f"{key} is {item['input']!r}."
            case _:
                line = f"{key} is {item['input']!r}; {re.sub(r'^.* should ', 'it must ', item['msg'])}."
        lines.setdefault(key, f"{line} {step}" if step else line)
    return "\n".join(lines.values())


def nearest(word: str, names: Iterable[str]) -> str:
    """` Nearest: 'x', 'y'.`: up to three names that are like `word`, whole or behind their last dot."""
    by_part = {
        part.lower(): name for name in names for part in (name.rsplit(".", 1)[-1], name)
    }
    close = dict.fromkeys(
        by_part[part] for part in get_close_matches(word.lower(), by_part)
    )
    return f" Nearest: {', '.join(map(_in_quotes, close))}." if close else ""


def _in_quotes(name: str) -> str:
    return f"'{printable(name)}'"


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its kind if it says nothing.

    It may repeat what somebody else wrote into a file, so that no sign in it moves a cursor.
    """
    return cleaned((str(error).strip().splitlines() or [type(error).__name__])[0])


def _explained(error: Exception) -> str:
    if not isinstance(error, OSError):
        return str(error)
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}. Make room or give access, then run the same command again."
