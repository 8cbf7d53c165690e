"""Validates objects as the API server of a Kubernetes release would, without a server."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema

Object = dict[str, Any]

HERE = Path(__file__).parent / "schemas"
_KUBERNETES: Object = json.loads((HERE / "kubernetes.json").read_text())
_CUSTOM: Object = json.loads((HERE / "custom.json").read_text())
RELEASES: tuple[str, ...] = tuple(_KUBERNETES["releases"])


def _closed(schema: Any) -> Any:
    """The schema with unknown fields as errors, as in strict decoding."""
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict):
        closed["additionalProperties"] = False
    if schema.get("format") == "int-or-string" or schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    return closed


def _unique(_: Any, keys: list[str], items: Any, __: Any) -> Iterator[jsonschema.ValidationError]:
    """Reject duplicate keys in lists that are maps by key, as server-side apply does."""
    if isinstance(items, list):
        found = [tuple(item.get(key) for key in keys) for item in items if isinstance(item, dict)]
        for each in sorted({key for key in found if found.count(key) > 1}, key=repr):
            yield jsonschema.ValidationError(f"duplicate key {dict(zip(keys, each, strict=True))}")


_Validator: Any = jsonschema.validators.extend(
    jsonschema.Draft7Validator, {"x-kubernetes-list-map-keys": _unique}
)


@functools.cache
def _definitions(release: str) -> Object:
    return {
        each["name"]: _quantities(each["name"], _closed(each["schema"]))
        for each in _KUBERNETES["definitions"]
        if release in each["releases"]
    }


def _quantities(name: str, schema: Object) -> Object:
    # The schema declares this type as a string, but it may be a number.
    return {"type": ["string", "number"]} if name.endswith(".resource.Quantity") else schema


@functools.cache
def _validator(release: str, kind: str) -> Any:
    if kind in _CUSTOM["kinds"]:
        schema = _closed(_CUSTOM["kinds"][kind])
        # The API server validates metadata in the same way for all resources.
        schema["properties"]["metadata"] = {"type": "object"}
        return _Validator(schema)
    name = _KUBERNETES["kinds"][kind]
    definitions = _definitions(release)
    return _Validator({"$ref": f"#/definitions/{name}", "definitions": definitions})


def problems(item: Object, release: str) -> list[str]:
    """Validation errors of an object; raises KeyError for a kind without a schema."""
    group, _, version = item["apiVersion"].rpartition("/")
    validator = _validator(release, f"{group}/{version}/{item['kind']}")
    return [
        f"{item['kind']} {item['metadata']['name']}: /{'/'.join(map(str, error.path))}: "
        f"{error.message[:200]}"
        for error in validator.iter_errors(item)
    ]


def fields(definition: str, release: str) -> set[str]:
    """The names of the fields of a type."""
    return set(_definitions(release)[definition]["properties"])
