"""`make bench-cluster`: what injection costs a cluster, by the API server's own metrics.

Pods without an annotation, and annotated ones with each delivery of the runtime, are created in
turns, by different numbers of clients. They have a scheduling gate, so that API server and injector
are measured without a kubelet. Where pods can mount images, many pods are then started at once with
each delivery (see `starts`).
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
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from asya_injector.runtime_image import CONFIG_MAP, IMAGE, MIN_KUBERNETES
from kubernetes import client
from kubernetes.client.exceptions import ApiException

from bench.results import Goal, Results, describe_run, draw_bars, publish, short
from bench.starts import Starts, delete_pods, find_sizes, start_pods
from e2e.harness import (
    REPOSITORY,
    SYSTEM,
    Cluster,
    Object,
    connect,
    run,
)
from e2e.load.ledger import State
from e2e.load.traffic import gated, judge_admitted
from tests.support import histogram
from tests.support.tables import Table

CLIENTS = (2, 4, 8, 16)
PLAIN = "without annotation"
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
    """A cluster with the release, and a namespace for the pods that are created.

    results: by kind, which is `PLAIN` or a delivery, and number of clients. starts: pods that
    were started at once. memory: MB of a replica, idle and at the end.
    """

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.cluster = cluster
        self.namespace = namespace
        self.results: dict[tuple[str, int], Created] = defaultdict(Created)
        self.starts = Starts()
        self.memory = (0.0, 0.0)
        has_images = cluster.version() >= MIN_KUBERNETES
        self.deliveries = (CONFIG_MAP, IMAGE) if has_images else (CONFIG_MAP,)
        self._delivery = CONFIG_MAP

    def usage(self, figure: str) -> list[float]:
        """What the process of each replica of the injector uses."""
        replicas = self.cluster.injectors()
        usages = [self.cluster.process_usage(SYSTEM, pod, "injector") for pod in replicas]
        return [usage["asya_injector"][figure] for usage in usages]

    def deliver(self, delivery: str) -> None:
        """Upgrade the release to a delivery, unless it has it."""
        if delivery != self._delivery:
            self.cluster.install(f"runtime.delivery={delivery}", verb="upgrade")
            self.cluster.settle()
            self._delivery = delivery

    def create_pods(self, count: int, *, kind: str, clients: int) -> None:
        """Create pods, add the figures to the results, and delete the pods."""
        pods = [
            gated(f"{kind[:6].strip()}-{number}".lower(), self.cluster.model_image)
            for number in range(count)
        ]
        if kind == PLAIN:
            for pod in pods:
                pod["metadata"]["annotations"] = {"example.com/note": "not for the injector"}
        result = self.results[kind, clients]
        before, cpu = self._read_histograms(), sum(self.usage("cpu_s"))
        began = time.monotonic()
        with ThreadPoolExecutor(clients) as pool:
            result.states.update(pool.map(self._create_pod, pods))
        result.seconds.append(time.monotonic() - began)
        result.cpu += sum(self.usage("cpu_s")) - cpu
        for key, buckets in self._read_histograms().items():
            for bound, calls in histogram.between(before[key], buckets).items():
                result.buckets[key][bound] = result.buckets[key].get(bound, 0.0) + calls
        delete_pods(self.cluster, self.namespace)

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


def measure(bench: Bench, count: int, rounds: int) -> None:
    """Create `count` pods of each kind for each number of clients, and start pods at once."""
    kinds = (PLAIN, *bench.deliveries)
    for kind in kinds:  # the first calls open connections, and do not count
        create_pods(bench, 20, kind, max(CLIENTS))
    bench.results.clear()
    bench.deliver(CONFIG_MAP)
    idle = max(bench.usage("memory_mb"))
    for turn in range(rounds):
        say(f"creating pods, round {turn + 1} of {rounds}")
        for kind in kinds if turn % 2 == 0 else kinds[::-1]:
            for clients in CLIENTS:
                create_pods(bench, count // rounds, kind, clients)
    bench.memory = idle, max(bench.usage("memory_mb"))
    if IMAGE in bench.deliveries:
        for count, deliveries in find_sizes(bench.cluster).items():
            measure_starts(bench, count, deliveries)


def measure_starts(bench: Bench, count: int, deliveries: Sequence[str]) -> None:
    """Start pods at once with each of the deliveries."""
    for delivery in deliveries:
        say(f"starting {count} pods at once, {delivery}")
        bench.deliver(delivery)
        where = bench.cluster, bench.namespace
        start_pods(*where, 1)  # the first pod unpacks the image, or creates the ConfigMap
        for what, figure in start_pods(*where, count).items():
            bench.starts.figures[count, delivery, what].append(figure)


def create_pods(bench: Bench, count: int, kind: str, clients: int) -> None:
    """Create pods of a kind, with the delivery that the kind names."""
    if kind != PLAIN:
        bench.deliver(kind)
    bench.create_pods(count, kind=kind, clients=clients)


def say(text: str) -> None:
    """Print what is measured now, which takes minutes."""
    print(text, file=sys.stderr, flush=True)


def summarize(bench: Bench) -> Results:
    """The tables, the goals and the picture of what was measured."""
    plain = {clients: bench.results[PLAIN, clients] for clients in CLIENTS}
    injected = {
        delivery: {clients: bench.results[delivery, clients] for clients in CLIENTS}
        for delivery in bench.deliveries
    }
    all_injected = [each for by_clients in injected.values() for each in by_clients.values()]
    states = sum((each.states for each in all_injected), Counter[State]())
    incomplete = states[State.UNCHANGED] + states[State.PARTIAL]
    rows = [["", "pods", "pods a second"]]
    rows[0] += [f"{key} {quantile}" for key in HISTOGRAMS for quantile in ("p50", "p99")]
    injector = [["", ""]]
    for clients in CLIENTS:
        rows.append(plain[clients].row(f"without annotation, {clients} clients"))
        for delivery, by_clients in injected.items():
            rows.append(by_clients[clients].row(f"injected, {delivery}, {clients} clients"))
            seconds = zip(by_clients[clients].seconds, plain[clients].seconds, strict=True)
            ratio = f"{statistics.median(a / b for a, b in seconds):.2f}"
            injector.append([f"time with {delivery}, × without, {clients} clients", ratio])
    for delivery, by_clients in injected.items():
        created = list(by_clients.values())
        cpu = 1000 * sum(each.cpu for each in created)
        cpu /= sum(each.states.total() for each in created)
        injector.append([f"CPU of all replicas per injected pod, {delivery}", f"{cpu:.1f} ms"])
    for when, used in zip(("idle", "at the end"), bench.memory, strict=True):
        injector.append([f"memory of a replica, {when}", f"{used:.0f} MB"])
    # More clients than the API server needs only wait in its queue: the fewest that are as fast,
    # to a twentieth, as any number of them.
    usual = injected[CONFIG_MAP]
    best = max(each.rate for each in usual.values())
    enough = min(clients for clients in CLIENTS if usual[clients].rate >= 0.95 * best)
    seen = sum(each.calls(WEBHOOK) for each in plain.values())
    p99 = usual[enough].milliseconds(WEBHOOK, 0.99)
    goals = [
        Goal("annotated pods that were rejected", states[State.REJECTED], 0),
        Goal("annotated pods, not fully injected", incomplete, 0),
        Goal(f"webhook p99, {enough} clients", p99, 100, " ms"),
        Goal("pods without annotation that the webhook saw", seen, 0),
        Goal("memory of a replica at the end", bench.memory[1], 110, " MB"),
    ]
    creation = "Creating pods, by the API server's own histograms"
    tables = [Table(rows, creation), Table(injector, "The injector")]
    if IMAGE in injected:
        tables.append(bench.starts.table())
        rate = injected[IMAGE][enough].rate / usual[enough].rate
        text = f"pods a second with image, × with configMap, {enough} clients"
        goals.append(Goal(text, rate, 0.95, at_least=True))
        goals += bench.starts.goals()
    bars: dict[str, float] = {}
    for quantile, share in (("p50", 0.5), ("p99", 0.99)):
        bars[f"without annotation, {quantile}"] = plain[enough].milliseconds(REQUEST, share)
        for delivery, by_clients in injected.items():
            label = f"injected, {delivery},"
            bars[f"{label} {quantile}"] = by_clients[enough].milliseconds(REQUEST, share)
            bars[f"{label} webhook {quantile}"] = by_clients[enough].milliseconds(WEBHOOK, share)
    title = f"The API server's time to create a pod, {enough} clients, in ms (shorter is better)"
    return Results(tables, goals, draw_bars(title, {"": bars}, "injected"))


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.cluster", description=__doc__.splitlines()[0])
    parser.add_argument("--pods", type=int, default=500, help="pods of each kind (500)")
    parser.add_argument("--docs", action="store_true", help="also write the documentation")
    options = parser.parse_args()
    with prepared() as bench:
        version = json.loads(bench.cluster.kubectl("version", "-o", "json").stdout)
        introduction = describe_run(f"Kubernetes {version['serverVersion']['gitVersion']}")
        measure(bench, options.pods, 4)
        results = summarize(bench)
    publish("benchmarks-cluster", introduction, results, docs=options.docs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
