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
# The fields of a container in Kubernetes 1.36, except `restartPolicy`, which `native` sets, and
# `startupProbe`.
CONTAINER_FIELDS = (
    "name", "image", "imagePullPolicy", "command", "args", "workingDir", "env", "envFrom", "ports",
    "resources", "resizePolicy", "volumeMounts", "volumeDevices", "securityContext", "lifecycle",
    "livenessProbe", "readinessProbe", "terminationMessagePath", "terminationMessagePolicy",
    "stdin", "stdinOnce", "tty",
)  # fmt: skip
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
            fields[name] = _check_type(fields[name] or {}, dict, f".{name}", "a mapping")
        for name in ("volumes", "imagePullSecrets"):
            fields[name] = _check_type(fields[name] or [], list, f".{name}", "a list of mappings")
            for item in fields[name]:
                _check_type(item, dict, f".{name}", "a list of mappings")
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
        return cls(
            container=fields["container"],
            native=True if native is None else _check_type(native, bool, ".native", "a boolean"),
            declared=_parse_declared(fields["annotations"]),
            volumes=fields["volumes"],
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
    _check_names(container, CONTAINER_FIELDS, where)
    _check_name(container, where)
    image = container.get("image")
    if not image or not isinstance(image, str):
        raise SidecarError(f"{where}.image", "is required", "set it to an image")
    for field in ("env", "envFrom", "ports", "volumeMounts", "volumeDevices"):
        items = container.get(field, [])
        for item in _check_type(items, list, f"{where}.{field}", "a list of mappings"):
            _check_type(item, dict, f"{where}.{field}", "a list of mappings")
    for variable in container.get("env", []):
        _check_variable(variable.get("name"), f"{where}.env")
        if not isinstance(variable.get("value", ""), str):
            raise SidecarError(
                f"{where}.env", f"the value of {variable['name']} is not a string", "quote it"
            )


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
    for field in ("volumeMounts", "volumeDevices"):
        for mount in container.get(field, []):
            if mount.get("name") not in names:
                raise SidecarError(
                    f".container.{field}",
                    f"the volume {mount.get('name')} does not exist",
                    "add it to sidecar.volumes",
                )


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
        entry = _check_type(annotations[key], dict, where, "a mapping")
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
        required = _check_type(entry.get("required", False), bool, where, "a boolean")
        declared[key] = DeclaredAnnotation(key, env, required)
    return declared


def _check_variable(name: Any, where: str) -> str:
    if not isinstance(name, str) or not re.fullmatch(VARIABLE, name):
        raise SidecarError(where, "has no valid name of a variable", "such as QUEUE")
    return name


def _check_name(item: Object, where: str, pattern: re.Pattern[str] = _LABEL) -> str:
    name = item.get("name")
    if not isinstance(name, str) or not pattern.fullmatch(name):
        raise SidecarError(f"{where}.name", "is required", "set it to a name such as asya-sidecar")
    return name


def _check_type(value: Any, kind: type, where: str, expected: str) -> Any:
    if not isinstance(value, kind):
        raise SidecarError(where, f"is not {expected}", "see the chart's README")
    return value


def _check_names(value: Any, known: Sequence[str], where: str) -> None:
    for name in _check_type(value, dict, where, "a mapping"):
        if name not in known:
            fix = suggest(name, known, fallback=f"known names are {', '.join(known)}")
            raise SidecarError(where, f"unknown name {quote(name)}", fix)
