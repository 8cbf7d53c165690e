"""The life of the process: what starts in which order, when it is ready, how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import kopf

from asya_injector.annotations.settings import ClusterDefaults
from asya_injector.kube_client import ApiClient, ApiException, HTTPError, call, describe_error
from asya_injector.runtime_files import RuntimeFiles
from asya_injector.tls.rotator import CertRotator
from asya_injector.tls.watcher import CertificateDirectory, CertWatcher
from asya_injector.webhook.admission import HANDLED, Webhook, build_registry
from asya_injector.webhook.config import Config
from asya_injector.webhook.runtime_configmap import RuntimeConfigMapWriter
from asya_injector.webhook.server import Answer, Server
from asya_injector.webhook.telemetry import Metrics, serve_operations

logger = logging.getLogger(__name__)

_API_TIMEOUT = (2, 5)
_LONGEST_PAUSE = 10.0


def serve(config: Config, api: ApiClient) -> None:
    """Run until SIGTERM or SIGINT; raises OSError, KeyError or Refusal for wrong settings."""
    payload = RuntimeFiles.load(config.runtime_directory)
    policy = ClusterDefaults(payload.hash, config.defaults)
    metrics = Metrics()
    handlers = build_registry(Webhook(policy, RuntimeConfigMapWriter(payload, api, metrics)))
    logger.info("starting", extra={"runtime": payload.hash, "namespace": config.namespace})
    with tempfile.TemporaryDirectory(prefix="asya-injector-") as directory:
        identity = CertWatcher(Path(directory), name=config.names[0])
        metrics.describe(runtime_hash=payload.hash, identity=identity)
        asyncio.run(Process(config, api, identity, metrics).run(handlers))
    logger.info("stopped")


def collect_less() -> None:
    """Let the garbage collector pass over what is there for good, and look at the rest less often.

    A review makes some thousand objects and no cycles to speak of; by default it is interrupted
    several times, and now and then for all of the libraries.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)


class Process:
    """The event loop's part of it."""

    def __init__(
        self, config: Config, api: ApiClient, identity: CertWatcher, metrics: Metrics
    ) -> None:
        self._config = config
        self._api = api
        self._identity = identity
        self._metrics = metrics
        self._server = Server(
            port=config.webhook_port, identity=identity, handled=HANDLED, metrics=metrics
        )
        self._stop = asyncio.Event()
        self._end = asyncio.Event()
        self._waits_for = ""

    async def run(self, handlers: kopf.OperatorRegistry) -> None:
        """Serve until a signal; what has come in until then is answered."""
        self._listen_to_signals()
        config = self._config
        fetch = CertRotator(
            self._api,
            namespace=config.namespace,
            secret=config.tls_secret,
            webhook_configuration=config.webhook_configuration,
            dns_names=config.names,
        ).pair
        if config.tls_mode == "files":
            fetch = CertificateDirectory(config.tls_directory).read
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(
                serve_operations(config.http_port, is_ready=self._missing, metrics=self._metrics)
            )
            self._server.bind()
            stack.callback(self._server.unbind)
            for work in (self._identity.keep(fetch), self._take_leave()):
                stack.callback(asyncio.create_task(work).cancel)
            # kopf gives up after a minute, and would fill the log until then.
            if await self._unless_stopped(self._api_answers()):
                self._configure(handlers, stack)
                await kopf.operator(
                    registry=handlers,
                    standalone=True,
                    clusterwide=True,
                    stop_flag=self._end,
                    # Found out by itself, it asks for a user name, which an arbitrary UID has not.
                    identity=cast(Any, "asya-injector"),
                )

    async def _take_leave(self) -> None:
        """Between the signal and the end."""
        await self._stop.wait()
        await self._server.take_leave()
        self._end.set()

    def _missing(self) -> str | None:
        """What readiness waits for."""
        if self._stop.is_set():
            return "stopping"
        if not self._identity.ready.is_set():
            return self._identity.missing
        return None if self._server.listening else self._waits_for or "the port is not open yet"

    def _listen_to_signals(self) -> None:
        for each in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(each, self._stop.set)

    async def _unless_stopped(self, awaited: Any) -> bool:
        """Whether it came to its end before a signal came."""
        task = asyncio.ensure_future(awaited)
        stopped = asyncio.create_task(self._stop.wait())
        await asyncio.wait((task, stopped), return_when=asyncio.FIRST_COMPLETED)
        for each in (task, stopped):
            each.cancel()
        return not self._stop.is_set()

    async def _api_answers(self) -> None:
        pause = 0.25
        while True:
            try:
                await asyncio.to_thread(call, self._api, "GET", "/version/", timeout=_API_TIMEOUT)
            except (ApiException, HTTPError) as error:
                if isinstance(error, ApiException) and error.status < 500:
                    return  # whatever it says, kopf will hear it too
                if self._waits_for != describe_error(error):
                    logger.warning(
                        "waiting for the API server", extra={"error": describe_error(error)}
                    )
                self._waits_for = describe_error(error)
                pause = min(2 * pause, _LONGEST_PAUSE)
                await asyncio.sleep(pause)
            else:
                return

    async def _reviews(self, fn: Answer) -> AsyncIterator[Any]:
        """kopf's webhook server."""
        collect_less()
        self._listen_to_signals()  # again: kopf has set its own, which a second signal breaks
        async with contextlib.aclosing(self._server(fn)) as configurations:  # type: ignore[type-var]
            async for configuration in configurations:
                yield configuration

    def _configure(self, handlers: kopf.OperatorRegistry, stack: contextlib.AsyncExitStack) -> None:
        @kopf.on.startup(registry=handlers)
        async def settle(settings: kopf.OperatorSettings, **_: Any) -> None:
            settings.admission.server = self._reviews
            settings.admission.managed = None  # the chart owns the webhook configuration
            settings.scanning.disabled = True  # no watch on CustomResourceDefinitions
            settings.posting.enabled = False  # no right to write events

        @kopf.on.cleanup(registry=handlers)
        async def end(**_: Any) -> None:
            # kopf waits five seconds for whatever it finds running, idle connections too.
            await stack.aclose()

        @kopf.on.login(registry=handlers)
        async def login(
            logger: Any, settings: kopf.OperatorSettings, **_: Any
        ) -> kopf.ConnectionInfo | None:
            return kopf.login_with_service_account(
                logger=logger, settings=settings
            ) or kopf.login_with_kubeconfig(logger=logger, settings=settings)
