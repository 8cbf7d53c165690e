"""Renders the chart with Helm, and reads and writes its golden renderings."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from asya_injector.runtime_image import MIN_KUBERNETES

Object = dict[str, Any]
# By kind, namespace and name.
Objects = dict[tuple[str, str, str], Object | None]

REPOSITORY = Path(__file__).parents[2]
CHART = REPOSITORY / "chart"
GOLDEN = Path(__file__).parent / "golden"
RUNTIME_FILES = ("asya_entrypoint.py", "asya_runtime.py")
SYSTEM = "asya-system"
EXAMPLE = REPOSITORY / "examples/chart-with-helpers"
# The chart in the sources names no image. Values of a test take precedence over this file.
WITH_IMAGE = ("-f", str(Path(__file__).parent / "image.yaml"))
CA = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"

# The value `sidecar`, with most kinds of fields.
SIDECAR: Object = {
    "container": {
        "name": "asya-sidecar",
        "image": "registry.example.com/queue:1",
        "args": ["--url=$(URL)", "--literal=$$(URL)"],
        "env": [
            {"name": "URL", "valueFrom": {"secretKeyRef": {"name": "broker", "key": "url"}}},
            {"name": "PREFETCH", "value": "10"},
        ],
        "ports": [{"name": "queue-metrics", "containerPort": 9000}],
        "lifecycle": {"preStop": {"exec": {"command": ["kill", "-USR1", "1"]}}},
        "resources": {"requests": {"cpu": 0.5, "memory": "32Mi"}, "limits": {"memory": 67108864}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumeMounts": [{"name": "broker-ca", "mountPath": "/ca", "readOnly": True}],
    },
    "annotations": {
        "asya.sh/queue": {"env": "QUEUE", "required": True},
        "asya.sh/prefetch": {"env": "PREFETCH"},
    },
    "volumes": [{"name": "broker-ca", "secret": {"secretName": "broker-ca"}}],
    "imagePullSecrets": [{"name": "pull.example.com"}],
}
# Installations by name: namespace of the release, and values. Each has a golden rendering.
CASES: dict[str, tuple[str, Object]] = {
    "defaults": (SYSTEM, {}),
    "namespace-default": ("default", {}),
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
    "runtime-from-image": (
        SYSTEM,
        {"runtime": {"delivery": "image"}, "prune": {"enabled": True}},
    ),
    "runtime-from-another-image": (
        SYSTEM,
        {
            "runtime": {
                "delivery": "image",
                "image": {
                    "repository": "images.example.com/runtime-files",
                    "tag": "3",
                    "digest": "sha256:" + "fedcba9876543210" * 4,
                    "pullPolicy": "Always",
                },
                "configMap": {"create": False},
            },
            "certificates": {"mode": "certManager"},
        },
    ),
    "scheduling": (
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
    "sidecar": (SYSTEM, {"sidecar": SIDECAR}),
    "parent-chart": (SYSTEM, {"enabled": True, "global": {"imageRegistry": "example.com"}}),
    "no-injector": (
        SYSTEM,
        {
            "injector": {"enabled": False},
            "prune": {"enabled": True},
            "runtime": {"configMap": {"name": "runtime-files"}, "namespaces": ["models"]},
        },
    ),
    "empty": (
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
    "monitoring": (
        SYSTEM,
        {
            "metrics": {
                "port": 9090,
                "service": {"annotations": {"example.com/scrape": "true"}},
                "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
                "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
                "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
                "dashboard": {"enabled": True, "labels": {"grafana_folder": "asya"}},
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
    "common-labels": (
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
    "extra-env-and-volumes": (
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
    "null-security-contexts": (
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
    "existing-accounts": (
        SYSTEM,
        {
            "serviceAccount": {"create": False, "name": "theirs"},
            "rbac": {"create": False},
            "prune": {"enabled": True},
            "tests": {"enabled": False},
        },
    ),
}


# Helm runs for a tenth of a second. Garbage collection would be a fifth of its CPU time.
_ENVIRON = {"GOGC": "off"}


class HelmError(Exception):
    """Helm failed, with its output as the text."""


def helm(name: str = "helm") -> str:
    """Path of `helm` or `helm3`, empty if it is not installed.

    The variables HELM and HELM3 take precedence over .tools/bin and PATH.
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
    kubernetes: str = "",
) -> str:
    """Render the chart with `helm template`; raises HelmError.

    kubernetes: the version; by default, the first that supports the values.
    """
    kubernetes = kubernetes or find_kubernetes(values)
    # Without a server, Helm renders for the given version of Kubernetes.
    words = ["-n", namespace, "--kube-version", kubernetes, *WITH_IMAGE, "-f", "-"]
    return run("template", release, chart, *words, stdin=yaml.safe_dump(values), tool=tool)


def find_kubernetes(values: Object) -> str:
    """The first version of Kubernetes that supports the values."""
    delivery = (values.get("runtime") or {}).get("delivery")
    return f"{'.'.join(map(str, MIN_KUBERNETES))}.0" if delivery == "image" else "1.30.0"


@functools.cache
def render_case(name: str, chart: Path, tool: str = "helm") -> str:
    """Render one of the CASES."""
    namespace, values = CASES[name]
    return render(values, chart=chart, namespace=namespace, tool=tool)


def run(*words: str | Path, stdin: str | None = None, tool: str = "helm", **env: str) -> str:
    """Run Helm and return its standard output; raises HelmError."""
    done = subprocess.run(
        [helm(tool), *words],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
        env=os.environ | _ENVIRON | env,
    )
    if done.returncode:
        raise HelmError(done.stderr)
    return done.stdout


class _Strict(yaml.CSafeLoader):
    """Rejects duplicate keys, as strict decoding in the API server does."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        result = super().construct_mapping(node, deep=True)
        if len(result) != len(node.value):
            raise yaml.constructor.ConstructorError(None, None, "duplicate key", node.start_mark)
        return result


def identity(item: Object) -> tuple[str, str, str]:
    """Kind, namespace and name of an object."""
    metadata = item["metadata"]
    return item["kind"], metadata.get("namespace", ""), metadata["name"]


def load_objects(text: str) -> dict[tuple[str, str, str], Any]:
    """Objects of a rendering by identity; their order does not matter."""
    found = [item for item in yaml.load_all(text, _Strict) if item is not None]
    result = {identity(item): item for item in found}
    assert len(result) == len(found), "duplicate object"
    return result


def case_objects(name: str, chart: Path, tool: str = "helm") -> dict[tuple[str, str, str], Any]:
    """Objects of one of the CASES."""
    return load_objects(render_case(name, chart, tool))


def find_object(text: str, kind: str) -> Any:
    """The only object of a kind in a rendering."""
    (found,) = [item for item in load_objects(text).values() if item["kind"] == kind]
    return found


def find_by_name(items: Iterable[Object], name: str) -> Object:
    """The only item of a list with a name."""
    (found,) = [item for item in items if item["name"] == name]
    return found


def diff_objects(found: Objects, default: Objects) -> Objects:
    """Objects that differ from the default rendering; None for those that are missing."""
    missing = dict.fromkeys(default.keys() - found.keys())
    return {key: item for key, item in found.items() if default.get(key) != item} | missing


def dump_golden(changes: Objects) -> str:
    """The text of a golden file with these differences."""
    missing = sorted(key for key, item in changes.items() if item is None)
    changed = [item for _, item in sorted(changes.items()) if item is not None]
    return yaml.safe_dump_all([{"missing": [list(key) for key in missing]}, *changed], width=110)


def load_golden(text: str) -> Objects:
    """The differences in the text of a golden file."""
    head, *changed = yaml.load_all(text, _Strict)
    missing: Objects = {tuple(key): None for key in head["missing"]}
    return missing | {identity(item): item for item in changed}


# Only a few, so that golden renderings do not change when a setting is added.
_FEW_DEFAULTS = {"mode": "auto", "sidecars": "asya-sidecar", "probe": True, "chunk-size": 4096}


def copy_chart(
    to: Path, files: dict[str, str] | None = None, *, all_defaults: bool = False
) -> Path:
    """Copy the chart with a few runtime.defaults, and with these files in place of the runtime's.

    files: their text by name; short ones by default. all_defaults: keep all runtime.defaults.
    """
    chart = to / "chart"
    shutil.copytree(CHART, chart)
    if not all_defaults:
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


def value_at(path: str, value: object) -> Object:
    """Values with only one value, at a path."""
    for key in reversed(path.split("/")):
        value = {key: value}
    assert isinstance(value, dict)
    return value
