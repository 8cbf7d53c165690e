"""The runtime files: their content, their hash and the ConfigMap that holds them."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Self

RUNTIME_VOLUME = "asya-runtime"
SOCKET_VOLUME = "asya-socket"
RUNTIME_FILE = "asya_runtime.py"
ENTRYPOINT_FILE = "asya_entrypoint.py"
RUNTIME_HASH_LABEL = "asya.sh/runtime-hash"
MANAGED_BY = {"app.kubernetes.io/managed-by": "asya-injector"}
# On a ConfigMap from a manifest; `prune` keeps it, because the manifest's pods may come back.
FROM_MANIFEST = {"asya.sh/source": "manifest"}
# Labels of the chart's objects and of the injector's pods; annotation of the chart's ConfigMap.
CHART = {"app.kubernetes.io/part-of": "asya-runtime"}
INJECTOR = {"app.kubernetes.io/name": "asya-injector"} | CHART
CHART_SHA256 = "asya.sh/runtime-sha256"


@dataclass(frozen=True)
class RuntimeFiles:
    """The content of the runtime files, by file name."""

    files: Mapping[str, str]

    @classmethod
    def load(cls, directory: Traversable) -> Self:
        """Read the files from a directory; raises OSError or UnicodeDecodeError."""
        names = (RUNTIME_FILE, ENTRYPOINT_FILE)
        return cls({name: (directory / name).read_bytes().decode() for name in names})

    @classmethod
    def packaged(cls) -> Self:
        """The files installed with this program, or those of the checkout it runs from."""
        installed = files(__package__) / "data"  # which may be in a zip file
        return cls.load(installed if installed.is_dir() else Path(__file__).parents[2] / "runtime")

    @property
    def sha256(self) -> str:
        """What `sha256sum *.py | sha256sum` prints in a directory that holds only these files."""
        sums = "".join(
            f"{hashlib.sha256(text.encode()).hexdigest()}  {name}\n"
            for name, text in sorted(self.files.items())
        )
        return hashlib.sha256(sums.encode()).hexdigest()

    @property
    def hash(self) -> str:
        """The first 10 hex digits of `sha256`; they identify a version of the runtime."""
        return self.sha256[:10]

    def config_map(self) -> dict[str, Any]:
        """The runtime ConfigMap, without a namespace."""
        return {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": f"{RUNTIME_VOLUME}-{self.hash}",
                "labels": MANAGED_BY | {RUNTIME_HASH_LABEL: self.hash},
            },
            "immutable": True,
            "data": dict(self.files),
        }


class Unusable(StrEnum):
    """Why pods must not run the files of a ConfigMap that has the name of a runtime ConfigMap."""

    DELETED = "is being deleted"
    DIFFERENT = "has different content"
    BINARY = "has binaryData"
    MUTABLE = "is not immutable"


def find_unusable(item: Mapping[str, Any], *, has_same_files: bool) -> Unusable | None:
    """The first reason; None if pods may run them. has_same_files: what its data are."""
    reasons = {
        Unusable.DELETED: bool((item.get("metadata") or {}).get("deletionTimestamp")),
        Unusable.DIFFERENT: not has_same_files,
        Unusable.BINARY: bool(item.get("binaryData")),
        Unusable.MUTABLE: item.get("immutable") is not True,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def is_runtime_configmap_name(name: str) -> bool:
    """Whether a runtime ConfigMap has a name like this: its hash, and the stream it came with."""
    return re.fullmatch(RUNTIME_VOLUME + r"-[0-9a-f]{10}(-[0-9a-f]{8})?", name) is not None
