"""The objects in manifests: where each is, and how messages name it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from asya_injector.documents.document import Document
from asya_injector.errors import show
from asya_injector.kube_objects import Object, Path, get_in
from asya_injector.manifests.templates import describe_path
from asya_injector.mutation.workload import get_namespace


@dataclass(frozen=True)
class ManifestObject:
    """An object and where it is: a document, and the index of the item if that is a list.

    template: path of its pod template, in an object of an unknown kind.
    """

    document: Document
    item: int | None
    value: Object
    namespace: str
    template: Path = ()

    @property
    def label(self) -> str:
        """The object in a message: place, kind, namespace and name."""
        place = self.document.place + (f"[{self.item}]" if self.item is not None else "")
        metadata = get_in(self.value, "metadata")
        name = str(metadata.get("name") or metadata.get("generateName") or "")
        path = "/".join(filter(None, (self.namespace, name)))
        text = f"{self.value.get('kind') or ''} {path}".rstrip()
        # Names may contain terminal sequences, and be longer than Kubernetes accepts.
        return f"{place} {show(text)}" + (
            f" {describe_path(self.template)}" if self.template else ""
        )


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
        items = enumerate(value["items"]) if is_list(value) else [(None, value)]
        for index, item in items:
            if isinstance(item, dict):
                yield ManifestObject(document, index, item, get_namespace(item) or namespace)


def is_list(value: Any) -> bool:
    """Whether a value is a list of objects."""
    return (
        isinstance(value, dict)
        and str(value.get("kind")).endswith("List")
        and isinstance(value.get("items"), list)
    )
