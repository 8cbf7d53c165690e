"""The runtime ConfigMaps that a set of manifests brings along."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from asya_injector.annotations.settings import ClusterDefaults
from asya_injector.documents.document import Document
from asya_injector.errors import InjectionError, Reason, quote
from asya_injector.kube_objects import Object, get_in
from asya_injector.manifests.objects import ManifestObject, iter_objects
from asya_injector.mutation.workload import is_runtime_configmap
from asya_injector.runtime_files import FROM_MANIFEST, RuntimeFiles

_WAVE = "argocd.argoproj.io/sync-wave"
# Annotations of hooks, and those of their order.
_HOOKS = {"helm.sh/hook": "helm.sh/hook-weight", "argocd.argoproj.io/hook": _WAVE}
_FIRST = str(-(2**31))

_Phase = tuple[tuple[str, str], ...]


class RuntimeConfigMaps:
    """The runtime ConfigMaps of a set of manifests: those in it, and those to add.

    Each namespace gets its own, named after its first actor, so that several sets of manifests can
    share a namespace. Helm and Argo CD create hooks and early waves before everything else, so they
    get another one.
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
        self._chosen: dict[tuple[str, _Phase], ClusterDefaults] = {}

    def choose_name(self, found: ManifestObject, defaults: ClusterDefaults) -> ClusterDefaults:
        """The defaults with the name of the ConfigMap that this object's pods mount."""
        if self._runtime is None or (found.namespace, defaults.config_map) in self._present:
            return defaults
        chosen = self._chosen.get((found.namespace, _get_phase(found.value)))
        if chosen:
            return chosen
        metadata = get_in(found.value, "metadata")
        name = metadata.get("name") or metadata.get("generateName") or ""
        owner = f"{found.value.get('kind')}/{name}"
        return replace(defaults, stream=hashlib.sha256(owner.encode()).hexdigest()[:8])

    def add_missing(self, found: ManifestObject, settings: ClusterDefaults) -> list[Object]:
        """Return the ConfigMap to add before this object, if any; raises InjectionError."""
        phase = _get_phase(found.value)
        if self._runtime is None or (found.namespace, phase) in self._chosen:
            return []
        self._chosen[found.namespace, phase] = settings
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
        is_hook = any(key in _HOOKS for key, _ in phase)  # the tool itself keeps those
        annotations = dict(phase) if is_hook else {**self._annotations, **dict(phase)}
        metadata = {
            "name": name,
            **({"namespace": found.namespace} if found.namespace else {}),
            "labels": configmap["metadata"]["labels"] | FROM_MANIFEST,
            **({"annotations": annotations} if annotations else {}),
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


def _get_phase(item: Object) -> _Phase:
    """Annotations that let a tool create a ConfigMap before an object; none if that is not early.

    Within a wave, Argo CD creates ConfigMaps before pods and workloads.
    """
    annotations = get_in(item, "metadata", "annotations")
    for hook, order in _HOOKS.items():
        if annotations.get(hook):
            return ((hook, str(annotations[hook])), (order, _FIRST))
    wave = str(annotations.get(_WAVE) or "")
    return ((_WAVE, wave),) if re.fullmatch(r"-[0-9]{1,9}", wave) else ()
