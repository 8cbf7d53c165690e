"""Where the files lie: the runtime's ConfigMap and the socket's directory, mounted."""

from __future__ import annotations

import posixpath

from asya_injector.annotations.settings import Settings
from asya_injector.annotations.table import PREFIX
from asya_injector.errors import InjectionError, Reason, quote
from asya_injector.kube_objects import (
    Object,
    find_by_name,
    get_items,
    get_mapping,
    get_mount_path,
    get_name,
    get_string,
    is_within,
)
from asya_injector.mutation import environment
from asya_injector.mutation.ownership import SOCKET_VOLUME, is_runtime_volume, is_socket_volume
from asya_injector.runtime_files import RUNTIME_FILE, RUNTIME_VOLUME

# What the kubelet mounts read-only whatever the mount says: nothing can be mounted inside.
_READ_ONLY_SOURCES = ("configMap", "secret", "projected", "downwardAPI", "image")


def mount_runtime(pod: Object, model: Object, wishes: Settings) -> None:
    """Give the model's container the runtime's files, read-only."""
    config_map = {"name": wishes.policy.config_map, "defaultMode": 0o444}
    _add_volume(pod, {"name": RUNTIME_VOLUME, "configMap": config_map})
    mount = {"name": RUNTIME_VOLUME, "mountPath": wishes.directory, "readOnly": True}
    _add_runtime_mount(pod, model, mount)
    if wishes.is_one_file:
        one_file = {"mountPath": wishes.runtime_file, "subPath": RUNTIME_FILE}
        _add_runtime_mount(pod, model, mount | one_file)


def mount_socket(pod: Object, model: Object, sidecars: list[Object], socket_path: str) -> bool:
    """Let all containers that use the socket mount its directory.

    A volume that the user already mounts there is taken, else one of ours is made. A sidecar whose
    own variable says another directory gets it there. Returns whether the volume is ours.
    """
    directory = posixpath.dirname(socket_path)
    mount = _socket_mount(model, directory)
    if mount is None:
        mount = {"name": SOCKET_VOLUME, "mountPath": directory}
        _append(pod, model, mount)
    elif _is_read_only(pod, mount):
        raise _socket_conflict(model, mount, " read-only, so no socket can be made there")
    is_ours = get_name(mount) == SOCKET_VOLUME
    if is_ours:
        empty_dir = {"medium": "Memory", "sizeLimit": "1Mi"}
        _add_volume(pod, {"name": SOCKET_VOLUME, "emptyDir": empty_dir})
    for sidecar in sidecars:
        theirs_at = posixpath.dirname(environment.resolve_sidecar_socket_path(sidecar, socket_path))
        theirs = _socket_mount(sidecar, theirs_at)
        if theirs is None:
            if mount.get("subPathExpr"):
                raise _socket_conflict(
                    model, mount, " with subPathExpr, which may differ in the sidecar"
                )
            place = {"subPath": mount["subPath"]} if mount.get("subPath") else {}
            _append(pod, sidecar, {"name": mount["name"], "mountPath": theirs_at, **place})
        elif _place(theirs) != _place(mount):
            raise _socket_conflict(sidecar, theirs, ", which is not where the socket lies")
    return is_ours


def _add_volume(pod: Object, volume: Object) -> None:
    """Add a volume, or take the one of its name that is there if it has the form of ours."""
    spec = pod["spec"]
    volumes = get_items(spec, "volumes")
    present = find_by_name(volumes, volume["name"])
    if present is None:
        spec["volumes"] = [*volumes, volume]
    elif is_runtime_volume(present):  # a copied pod may carry the runtime of another release
        source = {**present["configMap"], "name": volume["configMap"]["name"]}
        moved = {**present, "configMap": source}
        spec["volumes"] = [moved if item is present else item for item in volumes]
    elif not is_socket_volume(present):
        raise InjectionError(
            f"volume {quote(volume['name'])}",
            "the pod has a volume of this name with other content",
            fix="rename it, or remove it: the injector adds its own",
            reason=Reason.VOLUME_CONFLICT,
        )


def _add_runtime_mount(pod: Object, model: Object, mount: Object) -> None:
    path = mount["mountPath"]
    for present in get_items(model, "volumeMounts"):
        where = get_mount_path(present)
        if where == path and _place(present) == _place(mount):
            return
        if where == path or is_within(where, path):
            raise _runtime_conflict(model, present, where)
    for device in get_items(model, "volumeDevices"):
        where = get_mount_path({"mountPath": get_string(device, "devicePath")})
        if where == path or is_within(where, path):
            raise _runtime_conflict(model, device, where)
    _append(pod, model, mount)


def _append(pod: Object, container: Object, mount: Object) -> None:
    """Add a mount; refuses one inside a read-only one, where no mount point can be made."""
    mounts = get_items(container, "volumeMounts")
    above = [item for item in mounts if is_within(mount["mountPath"], get_mount_path(item))]
    nearest = max(above, key=lambda item: len(get_mount_path(item)), default=None)
    if nearest is not None and _is_read_only(pod, nearest):
        what = f" read-only, so nothing can be mounted at {quote(mount['mountPath'])} in it"
        if get_name(mount) == RUNTIME_VOLUME:
            raise _runtime_conflict(container, nearest, get_mount_path(nearest), what)
        raise _socket_conflict(container, nearest, what)
    container["volumeMounts"] = [*mounts, mount]


def _socket_mount(container: Object, directory: str) -> Object | None:
    """What a container mounts at the socket's directory; refuses what would hide the socket."""
    found = None
    for mount in get_items(container, "volumeMounts"):
        where = get_mount_path(mount)
        if where == directory:
            found = mount
        elif is_within(where, directory):
            raise _socket_conflict(container, mount)
    return found


def _is_read_only(pod: Object, mount: Object) -> bool:
    volume = find_by_name(get_items(get_mapping(pod, "spec"), "volumes"), get_name(mount)) or {}
    return bool(mount.get("readOnly")) or any(
        volume.get(source) is not None for source in _READ_ONLY_SOURCES
    )


def _place(mount: Object) -> tuple[str, str, str]:
    """Which directory of which volume is mounted."""
    return get_name(mount), get_string(mount, "subPath"), get_string(mount, "subPathExpr")


def _runtime_conflict(
    container: Object, mount: Object, where: str, what: str = ""
) -> InjectionError:
    return InjectionError(
        PREFIX + "mount-path",
        f"container {quote(get_name(container))} mounts {quote(get_name(mount))} "
        f"at {quote(where)}{what}",
        fix="choose a directory in a writable place that nothing is mounted at or below",
        reason=Reason.MOUNT_CONFLICT,
    )


def _socket_conflict(container: Object, mount: Object, what: str = "") -> InjectionError:
    return InjectionError(
        PREFIX + "socket-path",
        f"container {quote(get_name(container))} mounts {quote(get_name(mount))} "
        f"at {quote(get_mount_path(mount))}{what}",
        fix="choose a socket path whose directory all its containers can write to and share",
        reason=Reason.MOUNT_CONFLICT,
    )
