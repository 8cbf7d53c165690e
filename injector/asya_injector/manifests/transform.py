"""A whole set of manifests changed at once: all objects, with the ConfigMaps that they need.

All or nothing: where one object is refused, every refusal is told and nothing is given out.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from asya_injector.annotations.settings import ClusterDefaults
from asya_injector.errors import InjectionError, Reason, quote
from asya_injector.kube_objects import Object, find_kind, get_in
from asya_injector.manifests.documents import Document, drop_documents, render_document, rewrite
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
    """An object and its place: a document, and the item of it where that is a list."""

    document: Document
    item: int | None
    value: Object
    namespace: str

    @property
    def label(self) -> str:
        """The object as a message names it."""
        place = self.document.place + (f"[{self.item}]" if self.item is not None else "")
        metadata = get_in(self.value, "metadata")
        name = str(metadata.get("name") or metadata.get("generateName") or "")
        words = [str(self.value.get("kind") or ""), "/".join(filter(None, (self.namespace, name)))]
        return f"{place} {_shown(' '.join(words))}"


@dataclass
class Result:
    """The documents' texts, each with whether it is JSON; and what is to be said about them."""

    texts: list[tuple[str, bool]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


class RejectedError(Exception):
    """At least one object was refused: a line each."""

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = list(lines)


def iter_objects(documents: Sequence[Document], namespace: str = "") -> Iterator[ManifestObject]:
    """All objects, those in lists too. namespace: of those that name none."""
    for document in documents:
        value = document.value
        if _is_list(value):
            for index, item in enumerate(value["items"]):
                if isinstance(item, dict):
                    yield ManifestObject(document, index, item, _namespace(item, namespace))
        elif isinstance(value, dict):
            yield ManifestObject(document, None, value, _namespace(value, namespace))


def outcome(
    found: ManifestObject, policy: ClusterDefaults, disabled: Sequence[str]
) -> ObjectChange | InjectionError:
    """What comes of an object, a refusal included."""
    try:
        return change_object(found.value, policy, disabled=disabled, namespace=found.namespace)
    except InjectionError as refusal:
        return refusal


def disabled_namespaces(documents: Sequence[Document]) -> list[str]:
    """The namespaces that are switched off by an object of the set itself."""
    spaces = (
        found.value for found in iter_objects(documents) if is_disabled_namespace(found.value)
    )
    return [str(get_in(item, "metadata").get("name")) for item in spaces]


def inject_all(
    documents: Sequence[Document],
    policy: ClusterDefaults,
    payload: RuntimeFiles | None,
    *,
    namespace: str = "",
) -> Result:
    """Every pod and workload made an actor that asks for it; raises Refused.

    payload: the runtime to bring along as ConfigMaps, one a namespace, in front of the first object
    that needs it; None brings none. namespace: of objects that name none.
    """
    result, refused = Result(), []
    disabled = disabled_namespaces(documents)
    copies = _Copies(documents, payload, namespace)

    def after(found: ManifestObject) -> list[Object]:
        done = outcome(found, policy, disabled)
        if isinstance(done, InjectionError):
            refused.append(f"{found.label}: {done}")
            return []
        result.warnings.extend(f"{found.label}: {line}" for line in done.warnings)
        if not done.injection:
            return [done.after]
        try:
            return [*copies.needed(found), done.after]
        except InjectionError as refusal:
            refused.append(f"{found.label}: {refusal}")
            return []

    for document in documents:
        _rewrite(document, namespace, after, result)
    if refused:
        raise RejectedError(refused)
    return result


def uninject_all(documents: Sequence[Document], *, namespace: str = "") -> Result:
    """What `inject` was given, of what it gave: the ConfigMaps that it brought go too."""
    result, refused = Result(), []
    pieces: list[tuple[Document, str | None]] = []

    def after(found: ManifestObject) -> list[Object]:
        if (
            is_runtime_configmap(found.value)
            and FROM_MANIFEST.items() <= _labels(found.value).items()
        ):
            return []
        if find_kind(found.value) is None:
            return [found.value]
        try:
            return [uninject_object(found.value)]
        except InjectionError as refusal:
            refused.append(f"{found.label}: {refusal}")
            return []

    for document in documents:
        part = Result()
        _rewrite(document, namespace, after, part)
        pieces.append((document, part.texts[0][0] if part.texts else None))
        result.warnings += part.warnings
    if refused:
        raise RejectedError(refused)
    result.texts = drop_documents(pieces)
    return result


class _Copies:
    """The ConfigMaps of a set: those that it holds, and those that it must be given."""

    def __init__(
        self, documents: Sequence[Document], payload: RuntimeFiles | None, namespace: str
    ) -> None:
        self._payload = payload
        self._default = namespace
        self._present = {
            (found.namespace, str(get_in(found.value, "metadata").get("name"))): found
            for found in iter_objects(documents, namespace)
            if found.value.get("kind") == "ConfigMap"
        }
        self._given: set[str] = set()

    def needed(self, found: ManifestObject) -> list[Object]:
        """What an actor in this object's namespace still lacks; raises Refusal."""
        if self._payload is None or found.namespace in self._given:
            return []
        self._given.add(found.namespace)
        item = self._payload.config_map()
        name = item["metadata"]["name"]
        present = self._present.get((found.namespace, name))
        if present:
            if present.value.get("data") != item["data"]:
                raise InjectionError(
                    f"ConfigMap {quote(name)} in {present.document.place}",
                    "has other content, which pods would run",
                    fix="remove it: the injector brings its own",
                    reason=Reason.RUNTIME_CONFIGMAP_CONFLICT,
                )
            return []
        metadata = item["metadata"]
        metadata["labels"] = metadata["labels"] | FROM_MANIFEST
        if found.namespace:
            place = {"name": name, "namespace": found.namespace}
            item["metadata"] = place | {key: metadata[key] for key in metadata if key != "name"}
        return [item]


def _rewrite(
    document: Document,
    namespace: str,
    after: Callable[[ManifestObject], list[Object]],
    result: Result,
) -> None:
    """Put what comes of a document into the result; each object becomes some, or none."""
    if not any(True for _ in iter_objects([document])):
        result.texts.append((document.text, document.is_json))
        return
    if _is_list(document.value):
        value = copy.copy(document.value)
        value["items"] = []
        each = {found.item: found for found in iter_objects([document], namespace)}
        for index, item in enumerate(document.value["items"]):
            value["items"] += after(each[index]) if index in each else [item]
        _put(document, value, result)
        return
    (found,) = iter_objects([document], namespace)
    came = after(found)
    extra = [item for item in came if is_runtime_configmap(item) and item is not found.value]
    for item in extra:
        result.texts.append((render_document(item, before=document), document.is_json))
    for item in came[len(extra) :]:
        _put(document, item, result)


def _put(document: Document, value: Any, result: Result) -> None:
    if value == document.value:
        result.texts.append((document.text, document.is_json))
        return
    text, kept = rewrite(document, value)
    if not kept:
        result.warnings.append(
            f"{document.place}: its anchors stood in the way, so it is written without its comments"
        )
    result.texts.append((text, document.is_json))


def _is_list(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and str(value.get("kind")).endswith("List")
        and isinstance(value.get("items"), list)
    )


def _namespace(item: Object, default: str) -> str:
    return get_namespace(item) or default


def _labels(item: Object) -> Object:
    return get_in(item, "metadata", "labels")


def _shown(text: str) -> str:
    """A name of the user's, harmless in a terminal."""
    return text if text.isascii() and text.isprintable() else quote(text)
