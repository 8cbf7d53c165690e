"""The table of annotations: the one place of what users can say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from asya_injector.annotations import formats

PREFIX = "asya.sh/"

INHERITED = PREFIX + "inherited"

INJECTED = PREFIX + "injected"


WRITTEN_BY_US = frozenset({INHERITED, INJECTED})


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """One annotation `asya.sh/<name>`.

    `parse` gives the canonical text of a value or raises ValueError with what is valid.
    `default` is what holds where neither the annotation nor a chart value says anything; None
    means that it is worked out from the pod. `env` is the variable of the runtime it becomes.
    """

    name: str
    parse: formats.Form
    default: str | None
    description: str
    env: str | None = None

    @property
    def key(self) -> str:
        """The annotation's full key."""
        return PREFIX + self.name


TABLE = (
    Annotation(
        name="handler",
        env="ASYA_HANDLER",
        parse=formats.handler,
        default=None,
        description="the function that becomes an actor: module.path.function; opts the pod in",
    ),
    Annotation(
        name="inject",
        parse=formats.boolean,
        default="true",
        description="false leaves the pod alone",
    ),
    Annotation(
        name="container",
        parse=formats.name,
        default=None,
        description="the container with the handler; default: kubectl's default container, "
        "else the first",
    ),
    Annotation(
        name="sidecars",
        parse=formats.names,
        default="asya-sidecar",
        description="containers that get the socket, separated by commas",
    ),
    Annotation(
        name="mode",
        parse=formats.choice("auto", "wrap", "hook", "runtime", "mount"),
        default="auto",
        description="how the runtime is started; auto: wrap where the container has a command, "
        "else hook",
    ),
    Annotation(
        name="python",
        parse=formats.python,
        default="python3",
        description="interpreter of runtime and wrapper; default: the one in command, if any",
    ),
    Annotation(
        name="mount-path",
        parse=formats.mount_path,
        default="/opt/asya",
        description="directory of the runtime's files; or one file ending in .py",
    ),
    Annotation(
        name="probe",
        parse=formats.boolean,
        default="true",
        description="readiness probe of the actor, where the container has none of its own",
    ),
    Annotation(
        name="socket-path",
        env="ASYA_SOCKET_PATH",
        parse=formats.socket_path,
        default="/tmp/sockets/app.sock",  # noqa: S108  (the specification's)
        description="path of the socket",
    ),
    Annotation(
        name="include-metadata",
        env="ASYA_INCLUDE_METADATA",
        parse=formats.boolean,
        default="false",
        description="the handler gets the whole message, not its payload alone",
    ),
    Annotation(
        name="chunk-size",
        env="ASYA_CHUNK_SIZE",
        parse=formats.integer(1, 16777216),
        default="4096",
        description="receive buffer in bytes",
    ),
    Annotation(
        name="handler-timeout",
        env="ASYA_HANDLER_TIMEOUT",
        parse=formats.seconds(zero=True),
        default="0",
        description="seconds after which a running handler is warned about; 0: never",
    ),
    Annotation(
        name="enable-oom-detection",
        env="ASYA_ENABLE_OOM_DETECTION",
        parse=formats.boolean,
        default="true",
        description="memory errors get codes of their own",
    ),
    Annotation(
        name="cuda-cleanup-on-oom",
        env="ASYA_CUDA_CLEANUP_ON_OOM",
        parse=formats.boolean,
        default="true",
        description="caches of GPU memory are emptied after a memory error",
    ),
    Annotation(
        name="concurrency",
        env="ASYA_CONCURRENCY",
        parse=formats.integer(1, 1024),
        default="1",
        description="handler calls at once",
    ),
    Annotation(
        name="max-message-size",
        env="ASYA_MAX_MESSAGE_SIZE",
        parse=formats.integer(1, 4294967295),
        default="4294967295",
        description="largest message in bytes",
    ),
    Annotation(
        name="read-timeout",
        env="ASYA_READ_TIMEOUT",
        parse=formats.seconds(zero=False),
        default="60",
        description="longest pause inside a message, in seconds",
    ),
    Annotation(
        name="json",
        env="ASYA_JSON",
        parse=formats.choice("stdlib", "orjson", "auto"),
        default="stdlib",
        description="JSON library of the runtime",
    ),
)

BY_NAME: Mapping[str, Annotation] = {entry.name: entry for entry in TABLE}

BY_KEY: Mapping[str, Annotation] = {entry.key: entry for entry in TABLE}

ENV: tuple[Annotation, ...] = tuple(entry for entry in TABLE if entry.env)


def build_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of the annotations of a pod, a pod template or a workload.

    Keys of others are texts. Of ours it says what JSON Schema can say: an object that it refuses is
    refused by the injector too, but not the other way round (see `syntax.Form`).
    """
    known = {
        entry.key: {
            "type": "string",
            "description": entry.description,
            **({} if entry.default is None else {"default": entry.default}),
            **entry.parse.schema,
        }
        for entry in TABLE
    }
    written = {key: {"type": "string", "readOnly": True} for key in sorted(WRITTEN_BY_US)}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": known | written,
        "propertyNames": {
            "anyOf": [
                {"enum": [*known, *written]},
                {"not": {"pattern": f"^{re.escape(PREFIX)}"}},
            ]
        },
        "additionalProperties": {"type": "string"},
    }
