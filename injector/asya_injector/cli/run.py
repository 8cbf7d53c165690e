"""The command `run`: settings, logs and the way to the API server, before anything serves."""

from __future__ import annotations

import os

from kubernetes.config import ConfigException

from asya_injector.cli.help import CommandError
from asya_injector.errors import InjectionError
from asya_injector.kube_client import connect
from asya_injector.webhook.app import serve
from asya_injector.webhook.config import Config, ConfigError
from asya_injector.webhook.telemetry import log_as_json

# sysexits.h: what is wrong is the configuration, and starting again does not mend it.
EX_CONFIG = 78


def run() -> None:
    """Serve until a signal ends it; raises CommandError."""
    try:
        config = Config.from_env(os.environ)
        log_as_json(config.log_level)
        serve(config, connect())
    except ConfigError as error:
        raise CommandError(str(error), EX_CONFIG) from None
    except ConfigException as error:
        line = f"no way to the API server: {str(error).rstrip('.')}"
        fix = "in a pod, its service account's token must be mounted"
        raise CommandError(f"{line}; {fix}", EX_CONFIG) from None
    except InjectionError as refusal:
        # It names an annotation; here the chart's value of that name is meant.
        raise CommandError(f"INJECTOR_DEFAULTS: {refusal}", EX_CONFIG) from None
    except KeyError as error:
        line = f"INJECTOR_DEFAULTS: no annotation is named {error}"
        raise CommandError(line, EX_CONFIG) from None
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"cannot start: {error}", EX_CONFIG) from None
