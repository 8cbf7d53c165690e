"""Plain data as the API server sends it: small readers that forgive what is missing or null."""

from __future__ import annotations

import posixpath
from typing import Any

Object = dict[str, Any]


def mapping(node: Object, *path: str) -> Object:
    """The mapping at a path; an empty one, not put there, where a step is missing or null."""
    for step in path:
        node = node.get(step) or {}
    return node


def items(node: Object, field: str) -> list[Object]:
    """The list of a field; an empty one, put there, where it is missing or null."""
    if not node.get(field):
        node[field] = []
    result: list[Object] = node[field]
    return result


def named(candidates: list[Object] | None, name: str) -> Object | None:
    """The first item of this name."""
    return next((item for item in candidates or [] if item.get("name") == name), None)


def name_of(item: Object) -> str:
    """An item's name as text, whatever was sent."""
    return str(item.get("name") or "")


def is_below(path: str, directory: str) -> bool:
    """Whether a path lies inside a directory, both normalised."""
    return path.startswith(directory.rstrip("/") + "/")


def where_mounted(mount: Object) -> str:
    """The normalised path of a volume mount."""
    return posixpath.normpath(str(mount.get("mountPath")))


def template_of(workload: Object) -> Object:
    """The pod template inside a workload, as it stands there (not a copy)."""
    spec = mapping(workload, "spec")
    if workload.get("kind") == "CronJob":
        spec = mapping(spec, "jobTemplate", "spec")
    return mapping(spec, "template")
