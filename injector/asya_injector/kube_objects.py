"""Kubernetes objects as plain data, and the kinds that the injector supports.

The readers take a missing or null field for an empty one. For a field of the wrong type they raise
an InjectionError (ObjectInvalid).
"""

from dataclasses import dataclass
from typing import Any

from asya_injector.errors import InjectionError, Reason, quote

Object = dict[str, Any]
Path = tuple[str | int, ...]
# Longer lists are rejected, so that the work for an object is bounded.
_MAX_ITEMS = 50_000
_MAX_CONTAINERS = 10_000
# Comparing types takes a tenth of the time of `isinstance`; subclasses are rare.
_MAPPING = frozenset({dict})


@dataclass(frozen=True)
class Kind:
    """A kind whose objects become actors.

    template: path of the pod template; empty for a Pod, which is its own.
    middle: path of a template between the workload and its pod template, such as a Job's.
    is_immutable: the template cannot change, so updates are not sent to the injector.
    """

    name: str
    api_version: str
    template: tuple[str, ...] = ("spec", "template")
    is_immutable: bool = False
    middle: tuple[str, ...] = ()

    @property
    def plural(self) -> str:
        """The name of the kind's resource."""
        return f"{self.name.lower()}s"

    @property
    def resource(self) -> tuple[str, str, str]:
        """Group, version and plural name."""
        group, _, version = self.api_version.rpartition("/")
        return group, version, self.plural


POD = Kind("Pod", "v1", template=())
WORKLOAD_KINDS = (
    Kind("Deployment", "apps/v1"),
    Kind("StatefulSet", "apps/v1"),
    Kind("DaemonSet", "apps/v1"),
    Kind("ReplicaSet", "apps/v1"),
    Kind("Job", "batch/v1", is_immutable=True),
    Kind(
        "CronJob",
        "batch/v1",
        template=("spec", "jobTemplate", "spec", "template"),
        middle=("spec", "jobTemplate"),
    ),
)
KINDS = {kind.name: kind for kind in (POD, *WORKLOAD_KINDS)}


def find_kind(item: Object) -> Kind | None:
    """The supported kind of an object; None for an object of another kind."""
    kind = KINDS.get(str(item.get("kind")))
    return kind if kind and kind.api_version == item.get("apiVersion") else None


def get_template(item: Object) -> Object:
    """The pod template in a workload, not a copy; a Pod is its own template."""
    return get_mapping(item, *_get_template_path(item))


def get_levels(item: Object) -> list[Object]:
    """The objects above the pod template whose annotations its pods inherit, the highest first.

    A workload, and the Job template of a CronJob; not copies.
    """
    kind = KINDS.get(str(item.get("kind"))) if isinstance(item, dict) else None
    return [item, get_mapping(item, *kind.middle)] if kind and kind.middle else [item]


def replace_template(item: Object, template: Object) -> Object:
    """A copy of the object with another pod template."""
    replaced: Object = replace_at(item, _get_template_path(item), template)
    return replaced


def replace_at(node: Any, path: Path, value: Any) -> Any:
    """A copy of nested data with another value at a path."""
    if not path:
        return value
    step, *rest = path
    if isinstance(node, list):
        changed = replace_at(node[int(step)], tuple(rest), value)
        return [changed if index == step else each for index, each in enumerate(node)]
    return {**node, step: replace_at(node.get(step) or {}, tuple(rest), value)}


def get_mapping(node: Object, *path: str) -> Object:
    """The mapping at a path; if there is none, an empty one that is not part of the node."""
    for step in path:
        value = node.get(step)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise _wrong_type(step, "a mapping")
        node = value
    return node


def get_items(node: Object, field: str) -> list[Object]:
    """The list of mappings in a field; if there is none, an empty one, not part of the node."""
    value = node.get(field)
    if value is None:
        return []
    if (  # what `_check_list` accepts most often, without a call: a review reads many lists
        type(value) is list
        and len(value) < _MAX_CONTAINERS
        and _MAPPING.issuperset(map(type, value))
    ):
        return value
    return _check_list(value, field, dict, "a list of mappings")


def get_strings(node: Object, field: str) -> list[str]:
    """The list of strings in a field; if there is none, an empty one, not part of the node."""
    value = node.get(field)
    return [] if value is None else _check_list(value, field, str, "a list of strings")


def get_string(node: Object, field: str) -> str:
    """The string in a field; empty where there is none."""
    value = node.get(field)
    if isinstance(value, str):
        return value
    if value is not None:
        raise _wrong_type(field, "a string")
    return ""


def get_name(item: Object) -> str:
    """The `name` of a container, volume, mount or variable; empty where there is none."""
    name = item.get("name")
    return name if isinstance(name, str) else get_string(item, "name")


def get_annotations(node: Object) -> dict[str, str]:
    """The annotations of an object or pod template; rejects one that is not a string."""
    if not isinstance(node, dict):
        raise _wrong_type("object", "a mapping")
    found = get_mapping(node, "metadata", "annotations")
    for key, value in found.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise InjectionError(
                f"annotation {quote(key)}",
                "is not a string",
                fix='quote the value, such as "4096" or "true"',
                reason=Reason.OBJECT_INVALID,
            )
    return found


def get_in(node: Any, *path: str) -> Object:
    """The mapping at a path in data of any shape; empty where there is none. Never raises."""
    for step in path:
        node = node.get(step) if isinstance(node, dict) else None
    return node if isinstance(node, dict) else {}


def find_by_name(items: list[Object], name: str) -> Object | None:
    """The first item with this name."""
    return next((item for item in items if item.get("name") == name), None)


def all_containers(pod: Object) -> list[Object]:
    """The init containers and the containers of a pod."""
    spec = get_mapping(pod, "spec")
    return get_items(spec, "initContainers") + get_items(spec, "containers")


def shallow_copy(pod: Object) -> Object:
    """A copy of a pod, its spec and its containers; deeper values are shared with the original."""
    spec = dict(get_mapping(pod, "spec"))
    for field in ("containers", "initContainers"):
        if spec.get(field) is not None:
            spec[field] = [dict(container) for container in get_items(spec, field)]
    return {**pod, "spec": spec}


def set_or_remove(node: Object, field: str, value: Any) -> None:
    """Set a field, or remove it if the value is empty."""
    if value:
        node[field] = value
    else:
        node.pop(field, None)


def _get_template_path(item: Object) -> tuple[str, ...]:
    kind = KINDS.get(str(item.get("kind")))
    return kind.template if kind else ("spec", "template")


def _check_list(value: Any, field: str, item_type: type, expected: str) -> list[Any]:
    limit = _MAX_CONTAINERS if field in ("containers", "initContainers") else _MAX_ITEMS
    if isinstance(value, list) and len(value) > limit:
        raise InjectionError(
            field,
            f"has more than {limit} items",
            fix="split the object; the Kubernetes API would not store it",
            reason=Reason.OBJECT_INVALID,
        )
    if not isinstance(value, list) or not (
        {item_type}.issuperset(map(type, value))
        or all(isinstance(each, item_type) for each in value)
    ):
        raise _wrong_type(field, expected)
    return value


def _wrong_type(field: str, expected: str) -> InjectionError:
    return InjectionError(
        field,
        f"is not {expected}",
        fix="use the type that the Kubernetes API specifies",
        reason=Reason.OBJECT_INVALID,
    )
