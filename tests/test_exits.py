"""Each way in which a command can end: the exit code, and the message for the person."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import typer

from tests.support.door import wardround
from wardround.common.errors import RunFailed
from wardround.common.exits import BAD_INPUT, DONE, FAILED, INTERRUPTED, guarded


def raising(error: BaseException) -> Callable[[], object]:
    """Return a typer app whose only command raises this."""
    app = typer.Typer()

    @app.command()
    def command() -> None:
        raise error

    return lambda: app([], standalone_mode=False)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ValueError("seed is -1"), BAD_INPUT, "error: seed is -1"),
        (RunFailed("round 3: client 1"), FAILED, "error: round 3: client 1"),
        (
            OSError(28, "No space left on device", "run/x"),
            FAILED,
            "error: run/x: No space left on device.",
        ),
        (KeyboardInterrupt(), INTERRUPTED, "stopped, and goes on"),
        (typer.Exit(7), 7, ""),
        (typer.Exit(0), DONE, ""),
    ],
)
def test_each_end_has_its_exit_code_and_message(
    error: BaseException, code: int, message: str
) -> None:
    printed: list[str] = []
    assert guarded(raising(error), printed.append, "stopped, and goes on") == code
    assert len(printed) == bool(message)
    assert "".join(printed).startswith(message)


def test_help_shows_the_docstring_above_and_below_the_options() -> None:
    shown = wardround("submit", "--help").out
    parts = ("registered sites", "Options:", "\n  Examples:\n", "Groups:")
    places = [shown.index(text) for text in parts]
    assert places == sorted(places)
    # An example keeps its line.
    assert "\n    wardround submit --resume outputs/trial\n" in shown


def test_a_defect_prints_a_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        guarded(raising(ZeroDivisionError()), print, "")


def test_debugging_prints_a_traceback_for_bad_input_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WARDROUND_DEBUG", "1")
    with pytest.raises(ValueError, match="seed"):
        guarded(raising(ValueError("seed")), print, "")
