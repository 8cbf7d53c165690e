"""Mount the runtime files and the directory of the socket."""

from __future__ import annotations

import posixpath

from asya_injector.annotations.settings import Decision, Settings
from asya_injector.annotations.table import PREFIX
from asya_injector.errors import InjectionError, Reason, quote
from asya_injector.kube_objects import (
    Object,
    find_by_name,
    get_items,
    get_mapping,
    get_name,
    get_string,
)
from asya_injector.mutation import environment
from asya_injector.mutation.ownership import (
    SOCKET_SOURCE,
    SOCKET_VOLUME,
    is_runtime_volume,
    is_socket_volume,
)
from asya_injector.runtime_files import RUNTIME_FILE, RUNTIME_VOLUME

# The kubelet mounts these read-only in any case, so nothing can be mounted inside.
_READ_ONLY_SOURCES = ("configMap", "secret", "projected", "downwardAPI", "image")
_SOURCE_FIELDS = ("name", "subPath", "subPathExpr", "devicePath")
_FIXES = {
    "mount-path": "choose a writable directory with no mount at or below it",
    "socket-path": "choose a directory that all containers with the socket can share and write to",
}


def mount_runtime(pod: Object, target: Object, settings: Settings) -> None:
    """Mount the runtime files in the target."""
    config_map = {"name": settings.defaults.config_map, "defaultMode": 0o444}
    _add_volume(pod, {"name": RUNTIME_VOLUME, "configMap": config_map})
    mount = {"name": RUNTIME_VOLUME, "mountPath": settings.directory, "readOnly": True}
    _add_runtime_mount(pod, target, mount)
    if settings.is_one_file:
        one_file = {"mountPath": settings.runtime_file, "subPath": RUNTIME_FILE}
        _add_runtime_mount(pod, target, mount | one_file)


def mount_socket(pod: Object, target: Object, sidecars: list[Object], path: str) -> Decision:
    """Mount the directory of the socket in the target and the sidecars; returns the volume.

    A volume that the target already mounts there is used, otherwise an emptyDir is added.
    """
    directory = posixpath.dirname(path)
    mount = _find_socket_mount(target, directory)
    reason = f"the container mounts it at {directory}"
    if mount is None:
        mount = {"name": SOCKET_VOLUME, "mountPath": directory}
        _add_mount(pod, target, mount)
        reason = f"the container mounts no volume at {directory}"
    elif _is_read_only(pod, mount):
        raise _conflict(
            "socket-path", target, mount, " read-only, so the socket cannot be created there"
        )
    if get_name(mount) == SOCKET_VOLUME:
        _add_volume(pod, {"name": SOCKET_VOLUME, "emptyDir": dict(SOCKET_SOURCE)})
    for sidecar in sidecars:
        sidecar_path = environment.resolve_sidecar_socket_path(sidecar, path)
        _mount_in_sidecar(pod, sidecar, posixpath.dirname(sidecar_path), target, mount)
    return Decision(get_name(mount), reason)


def _mount_in_sidecar(
    pod: Object, sidecar: Object, directory: str, target: Object, mount: Object
) -> None:
    """Mount what the target mounts, at another directory."""
    present = _find_socket_mount(sidecar, directory)
    if present is None:
        if mount.get("subPathExpr"):
            raise _conflict(
                "socket-path", target, mount, " with subPathExpr, which may differ in the sidecar"
            )
        sub_path = {"subPath": mount["subPath"]} if mount.get("subPath") else {}
        _add_mount(pod, sidecar, {"name": mount["name"], "mountPath": directory, **sub_path})
    elif _get_source(present) != _get_source(mount):
        raise _conflict("socket-path", sidecar, present, ", which does not hold the socket")


def _add_volume(pod: Object, volume: Object) -> None:
    """Add a volume, or use the volume of this name if it has the same form."""
    spec = pod["spec"]
    volumes = get_items(spec, "volumes")
    present = find_by_name(volumes, volume["name"])
    if present is None:
        spec["volumes"] = [*volumes, volume]
    elif is_runtime_volume(present):  # a copied pod may mount the runtime of another release
        source = {**present["configMap"], "name": volume["configMap"]["name"]}
        updated = {**present, "configMap": source}
        spec["volumes"] = [updated if item is present else item for item in volumes]
    elif not is_socket_volume(present):
        raise InjectionError(
            f"volume {quote(volume['name'])}",
            "the pod has a volume of this name with other content",
            fix="rename or remove it, because the injector adds this volume",
            reason=Reason.VOLUME_CONFLICT,
        )


def _add_runtime_mount(pod: Object, target: Object, mount: Object) -> None:
    path = mount["mountPath"]
    for present in get_items(target, "volumeMounts") + get_items(target, "volumeDevices"):
        where = _get_path(present)
        if where == path and _get_source(present) == _get_source(mount):
            return
        if where == path or _is_within(where, path):
            raise _conflict("mount-path", target, present)
    _add_mount(pod, target, mount)


def _add_mount(pod: Object, container: Object, mount: Object) -> None:
    """Add a mount; rejects one inside a read-only mount, where no mount point can be created."""
    mounts = get_items(container, "volumeMounts")
    above = [item for item in mounts if _is_within(mount["mountPath"], _get_path(item))]
    nearest = max(above, key=lambda item: len(_get_path(item)), default=None)
    if nearest is not None and _is_read_only(pod, nearest):
        what = f" read-only, so nothing can be mounted at {quote(mount['mountPath'])} inside it"
        setting = "mount-path" if get_name(mount) == RUNTIME_VOLUME else "socket-path"
        raise _conflict(setting, container, nearest, what)
    container["volumeMounts"] = [*mounts, mount]


def _find_socket_mount(container: Object, directory: str) -> Object | None:
    """The mount at the directory of the socket; rejects a mount that would hide the socket."""
    found = None
    for mount in get_items(container, "volumeMounts"):
        where = _get_path(mount)
        if where == directory:
            found = mount
        elif _is_within(where, directory):
            raise _conflict("socket-path", container, mount)
    return found


def _is_read_only(pod: Object, mount: Object) -> bool:
    volume = find_by_name(get_items(get_mapping(pod, "spec"), "volumes"), get_name(mount)) or {}
    return bool(mount.get("readOnly")) or any(
        volume.get(source) is not None for source in _READ_ONLY_SOURCES
    )


def _get_path(mount: Object) -> str:
    """The normalized path of a mount or device; the kubelet resolves a relative one from /."""
    field = "devicePath" if "devicePath" in mount else "mountPath"
    return posixpath.normpath("/" + get_string(mount, field).lstrip("/"))


def _is_within(path: str, directory: str) -> bool:
    """Whether a normalized path is inside a normalized directory."""
    return path.startswith(directory.rstrip("/") + "/")


def _get_source(mount: Object) -> tuple[str, ...]:
    """Which directory of which volume is mounted."""
    return tuple(get_string(mount, field) for field in _SOURCE_FIELDS)


def _conflict(setting: str, container: Object, mount: Object, what: str = "") -> InjectionError:
    return InjectionError(
        PREFIX + setting,
        f"container {quote(get_name(container))} mounts {quote(get_name(mount))} "
        f"at {quote(_get_path(mount))}{what}",
        fix=_FIXES[setting],
        reason=Reason.MOUNT_CONFLICT,
    )
