"""Measure the injector's memory: many reviews in many namespaces, by the process as it is deployed.

Real process, TLS, an API server in memory. A third of the reviews are updates of Deployments, each
with a uid of its own, because that is what kopf remembers.
"""

from __future__ import annotations

import base64
import json
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.measure_injector import Caller, free_port, pod, request_of
from bench.processes import INJECTOR, NotServing, Process
from tests.support.api_server import NAME, NAMESPACE, SECRET, Api, api_server

RUNTIME = INJECTOR.parent / "runtime"
BYTECODE = INJECTOR.parent / "build" / "bytecode"


def deployment(subject: dict[str, Any], number: int) -> dict[str, Any]:
    """A Deployment of such pods, annotated itself."""
    annotations = {"asya.sh/handler": "my_app.handler.predict"}
    metadata = {"name": "model", "uid": f"{number:032x}", "annotations": annotations}
    template = {"metadata": {"labels": {"app": "model"}}, "spec": subject["spec"]}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata | {"namespace": subject["metadata"]["namespace"]},
        "spec": {"template": template},
    }


def environment(kubeconfig: Path, webhook_port: int, http_port: int) -> dict[str, str]:
    return {
        "INJECTOR_NAMESPACE": NAMESPACE,
        "INJECTOR_SERVICE": NAME,
        "INJECTOR_WEBHOOK_CONFIGURATION": NAME,
        "INJECTOR_TLS_SECRET": SECRET,
        "INJECTOR_RUNTIME_DIRECTORY": str(RUNTIME),
        "INJECTOR_WEBHOOK_PORT": str(webhook_port),
        "INJECTOR_HTTP_PORT": str(http_port),
        "KUBECONFIG": str(kubeconfig),
        # As in the image: to compile on the way takes 60 MB that are never given back.
        "PYTHONPYCACHEPREFIX": str(BYTECODE),
        "PYTHONDONTWRITEBYTECODE": "",
    }


def is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5):
            return True
    except OSError:
        return False


def authority(api: Api) -> bytes:
    webhook = api.objects["mutatingwebhookconfigurations", "", NAME]["webhooks"][0]
    return base64.b64decode(webhook["clientConfig"]["caBundle"])


def measure(*, reviews: int, namespaces: int) -> list[dict[str, float]]:
    """Resident MB after so many reviews, at the beginning and after each of four quarters."""
    list(_reviewed(4, 4))  # leaves its bytecode to the one that is measured
    return [
        {"reviews": number, "memory_mb": resident / (1 << 20)}
        for number, resident in _reviewed(reviews, namespaces)
    ]


def _reviewed(reviews: int, namespaces: int) -> Iterator[tuple[int, int]]:
    """The same in bytes, as they come."""
    with tempfile.TemporaryDirectory() as directory, api_server(Path(directory)) as api:
        api.install()
        webhook_port, http_port = free_port(), free_port()
        process = Process(
            (sys.executable, "-m", "asya_injector", "run"),
            environment(api.kubeconfig, webhook_port, http_port),
        )
        try:
            process.wait_until(lambda: is_ready(http_port), "the injector")
            call = Caller(webhook_port, authority(api), f"{NAME}.{NAMESPACE}.svc")
            yield 0, process.memory("VmRSS")
            for number in range(1, reviews + 1):
                subject = pod(1, 5)
                subject["metadata"]["namespace"] = f"team-{number % namespaces}"
                is_update = number % 3 == 0
                if is_update:
                    subject = deployment(subject, number)
                answer = json.loads(call(request_of(subject)))["response"]
                if not answer["allowed"] or "patch" not in answer:
                    raise NotServing(f"a review was not answered with a patch: {answer}")
                if number % (reviews // 4) == 0:
                    yield number, process.memory("VmRSS")
            call.close()
        finally:
            process.end()
