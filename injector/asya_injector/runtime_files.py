"""A version of the runtime: its files, the hash that names it, the ConfigMap that carries it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RUNTIME_VOLUME = "asya-runtime"
RUNTIME_FILE = "asya_runtime.py"
ENTRYPOINT_FILE = "asya_entrypoint.py"
RUNTIME_HASH_LABEL = "asya.sh/runtime-hash"
MANAGED_BY = {"app.kubernetes.io/managed-by": "asya-injector"}
# On a copy that manifests brought: `prune` leaves it, since they may bring a pod again.
FROM_MANIFEST = {"asya.sh/source": "manifest"}
# How the chart marks its objects, the injector's pods, and its own ConfigMap with the runtime.
CHART = {"app.kubernetes.io/part-of": "asya-runtime"}
INJECTOR = {"app.kubernetes.io/name": "asya-injector"} | CHART
CHART_SHA256 = "asya.sh/runtime-sha256"


@dataclass(frozen=True)
class RuntimeFiles:
    """The runtime's files, by name, and the hash that names them.

    The hash is the first 10 hex digits of what `sha256sum *.py | sha256sum` says in a directory
    that holds them; the chart's ConfigMap has the whole of it as an annotation.
    """

    files: Mapping[str, str]

    @classmethod
    def load(cls, directory: Path) -> RuntimeFiles:
        """Read both files of the runtime; raises OSError or UnicodeDecodeError."""
        names = (RUNTIME_FILE, ENTRYPOINT_FILE)
        return cls({name: (directory / name).read_bytes().decode() for name in names})

    @classmethod
    def packaged(cls) -> RuntimeFiles:
        """The version that was installed with this program; in a checkout, that of the checkout."""
        installed = Path(__file__).parent / "data"
        return cls.load(installed if installed.is_dir() else Path(__file__).parents[2] / "runtime")

    @property
    def sha256(self) -> str:
        """The whole of the hash."""
        sums = "".join(
            f"{hashlib.sha256(text.encode()).hexdigest()}  {name}\n"
            for name, text in sorted(self.files.items())
        )
        return hashlib.sha256(sums.encode()).hexdigest()

    @property
    def hash(self) -> str:
        """What tells two versions of the runtime apart."""
        return self.sha256[:10]

    def config_map(self) -> dict[str, Any]:
        """The object that each namespace with an actor holds."""
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


def is_runtime_configmap_name(name: str) -> bool:
    """Whether a ConfigMap of this name is for a version of the runtime."""
    return re.fullmatch(RUNTIME_VOLUME + r"-[0-9a-f]{10}", name) is not None
