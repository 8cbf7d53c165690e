"""What there is to watch. The names and labels are a promise: docs/operations.md lists them."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp.web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from asya_injector import __version__
from asya_injector.tls.watcher import CertWatcher

_SECONDS = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)


class Metrics:
    """All of them, in a registry of their own, so that tests can have several."""

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
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.bad_requests = Counter(
            "asya_injector_bad_requests",
            "Requests to the webhook's port that were no review, by HTTP status.",
            ("code",),
            registry=self.registry,
        )
        self.runtime_configmap_writes = Counter(
            "asya_injector_runtime_configmap_writes",
            "Times that a namespace was asked for its ConfigMap, by what came of it.",
            ("result",),
            registry=self.registry,
        )
        self.certificate_expiry = Gauge(
            "asya_injector_certificate_expiry_timestamp_seconds",
            "When the certificate that is shown ends, as Unix time; 0 while there is none.",
            registry=self.registry,
        )
        self.build = Info(
            "asya_injector_build",
            "Version of the injector and hash of the runtime that it brings.",
            registry=self.registry,
        )

    def describe(self, *, runtime_hash: str, identity: CertWatcher) -> None:
        """Fill in what is known from the start, and where the rest is looked up."""
        self.build.info({"version": __version__, "runtime_hash": runtime_hash})
        self.certificate_expiry.set_function(
            lambda: identity.expires.timestamp() if identity.expires else 0.0
        )


# MERGED The plain listener: probes and metrics.


@contextlib.asynccontextmanager
async def serve_operations(
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
    runner = aiohttp.web.AppRunner(
        app, access_log=None, handle_signals=False, keepalive_timeout=75, shutdown_timeout=1
    )
    await runner.setup()
    try:
        await aiohttp.web.TCPSite(runner, port=port).start()
        yield
    finally:
        await runner.cleanup()


# MERGED The log: one JSON object a line, in ASCII, so that no text of a user's can forge a line.

_NOT_SAID = frozenset(vars(logging.makeLogRecord({}))) | {"message", "taskName"}
_encode = json.JSONEncoder(default=str).encode


class JsonLines(logging.Formatter):
    """Time, level, logger and message first, then what `extra` says, then the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{record.msecs:03.0f}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {key: value for key, value in record.__dict__.items() if key not in _NOT_SAID}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return _encode(line)


def log_as_json(level: str) -> None:
    """Write this level and above to standard error. level: as `logging` names it."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # One line a decision is ours; these would say the same again.
    for noisy in ("kopf", "aiohttp.access", "urllib3", "asyncio"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLevelName(level)))
    logging.getLogger("kopf.objects").setLevel(logging.CRITICAL)
