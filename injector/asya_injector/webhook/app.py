"""The injector process: start-up order, readiness, and shutdown."""

import asyncio
import contextlib
import gc
import logging
import signal
import tempfile
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import kopf

from asya_injector.annotations.settings import ClusterDefaults
from asya_injector.kube_client import ApiClient, ApiException, HTTPError, call, describe_error
from asya_injector.runtime_files import RuntimeFiles
from asya_injector.tls.rotator import CertRotator
from asya_injector.tls.watcher import CertificatePair, CertWatcher, read_directory
from asya_injector.webhook.admission import HANDLED, Webhook, build_registry
from asya_injector.webhook.config import Config
from asya_injector.webhook.image_volumes import ImageVolumeSupport
from asya_injector.webhook.runtime_configmap import RuntimeConfigMapWriter
from asya_injector.webhook.server import Answer, Server
from asya_injector.webhook.telemetry import Metrics, serve_operations

logger = logging.getLogger(__name__)

_API_TIMEOUT = (2, 5)
_MAX_PAUSE = 10.0


def serve(config: Config, api: ApiClient) -> None:
    """Run until SIGTERM or SIGINT; raises OSError, KeyError or InjectionError."""
    runtime_files = RuntimeFiles.load(config.runtime_directory)
    runtime_hash = config.delivery.choose_hash(runtime_files.hash)
    defaults = ClusterDefaults(
        runtime_hash, config.defaults, sidecar=config.sidecar, image=config.delivery.image
    )
    metrics = Metrics()
    configmaps = RuntimeConfigMapWriter(runtime_files, api, metrics)
    handlers = build_registry(Webhook(defaults, configmaps, ImageVolumeSupport(api)))
    logger.info("starting", extra={"runtime": runtime_hash, "namespace": config.namespace})
    with tempfile.TemporaryDirectory(prefix="asya-injector-") as directory:
        watcher = CertWatcher(Path(directory), name=config.dns_names[0])
        metrics.describe(runtime_hash=runtime_hash, watcher=watcher)
        asyncio.run(Process(config, api, watcher, metrics).run(handlers))
    logger.info("stopped")


def tune_garbage_collection() -> None:
    """Freeze start-up objects and collect less often.

    A review creates some thousand objects and hardly any cycles. By default the collector
    interrupts it several times, sometimes to scan all libraries.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)


class Process:
    """The part of the process that runs in the event loop."""

    def __init__(
        self, config: Config, api: ApiClient, watcher: CertWatcher, metrics: Metrics
    ) -> None:
        self._config = config
        self._api = api
        self._watcher = watcher
        self._metrics = metrics
        self._server = Server(
            port=config.webhook_port, watcher=watcher, handled=HANDLED, metrics=metrics
        )
        self._stop = asyncio.Event()
        self._end = asyncio.Event()
        self._missing_api = ""

    async def run(self, handlers: kopf.OperatorRegistry) -> None:
        """Serve until a signal; answer the requests that have arrived by then."""
        self._listen_to_signals()
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(
                serve_operations(
                    self._config.http_port, find_missing=self._find_missing, metrics=self._metrics
                )
            )
            self._server.bind()
            stack.callback(self._server.unbind)
            for work in (self._watcher.watch(self._choose_certificate()), self._drain()):
                stack.callback(asyncio.create_task(work).cancel)
            # kopf logs each attempt, and gives up after a minute.
            if await self._finish_before_signal(self._wait_for_api()):
                self._configure(handlers, stack)
                await kopf.operator(
                    registry=handlers,
                    standalone=True,
                    clusterwide=True,
                    stop_flag=self._end,
                    # By default kopf looks up the user name, and an arbitrary UID has none.
                    identity=cast(Any, "asya-injector"),
                )

    def _choose_certificate(self) -> Callable[[], CertificatePair]:
        config = self._config
        if config.tls_mode == "files":
            return partial(read_directory, config.tls_directory)
        return CertRotator(
            self._api,
            namespace=config.namespace,
            secret=config.tls_secret,
            webhook_configuration=config.webhook_configuration,
            dns_names=config.dns_names,
        ).fetch

    async def _drain(self) -> None:
        """Drain after the signal, then end the operator."""
        await self._stop.wait()
        await self._server.drain()
        self._end.set()

    def _find_missing(self) -> str | None:
        """What readiness waits for; None when ready."""
        if self._stop.is_set():
            return "stopping"
        if not self._watcher.ready.is_set():
            return self._watcher.missing
        if self._server.listening:
            return None
        return self._missing_api or "the webhook port is not open yet"

    def _listen_to_signals(self) -> None:
        for each in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(each, self._stop.set)

    async def _finish_before_signal(self, awaited: Any) -> bool:
        """Whether the awaitable finished before a signal arrived."""
        task = asyncio.ensure_future(awaited)
        stopped = asyncio.create_task(self._stop.wait())
        await asyncio.wait((task, stopped), return_when=asyncio.FIRST_COMPLETED)
        for each in (task, stopped):
            each.cancel()
        return not self._stop.is_set()

    async def _wait_for_api(self) -> None:
        pause = 0.25
        while True:
            try:
                await asyncio.to_thread(call, self._api, "GET", "/version/", timeout=_API_TIMEOUT)
            except (ApiException, HTTPError) as error:
                if isinstance(error, ApiException) and error.status < 500:
                    return  # it answers; kopf reports the error
                if self._missing_api != describe_error(error):
                    logger.warning(
                        "waiting for the API server", extra={"error": describe_error(error)}
                    )
                self._missing_api = describe_error(error)
                pause = min(2 * pause, _MAX_PAUSE)
                await asyncio.sleep(pause)
            else:
                return

    async def _reviews(self, fn: Answer) -> AsyncIterator[Any]:
        """kopf's webhook server."""
        tune_garbage_collection()
        self._listen_to_signals()  # again: kopf has set its own, which break at a second signal
        async with contextlib.aclosing(self._server(fn)) as configurations:  # type: ignore[type-var]
            async for configuration in configurations:
                yield configuration

    def _configure(self, handlers: kopf.OperatorRegistry, stack: contextlib.AsyncExitStack) -> None:
        @kopf.on.startup(registry=handlers)
        async def configure(settings: kopf.OperatorSettings, **_: Any) -> None:
            settings.admission.server = self._reviews
            settings.admission.managed = None  # the chart owns the webhook configuration
            settings.scanning.disabled = True  # no watch on CustomResourceDefinitions
            settings.posting.enabled = False  # no right to write events

        @kopf.on.cleanup(registry=handlers)
        async def end(**_: Any) -> None:
            # kopf waits five seconds for all that still runs, idle connections included.
            await stack.aclose()

        @kopf.on.login(registry=handlers)
        async def login(
            logger: Any, settings: kopf.OperatorSettings, **_: Any
        ) -> kopf.ConnectionInfo | None:
            return kopf.login_with_service_account(
                logger=logger, settings=settings
            ) or kopf.login_with_kubeconfig(logger=logger, settings=settings)
