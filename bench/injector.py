"""Measures the injector: its function alone, one review through TLS beside kopf, and its memory."""

import base64
import contextlib
import json
import ssl
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from asya_injector.annotations.settings import ClusterDefaults
from asya_injector.mutation.inject import inject

from bench.clients import http_post, read_http_reply
from bench.contenders import SERVERS, ServerError
from bench.processes import accepts, cpu_seconds, memory, running
from bench.results import Goal, Results
from bench.runtime import MB, median_ratio, percentile
from tests.support.api_server import NAMESPACE, SECRET, Api, api_server
from tests.support.injector_process import Injector, build_review, connect, read_bundle
from tests.support.ports import free_port
from tests.support.tables import Table

INJECTOR, KOPF = "injector", "kopf, empty handler"


def pod(containers: int, variables: int) -> dict[str, Any]:
    """An annotated pod of a ReplicaSet as the API server shows it to a webhook."""
    token = {"name": "kube-api-access-x", "projected": {"sources": [{"serviceAccountToken": {}}]}}
    mount = "/var/run/secrets/kubernetes.io/serviceaccount"
    target = {
        "image": "registry.example/model:1",
        "command": ["python3", "-m", "my_app"],
        "env": [{"name": f"SETTING_{n}", "value": f"value-{n}"} for n in range(variables)],
        "resources": {"limits": {"cpu": "1", "memory": "1Gi"}},
        "volumeMounts": [{"name": token["name"], "readOnly": True, "mountPath": mount}],
    }
    metadata = {
        "generateName": "model-5dc5f65949-",
        "namespace": "models",
        "labels": {"app": "model", "pod-template-hash": "5dc5f65949"},
        "annotations": {"asya.sh/handler": "my_app.handler.predict"},
        "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "model"}],
        "managedFields": [{"manager": "kube-controller-manager", "operation": "Update"}],
    }
    spec = {
        "containers": [{"name": f"container-{n}"} | target for n in range(containers)],
        "volumes": [token],
        "tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists"}],
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


class Caller:
    """A kept TLS connection that sends one review after the other, as the API server does."""

    def __init__(self, connection: ssl.SSLSocket) -> None:
        self._connection, self._stream = connection, connection.makefile("rb")

    def send(self, request: bytes) -> bytes:
        """The body of the answer to a review."""
        self._connection.sendall(request)
        return read_http_reply(self._stream)[1]

    def repeat(self, request: bytes, span: float) -> list[float]:
        """The latencies of as many reviews as fit into so many seconds."""
        latencies: list[float] = []
        began = now = time.perf_counter()
        while now - began < span:
            start = now
            self.send(request)
            now = time.perf_counter()
            latencies.append(now - start)
        return latencies

    def check(self, request: bytes, *, patched: bool) -> None:
        """Send a review; raises ServerError if the answer is not as expected."""
        response = json.loads(self.send(request))["response"]
        if not response["allowed"] or ("patch" in response) != patched:
            raise ServerError(f"unexpected answer to a review: {response}")


@contextlib.contextmanager
def injector(directory: Path, api: Api) -> Iterator[tuple[int, Caller]]:
    """The injector: its process id, and a connection to it."""
    api.install()
    process = Injector(directory, api.kubeconfig, ("-m", "asya_injector", "run"))
    try:
        process.wait_until_ready()
        yield process.process.pid, Caller(process.connect(read_bundle(api)))
    finally:
        process.end()


@contextlib.contextmanager
def kopf_alone(directory: Path, api: Api) -> Iterator[tuple[int, Caller]]:
    """The same for kopf with an empty handler, with the injector's certificate."""
    certificate = api.objects["secrets", NAMESPACE, SECRET]["data"]
    for name in ("tls.crt", "tls.key"):
        (directory / name).write_bytes(base64.b64decode(certificate[name]))
    address = "127.0.0.1", free_port()
    command = (sys.executable, str(SERVERS / "empty_kopf.py"), str(address[1]), str(directory))
    environment = {"KUBECONFIG": str(api.kubeconfig)}
    with running(command, environment, lambda: accepts(address), KOPF) as (pid, _):
        yield pid, Caller(connect(address[1], read_bundle(api)))


def measure_function(rounds: int) -> Table:
    """CPU time of `inject` without a server, for a pod and for the pod that it returns."""
    rows = [["containers × variables", "a pod", "an injected pod"]]
    for containers, variables in ((1, 5), (10, 20), (100, 60)):
        given, row = pod(containers, variables), [f"{containers} × {variables}"]
        for _ in range(2):
            began = time.process_time()
            for _ in range(rounds):
                injection = inject(given, ClusterDefaults("0123456789", {}))
            row.append(f"{1e3 * (time.process_time() - began) / rounds:.3f} ms")
            given = injection.pod if injection else given
        rows.append(row)
    return Table(rows, "The function `inject` alone: CPU time")


def measure_memory(server: tuple[int, Caller], reviews: int) -> Table:
    """Resident memory after so many reviews of different pods in 50 namespaces."""
    rows, (pid, caller) = [["reviews", "memory of the injector"]], server
    for number in range(reviews + 1):
        if number % (reviews // 4) == 0:
            rows.append([f"{number:,}", f"{memory(pid, 'VmRSS') / MB:.1f} MB"])
        given = pod(1, 5)
        given["metadata"] |= {"name": f"model-{number}", "uid": f"{number:032x}"}
        path, review = build_review(given, uid=f"u-{number}", namespace=f"team-{number % 50}")
        caller.check(http_post(path, json.dumps(review).encode()), patched=True)
    return Table(rows, "Memory after reviews of different pods")


def measure(results: Results, *, quick: bool) -> None:
    """CPU time and latency of a review of a small and of a large pod, beside kopf alone."""
    print("injector: function", file=sys.stderr, flush=True)
    results.tables.append(measure_function(50 if quick else 500))
    print("injector: reviews", file=sys.stderr, flush=True)
    rows = [["containers × variables, server", "server's CPU", "× kopf", "p50", "p99"]]
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        api = stack.enter_context(api_server(directory))
        servers = {INJECTOR: stack.enter_context(injector(directory, api))}
        servers[KOPF] = stack.enter_context(kopf_alone(directory, api))
        remembered = measure_memory(servers[INJECTOR], 400 if quick else 10_000)
        for containers, variables in ((1, 5), (100, 60)):
            path, review = build_review(pod(containers, variables))
            request = http_post(path, json.dumps(review).encode())
            cpu = defaultdict[str, list[float]](list)
            latencies = defaultdict[str, list[float]](list)
            for label, (_, caller) in servers.items():
                caller.check(request, patched=label == INJECTOR)
            for number in range(10 if quick else 40):
                for label in servers if number % 2 else reversed(servers):
                    pid, caller = servers[label]
                    before, taken = cpu_seconds(pid), caller.repeat(request, 0.2)
                    cpu[label].append(1e3 * (cpu_seconds(pid) - before) / len(taken))
                    latencies[label] += taken
            for label in (KOPF, INJECTOR):
                middle, ratio = statistics.median(cpu[label]), median_ratio(cpu[label], cpu[KOPF])
                row = [f"{containers} × {variables}, {label}", f"{middle:.2f} ms", f"{ratio:.2f}"]
                times = [1e3 * percentile(latencies[label], percent) for percent in (50, 99)]
                rows.append([*row, *(f"{value:.2f} ms" for value in times)])
            if containers == 1:
                text = "CPU of a review, × kopf with an empty handler"
                results.goals.append(Goal(text, ratio, 1.3))
        resident = memory(servers[INJECTOR][0], "VmRSS") / MB
        results.goals.append(Goal("CPU of a review of 100 containers", middle, 10, " ms"))
        results.goals.append(Goal("injector's memory after all reviews", resident, 110, " MB"))
    results.tables += [Table(rows, "One review through TLS"), remembered]
