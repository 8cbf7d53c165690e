"""Where the files lie: the runtime's ConfigMap and the socket's directory, mounted."""

from __future__ import annotations

import posixpath
import re

from asya_injector.annotations import PREFIX
from asya_injector.pods import Object, is_below, items, mapping, name_of, named, where_mounted
from asya_injector.policy import RUNTIME_FILE, RUNTIME_VOLUME, Wishes
from asya_injector.refusal import Reason, Refusal, quoted

SOCKET_VOLUME = "asya-socket"


def mount_runtime(pod: Object, model: Object, wishes: Wishes) -> None:
    """Give the model's container the runtime's files, read-only."""
    present = named(mapping(pod, "spec").get("volumes"), RUNTIME_VOLUME) or {}
    source = mapping(present, "configMap")
    is_ours = bool(
        re.fullmatch(RUNTIME_VOLUME + r"-[0-9a-f]{10}", str(source.get("name")))
        and not source.get("items")
    )
    config_map = {"name": wishes.policy.config_map, "defaultMode": 0o444}
    _add_volume(pod, {"name": RUNTIME_VOLUME, "configMap": config_map}, is_ours=is_ours)
    if is_ours:  # a copied pod may carry the runtime of another release
        source["name"] = wishes.policy.config_map
    mount = {"name": RUNTIME_VOLUME, "mountPath": wishes.directory, "readOnly": True}
    _add_runtime_mount(model, mount)
    if wishes.is_one_file:
        one_file = {"mountPath": wishes.runtime_file, "subPath": RUNTIME_FILE}
        _add_runtime_mount(model, mount | one_file)


def mount_socket(pod: Object, model: Object, sidecars: list[Object], socket_path: str) -> bool:
    """Let all containers that use the socket mount its directory.

    A volume that the user already mounts there is taken, else one of ours is made.
    Returns whether the volume is ours.
    """
    directory = posixpath.dirname(socket_path)
    mount = _socket_mount(model, directory)
    if mount is None:
        mount = {"name": SOCKET_VOLUME, "mountPath": directory}
        items(model, "volumeMounts").append(mount)
    is_ours = name_of(mount) == SOCKET_VOLUME
    if is_ours:
        present = named(mapping(pod, "spec").get("volumes"), SOCKET_VOLUME) or {}
        empty_dir = {"medium": "Memory", "sizeLimit": "1Mi"}
        volume = {"name": SOCKET_VOLUME, "emptyDir": empty_dir}
        _add_volume(pod, volume, is_ours=present.get("emptyDir") is not None)
    place = {key: mount[key] for key in ("subPath", "subPathExpr") if mount.get(key)}
    for sidecar in sidecars:
        theirs = _socket_mount(sidecar, directory)
        if theirs is None:
            theirs = {"name": mount["name"], "mountPath": directory, **place}
            items(sidecar, "volumeMounts").append(theirs)
        elif name_of(theirs) != name_of(mount):
            raise _socket_conflict(sidecar, theirs)
    return is_ours


def _add_volume(pod: Object, volume: Object, *, is_ours: bool) -> None:
    """Add a volume, or take the one of its name that is there if it has the form of ours."""
    volumes = items(pod["spec"], "volumes")
    if named(volumes, volume["name"]) is None:
        volumes.append(volume)
    elif not is_ours:
        raise Refusal(
            f"volume {quoted(volume['name'])}",
            "the pod has a volume of this name with other content",
            fix="rename it, or remove it: the injector adds its own",
            reason=Reason.VOLUME_CONFLICT,
        )


def _add_runtime_mount(model: Object, mount: Object) -> None:
    path = mount["mountPath"]
    mounts = items(model, "volumeMounts")
    for present in mounts:
        where = where_mounted(present)
        if name_of(present) == mount["name"] and where == path:
            return
        if where == path or is_below(where, path):
            raise Refusal(
                PREFIX + "mount-path",
                f"container {quoted(name_of(model))} mounts {quoted(name_of(present))} "
                f"at {quoted(where)}",
                fix="choose a directory that nothing is mounted at or below",
                reason=Reason.MOUNT_CONFLICT,
            )
    mounts.append(mount)


def _socket_mount(container: Object, directory: str) -> Object | None:
    """What a container mounts at the socket's directory; refuses what would hide the socket."""
    for mount in container.get("volumeMounts") or []:
        where = where_mounted(mount)
        if where == directory:
            result: Object = mount
            return result
        if is_below(where, directory):
            raise _socket_conflict(container, mount)
    return None


def _socket_conflict(container: Object, mount: Object) -> Refusal:
    return Refusal(
        PREFIX + "socket-path",
        f"container {quoted(name_of(container))} mounts {quoted(name_of(mount))} "
        f"at {quoted(where_mounted(mount))}",
        fix="choose a socket path whose directory all of them can share",
        reason=Reason.MOUNT_CONFLICT,
    )
