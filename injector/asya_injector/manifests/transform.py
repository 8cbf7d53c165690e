"""Inject or uninject all objects of a set of manifests, with the runtime ConfigMaps they need.

All or nothing: if an object is rejected, all errors are reported and there is no output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from asya_injector.annotations.settings import ClusterDefaults
from asya_injector.errors import InjectionError, Reason, quote
from asya_injector.kube_objects import Object, find_kind, get_in
from asya_injector.manifests.documents import (
    Document,
    edit_document,
    remove_documents,
    render_document,
    uses_anchors,
)
from asya_injector.mutation.uninject import uninject_object
from asya_injector.mutation.workload import (
    ObjectChange,
    change_object,
    get_namespace,
    is_disabled_namespace,
    is_runtime_configmap,
)
from asya_injector.runtime_files import FROM_MANIFEST, RuntimeFiles


@dataclass(frozen=True)
class ManifestObject:
    """An object and where it is: a document, and the index of the item if that is a list."""

    document: Document
    item: int | None
    value: Object
    namespace: str

    @property
    def label(self) -> str:
        """The object in a message: place, kind, namespace and name."""
        place = self.document.place + (f"[{self.item}]" if self.item is not None else "")
        metadata = get_in(self.value, "metadata")
        name = str(metadata.get("name") or metadata.get("generateName") or "")
        path = "/".join(filter(None, (self.namespace, name)))
        text = f"{self.value.get('kind') or ''} {path}".rstrip()
        # Names may contain terminal sequences.
        return f"{place} {text if text.isascii() and text.isprintable() else quote(text)}"


@dataclass(frozen=True)
class Output:
    """The documents to write, and warnings, one line each."""

    documents: list[Document]
    warnings: list[str]


class RejectedError(Exception):
    """At least one object was rejected. lines: the errors, one line each."""

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = list(lines)


def iter_objects(
    documents: Sequence[Document], namespace: str = "", *, with_unread: bool = False
) -> Iterator[ManifestObject]:
    """Yield the objects that were read, including items of lists.

    namespace: of objects that name none. with_unread: also yield what is known of the others.
    """
    for document in documents:
        value = document.value
        if with_unread and "kind" in document.head and not document.is_read:
            value = document.head
        items = enumerate(value["items"]) if _is_list(value) else [(None, value)]
        for index, item in items:
            if isinstance(item, dict):
                yield ManifestObject(document, index, item, get_namespace(item) or namespace)


def list_disabled_namespaces(documents: Sequence[Document]) -> list[str]:
    """Names of the namespaces whose manifest disables injection."""
    values = (found.value for found in iter_objects(documents))
    return [
        str(get_in(value, "metadata").get("name"))
        for value in values
        if is_disabled_namespace(value)
    ]


def try_change(
    found: ManifestObject, defaults: ClusterDefaults, disabled: Sequence[str]
) -> ObjectChange | InjectionError:
    """Return the change of an object, or the error if it is rejected."""
    try:
        return change_object(found.value, defaults, disabled=disabled, namespace=found.namespace)
    except InjectionError as error:
        return error


def inject_all(
    documents: Sequence[Document],
    defaults: ClusterDefaults,
    runtime: RuntimeFiles | None,
    *,
    namespace: str = "",
) -> Output:
    """Inject all annotated pods and workloads; raises RejectedError.

    runtime: what the runtime ConfigMaps contain; one per namespace is added before the first object
    that needs it. None adds none. namespace: of objects that name none.
    """
    disabled = list_disabled_namespaces(documents)
    configmaps = _RuntimeConfigMaps(documents, runtime, namespace)
    warnings: list[str] = []

    def inject(found: ManifestObject) -> list[Object]:
        change = change_object(found.value, defaults, disabled=disabled, namespace=found.namespace)
        warnings.extend(f"{found.label}: {line}" for line in change.warnings)
        return [*(configmaps.add_missing(found) if change.injection else []), change.after]

    outputs = _replace_objects(documents, namespace, inject, warnings)
    return Output([each for output in outputs for each in output], warnings)


def uninject_all(documents: Sequence[Document], *, namespace: str = "") -> Output:
    """Restore all objects, and remove the ConfigMaps that `inject_all` added; RejectedError."""
    warnings: list[str] = []

    def restore(found: ManifestObject) -> list[Object]:
        labels = get_in(found.value, "metadata", "labels")
        if is_runtime_configmap(found.value) and FROM_MANIFEST.items() <= labels.items():
            return []
        return [uninject_object(found.value) if find_kind(found.value) else found.value]

    outputs = _replace_objects(documents, namespace, restore, warnings)
    pairs = [
        (document, output[0] if output else None)
        for document, output in zip(documents, outputs, strict=True)
    ]
    return Output(remove_documents(pairs), warnings)


class _RuntimeConfigMaps:
    """The runtime ConfigMaps of a set of manifests: those in it, and those to add."""

    def __init__(
        self, documents: Sequence[Document], runtime: RuntimeFiles | None, namespace: str
    ) -> None:
        self._runtime = runtime
        self._present = {
            (found.namespace, str(get_in(found.value, "metadata").get("name"))): found
            for found in iter_objects(documents, namespace)
            if found.value.get("kind") == "ConfigMap"
        }
        self._checked: set[str] = set()

    def add_missing(self, found: ManifestObject) -> list[Object]:
        """Return the ConfigMap to add before this object, if any; raises InjectionError."""
        if self._runtime is None or found.namespace in self._checked:
            return []
        self._checked.add(found.namespace)
        configmap = self._runtime.config_map()
        metadata = configmap["metadata"]
        present = self._present.get((found.namespace, metadata["name"]))
        if present and present.value.get("data") != configmap["data"]:
            raise InjectionError(
                f"ConfigMap {quote(metadata['name'])} in {present.document.place}",
                "has other content, which pods would run",
                fix="remove it: asya-injector adds its own",
                reason=Reason.RUNTIME_CONFIGMAP_CONFLICT,
            )
        if present:
            return []
        place = {"namespace": found.namespace} if found.namespace else {}
        labels = metadata["labels"] | FROM_MANIFEST
        return [configmap | {"metadata": {"name": metadata["name"], **place, "labels": labels}}]


def _replace_objects(
    documents: Sequence[Document],
    namespace: str,
    replace: Callable[[ManifestObject], list[Object]],
    warnings: list[str],
) -> list[list[Document]]:
    """Replace all objects; return the new documents for each document; raises RejectedError.

    replace: returns the new object and, before it, objects to add; or nothing, to remove it.
    """
    errors: list[str] = []
    outputs = []
    for document in documents:
        values: dict[int | None, list[Object]] = {}
        for found in iter_objects([document], namespace):
            try:
                values[found.item] = replace(found)
            except InjectionError as error:
                errors.append(f"{found.label}: {error}")
        if _is_list(document.value):
            each = (values.get(i, [item]) for i, item in enumerate(document.value["items"]))
            items = [item for replaced in each for item in replaced]
            values = {None: [document.value | {"items": items}]}
        outputs.append(_write(document, values.get(None, [document.value]), warnings))
    if errors:
        raise RejectedError(errors)
    return outputs


def _write(document: Document, values: list[Any], warnings: list[str]) -> list[Document]:
    if not values:
        return []
    *added, value = values
    edited = edit_document(document, value)
    if not edited:
        cause = ", because of its anchors" * uses_anchors(document)
        warnings.append(f"{document.place}: written without its comments{cause}")
        edited = render_document(value, like=document)
    rendered = [render_document(item, like=document) for item in added]
    return [edited, *rendered] if document.has_directive else [*rendered, edited]


def _is_list(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and str(value.get("kind")).endswith("List")
        and isinstance(value.get("items"), list)
    )
