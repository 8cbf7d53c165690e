"""What the commands share: how they end, and the option for the output format."""

from collections.abc import Callable
from typing import Any

import click

FAILED, USAGE = 1, 2
EXIT_STATUS = """
\b
Exit status:
  0  success; for check: no problem found
  1  an object was rejected, --require was not met, a check failed, or a ConfigMap could not be
     deleted
  2  wrong usage, unreadable input, or cluster unreachable
"""


class CommandError(click.ClickException):
    """A command cannot do its work: one line, and the exit status."""

    def __init__(self, line: str, status: int = USAGE) -> None:
        super().__init__(line)
        self.status = status


def output_option(*formats: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return the option for the output format; the first one is the default."""
    text = f"Output format. Default: {formats[0]}."
    return click.option("-o", "--output", type=click.Choice(formats), default=formats[0], help=text)
