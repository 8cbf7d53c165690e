"""Random objects that the API's schemas allow."""

from __future__ import annotations

import os
import random
from typing import Any

from tests.chart import schemas

Object = dict[str, Any]
EXAMPLES = int(os.environ.get("HYPOTHESIS_EXAMPLES", "40"))
RELEASE = schemas.RELEASES[-1]
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

    def generate(self, kind: str, *, status: bool = False) -> Object:
        """An object of a kind, such as `apps/v1/Deployment`."""
        group, _, name = kind.rpartition("/")
        value: Object = self.build(
            {"$ref": "#/definitions/" + schemas._KUBERNETES["kinds"][kind]},
            0,
        )
        value |= {"apiVersion": group.lstrip("/"), "kind": name}
        if not status:
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
