"""What holds for a pod: its own annotations over what the cluster's administrator decided."""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass

from asya_injector.annotations.parse import parse_value
from asya_injector.annotations.table import BY_NAME
from asya_injector.runtime_files import RUNTIME_FILE, RUNTIME_VOLUME


@dataclass(frozen=True)
class ClusterDefaults:
    """The administrator's part: the runtime's hash and the chart's values.

    `defaults` maps annotation names (without prefix) to values; they are checked here, once.
    Raises Refusal for a value that is not valid, KeyError for a name that does not exist.
    """

    runtime_hash: str
    defaults: Mapping[str, str]

    def __post_init__(self) -> None:
        canonical = {name: parse_value(name, text) for name, text in self.defaults.items()}
        object.__setattr__(self, "defaults", canonical)

    @property
    def config_map(self) -> str:
        """Name of the ConfigMap that pods mount."""
        return f"{RUNTIME_VOLUME}-{self.runtime_hash}"


@dataclass(frozen=True)
class Settings:
    """All that is asked for one pod. `annotated` holds canonical values by name."""

    annotated: Mapping[str, str]
    policy: ClusterDefaults

    def __getitem__(self, name: str) -> str:
        """The value that holds; empty where nothing is said and there is no default."""
        default = self.policy.defaults.get(name, BY_NAME[name].default or "")
        return self.annotated.get(name, default)

    @property
    def digest(self) -> str:
        """Ten hex digits that differ where anything asked for, or decided, differs."""
        said = [self.policy.runtime_hash, dict(self.policy.defaults), dict(self.annotated)]
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:10]

    @property
    def runtime_file(self) -> str:
        """Path of the runtime in the container."""
        path = self["mount-path"]
        return path if path.endswith(".py") else f"{path}/{RUNTIME_FILE}"

    @property
    def directory(self) -> str:
        """Where runtime and wrapper are mounted; with a one-file path, beside that."""
        path = self["mount-path"]
        return BY_NAME["mount-path"].default or "" if path.endswith(".py") else path

    @property
    def is_one_file(self) -> bool:
        """Whether the runtime has a mount of its own outside the directory."""
        return posixpath.dirname(self.runtime_file) != self.directory
