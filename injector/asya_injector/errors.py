"""The errors that reject an object: one line, and a reason code to look up."""

import difflib
import json
from collections.abc import Collection, Iterable
from enum import StrEnum
from itertools import islice

_MAX_PLAIN = 500


class Reason(StrEnum):
    """The reason codes; each has a section in the troubleshooting page."""

    ANNOTATION_INVALID = "AnnotationInvalid"
    ANNOTATION_MISSING = "AnnotationMissing"
    ANNOTATION_UNKNOWN = "AnnotationUnknown"
    COMMAND_CONFLICT = "CommandConflict"
    COMMAND_MISSING = "CommandMissing"
    CONTAINER_NOT_FOUND = "ContainerNotFound"
    ENV_CONFLICT = "EnvConflict"
    HANDLER_MISSING = "HandlerMissing"
    HOOK_CONFLICT = "HookConflict"
    HOOK_UNSUPPORTED = "HookUnsupported"
    INTERNAL_ERROR = "InternalError"
    KUBERNETES_UNSUPPORTED = "KubernetesUnsupported"
    MOUNT_CONFLICT = "MountConflict"
    MOUNT_PATH_UNSUPPORTED = "MountPathUnsupported"
    OBJECT_INVALID = "ObjectInvalid"
    PORT_CONFLICT = "PortConflict"
    REVIEW_TOO_LARGE = "ReviewTooLarge"
    RUNTIME_CONFIGMAP_CONFLICT = "RuntimeConfigMapConflict"
    RUNTIME_CONFIGMAP_UNAVAILABLE = "RuntimeConfigMapUnavailable"
    SIDECAR_ENV_CONFLICT = "SidecarEnvConflict"
    SIDECAR_NAME_CONFLICT = "SidecarNameConflict"
    SIDECAR_NOT_FOUND = "SidecarNotFound"
    SIDECAR_PORT_CONFLICT = "SidecarPortConflict"
    SIDECAR_RESTART_POLICY = "SidecarRestartPolicy"
    SIDECAR_UNDEFINED = "SidecarUndefined"
    SIDECAR_VOLUME_CONFLICT = "SidecarVolumeConflict"
    VOLUME_CONFLICT = "VolumeConflict"
    WINDOWS_UNSUPPORTED = "WindowsUnsupported"


class InjectionError(Exception):
    """An object is rejected: `where: what is wrong; how to fix it (ReasonCode)`.

    `where` is an annotation or a field. Pass text of the user's through `quote`, so that it can
    forge neither a log line nor a terminal sequence.
    """

    def __init__(self, where: str, what: str, *, fix: str, reason: Reason) -> None:
        super().__init__(f"{where}: {what}; {fix} ({reason})")
        self.reason = reason


def quote(text: object) -> str:
    """The text as a JSON string in ASCII, cut to 100 characters; the type of other values."""
    shown = text if isinstance(text, str) else type(text).__name__
    shown = json.dumps(shown if len(shown) <= 100 else shown[:97] + "...")
    return shown.replace("\x7f", "\\u007f")  # JSON allows it; terminals obey it


def show(text: str) -> str:
    """The text itself if it is short, printable ASCII, else quoted."""
    is_plain = len(text) <= _MAX_PLAIN and text.isascii() and text.isprintable()
    return text if is_plain else quote(text)


def join(texts: Collection[str]) -> str:
    """The first ten texts, quoted, and the number of the others."""
    shown = ", ".join(map(quote, islice(texts, 10)))
    return f"{shown} and {len(texts) - 10} more" if len(texts) > 10 else shown


def suggest(wrong: str, known: Iterable[str], *, fallback: str, prefix: str = "") -> str:
    """`did you mean "x"?` with the nearest of the first 100 known names, or the fallback.

    prefix: what all names begin with; the rest is compared, because a common beginning makes any
    two names similar.
    """
    rests = [name.removeprefix(prefix) for name in islice(known, 100)]
    near = difflib.get_close_matches(wrong.removeprefix(prefix)[:100], rests, n=1)
    return f"did you mean {quote(prefix + near[0])}?" if near else fallback
