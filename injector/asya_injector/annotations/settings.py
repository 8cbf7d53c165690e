"""The settings of a pod: its annotations override the cluster defaults."""

import hashlib
import json
import posixpath
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from asya_injector.annotations.formats import SOCKET_PATH_RULE, find_use
from asya_injector.annotations.parse import invalid_value, parse_value
from asya_injector.annotations.sidecar import SidecarTemplate
from asya_injector.annotations.table import BY_NAME
from asya_injector.errors import InjectionError, Reason, quote
from asya_injector.runtime_files import RUNTIME_FILE, RUNTIME_VOLUME
from asya_injector.runtime_image import RuntimeImage

_encode = json.JSONEncoder(sort_keys=True).encode


@dataclass(frozen=True)
class Decision:
    """A choice of the injector; the reason is a clause that can follow "because"."""

    value: str
    reason: str


def reject_file(mount_path: str) -> None:
    """Reject a mount path that is a file: of an image, only directories can be mounted."""
    if mount_path.endswith(".py"):
        raise InjectionError(
            BY_NAME["mount-path"].key,
            f"{quote(mount_path)} is a file, but an image volume mounts only directories",
            fix=f"choose a directory, such as {quote(BY_NAME['mount-path'].default)}",
            reason=Reason.MOUNT_PATH_UNSUPPORTED,
        )


@dataclass(frozen=True)
class ClusterDefaults:
    """The runtime's hash and the chart's values, by annotation name.

    runtime_hash: for an image with other files than this program's, what `identify` returns.
    stream: suffix of the runtime ConfigMap's name, for manifests that bring their own.
    sidecar: the container to add to pods; None if there is none.
    image: what pods mount in place of a ConfigMap.
    Raises InjectionError for an invalid value, KeyError for an unknown name.
    """

    runtime_hash: str
    values: Mapping[str, str]
    stream: str = ""
    sidecar: SidecarTemplate | None = None
    image: RuntimeImage | None = None

    def __post_init__(self) -> None:
        canonical = {name: parse_value(name, text) for name, text in self.values.items()}
        socket_path = canonical.get("socket-path", "")
        if socket_path and find_use(posixpath.dirname(socket_path)):
            raise invalid_value("socket-path", socket_path, SOCKET_PATH_RULE)
        if self.image:
            reject_file(canonical.get("mount-path", ""))
        object.__setattr__(self, "values", canonical)

    @cached_property
    def effective(self) -> Mapping[str, str]:
        """The values of all settings that no annotation sets; empty where there is no default."""
        return {name: self.values.get(name, entry.default or "") for name, entry in BY_NAME.items()}

    @cached_property
    def changed(self) -> frozenset[str]:
        """The names of the settings whose value differs from the table's default."""
        return frozenset(
            name for name, entry in BY_NAME.items() if self.effective[name] != (entry.default or "")
        )

    @cached_property
    def declared(self) -> frozenset[str]:
        """The keys of the annotations that the sidecar declares."""
        return frozenset(self.sidecar.declared if self.sidecar else ())

    @cached_property
    def config_map(self) -> str:
        """The name of the runtime ConfigMap that pods mount."""
        return "-".join(filter(None, (RUNTIME_VOLUME, self.runtime_hash, self.stream)))


@dataclass(frozen=True)
class Settings:
    """The settings of one pod.

    annotated: canonical values of the annotations, by name.
    inherited: keys of the annotations that come from the workload.
    parameters: values of the annotations that the sidecar declares, by key.
    """

    annotated: Mapping[str, str]
    defaults: ClusterDefaults
    inherited: Collection[str] = ()
    parameters: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> str:
        """The value of a setting; empty where there is none and no default."""
        value = self.annotated.get(name)
        return self.defaults.effective[name] if value is None else value

    def get_source(self, name: str) -> str:
        """What sets the value: `annotation`, `workload` (its annotation), `chart` or `default`."""
        entry = BY_NAME[name]
        if name in self.annotated:
            return "workload" if entry.key in self.inherited else "annotation"
        return "default" if self[name] == (entry.default or "") else "chart"

    @cached_property
    def digest(self) -> str:
        """Ten hex digits that differ where an annotation or a default differs.

        The image is not among them: a pod that mounts something else is changed in place.
        """
        content = [self.defaults.runtime_hash, dict(self.defaults.values), dict(self.annotated)]
        if self.defaults.sidecar:
            content += [self.defaults.sidecar.digest, dict(self.parameters)]
        return hashlib.sha256(_encode(content).encode()).hexdigest()[:10]

    @cached_property
    def runtime_file(self) -> str:
        """The path of the runtime in the container."""
        path = self["mount-path"]
        return path if path.endswith(".py") else f"{path}/{RUNTIME_FILE}"

    @cached_property
    def directory(self) -> str:
        """The directory of the runtime files; the default one if the mount path is a file."""
        path = self["mount-path"]
        return BY_NAME["mount-path"].default or "" if path.endswith(".py") else path

    @property
    def is_one_file(self) -> bool:
        """Whether the runtime needs a mount outside the directory."""
        return posixpath.dirname(self.runtime_file) != self.directory
