"""Admission by kopf over TLS: the injector as it is, or kopf with a handler that does nothing.

    review.py empty|injector PORT DIRECTORY

DIRECTORY holds tls.crt and tls.key. What the injector asks of the API server while it reviews is
left out (a namespace's ConfigMap is remembered, so usually nothing is asked).

"""

from __future__ import annotations

import asyncio
import ssl
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import kopf
from asya_injector.annotations.settings import ClusterDefaults
from asya_injector.webhook.admission import HANDLED, PODS, Webhook, build_registry
from asya_injector.webhook.app import tune_garbage_collection
from asya_injector.webhook.server import Server
from asya_injector.webhook.telemetry import Metrics, log_as_json


class Remembered:
    """A publisher that has just ensured every namespace."""

    async def ensure(self, namespace: str, *, within: float) -> None:
        """Nothing to do."""


async def empty(**_: Any) -> None:
    """kopf's own work alone."""


def empty_server(port: int, certificate: Path, key: Path) -> tuple[kopf.OperatorRegistry, Any]:
    handlers = kopf.OperatorRegistry()
    kopf.on.mutate("", "v1", "pods", id=PODS, registry=handlers)(empty)
    return handlers, kopf.WebhookServer(port=port, certfile=certificate, pkeyfile=key)


def injector(port: int, certificate: Path, key: Path) -> tuple[kopf.OperatorRegistry, Any]:
    webhook = Webhook(ClusterDefaults("0123456789", {}), cast(Any, Remembered()))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    ready = asyncio.Event()
    ready.set()
    watcher = SimpleNamespace(context=context, ready=ready)
    server = Server(port=port, watcher=cast(Any, watcher), handled=HANDLED, metrics=Metrics())
    server.bind()
    tune_garbage_collection()
    return build_registry(webhook), server


def main(kind: str, port: str, directory: str) -> None:
    log_as_json("INFO")
    make = {"empty": empty_server, "injector": injector}[kind]
    handlers, server = make(int(port), Path(directory) / "tls.crt", Path(directory) / "tls.key")

    @kopf.on.startup(registry=handlers)
    async def settle(settings: kopf.OperatorSettings, **_: Any) -> None:
        settings.admission.server = server
        settings.admission.managed = None
        settings.scanning.disabled = True
        settings.posting.enabled = False

    @kopf.on.login(registry=handlers)
    async def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_kubeconfig(**kwargs)

    asyncio.run(
        kopf.operator(registry=handlers, standalone=True, clusterwide=True, watcher=cast(Any, "b"))
    )


main(*sys.argv[1:])
