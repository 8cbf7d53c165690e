"""The cluster defaults in a file of chart values: `runtime.defaults` and `sidecar`."""

from decimal import Decimal
from pathlib import Path
from typing import Any

from asya_injector.annotations.sidecar import SidecarError, SidecarTemplate
from asya_injector.annotations.table import TABLE, Annotation
from asya_injector.documents.document import ManifestError, read_documents
from asya_injector.kube_objects import Object

# Annotations with a default for all pods; opting in and choosing a container is up to each pod.
DEFAULTS: tuple[Annotation, ...] = tuple(
    entry for entry in TABLE if entry.default is not None and entry.name != "inject"
)


def load_values(path: Path) -> Object:
    """The content of a file; of several documents, the last. Raises OSError or ManifestError."""
    values: Any = {}
    for document in read_documents(str(path), path.read_text("utf-8"), read_all=True):
        values = document.value or {}
    if not isinstance(values, dict):
        raise ManifestError(f"{path}: chart values must be a mapping")
    return values


def read_values(values: Object, path: Path | None) -> tuple[dict[str, str], SidecarTemplate | None]:
    """The defaults as strings by name, and the sidecar; raises ManifestError.

    path: of the file of these values, for errors.
    """
    try:
        sidecar = SidecarTemplate.parse(values.get("sidecar") or {})
    except SidecarError as error:
        raise ManifestError(f"{path}: {error}") from None
    return _read_defaults(values, path), sidecar


def _read_defaults(values: Any, path: Path | None) -> dict[str, str]:
    for step in ("runtime", "defaults"):
        values = (values.get(step) if isinstance(values, dict) else values) or {}
    if not isinstance(values, dict):
        raise ManifestError(f"{path}: runtime.defaults must be a mapping of names and values")
    known = {entry.name for entry in DEFAULTS}
    unknown = [str(name) for name in values if name not in known]
    if unknown:
        raise ManifestError(
            f"{path}: unknown name {unknown[0]!r} in runtime.defaults; known names are "
            f"{', '.join(sorted(known))}"
        )
    return {name: _to_string(value) for name, value in values.items() if value is not None}


def _to_string(value: Any) -> str:
    """A value as the chart passes it to the injector: true, not True; no exponent."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    return format(Decimal(str(value)), "f")
