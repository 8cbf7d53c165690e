"""Logs, metrics and probes. docs/operations.md lists the metrics: names and labels are stable."""

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
    """All metrics of one process, in a registry that is not the global one."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.admissions = Counter(
            "asya_injector_admissions",
            "Admission reviews answered, by resource, result and reason code.",
            ("resource", "result", "reason"),
            registry=self.registry,
        )
        self.duration = Histogram(
            "asya_injector_admission_duration_seconds",
            "Time from the arrival of a review to its answer.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.bad_requests = Counter(
            "asya_injector_bad_requests",
            "Requests to the webhook port that were not valid reviews, by HTTP status.",
            ("code",),
            registry=self.registry,
        )
        self.runtime_configmap_writes = Counter(
            "asya_injector_runtime_configmap_writes",
            "Requests to the API server for a runtime ConfigMap, by result.",
            ("result",),
            registry=self.registry,
        )
        self.certificate_expiry = Gauge(
            "asya_injector_certificate_expiry_timestamp_seconds",
            "Expiry of the serving certificate, as Unix time; 0 until one is loaded.",
            registry=self.registry,
        )
        self.build = Info(
            "asya_injector_build",
            "Version of the injector and hash of the runtime files that it injects.",
            registry=self.registry,
        )

    def describe(self, *, runtime_hash: str, watcher: CertWatcher) -> None:
        """Set the build information, and read the expiry from this watcher at each scrape."""
        self.build.info({"version": __version__, "runtime_hash": runtime_hash})
        self.certificate_expiry.set_function(
            lambda: watcher.expires.timestamp() if watcher.expires else 0.0
        )


@contextlib.asynccontextmanager
async def serve_operations(
    port: int, *, find_missing: Callable[[], str | None], metrics: Metrics
) -> AsyncIterator[None]:
    """Serve `/livez`, `/readyz` and `/metrics` over plain HTTP while the context is open.

    find_missing: what readiness waits for; None when ready.
    """

    async def livez(_: aiohttp.web.Request) -> aiohttp.web.Response:
        return aiohttp.web.Response(text="ok\n")

    async def readyz(_: aiohttp.web.Request) -> aiohttp.web.Response:
        missing = find_missing()
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


_STANDARD_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "taskName"}
_encode = json.JSONEncoder(default=str).encode
# Callers choose some of the texts. A traceback needs more space; its last lines matter most.
_MAX_TEXT = 1000
_MAX_TRACEBACK = 8000


class JsonLines(logging.Formatter):
    """One JSON object a line, in ASCII: a user's text can forge neither a line nor a field.

    Time, level, logger and message come first, then the fields of `extra`, then the traceback. Long
    texts are shortened.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{record.msecs:03.0f}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": _shorten(record.getMessage()),
        }
        line |= {
            key: _shorten(value) if isinstance(value, str) else value
            for key, value in record.__dict__.items()
            if key not in _STANDARD_FIELDS
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)[-_MAX_TRACEBACK:]
        return _encode(line)


def _shorten(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 3] + "..."


def log_as_json(level: str) -> None:
    """Log to standard error from this level (a name of `logging`) upwards."""
    # https://docs.python.org/3/howto/logging.html#optimization
    for name in ("logThreads", "logMultiprocessing", "logProcesses", "logAsyncioTasks"):
        setattr(logging, name, False)
    logging._srcfile = None
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # The server logs one line per review; these would repeat it.
    for noisy in ("kopf", "aiohttp.access", "urllib3", "asyncio"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLevelName(level)))
    # aiohttp logs a traceback for each request that is not valid HTTP.
    for repeated in ("kopf.objects", "aiohttp.server"):
        logging.getLogger(repeated).setLevel(logging.CRITICAL)
