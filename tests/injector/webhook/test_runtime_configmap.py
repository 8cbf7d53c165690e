"""The runtime ConfigMap, named by its content, and how the webhook ensures it in a namespace."""

import asyncio
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from asya_injector.errors import InjectionError
from asya_injector.kube_client import ApiClient
from asya_injector.runtime_files import RuntimeFiles
from asya_injector.webhook import runtime_configmap
from asya_injector.webhook.runtime_configmap import RuntimeConfigMapWriter
from asya_injector.webhook.telemetry import Metrics

from tests.injector.conftest import connect_with
from tests.support.api_server import Answer, Api, failure, write_kubeconfig
from tests.support.ports import free_port

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

    def put(self, **changes: Any) -> None:
        """Store the ConfigMap with other fields; None removes one, metadata is merged."""
        item = self.files.config_map()
        changes["metadata"] = item["metadata"] | changes.get("metadata", {})
        item = {key: value for key, value in (item | changes).items() if value is not None}
        self.api.put("configmaps", "models", item)

    def hold(self, namespace: str = "") -> threading.Event:
        """Answer no call (of one namespace, or of all) until the event is set."""
        release = threading.Event()

        def fault(_: str, __: str, called: str, ___: str) -> None:
            if namespace in ("", called):
                release.wait(60)

        self.api.fault = fault
        return release


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls wait for a stand-in that a busy machine delays."""
    monkeypatch.setattr(runtime_configmap, "_API_TIMEOUT", (30, 60))


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
    await asyncio.gather(*(namespaces.writer.ensure("models", within=60) for _ in range(50)))
    assert namespaces.api.calls == [
        ("patch", "configmaps", "models", namespaces.name),
        ("create", "configmaps", "models", ""),
    ]
    assert namespaces.count_writes() == {"created": 1}
    stored = namespaces.api.objects["configmaps", "models", namespaces.name]
    assert (stored["immutable"], stored["data"]) == (True, dict(namespaces.files.files))


async def test_replicas_that_race_both_succeed(namespaces: Namespaces) -> None:
    both_looked = threading.Barrier(2)

    def fault(verb: str, *_: str) -> None:
        if verb == "create":
            both_looked.wait(60)

    namespaces.api.fault = fault
    other = namespaces.replica()
    await asyncio.gather(
        namespaces.writer.ensure("models", within=60), other.ensure("models", within=60)
    )
    assert namespaces.count_writes() == {"created": 1, "present": 1}
    assert namespaces.api.called("create", "configmaps") == 2
    assert namespaces.api.called("patch", "configmaps") == 3


async def test_a_success_is_cached_for_a_second_because_a_namespace_may_be_created_again(
    namespaces: Namespaces,
) -> None:
    await namespaces.writer.ensure("models", within=60)
    del namespaces.api.objects["configmaps", "models", namespaces.name]
    calls = len(namespaces.api.calls)
    namespaces.now += 0.9
    await namespaces.writer.ensure("models", within=60)
    assert len(namespaces.api.calls) == calls
    namespaces.now += 0.2
    await namespaces.writer.ensure("models", within=60)
    assert ("configmaps", "models", namespaces.name) in namespaces.api.objects


async def test_the_cache_is_emptied(namespaces: Namespaces) -> None:
    for number in range(50):
        namespaces.now += 0.2
        await namespaces.writer.ensure(f"ns-{number}", within=60)
    assert len(namespaces.writer._cached) <= 6
    assert namespaces.writer._checks == {}


# --- A ConfigMap of this name exists


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (403, "exceeded quota: few, requested: count/configmaps=1, used: 2, limited: 2"),
        (403, 'cannot create resource "configmaps"'),
        (422, "ValidatingAdmissionPolicy 'x' denied request"),
    ],
)
async def test_needs_no_right_to_create_if_it_exists(
    namespaces: Namespaces, code: int, message: str
) -> None:
    def fault(verb: str, *_: str) -> None:
        if verb == "create":
            raise failure(code, "Forbidden", message)

    namespaces.put()
    namespaces.api.fault = fault
    await namespaces.writer.ensure("models", within=60)
    assert namespaces.count_writes() == {"present": 1}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"metadata": {"labels": {"asya.sh/source": "manifest"}, "annotations": {"a": "b"}}},
        {"metadata": {"ownerReferences": [{"kind": "Deployment"}]}},
        {"binaryData": {}},
        {"binaryData": None},
    ],
)
async def test_accepts_the_same_files_with_other_metadata(
    namespaces: Namespaces, changes: dict[str, Any]
) -> None:
    namespaces.put(**changes)
    await namespaces.writer.ensure("models", within=60)
    assert namespaces.count_writes() == {"present": 1}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"data": {"x": "1"}}, "exists with different content, which pods would run"),
        ({"data": None}, "exists with different content, which pods would run"),
        (
            {"data": {"asya_runtime.py": "1", "asya_entrypoint.py": "2", "json.py": ""}},
            "exists with different content, which pods would run",
        ),
        ({"binaryData": {"json.py": ""}}, "exists with binaryData, which pods would import"),
        ({"immutable": None}, "exists and is not immutable, so it could be changed"),
        ({"immutable": False}, "exists and is not immutable, so it could be changed"),
        ({"immutable": "true"}, "exists and is not immutable, so it could be changed"),
    ],
)
async def test_rejects_a_configmap_that_is_not_exactly_ours_and_says_how_to_fix_it(
    namespaces: Namespaces, changes: dict[str, Any], problem: str
) -> None:
    namespaces.put(**changes)
    assert await namespaces.rejection() == (
        f"ConfigMap models/{namespaces.name}: {problem}; "
        f"delete it: kubectl delete configmap -n models {namespaces.name} "
        "(RuntimeConfigMapConflict)"
    )
    # A failure is not cached: once it is deleted, the next pod is admitted.
    del namespaces.api.objects["configmaps", "models", namespaces.name]
    await namespaces.writer.ensure("models", within=60)
    assert namespaces.count_writes() == {"RuntimeConfigMapConflict": 1, "created": 1}


async def test_rejects_a_configmap_that_is_being_deleted(namespaces: Namespaces) -> None:
    namespaces.put(metadata={"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["a/b"]})
    assert await namespaces.rejection() == (
        f"ConfigMap models/{namespaces.name}: could not be created or checked: it is being "
        "deleted; the next pod retries (RuntimeConfigMapUnavailable)"
    )


@pytest.mark.parametrize(("code", "reason"), [(403, "Forbidden"), (422, "Invalid"), (400, "")])
@pytest.mark.parametrize("exists", [True, False])
async def test_creates_it_if_checking_is_denied_and_rejects_one_that_exists(
    namespaces: Namespaces, code: int, reason: str, exists: bool
) -> None:
    """The chart's policy denies a patch of an object without the injector's label."""

    def fault(verb: str, *_: str) -> None:
        if verb == "patch":
            raise failure(code, reason, "denied")

    namespaces.api.fault = fault
    if not exists:
        await namespaces.writer.ensure("models", within=60)
        assert namespaces.count_writes() == {"created": 1}
        return
    namespaces.put()
    assert await namespaces.rejection() == (
        f"ConfigMap models/{namespaces.name}: exists, but may not be checked: it lacks the "
        "injector's label or is not immutable; delete it: kubectl delete configmap -n models "
        f"{namespaces.name} (RuntimeConfigMapConflict)"
    )
    assert [verb for verb, *_ in namespaces.api.calls] == ["patch", "create"]


# --- The API server fails

DENIED = (
    "the API server rejected it; check the namespace's quotas and policies for ConfigMaps and the "
    "injector's permissions; the injector's log has the API server's answer"
)
FAILED = (
    "the API server failed or did not answer; the next pod retries; the injector's log has details"
)
FAILURES = [
    (403, "Forbidden", "exceeded quota: compute, requested: count/configmaps=1", DENIED),
    (403, "Forbidden", 'cannot create resource "configmaps"', DENIED),
    (403, "Forbidden", "because it is being terminated", DENIED),
    (403, "Forbidden", "evil\n\x1b[2Jtext", DENIED),
    (422, "Invalid", "ValidatingAdmissionPolicy 'x' denied request", DENIED),
    (404, "NotFound", 'namespaces "models" not found', DENIED),
    (404, "NotFound", 'namespaces "configmaps-1" not found', DENIED),
    (500, "InternalError", "etcdserver: leader changed", FAILED),
    (503, "ServiceUnavailable", "etcd is not up", FAILED),
]


@pytest.mark.parametrize(("code", "reason", "message", "text"), FAILURES)
async def test_a_failure_rejects_all_waiting_pods_and_its_cause_is_only_logged(
    namespaces: Namespaces,
    caplog: pytest.LogCaptureFixture,
    code: int,
    reason: str,
    message: str,
    text: str,
) -> None:
    namespaces.api.fault = fail_first(None, failure(code, reason, message))
    rejections = await asyncio.gather(*(namespaces.rejection() for _ in range(10)))
    assert set(rejections) == {
        f"ConfigMap models/{namespaces.name}: could not be created or checked: {text} "
        "(RuntimeConfigMapUnavailable)"
    }
    assert [verb for verb, *_ in namespaces.api.calls] == ["patch", "create"]
    (record,) = caplog.records
    assert vars(record).items() >= {"namespace": "models", "status": code, "error": message}.items()
    await namespaces.writer.ensure("models", within=60)  # a failure is not cached


@pytest.mark.parametrize(("code", "reason"), [(500, "InternalError"), (503, "ServiceUnavailable")])
async def test_creates_nothing_if_the_check_fails(
    namespaces: Namespaces, code: int, reason: str
) -> None:
    namespaces.api.fault = fail_first(failure(code, reason, "no leader"))
    assert FAILED in await namespaces.rejection()
    assert namespaces.api.called("create", "configmaps") == 0


async def test_rejects_a_pod_if_the_answer_is_not_from_an_api_server(
    namespaces: Namespaces, caplog: pytest.LogCaptureFixture
) -> None:
    namespaces.api.fault = fail_first(Answer(200, b"<html>Sign in</html>"))
    assert FAILED in await namespaces.rejection()
    (record,) = caplog.records
    assert vars(record)["error"] == "200 OK, but the body is not JSON"


EXISTS = failure(409, "AlreadyExists", "it exists")
NOT_FOUND = failure(404, "NotFound", 'configmaps "asya-runtime" not found')


@pytest.mark.parametrize(
    ("answers", "verbs"),
    [
        ([failure(429, "TooManyRequests", "busy", {"Retry-After": "1"})], "patch patch create"),
        ([None, failure(429, "TooManyRequests", "busy")], "patch create patch create"),
        (
            [None, failure(409, "Conflict", "the quota has been modified")],
            "patch create patch create",
        ),
        # Created between the first two calls, and deleted again.
        ([None, EXISTS, NOT_FOUND], "patch create patch create"),
    ],
    ids=["busy", "busy at creation", "conflict", "deleted"],
)
async def test_retries_transient_failures(
    namespaces: Namespaces, answers: list[Answer | None], verbs: str
) -> None:
    namespaces.api.fault = fail_first(*answers)
    await namespaces.writer.ensure("models", within=60)
    assert namespaces.count_writes() == {"created": 1}
    assert [call[0] for call in namespaces.api.calls] == verbs.split()


async def test_gives_up_after_losing_several_races(namespaces: Namespaces) -> None:
    namespaces.api.fault = fail_first(*[NOT_FOUND, EXISTS] * 100)
    assert "other clients keep creating and deleting it" in await namespaces.rejection()
    assert len(namespaces.api.calls) <= 10


async def test_waits_as_long_as_a_busy_api_server_asks_for(namespaces: Namespaces) -> None:
    busy = failure(429, "TooManyRequests", "busy", {"Retry-After": "300"})
    namespaces.api.fault = fail_first(*[busy] * 100)
    caller = asyncio.create_task(namespaces.writer.ensure("models", within=600))
    while not namespaces.api.calls:
        await asyncio.sleep(0.01)
    await asyncio.wait([caller], timeout=0.5)
    assert not caller.done()
    assert len(namespaces.api.calls) == 1
    caller.cancel()
    await asyncio.wait([caller])


async def test_rejects_in_time_while_the_api_server_does_not_answer(
    namespaces: Namespaces,
) -> None:
    release = namespaces.hold()
    began = time.monotonic()
    rejections = await asyncio.gather(*(namespaces.rejection(within=0.3) for _ in range(5)))
    assert time.monotonic() - began < 30  # the API server answers after 60 s
    release.set()
    assert set(rejections) == {
        f"ConfigMap models/{namespaces.name}: could not be created or checked: "
        "the API server did not answer in time; the next pod retries "
        "(RuntimeConfigMapUnavailable)"
    }


async def test_rejects_a_pod_while_the_api_server_is_unreachable(tmp_path: Path) -> None:
    unreachable = connect_with(write_kubeconfig(tmp_path, free_port()))
    files = RuntimeFiles({"asya_runtime.py": "1", "asya_entrypoint.py": "2"})
    with pytest.raises(InjectionError, match=r"did not answer.*RuntimeConfigMapUnavailable"):
        await RuntimeConfigMapWriter(files, unreachable, Metrics()).ensure("models", within=10)


# --- Callers share it


async def test_a_slow_namespace_does_not_delay_another(namespaces: Namespaces) -> None:
    release = namespaces.hold("slow")
    slow = asyncio.create_task(namespaces.writer.ensure("slow", within=60))
    await namespaces.writer.ensure("models", within=60)
    assert not slow.done()
    release.set()
    await slow


@pytest.mark.parametrize("first", [True, False], ids=["first", "second"])
async def test_a_short_deadline_does_not_end_a_shared_check(
    namespaces: Namespaces, first: bool
) -> None:
    release = namespaces.hold()
    hasty = asyncio.create_task(namespaces.rejection(within=0.1)) if first else None
    await asyncio.sleep(0)
    patient = asyncio.create_task(namespaces.writer.ensure("models", within=60))
    while not namespaces.api.calls:
        await asyncio.sleep(0.01)
    assert "in time" in await (hasty or namespaces.rejection(within=0.1))
    release.set()
    await patient
    assert namespaces.count_writes() == {"created": 1}


async def test_a_check_ends_with_the_last_caller_that_waits_for_it(namespaces: Namespaces) -> None:
    busy = failure(429, "TooManyRequests", "busy", {"Retry-After": "1"})
    namespaces.api.fault = fail_first(*[busy] * 100)
    callers = [asyncio.create_task(namespaces.writer.ensure("models", within=60)) for _ in range(5)]
    while not namespaces.api.calls:
        await asyncio.sleep(0.01)
    for caller in callers:
        caller.cancel()
    await asyncio.wait(callers)
    assert namespaces.writer._checks == {}
    await asyncio.sleep(1.5)
    assert len(namespaces.api.calls) == 1
    # The next caller gets its own check.
    namespaces.api.fault = lambda *_: None
    await namespaces.writer.ensure("models", within=60)


async def test_a_slow_api_server_does_not_take_the_threads_of_the_certificates_renewal(
    namespaces: Namespaces,
) -> None:
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    release = namespaces.hold()
    callers = [
        asyncio.create_task(namespaces.writer.ensure(f"ns-{number}", within=60))
        for number in range(8)
    ]
    while not namespaces.api.calls:
        await asyncio.sleep(0.01)
    try:
        async with asyncio.timeout(30):
            await asyncio.to_thread(time.sleep, 0)
    finally:
        release.set()
    await asyncio.gather(*callers)


async def test_callers_of_unknown_namespaces_do_not_delay_those_of_another_address(
    namespaces: Namespaces,
) -> None:
    """One address asks for 400 namespaces and closes its connections."""
    running, most = 0, 0

    def fault(_: str, __: str, namespace: str, ___: str) -> None:
        nonlocal running, most
        if namespace != "models":
            with namespaces.api.lock:
                running += 1
                most = max(most, running)
            time.sleep(0.05)
            with namespaces.api.lock:
                running -= 1
            raise failure(404, "NotFound", f'namespaces "{namespace}" not found')

    namespaces.api.fault = fault
    hostile = [
        asyncio.create_task(
            namespaces.writer.ensure(f"configmaps-{number}", within=1e9, caller="10.0.0.1")
        )
        for number in range(400)
    ]
    while not namespaces.api.calls:
        await asyncio.sleep(0.01)
    asked = len(namespaces.api.calls)
    await namespaces.writer.ensure("models", within=60, caller="10.0.0.2")
    called = [namespace for _, _, namespace, _ in namespaces.api.calls]
    assert called.index("models") <= asked + 8  # those that were running, and one each in rotation
    for caller in hostile:
        caller.cancel()
    await asyncio.wait(hostile)
    calls = len(namespaces.api.calls)
    await asyncio.sleep(0.5)
    assert len(namespaces.api.calls) <= calls + 8  # those that were running
    assert most <= 4
    assert namespaces.writer._checks == {}
