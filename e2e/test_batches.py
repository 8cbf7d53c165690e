"""Batches that do not fit, messages that fail alone, and calls that never end."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from e2e.harness import Cluster, Object, Pod, until, workload

MIB = 1 << 20
APP = ["python3", "-m", "app"]
# name: (command, annotations, how the call hangs, whether it is answered, container restarts)
HANGS: dict[str, tuple[list[str] | None, Object, str, bool, int]] = {
    "wrap-sleep": (APP, {}, "sleep", True, 1),
    "wrap-spin": (APP, {}, "spin", True, 1),
    "wrap-keep": (APP, {}, "keep", False, 1),
    "hook-sleep": (None, {}, "sleep", True, 0),
    "runtime-sleep": (None, {"asya.sh/mode": "runtime"}, "sleep", True, 1),
}


@pytest.mark.timeout(300)
def test_a_batch_that_does_not_fit_is_answered_by_halves(cluster: Cluster, namespace: str) -> None:
    annotations = {
        "asya.sh/handler": "handlers.batch",
        "asya.sh/batch-size": "8",
        "asya.sh/batch-wait": "10",  # for the rest of a batch; a full one begins at once
    }
    cluster.apply(
        workload("batched", cluster.model_image, command=APP, template=annotations),
        namespace=namespace,
    )
    pod = cluster.ready_pod(namespace, "batched")

    def messages(count: int, **more: int) -> list[Object]:
        return [{"payload": {"number": number, **more}} for number in range(count)]

    # The GPU has 4 GiB and something: eight of 768 MiB do not fit, four do
    replies = cluster.call(pod, *messages(8, bytes=768 * MIB), in_flight=8)
    results = [{"number": number, "batch": 4} for number in range(8)]
    assert replies == [{"status": "ok", "result": result} for result in results]
    # The limit is known now, and the next batches keep to it
    replies = cluster.call(pod, *messages(8), in_flight=8)
    assert replies == [{"status": "ok", "result": result} for result in results]

    # One of fifty fails, and no other one with it
    many = messages(1000)
    for number in range(0, 1000, 50):
        many[number]["payload"]["fails"] = True
    replies = cluster.call(pod, *many, in_flight=64)
    good = [reply["result"]["number"] for reply in replies if reply["status"] == "ok"]
    assert good == [number for number in range(1000) if number % 50]
    assert {reply["type"] for reply in replies if reply["status"] != "ok"} == {"ValueError"}


@pytest.mark.timeout(300)
def test_a_call_that_never_ends_is_answered_and_the_actor_serves_again(
    cluster: Cluster, namespace: str
) -> None:
    annotations = {"asya.sh/handler": "handlers.call", "asya.sh/handler-deadline": "4"}
    cluster.apply(
        *(
            workload(name, cluster.model_image, command=command, template=annotations | more)
            for name, (command, more, *_) in HANGS.items()
        ),
        namespace=namespace,
    )
    pods = {name: cluster.ready_pod(namespace, name, seconds=180) for name in HANGS}

    def hang(name: str) -> list[Object]:
        return cluster.call(pods[name], {"payload": {"call": "hang", "how": HANGS[name][2]}})

    with ThreadPoolExecutor() as pool:
        answers = dict(zip(HANGS, pool.map(hang, HANGS), strict=True))
    for name, (_, _, _, is_answered, _) in HANGS.items():
        late = [("HandlerDeadlineExceeded", "recoverable", 1)] * is_answered
        got = [(each["type"], each["severity"], each["retry_after"]) for each in answers[name]]
        assert got == late, name

    def serves(pod: Pod) -> bool:
        # The process that gave up may accept a connection for a moment more.
        replies = cluster.call(pod, {"payload": {"call": "echo"}}, check=False)
        return replies == [{"status": "ok", "result": {"call": "echo"}}]

    def count_restarts(name: str) -> int:
        (pod,) = cluster.pods(namespace, name)
        return int(
            next(one for one in pod.status.container_statuses if one.name == "model").restart_count
        )

    for name, (*_, restarts) in HANGS.items():
        # The status follows the container.
        until(f"{name} to restart", lambda: count_restarts(name) >= restarts)  # noqa: B023
        until(f"{name} to serve again", lambda: serves(pods[name]))  # noqa: B023
        assert (name, count_restarts(name)) == (name, restarts)
