"""The sidecar in an injection record: recognised in a pod, and removed.

The record has the template's digest, the container as it was added (without the socket), the added
volumes, and the names of the added pull secrets. Something is removed only if the pod still has all
of its fields; the API server and other webhooks add fields, and omit empty ones.
"""

from typing import Any

from asya_injector.kube_objects import Object, get_items, get_name, set_or_remove

# Nesting of a container is far less.
_MAX_DEPTH = 20
# Fields with quantities, which the API server writes in another form; autoscalers change resources.
_VOLATILE = frozenset({"resources", "sizeLimit", "divisor"})
_EMPTY: tuple[object, ...] = ("", [], {}, False)


def build_record(
    template: str, container: Object, volumes: list[Object], secrets: list[str]
) -> Object:
    """What the record lists about an added sidecar. template: its digest."""
    listed = {"volumes": [strip_volume(each) for each in volumes], "imagePullSecrets": secrets}
    return {
        "template": template,
        "container": _strip(container),
        **{name: items for name, items in listed.items() if items},
    }


def strip_volume(volume: Object) -> Object:
    """A volume with the fields that the API server returns as they are."""
    # Whole at the top, where an empty field such as `emptyDir` is the source.
    return {key: _strip(value) for key, value in volume.items()}


def is_well_formed(recorded: Object) -> bool:
    """Whether a record has the form of `build_record`, or is empty."""
    if not recorded:
        return True
    container, volumes = recorded.get("container"), recorded.get("volumes", [])
    secrets = recorded.get("imagePullSecrets", [])
    return (
        isinstance(recorded.get("template"), str)
        and isinstance(container, dict)
        and isinstance(container.get("name"), str)
        and all(isinstance(each, list) for each in (volumes, secrets))
        and all(isinstance(each, dict) for each in volumes)
        and all(isinstance(each, str) for each in secrets)
    )


def remove_sidecar(pod: Object, recorded: Object) -> None:
    """Remove from a copy of a pod what the record lists, if it is still the same.

    A container that somebody has edited is kept, with what it needs.
    """
    if not recorded:
        return
    spec = pod["spec"]
    name = recorded["container"]["name"]
    is_kept = False
    for field in ("initContainers", "containers"):
        items = get_items(spec, field)
        kept = [item for item in items if not contains(item, recorded["container"])]
        is_kept = is_kept or any(get_name(item) == name for item in kept)
        if len(kept) < len(items):
            set_or_remove(spec, field, kept)
    if is_kept:
        return
    used = {
        get_name(mount)
        for container in get_items(spec, "initContainers") + get_items(spec, "containers")
        for mounts in ("volumeMounts", "volumeDevices")
        for mount in get_items(container, mounts)
    }
    listed = {get_name(each): each for each in recorded.get("volumes", [])}
    volumes = [
        volume
        for volume in get_items(spec, "volumes")
        if get_name(volume) in used
        or get_name(volume) not in listed
        or not contains(volume, listed[get_name(volume)])
    ]
    secrets = [
        secret
        for secret in get_items(spec, "imagePullSecrets")
        if get_name(secret) not in recorded.get("imagePullSecrets", [])
    ]
    for field, items in (("volumes", volumes), ("imagePullSecrets", secrets)):
        if len(items) < len(get_items(spec, field)):
            set_or_remove(spec, field, items)


def contains(present: Any, recorded: Any, depth: int = 0) -> bool:
    """Whether a value has all that was recorded; lists of mappings in the same order."""
    if depth > _MAX_DEPTH:
        return False
    if isinstance(recorded, dict) and isinstance(present, dict):
        return all(
            key in present and contains(present[key], value, depth + 1)
            for key, value in recorded.items()
        )
    if isinstance(recorded, list) and isinstance(present, list):
        if not all(isinstance(each, dict) for each in recorded):
            return present == recorded
        rest = iter(present)
        return all(any(contains(item, each, depth + 1) for item in rest) for each in recorded)
    return type(present) is type(recorded) and bool(present == recorded)


def _strip(value: Any) -> Any:
    """The fields that do not change on the way through the API server, which omits empty ones."""
    if isinstance(value, dict):
        fields = {key: _strip(each) for key, each in value.items() if key not in _VOLATILE}
        return {key: each for key, each in fields.items() if each not in _EMPTY}
    return [_strip(each) for each in value] if isinstance(value, list) else value
