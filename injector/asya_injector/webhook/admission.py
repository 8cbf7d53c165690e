"""The kopf handlers: which objects are admitted, and how each is injected or rejected."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import kopf

from asya_injector.annotations.settings import ClusterDefaults
from asya_injector.errors import InjectionError
from asya_injector.kube_objects import POD, WORKLOAD_KINDS, Object, get_template
from asya_injector.mutation.inject import inject
from asya_injector.mutation.workload import find_overridden, propagate
from asya_injector.webhook.image_volumes import ImageVolumeSupport
from asya_injector.webhook.review import Review, current_review
from asya_injector.webhook.runtime_configmap import RuntimeConfigMapWriter

logger = logging.getLogger(__name__)

# The last part of each webhook's path in the chart. Updates that need no propagation go to a
# separate webhook that is allowed to be unavailable.
PODS, WORKLOADS, TEMPLATES = "pods", "workloads", "templates"
HANDLED = {
    PODS: (POD.resource,),
    WORKLOADS: tuple(kind.resource for kind in WORKLOAD_KINDS),
    TEMPLATES: tuple(kind.resource for kind in WORKLOAD_KINDS if not kind.is_immutable),
}


class Webhook:
    """Admits pods and workloads. Dry runs have no side effects."""

    def __init__(
        self,
        defaults: ClusterDefaults,
        configmaps: RuntimeConfigMapWriter,
        image_volumes: ImageVolumeSupport,
    ) -> None:
        self._defaults = defaults
        self._configmaps = configmaps
        self._image_volumes = image_volumes

    def admit_pod(self, review: Review, warnings: list[str]) -> Object:
        """The pod to admit, injected if it asks for it; raises InjectionError."""
        injection = inject(review.object, self._defaults)
        if injection is None:
            return review.object
        review.mounts_image = self._defaults.image is not None
        review.mounts_configmap = not review.mounts_image
        warnings.extend(injection.warnings)
        return injection.pod

    def admit_workload(self, review: Review, warnings: list[str]) -> Object:
        """The workload to admit; raises InjectionError if its pods would be rejected later."""
        workload = propagate(review.object, self._defaults.declared)
        injection = inject(get_template(workload), self._defaults)
        warnings.extend(find_overridden(review.object))
        if injection:
            review.mounts_image = self._defaults.image is not None
            warnings.extend(injection.warnings)
        return workload

    async def ensure_runtime(self, review: Review) -> None:
        """Return once pods can mount the runtime files; raises InjectionError.

        The namespace of the pod holds the runtime ConfigMap, or the API server knows image volumes.
        """
        is_written = review.mounts_configmap and not review.dry_run
        if not (is_written or review.mounts_image):
            return
        within = review.deadline - asyncio.get_running_loop().time()
        if review.mounts_image:
            await self._image_volumes.ensure(within=within)
        else:
            await self._configmaps.ensure(review.namespace, within=within, caller=review.caller)


def build_registry(webhook: Webhook) -> kopf.OperatorRegistry:
    """The kopf handlers for pods and for all kinds of workloads."""
    handlers = kopf.OperatorRegistry()
    of_pods = _make_handler(webhook, webhook.admit_pod)
    of_workloads = _make_handler(webhook, webhook.admit_workload)
    answers = {PODS: of_pods, WORKLOADS: of_workloads, TEMPLATES: of_workloads}
    for path, resources in HANDLED.items():
        for resource in resources:
            kopf.on.mutate(*resource, id=path, registry=handlers)(answers[path])
    return handlers


def _make_handler(
    webhook: Webhook, admit: Callable[[Review, list[str]], Object]
) -> Callable[..., Awaitable[None]]:
    """A kopf handler that records the outcome of an admission in the review."""

    async def handler(*, warnings: list[str], **_: Any) -> None:
        review = current_review.get()
        try:
            if review.is_large:  # in a thread, so that the event loop goes on
                review.admit(await asyncio.to_thread(admit, review, warnings))
            else:
                review.admit(admit(review, warnings))
            review.drop_object()  # before a wait: it may be large
            await webhook.ensure_runtime(review)
        except InjectionError as error:
            review.reject(str(error), error.reason)
            raise kopf.AdmissionError(review.rejection, code=422) from None
        except Exception:
            logger.exception("admission failed", extra={"uid": review.uid})
            raise kopf.AdmissionError(review.fail(), code=500) from None
        finally:
            review.drop_object()
        review.result = "changed" if review.patch else "unchanged"

    return handler
