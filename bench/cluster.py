"""`make bench-cluster`: what injection costs a cluster, by the API server's own metrics.

Pods with and without an annotation are created in turns, by different numbers of clients. They have
a scheduling gate, so that API server and injector are measured without a kubelet.
"""

import argparse
import contextlib
import json
import os
import statistics
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from kubernetes import client
from kubernetes.client.exceptions import ApiException

from bench.results import Goal, Results, describe_run, draw_bars, publish, short
from e2e.harness import REPOSITORY, SYSTEM, Cluster, Object, connect, run, until
from e2e.load.ledger import State
from e2e.load.traffic import gated, judge_admitted
from tests.support import histogram
from tests.support.tables import Table

CLIENTS = (2, 4, 8, 16)
REQUEST, WEBHOOK = "request", "webhook"
POSTS = {"verb": "POST", "resource": "pods", "subresource": ""}
REVIEWS = {"name": "pods.asya.sh"}
HISTOGRAMS = {
    REQUEST: ("apiserver_request_duration_seconds", POSTS),
    WEBHOOK: ("apiserver_admission_webhook_admission_duration_seconds", REVIEWS),
}
_local = threading.local()


@dataclass
class Created:
    """Pods that were created: how long it took, what became of them, the API server's times."""

    seconds: list[float] = field(default_factory=list)  # of each round
    cpu: float = 0.0  # seconds of all replicas of the injector
    states: Counter[State] = field(default_factory=Counter)
    buckets: dict[str, histogram.Buckets] = field(default_factory=lambda: defaultdict(dict))

    @property
    def rate(self) -> float:
        return self.states.total() / sum(self.seconds)

    def calls(self, key: str) -> float:
        return max(self.buckets[key].values(), default=0.0)

    def milliseconds(self, key: str, share: float) -> float:
        return 1000 * histogram.quantile(self.buckets[key], share)

    def row(self, label: str) -> list[str]:
        quantiles = [(key, share) for key in HISTOGRAMS for share in (0.5, 0.99)]
        times = [self.milliseconds(*each) if self.calls(each[0]) else None for each in quantiles]
        cells = ["-" if each is None else f"{each:.1f} ms" for each in times]
        return [label, str(self.states.total()), short(self.rate), *cells]


class Bench:
    """A cluster with the release, and a namespace for the pods that are created."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.cluster = cluster
        self.namespace = namespace
        self.results: dict[tuple[bool, int], Created] = defaultdict(Created)

    def usage(self, figure: str) -> list[float]:
        """What the process of each replica of the injector uses."""
        replicas = self.cluster.injectors()
        usages = [self.cluster.process_usage(SYSTEM, pod, "injector") for pod in replicas]
        return [usage["asya_injector"][figure] for usage in usages]

    def create_pods(self, count: int, *, annotated: bool, clients: int) -> None:
        """Create pods, add the figures to the results, and delete the pods."""
        pods = []
        for number in range(count):
            pod = gated(f"{annotated}-{number}".lower(), self.cluster.model_image)
            if not annotated:
                pod["metadata"]["annotations"] = {"example.com/note": "not for the injector"}
            pods.append(pod)
        result = self.results[annotated, clients]
        before, cpu = self._read_histograms(), sum(self.usage("cpu_s"))
        began = time.monotonic()
        with ThreadPoolExecutor(clients) as pool:
            result.states.update(pool.map(self._create_pod, pods))
        result.seconds.append(time.monotonic() - began)
        result.cpu += sum(self.usage("cpu_s")) - cpu
        for key, buckets in self._read_histograms().items():
            for bound, calls in histogram.between(before[key], buckets).items():
                result.buckets[key][bound] = result.buckets[key].get(bound, 0.0) + calls
        core = self.cluster.core
        core.delete_collection_namespaced_pod(self.namespace, grace_period_seconds=0)
        until("the pods to be gone", lambda: not core.list_namespaced_pod(
            self.namespace, limit=1).items, seconds=120)  # fmt: skip

    def _read_histograms(self) -> dict[str, histogram.Buckets]:
        text = self.cluster.kubectl("get", "--raw", "/metrics").stdout
        return {key: histogram.read(text, *which) for key, which in HISTOGRAMS.items()}

    def _create_pod(self, pod: Object) -> State:
        if not hasattr(_local, "api"):
            _local.api = client.CoreV1Api(client.ApiClient())
        try:
            made = _local.api.create_namespaced_pod(self.namespace, pod, _preload_content=False)
        except ApiException as error:
            print(f"rejected: {error.body}", file=sys.stderr)
            return State.REJECTED
        return judge_admitted(json.loads(made.data))


@contextlib.contextmanager
def prepared() -> Iterator[Bench]:
    """The release, installed again, and a namespace that is deleted in the end."""
    images = run(str(REPOSITORY / "e2e/cluster/model-images.sh"), timeout=900).stdout
    cluster = connect(os.environ["INJECTOR_IMAGE"], images)
    cluster.uninstall()
    cluster.make_namespace(SYSTEM)
    cluster.install()
    namespace = f"e2e-bench-{os.urandom(3).hex()}"
    cluster.make_namespace(namespace)
    try:
        yield Bench(cluster, namespace)
    finally:
        cluster.kubectl("delete", "namespace", namespace, "--wait=false")


def measure(bench: Bench, count: int, rounds: int) -> Results:
    """Create `count` pods of each kind for each number of clients."""
    for annotated in (True, False):  # the first calls open connections, and do not count
        bench.create_pods(20, annotated=annotated, clients=max(CLIENTS))
    bench.results.clear()
    idle = max(bench.usage("memory_mb"))
    for turn in range(rounds):
        for clients in CLIENTS:
            for annotated in (False, True) if turn % 2 == 0 else (True, False):
                bench.create_pods(count // rounds, annotated=annotated, clients=clients)
    memory = max(bench.usage("memory_mb"))
    plain = {clients: bench.results[False, clients] for clients in CLIENTS}
    injected = {clients: bench.results[True, clients] for clients in CLIENTS}
    states = sum((each.states for each in injected.values()), Counter[State]())
    incomplete = states[State.UNCHANGED] + states[State.PARTIAL]
    rows = [["", "pods", "pods a second"]]
    rows[0] += [f"{key} {quantile}" for key in HISTOGRAMS for quantile in ("p50", "p99")]
    for clients in CLIENTS:
        rows.append(plain[clients].row(f"without annotation, {clients} clients"))
        rows.append(injected[clients].row(f"injected, {clients} clients"))
    injector = [["", ""]]
    for clients in CLIENTS:
        seconds = zip(injected[clients].seconds, plain[clients].seconds, strict=True)
        ratio = f"{statistics.median(a / b for a, b in seconds):.2f}"
        injector.append([f"time with injection, × without, {clients} clients", ratio])
    cpu = 1000 * sum(each.cpu for each in injected.values()) / states.total()
    injector.append(["CPU of all replicas per injected pod", f"{cpu:.1f} ms"])
    injector.append(["memory of a replica, idle", f"{idle:.0f} MB"])
    injector.append(["memory of a replica, at the end", f"{memory:.0f} MB"])
    # More clients than the API server needs only wait in its queue: the fewest that are as fast,
    # to a twentieth, as any number of them.
    best = max(each.rate for each in injected.values())
    enough = min(clients for clients in CLIENTS if injected[clients].rate >= 0.95 * best)
    seen = sum(each.calls(WEBHOOK) for each in plain.values())
    p99 = injected[enough].milliseconds(WEBHOOK, 0.99)
    goals = [
        Goal("annotated pods that were rejected", states[State.REJECTED], 0),
        Goal("annotated pods, not fully injected", incomplete, 0),
        Goal(f"webhook p99, {enough} clients", p99, 100, " ms"),
        Goal("pods without annotation that the webhook saw", seen, 0),
        Goal("memory of a replica at the end", memory, 110, " MB"),
    ]
    bars: dict[str, float] = {}
    for quantile, share in (("p50", 0.5), ("p99", 0.99)):
        bars[f"without annotation, {quantile}"] = plain[enough].milliseconds(REQUEST, share)
        bars[f"injected, {quantile}"] = injected[enough].milliseconds(REQUEST, share)
        bars[f"injected, webhook {quantile}"] = injected[enough].milliseconds(WEBHOOK, share)
    title = f"The API server's time to create a pod, {enough} clients, in ms (shorter is better)"
    creation = "Creating pods, by the API server's own histograms"
    tables = [Table(rows, creation), Table(injector, "The injector")]
    return Results(tables, goals, draw_bars(title, {"": bars}, "injected"))


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.cluster", description=__doc__.splitlines()[0])
    parser.add_argument("--docs", action="store_true", help="also write the documentation")
    options = parser.parse_args()
    with prepared() as bench:
        version = json.loads(bench.cluster.kubectl("version", "-o", "json").stdout)
        introduction = describe_run(f"Kubernetes {version['serverVersion']['gitVersion']}")
        results = measure(bench, 500, 4)
    publish("benchmarks-cluster", introduction, results, docs=options.docs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
