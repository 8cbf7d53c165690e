"""What changed, as a JSON patch (RFC 6902). Pure."""

from __future__ import annotations

from typing import Any

from asya_injector.kube_objects import Object

# Below this many steps, what differs is replaced whole. Mutating webhooks are called one after the
# other, each with what the one before made, so nobody else's change can be lost.
_DEEPEST = 4


def json_patch(before: Object, after: Object) -> list[Object]:
    """Operations that make the one of the other; none where they are equal.

    Field by field down to the fields of a container; what differs below is replaced whole. A list
    is gone through where it keeps its length, and else replaced. That is ten times cheaper than
    looking for the least difference.
    """
    found: list[Object] = []
    _compare(before, after, "", found)
    return found


def _compare(before: Any, after: Any, path: str, found: list[Object]) -> None:
    steps = path.count("/")
    if isinstance(before, dict) and isinstance(after, dict) and steps < _DEEPEST:
        for key, old in before.items():
            if key not in after:
                found.append({"op": "remove", "path": f"{path}/{_escaped(key)}"})
            elif old != after[key]:
                _compare(old, after[key], f"{path}/{_escaped(key)}", found)
        found.extend(
            {"op": "add", "path": f"{path}/{_escaped(key)}", "value": new}
            for key, new in after.items()
            if key not in before
        )
    elif (
        isinstance(before, list)
        and isinstance(after, list)
        and len(before) == len(after)
        and steps < _DEEPEST
    ):
        for index, (old, new) in enumerate(zip(before, after, strict=True)):
            if old != new:
                _compare(old, new, f"{path}/{index}", found)
    else:
        found.append({"op": "replace", "path": path, "value": after})


def _escaped(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")
