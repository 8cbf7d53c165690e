"""The chart as its tests see it: rendered by the real Helm, from values in a file."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]

REPOSITORY = Path(__file__).parents[2]
CHART = REPOSITORY / "chart"
GOLDEN = Path(__file__).parent / "golden"
RUNTIME_FILES = ("asya_entrypoint.py", "asya_runtime.py")
SYSTEM = "asya-system"

# What somebody might want, by the name of its golden rendering: namespace of the release, values.
CASES: dict[str, tuple[str, Object]] = {
    "defaults": (SYSTEM, {}),
    "in-default": ("default", {}),
    "one-replica": (SYSTEM, {"injector": {"replicas": 1}}),
    "more-namespaces": ("default", {"runtime": {"namespaces": ["models", "default", "more"]}}),
    "image-by-digest": (
        SYSTEM,
        {
            "injector": {
                "image": {
                    "repository": "images.example.com:5000/asya/injector",
                    "tag": "1.10",
                    "digest": "sha256:" + "0123456789abcdef" * 4,
                    "pullPolicy": "Always",
                    "pullSecrets": [{"name": "pull"}],
                }
            }
        },
    ),
    "scheduled": (
        SYSTEM,
        {
            "injector": {
                "replicas": 3,
                "logLevel": "debug",
                "resources": {"limits": {"memory": "512Mi"}, "requests": None},
                "nodeSelector": {"kubernetes.io/os": "linux"},
                "tolerations": [{"key": "system", "operator": "Exists"}],
                "affinity": {"nodeAffinity": {}},
                "priorityClassName": "system-cluster-critical",
            }
        },
    ),
    "other-defaults": (
        SYSTEM,
        {
            "runtime": {
                "defaults": {
                    "mode": None,
                    "sidecars": "",
                    "probe": False,
                    "chunk-size": 4194304,
                    "handler-timeout": 2.5,
                    "read-timeout": 100,
                }
            }
        },
    ),
    "in-a-parent-chart": (SYSTEM, {"enabled": True, "global": {"imageRegistry": "example.com"}}),
}


class HelmError(Exception):
    """Helm would not; its own words."""


def helm() -> str:
    """The Helm to test with: `HELM`, else the project's, else the one on PATH; empty if none."""
    here = f"{REPOSITORY / '.tools/bin'}{os.pathsep}{os.environ.get('PATH', '')}"
    return os.environ.get("HELM") or shutil.which("helm", path=here) or ""


def render(
    values: Object, *, chart: Path = CHART, namespace: str = SYSTEM, release: str = "asya-runtime"
) -> str:
    """What `helm template` prints; raises HelmError."""
    # Helm offers no server here: it renders for the version it is told, by default one of its own.
    words = ["-n", namespace, "--kube-version", "1.30.0", "-f", "-"]
    return run("template", release, chart, *words, stdin=yaml.safe_dump(values))


@functools.cache
def case(name: str, chart: Path) -> str:
    """The rendering of one of the CASES."""
    namespace, values = CASES[name]
    return render(values, chart=chart, namespace=namespace)


def run(*words: str | Path, stdin: str | None = None) -> str:
    """Standard output of Helm; raises HelmError."""
    done = subprocess.run(
        [helm(), *words], input=stdin, capture_output=True, text=True, timeout=60, check=False
    )
    if done.returncode:
        raise HelmError(done.stderr)
    return done.stdout


class _Strict(yaml.SafeLoader):
    """YAML as the API server's strict decoding has it: no key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        result = super().construct_mapping(node, deep=True)
        if len(result) != len(node.value):
            raise yaml.constructor.ConstructorError(
                None, None, "a key is there twice", node.start_mark
            )
        return result


def identity(item: Object) -> tuple[str, str, str]:
    """Kind, namespace and name."""
    metadata = item["metadata"]
    return item["kind"], metadata.get("namespace", ""), metadata["name"]


def objects(text: str) -> dict[tuple[str, str, str], Object]:
    """A rendering's objects; their order is Helm's business."""
    found = [item for item in yaml.load_all(text, _Strict) if item is not None]
    result = {identity(item): item for item in found}
    assert len(result) == len(found), "an object is there twice"
    return result


def copied(to: Path, files: dict[str, str] | None = None) -> Path:
    """A copy of the chart that holds other files than the runtime's: short ones by default."""
    chart = to / "chart"
    shutil.copytree(CHART, chart)
    shutil.rmtree(chart / "files")
    (chart / "files").mkdir()
    if files is None:
        files = {name: f"# {name}\n" for name in RUNTIME_FILES}
    for name, text in files.items():
        (chart / "files" / name).write_bytes(text.encode())
    return chart
