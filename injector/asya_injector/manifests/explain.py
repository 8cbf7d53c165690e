"""Explain what an injection changes in an object, and why. No I/O."""

import shlex
from collections.abc import Mapping

from asya_injector.annotations.settings import ClusterDefaults
from asya_injector.annotations.table import PREFIX, TABLE
from asya_injector.errors import InjectionError, Reason, quote
from asya_injector.kube_objects import (
    Object,
    all_containers,
    find_by_name,
    get_in,
    get_items,
    get_mapping,
    get_name,
    get_string,
    get_strings,
    get_template,
)
from asya_injector.manifests.objects import ManifestObject
from asya_injector.manifests.templates import describe_path
from asya_injector.mutation.inject import Injection
from asya_injector.mutation.workload import ObjectChange
from asya_injector.runtime_files import SOCKET_VOLUME
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
_OTHERS = ("inject", "container", "mode", "sidecar")
_SETTINGS = tuple(each for each in TABLE if each.name not in _OTHERS)
_PULL_SECRETS = "imagePullSecrets"
_FIELDS = ("image", "command", "args", "lifecycle", "readinessProbe")


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
    rows = [
        (key, f"{actor[key]['name']}, because {actor[key]['because']}")
        for key in (*_DECISIONS, "sidecar")
        if key in actor
    ]
    for name, setting in actor["settings"].items():
        if setting["from"] != "default":
            rows.append((name, f"{_show(setting['value'])}, from {_SOURCES[setting['from']]}"))
    rows += [("volume", _render_volume(volume)) for volume in actor["volumes"]]
    rows += [("pull secret", name) for name in actor.get("imagePullSecrets", [])]
    for container, change in actor["containers"].items():
        rows += [(f"in {container}", "")]
        rows += [("  image", change[field]) for field in ("image",) if field in change]
        rows += [("  mount", _render_mount(mount)) for mount in change.get("mounts", [])]
        rows += [
            ("  env", _show(f"{name}={value}")) for name, value in change.get("env", {}).items()
        ]
        rows += [
            ("  port", f"{get_name(port)} {port.get('containerPort')}".strip())
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
    decision = _object(name=text, because=text)
    parameter = _object(value=text, **{"from": {"enum": ["annotation", "workload"]}})
    actor = _object(
        **dict.fromkeys(_DECISIONS, decision),
        # Those of the table, and those that the sidecar of the cluster defaults declares.
        settings=_object(**setting) | {"required": [], "additionalProperties": parameter},
        volumes={"type": "array", "items": {"type": "object"}},
        containers={"type": "object", "additionalProperties": change | {"required": []}},
    )
    actor["properties"] |= {
        "sidecar": decision | {"description": "absent if the cluster defaults have none"},
        "imagePullSecrets": {"type": "array", "items": text},
    }
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
    decisions = (injection.container, injection.mode, injection.socket_volume, injection.sidecar)
    secrets = [get_name(each) for each in _find_added(spec, injection.pod["spec"], _PULL_SECRETS)]
    return {
        **{
            key: {"name": decision.value, "because": decision.reason}
            for key, decision in zip((*_DECISIONS, "sidecar"), decisions, strict=True)
            if decision
        },
        "settings": _explain_settings(injection),
        "volumes": _find_added(spec, injection.pod["spec"], "volumes"),
        **({_PULL_SECRETS: secrets} if secrets else {}),
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
    for key, value in injection.settings.parameters.items():
        source = "workload" if key in injection.settings.inherited else "annotation"
        shown[key.removeprefix(PREFIX)] = {"value": value, "from": source}
    return shown


def _explain_container(original: Object, after: Object) -> Object:
    before = find_by_name(all_containers(original), get_name(after)) or {}
    env = {get_name(item): _describe_value(item) for item in _find_added(before, after, "env")}
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


def _describe_value(variable: Object) -> str:
    source = get_mapping(variable, "valueFrom")
    if not source:
        return get_string(variable, "value")
    words = [str(each) for fields in source.values() for each in get_in(fields).values()]
    return f"from {', '.join(source)} {' '.join(words)}"


def _render_volume(volume: Object) -> str:
    config_map = get_mapping(volume, "configMap").get("name")
    image = get_mapping(volume, "image").get("reference")
    if volume["name"] == SOCKET_VOLUME:
        return f"{volume['name']}, in memory"
    if config_map:
        return f"{volume['name']}, ConfigMap {config_map}"
    if image:
        return f"{volume['name']}, image {image}"
    return f"{volume['name']}, " + ", ".join(key for key in volume if key != "name")


def _render_mount(mount: Object) -> str:
    read_only = ", read-only" if mount.get("readOnly") else ""
    return f"{mount['mountPath']} from {mount['name']}{read_only}"


def _render_commands(change: Object) -> list[tuple[str, str]]:
    found = [(field, get_strings(change, field)) for field in ("command", "args")]
    found += [(hook, get_hook_command(change, hook)) for hook in HOOKS]
    found.append(("probe", get_strings(get_mapping(change, "readinessProbe", "exec"), "command")))
    return [(field, _show(text)) for field, words in found if (text := shlex.join(words))]


def _show(text: str) -> str:
    """The text, quoted if it contains control characters."""
    return text if text.isprintable() else quote(text)
