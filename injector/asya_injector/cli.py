"""The program `asya-injector`."""

from __future__ import annotations

import logging
import os
import sys

import click
from kubernetes import client
from kubernetes import config as kube_config
from pythonjsonlogger.json import JsonFormatter

from asya_injector import __version__
from asya_injector.config import Config, ConfigError
from asya_injector.refusal import Refusal
from asya_injector.webhook import serve

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
        _log_as_json(config.log_level)
        try:
            kube_config.load_incluster_config()  # type: ignore[no-untyped-call]
        except kube_config.ConfigException:
            kube_config.load_kube_config()  # type: ignore[no-untyped-call]
        serve(config, client.ApiClient())
    except (ConfigError, Refusal, kube_config.ConfigException) as error:
        _fail(str(error))
    except KeyError as error:
        _fail(f"INJECTOR_DEFAULTS: no annotation is named {error}")
    except (OSError, UnicodeDecodeError) as error:
        _fail(f"cannot start: {error}")


def _fail(line: str) -> None:
    print(f"asya-injector: {line}", file=sys.stderr)  # noqa: T201
    sys.exit(EX_CONFIG)


def _log_as_json(level: str) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(
        JsonFormatter(
            "%(asctime)s %(levelname)s %(name)s %(message)s",
            rename_fields={"asctime": "time", "levelname": "level", "name": "logger"},
            datefmt="%Y-%m-%dT%H:%M:%S%z",
        )
    )
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # One line a decision is ours; these would say the same again.
    for noisy in ("kopf", "aiohttp.access", "urllib3", "asyncio"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLevelName(level)))
    logging.getLogger("kopf.objects").setLevel(logging.CRITICAL)
