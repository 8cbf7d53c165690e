"""The ConfigMap that pods mount: its name tells its content."""

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

from tests.injector.conftest import connected
from tests.support.api_server import Answer, Api, failure, write_kubeconfig
from tests.support.injector_process import free_port

RUNTIME = Path(__file__).parents[3] / "runtime"


def test_the_hash_is_what_sha256sum_says_of_the_files() -> None:
    said = subprocess.run(
        "sha256sum *.py | sha256sum", shell=True, cwd=RUNTIME, capture_output=True, check=True
    ).stdout.decode()
    assert RuntimeFiles.load(RUNTIME).hash == said[:10]


def test_the_config_map_is_immutable_and_named_by_its_content() -> None:
    payload = RuntimeFiles({"asya_runtime.py": "1", "asya_entrypoint.py": "2"})
    assert payload.config_map() == {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": f"asya-runtime-{payload.hash}",
            "labels": {
                "app.kubernetes.io/managed-by": "asya-injector",
                "asya.sh/runtime-hash": payload.hash,
            },
        },
        "immutable": True,
        "data": {"asya_runtime.py": "1", "asya_entrypoint.py": "2"},
    }


def test_a_byte_more_is_another_name() -> None:
    one = RuntimeFiles({"asya_runtime.py": "1", "asya_entrypoint.py": "2"})
    other = RuntimeFiles({"asya_runtime.py": "1", "asya_entrypoint.py": "2\n"})
    assert one.hash != other.hash


def test_a_missing_file_is_no_payload(tmp_path: Path) -> None:
    (tmp_path / "asya_runtime.py").write_text("1")
    with pytest.raises(FileNotFoundError, match=r"asya_entrypoint\.py"):
        RuntimeFiles.load(tmp_path)


class Namespaces:
    """A publisher on an API server in memory, with the metrics it writes."""

    def __init__(self, api: Api, connection: ApiClient) -> None:
        self.api = api
        self.payload = RuntimeFiles({"asya_runtime.py": "1", "asya_entrypoint.py": "2"})
        self.name = self.payload.config_map()["metadata"]["name"]
        self.now = 100.0
        self._connection = connection
        self._metrics = Metrics()
        self.publisher = self.replica()

    def replica(self) -> RuntimeConfigMapWriter:
        return RuntimeConfigMapWriter(
            self.payload, self._connection, self._metrics, clock=lambda: self.now
        )

    def written(self) -> dict[str, float]:
        """Counts of the metric by result."""
        (family,) = self._metrics.runtime_configmap_writes.collect()
        return {
            sample.labels["result"]: sample.value
            for sample in family.samples
            if sample.name.endswith("_total")
        }

    async def rejection(self, namespace: str = "models", *, within: float = 5.0) -> str:
        with pytest.raises(InjectionError) as caught:
            await self.publisher.ensure(namespace, within=within)
        return str(caught.value)

    def held(self, namespace: str = "") -> threading.Event:
        """Calls, of one namespace or all, are not answered before the event is set."""
        go = threading.Event()

        def fault(_: str, __: str, called: str, ___: str) -> None:
            if namespace in ("", called):
                go.wait(20)

        self.api.fault = fault
        return go


@pytest.fixture
def namespaces(api: Api, connection: ApiClient) -> Namespaces:
    return Namespaces(api, connection)


def failing(*answers: Answer | None, resource: str = "configmaps") -> Callable[..., None]:
    """A fault of the first calls: each raises the next answer, None lets one pass."""
    left = list(answers)

    def fault(_: str, called: str, *__: str) -> None:
        if called == resource and left and (answer := left.pop(0)):
            raise answer

    return fault


async def test_fifty_pods_at_once_in_a_new_namespace_cost_one_call(namespaces: Namespaces) -> None:
    await asyncio.gather(*(namespaces.publisher.ensure("models", within=20) for _ in range(50)))
    assert namespaces.api.calls == [("create", "configmaps", "models", "")]
    assert namespaces.written() == {"created": 1}
    stored = namespaces.api.objects["configmaps", "models", namespaces.name]
    assert (stored["immutable"], stored["data"]) == (True, dict(namespaces.payload.files))


async def test_two_replicas_that_race_both_find_it_there(namespaces: Namespaces) -> None:
    other = namespaces.replica()
    await asyncio.gather(
        namespaces.publisher.ensure("models", within=20), other.ensure("models", within=20)
    )
    assert namespaces.written() == {"created": 1, "present": 1}
    assert namespaces.api.called("create", "configmaps") == 2
    assert namespaces.api.called("patch", "configmaps") == 1


async def test_it_is_remembered_for_a_second_so_that_a_new_namespace_of_the_same_name_gets_its_own(
    namespaces: Namespaces,
) -> None:
    await namespaces.publisher.ensure("models", within=20)
    del namespaces.api.objects["configmaps", "models", namespaces.name]
    namespaces.now += 0.9
    await namespaces.publisher.ensure("models", within=20)
    assert len(namespaces.api.calls) == 1
    namespaces.now += 0.2
    await namespaces.publisher.ensure("models", within=20)
    assert ("configmaps", "models", namespaces.name) in namespaces.api.objects


async def test_namespaces_are_forgotten(namespaces: Namespaces) -> None:
    for number in range(50):
        namespaces.now += 0.2
        await namespaces.publisher.ensure(f"ns-{number}", within=20)
    assert len(namespaces.publisher._cached) <= 6
    assert namespaces.publisher._checks == {}


async def test_other_content_under_the_name_is_refused_with_what_to_do(
    namespaces: Namespaces,
) -> None:
    metadata = {"name": namespaces.name}
    namespaces.api.put("configmaps", "models", {"metadata": metadata, "data": {"x": "1"}})
    assert await namespaces.rejection() == (
        f"ConfigMap models/{namespaces.name}: exists with different content, which pods would run; "
        f"delete it: kubectl delete configmap -n models {namespaces.name} "
        "(RuntimeConfigMapConflict)"
    )
    # Nothing bad is remembered: once it is deleted, the next pod is let in.
    del namespaces.api.objects["configmaps", "models", namespaces.name]
    await namespaces.publisher.ensure("models", within=20)
    assert namespaces.written() == {"RuntimeConfigMapConflict": 1, "created": 1}


BY_HAND = "allow the injector to create it (rights, quota), or create it by hand"
BY_ITSELF = "the next pod retries"
FAULTS = [
    (403, "Forbidden", "exceeded quota: compute, requested: count/configmaps=1", BY_HAND),
    (403, "Forbidden", 'cannot create resource "configmaps"', BY_HAND),
    (403, "Forbidden", "because it is being terminated", BY_HAND),
    (403, "Forbidden", "evil\n\x1b[2Jtext", BY_HAND),
    (422, "Invalid", "ValidatingAdmissionPolicy 'x' denied request", BY_HAND),
    (404, "NotFound", 'namespaces "models" not found', BY_ITSELF),
    (500, "InternalError", "etcdserver: leader changed", BY_ITSELF),
]


@pytest.mark.parametrize(("code", "reason", "said", "fix"), FAULTS)
async def test_what_the_api_server_says_is_told_to_all_who_wait(
    namespaces: Namespaces, code: int, reason: str, said: str, fix: str
) -> None:
    namespaces.api.fault = failing(failure(code, reason, said))
    refusals = await asyncio.gather(*(namespaces.rejection() for _ in range(10)))
    assert set(refusals) == {
        f"ConfigMap models/{namespaces.name}: could not be created or checked: "
        f"{json.dumps(said)}; {fix} (RuntimeConfigMapUnavailable)"
    }
    assert len(namespaces.api.calls) == 1
    await namespaces.publisher.ensure("models", within=20)  # nothing bad is remembered


async def test_what_is_no_api_server_is_told(namespaces: Namespaces) -> None:
    namespaces.api.fault = failing(Answer(200, b"<html>Sign in</html>"))
    assert await namespaces.rejection() == (
        f"ConfigMap models/{namespaces.name}: could not be created or checked: "
        f'"200 OK, but the body is not JSON"; {BY_ITSELF} (RuntimeConfigMapUnavailable)'
    )


EXISTS = failure(409, "AlreadyExists", "it exists")


@pytest.mark.parametrize(
    ("answers", "verbs"),
    [
        ([failure(429, "TooManyRequests", "busy", {"Retry-After": "1"})], "create create"),
        ([failure(409, "Conflict", "the quota has been modified")], "create create"),
        # Deleted between our two calls, after another replica had made it.
        (
            [EXISTS, failure(404, "NotFound", 'configmaps "asya-runtime" not found')],
            "create patch create",
        ),
    ],
    ids=["busy", "quota changed", "deleted meanwhile"],
)
async def test_what_passes_is_tried_again_within_the_time(
    namespaces: Namespaces, answers: list[Answer], verbs: str
) -> None:
    namespaces.api.fault = failing(*answers)
    await namespaces.publisher.ensure("models", within=20)
    assert namespaces.written() == {"created": 1}
    assert [call[0] for call in namespaces.api.calls] == verbs.split()


async def test_a_busy_api_server_is_asked_again_when_it_says(namespaces: Namespaces) -> None:
    busy = failure(429, "TooManyRequests", "busy", {"Retry-After": "30"})
    namespaces.api.fault = failing(*[busy] * 100)
    assert "did not answer in time" in await namespaces.rejection(within=0.5)
    assert len(namespaces.api.calls) == 1


async def test_the_answer_comes_within_the_time_whatever_the_api_server_does(
    namespaces: Namespaces,
) -> None:
    go = namespaces.held()
    began = time.monotonic()
    refusals = await asyncio.gather(*(namespaces.rejection(within=0.3) for _ in range(5)))
    assert time.monotonic() - began < 5
    go.set()
    assert set(refusals) == {
        f"ConfigMap models/{namespaces.name}: could not be created or checked: "
        '"the API server did not answer in time"; the next pod retries '
        "(RuntimeConfigMapUnavailable)"
    }


async def test_a_slow_namespace_does_not_hold_up_another(namespaces: Namespaces) -> None:
    go = namespaces.held("slow")
    slow = asyncio.create_task(namespaces.publisher.ensure("slow", within=20))
    await namespaces.publisher.ensure("models", within=20)
    assert not slow.done()
    go.set()
    await slow


async def test_an_api_server_that_is_gone_is_told(tmp_path: Path) -> None:
    gone = connected(write_kubeconfig(tmp_path, free_port()))
    payload = RuntimeFiles({"asya_runtime.py": "1", "asya_entrypoint.py": "2"})
    with pytest.raises(InjectionError, match=r"did not answer: .*RuntimeConfigMapUnavailable"):
        await RuntimeConfigMapWriter(payload, gone, Metrics()).ensure("models", within=10)


async def test_one_who_cannot_wait_as_long_takes_nothing_from_those_who_can(
    namespaces: Namespaces,
) -> None:
    go = namespaces.held()
    patient = asyncio.create_task(namespaces.publisher.ensure("models", within=20))
    while not namespaces.api.calls:
        await asyncio.sleep(0.01)
    assert "in time" in await namespaces.rejection(within=0.1)
    go.set()
    await patient
    assert namespaces.written() == {"created": 1}
