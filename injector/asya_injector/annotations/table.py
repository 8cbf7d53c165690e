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
        description="function to serve as an actor, such as my_app.handler.predict",
    ),
    Annotation(
        name="inject",
        parse=formats.boolean,
        default="true",
        description="false leaves the pod unchanged",
    ),
    Annotation(
        name="container",
        parse=formats.name,
        default=None,
        description="container with the handler; default: kubectl's default container, otherwise "
        "the first",
    ),
    Annotation(
        name="sidecars",
        parse=formats.names,
        default="asya-sidecar",
        description="containers that get the socket, separated by commas; names missing from a pod "
        "are ignored",
    ),
    Annotation(
        name="mode",
        parse=formats.choice("auto", "wrap", "hook", "runtime", "mount"),
        default="auto",
        description="how to start the runtime; auto selects wrap for a container with a command, "
        "otherwise hook",
    ),
    Annotation(
        name="python",
        parse=formats.python,
        default="python3",
        description="interpreter of runtime and wrapper, as a program name or an absolute path; a "
        "Python interpreter in the container's command takes precedence over the default",
    ),
    Annotation(
        name="mount-path",
        parse=formats.mount_path,
        default="/opt/asya",
        description="directory for the runtime files alone, or the path of one file ending in .py",
    ),
    Annotation(
        name="probe",
        parse=formats.boolean,
        default="true",
        description="add a readiness probe for the actor to a container without one",
    ),
    Annotation(
        name="socket-path",
        env="ASYA_SOCKET_PATH",
        parse=formats.socket_path,
        default="/tmp/sockets/app.sock",  # noqa: S108  (the specification's)
        description="path of the Unix socket, at most 107 bytes",
    ),
    Annotation(
        name="include-metadata",
        env="ASYA_INCLUDE_METADATA",
        parse=formats.boolean,
        default="false",
        description="pass the whole message to the handler, not only its payload",
    ),
    Annotation(
        name="chunk-size",
        env="ASYA_CHUNK_SIZE",
        parse=formats.integer(1, 16777216),
        default="4096",
        description="receive buffer in bytes; it grows for larger messages",
    ),
    Annotation(
        name="handler-timeout",
        env="ASYA_HANDLER_TIMEOUT",
        parse=formats.seconds(zero=True),
        default="0",
        description="seconds until a running handler call is logged as slow, without interrupting "
        "it; 0 disables the check",
    ),
    Annotation(
        name="enable-oom-detection",
        env="ASYA_ENABLE_OOM_DETECTION",
        parse=formats.boolean,
        default="true",
        description="answer memory errors as oom_error or cuda_oom_error, which can be retried; "
        "false: as processing_error",
    ),
    Annotation(
        name="cuda-cleanup-on-oom",
        env="ASYA_CUDA_CLEANUP_ON_OOM",
        parse=formats.boolean,
        default="true",
        description="empty the GPU memory caches of the loaded frameworks after a memory error",
    ),
    Annotation(
        name="concurrency",
        env="ASYA_CONCURRENCY",
        parse=formats.integer(1, 1024),
        default="1",
        description="concurrent handler calls; above 1 they run in threads, or in one event loop "
        "if the handler is async",
    ),
    Annotation(
        name="max-message-size",
        env="ASYA_MAX_MESSAGE_SIZE",
        parse=formats.integer(1, 4294967295),
        default="4294967295",
        description="maximum message size in bytes; longer messages are answered with "
        "connection_error",
    ),
    Annotation(
        name="read-timeout",
        env="ASYA_READ_TIMEOUT",
        parse=formats.seconds(zero=False),
        default="60",
        description="maximum pause within a message in seconds; idle connections stay open",
    ),
    Annotation(
        name="json",
        env="ASYA_JSON",
        parse=formats.choice("stdlib", "orjson", "auto"),
        default="stdlib",
        description="JSON library; orjson must be installed in the image; auto uses orjson if it "
        "is installed",
    ),
)

BY_NAME: Mapping[str, Annotation] = {entry.name: entry for entry in TABLE}

BY_KEY: Mapping[str, Annotation] = {entry.key: entry for entry in TABLE}

ENV: tuple[Annotation, ...] = tuple(entry for entry in TABLE if entry.env)


def build_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of the annotations of a pod, a pod template or a workload.

    Keys of others are texts. Of ours it says what JSON Schema can say: an object that it refuses is
    refused by the injector too, but not the other way round (see `formats.Form`).
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
