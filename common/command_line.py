"""The frame of a command line: its app, and commands whose docstrings become their help.

Import it before Flower, Ray and the hub libraries: it turns off the data that they would send to
their makers.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import typer
import typer.core

from wardround.common.versions import NAME, installed

# Otherwise Typer escapes the brackets of `[default: …]` if rich is installed.
typer.core.HAS_RICH = False
for _name in (
    "FLWR_TELEMETRY_ENABLED",
    "RAY_USAGE_STATS_ENABLED",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO",
):
    os.environ.setdefault(_name, "0")
for _name in (
    "FLWR_DISABLE_UPDATE_CHECK",
    "HF_HUB_DISABLE_TELEMETRY",
    "TOKENIZERS_PARALLELISM",
):
    os.environ.setdefault(_name, "1")

Command = TypeVar("Command", bound=Callable[..., Any])


def new_app(help: str) -> typer.Typer:
    """Return an app with plain text, which leaves errors to `wardround.common.exits.guarded`."""
    return typer.Typer(
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        help=help,
    )


def add_version(app: typer.Typer) -> None:
    """Add the option `--version` to a program."""

    @app.callback()
    def options(
        version: Annotated[
            bool,
            option(
                "--version", "Show the version.", callback=_show_version, is_eager=True
            ),
        ] = False,
    ) -> None:
        pass


def _show_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"{NAME} {installed()}")
        raise typer.Exit


def option(name: str, help: str, metavar: str | None = None, **more: Any) -> Any:
    """Describe an option. Args: metavar: the word for its value in `--help`."""
    return typer.Option(name, help=help, metavar=metavar, **more)


def argument(metavar: str, help: str | None = None) -> Any:
    """Describe an argument. Args: metavar: the word for its value in `--help`."""
    return typer.Argument(metavar=metavar, help=help)


def command(
    app: typer.Typer, name: str | None = None, **inserted: str
) -> Callable[[Command], Command]:
    """Make a function a command.

    The first paragraph of its docstring is shown above the options, the rest below them.

    Args:
        name: name of the command; None is the function's.
        inserted: text for each `{word}` of the docstring.
    """

    def register(function: Command) -> Command:
        summary, *more = inspect.cleandoc(function.__doc__ or "").split("\n\n")
        text = "\n\n".join(more)
        for word, meaning in inserted.items():
            text = text.replace(f"{{{word}}}", meaning)
        shown = []
        for part in text.split("\n\n"):
            # click breaks the lines of a paragraph again unless it begins with \b.
            is_indented = "\n  " in part
            shown.append(f"\b\n{part}" if is_indented else part)
        help_text = " ".join(summary.split())
        epilog = "\n\n".join(shown)
        return app.command(name, help=help_text, epilog=epilog)(function)

    return register
