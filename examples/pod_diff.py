"""The difference between two pods, without status, identity and defaults of the API server."""

from __future__ import annotations

import difflib
from typing import Any

import yaml

# Set by the API server and by controllers.
DEFAULTS = {
    *("dnsPolicy", "enableServiceLinks", "imagePullPolicy", "nodeName", "preemptionPolicy"),
    *("priority", "resources", "restartPolicy", "schedulerName", "serviceAccount"),
    *("serviceAccountName", "terminationGracePeriodSeconds", "terminationMessagePath"),
    *("terminationMessagePolicy", "tolerations", "pod-template-hash", "protocol"),
    *("failureThreshold", "successThreshold"),
}


def diff_pods(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """The changed parts of a pod as lines of a unified diff."""
    return list(
        difflib.unified_diff(_lines(before), _lines(after), "before", "after", lineterm="", n=2)
    )


def select_written(pod: dict[str, Any]) -> dict[str, Any]:
    """The labels, annotations and specification of a pod, as far as they were written by a user."""
    metadata = {key: pod["metadata"].get(key) for key in ("annotations", "labels")}
    written: dict[str, Any] = _simplify({"metadata": metadata, "spec": pod["spec"]})
    return written


def to_yaml(value: Any) -> str:
    """YAML with the keys in their order, and with collections of plain values on one line."""
    text: str = yaml.safe_dump(value, default_flow_style=None, sort_keys=False, width=100)
    return text


def _lines(pod: dict[str, Any]) -> list[str]:
    # Annotations are long: they get a line each.
    written = select_written(pod)
    metadata = yaml.safe_dump({"metadata": written["metadata"]}, width=1000)
    return [*metadata.splitlines(), *to_yaml({"spec": written["spec"]}).splitlines()]


def _simplify(value: Any) -> Any:
    if isinstance(value, list):
        return [_simplify(item) for item in value if not _is_token(item)]
    if isinstance(value, dict):
        ordered = sorted(value.items(), key=lambda item: item[0] != "name")
        kept = {key: _simplify(item) for key, item in ordered if key not in DEFAULTS}
        return {key: item for key, item in kept.items() if item not in (None, [])}
    return value


def _is_token(item: Any) -> bool:
    """Whether this is the service account's token, which every pod gets, or its mount."""
    return isinstance(item, dict) and item.get("name", "").startswith("kube-api-access-")
