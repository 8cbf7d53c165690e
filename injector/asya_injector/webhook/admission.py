"""kopf's front door: which objects arrive, and what they are answered."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import kopf

from asya_injector.annotations.settings import ClusterDefaults
from asya_injector.errors import InjectionError
from asya_injector.kube_objects import POD, WORKLOAD_KINDS, Object, get_template
from asya_injector.mutation.inject import inject
from asya_injector.mutation.workload import find_overridden, propagate
from asya_injector.webhook.review import Review, build_json_patch, current_review
from asya_injector.webhook.runtime_configmap import RuntimeConfigMapWriter

logger = logging.getLogger(__name__)

# The last part of each webhook's path in the chart. Updates that need no note in the template go to
# a webhook of their own, which the API server may pass over.
PODS, WORKLOADS, TEMPLATES = "pods", "workloads", "templates"
HANDLED = {
    PODS: (POD.resource,),
    WORKLOADS: tuple(kind.resource for kind in WORKLOAD_KINDS),
    TEMPLATES: tuple(kind.resource for kind in WORKLOAD_KINDS if not kind.is_immutable),
}


class Webhook:
    """The two admissions. Dry runs leave no trace in the cluster."""

    def __init__(self, policy: ClusterDefaults, publisher: RuntimeConfigMapWriter) -> None:
        self._policy = policy
        self._publisher = publisher

    async def admit_pod(self, review: Review, warnings: list[str]) -> Object:
        """The pod to admit; raises Refusal."""
        injection = inject(review.object, self._policy)
        if injection is None:
            return review.object
        if not review.dry_run:
            await self._publisher.ensure(review.namespace, within=review.patience)
        warnings.extend(injection.warnings)
        return injection.pod

    async def admit_workload(self, review: Review, warnings: list[str]) -> Object:
        """The workload to admit: its pods' refusals and warnings come with `kubectl apply`."""
        workload = propagate(review.object)
        injection = inject(get_template(workload), self._policy)
        warnings.extend(find_overridden(workload))
        warnings.extend(injection.warnings if injection else ())
        return workload


def build_registry(webhook: Webhook) -> kopf.OperatorRegistry:
    """kopf's handlers: for pods, and for all kinds of workloads."""
    handlers = kopf.OperatorRegistry()
    of_pods, of_workloads = _answering(webhook.admit_pod), _answering(webhook.admit_workload)
    answers = {PODS: of_pods, WORKLOADS: of_workloads, TEMPLATES: of_workloads}
    for path, resources in HANDLED.items():
        for resource in resources:
            kopf.on.mutate(*resource, id=path, registry=handlers)(answers[path])
    return handlers


def _answering(
    admit: Callable[[Review, list[str]], Awaitable[Object]],
) -> Callable[..., Awaitable[None]]:
    """Turn what an admission came to into kopf's answer and the review's result."""

    async def handler(*, warnings: list[str], **_: Any) -> None:
        review = current_review.get()
        try:
            admitted = await admit(review, warnings)
            review.patch = build_json_patch(review.object, admitted)
        except InjectionError as refusal:
            review.refuse(str(refusal), refusal.reason)
            raise kopf.AdmissionError(review.refusal, code=422) from None
        except Exception:
            logger.exception("failed", extra={"uid": review.uid})
            raise kopf.AdmissionError(review.fail(), code=500) from None
        review.result = "changed" if review.patch else "unchanged"

    return handler
