"""What the chart refuses: values of a wrong form by their path, others by a sentence of its own."""

import json
import os
import random
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.chart.charts import CA, CHART, SYSTEM, HelmError, Object, nested, objects, render
from tests.chart.schemas import RELEASES, problems

SCHEMA: Object = json.loads((CHART / "values.schema.json").read_text())
VALUES: Object = yaml.safe_load((CHART / "values.yaml").read_text())
# Kubernetes' own forms, whose inner keys are none of ours.
OPEN = {
    "/webhook/namespaceSelector",
    "/webhook/objectSelector",
    "/certificates/certManager/issuerRef",
}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("injecter", {}),
        ("injector/replica", 2),
        ("injector/image/tga", "1"),
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
        ("metrics/serviceMonitor/interval", "often"),
        ("tests/enabled", "no"),
        ("commonLabels", {"a": 1}),
        ("commonAnnotations", {"a b": "c"}),
    ],
)
def test_a_wrong_value_is_refused_with_its_path(path: str, value: object, chart: Path) -> None:
    refused_with_its_path(path, value, chart, "helm")


@pytest.mark.parametrize(
    ("path", "value"),
    [("injecter", {}), ("injector/replicas", "2"), ("webhook/namespaceSelector/matchLabel", {})],
)
def test_helm_3_refuses_it_too(path: str, value: object, chart: Path) -> None:
    refused_with_its_path(path, value, chart, "helm3")


def refused_with_its_path(path: str, value: object, chart: Path, tool: str) -> None:
    with pytest.raises(HelmError) as refused:
        render(nested(path, value), chart=chart, tool=tool)
    # Helm 3 writes paths with dots; both name an unknown key as a word of its own.
    said = str(refused.value).replace(".", "/")
    *above, last = path.split("/")
    assert "/".join(above) in said
    assert last in said


def test_the_schema_and_the_values_know_the_same_keys() -> None:
    def keys(schema: Object, path: str = "") -> set[str]:
        """Paths of all that the schema describes; closed wherever it does."""
        schema = resolved(schema)
        if "properties" not in schema or path in OPEN:
            return {path}
        assert schema["additionalProperties"] is False, path
        parts = schema["properties"].items()
        return {key for name, part in parts for key in keys(part, f"{path}/{name}")}

    described = keys(SCHEMA) - {"/global", "/enabled"}
    for path in described:
        at(VALUES, path)
    left = [path for path in walked(VALUES) if not any(covers(each, path) for each in described)]
    assert left == []


def test_the_schema_is_one_and_refers_to_nothing_outside() -> None:
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


def walked(tree: object, path: str = "") -> list[str]:
    """Paths of all leaves."""
    if isinstance(tree, dict) and tree:
        return [leaf for key, value in tree.items() for leaf in walked(value, f"{path}/{key}")]
    return [path]


def covers(described: str, path: str) -> bool:
    return path == described or path.startswith(f"{described}/")


# --- What no schema can say -------------------------------------------------------------------

OURS = {"name": "a", "caBundle": CA}
FAILURES: list[tuple[str, Object, str]] = [
    (
        "runtime.configMap.create is off while injector.enabled is on",
        nested("runtime/configMap/create", False),
        SYSTEM,
    ),
    (
        "commonLabels: the label app.kubernetes.io/name is the chart's own",
        nested("commonLabels", {"app.kubernetes.io/name": "a"}),
        SYSTEM,
    ),
    (
        "injector.podLabels: the label app.kubernetes.io/instance is the chart's own",
        nested("injector/podLabels", {"app.kubernetes.io/instance": "a"}),
        SYSTEM,
    ),
    (
        "metrics.serviceMonitor.labels: the label helm.sh/chart is the chart's own",
        nested("metrics/serviceMonitor/labels", {"helm.sh/chart": "a"}),
        SYSTEM,
    ),
    (
        "injector.podLabels: the label team is in commonLabels too",
        {"commonLabels": {"team": "a"}, "injector": {"podLabels": {"team": "b"}}},
        SYSTEM,
    ),
    (
        "commonAnnotations: the annotation asya.sh/handler is not for this chart's own objects",
        nested("commonAnnotations", {"asya.sh/handler": "a.b"}),
        SYSTEM,
    ),
    (
        "commonAnnotations: the annotation helm.sh/hook is not for",
        nested("commonAnnotations", {"helm.sh/hook": "pre-install"}),
        SYSTEM,
    ),
    (
        "injector.podAnnotations: the annotation checksum/runtime is not for",
        nested("injector/podAnnotations", {"checksum/runtime": "0"}),
        SYSTEM,
    ),
    *(
        (
            f"namespace {name} is never injected, so `helm test` could show nothing there",
            {},
            name,
        )
        for name in ("kube-system", "kube-public", "kube-node-lease")
    ),
    (
        "injector.extraEnv: INJECTOR_TLS_MODE is there already",
        nested("injector/extraEnv", [{"name": "INJECTOR_TLS_MODE", "value": "files"}]),
        SYSTEM,
    ),
    (
        "injector.extraEnv: INJECTOR_NAMESPACE is there already",
        nested("injector/extraEnv", [{"name": "INJECTOR_NAMESPACE", "value": "a"}]),
        SYSTEM,
    ),
    (
        "injector.extraEnv: A is there already, by the chart or twice",
        nested("injector/extraEnv", [{"name": "A"}, {"name": "A"}]),
        SYSTEM,
    ),
    (
        "injector.extraVolumes: there is a volume tmp already, the chart's or twice",
        nested("injector/extraVolumes", [{"name": "tmp", "emptyDir": {}}]),
        SYSTEM,
    ),
    (
        "injector.extraVolumeMounts: something is mounted at /tmp/ already",
        nested("injector/extraVolumeMounts", [{"name": "tmp", "mountPath": "/tmp/"}]),
        SYSTEM,
    ),
    (
        "injector.extraVolumeMounts: there is no volume more",
        nested("injector/extraVolumeMounts", [{"name": "more", "mountPath": "/more"}]),
        SYSTEM,
    ),
    (
        "webhook.port and metrics.port are both 8080",
        nested("webhook/port", 8080),
        SYSTEM,
    ),
    (
        "serviceAccount.name is empty while serviceAccount.create is off",
        nested("serviceAccount/create", False),
        SYSTEM,
    ),
    (
        "certificates.existingSecret.name is empty",
        {"certificates": {"mode": "existingSecret", "existingSecret": OURS | {"name": ""}}},
        SYSTEM,
    ),
    (
        "certificates.existingSecret.caBundle is empty",
        {"certificates": {"mode": "existingSecret", "existingSecret": {"name": "a"}}},
        SYSTEM,
    ),
    (
        "certificates.existingSecret.caBundle is given, and webhook.annotations has "
        "cert-manager.io/inject-ca-from",
        {
            "certificates": {"mode": "existingSecret", "existingSecret": OURS},
            "webhook": {"annotations": {"cert-manager.io/inject-ca-from": "a/b"}},
        },
        SYSTEM,
    ),
    (
        "injector.replicas has no value: leave it out rather than setting it to null",
        nested("injector/replicas", None),
        SYSTEM,
    ),
]


@pytest.mark.parametrize(("words", "values", "namespace"), FAILURES)
def test_what_cannot_work_is_refused_in_a_sentence(
    words: str, values: Object, namespace: str, chart: Path
) -> None:
    for tool in ("helm", "helm3"):
        with pytest.raises(HelmError) as refused:
            render(values, chart=chart, namespace=namespace, tool=tool)
        assert words in str(refused.value)


def test_each_sentence_of_the_templates_has_been_tried() -> None:
    """By its words up to the first that is filled in."""
    texts = "".join(path.read_text() for path in (CHART / "templates").rglob("*.*"))
    said = re.findall(r'fail (?:\(printf )?"([^"]*)"', texts)
    assert len(said) == len(re.findall(r"\bfail [(\"]", texts))
    tried = [words for words, _, _ in FAILURES]
    elsewhere = (
        "the chart's files/",  # tests of renderings
        "the runtime's files have",
        "asya-runtime.env: ",  # tests of the example chart
        "chart ",
    )
    for sentence in said:
        assert sentence.startswith(elsewhere) or any(begins(sentence, words) for words in tried), (
            sentence
        )


def begins(sentence: str, words: str) -> bool:
    """Whether the words are how the sentence begins, with anything in its gaps."""
    beginnings = (sentence[:length] for length in range(20, len(sentence) + 1))
    patterns = (".+".join(map(re.escape, re.split("%[sdq]", each))) for each in beginnings)
    return any(re.fullmatch(pattern, words) for pattern in patterns)


def test_null_removes_an_optional_value_and_is_rejected_by_path_elsewhere() -> None:
    """Each value and each group of values, one by one, of the chart with all its defaults."""

    def paths(tree: object, path: str = "") -> list[str]:
        if not isinstance(tree, dict) or not tree:
            return [path] if path else []
        below = [each for key, value in tree.items() for each in paths(value, f"{path}/{key}")]
        return [*([path] if path else []), *below]

    refused = {}
    for path in paths(VALUES):
        try:
            render(nested(path.strip("/"), None))
        except HelmError as error:
            refused[path] = error
    assert [path for path, error in refused.items() if not is_named(error)] == []
    assert "/injector/podSecurityContext" not in refused
    assert "/injector/resources" not in refused
    assert "/webhook" in refused


def is_named(error: HelmError) -> bool:
    """Whether Helm stopped by a sentence of the chart's, which alone it begins like this."""
    return str(error).startswith("Error: execution error at (asya-runtime/templates/")


# --- What nobody has thought of ---------------------------------------------------------------

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


class Anything:
    """Values that the schema takes, chosen by a seed: few of them, or nearly all."""

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


# `RANDOM_VALUES=2000 make test` tries more.
@pytest.mark.parametrize("seed", range(int(os.environ.get("RANDOM_VALUES", "30"))))
def test_whatever_the_schema_takes_renders_or_is_refused_in_a_sentence(
    seed: int, chart: Path
) -> None:
    values = Anything(seed).value(SCHEMA)
    refused = None
    text = ""
    try:
        text = render(values, chart=chart)
    except HelmError as error:
        refused = error
    assert refused is None or is_named(refused), values
    for item in objects(text).values():
        # What of the open forms is Kubernetes' own has no meaning here.
        assert problems(item, RELEASES[-1]) == [], values
