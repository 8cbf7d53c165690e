"""Plain data as the API server sends it, or a person typed it: readers that take what is missing or
null for empty, and refuse what is of another kind than the field can be.
"""

from __future__ import annotations

import posixpath
from typing import Any

from asya_injector.errors import Reason, Refusal, quoted

Object = dict[str, Any]


def mapping(node: Object, *path: str) -> Object:
    """The mapping at a path; an empty one, not put there, where a step is missing or null."""
    for step in path:
        value = node.get(step)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise malformed(step, "a mapping")
        node = value
    return node


def items(node: Object, field: str) -> list[Object]:
    """The mappings in the list of a field; an empty list, not put there, where it is missing."""
    value = node.get(field)
    if value is None:
        return []
    if not isinstance(value, list) or not _all(dict, value):
        raise malformed(field, "a list of mappings")
    return value


def words(node: Object, field: str) -> list[str]:
    """The texts in the list of a field; an empty list, not put there, where it is missing."""
    value = node.get(field)
    if value is None:
        return []
    if not isinstance(value, list) or not _all(str, value):
        raise malformed(field, "a list of texts")
    return value


def text(node: Object, field: str) -> str:
    """The text of a field; empty where it is missing or null."""
    value = node.get(field)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise malformed(field, "a text")
    return value


def annotations_of(node: Object) -> dict[str, str]:
    """An object's annotations, all of them texts; refuses what is no object at all."""
    if not isinstance(node, dict):
        raise malformed("object", "a mapping")
    found = mapping(node, "metadata", "annotations")
    for key, value in found.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise Refusal(
                f"annotation {quoted(key)}",
                "is not a text",
                fix='put the value into quotes, such as "4096" or "true"',
                reason=Reason.OBJECT_INVALID,
            )
    return found


def malformed(field: str, kind: str) -> Refusal:
    """What is said of a field that is of the wrong kind."""
    return Refusal(
        field,
        f"is not {kind}",
        fix="write it as the Kubernetes API describes it",
        reason=Reason.OBJECT_INVALID,
    )


def named(candidates: list[Object], name: str) -> Object | None:
    """The first item of this name."""
    return next((item for item in candidates if item.get("name") == name), None)


def name_of(item: Object) -> str:
    """An item's name; empty where it has none."""
    return text(item, "name")


def is_below(path: str, directory: str) -> bool:
    """Whether a path lies inside a directory, both normalised."""
    return path.startswith(directory.rstrip("/") + "/")


def where_mounted(mount: Object) -> str:
    """The normalised path of a volume mount; the kubelet takes a relative one from the root."""
    return posixpath.normpath("/" + text(mount, "mountPath").lstrip("/"))


def template_of(workload: Object) -> Object:
    """The pod template inside a workload, as it stands there (not a copy)."""
    spec = mapping(workload, "spec")
    if workload.get("kind") == "CronJob":
        spec = mapping(spec, "jobTemplate", "spec")
    return mapping(spec, "template")


def with_template(workload: Object, template: Object) -> Object:
    """The workload with another pod template; the one given is not changed."""
    path = ["spec", "template"]
    if workload.get("kind") == "CronJob":
        path = ["spec", "jobTemplate", *path]
    return _with(workload, path, template)


def opened(pod: Object) -> Object:
    """A pod whose spec and containers can be given other fields without changing the one given.

    What lies deeper is shared with it: to be replaced, not changed.
    """
    spec = dict(mapping(pod, "spec"))
    for field in ("containers", "initContainers"):
        if spec.get(field) is not None:
            spec[field] = [dict(container) for container in items(spec, field)]
    return {**pod, "spec": spec}


def everyone(pod: Object) -> list[Object]:
    """All containers of a pod, those that only initialise it first."""
    spec = mapping(pod, "spec")
    return items(spec, "initContainers") + items(spec, "containers")


def put(node: Object, field: str, value: Any) -> None:
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
    return {**node, step: _with(mapping(node, step), rest, value) if rest else value}
