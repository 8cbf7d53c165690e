"""Measure the injector: its pure function on a grid of pods, and one review through TLS."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import socket
import ssl
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from asya_injector.annotations.settings import ClusterDefaults
from asya_injector.mutation.inject import inject
from asya_injector.tls.authority import create

from bench.contenders import SERVERS
from bench.load import Slice
from bench.processes import NotServing, Process
from tests.support.api_server import api_server

HOST = "bench.local"


def pod(containers: int, variables: int) -> dict[str, Any]:
    """An annotated pod of a ReplicaSet as the API server shows it to a webhook."""
    env = [{"name": f"SETTING_{index}", "value": f"value-{index}"} for index in range(variables)]
    token = {"name": "kube-api-access-x", "readOnly": True}
    token["mountPath"] = "/var/run/secrets/kubernetes.io/serviceaccount"
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": "model-5dc5f65949-",
            "namespace": "models",
            "labels": {"app": "model", "pod-template-hash": "5dc5f65949"},
            "annotations": {"asya.sh/handler": "my_app.handler.predict"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "model"}],
            "managedFields": [{"manager": "kube-controller-manager", "operation": "Update"}],
        },
        "spec": {
            "containers": [
                {
                    "name": f"container-{index}",
                    "image": "registry.example/model:1",
                    "command": ["python3", "-m", "my_app"],
                    "env": list(env),
                    "resources": {"limits": {"cpu": "1", "memory": "1Gi"}},
                    "volumeMounts": [dict(token)],
                    "imagePullPolicy": "IfNotPresent",
                    "terminationMessagePath": "/dev/termination-log",
                }
                for index in range(containers)
            ],
            "volumes": [
                {"name": token["name"], "projected": {"sources": [{"serviceAccountToken": {}}]}}
            ],
            "restartPolicy": "Always",
            "serviceAccountName": "default",
            "tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists"}],
        },
    }


def grid(span: float) -> list[dict[str, Any]]:
    """The function's time for pods of several sizes: in all, and on the CPU alone."""
    policy = ClusterDefaults("0123456789", {})
    found = []
    for containers in (1, 10, 100):
        for variables in (5, 60):
            subject = pod(containers, variables)
            wall: list[float] = []
            cpu: list[float] = []
            end = time.perf_counter() + span
            while time.perf_counter() < end or len(wall) < 100:
                began, busy = time.perf_counter(), time.thread_time()
                inject(subject, policy)
                cpu.append(time.thread_time() - busy)
                wall.append(time.perf_counter() - began)
            found.append(
                {
                    "containers": containers,
                    "variables": variables,
                    "calls": len(wall),
                    **{f"{name}_ms": 1e3 * value for name, value in percentiles(wall).items()},
                    **{f"cpu_{name}_ms": 1e3 * value for name, value in percentiles(cpu).items()},
                }
            )
    return found


def percentiles(values: list[float]) -> dict[str, float]:
    ranked = sorted(values)
    return {"p50": ranked[len(ranked) // 2], "p99": ranked[len(ranked) * 99 // 100]}


def request_of(subject: dict[str, Any]) -> bytes:
    """The HTTP request that the API server sends: a new pod, or a workload that is changed."""
    group, _, version = subject["apiVersion"].rpartition("/")
    plural = f"{subject['kind'].lower()}s"
    kind = {"group": group, "version": version, "kind": subject["kind"]}
    resource = {"group": group, "version": version, "resource": plural}
    options = "UpdateOptions" if group else "CreateOptions"
    request = {
        "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
        "kind": kind,
        "resource": resource,
        "requestKind": kind,
        "requestResource": resource,
        "namespace": subject["metadata"]["namespace"],
        "operation": "UPDATE" if group else "CREATE",
        "userInfo": {"username": "system:serviceaccount:kube-system:replicaset-controller"},
        "object": subject,
        "oldObject": subject if group else None,
        "dryRun": False,
        "options": {"kind": options, "apiVersion": "meta.k8s.io/v1"},
    }
    body = json.dumps(
        {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}
    ).encode()
    path = "/workloads" if group else "/pods"
    head = f"POST {path}?timeout=5s HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


class Caller:
    """A kept TLS connection that sends one review after the other, as the API server does."""

    def __init__(self, port: int, authority: bytes, host: str) -> None:
        context = ssl.create_default_context(cadata=authority.decode())
        plain = socket.create_connection(("127.0.0.1", port), timeout=30)
        self._connection = context.wrap_socket(plain, server_hostname=host)

    def __call__(self, request: bytes) -> bytes:
        """The body of the answer to one review."""
        self._connection.sendall(request)
        data = b""
        while (end := data.find(b"\r\n\r\n")) < 0:
            data += self._receive()
        head = data[:end].lower()
        length = int(head.partition(b"content-length:")[2].split(b"\r\n")[0])
        while len(data) < end + 4 + length:
            data += self._receive()
        return data[end + 4 :]

    def _receive(self) -> bytes:
        data = self._connection.recv(65536)
        if not data:
            raise NotServing("the connection ended inside an answer")
        return data

    def close(self) -> None:
        self._connection.close()


def reviews(*, rounds: int, span: float) -> list[dict[str, Any]]:
    """CPU time and latency of a review, the injector beside kopf with an empty handler."""
    request = request_of(pod(1, 5))
    pair = create([HOST], now=dt.datetime.now(dt.UTC))
    taken: dict[str, list[tuple[Slice, float]]] = {"empty": [], "injector": []}
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        kubeconfig = stack.enter_context(api_server(directory)).kubeconfig
        (directory / "tls.crt").write_bytes(pair.certificate)
        (directory / "tls.key").write_bytes(pair.key)
        running: dict[str, tuple[Process, Caller]] = {}
        for kind in taken:
            port = free_port()
            command = (sys.executable, str(SERVERS / "review.py"), kind, str(port), str(directory))
            process = Process(command, {"KUBECONFIG": str(kubeconfig)})
            stack.callback(process.end)
            process.wait_until(lambda port=port: listens(port), f"kopf ({kind})")  # type: ignore[misc]
            call = Caller(port, pair.bundle, HOST)
            stack.callback(call.close)
            patched = b'"patch"' in check(call(request))
            if patched != (kind == "injector"):
                raise NotServing(f"kopf ({kind}) answered {'a' if patched else 'no'} patch")
            running[kind] = (process, call)
        for number in range(rounds):
            for kind in taken if number % 2 else reversed(taken):
                process, call = running[kind]
                before = process.cpu_seconds()
                slice_ = repeat(lambda call=call: call(request), span)  # type: ignore[misc]
                cpu = (process.cpu_seconds() - before) / len(slice_.latencies)
                taken[kind].append((slice_, cpu))
    return [
        {
            "server": kind,
            "rounds": rounds,
            "cpu_ms": 1e3 * statistics.median(cpu for _, cpu in seen),
            "ratio": statistics.median(
                cpu / base for (_, cpu), (_, base) in zip(seen, taken["empty"], strict=True)
            ),
            **{
                f"{name}_ms": 1e3 * value
                for name, value in percentiles(
                    [latency for slice_, _ in seen for latency in slice_.latencies]
                ).items()
            },
        }
        for kind, seen in taken.items()
    ]


def check(answer: bytes) -> bytes:
    """The answer, if it lets the pod in."""
    if not json.loads(answer)["response"]["allowed"]:
        raise NotServing(f"a review was refused: {answer[:300]!r}")
    return answer


def repeat(call: Callable[[], object], span: float) -> Slice:
    latencies: list[float] = []
    began = now = time.perf_counter()
    while not latencies or now - began < span:
        start = now
        call()
        now = time.perf_counter()
        latencies.append(now - start)
    return Slice(now - began, latencies)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def measure(*, quick: bool) -> dict[str, Any]:
    """Both parts."""
    print("the injector's function", file=sys.stderr, flush=True)
    cells = grid(0.3 if quick else 2.0)
    print("reviews through TLS", file=sys.stderr, flush=True)
    found = reviews(rounds=10 if quick else 40, span=0.2)
    return {"grid": cells, "reviews": found}
