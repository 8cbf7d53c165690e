"""What the injector adds to a pod, how it recognises it, and the record of an injection.

An addition has an identifier with its whole content, so one that somebody has edited no longer
counts as the injector's. The record lists the additions; it is not trusted: an addition is removed
only if the record lists it and the pod still has it in this form.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from asya_injector.annotations.table import ENV, INJECTED
from asya_injector.kube_objects import (
    Object,
    all_containers,
    get_items,
    get_mapping,
    get_name,
    get_string,
    get_strings,
)
from asya_injector.mutation.runtime_volume import is_runtime_volume
from asya_injector.mutation.sidecar_additions import is_well_formed
from asya_injector.runtime_files import RUNTIME_VOLUME, SOCKET_VOLUME
from asya_injector.startup.hooks import HOOKS, get_hook_command
from asya_injector.startup.probe import is_added_probe
from asya_injector.startup.wrapper import has_wrapper, is_wrapped

SOCKET_SOURCE = {"medium": "Memory", "sizeLimit": "1Mi"}
# Only containers that mount the injector's emptyDir can reach the socket, whatever their user ids.
SHARED_SOCKET_MODE = {"name": "ASYA_SOCKET_MODE", "value": "0666"}
METRICS_PORT = "asya-metrics"
_CONTAINER_FIELDS = (
    "env", "volumeMounts", "ports", "command", "args", "lifecycle", "readinessProbe",
)  # fmt: skip
_LISTS = ("env", "volumeMounts", "ports")
_VARIABLES = frozenset({*(entry.env for entry in ENV), SHARED_SOCKET_MODE["name"]})

_encode = json.JSONEncoder(separators=(",", ":")).encode

# Identifiers of additions, by container.
Additions = Mapping[str, Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class InjectionRecord:
    """The annotation `asya.sh/injected`: what was done to a pod.

    asked: digest of the settings. volumes: names of the added volumes. python: the interpreter that
    the target's command started; empty if it started none. empty: fields that were there without
    content, by path, each with its empty value. sidecar: see `sidecar_additions`; empty if none was
    added.
    """

    container: str
    mode: str
    runtime: str
    asked: str
    added: Additions
    volumes: Sequence[str]
    python: str = ""
    empty: Mapping[str, Any] = field(default_factory=dict)
    sidecar: Object = field(default_factory=dict)

    @classmethod
    def parse(cls, annotations: Mapping[str, str]) -> Self | None:
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
        optional = ("empty", "sidecar")
        fields = {key: value for key, value in vars(self).items() if key not in optional or value}
        return _encode(fields)

    def _is_well_formed(self) -> bool:
        strings = (self.container, self.mode, self.runtime, self.asked, self.python)
        mappings = (self.added, self.empty, self.sidecar)
        if not all(isinstance(each, str) for each in strings) or not all(
            isinstance(each, dict) for each in mappings
        ):
            return False
        return is_well_formed(self.sidecar) and all(
            isinstance(each, list) and all(isinstance(name, str) for name in each)
            for each in (self.volumes, *self.added.values())
        )


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
    found += [identify_mount(item) for item in get_items(container, "volumeMounts")]
    found += [identify_port(item) for item in get_items(container, "ports")]
    if has_wrapper(container):
        found.append("wrapper")
    elif is_target:
        found.append(identify_command(get_strings(container, "command")))
    if "lifecycle" in container:
        found += [hook for hook in HOOKS if is_wrapped(get_hook_command(container, hook))]
    if "readinessProbe" in container and is_added_probe(get_mapping(container, "readinessProbe")):
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


def identify_mount(item: Object) -> str:
    """The identifier of a mount; empty if it cannot be an addition."""
    if "subPathExpr" in item:
        return ""
    return f"mount {get_name(item)}:{get_string(item, 'mountPath')}"


def identify_port(item: Object) -> str:
    """The identifier of a port; empty if it cannot be an addition."""
    return f"port {METRICS_PORT}:{item['containerPort']}" if is_metrics_port(item) else ""


def is_metrics_port(item: Object) -> bool:
    """Whether a port has the form of the port of the metrics."""
    number = item.get("containerPort")
    rest = item.keys() - {"name", "containerPort", "protocol"}
    is_tcp = item.get("protocol") in (None, "TCP")
    return get_name(item) == METRICS_PORT and type(number) is int and is_tcp and not rest


def identify_command(command: list[str]) -> str:
    """The identifier of a command; empty if it cannot be an addition."""
    is_runtime = len(command) == 2 and command[1].startswith("/") and command[1].endswith(".py")
    return f"command {' '.join(command)}" if is_runtime else ""


def is_socket_volume(volume: Object) -> bool:
    """Whether a volume has the name of the socket volume and can hold the socket."""
    return get_name(volume) == SOCKET_VOLUME and volume.get("emptyDir") is not None


def _iter_fields(pod: Object) -> Iterator[tuple[str, Object, str]]:
    """The fields that an injection can fill: the path to a mapping, the mapping, and its key."""
    yield "", pod, "metadata"
    metadata, spec = get_mapping(pod, "metadata"), get_mapping(pod, "spec")
    for name in ("annotations", "labels"):
        yield "metadata/", metadata, name
    for name in ("volumes", "initContainers", "imagePullSecrets"):
        yield "spec/", spec, name
    for container in all_containers(pod):
        place = get_name(container) + "/"
        for name in _CONTAINER_FIELDS:
            yield place, container, name
        lifecycle = get_mapping(container, "lifecycle")
        for name in HOOKS if lifecycle else ():
            yield place + "lifecycle/", lifecycle, name
