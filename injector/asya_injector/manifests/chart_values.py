"""What holds for all actors: the chart's `runtime.defaults`, read from a file of values."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from asya_injector.annotations.table import TABLE, Annotation
from asya_injector.manifests import documents
from asya_injector.manifests.documents import ManifestError

# What is said for all pods: not which of them opts in, nor which of its containers is meant.
DEFAULTS: tuple[Annotation, ...] = tuple(
    entry for entry in TABLE if entry.default is not None and entry.name != "inject"
)


def read_values(path: Path) -> dict[str, str]:
    """The defaults of a values file by name, as texts; raises OSError or ManifestError."""
    tree: Any = {}
    for document in documents.read_documents(str(path), path.read_text("utf-8")):
        tree = document.value or {}
    for step in ("runtime", "defaults"):
        tree = (tree.get(step) if isinstance(tree, dict) else tree) or {}
    if not isinstance(tree, dict):
        raise ManifestError(f"{path}: runtime.defaults must be a mapping of names and values")
    known = {entry.name for entry in DEFAULTS}
    unknown = [str(name) for name in tree if name not in known]
    if unknown:
        raise ManifestError(
            f"{path}: runtime.defaults has no {unknown[0]!r}; known are {', '.join(sorted(known))}"
        )
    return {name: text for name, value in tree.items() if (text := _text(value)) is not None}


def merge_values(*layers: Mapping[str, str | None]) -> dict[str, str]:
    """Later layers win; None says nothing."""
    return {name: text for layer in layers for name, text in layer.items() if text is not None}


def _text(value: Any) -> str | None:
    """A value as the chart hands it to the injector: true, not True; no exponent."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    return format(Decimal(str(value)), "f")
