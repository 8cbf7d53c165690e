"""The injector as a process: start, readiness, reviews, metrics, shutdown."""

import base64
import contextlib
import copy
import http.client
import json
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from asya_injector import __version__
from asya_injector.runtime_files import RuntimeFiles
from jsonpatch import JsonPatch

from tests.injector.conftest import ROOT, run_script
from tests.support.api_server import (
    NAMESPACE,
    RIGHTS,
    SECRET,
    Answer,
    Api,
    api_server,
    failure,
    write_kubeconfig,
)
from tests.support.injector_process import (
    DEADLINE,
    Injector,
    build_review,
    read_bundle,
    until,
)
from tests.support.ports import free_port

Start = Callable[..., Injector]
HASH = RuntimeFiles.load(ROOT / "runtime").hash
POD: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {
        "generateName": "model-",
        "namespace": "models",
        "annotations": {"asya.sh/handler": "app.predict"},
    },
    "spec": {"containers": [{"name": "model", "image": "m", "command": ["python3", "app.py"]}]},
}


# The program, but it waits for the API server, and drains, for as long as the test asks for.
PATIENT = """
import signal
from asya_injector.cli.main import main
from asya_injector.webhook import image_volumes, runtime_configmap, server
image_volumes._API_TIMEOUT = runtime_configmap._API_TIMEOUT = (60, 120)
image_volumes._MAX_WAIT = 120.0
server._QUIET_SECONDS, server._MAX_DRAIN_SECONDS = 120.0, 240.0
signal.signal(signal.SIGUSR1, lambda *_: setattr(server, "_QUIET_SECONDS", 0.0))
main(["run"])
"""


class Caller:
    """A keep-alive connection that sends reviews."""

    def __init__(self, injector: Injector, bundle: bytes) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1")
        self._connection.sock = injector.connect(bundle)

    @property
    def is_open(self) -> bool:
        """Whether the last answer left the connection open."""
        return self._connection.sock is not None

    def send(self, body: dict[str, Any], **changes: Any) -> None:
        path, review = build_review(body, **changes)
        headers = {"Content-Type": "application/json"}
        self._connection.request("POST", path, json.dumps(review), headers)

    def receive(self) -> Any:
        answer = self._connection.getresponse()
        assert answer.status == 200
        return json.load(answer)["response"]

    def __call__(self, body: dict[str, Any], **changes: Any) -> Any:
        self.send(body, **changes)
        return self.receive()


def parse_samples(text: str) -> dict[str, float]:
    lines = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in lines}


def test_injects_a_pod_and_creates_the_runtime_configmap_in_its_namespace(
    start: Start, api: Api
) -> None:
    sidecar = {"container": {"name": "asya-sidecar", "image": "queue:1", "args": ["$(A)"]}}
    injector = start(INJECTOR_SIDECAR=json.dumps(sidecar))
    injector.wait_until_ready()
    caller = Caller(injector, read_bundle(api))
    answer = caller(POD)
    patch = JsonPatch(json.loads(base64.b64decode(answer["patch"])))
    pod = patch.apply(copy.deepcopy(POD))
    assert answer["allowed"]
    (added,) = pod["spec"]["initContainers"]
    assert sidecar["container"].items() <= added.items()
    assert added["restartPolicy"] == "Always"
    assert pod["spec"]["containers"][0]["command"][-3:] == ["--", "python3", "app.py"]
    assert ("configmaps", "models", f"asya-runtime-{HASH}") in api.objects
    # An injected pod is not changed again.
    assert caller(pod) == {"uid": "u-1", "allowed": True}

    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "d", "namespace": "models", "annotations": {"asya.sh/handlr": "a.b"}},
        "spec": {"template": {"spec": POD["spec"]}},
    }
    answer = caller(deployment)
    assert not answer["allowed"]
    assert answer["status"]["code"] == 422
    assert answer["status"]["message"].endswith("(AnnotationUnknown)")
    assert "Traceback" not in injector.text

    decisions = [line for line in injector.log if line["logger"] == "asya_injector.webhook.server"]
    assert [(line["message"], line["resource"]) for line in decisions] == [
        ("changed", "pods"),
        ("unchanged", "pods"),
        ("rejected", "deployments"),
    ]


@pytest.mark.parametrize("minor", ["36", "35"])
def test_with_an_image_pods_mount_it_and_the_injector_writes_no_configmap(
    minor: str, start: Start, api: Api
) -> None:
    api.version = ("1", minor)
    image = {"reference": "example.com/asya/injector:1@sha256:" + "a" * 64, "pullPolicy": "Always"}
    injector = start(
        program=("-c", PATIENT),
        INJECTOR_IMAGE=image["reference"],
        INJECTOR_RUNTIME_IMAGE=image["reference"],
        INJECTOR_RUNTIME_PULL_POLICY=image["pullPolicy"],
    )
    injector.wait_until_ready()
    caller = Caller(injector, read_bundle(api))
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "d", "namespace": "models", "annotations": {}},
        "spec": {"template": POD},
    }
    for item, is_dry_run in ((POD, False), (POD, True), (deployment, False)):
        answer = caller(item, dryRun=is_dry_run)
        assert answer["allowed"] == (minor == "36")
        if answer["allowed"]:
            patch = json.loads(base64.b64decode(answer.get("patch", "W10=")))
            admitted = JsonPatch(patch).apply(copy.deepcopy(item))
            if item is POD:
                assert admitted["spec"]["volumes"][0] == {"name": "asya-runtime", "image": image}
                assert admitted["metadata"]["labels"] == {"asya.sh/runtime-hash": HASH}
        else:
            assert answer["status"]["message"].endswith("(KubernetesUnsupported)")
    assert "configmaps" not in {resource for _, resource, _, _ in api.calls}
    assert "Traceback" not in injector.text


def test_a_review_is_answered_with_warnings(start: Start, api: Api) -> None:
    injector = start()
    injector.wait_until_ready()
    caller = Caller(injector, read_bundle(api))
    pod = copy.deepcopy(POD)
    pod["spec"]["containers"][0]["readinessProbe"] = {"tcpSocket": {"port": 80}}
    readiness = (
        'container "model" keeps its own readiness probe, so the pod may become ready before '
        "the actor"
    )
    assert caller(pod)["warnings"] == [readiness]
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "d", "namespace": "models", "annotations": {"asya.sh/handler": "a.b"}},
        "spec": {"template": pod},
    }
    assert caller(deployment)["warnings"] == [
        'asya.sh/handler: the pod template sets "app.predict", which overrides "a.b"',
        readiness,
    ]


def test_an_internal_error_rejects_the_pod_and_its_traceback_is_only_in_the_log(
    start: Start, api: Api
) -> None:
    injector = start()
    injector.wait_until_ready()

    def answer_with_a_list(_: str, resource: str, *__: str) -> None:
        if resource == "configmaps":
            raise Answer(200, b"[]")

    api.fault = answer_with_a_list
    answer = Caller(injector, read_bundle(api))(POD)
    assert answer == {
        "uid": "u-1",
        "allowed": False,
        "status": {
            "code": 500,
            "message": "the injector failed on this object; search its log for uid u-1 "
            "(InternalError)",
        },
    }
    errors = [line for line in injector.log if line["level"] == "ERROR"]
    assert [(line["logger"], line["uid"]) for line in errors] == [
        ("asya_injector.webhook.admission", "u-1")
    ]
    assert "in _create_or_check" in errors[0]["exception"]


def test_a_dry_run_creates_nothing(start: Start, api: Api) -> None:
    injector = start()
    injector.wait_until_ready()
    assert "patch" in Caller(injector, read_bundle(api))(POD, dryRun=True)
    assert not any(resource == "configmaps" for resource, _, _ in api.objects)
    assert api.called("create", "configmaps") == 0


def test_a_users_text_cannot_forge_a_log_line(start: Start, api: Api) -> None:
    injector = start()
    injector.wait_until_ready()
    pod = copy.deepcopy(POD)
    forged = 'x"}\n{"level": "INFO", "message": "changed"}\r\n\x1b[2J\u2028'
    pod["metadata"] |= {"name": forged, "annotations": {"asya.sh/handler": forged}}
    answer = Caller(injector, read_bundle(api))(pod, uid=forged)
    assert not answer["allowed"]
    assert answer["status"]["message"].isprintable()
    (line,) = (line for line in injector.log if line["logger"] == "asya_injector.webhook.server")
    assert (line["uid"], line["object"]) == (forged, forged)
    assert injector.text.isascii()
    assert "\x1b" not in injector.text


def test_logs_nothing_below_the_level(start: Start, api: Api) -> None:
    injector = start(INJECTOR_LOG_LEVEL="warning")
    injector.wait_until_ready()
    assert Caller(injector, read_bundle(api))(POD)["allowed"]
    assert injector.stop() == 0
    assert injector.text == ""


def test_exposes_exactly_the_documented_metrics(start: Start, api: Api) -> None:
    injector = start()
    injector.wait_until_ready()
    caller = Caller(injector, read_bundle(api))
    caller(POD)
    caller(POD)
    caller(POD | {"metadata": POD["metadata"] | {"annotations": {"asya.sh/handler": "x"}}})
    caller(POD, resource={"group": "", "version": "v1", "resource": "nodes"})
    found = parse_samples(injector.get("/metrics")[1])
    prefix = "asya_injector_"
    expiry = found[f"{prefix}certificate_expiry_timestamp_seconds"]
    assert expiry == pytest.approx(time.time() + 90 * 86400, abs=3600)
    own = {
        name.removeprefix(prefix): value for name, value in found.items() if "_created" not in name
    }
    assert (
        own.items()
        >= {
            'admissions_total{reason="",resource="pods",result="changed"}': 2,
            'admissions_total{reason="AnnotationInvalid",resource="pods",result="rejected"}': 1,
            "admission_duration_seconds_count": 3,
            'bad_requests_total{code="404"}': 1,
            'runtime_configmap_writes_total{result="created"}': 1,
            f'build_info{{runtime_hash="{HASH}",version="{__version__}"}}': 1,
        }.items()
    )
    names = {re.split(r"[{]", name)[0] for name in found}
    names = {re.sub(r"_(bucket|count|sum)$", "", name) for name in names if "_created" not in name}
    text = (ROOT / "docs" / "operations.md").read_text()
    documented = re.findall(r"^\| `(asya_injector_\w+)` \| (.*?) \|", text, re.MULTILINE)
    assert names == {name for name, _ in documented}
    for name, labels in documented:
        used = {
            label
            for sample in found
            if sample.startswith(name)
            for label in re.findall(r'(\w+)="', sample)
        }
        assert used - {"le"} == set(re.findall(r"`(\w+)`", labels)), name


def test_readiness_waits_for_an_unreachable_api_server_and_logs_each_problem_once(
    start: Start, api: Api, tmp_path: Path
) -> None:
    port = free_port()
    directory = tmp_path / "directory"
    directory.mkdir()
    injector = start(kubeconfig=write_kubeconfig(directory, port))
    until("a reason", lambda: "did not answer" in injector.get("/readyz")[1])
    assert injector.get("/readyz")[0] == 503
    with api_server(directory, port=port) as started:
        started.install()
        injector.wait_until_ready()
        assert Caller(injector, read_bundle(started))(POD)["allowed"]
    messages = [line["message"] for line in injector.log if line["level"] != "INFO"]
    assert sorted(set(messages)) == sorted(messages)


def test_waits_for_an_unhealthy_api_server(start: Start, api: Api) -> None:
    def fail(*_: str) -> None:
        raise failure(503, "ServiceUnavailable", "etcd is not up")

    api.fault = fail
    injector = start()
    until("a reason", lambda: injector.get("/readyz") == (503, "etcd is not up\n"))

    def find_waiting() -> list[str]:
        return [line["logger"] for line in injector.log if line.get("error") == "etcd is not up"]

    until("both lines", lambda: len(find_waiting()) == 2)
    assert sorted(find_waiting()) == ["asya_injector.tls.watcher", "asya_injector.webhook.app"]
    api.fault = lambda *_: None
    injector.wait_until_ready()


def test_stops_while_the_api_server_is_unreachable(start: Start, tmp_path: Path) -> None:
    injector = start(kubeconfig=write_kubeconfig(tmp_path, free_port()))
    until("the plain port", lambda: injector.get("/livez")[0])
    assert injector.stop() == 0


def end_quiet_period(injector: Injector) -> None:
    injector.process.send_signal(signal.SIGUSR1)


def test_on_sigterm_answers_pending_reviews_and_exits_with_0(start: Start, api: Api) -> None:
    injector = start(program=("-c", PATIENT))
    injector.wait_until_ready()
    arrived, go = threading.Event(), threading.Event()

    def slow(verb: str, resource: str, *_: str) -> None:
        if resource == "configmaps":
            arrived.set()
            go.wait(DEADLINE)

    api.fault = slow
    caller, idle = Caller(injector, read_bundle(api)), Caller(injector, read_bundle(api))
    caller.send(POD)
    assert arrived.wait(DEADLINE)
    injector.process.send_signal(signal.SIGTERM)
    until("readiness to end", lambda: injector.get("/readyz") == (503, "stopping\n"))
    injector.process.send_signal(signal.SIGTERM)  # a second signal changes nothing
    end_quiet_period(injector)
    go.set()
    assert "patch" in caller.receive()
    assert injector.process.wait(DEADLINE) == 0
    with pytest.raises((OSError, http.client.HTTPException)):
        idle(POD)
    assert injector.log[-1]["message"] == "stopped"
    assert all(line["level"] == "INFO" for line in injector.log)


def test_while_draining_closes_each_connection_after_an_answer(start: Start, api: Api) -> None:
    injector = start(program=("-c", PATIENT))
    injector.wait_until_ready()
    used, idle = Caller(injector, read_bundle(api)), Caller(injector, read_bundle(api))
    assert used(POD)["allowed"]
    assert used.is_open
    injector.process.send_signal(signal.SIGTERM)
    until("readiness to end", lambda: injector.get("/readyz") == (503, "stopping\n"))
    for caller in (used, idle, Caller(injector, read_bundle(api))):
        assert caller(POD)["allowed"]
        assert not caller.is_open
    end_quiet_period(injector)
    assert injector.process.wait(DEADLINE) == 0


@pytest.mark.parametrize(
    ("environ", "line"),
    [
        ({"INJECTOR_NAMESPACE": ""}, "INJECTOR_NAMESPACE is not set; the chart sets it"),
        (
            {"INJECTOR_TLS_MODE": "vault"},
            "INJECTOR_TLS_MODE: 'vault' is not valid; must be self or files",
        ),
        (
            {"INJECTOR_DEFAULTS": '{"chunk": "1"}'},
            "INJECTOR_DEFAULTS: unknown annotation 'chunk'",
        ),
        (
            {"INJECTOR_DEFAULTS": '{"chunk-size": "4k"}'},
            'INJECTOR_DEFAULTS: asya.sh/chunk-size: "4k" is not valid; must be a whole number from '
            "1 to 16777216 (AnnotationInvalid)",
        ),
        (
            {"KUBECONFIG": "/nowhere"},
            "cannot connect to the API server: Invalid kube-config file. No configuration found; "
            "in a pod, the token of its service account must be mounted",
        ),
        (
            {"INJECTOR_RUNTIME_DIRECTORY": "/nowhere"},
            "cannot start: [Errno 2] No such file or directory: '/nowhere/asya_runtime.py'",
        ),
    ],
)
def test_an_invalid_setting_prints_one_line_and_exits_with_78(
    start: Start, environ: dict[str, str], line: str
) -> None:
    injector = start(**environ)
    assert injector.process.wait(DEADLINE) == 78
    assert injector.text == f"asya-injector: {line}\n"


def test_a_port_in_use_prints_one_line_and_exits_with_78(start: Start) -> None:
    first = start()
    first.wait_until_ready()
    for name, port in (
        ("INJECTOR_HTTP_PORT", first.http_port),
        ("INJECTOR_WEBHOOK_PORT", first.webhook_port),
    ):
        second = start(**{name: str(port)})
        assert second.process.wait(DEADLINE) == 78
        assert re.fullmatch(
            r"asya-injector: cannot start: .*[ :][0-9]+.*: [Aa]ddress already in use.*",
            second.text.splitlines()[-1],
        )
        assert [line["message"] for line in map(json.loads, second.text.splitlines()[:-1])] == [
            "starting"
        ]


def test_rejects_a_pod_whose_runtime_configmap_cannot_be_created(start: Start, api: Api) -> None:
    injector = start()
    injector.wait_until_ready()

    def forbid(verb: str, resource: str, *_: str) -> None:
        if (verb, resource) == ("create", "configmaps"):
            raise failure(403, "Forbidden", "exceeded quota: secret-name, count/configmaps=1")

    api.fault = forbid
    answer = Caller(injector, read_bundle(api))(POD)
    assert not answer["allowed"]
    assert answer["status"]["message"].endswith("(RuntimeConfigMapUnavailable)")
    # Anybody can ask for any namespace, so the API server's answer is only in the log.
    assert "secret-name" not in json.dumps(answer)
    (line,) = (line for line in injector.log if line["level"] == "WARNING")
    assert (line["namespace"], line["status"]) == ("models", 403)
    assert "exceeded quota: secret-name" in line["error"]


def test_uses_only_the_rights_that_the_chart_grants(start: Start, api: Api) -> None:
    injector = start()
    injector.wait_until_ready()
    Caller(injector, read_bundle(api))(POD)
    assert {(resource, verb) for verb, resource, _, _ in api.calls} <= set(RIGHTS)
    assert not [line for line in injector.log if line["level"] != "INFO"]
    assert {name for verb, resource, _, name in api.calls if resource == "secrets"} == {SECRET}
    assert NAMESPACE in {namespace for _, _, namespace, _ in api.calls}


def make_request(body: bytes, *, timeout: str = "5s", length: int = 0) -> bytes:
    head = f"POST /pods?timeout={timeout} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {length or len(body)}\r\n\r\n".encode() + body


def test_works_only_for_callers_that_wait(start: Start, api: Api) -> None:
    """400 callers ask for a namespace that does not exist, and close their connections."""
    injector = start()
    injector.wait_until_ready()

    def fault(_: str, resource: str, namespace: str, __: str) -> None:
        if resource == "configmaps" and namespace != "models":
            time.sleep(0.01)
            raise failure(404, "NotFound", f'namespaces "{namespace}" not found')

    api.fault = fault
    bundle = read_bundle(api)
    for number in range(400):
        _, body = build_review(POD, namespace=f"configmaps-{number}")
        hostile = injector.connect(bundle)
        hostile.sendall(make_request(json.dumps(body).encode(), timeout="999999999s"))
        hostile.close()
    assert Caller(injector, bundle)(POD)["allowed"]

    def count_calls() -> int:
        return sum(call[1] == "configmaps" for call in list(api.calls))

    def is_quiet() -> bool:
        before = count_calls()
        time.sleep(0.5)
        return count_calls() == before

    until("the calls to end", is_quiet)
    assert count_calls() <= 2 * 401
    assert injector.get("/readyz") == (200, "ok\n")


def test_silent_connections_are_few_and_take_little_memory(start: Start, api: Api) -> None:
    injector = start()
    injector.wait_until_ready()
    bundle = read_bundle(api)
    process = Path(f"/proc/{injector.process.pid}")

    def read_memory() -> int:
        return int(re.findall(r"VmRSS:\s+(\d+) kB", (process / "status").read_text())[0])

    before = read_memory()
    for _ in range(700):
        injector.connect(bundle)
    assert Caller(injector, bundle)(POD)["allowed"]
    assert read_memory() - before < 60 << 10
    assert len(list((process / "fd").iterdir())) < 560


def test_hostile_callers_cannot_use_more_memory_than_the_charts_limit(
    start: Start, api: Api
) -> None:
    injector = start()
    injector.wait_until_ready()
    bundle = read_bundle(api)
    largest = 8 << 20
    uid = b'{"request":{"uid":"u","x":'
    dense = [
        uid + b"[" + b"{}," * (largest // 3 - 20) + b"{}]}}",
        uid + b"[" + b'{"":0},' * 190_000 + b"{}]}}",
        uid + b"[" + b",".join(b'"%05x"' % number for number in range(590_000)) + b"]}}",
        uid
        + b"["
        + b",".join(b'{"%05x":"%06x"}' % (each, each) for each in range(190_000))
        + b"]}}",
        uid + b'"' + "\U0001f600".encode() * (largest // 4 - 20) + b'"}}',
    ]
    for body in dense:
        caller = injector.connect(bundle)
        caller.sendall(make_request(body))
        assert caller.recv(20).startswith(b"HTTP/1.1 ")
    for _ in range(24):
        unfinished = injector.connect(bundle)
        with contextlib.suppress(OSError):  # it is closed
            unfinished.sendall(make_request(b" " * (largest - 1), length=largest))
    assert Caller(injector, bundle)(POD)["allowed"]
    status = Path(f"/proc/{injector.process.pid}/status").read_text()
    peak = int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0])
    values = yaml.safe_load((ROOT / "chart" / "values.yaml").read_text())
    limit = values["injector"]["resources"]["limits"]["memory"]
    assert peak < int(limit.removesuffix("Mi")) * 1024


def test_does_not_load_the_typed_calls_of_the_kubernetes_client() -> None:
    """They load all models, which would be a fifth of the injector's memory."""
    script = (
        "import sys; import asya_injector.webhook.app\n"
        "print([name for name in sys.modules if name.startswith('kubernetes.client.api.')])"
    )
    process = run_script(script)
    assert process.stdout == "[]\n"
