"""What would be done to an object and why: worked out of the object before and after, no I/O."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from asya_injector.annotations.parse import merge, parse_inherited, parse_values, select_own
from asya_injector.annotations.settings import ClusterDefaults, Settings
from asya_injector.annotations.table import ENV, PREFIX, TABLE
from asya_injector.errors import InjectionError, Reason, quote
from asya_injector.kube_objects import Object, find_by_name, get_in, get_mapping
from asya_injector.manifests.transform import ManifestObject
from asya_injector.mutation.containers import KUBECTL_DEFAULT
from asya_injector.mutation.inject import find_injected_container
from asya_injector.mutation.ownership import InjectionRecord
from asya_injector.mutation.workload import ObjectChange, find_pod, read_annotations

RESULTS = ("injected", "left-alone", "refused")
_FIELDS = ("command", "args", "lifecycle", "readinessProbe")


def explained(
    found: ManifestObject, outcome: ObjectChange | InjectionError, policy: ClusterDefaults
) -> Object:
    """An object's explanation as plain data; `schema` says its shape."""
    metadata = get_in(found.value, "metadata")
    shown: Object = {
        "source": found.document.source,
        "document": found.document.number,
        **({} if found.item is None else {"item": found.item}),
        "kind": str(found.value.get("kind") or ""),
        "namespace": found.namespace,
        "name": str(metadata.get("name") or metadata.get("generateName") or ""),
    }
    if isinstance(outcome, InjectionError):
        return shown | {"result": "refused", "code": str(outcome.reason), "because": str(outcome)}
    shown["warnings"] = list(outcome.warnings)
    if outcome.injection is None:
        return shown | {"result": "left-alone", "because": outcome.left}
    return shown | {"result": "injected", "actor": _actor(outcome, policy)}


def report(explanations: list[Object], policy: ClusterDefaults) -> Object:
    """The document that `explain -o json` prints."""
    return {"runtime": policy.runtime_hash, "objects": explanations}


def schema() -> Object:
    """The JSON schema of that document."""
    texts = {"type": "array", "items": {"type": "string"}}
    text: Object = {"type": "string"}
    choice = {
        "type": "object",
        "required": ["name", "because"],
        "additionalProperties": False,
        "properties": {"name": text, "because": text},
    }
    settings = {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            entry.name: {
                "type": "object",
                "description": entry.description,
                "required": ["value", "from"],
                "additionalProperties": False,
                "properties": {
                    # Empty where the container's own variable comes from elsewhere.
                    "value": {"anyOf": [{**text, **entry.parse.schema}, {"const": ""}]},
                    "from": {"enum": list(_SOURCES)},
                },
            }
            for entry in TABLE
        },
    }
    change = {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "env": {"type": "object", "additionalProperties": text},
            "mounts": {"type": "array", "items": {"type": "object"}},
            **{field: {"description": "the field as it becomes"} for field in _FIELDS},
        },
    }
    actor = {
        "type": "object",
        "required": ["container", "mode", "settings", "volumes", "containers"],
        "additionalProperties": False,
        "properties": {
            "container": choice,
            "mode": choice,
            "settings": settings,
            "volumes": {"type": "array", "items": {"type": "object"}},
            "containers": {"type": "object", "additionalProperties": change},
        },
    }
    one = {
        "type": "object",
        "required": ["source", "document", "kind", "namespace", "name", "result"],
        "additionalProperties": False,
        "properties": {
            "source": text,
            "document": {"type": "integer", "minimum": 1},
            "item": {"type": "integer", "minimum": 0},
            "kind": text,
            "namespace": text,
            "name": text,
            "result": {"enum": list(RESULTS)},
            "because": text,
            "code": {"enum": [str(reason) for reason in Reason]},
            "warnings": texts,
            "actor": actor,
        },
        "oneOf": [
            {"properties": {"result": {"const": "injected"}}, "required": ["actor", "warnings"]},
            {
                "properties": {"result": {"const": "left-alone"}},
                "required": ["because", "warnings"],
            },
            {"properties": {"result": {"const": "refused"}}, "required": ["because", "code"]},
        ],
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "What asya-injector would do",
        "type": "object",
        "required": ["runtime", "objects"],
        "additionalProperties": False,
        "properties": {
            "runtime": {"type": "string", "pattern": "^[0-9a-f]{10}$"},
            "objects": {"type": "array", "items": one},
        },
    }


def lines(found: ManifestObject, explanation: Object) -> list[str]:
    """The same for a person: a headline, and below it a line for each thing."""
    result, because = explanation["result"], explanation.get("because", "")
    if result == "refused":
        return [f"{found.label}: refused", f"  {because}"]
    told = [f"  warning     {line}" for line in explanation["warnings"]]
    if result == "left-alone":
        return [f"{found.label}: left alone, {because}", *told]
    actor = explanation["actor"]
    rows = [
        (key, f"{actor[key]['name']}, {actor[key]['because']}") for key in ("container", "mode")
    ]
    for name, setting in actor["settings"].items():
        if setting["from"] != "default":
            rows.append((name, f"{setting['value']}, by {_SOURCES[setting['from']]}"))
    rows += [("volume", _volume(volume)) for volume in actor["volumes"]]
    for container, changed in actor["containers"].items():
        rows += [(f"in {container}", "")]
        rows += [("  mount", _mount(mount)) for mount in changed.get("mounts", [])]
        rows += [("  env", f"{name}={value}") for name, value in changed.get("env", {}).items()]
        rows += [(f"  {words}", text) for words, text in _commands(changed)]
    return [
        f"{found.label}: becomes an actor",
        *(f"  {key:11} {text}".rstrip() for key, text in rows),
        *told,
    ]


# Where a setting's value comes from, as JSON has it and as a person reads it.
_SOURCES: Mapping[str, str] = {
    "annotation": "its annotation",
    "workload": "the workload's annotation",
    "chart": "the chart's values or an option",
    "container": "the container's own env",
    "default": "default",
}


def _actor(change: ObjectChange, policy: ClusterDefaults) -> Object:
    injection = change.injection
    assert injection is not None  # noqa: S101  (the caller's look)
    # As it was asked: with what the workload handed down, without what was done.
    annotations = read_annotations(find_pod(change.after))
    asked = merge(annotations)
    before, after = find_pod(change.before), find_pod(change.after)
    wishes = Settings(parse_values(asked), policy)
    return {
        "container": {
            "name": injection.container,
            "because": _why_container(before, injection.container, wishes),
        },
        "mode": {"name": injection.mode, "because": _why_mode(before, injection, wishes)},
        "settings": _settings(before, injection.container, annotations, wishes),
        "volumes": _added(get_mapping(before, "spec").get("volumes"), after["spec"].get("volumes")),
        "containers": {
            str(each["name"]): changed
            for each in _containers(after)
            if (changed := _changed(_original(before, each), each))
        },
    }


def _why_container(pod: Object, name: str, wishes: Settings) -> str:
    if "container" in wishes.annotated:
        return f"as {PREFIX}container says"
    if find_injected_container(pod, InjectionRecord.read(read_annotations(pod))) == name:
        return "which has the runtime already"
    if read_annotations(pod).get(KUBECTL_DEFAULT) == name:
        return f"as {KUBECTL_DEFAULT} says"
    return "the first of the pod"


def _why_mode(pod: Object, injection: Any, wishes: Settings) -> str:
    if wishes["mode"] != "auto":
        source = f"{PREFIX}mode" if "mode" in wishes.annotated else "the chart's value"
        return f"as {source} says"
    if injection.mode == "wrap":
        return "because the container has a command"
    return "because the container has no command, so its image's own ENTRYPOINT must stay"


def _settings(pod: Object, container: str, annotations: Object, wishes: Settings) -> Object:
    handed_down, model = (
        parse_inherited(annotations),
        find_by_name(get_mapping(pod, "spec")["containers"], container),
    )
    theirs = {item.get("name") for item in (model or {}).get("env") or []}
    shown = {}
    for entry in TABLE:
        if entry.name in ("inject", "container", "mode"):
            continue
        source = "default"
        if entry in ENV and entry.env in theirs and entry.name not in wishes.annotated:
            source = "container"
        elif entry.key in select_own(annotations):
            source = "annotation"
        elif entry.key in handed_down:
            source = "workload"
        elif wishes.policy.defaults.get(entry.name, entry.default) != entry.default:
            source = "chart"
        value = wishes[entry.name]
        if source == "container":
            last = [item for item in (model or {})["env"] if item.get("name") == entry.env][-1]
            value = str(last.get("value") or "")
        shown[entry.name] = {"value": value, "from": source}
    return shown


def _changed(before: Object, after: Object) -> Object:
    shown: Object = {}
    present = {item.get("name") for item in before.get("env") or []}
    env = {
        item["name"]: item["value"]
        for item in after.get("env") or []
        if item["name"] not in present
    }
    if env:
        shown["env"] = env
    mounts = _added(before.get("volumeMounts"), after.get("volumeMounts"))
    if mounts:
        shown["mounts"] = mounts
    return shown | {
        field: after[field]
        for field in _FIELDS
        if field in after and after[field] != before.get(field)
    }


def _containers(pod: Object) -> list[Object]:
    spec = get_mapping(pod, "spec")
    return [*(spec.get("initContainers") or []), *(spec.get("containers") or [])]


def _original(pod: Object, container: Object) -> Object:
    return find_by_name(_containers(pod), str(container["name"])) or {}


def _added(before: list[Object] | None, after: list[Object] | None) -> list[Object]:
    return [item for item in after or [] if item not in (before or [])]


def _volume(volume: Object) -> str:
    config_map = get_mapping(volume, "configMap").get("name")
    return f"{volume['name']}, " + (f"ConfigMap {config_map}" if config_map else "in memory")


def _mount(mount: Object) -> str:
    return f"{mount['mountPath']} from {mount['name']}" + ", read-only" * bool(
        mount.get("readOnly")
    )


def _commands(changed: Object) -> list[tuple[str, str]]:
    found = [("command", changed["command"])] if "command" in changed else []
    for hook, handler in changed.get("lifecycle", {}).items():
        found.append((hook, get_mapping(handler, "exec").get("command") or []))
    if "readinessProbe" in changed:
        found.append(("probe", get_mapping(changed["readinessProbe"], "exec").get("command") or []))
    # Words of the user's may hold anything.
    return [
        (name, text if text.isprintable() else quote(text))
        for name, words in found
        if (text := shlex.join(map(str, words)))
    ]
