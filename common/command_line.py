"""The frame of a command line: its app, and commands whose docstrings are what `--help` shows.

Importing it turns off what Flower, Ray and the hub libraries would send out: nobody is told about a run or a
site but its owner. So it comes before them.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import typer
import typer.core

from wardround.common.versions import NAME, installed

# Typer escapes the brackets of `[default: …]` for rich wherever that is installed, asked for or not.
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
    """An app in plain text, which leaves errors to `wardround.common.errors.guarded`."""
    return typer.Typer(
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        help=help,
    )


def add_version(app: typer.Typer) -> None:
    """Give a program the option `--version`."""

    @app.callback()
    def options(
        version: Annotated[
            bool,
            typer.Option(
                "--version",
                help="Show the version.",
                callback=_show_version,
                is_eager=True,
            ),
        ] = False,
    ) -> None:
        pass


def _show_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"{NAME} {installed()}")
        raise typer.Exit


def command(
    app: typer.Typer, name: str | None = None, **inserted: str
) -> Callable[[Command], Command]:
    """Make a function a command: above its options the first paragraph of its docstring, below them the rest.

    Args:
        name: by default the function's.
        inserted: what stands for each `{word}` of the docstring.
    """

    def register(function: Command) -> Command:
        summary, *more = inspect.cleandoc(function.__doc__ or "").split("\n\n")
        text = "\n\n".join(more)
        for word, meaning in inserted.items():
            text = text.replace(f"{{{word}}}", meaning)
        # click wraps a paragraph anew unless it begins like this; what is indented stands as it is written.
        shown = [
            f"\b\n{part}" if "\n  " in part else part for part in text.split("\n\n")
        ]
        return app.command(
            name, help=" ".join(summary.split()), epilog="\n\n".join(shown)
        )(function)

    return register
