"""Inject or uninject all objects of a set of manifests, with the runtime ConfigMaps they need.

All or nothing: if an object is rejected, all errors are reported and there is no output.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from asya_injector.annotations.settings import ClusterDefaults
from asya_injector.annotations.table import PREFIX
from asya_injector.documents.document import (
    Document,
    edit_document,
    remove_documents,
    render_document,
    uses_anchors,
)
from asya_injector.errors import InjectionError
from asya_injector.kube_objects import (
    Object,
    find_kind,
    get_annotations,
    get_in,
    get_template,
    replace_at,
    replace_template,
)
from asya_injector.manifests.objects import ManifestObject, is_list, iter_objects
from asya_injector.manifests.runtime_configmaps import (
    RuntimeConfigMaps,
    find_unused,
    is_added_configmap,
)
from asya_injector.manifests.templates import (
    find_ineffective_keys,
    find_operator,
    find_templates,
)
from asya_injector.mutation.inject import inject
from asya_injector.mutation.uninject import uninject, uninject_object
from asya_injector.mutation.workload import (
    ObjectChange,
    change_object,
    find_namespace_skip_reason,
    is_disabled_namespace,
)
from asya_injector.runtime_files import RuntimeFiles


@dataclass
class Output:
    """The documents to write, warnings, one line each, and how many actors there are.

    injected: pods and templates that became actors now. unchanged: those that were actors before,
    and annotated ones that are left alone; `already` counts the actors among them.
    """

    documents: list[Document]
    warnings: list[str]
    injected: int = 0
    unchanged: int = 0
    already: int = 0

    @property
    def actors(self) -> int:
        """The number of actors in the output."""
        return self.injected + self.already

    def summarize(self, rejected: int = 0) -> str:
        """The counts, for a person."""
        return f"{self.injected} injected, {self.unchanged} unchanged, {rejected} rejected"


class RejectedError(Exception):
    """At least one object was rejected. lines: the errors, one line each."""

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = list(lines)


def list_disabled_namespaces(documents: Sequence[Document]) -> list[str]:
    """Names of the namespaces whose manifest disables injection."""
    values = (found.value for found in iter_objects(documents))
    return [
        str(get_in(value, "metadata").get("name"))
        for value in values
        if is_disabled_namespace(value)
    ]


def explain_changes(
    found: ManifestObject, defaults: ClusterDefaults, disabled: Sequence[str]
) -> Iterator[tuple[ManifestObject, ObjectChange | InjectionError]]:
    """Yield the change of an object, or the error if it is rejected; one for each pod template.

    For a template in an object of an unknown kind, the object is a copy with this template only.
    """
    for each in _split(found):
        try:
            yield each, _change(each, defaults, disabled)
        except InjectionError as error:
            yield each, error


def inject_all(
    documents: Sequence[Document],
    defaults: ClusterDefaults,
    runtime: RuntimeFiles | None,
    *,
    namespace: str = "",
    annotations: Mapping[str, str] | None = None,
) -> Output:
    """Inject all annotated pods and workloads; raises RejectedError.

    runtime: what the runtime ConfigMaps contain; one per namespace is added before the first object
    that needs it. None adds none; and with an image, those of an earlier injection are removed if
    no object mounts them any more. namespace: of objects that name none. annotations: of the added
    ConfigMaps.
    """
    runtime = None if defaults.image else runtime
    disabled = list_disabled_namespaces(documents)
    configmaps = RuntimeConfigMaps(documents, runtime, namespace, annotations or {})
    output = Output([], [])

    def change_one(found: ManifestObject) -> list[Object]:
        settings = configmaps.choose_name(found, defaults)
        changes = [(each, _change(each, settings, disabled)) for each in _split(found)]
        is_actor = any(change.injection for _, change in changes)
        added = configmaps.add_missing(found, settings) if is_actor else []
        after = found.value
        for each, change in changes:
            _count(output, each, change)
            changed = get_template(change.after) if each.template else change.after
            after = replace_at(after, each.template, changed)
        return [*added, after]

    output.warnings += [
        f"{document.place}: has no effect: not a Kubernetes object, but a list"
        for document in documents
        if isinstance(document.value, list)
    ]
    try:
        outputs = _replace_objects(documents, namespace, change_one, output.warnings)
    except RejectedError as error:
        summary = output.summarize(len(error.lines))
        raise RejectedError([*error.lines, f"{summary}; no output was written"]) from None
    output.documents = [each for group in outputs for each in group]
    if defaults.image:
        output.documents = _remove_unused(output.documents, output.warnings)
    return output


def uninject_all(documents: Sequence[Document], *, namespace: str = "") -> Output:
    """Restore all objects, and remove the ConfigMaps that `inject_all` added; RejectedError."""
    warnings: list[str] = []

    def restore(found: ManifestObject) -> list[Object]:
        if is_added_configmap(found.value):
            return []
        after = uninject_object(found.value) if find_kind(found.value) else found.value
        for each in _split(found):
            if each.template:
                after = replace_at(after, each.template, uninject(get_template(each.value)))
        return [after]

    return Output(_rewrite(documents, namespace, restore, warnings), warnings)


def _remove_unused(documents: Sequence[Document], warnings: list[str]) -> list[Document]:
    """Remove the ConfigMaps that `inject_all` once added, and that no object names."""
    unused = find_unused(documents)

    def keep(found: ManifestObject) -> list[Object]:
        is_added = is_added_configmap(found.value)
        return [] if is_added and found.value["metadata"]["name"] in unused else [found.value]

    return _rewrite(documents, "", keep, warnings)


def _change(
    found: ManifestObject, defaults: ClusterDefaults, disabled: Sequence[str]
) -> ObjectChange:
    """The change of an object; of an unknown kind, only the warnings."""
    if found.template:
        return _change_template(found, defaults, disabled)
    change = change_object(found.value, defaults, disabled=disabled, namespace=found.namespace)
    if not found.document.is_read or find_namespace_skip_reason(
        found.value, found.namespace, disabled
    ):
        return change
    kind = find_kind(found.value)
    handled = [kind.template] if kind else []
    warnings = tuple(find_ineffective_keys(found.value, handled))
    return replace(change, warnings=change.warnings + warnings)


def _change_template(
    found: ManifestObject, defaults: ClusterDefaults, disabled: Sequence[str]
) -> ObjectChange:
    """The change of the pod template of an isolated object of an unknown kind."""
    item = found.value
    reason = find_namespace_skip_reason(item, found.namespace, disabled)
    injection = None if reason else inject(get_template(item), defaults)
    if injection is None:
        reason = reason or "asya.sh/inject switches it off"
        return ObjectChange(before=item, after=item, skip_reason=reason)
    operator = find_operator(item)
    warnings = [f"{operator}; check that the actor starts"] if operator else []
    return ObjectChange(
        before=item,
        after=replace_template(item, injection.pod),
        injection=injection,
        warnings=(*warnings, *injection.warnings),
    )


def _split(found: ManifestObject) -> list[ManifestObject]:
    """An object; in its place, if it is of an unknown kind, a copy for each annotated pod template.

    The copy has only this template, where `get_template` finds it.
    """
    item = found.value
    if find_kind(item) or not found.document.is_read:
        return [found]
    kept = {key: item[key] for key in ("apiVersion", "kind", "metadata") if key in item}
    copies = [
        replace(found, value=kept | {"spec": {"template": template}}, template=path)
        for path, template in find_templates(item)
        if any(key.startswith(PREFIX) for key in get_annotations(template))
    ]
    return copies or [found]


def _count(output: Output, found: ManifestObject, change: ObjectChange) -> None:
    """Count an object, and note its warnings."""
    output.warnings.extend(f"{found.label}: {line}" for line in change.warnings)
    is_actor = change.injection is not None
    if is_actor and change.after != change.before:
        output.injected += 1
    elif is_actor or (find_kind(change.before) and _is_annotated(change.before)):
        output.unchanged += 1
        output.already += is_actor


def _is_annotated(item: Object) -> bool:
    metadata = (get_in(item, "metadata"), get_in(get_template(item), "metadata"))
    return any(
        str(key).startswith(PREFIX) for each in metadata for key in get_in(each, "annotations")
    )


def _rewrite(
    documents: Sequence[Document],
    namespace: str,
    change: Callable[[ManifestObject], list[Object]],
    warnings: list[str],
) -> list[Document]:
    """Replace each object by what `change` returns: the new one, or nothing; see below."""
    outputs = _replace_objects(documents, namespace, change, warnings)
    return remove_documents(
        (document, output[0] if output else None)
        for document, output in zip(documents, outputs, strict=True)
    )


def _replace_objects(
    documents: Sequence[Document],
    namespace: str,
    change: Callable[[ManifestObject], list[Object]],
    warnings: list[str],
) -> list[list[Document]]:
    """Replace all objects; return the new documents for each document; raises RejectedError.

    change: returns the new object and, before it, objects to add; or nothing, to remove it.
    """
    errors: list[str] = []
    outputs = []
    for document in documents:
        values: dict[int | None, list[Object]] = {}
        for found in iter_objects([document], namespace):
            try:
                values[found.item] = change(found)
            except InjectionError as error:
                errors.append(f"{found.label}: {error}")
        if is_list(document.value):
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
