"""The program `asya-injector`: its commands, and how it ends."""

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click
from click.exceptions import NoArgsIsHelpError

from asya_injector import __version__
from asya_injector.cli import cluster, manifests, run
from asya_injector.cli.common import EXIT_STATUS, FAILED, USAGE, CommandError
from asya_injector.documents.document import ManifestError
from asya_injector.manifests.transform import RejectedError

_NAME = "asya-injector"
_EPILOG = f"""
\b
Examples:
  # inject without a webhook
  asya-injector inject -f deploy/ | kubectl apply -f -
  # show what the injector would change
  asya-injector explain -f model.yaml
  # check an installation
  asya-injector check
{EXIT_STATUS}
\b
Environment:
  NO_COLOR  if set, output is never colored; by default, it is colored on a terminal
"""


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=_EPILOG,
)
@click.version_option(__version__, prog_name=_NAME)
def program() -> None:
    """Inject the runtime into annotated pods, so that they come up as actors.

    A pod or workload opts in with the annotation `asya.sh/handler: module.path.function`.
    `asya-injector COMMAND --help` shows the help of a command.
    """


for command in (
    manifests.inject,
    manifests.uninject,
    manifests.explain,
    cluster.check,
    cluster.prune,
    run.run,
):
    program.add_command(command)


def main(arguments: Sequence[str] | None = None, *, name: str = _NAME) -> NoReturn:
    """Run the program with these arguments, or those of the process; ends the process.

    name: what its help and its errors call it.
    """
    color = False if os.environ.get("NO_COLOR") else None
    errors: list[str] = []
    try:
        status = program.main(arguments, prog_name=name, standalone_mode=False, color=color) or 0
    except NoArgsIsHelpError as error:
        error.show()
        status = USAGE
    except click.UsageError as error:
        message = " ".join(error.format_message().split()).rstrip(".")
        hint = f" (see {error.ctx.command_path} --help)" if error.ctx else ""
        errors, status = [message + hint], USAGE
    except CommandError as error:
        errors, status = [error.message.rstrip(".")], error.status
    except ManifestError as error:
        errors, status = [str(error)], USAGE
    except RejectedError as error:
        errors, status = error.lines, FAILED
    except (click.Abort, KeyboardInterrupt):
        status = 130
    for line in errors:
        click.secho(f"{name}: {line}", fg="red", err=True, color=color)
    sys.exit(status)
