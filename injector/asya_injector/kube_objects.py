"""Plain data as the API server sends it, or a person typed it: readers that take what is missing or
null for empty, and refuse what is of another kind than the field can be.
"""

from __future__ import annotations

import posixpath
from typing import Any

from asya_injector.errors import InjectionError, Reason, quote

Object = dict[str, Any]


def get_mapping(node: Object, *path: str) -> Object:
    """The mapping at a path; an empty one, not put there, where a step is missing or null."""
    for step in path:
        value = node.get(step)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise malformed(step, "a mapping")
        node = value
    return node


def get_items(node: Object, field: str) -> list[Object]:
    """The mappings in the list of a field; an empty list, not put there, where it is missing."""
    value = node.get(field)
    if value is None:
        return []
    if not isinstance(value, list) or not _all(dict, value):
        raise malformed(field, "a list of mappings")
    return value


def get_strings(node: Object, field: str) -> list[str]:
    """The texts in the list of a field; an empty list, not put there, where it is missing."""
    value = node.get(field)
    if value is None:
        return []
    if not isinstance(value, list) or not _all(str, value):
        raise malformed(field, "a list of texts")
    return value


def get_string(node: Object, field: str) -> str:
    """The text of a field; empty where it is missing or null."""
    value = node.get(field)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise malformed(field, "a text")
    return value


def get_annotations(node: Object) -> dict[str, str]:
    """An object's annotations, all of them texts; refuses what is no object at all."""
    if not isinstance(node, dict):
        raise malformed("object", "a mapping")
    found = get_mapping(node, "metadata", "annotations")
    for key, value in found.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise InjectionError(
                f"annotation {quote(key)}",
                "is not a text",
                fix='put the value into quotes, such as "4096" or "true"',
                reason=Reason.OBJECT_INVALID,
            )
    return found


def malformed(field: str, kind: str) -> InjectionError:
    """What is said of a field that is of the wrong kind."""
    return InjectionError(
        field,
        f"is not {kind}",
        fix="write it as the Kubernetes API describes it",
        reason=Reason.OBJECT_INVALID,
    )


def find_by_name(candidates: list[Object], name: str) -> Object | None:
    """The first item of this name."""
    return next((item for item in candidates if item.get("name") == name), None)


def get_name(item: Object) -> str:
    """An item's name; empty where it has none."""
    return get_string(item, "name")


def is_within(path: str, directory: str) -> bool:
    """Whether a path lies inside a directory, both normalised."""
    return path.startswith(directory.rstrip("/") + "/")


def get_mount_path(mount: Object) -> str:
    """The normalised path of a volume mount; the kubelet takes a relative one from the root."""
    return posixpath.normpath("/" + get_string(mount, "mountPath").lstrip("/"))


def get_template(workload: Object) -> Object:
    """The pod template inside a workload, as it stands there (not a copy)."""
    spec = get_mapping(workload, "spec")
    if workload.get("kind") == "CronJob":
        spec = get_mapping(spec, "jobTemplate", "spec")
    return get_mapping(spec, "template")


def replace_template(workload: Object, template: Object) -> Object:
    """The workload with another pod template; the one given is not changed."""
    path = ["spec", "template"]
    if workload.get("kind") == "CronJob":
        path = ["spec", "jobTemplate", *path]
    return _with(workload, path, template)


def shallow_copy(pod: Object) -> Object:
    """A pod whose spec and containers can be given other fields without changing the one given.

    What lies deeper is shared with it: to be replaced, not changed.
    """
    spec = dict(get_mapping(pod, "spec"))
    for field in ("containers", "initContainers"):
        if spec.get(field) is not None:
            spec[field] = [dict(container) for container in get_items(spec, field)]
    return {**pod, "spec": spec}


def all_containers(pod: Object) -> list[Object]:
    """All containers of a pod, those that only initialise it first."""
    spec = get_mapping(pod, "spec")
    return get_items(spec, "initContainers") + get_items(spec, "containers")


def set_or_remove(node: Object, field: str, value: Any) -> None:
    """Set a field, or take it away where the value is empty."""
    if value:
        node[field] = value
    else:
        node.pop(field, None)


def _all(kind: type, values: list[Any]) -> bool:
    # Most often there is no subclass, and types are compared faster than asked.
    return {kind}.issuperset(map(type, values)) or all(isinstance(each, kind) for each in values)


def _with(node: Object, path: list[str], value: Any) -> Object:
    step, *rest = path
    return {**node, step: _with(get_mapping(node, step), rest, value) if rest else value}


def get_in(node: Any, *path: str) -> Object:
    """The mapping at a path of what may be anything; empty where there is none."""
    for step in path:
        node = node.get(step) if isinstance(node, dict) else None
    return node if isinstance(node, dict) else {}
