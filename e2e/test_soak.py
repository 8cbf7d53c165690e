"""Under steady load nothing grows: not memory, not threads, file descriptors or ConfigMaps.

`make soak MINUTES=60` for as long as you like; in `make e2e` it lasts SOAK_MINUTES (5) and is load
beside the other tests.
"""

from __future__ import annotations

import json
import os
import time
from collections import defaultdict
from collections.abc import Callable

import pytest

from e2e.harness import SYSTEM, Cluster, until
from e2e.load.ledger import Promise, Row
from e2e.load.traffic import APP, Asking, Sending, actor, load
from e2e.load.trend import Trend

Property = Callable[[str, object], None]
MINUTES = float(os.environ.get("SOAK_MINUTES") or 5)
SAMPLES, LEAST = 60, 12
# Memory in MB: what an allocator keeps for later; a leak of 100 bytes a message is more in an hour.
BOUNDS = {"memory, MB": 2.0, "threads": 0.0, "file descriptors": 2.0}
# An injector answers other tests too, at no steady rate, and has been started for them: it comes to
# what it needs only now. If it kept reviews whole, it would need 14 MB more for each thousand.
# After many pods at once the API server keeps up to 25 idle connections for longer than a quarter.
INJECTOR_BOUNDS = {"memory, MB": 10.0, "threads": 4.0, "file descriptors": 25.0}

LOOK = """
import json, os
seen = []
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        words = open(f"/proc/{pid}/cmdline").read().split("\\0")
        status = dict(line.split(":", 1) for line in open(f"/proc/{pid}/status"))
        fds = len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        continue
    if int(pid) != os.getpid() and "VmRSS" in status and "--ready" not in words:
        name = next((word for word in words if word.endswith(("runtime.py", "asya_injector"))), "")
        memory = int(status["VmRSS"].split()[0]) / 1024
        seen.append([os.path.basename(name), memory, int(status["Threads"]), fds])
print(json.dumps(seen))
"""


def look(cluster: Cluster, namespace: str, pod: str, container: str) -> dict[str, list[float]]:
    """Memory, threads and descriptors of the processes of a container that are ours, by name."""
    done = cluster.run_inside("-n", namespace, pod, "-c", container, program=LOOK, check=False)
    if done.returncode:
        return {}
    return {name: figures for name, *figures in json.loads(done.stdout) if name}


@pytest.mark.timeout(MINUTES * 60 + 300)
def test_under_steady_load_nothing_grows(
    cluster: Cluster, namespace: str, record_property: Property
) -> None:
    samples: dict[tuple[str, str], list[float]] = defaultdict(list)
    actors = [
        actor("wrap", cluster.model_image, command=APP, pause=0.03),
        actor("hook", cluster.model_image, command=None, pause=0.03),
    ]
    with load(cluster, namespace, *actors) as (sending, asking):
        pods = {app: cluster.ready_pod(namespace, app).metadata.name for app in ("wrap", "hook")}
        began = time.time()
        rounds = 0
        # A look costs four programs: a busy machine gets fewer of them in its time, not more time.
        while time.time() < began + MINUTES * 60 or rounds < LEAST:
            rounds += 1
            for app, pod in pods.items():
                for figures in look(cluster, namespace, pod, "model").values():
                    add(samples, f"runtime, {app} mode", figures)
            for pod in cluster.injectors():
                for figures in look(cluster, SYSTEM, pod, "injector").values():
                    add(samples, f"injector {pod.rsplit('-', 1)[1]}", figures)
            samples["namespace", "ConfigMaps"].append(len(cluster.copies(namespace)))
            time.sleep(max(0.0, began + rounds * MINUTES * 60 / SAMPLES - time.time()))
        settle(sending, asking)
        trends = [
            Trend(what, figure, seen, bound(what, figure))
            for (what, figure), seen in sorted(samples.items())
            if len(seen) == rounds  # the whole time: other tests replace injectors
        ]
        rows = [
            Row("none: soak", "messages", sending.ledger().tally(Promise(), since=began)),
            Row("none: soak", "pods", asking.ledger.tally(Promise(refusals=True), since=began)),
        ]
    for trend in trends:
        record_property("trend", json.dumps(trend.cells()))
    for row in rows:
        record_property("row", json.dumps(row.cells()))
    assert [trend.cells() for trend in trends if not trend.is_flat] == []
    assert [each for row in rows for each in row.tally.lost] == []
    assert {trend.what.split()[0] for trend in trends} == {"runtime,", "injector", "namespace"}
    assert samples["namespace", "ConfigMaps"][-1] == 1


def add(samples: dict[tuple[str, str], list[float]], what: str, figures: list[float]) -> None:
    for figure, value in zip(BOUNDS, figures, strict=True):
        samples[what, figure].append(value)


def bound(what: str, figure: str) -> float:
    return (INJECTOR_BOUNDS if what.startswith("injector") else BOUNDS).get(figure, 0.0)


def settle(sending: Sending, asking: Asking) -> None:
    """What was begun is done: the last message and the last pod."""
    now = time.time()
    for app in ("wrap", "hook"):
        until(f"{app} to answer", lambda app=app: sending.answered_since(app, now))  # type: ignore[misc]
    asking.stop()
