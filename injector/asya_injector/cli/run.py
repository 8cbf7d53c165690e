"""The command `run`: configuration, log and API client, before anything is served."""

import os

import click

from asya_injector.cli.common import CommandError
from asya_injector.errors import InjectionError

# sysexits.h: the configuration is wrong, so a restart does not help.
_EX_CONFIG = 78

_EPILOG = """
\b
Exit status:
  0   stopped by a signal
  78  a setting is missing or invalid

\b
Environment:
  INJECTOR_...  the settings; the chart sets them
"""


@click.command(epilog=_EPILOG)
def run() -> None:
    """Serve the admission webhooks in a cluster.

    All settings come from environment variables, which the chart sets.
    """
    from asya_injector.kube_client import ConfigException, connect
    from asya_injector.webhook.app import serve
    from asya_injector.webhook.config import Config, ConfigError
    from asya_injector.webhook.telemetry import log_as_json

    try:
        config = Config.from_env(os.environ)
        log_as_json(config.log_level)
        serve(config, connect())
    except ConfigError as error:
        raise CommandError(str(error), _EX_CONFIG) from None
    except ConfigException as error:
        line = f"cannot connect to the API server: {str(error).rstrip('.')}"
        fix = "in a pod, the token of its service account must be mounted"
        raise CommandError(f"{line}; {fix}", _EX_CONFIG) from None
    except InjectionError as error:
        # It names an annotation; the chart's value of the same name is wrong.
        raise CommandError(f"INJECTOR_DEFAULTS: {error}", _EX_CONFIG) from None
    except KeyError as error:
        line = f"INJECTOR_DEFAULTS: unknown annotation {error}"
        raise CommandError(line, _EX_CONFIG) from None
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"cannot start: {error}", _EX_CONFIG) from None
