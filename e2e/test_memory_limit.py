"""Host memory beyond the container's limit: an error reply with the setting, a kill without it."""

import pytest

from e2e.harness import Cluster, Object, workload
from e2e.test_gpu import APP, CALL, message, outcome, wait_until_restarted

GIB = 1 << 30
OOM = {
    "error": "oom_error",
    "type": "MemoryError",
    "severity": "recoverable",
    "retry_after": 30,
}


def limited(name: str, image: str, **annotations: str) -> Object:
    """A model with 256 MiB of memory."""
    item = workload(name, image, command=APP, template=CALL | annotations)
    target = item["spec"]["template"]["spec"]["containers"][0]
    target["resources"] = {"limits": {"memory": "256Mi"}}
    return item


@pytest.mark.timeout(300)
def test_memory_over_the_limit_is_answered_and_without_the_setting_killed(
    cluster: Cluster, namespace: str
) -> None:
    settings = {
        "share": {"asya.sh/memory-limit": "90%"},
        "bytes": {"asya.sh/memory-limit": str(200 << 20)},
        "killed": {},
    }
    items = [limited(name, cluster.model_image, **more) for name, more in settings.items()]
    cluster.apply(*items, namespace=namespace)
    pods = {name: cluster.ready_pod(namespace, name, seconds=180) for name in settings}

    for name in ("share", "bytes"):
        replies = cluster.call(
            pods[name], message("hog", bytes=GIB), message("hog", bytes=1 << 20),
            message("pile", bytes=GIB), message("hog", bytes=100 << 20),
        )  # fmt: skip
        assert [outcome(reply) for reply in replies] == [
            OOM, {"result": 1 << 20}, OOM, {"result": 100 << 20},
        ], name  # fmt: skip
        (status, *_) = [
            each
            for each in cluster.ready_pod(namespace, name).status.container_statuses
            if each.name == "model"
        ]
        assert status.restart_count == 0

    assert cluster.call(pods["killed"], message("pile", bytes=GIB), message("echo")) == []
    wait_until_restarted(cluster, [(pods["killed"], 137)])
    (reply,) = cluster.call(
        cluster.ready_pod(namespace, "killed", seconds=180), message("hog", bytes=1 << 20)
    )
    assert outcome(reply) == {"result": 1 << 20}
