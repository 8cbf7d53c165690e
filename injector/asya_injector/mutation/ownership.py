"""What the injector adds to a pod, how it recognises it, and the record of an injection.

An addition has an identifier with its whole content, so one that somebody has edited no longer
counts as the injector's. The record lists the additions; it is not trusted: an addition is removed
only if the record lists it and the pod still has it in this form.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

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
from asya_injector.runtime_files import (
    ENTRYPOINT_FILE,
    RUNTIME_HASH_LABEL,
    RUNTIME_VOLUME,
    is_runtime_configmap_name,
)

SOCKET_VOLUME = "asya-socket"
SOCKET_SOURCE = {"medium": "Memory", "sizeLimit": "1Mi"}
# A probe starts an interpreter, which can take seconds on a busy node.
PROBE_TIMES = {"periodSeconds": 5, "timeoutSeconds": 10}
# What the API server adds to a probe.
_PROBE_DEFAULTS = {"failureThreshold": 3, "successThreshold": 1}
# Only containers that mount the injector's emptyDir can reach the socket, whatever their user ids.
SHARED_SOCKET_MODE = {"name": "ASYA_SOCKET_MODE", "value": "0666"}
HOOKS = {"postStart": "--detach", "preStop": "--stop"}
_CONTAINER_FIELDS = ("env", "volumeMounts", "command", "args", "lifecycle", "readinessProbe")
_LISTS = ("env", "volumeMounts")
_VARIABLES = frozenset({*(entry.env for entry in ENV), SHARED_SOCKET_MODE["name"]})

# The words after the interpreter in the command of `build_sleep`.
_SLEEP = re.compile(r"-I\n-S\n-c\nimport time; time\.sleep\(([0-9]{1,9})\)  # lifecycle sleep")

# Where the wrapper may begin at most.
_MAX_WRAPPER = 1000

_encode = json.JSONEncoder(separators=(",", ":")).encode

# Identifiers of additions, by container.
Additions = Mapping[str, Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class InjectionRecord:
    """The annotation `asya.sh/injected`: what was done to a pod.

    asked: digest of the settings. volumes: names of the added volumes. python: the interpreter that
    the target's command started; empty if it started none. empty: fields that were there without
    content, by path, each with its empty value.
    """

    container: str
    mode: str
    runtime: str
    asked: str
    added: Additions
    volumes: Sequence[str]
    python: str = ""
    empty: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, annotations: Mapping[str, str]) -> InjectionRecord | None:
        """The record in a pod's annotations; None if there is none or it is malformed."""
        text = annotations.get(INJECTED)
        if not text:
            return None
        try:
            record = cls(**json.loads(text))
        except (ValueError, TypeError, RecursionError):
            return None
        return record if record._is_well_formed() else None

    def serialize(self) -> str:
        """The annotation's value."""
        fields = {key: value for key, value in vars(self).items() if key != "empty" or value}
        return _encode(fields)

    def _is_well_formed(self) -> bool:
        strings = (self.container, self.mode, self.runtime, self.asked, self.python)
        mappings = (self.added, self.empty)
        if not all(isinstance(each, str) for each in strings) or not all(
            isinstance(each, dict) for each in mappings
        ):
            return False
        return all(
            isinstance(each, list) and all(isinstance(name, str) for name in each)
            for each in (self.volumes, *self.added.values())
        )


def remove_injection(pod: Object, record: InjectionRecord) -> Object:
    """A copy of the pod without the additions that the record lists, and without the record."""
    pod = shallow_copy(pod)
    for container in all_containers(pod):
        _remove_additions(container, record.added.get(get_name(container), ()))
    removed = set(record.volumes).intersection(find_added_volumes(pod))
    if removed:
        spec = pod["spec"]
        kept = [item for item in get_items(spec, "volumes") if get_name(item) not in removed]
        set_or_remove(spec, "volumes", kept)
    return remove_key(remove_key(pod, "annotations", INJECTED), "labels", RUNTIME_HASH_LABEL)


def remove_key(node: Object, field: str, key: str) -> Object:
    """A copy of an object without one annotation or label; the object itself if it has none."""
    present = get_mapping(node, "metadata", field)
    if key not in present:
        return node
    metadata = dict(get_mapping(node, "metadata"))
    set_or_remove(metadata, field, {name: value for name, value in present.items() if name != key})
    node = dict(node)
    set_or_remove(node, "metadata", metadata)
    return node


def find_empty_fields(before: Object, after: Object) -> dict[str, Any]:
    """The fields of a pod that were there without content, by path, and have content now."""
    empty = {
        place + name: node[name]
        for place, node, name in _iter_fields(before)
        if name in node and not node[name]
    }
    if not empty:
        return {}
    filled = {place + name for place, node, name in _iter_fields(after) if node.get(name)}
    return {path: value for path, value in empty.items() if path in filled}


def restore_empty_fields(pod: Object, empty: Mapping[str, Any]) -> Object:
    """Give a copy of a pod back its fields without content."""
    for path in sorted(empty, key=len):  # outer fields first
        value = empty[path]
        if value or not isinstance(value, (dict, list, str, type(None))):
            continue
        if path.startswith("metadata/"):
            pod = {**pod, "metadata": dict(get_mapping(pod, "metadata"))}
        for place, node, name in _iter_fields(pod):
            if place + name == path and name not in node:
                node[name] = value
    return pod


def select_difference(container: Object, other: Object) -> Object:
    """The fields and list items of a container that another copy of it does not share."""
    found = {}
    for name, value in container.items():
        present = other.get(name)
        if value is present:
            continue
        found[name] = value
        if isinstance(value, list) and isinstance(present, list) and name in _LISTS:
            shared = set(map(id, present))
            found[name] = [item for item in value if id(item) not in shared]
    return found


def find_additions(container: Object, *, is_target: bool) -> list[str]:
    """The identifiers of all fields in a container that have the form of an addition.

    is_target: the command may be the runtime itself (mode runtime).
    """
    found = [identify_variable(item) for item in get_items(container, "env")]
    found += [_identify_mount(item) for item in get_items(container, "volumeMounts")]
    if has_wrapper(container):
        found.append("wrapper")
    elif is_target:
        found.append(identify_command(get_strings(container, "command")))
    if "lifecycle" in container:
        found += [hook for hook in HOOKS if is_wrapped(get_hook_command(container, hook))]
    if "readinessProbe" in container and _is_added_probe(get_mapping(container, "readinessProbe")):
        found.append("readinessProbe")
    return [identifier for identifier in found if identifier]


def find_added_volumes(pod: Object) -> list[str]:
    """The names of all volumes that have the form of an addition."""
    return [
        get_name(volume)
        for volume in get_items(get_mapping(pod, "spec"), "volumes")
        if get_name(volume) in (RUNTIME_VOLUME, SOCKET_VOLUME)
        and (
            is_runtime_volume(volume)
            or (is_socket_volume(volume) and volume["emptyDir"] == SOCKET_SOURCE)
        )
    ]


def identify_variable(item: Object) -> str:
    """The identifier of a variable; empty if it cannot be an addition."""
    if get_name(item) not in _VARIABLES or item.get("valueFrom") is not None:
        return ""
    return f"env {get_name(item)}={get_string(item, 'value')}"


def identify_command(command: list[str]) -> str:
    """The identifier of a command; empty if it cannot be an addition."""
    is_runtime = len(command) == 2 and command[1].startswith("/") and command[1].endswith(".py")
    return f"command {' '.join(command)}" if is_runtime else ""


def is_runtime_volume(volume: Object) -> bool:
    """Whether a volume holds the runtime files of any release."""
    if get_name(volume) != RUNTIME_VOLUME:
        return False
    source = get_mapping(volume, "configMap")
    return is_runtime_configmap_name(get_string(source, "name")) and not source.get("items")


def is_socket_volume(volume: Object) -> bool:
    """Whether a volume has the name of the socket volume and can hold the socket."""
    return get_name(volume) == SOCKET_VOLUME and volume.get("emptyDir") is not None


def is_runtime_probe(probe: Object) -> bool:
    """Whether a readiness probe calls the runtime."""
    command = get_strings(get_mapping(probe, "exec"), "command")
    return len(command) == 5 and command[1:3] == ["-I", "-S"] and command[4] == "--ready"


def get_hook_command(container: Object, hook: str) -> list[str]:
    """The command of a lifecycle hook; empty where there is none."""
    return get_strings(get_mapping(container, "lifecycle", hook, "exec"), "command")


def replace_hook_command(hook: Object, command: list[str]) -> Object:
    """A copy of a lifecycle hook with another command, in place of a `sleep` if it has one."""
    is_sleep = hook.get("exec") is None
    kept = {key: value for key, value in hook.items() if key != "sleep" or not is_sleep}
    return {**kept, "exec": {**get_mapping(hook, "exec"), "command": command}}


def build_sleep(python: str, hook: Object) -> list[str]:
    """The command of a lifecycle hook that only sleeps; empty if it does something else."""
    seconds = get_mapping(hook, "sleep").get("seconds")
    if hook.get("exec") is not None or type(seconds) is not int or not 0 <= seconds < 10**9:
        return []
    return [python, "-I", "-S", "-c", f"import time; time.sleep({seconds})  # lifecycle sleep"]


def _restore_hook(hook: Object) -> Object | None:
    """The lifecycle hook that was there before the injection; None if there was none."""
    own = unwrap(get_strings(get_mapping(hook, "exec"), "command"))
    if not own:
        return None
    seconds = _SLEEP.fullmatch("\n".join(own[1:]))
    if not seconds:
        return replace_hook_command(hook, own)
    kept = {key: value for key, value in hook.items() if key != "exec"}
    return {**kept, "sleep": {"seconds": int(seconds[1])}}


def has_wrapper(container: Object) -> bool:
    """Whether the wrapper starts in the command or in the args of a container."""
    return any(is_wrapped(get_strings(container, field)) for field in ("command", "args"))


def is_wrapped(command: list[str]) -> bool:
    """Whether a command contains the wrapper, perhaps inside the wrapper of another webhook."""
    return _find_wrapper(command) is not None


def get_wrapped(command: list[str]) -> list[str]:
    """What the wrapper in a command starts; empty if the command does not contain the wrapper."""
    found = _find_wrapper(command)
    return command[found.stop :] if found else []


def shows_interpreter(container: Object, python: str) -> bool:
    """Whether the container has an addition that runs with this interpreter."""
    commands = [get_strings(container, field) for field in ("command", "args")]
    commands += [get_hook_command(container, hook) for hook in HOOKS]
    places = ((command, _find_wrapper(command)) for command in commands)
    if any(place and command[place.start] == python for command, place in places):
        return True
    probe = get_mapping(container, "readinessProbe")
    return is_runtime_probe(probe) and get_strings(probe["exec"], "command")[0] == python


def unwrap(command: list[str]) -> list[str]:
    """The command without the wrapper."""
    return replace_wrapper(command, [])


def replace_wrapper(command: list[str], wrapper: list[str]) -> list[str]:
    """The command with another wrapper in the place of the one it contains, if any."""
    found = _find_wrapper(command)
    return [*command[: found.start], *wrapper, *command[found.stop :]] if found else command


def _find_wrapper(command: list[str]) -> slice | None:
    """Where the wrapper stands with its options and `--`."""
    if "-I" not in command:
        return None
    for start in range(min(len(command) - 3, _MAX_WRAPPER)):
        if (
            command[start + 1] == "-I"
            and command[start + 2] == "-S"
            and posixpath.basename(command[start + 3][-100:]) == ENTRYPOINT_FILE
        ):
            try:
                return slice(start, command.index("--", start) + 1)
            except ValueError:
                return slice(start, len(command))
    return None


def _is_added_probe(probe: Object) -> bool:
    """Whether a probe calls the runtime, and nobody has tuned it."""
    times = {key: value for key, value in probe.items() if key != "exec"}
    return is_runtime_probe(probe) and PROBE_TIMES | _PROBE_DEFAULTS | times == (
        PROBE_TIMES | _PROBE_DEFAULTS
    )


def _iter_fields(pod: Object) -> Iterator[tuple[str, Object, str]]:
    """The fields that an injection can fill: the path to a mapping, the mapping, and its key."""
    yield "", pod, "metadata"
    metadata, spec = get_mapping(pod, "metadata"), get_mapping(pod, "spec")
    for name in ("annotations", "labels"):
        yield "metadata/", metadata, name
    yield "spec/", spec, "volumes"
    for container in all_containers(pod):
        place = get_name(container) + "/"
        for name in _CONTAINER_FIELDS:
            yield place, container, name
        lifecycle = get_mapping(container, "lifecycle")
        for name in HOOKS if lifecycle else ():
            yield place + "lifecycle/", lifecycle, name


def _identify_mount(item: Object) -> str:
    if "subPathExpr" in item:
        return ""
    return f"mount {get_name(item)}:{get_string(item, 'mountPath')}"


def _remove_additions(container: Object, listed: Collection[str]) -> None:
    """Remove the listed additions; a field that is empty then is removed too."""
    present = set(find_additions(container, is_target=True)).intersection(listed)
    if not present:
        return
    for name, identify in (("env", identify_variable), ("volumeMounts", _identify_mount)):
        items = get_items(container, name)
        kept = [item for item in items if identify(item) not in present]
        if kept != items:
            set_or_remove(container, name, kept)
    if "wrapper" in present:
        for name in ("command", "args"):
            words = get_strings(container, name)
            if is_wrapped(words):
                set_or_remove(container, name, unwrap(words))
    if identify_command(get_strings(container, "command")) in present:
        del container["command"]
    if "readinessProbe" in present:
        del container["readinessProbe"]
    if present.isdisjoint(HOOKS):
        return
    lifecycle = dict(get_mapping(container, "lifecycle"))
    for hook in present.intersection(HOOKS):
        set_or_remove(lifecycle, hook, _restore_hook(get_mapping(lifecycle, hook)))
    set_or_remove(container, "lifecycle", lifecycle)
