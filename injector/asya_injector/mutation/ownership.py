"""What the injector puts into a pod, piece by piece: how each looks, and how it is taken out.

A piece has a name that holds all of it that a person could have written differently, so a piece
that somebody changed is not taken for ours any more. The mark of an injection lists the names of
what it added; only what is listed there and still looks like it is ever taken out.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection

from asya_injector.annotations.parse import ENV
from asya_injector.annotations.settings import ENTRYPOINT_FILE, RUNTIME_VOLUME
from asya_injector.kube_objects import Object, items, mapping, name_of, put, text, words

SOCKET_VOLUME = "asya-socket"
# Only the containers that mount our emptyDir can reach the socket in it, whatever their user ids.
SHARED_SOCKET_MODE = {"name": "ASYA_SOCKET_MODE", "value": "0666"}
HOOKS = {"postStart": "--detach", "preStop": "--stop"}
_VARIABLES = frozenset({*(entry.env for entry in ENV), SHARED_SOCKET_MODE["name"]})


def in_container(container: Object, *, program: bool = False) -> list[str]:
    """Names of the pieces in a container that have the form of ours.

    program: whether the command may be the runtime itself (mode runtime).
    """
    found = [_variable(item) for item in items(container, "env")]
    found += [_mount(item) for item in items(container, "volumeMounts")]
    if any(is_wrapped(words(container, field)) for field in ("command", "args")):
        found.append("wrapper")
    elif program and _is_runtime(words(container, "command")):
        found.append("command")
    for hook in HOOKS:
        if is_wrapped(hook_command(container, hook)):
            found.append(hook)
    if is_ready_probe(mapping(container, "readinessProbe")):
        found.append("readinessProbe")
    return [name for name in found if name]


def take_out(container: Object, pieces: Collection[str]) -> None:
    """Remove those of our pieces from a container; a field that has nothing left goes with them."""
    present = set(in_container(container, program=True)).intersection(pieces)
    if not present:
        return
    for field, name_piece in (("env", _variable), ("volumeMounts", _mount)):
        kept = [item for item in items(container, field) if name_piece(item) not in present]
        put(container, field, kept)
    if "wrapper" in present:
        for field in ("command", "args"):
            put(container, field, unwrapped(words(container, field)))
    if "command" in present:
        del container["command"]
    if "readinessProbe" in present:
        del container["readinessProbe"]
    lifecycle = dict(mapping(container, "lifecycle"))
    for hook in present.intersection(HOOKS):
        theirs = unwrapped(hook_command(container, hook))
        put(lifecycle, hook, theirs and hooked(mapping(lifecycle, hook), theirs))
    put(container, "lifecycle", lifecycle)


def is_wrapped(command: list[str]) -> bool:
    """Whether our wrapper stands anywhere in a command: another webhook may have wrapped it."""
    return _span(command) is not None


def unwrapped(command: list[str]) -> list[str]:
    """A command without our wrapper."""
    return rewrapped(command, [])


def rewrapped(command: list[str], wrapper: list[str]) -> list[str]:
    """A command with this wrapper in the place of the one that it has; itself where it has none."""
    span = _span(command)
    return command if span is None else [*command[: span[0]], *wrapper, *command[span[1] :]]


def is_ready_probe(probe: Object) -> bool:
    """Whether a readiness probe asks the runtime."""
    command = words(mapping(probe, "exec"), "command")
    return len(command) == 5 and command[1:3] == ["-I", "-S"] and command[4] == "--ready"


def hook_command(container: Object, hook: str) -> list[str]:
    """The command of a lifecycle hook; empty where there is none."""
    return words(mapping(container, "lifecycle", hook, "exec"), "command")


def hooked(hook: Object, command: list[str]) -> Object:
    """A lifecycle hook with another command, and whatever else stands in it."""
    return {**hook, "exec": {**mapping(hook, "exec"), "command": command}}


def is_runtime_volume(volume: Object) -> bool:
    """Whether a volume is a copy of the runtime that the injector wrote, of any release."""
    source = mapping(volume, "configMap")
    is_copy = re.fullmatch(RUNTIME_VOLUME + r"-[0-9a-f]{10}", text(source, "name"))
    return name_of(volume) == RUNTIME_VOLUME and bool(is_copy) and not source.get("items")


def is_socket_volume(volume: Object) -> bool:
    """Whether a volume is fit for the socket under the name that we would give it."""
    return name_of(volume) == SOCKET_VOLUME and volume.get("emptyDir") is not None


def volumes(pod: Object) -> list[str]:
    """Names of the pod's volumes that have the form of ours."""
    return [
        name_of(volume)
        for volume in items(mapping(pod, "spec"), "volumes")
        if is_runtime_volume(volume) or is_socket_volume(volume)
    ]


def _span(command: list[str]) -> tuple[int, int] | None:
    """Where our wrapper and its options begin and end, the `--` included."""
    for start in range(len(command) - 3):
        if command[start + 1 : start + 3] == ["-I", "-S"] and (
            posixpath.basename(command[start + 3]) == ENTRYPOINT_FILE
        ):
            rest = command[start:]
            return start, start + (rest.index("--") + 1 if "--" in rest else len(rest))
    return None


def _is_runtime(command: list[str]) -> bool:
    return len(command) == 2 and command[1].startswith("/") and command[1].endswith(".py")


def _variable(item: Object) -> str:
    if name_of(item) not in _VARIABLES or item.get("valueFrom") is not None:
        return ""
    return f"env {name_of(item)}={text(item, 'value')}"


def _mount(item: Object) -> str:
    if "subPathExpr" in item:
        return ""
    return f"mount {name_of(item)}:{text(item, 'mountPath')}"
