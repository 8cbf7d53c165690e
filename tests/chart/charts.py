"""The chart as its tests see it: rendered by the real Helm, from values in a file."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import textwrap
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]
# By kind, namespace and name.
Objects = dict[tuple[str, str, str], Object | None]

REPOSITORY = Path(__file__).parents[2]
CHART = REPOSITORY / "chart"
GOLDEN = Path(__file__).parent / "golden"
RUNTIME_FILES = ("asya_entrypoint.py", "asya_runtime.py")
SYSTEM = "asya-system"
EXAMPLE = REPOSITORY / "examples/chart-with-helpers"
CA = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"

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
    "config-maps-alone": (
        SYSTEM,
        {
            "injector": {"enabled": False},
            "prune": {"enabled": True},
            "runtime": {"configMap": {"name": "runtime-files"}, "namespaces": ["models"]},
        },
    ),
    "nothing": (
        SYSTEM,
        {"injector": {"enabled": False}, "runtime": {"configMap": {"create": False}}},
    ),
    "cert-manager": (SYSTEM, {"certificates": {"mode": "certManager"}}),
    "cert-manager-with-an-issuer": (
        "default",
        {
            "certificates": {
                "mode": "certManager",
                "certManager": {
                    "issuerRef": {"name": "corporate", "kind": "ClusterIssuer"},
                    "duration": "720h",
                    "renewBefore": "240h",
                },
            },
            "webhook": {"annotations": {"admissions.enforcer/disabled": "true"}},
        },
    ),
    "existing-secret": (
        SYSTEM,
        {
            "certificates": {
                "mode": "existingSecret",
                "existingSecret": {"name": "our-certificate", "caBundle": CA},
            }
        },
    ),
    "existing-secret-with-cainjector": (
        SYSTEM,
        {
            "certificates": {"mode": "existingSecret", "existingSecret": {"name": "ours"}},
            "webhook": {"annotations": {"cert-manager.io/inject-ca-from-secret": "cas/ca"}},
        },
    ),
    "prune": (SYSTEM, {"prune": {"enabled": True, "schedule": "@weekly"}}),
    "watched": (
        SYSTEM,
        {
            "metrics": {
                "port": 9090,
                "service": {"annotations": {"example.com/scrape": "true"}},
                "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
            },
            "networkPolicy": {
                "enabled": True,
                "metricsFrom": [{"namespaceSelector": {"matchLabels": {"team": "watch"}}}],
            },
        },
    ),
    "metrics-service": (
        SYSTEM,
        {"metrics": {"service": {"enabled": True}}, "networkPolicy": {"enabled": True}},
    ),
    "selectors": (
        SYSTEM,
        {
            "webhook": {
                "failurePolicy": "Ignore",
                "timeoutSeconds": 10,
                "port": 10250,
                "namespaceSelector": {
                    "matchLabels": {"models": "yes"},
                    "matchExpressions": [{"key": "team", "operator": "In", "values": ["a", "b"]}],
                },
                "objectSelector": {"matchLabels": {"actors": "yes"}},
            }
        },
    ),
    "labelled": (
        SYSTEM,
        {
            "commonLabels": {"team": "models"},
            "commonAnnotations": {"example.com/contact": "us"},
            "injector": {"podLabels": {"mesh": "off"}, "podAnnotations": {"example.com/a": "b"}},
            "prune": {"enabled": True},
            "metrics": {"serviceMonitor": {"enabled": True, "labels": {"team": "watch"}}},
            "serviceAccount": {"annotations": {"example.com/role": "none"}},
            "certificates": {"mode": "certManager"},
        },
    ),
    "extended": (
        SYSTEM,
        {
            "injector": {
                "extraEnv": [
                    {"name": "HTTPS_PROXY", "value": "http://proxy:3128"},
                    {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
                ],
                "extraVolumes": [{"name": "more", "emptyDir": {}}],
                "extraVolumeMounts": [{"name": "more", "mountPath": "/more"}],
                "podDisruptionBudget": {"maxUnavailable": "50%"},
            }
        },
    ),
    "contexts-taken-away": (
        SYSTEM,
        {
            "injector": {
                "podSecurityContext": None,
                "securityContext": {"readOnlyRootFilesystem": None},
                "podDisruptionBudget": {"enabled": False},
                "resources": None,
            },
            "prune": {"enabled": True},
        },
    ),
    "host-network": (SYSTEM, {"injector": {"hostNetwork": True}}),
    "accounts-of-others": (
        SYSTEM,
        {
            "serviceAccount": {"create": False, "name": "theirs"},
            "rbac": {"create": False},
            "prune": {"enabled": True},
            "tests": {"enabled": False},
        },
    ),
}


class HelmError(Exception):
    """Helm would not; its own words."""


def helm(name: str = "helm") -> str:
    """Path of `helm` or `helm3`: the one that HELM or HELM3 names, else the project's, else the one
    on PATH; empty if there is none.
    """
    here = f"{REPOSITORY / '.tools/bin'}{os.pathsep}{os.environ.get('PATH', '')}"
    return os.environ.get(name.upper()) or shutil.which(name, path=here) or ""


def render(
    values: Object,
    *,
    chart: Path = CHART,
    namespace: str = SYSTEM,
    release: str = "asya-runtime",
    tool: str = "helm",
    kubernetes: str = "1.30.0",
) -> str:
    """What `helm template` prints; raises HelmError."""
    # Helm offers no server here: it renders for the version it is told, by default one of its own.
    words = ["-n", namespace, "--kube-version", kubernetes, "-f", "-"]
    return run("template", release, chart, *words, stdin=yaml.safe_dump(values), tool=tool)


@functools.cache
def case(name: str, chart: Path, tool: str = "helm") -> str:
    """The rendering of one of the CASES."""
    namespace, values = CASES[name]
    return render(values, chart=chart, namespace=namespace, tool=tool)


def run(*words: str | Path, stdin: str | None = None, tool: str = "helm", **env: str) -> str:
    """Standard output of Helm; raises HelmError."""
    done = subprocess.run(
        [helm(tool), *words],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | env,
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


def objects(text: str) -> dict[tuple[str, str, str], Any]:
    """A rendering's objects; their order is Helm's business."""
    found = [item for item in yaml.load_all(text, _Strict) if item is not None]
    result = {identity(item): item for item in found}
    assert len(result) == len(found), "an object is there twice"
    return result


def difference(found: Objects, usual: Objects) -> Objects:
    """What is other than usual; None for what is there usually."""
    absent = dict.fromkeys(usual.keys() - found.keys())
    return {key: item for key, item in found.items() if usual.get(key) != item} | absent


def written(changes: Objects) -> str:
    """A difference as the text of a golden file."""
    gone = sorted(key for key, item in changes.items() if item is None)
    there = [item for _, item in sorted(changes.items()) if item is not None]
    return yaml.safe_dump_all([{"absent": [list(key) for key in gone]}, *there], width=110)


def read(text: str) -> Objects:
    """A golden file as the difference it holds."""
    head, *there = yaml.load_all(text, _Strict)
    gone: Objects = {tuple(key): None for key in head["absent"]}
    return gone | {identity(item): item for item in there}


# Few enough for the golden renderings, which so stay as they are when a setting is added.
_FEW_DEFAULTS = {"mode": "auto", "sidecars": "asya-sidecar", "probe": True, "chunk-size": 4096}


def copied(to: Path, files: dict[str, str] | None = None) -> Path:
    """A copy of the chart that holds other files than the runtime's: short ones by default.

    Of `runtime.defaults` it has a few.
    """
    chart = to / "chart"
    shutil.copytree(CHART, chart)
    values = chart / "values.yaml"
    generated = r"(?s) *# BEGIN generated: runtime defaults.*?# END generated\n"
    few = textwrap.indent(yaml.safe_dump(_FEW_DEFAULTS), 4 * " ")
    text, found = re.subn(generated, few, values.read_text())
    assert found == 1
    values.write_text(text)
    shutil.rmtree(chart / "files")
    (chart / "files").mkdir()
    if files is None:
        files = {name: f"# {name}\n" for name in RUNTIME_FILES}
    for name, text in files.items():
        (chart / "files" / name).write_bytes(text.encode())
    return chart


def nested(path: str, value: object) -> Object:
    """Values that say one thing, by its path."""
    for key in reversed(path.split("/")):
        value = {key: value}
    assert isinstance(value, dict)
    return value
