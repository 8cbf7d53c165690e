"""The JSON patch (RFC 6902) that turns the object of a review into the admitted one."""

from typing import Any

from asya_injector.kube_objects import Object

# A difference below this depth replaces the whole value. The API server calls mutating webhooks one
# after the other, each with the result of the previous one, so no change of another is lost.
_MAX_DEPTH = 4
# Replacing a longer list makes the patch as large as the object.
_LONG_LIST = 100


def build_json_patch(before: Object, after: Object) -> list[Object]:
    """Operations (RFC 6902) that turn `before` into `after`; none if they are equal.

    Compares field by field down to the fields of a container, and items of lists of equal length.
    Long lists grow by single items. The rest is replaced whole, which is ten times cheaper than the
    smallest possible patch.
    """
    found: list[Object] = []
    _compare(before, after, "", found)
    return found


def _compare(before: Any, after: Any, path: str, found: list[Object]) -> None:
    steps = path.count("/")
    if isinstance(before, dict) and isinstance(after, dict) and steps < _MAX_DEPTH:
        for key, old in before.items():
            if key not in after:
                found.append({"op": "remove", "path": f"{path}/{_escape(key)}"})
            elif old != after[key]:
                _compare(old, after[key], f"{path}/{_escape(key)}", found)
        found.extend(
            {"op": "add", "path": f"{path}/{_escape(key)}", "value": new}
            for key, new in after.items()
            if key not in before
        )
    elif (
        isinstance(before, list)
        and isinstance(after, list)
        and len(before) == len(after)
        and steps < _MAX_DEPTH
    ):
        for index, (old, new) in enumerate(zip(before, after, strict=True)):
            if old != new:
                _compare(old, new, f"{path}/{index}", found)
    elif isinstance(before, list) and isinstance(after, list) and len(before) > _LONG_LIST:
        found.extend(_describe_growth(before, after, path))
    else:
        found.append({"op": "replace", "path": path, "value": after})


def _describe_growth(before: list[Any], after: list[Any], path: str) -> list[Object]:
    """Items that were added at the start or the end of a list; else the whole list."""
    added = len(after) - len(before)
    if after[added:] == before:
        return [{"op": "add", "path": f"{path}/0", "value": new} for new in after[added - 1 :: -1]]
    if after[: len(before)] == before:
        return [{"op": "add", "path": f"{path}/-", "value": new} for new in after[len(before) :]]
    return [{"op": "replace", "path": path, "value": after}]


def _escape(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")
