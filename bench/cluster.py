"""`make bench-cluster`: what injection costs a cluster, by the API server's own figures.

    python bench/cluster.py [--pods 500] [--jobs 1000] [--rounds 4] [--docs]

Pods have a scheduling gate and Jobs are suspended: API server and injector are what is measured,
not a kubelet. Pods with and without an annotation take turns, in slices of the same run. Prints
tables and writes build/bench-cluster.json; with --docs, docs/benchmarks.md and its picture too.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import datetime as dt
import json
import os
import platform
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cluster_report
import histogram
from harness import SYSTEM, Cluster, Object, run, until
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from ledger import State
from traffic import HANDLER, admitted, gated

OUTPUT = Path(__file__).parents[1] / "build" / "bench-cluster.json"
CLIENTS = 16
# At once means as fast as the API server takes them: more clients than that need only wait for it.
BURST, BURST_CLIENTS, BURST_ROUNDS = 300, (2, 4, 8, 16), 3
WEBHOOK = "apiserver_admission_webhook_admission_duration_seconds"
REQUEST = "apiserver_request_duration_seconds"
LABELS = {
    "webhook": (WEBHOOK, {"name": "pods.asya.sh"}),
    "request": (REQUEST, {"verb": "POST", "resource": "pods", "subresource": ""}),
}
# Resident memory and CPU time of all processes of a container, as it sees them itself.
READ_PROC = """
import json, os
memory = cpu = 0
for pid in filter(str.isdigit, os.listdir("/proc")):
    if int(pid) == os.getpid():
        continue
    status = dict(line.split(":", 1) for line in open(f"/proc/{pid}/status"))
    memory += int(status.get("VmRSS", "0 kB").split()[0])
    fields = open(f"/proc/{pid}/stat").read().rsplit(") ", 1)[1].split()
    cpu += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
print(json.dumps({"memory_mb": memory / 1024, "cpu_s": cpu}))
"""
_local = threading.local()


class Bench:
    """A cluster with the release in it, and a namespace for what is created."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.cluster = cluster
        self.namespace = namespace

    def histograms(self) -> dict[str, histogram.Buckets]:
        text = self.cluster.kubectl("get", "--raw", "/metrics").stdout
        return {key: histogram.read(text, *what) for key, what in LABELS.items()}

    def injectors(self) -> dict[str, dict[str, float]]:
        """Memory (MB) and CPU (s) of each replica."""
        seen = {}
        for pod in self.cluster.injectors():
            done = self.cluster.run_inside("-n", SYSTEM, pod, program=READ_PROC)
            seen[pod] = json.loads(done.stdout)
        return seen

    def create(self, pods: list[Object], clients: int = CLIENTS) -> dict[str, Any]:
        """Create pods, so many at a time; how they were admitted, and how long it took.

        Latencies are those of the API server between here and there, its webhook's among them.
        """
        before = self.histograms()
        began = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(clients) as pool:
            outcomes = list(pool.map(self._create_one, pods))
        seconds = time.monotonic() - began
        after = self.histograms()
        result: dict[str, Any] = {"seconds": seconds, "count": len(pods)}
        for key in LABELS:
            result[key] = histogram.between(before[key], after[key])
        for state in (State.INJECTED, State.BARE, State.HALF, State.REFUSED):
            result[state.value] = outcomes.count(state)
        return result

    def _create_one(self, pod: Object) -> State:
        if not hasattr(_local, "api"):
            _local.api = client.CoreV1Api(client.ApiClient())
        try:
            made = _local.api.create_namespaced_pod(self.namespace, pod, _preload_content=False)
        except ApiException as error:
            print(f"refused: {error.body}", file=sys.stderr)
            return State.REFUSED
        return admitted(json.loads(made.data))

    def clear(self) -> None:
        """Delete what was created, and wait until it is gone."""
        core = self.cluster.core
        core.delete_collection_namespaced_pod(self.namespace, grace_period_seconds=0)
        until("the pods to be gone", lambda: not core.list_namespaced_pod(
            self.namespace, limit=1).items, seconds=120)  # fmt: skip

    def copies(self) -> int:
        listed = self.cluster.core.list_namespaced_config_map(self.namespace).items
        return sum(each.metadata.name.startswith("asya-runtime-") for each in listed)

    def jobs(self, count: int) -> dict[str, Any]:
        """Suspended annotated Jobs: how many were let in, how fast, and with how many copies."""
        began = time.monotonic()
        batch: Any = client.BatchV1Api()

        def create(number: int) -> bool:
            pod = gated("unused", self.cluster.model_image)
            template = {
                "metadata": {"annotations": HANDLER},
                "spec": {**pod["spec"], "restartPolicy": "Never"},
            }
            del template["spec"]["schedulingGates"]
            # The first runs far enough to have a pod, and with it the ConfigMap of the namespace.
            spec = {"suspend": number > 0, "template": template}
            if number == 0:
                template["spec"]["nodeSelector"] = {"example.com/never": "true"}
            try:
                batch.create_namespaced_job(
                    self.namespace, {"metadata": {"name": f"job-{number}"}, "spec": spec}
                )
            except ApiException as error:
                print(f"refused: {error.body}", file=sys.stderr)
                return False
            return True

        with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
            created = sum(pool.map(create, range(count)))
        seconds = time.monotonic() - began
        until("the first Job's pod and its ConfigMap", lambda: self.copies() == 1)
        return {"count": count, "created": created, "seconds": seconds, "copies": self.copies()}


@contextlib.contextmanager
def prepared() -> Iterator[Bench]:
    """The release installed anew, and a namespace that goes in the end."""
    config.load_kube_config(os.environ["KUBECONFIG"])  # type: ignore[no-untyped-call]
    repository = Path(__file__).parents[1]
    built = run(str(repository / "e2e/cluster/model-images.sh"), timeout=900).stdout
    images = dict(line.split() for line in built.splitlines())
    cluster = Cluster(os.environ["INJECTOR_IMAGE"], images)
    cluster.uninstall()
    cluster.make_namespace(SYSTEM)
    cluster.install()
    namespace = f"e2e-bench-{os.urandom(3).hex()}"
    cluster.make_namespace(namespace)
    try:
        yield Bench(cluster, namespace)
    finally:
        cluster.kubectl("delete", "namespace", namespace, "--wait=false")


def pods(bench: Bench, prefix: str, count: int, *, annotated: bool) -> list[Object]:
    made = []
    for number in range(count):
        pod = gated(f"{prefix}-{number}", bench.cluster.model_image)
        if not annotated:
            pod["metadata"]["annotations"] = {"example.com/note": "nobody asks about this one"}
        made.append(pod)
    return made


def measure(bench: Bench, options: argparse.Namespace) -> dict[str, Any]:
    result: dict[str, Any] = {}
    # The first calls of all pay for connections; 20 of each are not counted.
    bench.create(pods(bench, "warm", 20, annotated=True))
    bench.create(pods(bench, "warm-plain", 20, annotated=False))
    bench.clear()
    idle = bench.injectors()
    slices: dict[str, list[dict[str, Any]]] = {"plain": [], "injected": []}
    size = options.pods // options.rounds
    cpu = 0.0
    for turn in range(options.rounds):
        order = ["plain", "injected"] if turn % 2 == 0 else ["injected", "plain"]
        for kind in order:
            items = pods(bench, f"{kind}-{turn}", size, annotated=kind == "injected")
            before = bench.injectors()
            slices[kind].append(bench.create(items))
            after = bench.injectors()
            if kind == "injected":
                cpu += sum(after[pod]["cpu_s"] - before[pod]["cpu_s"] for pod in after)
            bench.clear()
    result["plain"], result["injected"] = (merged(slices[kind]) for kind in slices)
    result["ratio"] = statistics.median(
        with_["seconds"] / without["seconds"]
        for with_, without in zip(slices["injected"], slices["plain"], strict=True)
    )
    result["cpu_ms"] = 1000 * cpu / result["injected"]["count"]
    result["bursts"] = bursts(bench)
    result["copies"] = bench.copies()
    result["jobs"] = bench.jobs(options.jobs)
    result["memory_mb"] = {
        "idle": max(each["memory_mb"] for each in idle.values()),
        "end": max(each["memory_mb"] for each in bench.injectors().values()),
    }
    return result


def bursts(bench: Bench) -> dict[int, dict[str, Any]]:
    """Annotated pods at once, by the number of clients, which take turns."""
    slices: dict[int, list[dict[str, Any]]] = {clients: [] for clients in BURST_CLIENTS}
    for turn in range(BURST_ROUNDS):
        for clients in BURST_CLIENTS:
            items = pods(bench, f"burst-{turn}-{clients}", BURST, annotated=True)
            slices[clients].append(bench.create(items, clients))
            bench.clear()
    return {clients: merged(slices[clients]) for clients in BURST_CLIENTS}


def merged(slices: list[dict[str, Any]]) -> dict[str, Any]:
    """One result of several slices; histograms become quantiles in milliseconds."""
    total: dict[str, Any] = {
        key: sum(each[key] for each in slices)
        for key in ("seconds", "count", "injected", "bare", "half", "refused")
    }
    total["rate"] = total["count"] / total["seconds"]
    for key in LABELS:
        buckets: histogram.Buckets = {}
        for each in slices:
            for bound, count in each[key].items():
                buckets[bound] = buckets.get(bound, 0.0) + count
        total[key] = {
            "calls": max(buckets.values(), default=0.0),
            "p50_ms": 1000 * histogram.quantile(buckets, 0.5),
            "p99_ms": 1000 * histogram.quantile(buckets, 0.99),
        }
    return total


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench/cluster.py", description=__doc__.splitlines()[0])
    parser.add_argument("--pods", type=int, default=500, help="of each kind, in all rounds")
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=4, help="turns of each kind")
    parser.add_argument("--docs", action="store_true", help="write docs/benchmarks.md too")
    options = parser.parse_args()
    with prepared() as bench:
        version = bench.cluster.kubectl("version", "-o", "json").stdout
        result = {
            "date": dt.datetime.now(dt.UTC).date().isoformat(),
            "machine": f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}",
            "kubernetes": json.loads(version)["serverVersion"]["gitVersion"],
            "load": os.getloadavg()[0],
            **measure(bench, options),
        }
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(json.dumps(result, indent=1) + "\n")
    print(cluster_report.as_text(result))
    if options.docs:
        cluster_report.write_docs(result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
