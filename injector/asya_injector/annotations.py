"""What a user can say: one table of annotations, and how a pod's annotations are read by it.

The table is the one place of these facts: validation, the container's environment, the chart's
values and the documentation all come from it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from asya_injector import syntax
from asya_injector.refusal import Reason, Refusal, quoted, suggestion

PREFIX = "asya.sh/"
INHERITED = PREFIX + "inherited"
INJECTED = PREFIX + "injected"
RUNTIME_HASH_LABEL = PREFIX + "runtime-hash"
WRITTEN_BY_US = frozenset({INHERITED, INJECTED})


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """One annotation `asya.sh/<name>`.

    `parse` gives the canonical text of a value or raises ValueError with what is valid.
    `default` is what holds where neither the annotation nor a chart value says anything; None
    means that it is worked out from the pod. `env` is the variable of the runtime it becomes.
    """

    name: str
    parse: syntax.Form
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
        parse=syntax.handler,
        default=None,
        description="function to serve as an actor, such as my_app.handler.predict",
    ),
    Annotation(
        name="inject",
        parse=syntax.boolean,
        default="true",
        description="false leaves the pod unchanged",
    ),
    Annotation(
        name="container",
        parse=syntax.name,
        default=None,
        description="container with the handler; default: kubectl's default container, otherwise "
        "the first",
    ),
    Annotation(
        name="sidecars",
        parse=syntax.names,
        default="asya-sidecar",
        description="containers that get the socket, separated by commas; names missing from a pod "
        "are ignored",
    ),
    Annotation(
        name="mode",
        parse=syntax.choice("auto", "wrap", "hook", "runtime", "mount"),
        default="auto",
        description="how to start the runtime; auto selects wrap for a container with a command, "
        "otherwise hook",
    ),
    Annotation(
        name="python",
        parse=syntax.python,
        default="python3",
        description="interpreter of runtime and wrapper, as a program name or an absolute path; a "
        "Python interpreter in the container's command takes precedence over the default",
    ),
    Annotation(
        name="mount-path",
        parse=syntax.mount_path,
        default="/opt/asya",
        description="directory for the runtime files alone, or the path of one file ending in .py",
    ),
    Annotation(
        name="probe",
        parse=syntax.boolean,
        default="true",
        description="add a readiness probe for the actor to a container without one",
    ),
    Annotation(
        name="socket-path",
        env="ASYA_SOCKET_PATH",
        parse=syntax.socket_path,
        default="/tmp/sockets/app.sock",  # noqa: S108  (the specification's)
        description="path of the Unix socket, at most 107 bytes",
    ),
    Annotation(
        name="include-metadata",
        env="ASYA_INCLUDE_METADATA",
        parse=syntax.boolean,
        default="false",
        description="pass the whole message to the handler, not only its payload",
    ),
    Annotation(
        name="chunk-size",
        env="ASYA_CHUNK_SIZE",
        parse=syntax.integer(1, 16777216),
        default="4096",
        description="receive buffer in bytes; it grows for larger messages",
    ),
    Annotation(
        name="handler-timeout",
        env="ASYA_HANDLER_TIMEOUT",
        parse=syntax.seconds(zero=True),
        default="0",
        description="seconds until a running handler call is logged as slow, without interrupting "
        "it; 0 disables the check",
    ),
    Annotation(
        name="enable-oom-detection",
        env="ASYA_ENABLE_OOM_DETECTION",
        parse=syntax.boolean,
        default="true",
        description="answer memory errors as oom_error or cuda_oom_error, which can be retried; "
        "false: as processing_error",
    ),
    Annotation(
        name="cuda-cleanup-on-oom",
        env="ASYA_CUDA_CLEANUP_ON_OOM",
        parse=syntax.boolean,
        default="true",
        description="empty the GPU memory caches of the loaded frameworks after a memory error",
    ),
    Annotation(
        name="concurrency",
        env="ASYA_CONCURRENCY",
        parse=syntax.integer(1, 1024),
        default="1",
        description="concurrent handler calls; above 1 they run in threads, or in one event loop "
        "if the handler is async",
    ),
    Annotation(
        name="max-message-size",
        env="ASYA_MAX_MESSAGE_SIZE",
        parse=syntax.integer(1, 4294967295),
        default="4294967295",
        description="maximum message size in bytes; longer messages are answered with "
        "connection_error",
    ),
    Annotation(
        name="read-timeout",
        env="ASYA_READ_TIMEOUT",
        parse=syntax.seconds(zero=False),
        default="60",
        description="maximum pause within a message in seconds; idle connections stay open",
    ),
    Annotation(
        name="json",
        env="ASYA_JSON",
        parse=syntax.choice("stdlib", "orjson", "auto"),
        default="stdlib",
        description="JSON library; orjson must be installed in the image; auto uses orjson if it "
        "is installed",
    ),
)
BY_NAME: Mapping[str, Annotation] = {entry.name: entry for entry in TABLE}
BY_KEY: Mapping[str, Annotation] = {entry.key: entry for entry in TABLE}
ENV: tuple[Annotation, ...] = tuple(entry for entry in TABLE if entry.env)


def schema() -> dict[str, Any]:
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


def own(annotations: Mapping[str, str]) -> dict[str, str]:
    """The `asya.sh/` annotations that a user wrote on this object."""
    return {
        key: value
        for key, value in annotations.items()
        if key.startswith(PREFIX) and key not in WRITTEN_BY_US
    }


def merged(annotations: Mapping[str, str]) -> dict[str, str]:
    """What a pod is asked for: what its workload handed down, under what it says itself."""
    return inherited(annotations) | own(annotations)


def inherited(annotations: Mapping[str, str]) -> dict[str, str]:
    """What the workload handed down in `asya.sh/inherited`."""
    text = annotations.get(INHERITED)
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict) or not all(isinstance(word, str) for word in value.values()):
        raise Refusal(
            INHERITED,
            "is not what the injector wrote",
            fix="remove it; it follows the annotations of the workload",
            reason=Reason.ANNOTATION_INVALID,
        )
    return own(value)


def is_switched_off(asked: Mapping[str, str]) -> bool:
    """Whether `asya.sh/inject` says no; a word that is neither yes nor no is refused."""
    return checked("inject", asked.get(PREFIX + "inject", "true")) == "false"


def checked(name: str, value: str) -> str:
    """The canonical text of an annotation's value; raises Refusal."""
    entry = BY_NAME[name]
    try:
        return entry.parse(value)
    except ValueError as error:
        raise Refusal(
            entry.key,
            f"{quoted(value)} is not valid",
            fix=f"must be {error}",
            reason=Reason.ANNOTATION_INVALID,
        ) from None


def values(asked: Mapping[str, str]) -> dict[str, str]:
    """Names and canonical values of what a pod is asked for.

    Raises Refusal for a key that the table does not hold, a value that is not valid, and for
    annotations that ask for something without naming a handler.
    """
    for key in asked:
        if key not in BY_KEY:
            shown = key if re.fullmatch(r"asya\.sh/[A-Za-z0-9._-]{1,63}", key) else quoted(key)
            raise Refusal(
                shown,
                "unknown annotation",
                fix=suggestion(key, BY_KEY, fallback=f"known are {', '.join(BY_KEY)}"),
                reason=Reason.ANNOTATION_UNKNOWN,
            )
    if PREFIX + "handler" not in asked:
        raise Refusal(
            PREFIX + "handler",
            f"is missing beside {', '.join(sorted(asked))}",
            fix="add it, as module.path.function, or remove the others",
            reason=Reason.HANDLER_MISSING,
        )
    return {BY_KEY[key].name: checked(BY_KEY[key].name, value) for key, value in asked.items()}
