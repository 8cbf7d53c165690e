"""The volume with the runtime files: a ConfigMap of the namespace, or a folder of an image."""

from asya_injector.annotations.settings import ClusterDefaults, Settings, reject_file
from asya_injector.kube_objects import (
    Object,
    all_containers,
    get_items,
    get_mapping,
    get_name,
    get_string,
)
from asya_injector.runtime_files import RUNTIME_FILE, RUNTIME_VOLUME, is_runtime_configmap_name
from asya_injector.runtime_image import RUNTIME_FOLDER

_SOURCES = ("configMap", "image")


def build_volume(defaults: ClusterDefaults) -> Object:
    """The volume of a pod."""
    image = defaults.image
    if image:
        source = {"reference": image.reference, "pullPolicy": image.pull_policy}
        return {"name": RUNTIME_VOLUME, "image": source}
    return {
        "name": RUNTIME_VOLUME,
        "configMap": {"name": defaults.config_map, "defaultMode": 0o444},
    }


def build_mounts(settings: Settings) -> list[Object]:
    """The mounts of the target: of the directory, and of the one file where it is asked for.

    Raises InjectionError for a file from an image: only directories of it can be mounted.
    """
    mount = {"name": RUNTIME_VOLUME, "mountPath": settings.directory, "readOnly": True}
    if settings.defaults.image:
        reject_file(settings["mount-path"])
        return [mount | {"subPath": RUNTIME_FOLDER}]
    one_file = {"mountPath": settings.runtime_file, "subPath": RUNTIME_FILE}
    return [mount, mount | one_file] if settings.is_one_file else [mount]


def is_runtime_volume(volume: Object) -> bool:
    """Whether a volume holds the runtime files of any release, in either form."""
    if get_name(volume) != RUNTIME_VOLUME:
        return False
    if get_string(get_mapping(volume, "image"), "reference"):
        return True
    source = get_mapping(volume, "configMap")
    return is_runtime_configmap_name(get_string(source, "name")) and not source.get("items")


def is_used_as_added(pod: Object) -> bool:
    """Whether containers mount the runtime volume as the injector would have.

    A ConfigMap is recognised by its name, but an image of another release may have any reference.
    """
    mounts = [
        mount
        for container in all_containers(pod)
        for mount in get_items(container, "volumeMounts")
        if get_name(mount) == RUNTIME_VOLUME
    ]
    return all(get_string(mount, "subPath") == RUNTIME_FOLDER for mount in mounts)


def update_volume(present: Object, wanted: Object) -> Object:
    """A runtime volume with the source of another; a ConfigMap keeps its mode and defaults."""
    kept = {key: value for key, value in present.items() if key not in _SOURCES}
    if "image" in wanted:
        return {**kept, "image": wanted["image"]}
    source = wanted["configMap"]
    known = get_mapping(present, "configMap")
    return {**kept, "configMap": {**source, **known, "name": source["name"]}}


def is_directory_mount(mount: Object) -> bool:
    """Whether a mount is that of the directory, with either form of the volume."""
    return get_name(mount) == RUNTIME_VOLUME and get_string(mount, "subPath") in (
        "",
        RUNTIME_FOLDER,
    )
