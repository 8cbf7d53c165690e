"""Under steady load, memory, threads, file descriptors and ConfigMaps do not grow.

The duration is SOAK_MINUTES: 2.5 in `make e2e`, beside other tests; 60 in `make soak MINUTES=60`.
"""

from __future__ import annotations

import json
import os
import time
from collections import defaultdict
from collections.abc import Callable

import pytest

from e2e.harness import SYSTEM, Cluster, until
from e2e.load.ledger import Row, Tolerance
from e2e.load.traffic import APP, Messages, PodRequests, actor, generate_load
from e2e.load.trend import Trend

Property = Callable[[str, object], None]
MINUTES = float(os.environ.get("SOAK_MINUTES") or 2.5)
# What leaks does so with messages and pods, not with time: many of them make a short test enough.
# The handler works for 20 ms.
PAUSE, PODS_PER_SECOND = 0.005, 10.0
SAMPLES, LEAST = 40, 12
# Memory in MB: allocators keep some. A leak of 100 bytes per message is more than that in an hour.
BOUNDS = {"memory, MB": 2.0, "threads": 0.0, "file descriptors": 2.0}
FIGURES = {"memory, MB": "memory_mb", "threads": "threads", "file descriptors": "descriptors"}
# An injector answers other tests too, at a changing rate, and has just started, so that it still
# grows to its usual size. If it kept reviews, it would grow by 14 MB per thousand. After a burst of
# pods, the API server keeps up to 25 idle connections for longer than a quarter.
INJECTOR_BOUNDS = {"memory, MB": 10.0, "threads": 4.0, "file descriptors": 25.0}


@pytest.mark.timeout(MINUTES * 60 + 300)
def test_under_steady_load_nothing_grows(
    cluster: Cluster, namespace: str, record_property: Property
) -> None:
    samples: dict[tuple[str, str], list[float]] = defaultdict(list)
    actors = [
        actor("wrap", cluster.model_image, command=APP, pause=PAUSE),
        actor("hook", cluster.model_image, command=None, pause=PAUSE),
    ]
    load = generate_load(cluster, namespace, *actors, pods_per_second=PODS_PER_SECOND)
    with load as (messages, pod_requests):
        pods = {app: cluster.ready_pod(namespace, app).metadata.name for app in ("wrap", "hook")}
        began = time.time()
        rounds = 0
        # A sample costs four programs: a busy machine takes fewer of them, not more time.
        while time.time() < began + MINUTES * 60 or rounds < LEAST:
            rounds += 1
            for app, pod in pods.items():
                for usage in cluster.process_usage(namespace, pod, "model").values():
                    add(samples, f"runtime, {app} mode", usage)
            for pod in cluster.injectors():
                for usage in cluster.process_usage(SYSTEM, pod, "injector").values():
                    add(samples, f"injector {pod.rsplit('-', 1)[1]}", usage)
            samples["namespace", "ConfigMaps"].append(len(cluster.copies(namespace)))
            time.sleep(max(0.0, began + rounds * MINUTES * 60 / SAMPLES - time.time()))
        settle(messages, pod_requests)
        trends = [
            Trend(what, figure, seen, find_bound(what, figure))
            for (what, figure), seen in sorted(samples.items())
            if len(seen) == rounds  # sampled all the time: other tests replace injectors
        ]
        of_messages = messages.ledger().tally(Tolerance(), since=began)
        of_pods = pod_requests.ledger.tally(Tolerance(rejections=True), since=began)
        rows = [
            Row("none: soak", "messages", of_messages),
            Row("none: soak", "pods", of_pods),
        ]
    for trend in trends:
        record_property("trend", json.dumps(trend.cells()))
    for row in rows:
        record_property("row", json.dumps(row.cells()))
    assert [trend.cells() for trend in trends if not trend.is_flat] == []
    assert [each for row in rows for each in row.tally.lost] == []
    assert {trend.what.split()[0] for trend in trends} == {"runtime,", "injector", "namespace"}
    assert samples["namespace", "ConfigMaps"][-1] == 1


def add(samples: dict[tuple[str, str], list[float]], what: str, usage: dict[str, float]) -> None:
    for figure in BOUNDS:
        samples[what, figure].append(usage[FIGURES[figure]])


def find_bound(what: str, figure: str) -> float:
    return (INJECTOR_BOUNDS if what.startswith("injector") else BOUNDS).get(figure, 0.0)


def settle(messages: Messages, pod_requests: PodRequests) -> None:
    """Wait for the last message and the last pod."""
    now = time.time()
    for app in ("wrap", "hook"):
        until(f"{app} to answer", lambda app=app: messages.answered_since(app, now))  # type: ignore[misc]
    pod_requests.stop()
