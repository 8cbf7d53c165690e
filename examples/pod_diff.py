"""What changed in a pod, readably: without status, identity and what the API server fills in."""

from __future__ import annotations

import difflib
from typing import Any

import yaml

# Filled in by the API server and the Deployment's controller: these say nothing about the pod.
FILLED_IN = {
    *("dnsPolicy", "enableServiceLinks", "imagePullPolicy", "nodeName", "preemptionPolicy"),
    *("priority", "resources", "restartPolicy", "schedulerName", "serviceAccount"),
    *("serviceAccountName", "terminationGracePeriodSeconds", "terminationMessagePath"),
    *("terminationMessagePolicy", "tolerations", "pod-template-hash", "protocol"),
    *("failureThreshold", "successThreshold"),
}


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """The changed parts of a pod as lines of a unified diff."""
    return list(
        difflib.unified_diff(_lines(before), _lines(after), "before", "after", lineterm="", n=2)
    )


def essence(pod: dict[str, Any]) -> dict[str, Any]:
    """What somebody wrote into a pod's labels, annotations and specification."""
    metadata = {key: pod["metadata"].get(key) for key in ("annotations", "labels")}
    slim: dict[str, Any] = _slim({"metadata": metadata, "spec": pod["spec"]})
    return slim


def as_yaml(value: Any) -> str:
    """Readable YAML: keys in their order, whatever holds only plain values on one line."""
    text: str = yaml.safe_dump(value, default_flow_style=None, sort_keys=False, width=100)
    return text


def _lines(pod: dict[str, Any]) -> list[str]:
    # Annotations are long: a line for each.
    slim = essence(pod)
    metadata = yaml.safe_dump({"metadata": slim["metadata"]}, width=1000)
    return [*metadata.splitlines(), *as_yaml({"spec": slim["spec"]}).splitlines()]


def _slim(value: Any) -> Any:
    if isinstance(value, list):
        return [_slim(item) for item in value if not _is_token(item)]
    if isinstance(value, dict):
        ordered = sorted(value.items(), key=lambda item: item[0] != "name")
        slim = {key: _slim(item) for key, item in ordered if key not in FILLED_IN}
        return {key: item for key, item in slim.items() if item not in (None, [])}
    return value


def _is_token(item: Any) -> bool:
    """Whether this is the service account's token, which every pod gets, or its mount."""
    return isinstance(item, dict) and item.get("name", "").startswith("kube-api-access-")
