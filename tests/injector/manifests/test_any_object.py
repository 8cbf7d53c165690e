"""Any object that the API's schemas allow gives a result or a rejection, in every command."""

import json
import os
import random
import re
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.chart import schemas
from tests.injector.commands import asya

Object = dict[str, Any]
EXAMPLES = int(os.environ.get("HYPOTHESIS_EXAMPLES", "40"))
RELEASE = schemas.RELEASES[-1]
KINDS = ["/v1/Pod", "apps/v1/Deployment", "batch/v1/CronJob", "/v1/Service", "/v1/ConfigMap"]
# Fields that the injector reads, so that most objects have some of them.
LIKELY = {
    "spec", "template", "jobTemplate", "metadata", "annotations", "labels", "containers", "env",
    "initContainers", "volumes", "volumeMounts", "lifecycle", "readinessProbe", "command", "args",
    "name", "stopSignal", "preStop", "postStart", "exec", "emptyDir", "configMap", "mountPath",
}  # fmt: skip
WORDS = [
    "", "a", "model", "asya-runtime", "asya-socket", "asya-sidecar", "/tmp/sockets", "/opt/asya",
    "ASYA_HANDLER", "ASYA_SOCKET_PATH", "python3", "--", "-I", "-S", "SIGUSR1", "true", "1", "a\nb",
    "\x1b[2J", "\u2028", "\x7f", "é", "😀", "$(A)", "asya-runtime-0123456789", "asya_entrypoint.py",
]  # fmt: skip
ANNOTATIONS = {
    "asya.sh/handler": ["my_app.handler.predict", "x.y", "", "é", "a"],
    "asya.sh/mode": ["auto", "wrap", "hook", "runtime", "mount", "x"],
    "asya.sh/container": ["model", "a", "\ufffd"],
    "asya.sh/sidecars": ["asya-sidecar", "a,model"],
    "asya.sh/inject": ["true", "false", "x"],
    "asya.sh/injected": ["{}", "x", '{"container":1}'],
    "asya.sh/inherited": ["{}", "[", '{"asya.sh/handler":"a.b"}'],
    "asya.sh/unknown": ["1"],
}


class Generator:
    """Random values for the API's schemas."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.definitions = {
            each["name"]: each["schema"]
            for each in schemas._KUBERNETES["definitions"]
            if RELEASE in each["releases"]
        }

    def generate(self, kind: str) -> Object:
        group, _, name = kind.rpartition("/")
        value: Object = self.build(
            {"$ref": "#/definitions/" + schemas._KUBERNETES["kinds"][kind]},
            0,
        )
        value |= {"apiVersion": group.lstrip("/"), "kind": name}
        value.pop("status", None)
        self.annotate(value)
        for each in self.find_templates(value):
            self.annotate(each)
        return value

    def annotate(self, value: Object) -> None:
        if self.random.random() < 0.7:
            metadata = value["metadata"] = value.get("metadata") or {}
            metadata["annotations"] = {
                key: self.random.choice(values)
                for key, values in ANNOTATIONS.items()
                if self.random.random() < (0.9 if "handler" in key else 0.12)
            }

    def find_templates(self, value: Any) -> list[Object]:
        found = []
        for key, each in value.items() if isinstance(value, dict) else ():
            if key == "template" and isinstance(each, dict):
                found.append(each)
            found += self.find_templates(each)
        return found

    def build(self, schema: Object, depth: int) -> Any:
        if "$ref" in schema:
            name = schema["$ref"].removeprefix("#/definitions/")
            return self.build(self.definitions.get(name, {"type": "string"}), depth)
        if "allOf" in schema:
            return self.build(schema["allOf"][0], depth)
        kind = schema.get("type")
        if schema.get("format") == "int-or-string":
            return self.random.choice([80, "http"])
        if kind == "object" or "properties" in schema:
            return self.build_object(schema, depth)
        if kind == "array":
            count = self.random.choice([0, 1, 1, 2]) if depth < 14 else 0
            return [self.build(schema["items"], depth + 1) for _ in range(count)]
        if kind == "boolean":
            return self.random.random() < 0.5
        if kind in ("integer", "number"):
            return self.random.choice([0, 1, 292, 2**31 - 1])
        return self.random.choice(schema.get("enum") or WORDS)

    def build_object(self, schema: Object, depth: int) -> Object:
        result = {}
        for name, each in schema.get("properties", {}).items():
            is_likely = name in LIKELY
            if name in schema.get("required", ()) or (
                depth < 14 and self.random.random() < (0.6 if is_likely else 0.03)
            ):
                result[name] = self.build(each, depth + 1)
        if isinstance(schema.get("additionalProperties"), dict):
            for _ in range(self.random.choice([0, 0, 1])):
                result[self.random.choice(WORDS)] = self.build(
                    schema["additionalProperties"], depth + 1
                )
        return result


def check_commands(text: str) -> None:
    for words in (["inject", "-n", "m"], ["uninject"], ["explain"], ["explain", "-o", "json"]):
        done = asya(*words, stdin=text)
        assert done.status in (0, 1)
        assert "Traceback" not in done.err
        assert "InternalError" not in done.err + done.out
        for line in done.err.splitlines():
            assert line.isprintable()
            assert line.startswith("asya-injector: ")
        if done.status == 1 and words[0] != "explain":
            assert done.out == ""
            assert re.search(r"\([A-Za-z]+\)$", done.err, re.MULTILINE)
        if words[0] == "inject" and done.status == 0:
            assert asya("inject", "-n", "m", stdin=done.out).out == done.out
            if not re.search("asya.sh/(injected|inherited)", text):
                assert asya("uninject", stdin=done.out).out == text


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.integers(min_value=0), st.sampled_from(KINDS), st.booleans())
def test_any_valid_object_gives_a_result_or_a_rejection(
    seed: int, kind: str, is_yaml: bool
) -> None:
    item = Generator(seed).generate(kind)
    text = yaml.safe_dump(item, allow_unicode=True) if is_yaml else json.dumps(item, indent=2)
    check_commands(text)


MODEL: Object = {"name": "model", "image": "m"}
REPORTED: dict[str, Object] = {
    "stop-signal": {**MODEL, "lifecycle": {"stopSignal": "SIGUSR1"}},
    "stop-signal-and-hook": {**MODEL, "lifecycle": {"stopSignal": "SIGUSR1", "preStop": None}},
    "nameless-variable": {**MODEL, "env": [{}, {"value": "x"}, {"valueFrom": {}}]},
    "nameless-mount": {**MODEL, "volumeMounts": [{}]},
    "nameless": {},
    "nulls": dict.fromkeys(("name", "env", "volumeMounts", "lifecycle", "command", "args")),
    "sleep": {**MODEL, "lifecycle": {"preStop": {"sleep": {"seconds": 1}}}},
    "http-probe": {**MODEL, "readinessProbe": {"httpGet": {"port": "http"}}},
}


@pytest.mark.parametrize("container", REPORTED.values(), ids=REPORTED.keys())
@pytest.mark.parametrize("mode", ["auto", "wrap", "hook", "runtime", "mount"])
def test_unusual_containers_give_a_result_or_a_rejection(container: Object, mode: str) -> None:
    annotations = {"asya.sh/handler": "a.b", "asya.sh/mode": mode}
    metadata = {"name": "p", "annotations": annotations}
    item = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata}
    check_commands(json.dumps(item | {"spec": {"containers": [container]}}))


@pytest.mark.parametrize(
    "name", ["\\ud800", "\\udfff\\ud800", "\\u0000", "\\u001b[2J", "\\ufeff", "\\ud83d\\ude00"]
)
def test_any_text_in_json_gives_a_result_or_a_rejection(name: str) -> None:
    metadata = f'{{"name": "{name}", "annotations": {{"asya.sh/handler": "a.b", "x": "{name}"}}}}'
    container = f'{{"name": "m", "env": [{{"name": "{name}", "value": "{name}"}}]}}'
    check_commands(
        f'{{"apiVersion": "v1", "kind": "Pod", "metadata": {metadata}, '
        f'"spec": {{"containers": [{container}]}}}}'
    )
