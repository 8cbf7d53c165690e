"""Hostile callers of the injector keep no pod away, and use no more than the documented memory."""

from __future__ import annotations

import json
import os
import re
import time
from typing import Any

import pytest

from e2e.harness import SYSTEM, Cluster, Object, Pod, bare_pod, until
from e2e.load.faults import renew_certificate
from e2e.load.ledger import Tolerance
from e2e.load.traffic import PodRequests, code_config_map

pytestmark = [pytest.mark.alone, pytest.mark.timeout(300)]

SECONDS = 20
# Half a core for the attack: it measures the injector, not a machine without time for anything.
ATTACKER_CPU = "500m"
# Genuine reviews are answered within a second, except one in a hundred. The API server counts them
# by upper bounds; on a machine that is busy with other work, the next one applies.
SLOW_SECONDS, BUSY_SECONDS, MAX_SLOW = "1", "2.5", 0.01
BUSY = 4 * (os.cpu_count() or 1)
BUCKET = r"^apiserver_admission_webhook_admission_duration_seconds_bucket{(.*?)} (\S+)$"


def test_fifty_hostile_callers_keep_no_genuine_pod_away(
    cluster: Cluster, namespace: str, record_property: Any
) -> None:
    cluster.settle()
    before = {pod.metadata.name: pod for pod in cluster.injector_pods()}
    unhealthy = find_failed_probes(cluster)
    requests = PodRequests(cluster, namespace)
    cluster.apply(code_config_map(), namespace=namespace)
    cluster.create(build_attacker(cluster, namespace, before), "-n", namespace)
    until("the attack to begin", lambda: "started" in read_log(cluster, namespace))
    is_busy = is_machine_busy()
    began = time.time()
    durations = {bound: read_durations(cluster, bound) for bound in (SLOW_SECONDS, BUSY_SECONDS)}
    requests.start()
    try:
        renew_certificate(cluster, seconds=180 if is_busy else SECONDS)
        until("the attack to end", lambda: read_log(cluster, namespace).endswith("}\n"))
    finally:
        requests.stop()
    answers = json.loads(read_log(cluster, namespace).splitlines()[-1])
    # What each kind of caller got, so that an attack that did nothing is seen.
    record_property("answers", json.dumps(answers))
    is_busy = is_busy or is_machine_busy()
    bound = BUSY_SECONDS if is_busy else SLOW_SECONDS
    pods = requests.ledger.tally(Tolerance(rejections=is_busy), since=began)
    now = read_durations(cluster, bound)
    count, slow = (after - before for after, before in zip(now, durations[bound], strict=True))
    print(f"{pods.done} of {pods.sent} pods; {slow} of {count} reviews over {bound} s; {answers}")
    assert pods.lost == []
    # One after the other. A busy machine answers too few to count hundredths, and one that has no
    # time for the injector may let the deadline of a review pass.
    assert pods.done >= (SECONDS / 4 if is_busy else 2 * SECONDS)
    rejected = sum(pods.rejected.values())
    assert max(slow, rejected) <= max(MAX_SLOW * count, 1 if is_busy else 0)
    after = {pod.metadata.name: pod for pod in cluster.injector_pods()}
    assert {name: state_of(pod) for name, pod in after.items()} == {
        name: state_of(pod) for name, pod in before.items()
    }
    assert is_busy or find_failed_probes(cluster) == unhealthy
    for name, pod in after.items():
        limit = pod.spec.containers[0].resources.limits["memory"]
        assert read_peak(cluster, name) < int(limit.removesuffix("Mi")) << 20


def is_machine_busy() -> bool:
    """Whether there is much other work; the attack itself adds little."""
    return os.getloadavg()[0] >= BUSY


def build_attacker(cluster: Cluster, namespace: str, injectors: dict[str, Pod]) -> Object:
    """A pod with all the hostile callers."""
    addresses = [pod.status.pod_ip for pod in injectors.values()]
    command = ["python3", "/code/hostile.py", str(SECONDS), namespace, *addresses]
    mount = {"name": "code", "mountPath": "/code"}
    limits = {"cpu": ATTACKER_CPU}
    fields = {"command": command, "volumeMounts": [mount], "resources": {"limits": limits}}
    pod = bare_pod("attacker", cluster.model_image, {}, **fields)
    pod["spec"] |= {
        "restartPolicy": "Never",
        "volumes": [{"name": "code", "configMap": {"name": "code"}}],
    }
    return pod


def read_log(cluster: Cluster, namespace: str) -> str:
    return cluster.kubectl("-n", namespace, "logs", "attacker", check=False).stdout


def state_of(pod: Pod) -> Object:
    """Restarts of an injector's container, and since when the pod has been ready."""
    (container,) = pod.status.container_statuses
    ready = next(each for each in pod.status.conditions if each.type == "Ready")
    return {"restarts": container.restart_count, ready.status: ready.last_transition_time}


def find_failed_probes(cluster: Cluster) -> dict[str, int]:
    """The probes of the release's namespace that have failed so far, and how often."""
    events = cluster.core.list_namespaced_event(SYSTEM, field_selector="reason=Unhealthy").items
    return {event.metadata.name: event.count or 1 for event in events}


def read_durations(cluster: Cluster, seconds: str) -> tuple[int, int]:
    """How many genuine pods were reviewed, and how many of them in more than so many seconds."""
    text = cluster.kubectl("get", "--raw", "/metrics").stdout
    counts = {"+Inf": 0, seconds: 0}
    for labels, count in re.findall(BUCKET, text, re.M):
        bound = re.search(r'le="(.*?)"', labels)
        if 'name="pods.asya.sh"' in labels and bound and bound[1] in counts:
            counts[bound[1]] += int(float(count))
    return counts["+Inf"], counts["+Inf"] - counts[seconds]


def read_peak(cluster: Cluster, name: str) -> int:
    """The most memory that an injector has used, in bytes."""
    program = "print(open('/proc/1/status').read())"
    text = cluster.exec_python("-n", SYSTEM, name, program=program).stdout
    return int(re.findall(r"VmHWM:\s+(\d+) kB", text)[0]) << 10
