"""The table of annotations: the one place of their names, formats, defaults and descriptions.

Validation, the container's environment, the chart's values and the documentation follow it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from asya_injector.annotations import formats
from asya_injector.annotations.variables import variables

PREFIX = "asya.sh/"
INHERITED = PREFIX + "inherited"
INJECTED = PREFIX + "injected"
INTERNAL = frozenset({INHERITED, INJECTED})


@dataclass(frozen=True)
class Annotation:
    """The annotation `asya.sh/<name>`.

    parse: the format of its values.
    default: the value where neither the annotation nor a chart value sets one; None: the injector
        chooses by the pod.
    env: the variable of the runtime that it sets, if any.
    deprecated: what to use instead, and the version that removes it; users get it as a warning.
    """

    name: str
    parse: formats.Format
    default: str | None
    description: str
    env: str | None = None
    deprecated: str | None = None

    @property
    def key(self) -> str:
        """The annotation's full key."""
        return PREFIX + self.name


def _runtime_setting(
    name: str, parse: formats.Format, default: str | None, description: str
) -> Annotation:
    """An annotation that sets the runtime's variable of the same name."""
    return Annotation(name, parse, default, description, f"ASYA_{name.upper().replace('-', '_')}")


TABLE = (
    _runtime_setting("handler", formats.handler, None,
        "function to serve as an actor, such as my_app.handler.predict"),
    Annotation("inject", formats.boolean, "true",
        "false leaves the pod unchanged"),
    Annotation("container", formats.name, None,
        "container with the handler; default: kubectl's default container, otherwise the first"),
    Annotation("sidecars", formats.names, "asya-sidecar",
        "containers that get the socket, separated by commas; names in the annotation must "
        "exist in the pod, names in the cluster defaults may be missing"),
    Annotation("mode", formats.choice("auto", "wrap", "hook", "runtime", "mount"), "auto",
        "how to start the runtime; auto selects hook for a container without a command or with a "
        "program that must be process 1, otherwise wrap"),
    Annotation("python", formats.python, "python3",
        "interpreter of runtime and wrapper, as a program name or an absolute path; a Python "
        "interpreter in the container's command takes precedence over the default"),
    Annotation("mount-path", formats.mount_path, "/opt/asya",
        "dedicated directory for the runtime files; or the path of a file asya_*.py, where the "
        "runtime is then mounted too"),
    Annotation("probe", formats.boolean, "true",
        "add a readiness probe for the actor to a container without one"),
    Annotation("sidecar", formats.boolean, None,
        "add the sidecar of the cluster defaults to the pod; default: true if there is one and "
        "`asya.sh/sidecars` names no container of the pod"),
    Annotation("sidecar-env", variables, None,
        'variables of that sidecar, such as A=1, B="a,b"; the values are literal text'),
    # The default is the specification's.
    _runtime_setting("socket-path", formats.socket_path, "/tmp/sockets/app.sock",  # noqa: S108
        "path of the Unix socket, at most 107 bytes, in a dedicated directory"),
    _runtime_setting("include-metadata", formats.boolean, "false",
        "pass all fields of the message to the handler, not only `payload`"),
    _runtime_setting("chunk-size", formats.integer(1, 16777216), "4096",
        "receive buffer in bytes; it grows for larger messages"),
    _runtime_setting("handler-timeout", formats.seconds(zero=True), "0",
        "seconds until a running handler call is logged as slow, without interrupting it; 0 "
        "disables the check"),
    _runtime_setting("enable-oom-detection", formats.boolean, "true",
        "answer memory errors as oom_error or cuda_oom_error, which can be retried; false: as "
        "processing_error"),
    _runtime_setting("cuda-cleanup-on-oom", formats.boolean, "true",
        "empty the GPU memory caches of PyTorch and CuPy after a memory error"),
    _runtime_setting("concurrency", formats.integer(1, 1024), "1",
        "concurrent handler calls; above 1 they run in threads, or in one event loop if the "
        "handler is async"),
    _runtime_setting("max-message-size", formats.integer(1, 4294967295), "4294967295",
        "maximum message size in bytes; longer messages are answered with connection_error"),
    _runtime_setting("read-timeout", formats.seconds(zero=False), "60",
        "maximum pause within a message in seconds; idle connections may wait longer"),
    _runtime_setting("json", formats.choice("stdlib", "orjson", "auto"), "auto",
        "JSON library; auto uses orjson if the image has version 3.9.15 or newer, otherwise the "
        "standard library"),
    _runtime_setting("batch-size", formats.integer(1, 1024), "1",
        "maximum messages in one handler call; above 1 the handler takes a list of messages and "
        "returns a list of results"),
    _runtime_setting("batch-wait", formats.seconds(zero=True), "0",
        "seconds that the first message of a batch waits for more; 0 takes what has arrived"),
    _runtime_setting("handler-deadline", formats.seconds(zero=True), "0",
        "seconds after which a handler call is answered with an error that can be retried; the "
        "runtime then restarts, unless the call can be cancelled; 0 disables the deadline"),
    _runtime_setting("memory-limit", formats.memory_limit, "0",
        "memory in bytes, or as a percentage of the container's limit such as 90%, from which a "
        "handler call gets a memory error instead of being killed; requires the standard "
        "library's JSON; 0 disables the limit"),
    _runtime_setting("metrics-port", formats.integer(0, 65535), "0",
        "port of the actor's Prometheus metrics, declared as the container port asya-metrics; 0 "
        "disables them"),
)  # fmt: skip
BY_NAME: Mapping[str, Annotation] = {entry.name: entry for entry in TABLE}
BY_KEY: Mapping[str, Annotation] = {entry.key: entry for entry in TABLE}
ENV = tuple(entry for entry in TABLE if entry.env)


def build_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) for the annotations of a pod, a pod template or a workload.

    What it rejects, the injector rejects too, but not the other way round (see `formats.Format`).
    """
    known = {
        entry.key: {
            "type": "string",
            "description": entry.description,
            **({} if entry.default is None else {"default": entry.default}),
            **({"deprecated": True} if entry.deprecated else {}),
            **entry.parse.schema,
        }
        for entry in TABLE
    }
    written = {key: {"type": "string", "readOnly": True} for key in sorted(INTERNAL)}
    others = {"not": {"pattern": f"^{re.escape(PREFIX)}"}}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": known | written,
        "propertyNames": {"anyOf": [{"enum": [*known, *written]}, others]},
        "additionalProperties": {"type": "string"},
    }
