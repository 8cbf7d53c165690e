"""Exhausted GPU memory is a recoverable reply; after a fatal GPU error the process is restarted."""

import pytest

from e2e.harness import Cluster, Object, Pod, until, workload

GIB = 1 << 30
APP = ["python3", "-m", "app"]
CALL = {"asya.sh/handler": "handlers.call"}
NO_MEMORY = {"severity": "recoverable", "retry_after": 60}


def message(call: str, **more: int) -> Object:
    return {"payload": {"call": call, **more}}


TOO_MUCH = message("allocate", bytes=6 * GIB, pieces=6)
BESIDE = message("beside", bytes=3 * GIB)


def outcome(reply: Object) -> Object:
    """A reply without its text; for `stats`, the memory and how often the cache was emptied."""
    kept = {key: value for key, value in reply.items() if key not in {"message", "status"}}
    result = reply.get("result")
    if isinstance(result, dict) and "memory" in result:
        memory, calls = result["memory"], result["calls"]
        return {
            "allocated": memory["allocated_bytes.all.current"],
            "reserved": memory["reserved_bytes.all.current"],
            "emptied": calls.get("empty_cache", 0),
        }
    return kept


def wait_until_restarted(cluster: Cluster, ends: list[tuple[Pod, int]]) -> None:
    """Wait until the target containers are ready again, each after it ended with its status.

    The status is recorded as soon as it is visible, because a failed start on a busy node replaces
    it. A kubelet may also remove an ended container before it reports the status, which is then
    unknown; the tests of the runtime check it too.
    """
    seen: dict[str, set[int]] = {pod.metadata.name: set() for pod, _ in ends}

    def look() -> bool:
        ready = []
        for name, statuses in seen.items():
            now = cluster.core.read_namespaced_pod(name, ends[0][0].metadata.namespace)
            target = next(each for each in now.status.container_statuses if each.name == "model")
            for ended in (target.state.terminated, target.last_state.terminated):
                if ended and ended.reason != "StartError":
                    statuses.add(ended.exit_code)
            ready.append(bool(target.restart_count and target.ready))
        return all(ready)

    until("the containers to be ready again", look)
    assert all(seen[pod.metadata.name] <= {status} for pod, status in ends), seen


@pytest.mark.timeout(400)
def test_exhausted_memory_is_answered_and_freed(cluster: Cluster, namespace: str) -> None:
    settings = {
        "model": {},
        "uncleaned": {"asya.sh/cuda-cleanup-on-oom": "false"},
        "undetected": {"asya.sh/enable-oom-detection": "false"},
    }
    image = cluster.model_image
    cluster.apply(
        *(
            workload(name, image, command=APP, template=CALL | more)
            for name, more in settings.items()
        ),
        namespace=namespace,
    )
    pods = {name: cluster.ready_pod(namespace, name, seconds=180) for name in settings}

    cuda = {"error": "cuda_oom_error", "type": "OutOfMemoryError", **NO_MEMORY}
    fatal = {"error": "processing_error", "severity": "fatal"}
    emptied = {"allocated": 0, "reserved": 0}
    exchanges = [
        (TOO_MUCH, cuda),
        (message("stats"), {**emptied, "emptied": 1}),
        (BESIDE, {"result": 3 * GIB}),
        (message("chained", bytes=6 * GIB, pieces=6), {**cuda, "type": "RuntimeError"}),
        (message("stats"), {**emptied, "emptied": 2}),
        (message("in_frames", bytes=GIB), cuda),
        (message("stats"), {**emptied, "emptied": 3}),
        (message("hog", bytes=1 << 62), {
            "error": "oom_error", "type": "MemoryError", "severity": "recoverable",
            "retry_after": 30,
        }),
        (message("stream", count=2), {"result": [{"part": 0}, {"part": 1}]}),
        (message("stream", count=3, fails=1), {**fatal, "type": "ValueError"}),
        (message("fan_out", count=2), {"result": [{"part": 0}, {"part": 1}]}),
    ]  # fmt: skip
    replies = cluster.call(pods["model"], *(each for each, _ in exchanges))
    assert [outcome(reply) for reply in replies] == [expected for _, expected in exchanges]
    assert replies[0]["message"].startswith("CUDA out of memory. Tried to allocate 1.00 GiB.")

    # Without the cleanup, torch keeps unused memory, and other libraries on the GPU get none.
    replies = cluster.call(pods["uncleaned"], TOO_MUCH, message("stats"), BESIDE)
    assert [outcome(reply) for reply in replies] == [
        cuda,
        {"allocated": 0, "reserved": 4 * GIB, "emptied": 0},
        {"error": "cuda_oom_error", "type": "AcceleratorError", **NO_MEMORY},
    ]
    (reply,) = cluster.call(pods["undetected"], TOO_MUCH)
    assert outcome(reply) == {**fatal, "type": "OutOfMemoryError"}


@pytest.mark.timeout(400)
def test_after_a_lost_context_or_a_crash_a_new_process_serves(
    cluster: Cluster, namespace: str
) -> None:
    image = cluster.model_image
    later = {"asya.sh/handler": "handlers.later"}
    cluster.apply(
        workload("lost", image, command=APP, template=CALL),
        workload("crashed", image, command=APP, template=CALL),
        workload("async", image, command=APP, template=later),
        namespace=namespace,
    )
    lost = cluster.ready_pod(namespace, "lost", seconds=180)
    (reply,) = cluster.call(lost, message("assert_on_device"))
    assert reply.pop("message").startswith("CUDA error: device-side assert triggered")
    assert reply == {
        "status": "error",
        "error": "processing_error",
        "type": "AcceleratorError",
        "severity": "fatal",
    }
    crashed = cluster.ready_pod(namespace, "crashed", seconds=180)
    assert cluster.call(crashed, message("crash"), message("echo")) == []  # end of stream

    wait_until_restarted(cluster, [(lost, 70), (crashed, 139)])
    payload = {"seconds": 0.1}
    asynchronous = cluster.ready_pod(namespace, "async", seconds=180)
    assert cluster.call(asynchronous, {"payload": payload}) == [{"status": "ok", "result": payload}]

    for pod in (lost, crashed):
        assert cluster.call(pod, message("allocate", bytes=GIB))[0]["status"] == "ok"
