"""What the injector puts into a pod, piece by piece: how each looks, and how it is taken out.

A piece has a name that holds all of it that a person could have written differently, so a piece
that somebody changed is not taken for ours any more. The mark of an injection lists the names of
what it added; only what is listed there and still looks like it is ever taken out.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from asya_injector.annotations.table import ENV, INJECTED
from asya_injector.kube_objects import (
    Object,
    all_containers,
    get_items,
    get_mapping,
    get_name,
    get_string,
    get_strings,
    set_or_remove,
    shallow_copy,
)
from asya_injector.runtime_files import ENTRYPOINT_FILE, RUNTIME_HASH_LABEL, RUNTIME_VOLUME

SOCKET_VOLUME = "asya-socket"
# Only the containers that mount our emptyDir can reach the socket in it, whatever their user ids.
SHARED_SOCKET_MODE = {"name": "ASYA_SOCKET_MODE", "value": "0666"}
HOOKS = {"postStart": "--detach", "preStop": "--stop"}
_VARIABLES = frozenset({*(entry.env for entry in ENV), SHARED_SOCKET_MODE["name"]})


def list_owned(container: Object, *, program: bool = False) -> list[str]:
    """Names of the pieces in a container that have the form of ours.

    program: whether the command may be the runtime itself (mode runtime).
    """
    found = [_variable(item) for item in get_items(container, "env")]
    found += [_mount(item) for item in get_items(container, "volumeMounts")]
    if any(is_wrapped(get_strings(container, field)) for field in ("command", "args")):
        found.append("wrapper")
    elif program and _is_runtime(get_strings(container, "command")):
        found.append("command")
    for hook in HOOKS:
        if is_wrapped(get_hook_command(container, hook)):
            found.append(hook)
    if is_runtime_probe(get_mapping(container, "readinessProbe")):
        found.append("readinessProbe")
    return [name for name in found if name]


def remove_owned(container: Object, pieces: Collection[str]) -> None:
    """Remove those of our pieces from a container; a field that has nothing left goes with them."""
    present = set(list_owned(container, program=True)).intersection(pieces)
    if not present:
        return
    for field, name_piece in (("env", _variable), ("volumeMounts", _mount)):
        kept = [item for item in get_items(container, field) if name_piece(item) not in present]
        set_or_remove(container, field, kept)
    if "wrapper" in present:
        for field in ("command", "args"):
            set_or_remove(container, field, unwrap(get_strings(container, field)))
    if "command" in present:
        del container["command"]
    if "readinessProbe" in present:
        del container["readinessProbe"]
    lifecycle = dict(get_mapping(container, "lifecycle"))
    for hook in present.intersection(HOOKS):
        theirs = unwrap(get_hook_command(container, hook))
        set_or_remove(
            lifecycle, hook, theirs and replace_hook_command(get_mapping(lifecycle, hook), theirs)
        )
    set_or_remove(container, "lifecycle", lifecycle)


def is_wrapped(command: list[str]) -> bool:
    """Whether our wrapper stands anywhere in a command: another webhook may have wrapped it."""
    return _span(command) is not None


def unwrap(command: list[str]) -> list[str]:
    """A command without our wrapper."""
    return replace_wrapper(command, [])


def replace_wrapper(command: list[str], wrapper: list[str]) -> list[str]:
    """A command with this wrapper in the place of the one that it has; itself where it has none."""
    span = _span(command)
    return command if span is None else [*command[: span[0]], *wrapper, *command[span[1] :]]


def is_runtime_probe(probe: Object) -> bool:
    """Whether a readiness probe asks the runtime."""
    command = get_strings(get_mapping(probe, "exec"), "command")
    return len(command) == 5 and command[1:3] == ["-I", "-S"] and command[4] == "--ready"


def get_hook_command(container: Object, hook: str) -> list[str]:
    """The command of a lifecycle hook; empty where there is none."""
    return get_strings(get_mapping(container, "lifecycle", hook, "exec"), "command")


def replace_hook_command(hook: Object, command: list[str]) -> Object:
    """A lifecycle hook with another command, and whatever else stands in it."""
    return {**hook, "exec": {**get_mapping(hook, "exec"), "command": command}}


def is_runtime_volume(volume: Object) -> bool:
    """Whether a volume is a copy of the runtime that the injector wrote, of any release."""
    source = get_mapping(volume, "configMap")
    is_copy = re.fullmatch(RUNTIME_VOLUME + r"-[0-9a-f]{10}", get_string(source, "name"))
    return get_name(volume) == RUNTIME_VOLUME and bool(is_copy) and not source.get("items")


def is_socket_volume(volume: Object) -> bool:
    """Whether a volume is fit for the socket under the name that we would give it."""
    return get_name(volume) == SOCKET_VOLUME and volume.get("emptyDir") is not None


def list_owned_volumes(pod: Object) -> list[str]:
    """Names of the pod's volumes that have the form of ours."""
    return [
        get_name(volume)
        for volume in get_items(get_mapping(pod, "spec"), "volumes")
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
    if get_name(item) not in _VARIABLES or item.get("valueFrom") is not None:
        return ""
    return f"env {get_name(item)}={get_string(item, 'value')}"


def _mount(item: Object) -> str:
    if "subPathExpr" in item:
        return ""
    return f"mount {get_name(item)}:{get_string(item, 'mountPath')}"


# MERGED The mark of an injection, `asya.sh/injected`: what was done, so that it can be undone.
#
# It is never trusted: a forged one can at most make the injector take out pieces that look exactly
# like its own, and put them in again.
#

OwnedByContainer = Mapping[str, Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class InjectionRecord:
    """What was done to a pod.

    asked: digest of the wishes that it came from. added: names of pieces by container; volumes:
    names of the volumes that were added.
    """

    container: str
    mode: str
    runtime: str
    asked: str
    added: OwnedByContainer
    volumes: Sequence[str]

    @property
    def text(self) -> str:
        """The annotation's value."""
        return json.dumps(vars(self), separators=(",", ":"))

    @classmethod
    def read(cls, annotations: Mapping[str, str]) -> InjectionRecord | None:
        """The mark that a pod carries; None where there is none, or it is not one of ours."""
        try:
            found = json.loads(annotations.get(INJECTED, ""))
            mark = cls(**found)
        except (ValueError, TypeError, RecursionError):
            return None
        return mark if mark._is_sound() else None

    def _is_sound(self) -> bool:
        strings = (self.container, self.mode, self.runtime, self.asked)
        if not all(isinstance(each, str) for each in strings) or not isinstance(self.added, dict):
            return False
        return all(
            isinstance(each, list) and all(isinstance(name, str) for name in each)
            for each in (self.volumes, *self.added.values())
        )


def list_owned_by_container(
    pod: Object, names: Collection[str], model: str
) -> dict[str, list[str]]:
    """The names of all pieces that have the form of ours in the containers of these names.

    model: name of the one that may be the runtime itself.
    """
    return {
        get_name(container): list_owned(container, program=get_name(container) == model)
        for container in all_containers(pod)
        if get_name(container) in names
    }


def remove_injection(pod: Object, mark: InjectionRecord) -> Object:
    """The pod without the pieces that its mark lists, and without the mark; the one given stays."""
    pod = shallow_copy(pod)
    spec = pod["spec"]
    for container in all_containers(pod):
        remove_owned(container, mark.added.get(get_name(container), ()))
    gone = set(mark.volumes).intersection(list_owned_volumes(pod))
    if gone:
        kept = [item for item in get_items(spec, "volumes") if get_name(item) not in gone]
        set_or_remove(spec, "volumes", kept)
    return remove_key(remove_key(pod, "annotations", INJECTED), "labels", RUNTIME_HASH_LABEL)


def remove_key(node: Object, field: str, key: str) -> Object:
    """An object without one of its annotations or labels; itself where it has not got it."""
    present = get_mapping(node, "metadata", field)
    if key not in present:
        return node
    metadata = dict(get_mapping(node, "metadata"))
    set_or_remove(metadata, field, {name: value for name, value in present.items() if name != key})
    return {**node, "metadata": metadata}
