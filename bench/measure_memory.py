"""Measure the injector's memory: many reviews in many namespaces, by the process as it is deployed.

    python bench/measure_memory.py [--reviews N] [--namespaces N] [--limit MB]

Real process, TLS, an API server in memory. A third of the reviews are updates of Deployments, each
with a uid of its own, because that is what kopf remembers. Prints resident memory as it goes;
exits with 1 where it ends above the limit, or grows by more than 2 MB in the second half.
"""

from __future__ import annotations

import argparse
import base64
import json
import signal
import ssl
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from measure_injector import Caller, free_port, pod, request_of
from processes import INJECTOR, NotServing, Process
from stand_in import NAME, NAMESPACE, SECRET, Api, api_server

RUNTIME = INJECTOR.parent / "runtime"
MB = 1 << 20
# The second half may not need more than this above the first: what leaks grows with reviews.
FLAT = 2 * MB


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


def measure(*, reviews: int, namespaces: int) -> Iterator[tuple[int, int]]:
    """Resident bytes after so many reviews, from none to all, as they come."""
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
                if number % max(1, reviews // 20) == 0:
                    yield number, process.memory("VmRSS")
            call.close()
        finally:
            process.end()


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench/measure_memory.py", description=__doc__)
    parser.add_argument("--reviews", type=int, default=10_000)
    parser.add_argument("--namespaces", type=int, default=1_000)
    parser.add_argument("--limit", type=int, default=110, help="MB of resident memory")
    options = parser.parse_args()
    began = time.monotonic()
    found = []
    for number, resident in measure(reviews=options.reviews, namespaces=options.namespaces):
        found.append((number, resident))
        print(f"{number:>8} reviews  {resident / MB:6.1f} MB", flush=True)
    last = found[-1][1]
    growth = last - found[len(found) // 2][1]
    print(
        f"grew by {growth / MB:.1f} MB in the second half; {time.monotonic() - began:.0f} s in all"
    )
    return int(last > options.limit * MB or growth > FLAT)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the injector is ended on the way out
    try:
        sys.exit(main())
    except (NotServing, ssl.SSLError) as problem:
        sys.exit(f"bench: {problem}")
