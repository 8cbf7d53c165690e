"""Fetches the schemas for validating the chart's objects from the sources of the projects.

Run `make chart-schemas` after adding a Kubernetes release to RELEASES. It needs Go, whose module
proxy serves the sources, and takes some minutes. Kubernetes and both projects are licensed under
Apache-2.0. Unused definitions and descriptions are left out.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]

HERE = Path(__file__).parent / "schemas"
# The latest available patch release of each minor release.
RELEASES = (
    "1.30.14", "1.31.14", "1.32.13", "1.33.13", "1.34.4", "1.35.4", "1.36.3", "1.37.2",
)  # fmt: skip
KINDS = {
    ("", "ConfigMap"),
    ("", "Pod"),
    ("", "Secret"),
    ("", "Service"),
    ("", "ServiceAccount"),
    ("admissionregistration.k8s.io", "MutatingWebhookConfiguration"),
    ("admissionregistration.k8s.io", "ValidatingAdmissionPolicy"),
    ("admissionregistration.k8s.io", "ValidatingAdmissionPolicyBinding"),
    ("apps", "Deployment"),
    ("batch", "CronJob"),
    ("networking.k8s.io", "NetworkPolicy"),
    ("policy", "PodDisruptionBudget"),
    ("rbac.authorization.k8s.io", "ClusterRole"),
    ("rbac.authorization.k8s.io", "ClusterRoleBinding"),
    ("rbac.authorization.k8s.io", "Role"),
    ("rbac.authorization.k8s.io", "RoleBinding"),
}
CERT_MANAGER = "github.com/cert-manager/cert-manager@v1.21.2"
PROMETHEUS_OPERATOR = "github.com/prometheus-operator/prometheus-operator@v0.85.0"
CRDS = (
    (CERT_MANAGER, "deploy/crds/cert-manager.io_certificates.yaml"),
    (CERT_MANAGER, "deploy/crds/cert-manager.io_issuers.yaml"),
    *(
        (
            PROMETHEUS_OPERATOR,
            f"example/prometheus-operator-crd/monitoring.coreos.com_{name}.yaml",
        )
        for name in ("podmonitors", "prometheusrules", "servicemonitors")
    ),
)
# Extensions of Kubernetes to JSON Schema that the tests use.
KEPT = {"x-kubernetes-list-map-keys", "x-kubernetes-int-or-string"}


def stripped(schema: Any) -> Any:
    """The schema without descriptions and unused extensions."""
    if isinstance(schema, list):
        return [stripped(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: stripped(value)
        for key, value in schema.items()
        if not (key == "description" and isinstance(value, str))
        and (not key.startswith("x-kubernetes-") or key in KEPT)
    }


def module(name: str) -> Path:
    """Download a Go module and return its directory."""
    words = ["go", "mod", "download", "-json", name]
    done = subprocess.run(words, check=True, capture_output=True, text=True, timeout=600)
    return Path(json.loads(done.stdout)["Dir"])


def definitions(swagger: Object) -> Object:
    """Definitions that the KINDS refer to, and the names of the kinds under `kinds`."""
    found: Object = swagger["definitions"]
    kinds = {
        f"{kind['group']}/{kind['version']}/{kind['kind']}": name
        for name, schema in found.items()
        for kind in schema.get("x-kubernetes-group-version-kind", ())
        if (kind["group"], kind["kind"]) in KINDS and kind["version"] == "v1"
    }
    assert len(kinds) == len(KINDS), sorted(kinds)
    needed: Object = {}
    left = list(kinds.values())
    while left:
        name = left.pop()
        if name not in needed:
            needed[name] = stripped(found[name])
            left += re.findall(r'"#/definitions/([^"]+)"', json.dumps(needed[name]))
    return {"kinds": kinds, "definitions": needed}


def pooled(releases: dict[str, Object]) -> Iterator[str]:
    """All releases as lines of JSON: each variant of a definition once, with its releases."""
    pool: dict[tuple[str, str], list[str]] = {}
    for release, said in releases.items():
        for name, schema in said["definitions"].items():
            pool.setdefault((name, json.dumps(schema, sort_keys=True)), []).append(release)
    kinds = {json.dumps(said["kinds"], sort_keys=True) for said in releases.values()}
    (same,) = kinds
    yield f'{{"releases": {json.dumps(list(releases))},\n"kinds": {same},\n"definitions": [\n'
    rows = [
        f'{{"name": "{name}", "releases": {json.dumps(who)},\n "schema": {schema}}}'
        for (name, schema), who in sorted(pool.items())
    ]
    yield ",\n".join(rows)
    yield "\n]}\n"


def crd(path: Path) -> Object:
    """Schema of one custom resource, by the same key as in `kinds`."""
    spec = yaml.safe_load(path.read_text())["spec"]
    (version,) = [each for each in spec["versions"] if each["name"] == "v1"]
    schema = stripped(version["schema"]["openAPIV3Schema"])
    properties = schema["properties"]["spec"]["properties"]
    if spec["names"]["kind"] == "Issuer":  # drop the other kinds of issuers, most of the schema
        for name in set(properties) - {"ca", "selfSigned"}:
            del properties[name]
    schema["properties"].pop("status", None)
    return {f"{spec['group']}/v1/{spec['names']['kind']}": schema}


def main() -> None:
    with tempfile.TemporaryDirectory() as cache:
        # A source tree of Kubernetes per release, not needed afterwards.
        os.environ |= {"GOMODCACHE": cache, "GOFLAGS": "-modcacherw"}
        releases: dict[str, Object] = {}
        for release in RELEASES:
            root = module(f"k8s.io/kubernetes@v{release}")
            swagger = json.loads((root / "api/openapi-spec/swagger.json").read_text())
            releases[release.rpartition(".")[0]] = definitions(swagger)
        (HERE / "kubernetes.json").write_text("".join(pooled(releases)))
        resources: Object = {}
        for name, path in CRDS:
            resources |= crd(module(name) / path)
    said = {"sources": [CERT_MANAGER, PROMETHEUS_OPERATOR], "kinds": resources}
    (HERE / "custom.json").write_text(json.dumps(said, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
