"""The command line's manners: help like a manual page, errors in one line, colours only on a
terminal, and no word about a reader that went away.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import click

PROGRAM = "asya-injector"
REFUSED, USAGE = 1, 2
COLOUR = ("NO_COLOR", "if set to anything, no colours; they appear on a terminal only")


class CommandError(click.ClickException):
    """A command cannot do what it was asked: one line, and the exit status."""

    def __init__(self, line: str, status: int = USAGE) -> None:
        super().__init__(line)
        self.status = status


class _Manual(click.Command):
    """A command whose help has the sections of a manual page.

    examples: pairs of a command line and what it is for. statuses: exit status and its meaning.
    environment: variables that it reads. The first line of the description is its name's.
    """

    def __init__(
        self,
        *args: Any,
        examples: Sequence[tuple[str, str]] = (),
        statuses: Sequence[tuple[str, str]] = (),
        environment: Sequence[tuple[str, str]] = (),
        **how: Any,
    ) -> None:
        super().__init__(*args, **how)
        self.examples = examples
        self.statuses = statuses
        self.environment = environment

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the whole page."""
        first, _, rest = inspect.cleandoc(self.help or "").partition("\n\n")
        with formatter.section(_title("NAME")):
            formatter.write_text(f"{ctx.command_path} - {first.rstrip('.')}")
        with formatter.section(_title("SYNOPSIS")):
            formatter.write_text(" ".join([ctx.command_path, *self.collect_usage_pieces(ctx)]))
        if rest:
            with formatter.section(_title("DESCRIPTION")):
                formatter.write_text(rest)
        self.format_options(ctx, formatter)
        if self.examples:
            with formatter.section(_title("EXAMPLES")):
                for line, purpose in self.examples:
                    formatter.write_text(f"{purpose}:")
                    formatter.write(f"{'':{formatter.current_indent + 2}}{line}\n\n")
        for title, rows in (("EXIT STATUS", self.statuses), ("ENVIRONMENT", self.environment)):
            if rows:
                with formatter.section(_title(title)):
                    formatter.write_dl(rows, col_max=24)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, under a title like the others'."""
        rows = [row for param in self.get_params(ctx) if (row := param.get_help_record(ctx))]
        with formatter.section(_title("OPTIONS")):
            formatter.write_dl(rows, col_max=28)


class Manual(_Manual):
    """A command of the program."""


class ManualGroup(_Manual, click.Group):
    """The program itself."""

    command_class = Manual

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands and the options."""
        rows = [
            (name, (command.help or "").partition("\n")[0].rstrip("."))
            for name, command in self.commands.items()
        ]
        with formatter.section(_title("COMMANDS")):
            formatter.write_dl(rows)
        super().format_options(ctx, formatter)


def answering(*forms: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The option of commands that answer in one of these forms, the first by default."""
    help_ = f"Form of the answer. Default: {forms[0]}."
    return click.option("-o", "--output", type=click.Choice(forms), default=forms[0], help=help_)


def run(program: click.Command, words: Sequence[str] | None) -> NoReturn:
    """Run the program with these words, or those of the process; ends the process."""
    colour = False if os.environ.get("NO_COLOR") else None
    try:
        status = program.main(
            None if words is None else list(words),
            prog_name=PROGRAM,
            standalone_mode=False,
            color=colour,
        )
    except click.ClickException as error:
        command = (
            error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else ""
        )
        hint = f" (see {command} --help)" if command else ""
        message = " ".join(error.format_message().split()) if hint else error.format_message()
        print(f"{PROGRAM}: {message.rstrip('.')}{hint}", file=sys.stderr)  # noqa: T201
        status = getattr(error, "status", error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        status = 130
    sys.exit(status if isinstance(status, int) else 0)


def _title(words: str) -> str:
    return click.style(words, bold=True)
