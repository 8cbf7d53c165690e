"""The runtime ConfigMaps that a set of manifests brings along."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

from asya_injector.annotations.settings import ClusterDefaults
from asya_injector.documents.document import Document
from asya_injector.errors import InjectionError, Reason, quote
from asya_injector.kube_objects import Object, get_in
from asya_injector.manifests.objects import ManifestObject, iter_objects
from asya_injector.mutation.workload import is_runtime_configmap
from asya_injector.runtime_files import FROM_MANIFEST, RuntimeFiles

_HOOK = "helm.sh/hook"


class RuntimeConfigMaps:
    """The runtime ConfigMaps of a set of manifests: those in it, and those to add.

    Each namespace gets its own, named after its first actor, so that several sets of manifests can
    share a namespace. Helm creates hooks before everything else, so they get another one.
    """

    def __init__(
        self,
        documents: Sequence[Document],
        runtime: RuntimeFiles | None,
        namespace: str,
        annotations: Mapping[str, str],
    ) -> None:
        self._runtime = runtime
        self._annotations = annotations
        self._present = {
            (found.namespace, str(get_in(found.value, "metadata").get("name"))): found
            for found in iter_objects(documents, namespace)
            if found.value.get("kind") == "ConfigMap"
        }
        self._chosen: dict[tuple[str, str], ClusterDefaults] = {}

    def choose_name(self, found: ManifestObject, defaults: ClusterDefaults) -> ClusterDefaults:
        """The defaults with the name of the ConfigMap that this object's pods mount."""
        if self._runtime is None or (found.namespace, defaults.config_map) in self._present:
            return defaults
        chosen = self._chosen.get((found.namespace, _get_hook(found.value)))
        if chosen:
            return chosen
        metadata = get_in(found.value, "metadata")
        name = metadata.get("name") or metadata.get("generateName") or ""
        owner = f"{found.value.get('kind')}/{name}"
        return replace(defaults, stream=hashlib.sha256(owner.encode()).hexdigest()[:8])

    def add_missing(self, found: ManifestObject, settings: ClusterDefaults) -> list[Object]:
        """Return the ConfigMap to add before this object, if any; raises InjectionError."""
        hook = _get_hook(found.value)
        if self._runtime is None or (found.namespace, hook) in self._chosen:
            return []
        self._chosen[found.namespace, hook] = settings
        configmap = self._runtime.config_map()
        name = settings.config_map
        present = self._present.get((found.namespace, name))
        if present and present.value.get("data") != configmap["data"]:
            raise InjectionError(
                f"ConfigMap {quote(name)} in {present.document.place}",
                "has other content, which pods would run",
                fix="remove it: asya-injector adds its own",
                reason=Reason.RUNTIME_CONFIGMAP_CONFLICT,
            )
        if present:
            return []
        annotations = self._annotations
        if hook:
            annotations = {_HOOK: hook, f"{_HOOK}-weight": str(-(2**31))}
        metadata = {
            "name": name,
            **({"namespace": found.namespace} if found.namespace else {}),
            "labels": configmap["metadata"]["labels"] | FROM_MANIFEST,
            **({"annotations": dict(annotations)} if annotations else {}),
        }
        return [configmap | {"metadata": metadata}]


def is_added_configmap(item: Object) -> bool:
    """Whether an object is a runtime ConfigMap that an injection of manifests has added."""
    labels = get_in(item, "metadata", "labels")
    return is_runtime_configmap(item) and FROM_MANIFEST.items() <= labels.items()


def find_unused(documents: Sequence[Document]) -> set[str]:
    """Names of the added ConfigMaps that no object names.

    An object that is left alone may still mount one, because it was injected before.
    """
    added: set[str] = set()
    others: list[str] = []
    for found in iter_objects(documents):
        if is_added_configmap(found.value):
            added.add(str(found.value["metadata"]["name"]))
        else:
            others.append(str(found.value))
    return {name for name in added if not any(name in text for text in others)}


def _get_hook(item: Object) -> str:
    """When Helm runs an object as a hook; empty if it is not one."""
    return str(get_in(item, "metadata", "annotations").get(_HOOK) or "")
