"""What the chart rejects: by its schema, with the path; by its templates, with a message."""

import json
import os
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.chart.charts import (
    CA,
    CHART,
    HelmError,
    Object,
    copy_chart,
    load_objects,
    render,
    run,
    value_at,
)
from tests.chart.schemas import RELEASES, problems
from tests.injector.annotations.test_sidecar import REJECTED_BY_THE_CHART_TOO

SCHEMA: Object = json.loads((CHART / "values.schema.json").read_text())
VALUES: Object = yaml.safe_load((CHART / "values.yaml").read_text())
# Kubernetes types, whose keys are not values of this chart.
KUBERNETES_TYPES = {
    "/webhook/namespaceSelector",
    "/webhook/objectSelector",
    "/certificates/certManager/issuerRef",
    "/sidecar/container",
}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("injecter", {}),
        ("injector/replica", 2),
        ("injector/image/tga", "1"),
        ("injector/image/repository", "example.com/injector "),
        ("injector/image/repository", "https://example.com/injector:"),
        ("runtime/namespace", "a"),
        ("runtime/defaults/chunkSize", 1),
        ("injector/image/tag", 1.10),
        ("injector/image/digest", "0123"),
        ("injector/image/pullPolicy", "Sometimes"),
        ("injector/replicas", "2"),
        ("injector/replicas", -1),
        ("injector/logLevel", "INFO!"),
        ("runtime/namespaces", "models"),
        ("runtime/namespaces", ["Models"]),
        ("runtime/delivery", "Image"),
        ("runtime/image/reference", "a"),
        ("runtime/image/repository", "example.com/files:1@"),
        ("runtime/image/tag", 3),
        ("runtime/image/digest", "sha256:0"),
        ("runtime/image/pullPolicy", "Sometimes"),
        ("runtime/defaults/mode", "wrapp"),
        ("runtime/defaults/chunk-size", 0),
        ("runtime/defaults/chunk-size", 4096.5),
        ("runtime/defaults/chunk-size", 16777217),
        ("runtime/defaults/read-timeout", 0),
        ("runtime/defaults/probe", "yes"),
        ("runtime/defaults/mount-path", "opt"),
        ("runtime/configMap/named", "a"),
        ("runtime/configMap/name", "Files"),
        ("injector/podDisruptionBudget/minAvailable", 1),
        ("injector/podDisruptionBudget/maxUnavailable", 0),
        ("injector/podDisruptionBudget/maxUnavailable", "0%"),
        ("injector/nodeSelector", {"a": True}),
        ("injector/extraEnv", {"A": "b"}),
        ("injector/podLabels", {"a/b/c": "d"}),
        ("webhook/failurePolicy", "Maybe"),
        ("webhook/timeoutSeconds", 31),
        ("webhook/timeoutSeconds", "5"),
        ("webhook/port", 443),
        ("webhook/namespaceSelector/matchLabel", {}),
        ("webhook/objectSelector/matchExpressions", [{"key": "a", "operator": "is"}]),
        ("certificates/mode", "Self"),
        ("certificates/certManager/issuer", {}),
        ("certificates/certManager/issuerRef/nam", "a"),
        ("certificates/certManager/duration", "90 days"),
        ("certificates/certManager/renewBefore", ""),
        ("certificates/existingSecret/name", "Ours"),
        ("certificates/existingSecret/caBundle", "LS0tLS1CRUdJTg=="),
        ("serviceAccount/created", True),
        ("rbac/create", "yes"),
        ("prune/schedule", "tonight"),
        ("networkPolicy/enable", True),
        ("metrics/service/port", 80),
        ("sidecar/container_", {}),
        ("sidecar/container/imge", "a"),
        ("sidecar/container/name", "A"),
        ("sidecar/container/env", [{"name": "A", "value": 1}]),
        ("sidecar/native", "yes"),
        ("sidecar/annotations", {"queue": {"env": "A"}}),
        ("sidecar/annotations", {"asya.sh/queue": {"required": True}}),
        ("sidecar/volumes", [{"emptyDir": {}}]),
        ("sidecar/imagePullSecrets", ["pull"]),
        ("metrics/serviceMonitor/interval", "often"),
        ("tests/enabled", "no"),
        ("commonLabels", {"a": 1}),
        ("commonAnnotations", {"a b": "c"}),
    ],
)
def test_an_invalid_value_is_rejected_with_its_path(path: str, value: object, chart: Path) -> None:
    assert_rejected_with_path(path, value, chart, "helm")


@pytest.mark.parametrize(
    ("path", "value"),
    [("injecter", {}), ("injector/replicas", "2"), ("webhook/namespaceSelector/matchLabel", {})],
)
def test_helm_3_rejects_it_too(path: str, value: object, chart: Path) -> None:
    assert_rejected_with_path(path, value, chart, "helm3")


def assert_rejected_with_path(path: str, value: object, chart: Path, tool: str) -> None:
    with pytest.raises(HelmError) as rejected:
        render(value_at(path, value), chart=chart, tool=tool)
    # Helm 3 writes paths with dots. Both name an unknown key separately from its path.
    message = str(rejected.value).replace(".", "/")
    *parents, last = path.split("/")
    assert "/".join(parents) in message
    assert last in message


def test_schema_and_values_have_the_same_keys() -> None:
    def keys(schema: Object, path: str = "") -> set[str]:
        """Paths of all values in the schema, none of which allows additional properties."""
        schema = resolved(schema)
        if "properties" not in schema or path in KUBERNETES_TYPES:
            return {path}
        assert schema["additionalProperties"] is False, path
        parts = schema["properties"].items()
        return {key for name, part in parts for key in keys(part, f"{path}/{name}")}

    described = keys(SCHEMA) - {"/global", "/enabled"}
    for path in described:
        at(VALUES, path)
    undescribed = [
        path for path in leaves(VALUES) if not any(is_within(path, each) for each in described)
    ]
    assert undescribed == []


def test_the_schema_is_valid_and_has_only_local_references() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    jsonschema.Draft7Validator(SCHEMA).validate(VALUES)
    references = re.findall(r'"\$ref": "([^"]*)"', json.dumps(SCHEMA))
    assert references
    assert all(each.startswith("#/definitions/") for each in references)


def resolved(schema: Object) -> Object:
    while "$ref" in schema:
        schema = SCHEMA["definitions"][schema["$ref"].rpartition("/")[2]]
    return schema


def at(tree: object, path: str) -> object:
    for name in path.split("/")[1:]:
        assert isinstance(tree, dict)
        tree = tree[name]
    return tree


def leaves(tree: object, path: str = "") -> list[str]:
    """Paths of all leaves."""
    if isinstance(tree, dict) and tree:
        return [leaf for key, value in tree.items() for leaf in leaves(value, f"{path}/{key}")]
    return [path]


def is_within(path: str, parent: str) -> bool:
    return path == parent or path.startswith(f"{parent}/")


# --- Checks of the templates ------------------------------------------------------------------

SECRET = {"name": "a", "caBundle": CA}
# The beginning of a message, its gaps filled in, and the values that cause it.
MESSAGES: list[tuple[str, Object]] = [
    (
        "injector.image.repository is required, because the chart in the sources names no image",
        value_at("injector/image/repository", ""),
    ),
    (
        "runtime.configMap.create must be true if injector.enabled is true",
        value_at("runtime/configMap/create", False),
    ),
    (
        "runtime.defaults.mount-path is the file /app/asya_runtime.py, but runtime.delivery",
        {"runtime": {"delivery": "image", "defaults": {"mount-path": "/app/asya_runtime.py"}}},
    ),
    (
        "runtime.image.repository is required if runtime.image.tag or runtime.image.digest is set",
        {"runtime": {"delivery": "image", "image": {"tag": "3"}}},
    ),
    (
        "commonLabels: the chart sets the label app.kubernetes.io/name",
        value_at("commonLabels", {"app.kubernetes.io/name": "a"}),
    ),
    (
        "injector.podLabels: the chart sets the label app.kubernetes.io/instance",
        value_at("injector/podLabels", {"app.kubernetes.io/instance": "a"}),
    ),
    (
        "metrics.serviceMonitor.labels: the chart sets the label helm.sh/chart",
        value_at("metrics/serviceMonitor/labels", {"helm.sh/chart": "a"}),
    ),
    (
        "injector.podLabels: the label team is also in commonLabels",
        {"commonLabels": {"team": "a"}, "injector": {"podLabels": {"team": "b"}}},
    ),
    (
        "commonAnnotations: the annotation asya.sh/handler is reserved",
        value_at("commonAnnotations", {"asya.sh/handler": "a.b"}),
    ),
    (
        "commonAnnotations: the annotation helm.sh/hook is reserved",
        value_at("commonAnnotations", {"helm.sh/hook": "pre-install"}),
    ),
    (
        "injector.podAnnotations: the annotation checksum/runtime is reserved",
        value_at("injector/podAnnotations", {"checksum/runtime": "0"}),
    ),
    (
        "injector.extraEnv: the variable INJECTOR_TLS_MODE is already set",
        value_at("injector/extraEnv", [{"name": "INJECTOR_TLS_MODE", "value": "files"}]),
    ),
    (
        "injector.extraEnv: the variable INJECTOR_NAMESPACE is already set",
        value_at("injector/extraEnv", [{"name": "INJECTOR_NAMESPACE", "value": "a"}]),
    ),
    (
        "injector.extraEnv: the variable A is already set, by the chart or by another entry",
        value_at("injector/extraEnv", [{"name": "A"}, {"name": "A"}]),
    ),
    (
        "injector.extraVolumes: a volume tmp already exists",
        value_at("injector/extraVolumes", [{"name": "tmp", "emptyDir": {}}]),
    ),
    (
        "injector.extraVolumeMounts: /tmp/ is already a mount path",
        value_at("injector/extraVolumeMounts", [{"name": "tmp", "mountPath": "/tmp/"}]),
    ),
    (
        "injector.extraVolumeMounts: the volume more does not exist",
        value_at("injector/extraVolumeMounts", [{"name": "more", "mountPath": "/more"}]),
    ),
    ("webhook.port and metrics.port are both 8080", value_at("webhook/port", 8080)),
    (
        "serviceAccount.name is required if serviceAccount.create is false",
        value_at("serviceAccount/create", False),
    ),
    (
        "certificates.existingSecret.name is required",
        {"certificates": {"mode": "existingSecret", "existingSecret": SECRET | {"name": ""}}},
    ),
    (
        "certificates.existingSecret.caBundle is required",
        {"certificates": {"mode": "existingSecret", "existingSecret": {"name": "a"}}},
    ),
    (
        "certificates.existingSecret.caBundle conflicts with cert-manager.io/inject-ca-from",
        {
            "certificates": {"mode": "existingSecret", "existingSecret": SECRET},
            "webhook": {"annotations": {"cert-manager.io/inject-ca-from": "a/b"}},
        },
    ),
    (
        "injector.replicas must not be null: omit it to use the default",
        value_at("injector/replicas", None),
    ),
]
MESSAGES += [(line, {"sidecar": value}) for value, line in REJECTED_BY_THE_CHART_TOO]
NAMESPACE_MESSAGE = "cannot install into namespace {}, which the injector ignores"
VERSION_MESSAGE = (
    "runtime.delivery: image requires Kubernetes 1.36 or newer, but this cluster has {}"
)
SYSTEM_NAMESPACES = ("kube-system", "kube-public", "kube-node-lease")


@pytest.mark.parametrize("tool", ["helm", "helm3"])
@pytest.mark.parametrize(("message", "values"), MESSAGES)
def test_values_that_cannot_work_are_rejected_with_a_message(
    message: str, values: Object, tool: str, chart: Path
) -> None:
    with pytest.raises(HelmError, match=re.escape(message)):
        render(values, chart=chart, tool=tool)


@pytest.mark.parametrize("tool", ["helm", "helm3"])
def test_without_an_image_the_chart_names_the_two_ways_to_one(tool: str) -> None:
    with pytest.raises(HelmError) as error:
        run("template", "a", CHART, "--kube-version", "1.30.0", tool=tool)
    assert "make release REGISTRY=registry.example.com/team PUSH=1" in str(error.value)
    assert "--set injector.image.repository=" in str(error.value)
    off = ("--set", "injector.enabled=false", "--kube-version", "1.30.0")
    run("template", "a", CHART, *off, tool=tool)


@pytest.mark.parametrize("tool", ["helm", "helm3"])
@pytest.mark.parametrize("namespace", SYSTEM_NAMESPACES)
def test_a_namespace_that_the_injector_ignores_is_rejected(
    namespace: str, tool: str, chart: Path
) -> None:
    with pytest.raises(HelmError, match=NAMESPACE_MESSAGE.format(namespace)):
        render({}, chart=chart, namespace=namespace, tool=tool)


@pytest.mark.parametrize("tool", ["helm", "helm3"])
def test_an_image_is_rejected_before_the_first_version_that_can_mount_it(
    tool: str, chart: Path
) -> None:
    values = {"runtime": {"delivery": "image"}}
    for version in ("v1.30.0", "v1.35.9-eks-1"):
        with pytest.raises(HelmError, match=re.escape(VERSION_MESSAGE.format(version))):
            render(values, chart=chart, tool=tool, kubernetes=version)
    for version in ("v1.36.0", "v1.36.0-gke.1", "v1.37.2+k3s1"):
        render(values, chart=chart, tool=tool, kubernetes=version)


def test_all_messages_of_the_templates_are_tested() -> None:
    sources = "".join(path.read_text() for path in (CHART / "templates").rglob("*.*"))
    messages = re.findall(r'fail (?:\(printf )?"([^"]*)"', sources)
    assert len(messages) == len(re.findall(r"\bfail [(\"]", sources))
    tested = [message for message, _ in MESSAGES] + [NAMESPACE_MESSAGE, VERSION_MESSAGE]
    elsewhere = (
        "files/%s of the chart ",  # test_renderings.py
        "the runtime files have",
        "asya-runtime.env: ",  # test_example.py
        "chart ",
    )
    for message in messages:
        assert message.startswith(elsewhere) or any(begins(message, each) for each in tested)


def begins(message: str, beginning: str) -> bool:
    """Whether a message begins like this once its gaps are filled in."""
    lengths = range(20, len(message) + 1)
    patterns = (".+".join(map(re.escape, re.split("%[sdq]", message[:end]))) for end in lengths)
    return any(re.fullmatch(pattern, beginning) for pattern in patterns)


def value_paths(tree: Object, above: str = "") -> Iterator[str]:
    """The paths of all values and groups of values."""
    for key, value in tree.items():
        yield f"{above}{key}"
        if isinstance(value, dict):
            yield from value_paths(value, f"{above}{key}/")


@pytest.fixture(scope="module")
def all_defaults(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chart with all its defaults; its short files render in half the time."""
    return copy_chart(tmp_path_factory.mktemp("all-defaults"), all_defaults=True)


@pytest.mark.parametrize("path", list(value_paths(VALUES)))
def test_null_removes_an_optional_value_and_is_rejected_by_path_elsewhere(
    path: str, all_defaults: Path
) -> None:
    rejected = None
    try:
        render(value_at(path, None), chart=all_defaults)
    except HelmError as error:
        rejected = error
    assert rejected is None or has_message(rejected)
    assert rejected is None or path not in ("injector/podSecurityContext", "injector/resources")
    assert rejected is not None or path != "webhook"


def has_message(error: HelmError) -> bool:
    """Whether a template of the chart failed on purpose: Helm prefixes only these like this."""
    return str(error).startswith("Error: execution error at (asya-runtime/templates/")


# --- Random values ----------------------------------------------------------------------------

WORDS = (
    *("", "a", "team", "tmp", "more", "/tmp", "/a/b.py", "10%", "1h30m", "@daily", "*/5 1 * * mon"),
    *(
        "example.com/a",
        "app.kubernetes.io/name",
        "asya.sh/handler",
        "python3.13",
        "sha256:" + "0" * 64,
    ),
    CA,
)


class RandomValues:
    """Values that the schema accepts, chosen by a seed: few of them, or nearly all."""

    def __init__(self, seed: int) -> None:
        self.choose = random.Random(seed)
        self.likely = self.choose.choice([0.2, 0.5, 0.9])

    def value(self, schema: Object) -> Any:
        schema = resolved(schema)
        if "enum" in schema:
            return self.choose.choice(schema["enum"])
        if "anyOf" in schema:
            return self.value(self.choose.choice(schema["anyOf"]))
        kind = schema.get("type")
        if isinstance(kind, list):
            return self.value({**schema, "type": self.choose.choice(kind)})
        return getattr(self, f"any_{kind}")(schema)

    def any_object(self, schema: Object) -> Object:
        required = schema.get("required", ())
        result = {
            name: self.value(part)
            for name, part in schema.get("properties", {}).items()
            if name in required or self.choose.random() < self.likely
        }
        for pattern, part in schema.get("patternProperties", {}).items():
            result |= {
                self.word(pattern): self.value(part) for _ in range(self.choose.choice([0, 1, 2]))
            }
        return result

    def any_array(self, schema: Object) -> list[Any]:
        return [self.value(schema["items"]) for _ in range(self.choose.choice([0, 0, 1, 2]))]

    def any_string(self, schema: Object) -> str:
        shortest, longest = schema.get("minLength", 0), schema.get("maxLength", 10**4)
        return self.word(schema.get("pattern", ""), shortest, longest)

    def any_integer(self, schema: Object) -> int:
        lowest, highest = schema.get("minimum", 0), schema.get("maximum", 2**31 - 1)
        between = self.choose.randint(lowest, highest)
        return int(self.choose.choice([lowest, highest, between]))

    def any_number(self, schema: Object) -> float:
        lowest, highest = schema["minimum"], schema["maximum"]
        between = self.choose.uniform(lowest, highest)
        return float(self.choose.choice([lowest, highest, between]))

    def any_boolean(self, _: Object) -> bool:
        return self.choose.random() < 0.5

    def any_null(self, _: Object) -> None:
        return None

    def word(self, pattern: str, shortest: int = 0, longest: int = 10**4) -> str:
        fit = [
            word for word in WORDS if shortest <= len(word) <= longest and re.search(pattern, word)
        ]
        return self.choose.choice(fit)


# For more: RANDOM_VALUES=2000 make test
@pytest.mark.parametrize("seed", range(int(os.environ.get("RANDOM_VALUES", "30"))))
def test_values_that_the_schema_accepts_render_or_are_rejected_with_a_message(
    seed: int, chart: Path
) -> None:
    values = RandomValues(seed).value(SCHEMA)
    rejected = None
    text = ""
    try:
        text = render(values, chart=chart)
    except HelmError as error:
        rejected = error
    assert rejected is None or has_message(rejected), values
    for item in load_objects(text).values():
        assert problems(item, RELEASES[-1]) == [], values
