"""Mount the runtime files and the directory of the socket."""

import posixpath
from functools import cached_property

from asya_injector.annotations.settings import Decision, Settings
from asya_injector.annotations.table import PREFIX
from asya_injector.errors import InjectionError, Reason, quote
from asya_injector.kube_objects import (
    Object,
    find_by_name,
    get_in,
    get_items,
    get_mapping,
    get_name,
    get_string,
)
from asya_injector.mutation import environment, hidden_paths
from asya_injector.mutation.injection_record import (
    SOCKET_SOURCE,
    is_socket_volume,
)
from asya_injector.mutation.runtime_volume import (
    build_mounts,
    build_volume,
    is_directory_mount,
    is_runtime_volume,
    is_used_as_added,
    update_volume,
)
from asya_injector.runtime_files import RUNTIME_FILE, RUNTIME_VOLUME, SOCKET_VOLUME

# The kubelet mounts these read-only in any case, so nothing can be mounted inside. The others are
# read-only if the source says so, as a claim does with `persistentVolumeClaim.readOnly`.
_READ_ONLY_SOURCES = ("configMap", "secret", "projected", "downwardAPI", "image")
_SOURCE_FIELDS = ("name", "subPath", "subPathExpr", "devicePath")
_FIXES = {
    "mount-path": "choose a writable directory with no mount at or below it",
    "socket-path": "choose a directory that all containers with the socket can share and write to",
}
_DEDICATED = {
    "mount-path": 'choose a dedicated directory, such as "/opt/asya"',
    "socket-path": 'choose a dedicated directory, such as "/tmp/sockets"',
}


class _Volumes:
    """The volumes of a pod by name; of two with the same name the first, as `find_by_name`.

    Few pods need them, and a hostile one has thousands.
    """

    def __init__(self, pod: Object) -> None:
        self._volumes = get_items(get_mapping(pod, "spec"), "volumes")

    def get(self, name: str) -> Object:
        """A volume; empty if there is none of this name."""
        return self._by_name.get(name, {})

    @cached_property
    def _by_name(self) -> dict[str, Object]:
        return {get_name(volume): volume for volume in reversed(self._volumes)}


def mount_runtime(
    pod: Object, target: Object, settings: Settings, python: str, *, is_added: bool
) -> None:
    """Mount the runtime files in the target.

    python: their interpreter. is_added: an earlier injection has added the volume.
    """
    _reject_hidden_python("mount-path", target, settings.directory, python)
    _add_volume(pod, build_volume(settings.defaults), is_added=is_added)
    volumes = _Volumes(pod)
    directory, *one_file = build_mounts(settings)
    handler = settings["handler"]
    _add_runtime_mount(volumes, target, directory, f"{settings.directory}/{RUNTIME_FILE}", handler)
    # In these modes, the container's own command may start the runtime.
    is_started = settings["mode"] in ("runtime", "mount")
    for mount in one_file:
        _reject_hidden_handler(settings)
        own_handler = "" if is_started else handler
        _add_runtime_mount(volumes, target, mount, settings.runtime_file, own_handler)


def mount_socket(
    pod: Object, target: Object, sidecars: list[Object], path: str, *, handler: str, python: str
) -> Decision:
    """Mount the directory of the socket in the target and the sidecars; returns the volume.

    A volume that the target already mounts there is used, otherwise an emptyDir is added.
    python: the interpreter of the runtime files.
    """
    directory = posixpath.dirname(path)
    mount = _find_socket_mount(target, directory)
    is_mounted = mount is not None
    if mount is None:
        mount = {"name": SOCKET_VOLUME, "mountPath": directory}
    if get_name(mount) == SOCKET_VOLUME:
        _add_volume(pod, {"name": SOCKET_VOLUME, "emptyDir": dict(SOCKET_SOURCE)})
    volumes = _Volumes(pod)
    if not is_mounted:
        _reject_hidden_python("socket-path", target, directory, python)
        _add_mount(volumes, target, mount, path, handler)
    elif _is_read_only(volumes, mount):
        raise _conflict(
            "socket-path", target, mount, " read-only, so the socket cannot be created there"
        )
    for sidecar in sidecars:
        sidecar_path = environment.resolve_sidecar_socket_path(sidecar, path)
        _mount_in_sidecar(volumes, sidecar, sidecar_path, target, mount)
    reason = f"the container mounts {'it' if is_mounted else 'no volume'} at {directory}"
    return Decision(get_name(mount), reason)


def _mount_in_sidecar(
    volumes: _Volumes, sidecar: Object, path: str, target: Object, mount: Object
) -> None:
    """Mount what the target mounts, at another directory."""
    directory = posixpath.dirname(path)
    present = _find_socket_mount(sidecar, directory)
    if present is None:
        if mount.get("subPathExpr"):
            raise _conflict(
                "socket-path", target, mount, " with subPathExpr, which may differ in the sidecar"
            )
        sub_path = {"subPath": mount["subPath"]} if mount.get("subPath") else {}
        added = {"name": get_name(mount), "mountPath": directory, **sub_path}
        _add_mount(volumes, sidecar, added, path)
    elif _get_source(present) != _get_source(mount):
        raise _conflict("socket-path", sidecar, present, ", which does not hold the socket")


def _reject_hidden_python(setting: str, target: Object, directory: str, python: str) -> None:
    if hidden_paths.is_at_or_below(python, directory):
        raise _hiding(setting, target, directory, quote(python), _DEDICATED[setting])


def _reject_hidden_handler(settings: Settings) -> None:
    """Reject a runtime file with the name of the handler's module, which it would hide."""
    file = posixpath.basename(settings.runtime_file)
    if settings["handler"].partition(".")[0] == file.removesuffix(".py"):
        raise InjectionError(
            PREFIX + "mount-path",
            f"{quote(settings.runtime_file)} has the name of the handler's module",
            fix="name the file asya_runtime.py",
            reason=Reason.MOUNT_CONFLICT,
        )


def _add_volume(pod: Object, volume: Object, *, is_added: bool = False) -> None:
    """Add a volume, or use the volume of this name if it has the same form, or was added before."""
    spec = pod["spec"]
    volumes = get_items(spec, "volumes")
    present = find_by_name(volumes, volume["name"])
    if present is None:
        spec["volumes"] = [*volumes, volume]
    elif is_runtime_volume(present) and (
        is_added or "configMap" in present or is_used_as_added(pod)
    ):
        # A copied pod may mount the runtime of another release.
        updated = update_volume(present, volume)
        spec["volumes"] = [updated if item is present else item for item in volumes]
    elif not is_socket_volume(present):
        raise InjectionError(
            f"volume {quote(volume['name'])}",
            "the pod has a volume of this name with other content",
            fix="rename or remove it, because the injector adds this volume",
            reason=Reason.VOLUME_CONFLICT,
        )


def _add_runtime_mount(
    volumes: _Volumes, target: Object, mount: Object, own: str, handler: str
) -> None:
    """Add a mount of the runtime files, or use the one that is there.

    own, handler: as in `_add_mount`.
    """
    path = mount["mountPath"]
    mounts = get_items(target, "volumeMounts")
    for present in mounts + get_items(target, "volumeDevices"):
        where = _get_path(present)
        if where == path and _get_source(present) == _get_source(mount):
            return
        if where == path and is_directory_mount(present) and is_directory_mount(mount):
            # Of a pod that was copied from one with the other form of the volume.
            target["volumeMounts"] = [mount if item is present else item for item in mounts]
            return
        if where == path or _is_within(where, path):
            raise _conflict("mount-path", target, present)
    _add_mount(volumes, target, mount, own, handler)


def _add_mount(
    volumes: _Volumes, container: Object, mount: Object, own: str, handler: str = ""
) -> None:
    """Add a mount; rejects one that hides something, and one inside a read-only mount.

    own: the injector's file in the mount, or the mount itself if that is one file.
    handler: of the container; empty if it has none, or if its program may be that file.
    """
    path = mount["mountPath"]
    setting = "mount-path" if get_name(mount) == RUNTIME_VOLUME else "socket-path"
    if path != own:
        hidden = hidden_paths.find_hidden(container, path, own, handler)
        fix = _DEDICATED[setting]
    else:
        hidden = hidden_paths.find_hidden_file(container, path, handler) if handler else ""
        fix = f"name the file {RUNTIME_FILE}"
    if hidden:
        raise _hiding(setting, container, path, hidden, fix)
    mounts = get_items(container, "volumeMounts")
    paths = map(_get_path, mounts)
    above = [(len(each), -index) for index, each in enumerate(paths) if _is_within(path, each)]
    nearest = mounts[-max(above)[1]] if above else None
    # No mount point can be created inside a read-only mount.
    if nearest is not None and _is_read_only(volumes, nearest):
        what = f" read-only, so nothing can be mounted at {quote(path)} inside it"
        raise _conflict(setting, container, nearest, what)
    container["volumeMounts"] = [*mounts, mount]


def _find_socket_mount(container: Object, directory: str) -> Object | None:
    """The mount at the directory of the socket; rejects one that hides the socket or its own."""
    found = None
    for mount in get_items(container, "volumeMounts") + get_items(container, "volumeDevices"):
        where = _get_path(mount)
        if where == directory and "devicePath" not in mount:
            found = mount
        elif hidden_paths.is_at_or_below(where, directory):
            raise _conflict("socket-path", container, mount)
    return found


def _is_read_only(volumes: _Volumes, mount: Object) -> bool:
    volume = volumes.get(get_name(mount))
    if mount.get("readOnly") or any(volume.get(each) is not None for each in _READ_ONLY_SOURCES):
        return True
    claim = get_in(volume, "ephemeral", "volumeClaimTemplate", "spec")
    if claim.get("accessModes") == ["ReadOnlyMany"]:
        return True
    return any(get_in(source).get("readOnly") for source in volume.values())


def _get_path(mount: Object) -> str:
    """The normalized path of a mount or device; the kubelet resolves a relative one from /."""
    field = "devicePath" if "devicePath" in mount else "mountPath"
    return hidden_paths.normalize(get_string(mount, field))


def _is_within(path: str, directory: str) -> bool:
    """Whether a normalized path is inside a normalized directory."""
    return path != directory and hidden_paths.is_at_or_below(path, directory)


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


def _hiding(setting: str, container: Object, path: str, hidden: str, fix: str) -> InjectionError:
    return InjectionError(
        PREFIX + setting,
        f"a volume at {quote(path)} would hide {hidden} of container {quote(get_name(container))}",
        fix=fix,
        reason=Reason.MOUNT_CONFLICT,
    )
