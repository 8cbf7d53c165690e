"""The sidecar that the injector adds to pods: the chart's value `sidecar`, validated.

The rules are also in the chart (`_sidecar.tpl`), with the same words.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

from asya_injector.annotations.table import BY_KEY, BY_NAME, INTERNAL, PREFIX
from asya_injector.annotations.variables import VARIABLE
from asya_injector.errors import quote, suggest
from asya_injector.kube_objects import Object, get_in
from asya_injector.runtime_files import RUNTIME_VOLUME, SOCKET_VOLUME

# The variable in which the injector's process gets the value, as JSON.
SIDECAR_VARIABLE = "INJECTOR_SIDECAR"
MAX_DECLARED = 50
MAX_SIZE = 60_000  # bytes as JSON; a variable holds twice as much
_TEXT, _BOOLEAN, _MAPPING = "text", "a boolean", "a mapping"
_TEXTS, _MAPPINGS = "a list of strings", "a list of mappings"
_TYPES = {_TEXT: str, _BOOLEAN: bool, _MAPPING: dict, _TEXTS: list, _MAPPINGS: list}
_ITEM_TYPES = {_TEXTS: str, _MAPPINGS: dict}
# The fields of a container in Kubernetes 1.36, except `restartPolicy`, which `native` sets, and
# `startupProbe`.
CONTAINER_FIELDS = {
    "name": _TEXT, "image": _TEXT, "imagePullPolicy": _TEXT, "command": _TEXTS, "args": _TEXTS,
    "workingDir": _TEXT, "env": _MAPPINGS, "envFrom": _MAPPINGS, "ports": _MAPPINGS,
    "resources": _MAPPING, "resizePolicy": _MAPPINGS, "volumeMounts": _MAPPINGS,
    "volumeDevices": _MAPPINGS, "securityContext": _MAPPING, "lifecycle": _MAPPING,
    "livenessProbe": _MAPPING, "readinessProbe": _MAPPING, "terminationMessagePath": _TEXT,
    "terminationMessagePolicy": _TEXT, "stdin": _BOOLEAN, "stdinOnce": _BOOLEAN, "tty": _BOOLEAN,
}  # fmt: skip
# Annotations of the table, and other keys with this prefix, most of them labels.
_LABELS = ("injection", "runtime-hash", "runtime-sha256", "source")
RESERVED = frozenset({*BY_KEY, *INTERNAL, *(PREFIX + name for name in _LABELS)})
_FIELDS = ("container", "native", "annotations", "volumes", "imagePullSecrets")
_SOCKET_PATH = BY_NAME["socket-path"].env
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_DECLARED = re.compile(rf"{re.escape(PREFIX)}[a-z0-9]([-a-z0-9]{{0,61}}[a-z0-9])?")


class SidecarError(ValueError):
    """The value `sidecar` is invalid: `where: what is wrong; how to fix it`."""

    def __init__(self, where: str, what: str, fix: str) -> None:
        super().__init__(f"sidecar{where}: {what}; {fix}")


@dataclass(frozen=True)
class DeclaredAnnotation:
    """An annotation that sets a variable of the sidecar. required: pods must have it."""

    key: str
    env: str
    required: bool = False


@dataclass(frozen=True, kw_only=True)
class SidecarTemplate:
    """The container to add, and what pods need for it.

    declared: by key. volumes, pull_secrets: of the pod.
    """

    container: Object
    native: bool
    declared: Mapping[str, DeclaredAnnotation]
    volumes: Sequence[Object]
    pull_secrets: Sequence[str]

    @classmethod
    def parse(cls, value: Any) -> Self | None:
        """The template in the chart's value; None if that has no container.

        Raises SidecarError.
        """
        value = _normalize(value, "")
        _check_names(value, _FIELDS, "")
        fields: Object = {name: value.get(name) for name in _FIELDS}
        for name in ("container", "annotations"):
            fields[name] = _check_type(fields[name] or {}, _MAPPING, f".{name}")
        for name in ("volumes", "imagePullSecrets"):
            fields[name] = _check_type(fields[name] or [], _MAPPINGS, f".{name}")
        if not fields["container"]:
            for name in ("annotations", "volumes", "imagePullSecrets"):
                if fields[name]:
                    raise SidecarError(
                        f".{name}", "is set without sidecar.container", "set both or none"
                    )
            return None
        if len(_encode(value)) > MAX_SIZE:
            raise SidecarError("", f"has more than {MAX_SIZE} bytes as JSON", "shorten it")
        _check_container(fields["container"])
        _check_volumes(fields["volumes"], fields["container"])
        native = fields["native"]
        volumes = [
            # What the API server makes of a volume without a source.
            volume if len(volume) > 1 else {**volume, "emptyDir": {}}
            for volume in fields["volumes"]
        ]
        return cls(
            container=fields["container"],
            native=True if native is None else _check_type(native, _BOOLEAN, ".native"),
            declared=_parse_declared(fields["annotations"]),
            volumes=volumes,
            pull_secrets=[
                _check_name(item, f".imagePullSecrets[{index}]", _SUBDOMAIN)
                for index, item in enumerate(fields["imagePullSecrets"])
            ],
        )

    @property
    def name(self) -> str:
        """The container's name."""
        name: str = self.container["name"]
        return name

    @cached_property
    def digest(self) -> str:
        """Ten hex digits that differ where the template differs."""
        declared = {key: vars(each) for key, each in self.declared.items()}
        parts = {**vars(self), "declared": declared}
        parts.pop("digest", None)
        return hashlib.sha256(_encode(parts).encode()).hexdigest()[:10]


_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode


def _normalize(value: Any, where: str) -> Any:
    """The value as Helm passes it on: without null fields, whole numbers without a fraction."""
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise SidecarError(where, "has a key that is not a string", "quote it")
        return {
            key: _normalize(each, f"{where}.{key}")
            for key, each in value.items()
            if each is not None
        }
    if isinstance(value, list):
        return [_normalize(each, f"{where}[{index}]") for index, each in enumerate(value)]
    if isinstance(value, bool | str):
        return value
    if isinstance(value, int | float) and math.isfinite(value):
        return int(value) if value == int(value) else float(value)
    raise SidecarError(where, f"is {quote(value)}", "use text, a number or a boolean")


def _check_container(container: Object) -> None:
    where = ".container"
    if "startupProbe" in container:
        raise SidecarError(
            f"{where}.startupProbe",
            "would keep the model from starting, because it starts after the sidecar",
            "use a readinessProbe",
        )
    if "postStart" in get_in(container, "lifecycle"):
        raise SidecarError(
            f"{where}.lifecycle.postStart",
            "would keep the model from starting, because it starts after the sidecar",
            "do this work in the sidecar's program",
        )
    if "restartPolicy" in container:
        raise SidecarError(f"{where}.restartPolicy", "is set by sidecar.native", "remove it")
    _check_names(container, [*CONTAINER_FIELDS], where)
    _check_name(container, where)
    image = container.get("image")
    if not image or not isinstance(image, str):
        raise SidecarError(f"{where}.image", "is required", "set it to an image")
    for field, value in container.items():
        _check_type(value, CONTAINER_FIELDS[field], f"{where}.{field}")
    for variable in container.get("env", []):
        _check_variable(variable.get("name"), f"{where}.env")
        if not isinstance(variable.get("value", ""), str):
            raise SidecarError(
                f"{where}.env", f"the value of {variable['name']} is not a string", "quote it"
            )
    for port in container.get("ports", []):
        _check_port(port.get("containerPort"), f"{where}.ports", "containerPort")
        _check_port(port.get("hostPort") or 1, f"{where}.ports", "hostPort")


def _check_port(number: Any, where: str, field: str) -> None:
    if type(number) is not int or not 1 <= number <= 65535:
        raise SidecarError(where, f"has no valid {field}", "set it to a number from 1 to 65535")


def _check_volumes(volumes: Sequence[Object], container: Object) -> None:
    names: list[str] = []
    for index, volume in enumerate(volumes):
        name = _check_name(volume, f".volumes[{index}]")
        if name in (RUNTIME_VOLUME, SOCKET_VOLUME):
            raise SidecarError(
                ".volumes", f"the injector adds the volume {name}", "choose another name"
            )
        if name in names:
            raise SidecarError(
                ".volumes", f"two volumes have the name {name}", "choose another name"
            )
        names.append(name)
    for field, path in (("volumeMounts", "mountPath"), ("volumeDevices", "devicePath")):
        where = f".container.{field}"
        for mount in container.get(field, []):
            name = mount.get("name")
            if name in (RUNTIME_VOLUME, SOCKET_VOLUME):
                raise SidecarError(where, f"the injector mounts {name} where needed", "remove it")
            if name not in names:
                raise SidecarError(
                    where, f"the volume {name} does not exist", "add it to sidecar.volumes"
                )
            if not mount.get(path) or not isinstance(mount[path], str):
                raise SidecarError(where, f"a mount of {name} has no {path}", "set it to a path")


def _parse_declared(annotations: Object) -> dict[str, DeclaredAnnotation]:
    if len(annotations) > MAX_DECLARED:
        raise SidecarError(
            ".annotations", f"has more than {MAX_DECLARED} keys", "use asya.sh/sidecar-env"
        )
    declared: dict[str, DeclaredAnnotation] = {}
    for key in sorted(annotations):
        if not _DECLARED.fullmatch(key):
            raise SidecarError(
                ".annotations", f"{quote(key)} is not valid", f"must be {PREFIX}name-in-lower-case"
            )
        if key in RESERVED:
            raise SidecarError(
                ".annotations", f"{key} is a key of asya-runtime", "choose another key"
            )
        where = f".annotations.{key}"
        entry = _check_type(annotations[key], _MAPPING, where)
        _check_names(entry, ("env", "required"), where)
        env = _check_variable(entry.get("env"), f"{where}.env")
        if env == _SOCKET_PATH:
            raise SidecarError(
                ".annotations", f"the injector sets {env}", "choose another variable"
            )
        for other in declared.values():
            if env == other.env:
                raise SidecarError(
                    ".annotations", f"{other.key} and {key} set {env}", "choose another variable"
                )
        required = _check_type(entry.get("required", False), _BOOLEAN, f"{where}.required")
        declared[key] = DeclaredAnnotation(key, env, required)
    return declared


def _check_variable(name: Any, where: str) -> str:
    if not isinstance(name, str) or not re.fullmatch(VARIABLE, name):
        raise SidecarError(where, "has no valid name of a variable", "such as QUEUE")
    return name


def _check_name(item: Object, where: str, pattern: re.Pattern[str] = _LABEL) -> str:
    name = item.get("name")
    if isinstance(name, str) and pattern.fullmatch(name):
        return name
    what = f"{quote(name)} is not a valid name" if name else "is required"
    raise SidecarError(f"{where}.name", what, "set it to a name such as asya-sidecar")


def _check_type(value: Any, expected: str, where: str) -> Any:
    """The value itself; expected: one of `_TYPES`."""
    item_type = _ITEM_TYPES.get(expected, object)
    if not isinstance(value, _TYPES[expected]) or (
        isinstance(value, list) and not all(isinstance(item, item_type) for item in value)
    ):
        raise SidecarError(where, f"is not {expected}", "see the chart's README")
    return value


def _check_names(value: Any, known: Sequence[str], where: str) -> None:
    for name in _check_type(value, _MAPPING, where):
        if name not in known:
            fix = suggest(name, known, fallback=f"known names are {', '.join(known)}")
            raise SidecarError(where, f"unknown name {quote(name)}", fix)
