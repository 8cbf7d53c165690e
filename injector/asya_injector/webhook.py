"""kopf's front door: which reviews arrive, what they are answered, and what is logged of it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import kopf
from kubernetes.client import ApiClient

from asya_injector.config import Config
from asya_injector.inject import inherit, inject, overridden
from asya_injector.payload import Payload, Publisher
from asya_injector.pods import Object, mapping, template_of
from asya_injector.policy import Policy
from asya_injector.refusal import Reason, Refusal
from asya_injector.server import Metrics, Server, current_uid, internal_error, operations
from asya_injector.trust import Trust

logger = logging.getLogger(__name__)

# The last part of each webhook's path in the chart.
PODS, WORKLOADS = "pods", "workloads"
_WORKLOAD_KINDS = (
    ("apps", "v1", "deployments"),
    ("apps", "v1", "statefulsets"),
    ("apps", "v1", "daemonsets"),
    ("apps", "v1", "replicasets"),
    ("batch", "v1", "jobs"),
    ("batch", "v1", "cronjobs"),
)


class Webhook:
    """The two admission handlers. `dryrun` reviews leave no trace in the cluster."""

    def __init__(self, policy: Policy, publisher: Publisher, metrics: Metrics) -> None:
        self._policy = policy
        self._publisher = publisher
        self._metrics = metrics

    async def admit_pod(self, *, body: Any, warnings: list[str], dryrun: bool) -> Object:
        """The pod to admit; raises Refusal."""
        pod = _plain(body)
        injection = inject(pod, self._policy)
        if injection is None:
            return pod
        namespace = mapping(pod, "metadata").get("namespace")
        if not dryrun:
            await self._publish(str(namespace))
        warnings.extend(injection.warnings)
        return injection.pod

    async def admit_workload(self, *, body: Any, warnings: list[str], dryrun: bool) -> Object:
        """The workload to admit: its pods' refusals and warnings come with `kubectl apply`."""
        del dryrun  # nothing is written here
        workload = inherit(_plain(body))
        injection = inject(template_of(workload), self._policy)
        warnings.extend(overridden(workload))
        warnings.extend(injection.warnings if injection else ())
        return workload

    async def _publish(self, namespace: str) -> None:
        try:
            if await self._publisher.ensure(namespace):
                self._metrics.payload_writes.labels(result="ok").inc()
        except Refusal as refusal:
            self._metrics.payload_writes.labels(result=refusal.reason).inc()
            raise


def registry(webhook: Webhook, metrics: Metrics) -> kopf.OperatorRegistry:
    """kopf's handlers: one for pods, one for all kinds of workloads."""
    handlers = kopf.OperatorRegistry()
    admit_pod = _answering(webhook.admit_pod, metrics)
    admit_workload = _answering(webhook.admit_workload, metrics)
    kopf.on.mutate("", "v1", "pods", id=PODS, registry=handlers)(admit_pod)
    for kind in _WORKLOAD_KINDS:
        kopf.on.mutate(*kind, id=WORKLOADS, registry=handlers)(admit_workload)
    return handlers


def _answering(
    admit: Callable[..., Awaitable[Object]], metrics: Metrics
) -> Callable[..., Awaitable[None]]:
    """Turn what an admission came to into kopf's answer, one log line and one count."""

    async def handler(
        *,
        body: kopf.Body,
        patch: kopf.Patch,
        warnings: list[str],
        dryrun: bool,
        resource: kopf.Resource,
        operation: str,
        **_: Any,
    ) -> None:
        result, reason = "refused", ""
        uid = current_uid.get()
        said = {
            "uid": uid,
            "resource": resource.plural,
            "operation": operation,
            "namespace": body.metadata.get("namespace"),
            "object": body.metadata.get("name") or body.metadata.get("generateName"),
            "dryrun": dryrun,
        }
        try:
            admitted = await admit(body=body, warnings=warnings, dryrun=dryrun)
            changed = admitted != _plain(body)
            result = "changed" if changed else "unchanged"
            if changed:
                patch.fns.append(lambda draft: cast(Object, draft).update(admitted))
            logger.info(result, extra=said)
        except Refusal as refusal:
            reason = str(refusal.reason)
            logger.info("refused", extra=said | {"reason": reason, "refusal": str(refusal)})
            raise kopf.AdmissionError(str(refusal), code=422) from None
        except Exception:
            result, reason = "failed", str(Reason.INTERNAL_ERROR)
            logger.exception("failed", extra=said | {"reason": reason})
            raise kopf.AdmissionError(internal_error(uid), code=500) from None
        finally:
            labels = {"resource": resource.plural, "result": result, "reason": reason}
            metrics.admissions.labels(**labels).inc()

    return handler


def _plain(body: Any) -> Object:
    """kopf's read-only view as the plain data behind it; not to be changed."""
    return dict(body)


def serve(config: Config, api: ApiClient) -> None:
    """Run until SIGTERM or SIGINT; raises OSError, KeyError or Refusal for wrong settings."""
    payload = Payload.load(config.runtime_directory)
    policy = Policy(payload.hash, config.defaults)
    metrics = Metrics()
    handlers = registry(Webhook(policy, Publisher(payload, api), metrics), metrics)
    with tempfile.TemporaryDirectory(prefix="asya-injector-") as directory:
        trust = Trust(config, api, Path(directory))
        server = Server(
            port=config.webhook_port, trust=trust, paths=(PODS, WORKLOADS), metrics=metrics
        )
        metrics.certificate_expiry.set_function(
            lambda: trust.expires.timestamp() if trust.expires else 0.0
        )
        _configure(handlers, server)
        logger.info("starting", extra={"runtime": payload.hash, "namespace": config.namespace})
        asyncio.run(_serve(config, handlers, trust, server, metrics))


def _configure(handlers: kopf.OperatorRegistry, server: Server) -> None:
    @kopf.on.startup(registry=handlers)
    async def settle(settings: kopf.OperatorSettings, **_: Any) -> None:
        settings.admission.server = server
        settings.admission.managed = None  # the chart owns the webhook configuration
        settings.scanning.disabled = True  # no watch on CustomResourceDefinitions
        settings.posting.enabled = False  # no right to write events

    @kopf.on.login(registry=handlers)
    async def login(
        logger: Any, settings: kopf.OperatorSettings, **_: Any
    ) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(
            logger=logger, settings=settings
        ) or kopf.login_with_kubeconfig(logger=logger, settings=settings)


async def _serve(
    config: Config,
    handlers: kopf.OperatorRegistry,
    trust: Trust,
    server: Server,
    metrics: Metrics,
) -> None:
    def missing() -> str | None:
        if not trust.ready.is_set():
            return "no certificate yet, or its CA is not published"
        return None if server.listening else "the webhook's port is not open"

    keeper = asyncio.create_task(trust.keep())
    try:
        async with operations(config.http_port, is_ready=missing, metrics=metrics):
            await kopf.operator(
                registry=handlers,
                standalone=True,
                clusterwide=True,
                # Found out by itself, it asks for a user name, which an arbitrary UID has not.
                identity=cast(Any, "asya-injector"),
            )
    finally:
        keeper.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await keeper
