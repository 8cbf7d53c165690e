"""Explain what an injection changes in an object, and why. No I/O."""

import shlex
from collections.abc import Mapping

from asya_injector.annotations.settings import ClusterDefaults
from asya_injector.annotations.table import TABLE
from asya_injector.errors import InjectionError, Reason, quote
from asya_injector.kube_objects import (
    Object,
    all_containers,
    find_by_name,
    get_in,
    get_items,
    get_mapping,
    get_name,
    get_strings,
    get_template,
)
from asya_injector.manifests.objects import ManifestObject
from asya_injector.manifests.templates import describe_path
from asya_injector.mutation.inject import Injection
from asya_injector.mutation.workload import ObjectChange
from asya_injector.startup.hooks import HOOKS, get_hook_command

RESULTS = ("injected", "left-alone", "rejected")
# What sets the value of a setting, in JSON and for a person.
_SOURCES: Mapping[str, str] = {
    "annotation": "its annotation",
    "workload": "the workload's annotation",
    "chart": "the cluster defaults",
    "container": "the container's env",
    "command": "the container's command",
    "default": "default",
}
_DECISIONS = ("container", "mode", "socket")
_SETTINGS = tuple(each for each in TABLE if each.name not in ("inject", "container", "mode"))
_FIELDS = ("command", "args", "lifecycle", "readinessProbe")


def explain(found: ManifestObject, outcome: ObjectChange | InjectionError) -> Object:
    """The explanation of an object as plain data; `build_schema` describes it."""
    metadata = get_in(found.value, "metadata")
    explanation: Object = {
        "source": found.document.source,
        "document": found.document.number,
        **({} if found.item is None else {"item": found.item}),
        "kind": str(found.value.get("kind") or ""),
        "namespace": found.namespace,
        "name": str(metadata.get("name") or metadata.get("generateName") or ""),
        **({"template": describe_path(found.template)} if found.template else {}),
    }
    if isinstance(outcome, InjectionError):
        code = str(outcome.reason)
        return explanation | {"result": "rejected", "code": code, "because": str(outcome)}
    explanation["warnings"] = list(outcome.warnings)
    if outcome.injection is None:
        return explanation | {"result": "left-alone", "because": outcome.skip_reason}
    actor = _explain_actor(get_template(outcome.before), outcome.injection)
    return explanation | {"result": "injected", "actor": actor}


def build_report(explanations: list[Object], defaults: ClusterDefaults) -> Object:
    """The document that `explain -o json` prints."""
    return {"runtime": defaults.runtime_hash, "objects": explanations}


def render_lines(found: ManifestObject, explanation: Object) -> list[str]:
    """The explanation for a person: a headline and the details below."""
    result, because = explanation["result"], explanation.get("because", "")
    if result == "rejected":
        return [f"{found.label}: rejected", f"  {because}"]
    warnings = [f"  warning     {line}" for line in explanation["warnings"]]
    if result == "left-alone":
        return [f"{found.label}: left alone, because {because}", *warnings]
    actor = explanation["actor"]
    rows = [(key, f"{actor[key]['name']}, because {actor[key]['because']}") for key in _DECISIONS]
    for name, setting in actor["settings"].items():
        if setting["from"] != "default":
            rows.append((name, f"{setting['value']}, from {_SOURCES[setting['from']]}"))
    rows += [("volume", _render_volume(volume)) for volume in actor["volumes"]]
    for container, change in actor["containers"].items():
        rows += [(f"in {container}", "")]
        rows += [("  mount", _render_mount(mount)) for mount in change.get("mounts", [])]
        rows += [("  env", f"{name}={value}") for name, value in change.get("env", {}).items()]
        rows += [
            ("  port", f"{port['name']} {port['containerPort']}")
            for port in change.get("ports", [])
        ]
        rows += [(f"  {field}", command) for field, command in _render_commands(change)]
    return [
        f"{found.label}: becomes an actor",
        *(f"  {key:11} {text}".rstrip() for key, text in rows),
        *warnings,
    ]


def build_schema() -> Object:
    """The JSON schema of the document that `explain -o json` prints."""
    text: Object = {"type": "string"}
    setting = {
        # Empty if the value comes from valueFrom.
        entry.name: _object(
            value={"anyOf": [{**text, **entry.parse.schema}, {"const": ""}]},
            **{"from": {"enum": list(_SOURCES)}},
        )
        | {"description": entry.description}
        for entry in _SETTINGS
    }
    change = _object(
        env={"type": "object", "additionalProperties": text},
        mounts={"type": "array", "items": {"type": "object"}},
        ports={"type": "array", "items": {"type": "object"}},
        **{field: {"description": "the field after the injection"} for field in _FIELDS},
    )
    actor = _object(
        **dict.fromkeys(_DECISIONS, _object(name=text, because=text)),
        settings=_object(**setting) | {"required": []},
        volumes={"type": "array", "items": {"type": "object"}},
        containers={"type": "object", "additionalProperties": change | {"required": []}},
    )
    explanation = _object(
        source=text,
        document={"type": "integer", "minimum": 1},
        item={"type": "integer", "minimum": 0},
        kind=text,
        namespace=text,
        name=text,
        template=text | {"description": "path of the pod template in an unknown kind"},
        result={"enum": list(RESULTS)},
        because=text,
        code={"enum": [str(reason) for reason in Reason]},
        warnings={"type": "array", "items": text},
        actor=actor,
    )
    required = {
        "injected": ["actor", "warnings"],
        "left-alone": ["because", "warnings"],
        "rejected": ["because", "code"],
    }
    explanation |= {
        "required": ["source", "document", "kind", "namespace", "name", "result"],
        "oneOf": [
            {"properties": {"result": {"const": result}}, "required": fields}
            for result, fields in required.items()
        ],
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Explanation of asya-injector",
        **_object(
            runtime={**text, "pattern": "^[0-9a-f]{10}$"},
            objects={"type": "array", "items": explanation},
        ),
    }


def _object(**properties: Object) -> Object:
    """The schema of an object with these properties, all required."""
    return {
        "type": "object",
        "required": list(properties),
        "additionalProperties": False,
        "properties": properties,
    }


def _explain_actor(original: Object, injection: Injection) -> Object:
    spec = get_mapping(original, "spec")
    decisions = (injection.container, injection.mode, injection.socket_volume)
    return {
        **{
            key: {"name": decision.value, "because": decision.reason}
            for key, decision in zip(_DECISIONS, decisions, strict=True)
        },
        "settings": _explain_settings(injection),
        "volumes": _find_added(spec, injection.pod["spec"], "volumes"),
        "containers": {
            get_name(container): change
            for container in all_containers(injection.pod)
            if (change := _explain_container(original, container))
        },
    }


def _explain_settings(injection: Injection) -> Object:
    shown = {}
    for entry in _SETTINGS:
        name = entry.name
        value, source = injection.settings[name], injection.settings.get_source(name)
        if name in injection.overrides:
            value = injection.overrides[name]
            source = "command" if name == "python" else "container"
        shown[name] = {"value": value, "from": source}
    return shown


def _explain_container(original: Object, after: Object) -> Object:
    before = find_by_name(all_containers(original), get_name(after)) or {}
    env = {item["name"]: item["value"] for item in _find_added(before, after, "env")}
    lists = {
        "mounts": _find_added(before, after, "volumeMounts"),
        "ports": _find_added(before, after, "ports"),
    }
    fields = {
        field: after[field]
        for field in _FIELDS
        if field in after and after[field] != before.get(field)
    }
    shown = {name: items for name, items in lists.items() if items}
    return {**({"env": env} if env else {}), **shown, **fields}


def _find_added(before: Object, after: Object, field: str) -> list[Object]:
    present = get_items(before, field)
    return [item for item in get_items(after, field) if item not in present]


def _render_volume(volume: Object) -> str:
    config_map = get_mapping(volume, "configMap").get("name")
    image = get_mapping(volume, "image").get("reference")
    source = f"ConfigMap {config_map}" if config_map else f"image {image}" if image else "in memory"
    return f"{volume['name']}, {source}"


def _render_mount(mount: Object) -> str:
    read_only = ", read-only" if mount.get("readOnly") else ""
    return f"{mount['mountPath']} from {mount['name']}{read_only}"


def _render_commands(change: Object) -> list[tuple[str, str]]:
    found = [(field, get_strings(change, field)) for field in ("command", "args")]
    found += [(hook, get_hook_command(change, hook)) for hook in HOOKS]
    found.append(("probe", get_strings(get_mapping(change, "readinessProbe", "exec"), "command")))
    # The words may contain control characters.
    return [
        (field, text if text.isprintable() else quote(text))
        for field, words in found
        if (text := shlex.join(words))
    ]
