"""The runtime ConfigMap, named by its content, and how the webhook ensures it in a namespace."""

import asyncio
import json
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from asya_injector.errors import InjectionError
from asya_injector.kube_client import ApiClient
from asya_injector.runtime_files import RuntimeFiles
from asya_injector.webhook.runtime_configmap import RuntimeConfigMapWriter
from asya_injector.webhook.telemetry import Metrics
from stand_in import Answer, Api, failure, write_kubeconfig

from tests.injector.conftest import connect_with, free_port

RUNTIME = Path(__file__).parents[3] / "runtime"


def test_the_hash_equals_that_of_sha256sum() -> None:
    message = subprocess.run(
        "sha256sum *.py | sha256sum", shell=True, cwd=RUNTIME, capture_output=True, check=True
    ).stdout.decode()
    assert RuntimeFiles.load(RUNTIME).hash == message[:10]


def test_the_configmap_is_immutable_and_named_by_its_content() -> None:
    files = RuntimeFiles({"asya_runtime.py": "1", "asya_entrypoint.py": "2"})
    assert files.config_map() == {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": f"asya-runtime-{files.hash}",
            "labels": {
                "app.kubernetes.io/managed-by": "asya-injector",
                "asya.sh/runtime-hash": files.hash,
            },
        },
        "immutable": True,
        "data": {"asya_runtime.py": "1", "asya_entrypoint.py": "2"},
    }


def test_one_more_byte_changes_the_name() -> None:
    one = RuntimeFiles({"asya_runtime.py": "1", "asya_entrypoint.py": "2"})
    other = RuntimeFiles({"asya_runtime.py": "1", "asya_entrypoint.py": "2\n"})
    assert one.hash != other.hash


def test_rejects_a_directory_without_one_of_the_files(tmp_path: Path) -> None:
    (tmp_path / "asya_runtime.py").write_text("1")
    with pytest.raises(FileNotFoundError, match=r"asya_entrypoint\.py"):
        RuntimeFiles.load(tmp_path)


class Namespaces:
    """A writer that uses the stand-in API server, and its metrics."""

    def __init__(self, api: Api, connection: ApiClient) -> None:
        self.api = api
        self.files = RuntimeFiles({"asya_runtime.py": "1", "asya_entrypoint.py": "2"})
        self.name = self.files.config_map()["metadata"]["name"]
        self.now = 100.0
        self._connection = connection
        self._metrics = Metrics()
        self.writer = self.replica()

    def replica(self) -> RuntimeConfigMapWriter:
        return RuntimeConfigMapWriter(
            self.files, self._connection, self._metrics, clock=lambda: self.now
        )

    def count_writes(self) -> dict[str, float]:
        """Counts of the metric by result."""
        (family,) = self._metrics.runtime_configmap_writes.collect()
        return {
            sample.labels["result"]: sample.value
            for sample in family.samples
            if sample.name.endswith("_total")
        }

    async def rejection(self, namespace: str = "models", *, within: float = 5.0) -> str:
        with pytest.raises(InjectionError) as caught:
            await self.writer.ensure(namespace, within=within)
        return str(caught.value)

    def hold(self, namespace: str = "") -> threading.Event:
        """Answer no call (of one namespace, or of all) until the event is set."""
        release = threading.Event()

        def fault(_: str, __: str, called: str, ___: str) -> None:
            if namespace in ("", called):
                release.wait(20)

        self.api.fault = fault
        return release


@pytest.fixture
def namespaces(api: Api, connection: ApiClient) -> Namespaces:
    return Namespaces(api, connection)


def fail_first(*answers: Answer | None, resource: str = "configmaps") -> Callable[..., None]:
    """Fail the first calls, each with the next answer; None lets one pass."""
    left = list(answers)

    def fault(_: str, called: str, *__: str) -> None:
        if called == resource and left and (answer := left.pop(0)):
            raise answer

    return fault


async def test_fifty_concurrent_pods_of_a_new_namespace_share_one_check(
    namespaces: Namespaces,
) -> None:
    await asyncio.gather(*(namespaces.writer.ensure("models", within=20) for _ in range(50)))
    assert namespaces.api.calls == [("create", "configmaps", "models", "")]
    assert namespaces.count_writes() == {"created": 1}
    stored = namespaces.api.objects["configmaps", "models", namespaces.name]
    assert (stored["immutable"], stored["data"]) == (True, dict(namespaces.files.files))


async def test_replicas_that_race_both_succeed(namespaces: Namespaces) -> None:
    other = namespaces.replica()
    await asyncio.gather(
        namespaces.writer.ensure("models", within=20), other.ensure("models", within=20)
    )
    assert namespaces.count_writes() == {"created": 1, "present": 1}
    assert namespaces.api.called("create", "configmaps") == 2
    assert namespaces.api.called("patch", "configmaps") == 1


async def test_a_success_is_cached_for_a_second_because_a_namespace_may_be_created_again(
    namespaces: Namespaces,
) -> None:
    await namespaces.writer.ensure("models", within=20)
    del namespaces.api.objects["configmaps", "models", namespaces.name]
    namespaces.now += 0.9
    await namespaces.writer.ensure("models", within=20)
    assert len(namespaces.api.calls) == 1
    namespaces.now += 0.2
    await namespaces.writer.ensure("models", within=20)
    assert ("configmaps", "models", namespaces.name) in namespaces.api.objects


async def test_the_cache_is_emptied(namespaces: Namespaces) -> None:
    for number in range(50):
        namespaces.now += 0.2
        await namespaces.writer.ensure(f"ns-{number}", within=20)
    assert len(namespaces.writer._cached) <= 6
    assert namespaces.writer._checks == {}


async def test_rejects_different_content_under_the_name_and_says_how_to_fix_it(
    namespaces: Namespaces,
) -> None:
    metadata = {"name": namespaces.name}
    namespaces.api.put("configmaps", "models", {"metadata": metadata, "data": {"x": "1"}})
    assert await namespaces.rejection() == (
        f"ConfigMap models/{namespaces.name}: exists with different content, which pods would run; "
        f"delete it: kubectl delete configmap -n models {namespaces.name} "
        "(RuntimeConfigMapConflict)"
    )
    # A failure is not cached: once it is deleted, the next pod is admitted.
    del namespaces.api.objects["configmaps", "models", namespaces.name]
    await namespaces.writer.ensure("models", within=20)
    assert namespaces.count_writes() == {"RuntimeConfigMapConflict": 1, "created": 1}


BY_ADMIN = "allow the injector to create it (rights, quota), or create it by hand"
RETRIED = "the next pod retries"
FAILURES = [
    (403, "Forbidden", "exceeded quota: compute, requested: count/configmaps=1", BY_ADMIN),
    (403, "Forbidden", 'cannot create resource "configmaps"', BY_ADMIN),
    (403, "Forbidden", "because it is being terminated", BY_ADMIN),
    (403, "Forbidden", "evil\n\x1b[2Jtext", BY_ADMIN),
    (422, "Invalid", "ValidatingAdmissionPolicy 'x' denied request", BY_ADMIN),
    (404, "NotFound", 'namespaces "models" not found', RETRIED),
    (500, "InternalError", "etcdserver: leader changed", RETRIED),
]


@pytest.mark.parametrize(("code", "reason", "message", "fix"), FAILURES)
async def test_a_failure_rejects_all_waiting_pods(
    namespaces: Namespaces, code: int, reason: str, message: str, fix: str
) -> None:
    namespaces.api.fault = fail_first(failure(code, reason, message))
    rejections = await asyncio.gather(*(namespaces.rejection() for _ in range(10)))
    assert set(rejections) == {
        f"ConfigMap models/{namespaces.name}: could not be created or checked: "
        f"{json.dumps(message)}; {fix} (RuntimeConfigMapUnavailable)"
    }
    assert len(namespaces.api.calls) == 1
    await namespaces.writer.ensure("models", within=20)  # a failure is not cached


async def test_rejects_a_pod_if_the_answer_is_not_from_an_api_server(
    namespaces: Namespaces,
) -> None:
    namespaces.api.fault = fail_first(Answer(200, b"<html>Sign in</html>"))
    assert await namespaces.rejection() == (
        f"ConfigMap models/{namespaces.name}: could not be created or checked: "
        f'"200 OK, but not JSON: is that an API server?"; {RETRIED} (RuntimeConfigMapUnavailable)'
    )


EXISTS = failure(409, "AlreadyExists", "it exists")


@pytest.mark.parametrize(
    ("answers", "verbs"),
    [
        ([failure(429, "TooManyRequests", "busy", {"Retry-After": "1"})], "create create"),
        ([failure(409, "Conflict", "the quota has been modified")], "create create"),
        # Deleted between the two calls.
        (
            [EXISTS, failure(404, "NotFound", 'configmaps "asya-runtime" not found')],
            "create patch create",
        ),
    ],
    ids=["busy", "conflict", "deleted"],
)
async def test_retries_transient_failures(
    namespaces: Namespaces, answers: list[Answer], verbs: str
) -> None:
    namespaces.api.fault = fail_first(*answers)
    await namespaces.writer.ensure("models", within=20)
    assert namespaces.count_writes() == {"created": 1}
    assert [call[0] for call in namespaces.api.calls] == verbs.split()


async def test_waits_as_long_as_a_busy_api_server_asks_for(namespaces: Namespaces) -> None:
    busy = failure(429, "TooManyRequests", "busy", {"Retry-After": "30"})
    namespaces.api.fault = fail_first(*[busy] * 100)
    assert "did not answer in time" in await namespaces.rejection(within=0.5)
    assert len(namespaces.api.calls) == 1


async def test_rejects_in_time_while_the_api_server_does_not_answer(
    namespaces: Namespaces,
) -> None:
    release = namespaces.hold()
    began = time.monotonic()
    rejections = await asyncio.gather(*(namespaces.rejection(within=0.3) for _ in range(5)))
    assert time.monotonic() - began < 5
    release.set()
    assert set(rejections) == {
        f"ConfigMap models/{namespaces.name}: could not be created or checked: "
        '"the API server did not answer in time"; the next pod retries '
        "(RuntimeConfigMapUnavailable)"
    }


async def test_a_slow_namespace_does_not_delay_another(namespaces: Namespaces) -> None:
    release = namespaces.hold("slow")
    slow = asyncio.create_task(namespaces.writer.ensure("slow", within=20))
    await namespaces.writer.ensure("models", within=20)
    assert not slow.done()
    release.set()
    await slow


async def test_rejects_a_pod_while_the_api_server_is_unreachable(tmp_path: Path) -> None:
    unreachable = connect_with(write_kubeconfig(tmp_path, free_port()))
    files = RuntimeFiles({"asya_runtime.py": "1", "asya_entrypoint.py": "2"})
    with pytest.raises(InjectionError, match=r"did not answer .*RuntimeConfigMapUnavailable"):
        await RuntimeConfigMapWriter(files, unreachable, Metrics()).ensure("models", within=10)


async def test_a_short_deadline_does_not_end_a_shared_check(
    namespaces: Namespaces,
) -> None:
    release = namespaces.hold()
    patient = asyncio.create_task(namespaces.writer.ensure("models", within=20))
    while not namespaces.api.calls:
        await asyncio.sleep(0.01)
    assert "in time" in await namespaces.rejection(within=0.1)
    release.set()
    await patient
    assert namespaces.count_writes() == {"created": 1}
