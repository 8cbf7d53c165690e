"""The program `asya-injector`."""

from __future__ import annotations

import os
import sys

import click
from kubernetes.config import ConfigException

from asya_injector import __version__
from asya_injector.api import connect
from asya_injector.config import Config, ConfigError
from asya_injector.lifecycle import serve
from asya_injector.logs import log_as_json
from asya_injector.refusal import Refusal

# sysexits.h: what is wrong is the configuration, and starting again does not mend it.
EX_CONFIG = 78


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="asya-injector")
def main() -> None:
    """Turn annotated pods into actors: `asya.sh/handler: module.path.function`."""


@main.command()
def run() -> None:
    """Serve the webhooks in a cluster, with settings from the environment (see the chart)."""
    try:
        config = Config.from_env(os.environ)
        log_as_json(config.log_level)
        serve(config, connect())
    except (ConfigError, Refusal, ConfigException) as error:
        _fail(str(error))
    except KeyError as error:
        _fail(f"INJECTOR_DEFAULTS: no annotation is named {error}")
    except (OSError, UnicodeDecodeError) as error:
        _fail(f"cannot start: {error}")


def _fail(line: str) -> None:
    print(f"asya-injector: {line}", file=sys.stderr)  # noqa: T201
    sys.exit(EX_CONFIG)
