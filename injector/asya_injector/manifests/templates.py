"""Pod templates in objects of any kind, found by their shape, and keys that have no effect."""

import re
from collections.abc import Collection, Iterator
from typing import Any

from asya_injector.annotations.table import PREFIX
from asya_injector.errors import join, quote, show
from asya_injector.kube_objects import KINDS, Object, Path, find_kind, get_in

# Operators that change the containers of their pods, by API group.
OPERATORS = {
    "ray.io": "KubeRay rewrites the command of its containers",
    "sparkoperator.k8s.io": "the Spark operator rewrites the command of its containers",
    "serving.knative.dev": "Knative rejects lifecycle hooks and adds its own readiness probe",
}
_POLICIES = ("kyverno.io", "gatekeeper.sh", "admissionregistration.k8s.io")
# Keys with the prefix asya.sh, or with a prefix that users may confuse with it.
_OUR_KEY = re.compile(r"([\w.-]*\.)?asya\.(sh|io)/|[\w.-]*asya[\w.-]*/handler\Z")
_INJECTION = PREFIX + "injection"
# Written by the injector and the chart, not by users.
_OUR_LABELS = frozenset(
    PREFIX + name for name in ("runtime-hash", "source", "runtime-sha256", "injected", "inherited")
)
_SELECTORS = frozenset({"matchLabels", "selector", "nodeSelector"})
_ANNOTATIONS: Path = ("metadata", "annotations")


def find_templates(item: Object) -> Iterator[tuple[Path, Object]]:
    """The pod templates in an object of an unknown kind, with their paths.

    A template has `metadata` and containers with literal names, under a key that ends in
    "template", or in a list under one that ends in "templates". Policies and whole objects inside
    of others have none.
    """
    if not _is_policy(item):
        yield from _find_templates(item, ())


def describe_path(path: Path) -> str:
    """A path as users write it: spec.replicatedJobs[0].template."""
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return show("".join(steps).removeprefix("."))


def find_operator(item: Object) -> str:
    """What the operator of a kind does to its pods; empty if nothing is known."""
    return OPERATORS.get(str(item.get("apiVersion")).partition("/")[0], "")


def find_ineffective_keys(item: Object, handled: Collection[Path]) -> Iterator[str]:
    """Warnings about keys of ours that have no effect. handled: paths of pod templates."""
    label = get_in(item, "metadata", "labels").get(_INJECTION)
    if item.get("kind") == "Namespace" and label not in (None, "disabled"):
        yield f'{_INJECTION}: {quote(label)} in metadata.labels has no effect: use "disabled"'
    known = {(*path, *_ANNOTATIONS) for path in handled}
    if find_kind(item):
        known |= {_ANNOTATIONS, ("spec", "jobTemplate", *_ANNOTATIONS)}
    for path, found, is_nested in _find_keys(item, (), False):
        keys = [key for key in found if path not in known or not key.startswith(PREFIX)]
        if not keys:
            continue
        reason = _explain_ineffective(item, path, keys, is_nested)
        yield f"{join(keys)} in {describe_path(path)} has no effect: {reason}"


def _find_templates(node: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    children: Any = enumerate(node) if isinstance(node, list) else node.items()
    for step, child in children:
        if not isinstance(child, (dict, list)) or _is_whole_object(child):
            continue
        here: Path = (*path, step)
        if _is_named_template(here) and _is_template(child):
            yield here, child
        else:
            yield from _find_templates(child, here)


def _is_named_template(path: Path) -> bool:
    name = path[-1]
    if isinstance(name, int):
        return len(path) > 1 and str(path[-2]).lower().endswith(("template", "templates"))
    return name.lower().endswith("template")


def _is_template(value: Any) -> bool:
    containers = get_in(value, "spec").get("containers")
    return (
        isinstance(value, dict)
        and isinstance(value.get("metadata"), dict)
        and isinstance(containers, list)
        and bool(containers)
        and all(_has_literal_name(container) for container in containers)
    )


def _has_literal_name(container: Any) -> bool:
    name = container.get("name") if isinstance(container, dict) else None
    return (
        isinstance(name, str) and re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", name) is not None
    )


def _is_whole_object(value: Any) -> bool:
    return isinstance(value, dict) and "apiVersion" in value and "kind" in value


def _is_policy(item: Object) -> bool:
    group = str(item.get("apiVersion")).partition("/")[0]
    return group.endswith(_POLICIES) or str(item.get("kind")).endswith("Policy")


def _find_keys(node: Any, path: Path, is_nested: bool) -> Iterator[tuple[Path, list[str], bool]]:
    """Keys of ours, by the mapping that has them; whether that is in another whole object."""
    if isinstance(node, dict):
        keys = [key for key in node if isinstance(key, str) and _is_users_key(key, path)]
        if keys:
            yield path, keys, is_nested
    children: Any = node.items() if isinstance(node, dict) else enumerate(node)
    for step, child in children:
        if isinstance(child, (dict, list)):
            yield from _find_keys(child, (*path, step), is_nested or _is_whole_object(child))


def _is_users_key(key: str, path: Path) -> bool:
    if not _OUR_KEY.match(key) or key in _OUR_LABELS or (path and path[-1] in _SELECTORS):
        return False
    return not (key == _INJECTION and path == ("metadata", "labels"))


def _explain_ineffective(item: Object, path: Path, keys: list[str], is_nested: bool) -> str:
    reasons = {
        f"the prefix of the annotations is {PREFIX}": not keys[0].startswith(PREFIX),
        "it is a label of namespaces": keys[0] == _INJECTION,
        "set it as an annotation": path[-1:] == ("labels",),
        "pod templates in policies are not injected": _is_policy(item),
        "objects inside other objects are not injected": is_nested,
        "it is not an annotation of a workload or of its pod template": find_kind(item)
        or path != _ANNOTATIONS,
    }
    return next((reason for reason, holds in reasons.items() if holds), _explain_kind(item))


def _explain_kind(item: Object) -> str:
    """Why the injector does not know the kind of an object with such annotations."""
    kind = item.get("kind")
    if not isinstance(kind, str):
        return "the object has no kind"
    if kind in KINDS:
        return f"{kind} needs apiVersion: {KINDS[kind].api_version}"
    return f"kind {quote(kind)} is not supported; annotate its pod template, if it has one"
