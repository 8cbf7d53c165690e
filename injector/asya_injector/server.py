"""The two listeners: TLS for the API server's reviews, plain HTTP for probes and metrics."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Collection
from contextvars import ContextVar
from typing import Any, cast

import aiohttp.web
import kopf
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from asya_injector.trust import Trust

logger = logging.getLogger(__name__)

# An UPDATE carries the object twice, and the API server takes objects of up to 3 MiB.
_LARGEST_REVIEW = 8 * 1024 * 1024
# The uid of the review that is being answered, which kopf does not hand to its handlers.
current_uid: ContextVar[str] = ContextVar("current_uid", default="")
_ALWAYS = 10 * 365 * 86400.0


class Metrics:
    """What there is to watch; a registry of its own, so that tests can have several."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.admissions = Counter(
            "asya_injector_admissions",
            "Reviews answered, by kind of object, result and reason code.",
            ("resource", "result", "reason"),
            registry=self.registry,
        )
        self.duration = Histogram(
            "asya_injector_admission_duration_seconds",
            "Time from a review's arrival to its answer.",
            buckets=(0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
            registry=self.registry,
        )
        self.payload_writes = Counter(
            "asya_injector_payload_writes",
            "Times that a namespace was checked for its ConfigMap, by result.",
            ("result",),
            registry=self.registry,
        )
        self.certificate_expiry = Gauge(
            "asya_injector_certificate_expiry_timestamp_seconds",
            "When the serving certificate ends, as Unix time.",
            registry=self.registry,
        )


class Server(kopf.WebhookServer):
    """kopf's server without its sharp edges.

    Serves nothing before a certificate is loaded and published, swaps certificates without closing
    the listener, takes reviews as large as the API server sends, answers every fault with a review
    that refuses (kopf allows a call to an unknown path without a change), and times the calls.
    """

    def __init__(
        self, *, port: int, trust: Trust, paths: Collection[str], metrics: Metrics
    ) -> None:
        # kopf would close the listener to load changed files; `trust` loads them into the context.
        super().__init__(
            port=port,
            context=trust.context,
            certfile=trust.certificate,
            pkeyfile=trust.key,
            file_check_interval=_ALWAYS,
        )
        self.listening = False
        self._trust = trust
        self._paths = paths
        self._metrics = metrics

    async def __call__(self, fn: Any) -> AsyncIterator[Any]:
        """Serve for ever; yields kopf's client configuration once the port is open."""

        async def answer(review: Any, *, webhook: str | None = None, **kwargs: Any) -> Any:
            with self._metrics.duration.time():
                try:
                    request = review["request"]
                    current_uid.set(_uid(review))
                    if webhook not in self._paths:
                        return refusal(review, f"no webhook at path /{webhook}; see the chart", 404)
                    # kopf looks for the namespace in the object alone.
                    metadata = (request.get("object") or {}).get("metadata")
                    if isinstance(metadata, dict):
                        metadata.setdefault("namespace", request.get("namespace"))
                    return await fn(review, webhook=webhook, **kwargs)
                except Exception:
                    logger.exception("failed", extra={"uid": _uid(review)})
                    return refusal(review, internal_error(_uid(review)), 500)

        await self._trust.ready.wait()
        try:
            async with contextlib.aclosing(super().__call__(cast(Any, answer))) as configs:  # type: ignore[type-var]
                async for config in configs:
                    self.listening = True
                    yield config
        finally:
            self.listening = False

    @staticmethod
    async def _serve(fn: Any, request: aiohttp.web.Request) -> aiohttp.web.Response:
        return await kopf.WebhookServer._serve(fn, request.clone(client_max_size=_LARGEST_REVIEW))


def internal_error(uid: str) -> str:
    """What a caller is told of a fault of ours: where to look, and nothing of what is there."""
    return f"the injector failed on this object; its log says why, under uid {uid} (InternalError)"


def refusal(review: Any, message: str, code: int) -> dict[str, Any]:
    """An AdmissionReview that refuses, for whatever was sent."""
    return {
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "response": {
            "uid": _uid(review),
            "allowed": False,
            "status": {"code": code, "message": f"asya-injector: {message}"},
        },
    }


def _uid(review: Any) -> str:
    request = review.get("request") if isinstance(review, dict) else None
    return str(request.get("uid", "")) if isinstance(request, dict) else ""


@contextlib.asynccontextmanager
async def operations(
    port: int, *, is_ready: Callable[[], str | None], metrics: Metrics
) -> AsyncIterator[None]:
    """Serve `/livez`, `/readyz` and `/metrics` over plain HTTP while the context is open.

    is_ready: None when ready, else what is missing.
    """

    async def livez(_: aiohttp.web.Request) -> aiohttp.web.Response:
        return aiohttp.web.Response(text="ok\n")

    async def readyz(_: aiohttp.web.Request) -> aiohttp.web.Response:
        missing = is_ready()
        return aiohttp.web.Response(text=f"{missing or 'ok'}\n", status=503 if missing else 200)

    async def expose(_: aiohttp.web.Request) -> aiohttp.web.Response:
        body = generate_latest(metrics.registry)
        return aiohttp.web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = aiohttp.web.Application()
    app.router.add_get("/livez", livez)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", expose)
    runner = aiohttp.web.AppRunner(app, access_log=None, handle_signals=False)
    await runner.setup()
    try:
        await aiohttp.web.TCPSite(runner, port=port).start()
        yield
    finally:
        await runner.cleanup()
