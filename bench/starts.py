"""Many pods at once, with each delivery of the runtime: what a node needs to start them.

The pods mount the runtime, and their program is `sleep`: the runtime's own start and its readiness
probe cost the same with each delivery, and would hide the difference.
"""

import time
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from asya_injector.runtime_image import CONFIG_MAP, IMAGE
from kubernetes import watch

from bench.results import Goal
from e2e.harness import Cluster, Object, bare_pod, is_ready, until
from e2e.load.faults import run_in_node
from tests.support.tables import Table

# Numbers of pods at once, if the node has room for them, and the deliveries in turn.
SIZES = {100: (CONFIG_MAP, IMAGE, IMAGE, CONFIG_MAP), 300: (CONFIG_MAP, IMAGE)}
ADMITTED, READY, CPU = "time until admitted", "time until ready", "CPU of the node, per pod"
UNITS = {ADMITTED: "s", READY: "s", CPU: "ms"}
CLIENTS = 16
ANNOTATIONS = {
    "asya.sh/handler": "handlers.echo",
    "asya.sh/mode": "mount",  # the image's own program starts the runtime, or does not
    "asya.sh/probe": "false",
}
SLEEP = ["sleep", "infinity"]
# The node is a container. With cgroup 1 the file has nanoseconds, with cgroup 2 microseconds.
READ_CPU = """cd /sys/fs/cgroup
if [ -f cpu.stat ]; then awk '$1 == "usage_usec" {print $2 / 1e6}' cpu.stat
else awk '{print $1 / 1e9}' cpuacct/cpuacct.usage; fi"""


@dataclass
class Starts:
    """Figures by number of pods and delivery, one for each round."""

    figures: dict[tuple[int, str, str], list[float]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def ratio(self, count: int, what: str) -> float:
        """The figure with the image, × with the ConfigMap."""
        image, config_map = (sum(self.figures[count, each, what]) for each in (IMAGE, CONFIG_MAP))
        return image / config_map

    def sizes(self) -> list[int]:
        return sorted({count for count, _, _ in self.figures})

    def table(self) -> Table:
        rows = [["pods at once", "", CONFIG_MAP, IMAGE, "ratio"]]
        for count in self.sizes():
            for what, unit in UNITS.items():
                cells = [
                    ", ".join(f"{each:.1f}" for each in self.figures[count, delivery, what])
                    for delivery in (CONFIG_MAP, IMAGE)
                ]
                label = f"{what} ({unit}), each round"
                rows.append([str(count), label, *cells, f"×{self.ratio(count, what):.2f}"])
        return Table(rows, "Starting pods at once", texts=2)

    def goals(self) -> list[Goal]:
        """The image has to be as fast as the ConfigMap, to a twentieth."""
        most = max(self.sizes())
        return [
            Goal(f"{what}, {most} pods at once, image × configMap", self.ratio(most, what), 1.05)
            for what in (READY, CPU)
        ]


def find_sizes(cluster: Cluster) -> dict[int, tuple[str, ...]]:
    """The numbers of pods that the node has room for, and the deliveries in turn."""
    (node,) = cluster.core.list_node().items
    running = len(cluster.core.list_pod_for_all_namespaces().items)
    room = int(node.status.allocatable["pods"]) - running
    return {min(size, room): deliveries for size, deliveries in SIZES.items()}


def start_pods(cluster: Cluster, namespace: str, count: int) -> dict[str, float]:
    """Create pods at once, wait until they are ready, and delete them; the figures of `UNITS`."""
    pods = [make_pod(f"p{number}", cluster.model_image) for number in range(count)]
    cpu, began = read_cpu(), time.monotonic()
    create_all(cluster, namespace, pods)
    admitted = time.monotonic() - began
    wait_until_ready(cluster, namespace, count)
    ready = time.monotonic() - began
    cpu = read_cpu() - cpu
    delete_pods(cluster, namespace)
    return {ADMITTED: admitted, READY: ready, CPU: 1000 * cpu / count}


def make_pod(name: str, image: str) -> Object:
    return bare_pod(name, image, ANNOTATIONS, command=SLEEP)


def create_all(cluster: Cluster, namespace: str, pods: Iterable[Object]) -> None:
    with ThreadPoolExecutor(CLIENTS) as pool:
        for created in pool.map(
            lambda pod: cluster.core.create_namespaced_pod(namespace, pod), pods
        ):
            volumes = [each.name for each in created.spec.volumes]
            if "asya-runtime" not in volumes:
                raise AssertionError(f"{created.metadata.name} was not injected: {volumes}")


def wait_until_ready(cluster: Cluster, namespace: str, count: int) -> None:
    """Watch the pods, because lists of all of them would use the CPU that is measured."""
    ready: set[str] = set()
    watcher: Any = watch.Watch()  # type: ignore[no-untyped-call]
    listing = cluster.core.list_namespaced_pod
    for event in watcher.stream(listing, namespace, timeout_seconds=600):
        if is_ready(event["object"]):
            ready.add(event["object"].metadata.name)
        if len(ready) == count:
            return
    raise AssertionError(f"not within 600 s: {count} pods to be ready, only {len(ready)}")


def delete_pods(cluster: Cluster, namespace: str) -> None:
    """Delete the pods of a namespace, and wait until the node has stopped them."""
    core = cluster.core
    core.delete_collection_namespaced_pod(namespace)

    def are_gone() -> bool:
        return not core.list_namespaced_pod(namespace, limit=1).items

    until("the pods to be gone", are_gone, seconds=300)


def read_cpu() -> float:
    """The seconds of CPU that the node has used, with everything that runs in it."""
    return float(run_in_node("sh", "-ec", READ_CPU))
