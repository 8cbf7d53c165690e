"""Admission by kopf over TLS with a handler that does nothing: empty_kopf.py PORT DIRECTORY

DIRECTORY holds tls.crt and tls.key.
"""

import asyncio
import sys
from pathlib import Path
from typing import Any, cast

import kopf


@kopf.on.mutate("", "v1", "pods", id="pods")
async def empty(**_: Any) -> None:
    """Do nothing, so that kopf alone is measured."""


@kopf.on.startup()
async def configure(settings: kopf.OperatorSettings, **_: Any) -> None:
    directory = Path(sys.argv[2])
    settings.admission.server = kopf.WebhookServer(
        port=int(sys.argv[1]), certfile=directory / "tls.crt", pkeyfile=directory / "tls.key"
    )
    settings.admission.managed = None
    settings.scanning.disabled = True
    settings.posting.enabled = False


@kopf.on.login()
async def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
    return kopf.login_with_kubeconfig(**kwargs)


asyncio.run(kopf.operator(standalone=True, clusterwide=True, identity=cast(Any, "bench")))
