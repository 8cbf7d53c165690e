"""The whole injector as a process: start, readiness, reviews, metrics, end."""

import base64
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
from tests.support.injector_process import Injector, build_review, bundle, free_port, until

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


class Caller:
    """A kept connection that sends reviews."""

    def __init__(self, injector: Injector, trusted: bytes) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1")
        self._connection.sock = injector.connect(trusted)

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


def samples(text: str) -> dict[str, float]:
    lines = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in lines}


def test_a_pod_becomes_an_actor_and_its_namespace_gets_the_runtime(start: Start, api: Api) -> None:
    injector = start()
    injector.wait_until_ready()
    caller = Caller(injector, bundle(api))
    answer = caller(POD)
    patch = JsonPatch(json.loads(base64.b64decode(answer["patch"])))
    pod = patch.apply(copy.deepcopy(POD))
    assert answer["allowed"]
    assert pod["spec"]["containers"][0]["command"][-3:] == ["--", "python3", "app.py"]
    assert ("configmaps", "models", f"asya-runtime-{HASH}") in api.objects
    # What it made is changed no more.
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


def test_warnings_reach_who_applies(start: Start, api: Api) -> None:
    injector = start()
    injector.wait_until_ready()
    caller = Caller(injector, bundle(api))
    pod = copy.deepcopy(POD)
    pod["spec"]["containers"][0]["readinessProbe"] = {"tcpSocket": {"port": 80}}
    late = (
        'container "model" keeps its own readiness probe, so the pod may become ready before '
        "the actor"
    )
    assert caller(pod)["warnings"] == [late]
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "d", "namespace": "models", "annotations": {"asya.sh/handler": "a.b"}},
        "spec": {"template": pod},
    }
    assert caller(deployment)["warnings"] == [
        'asya.sh/handler: the pod template sets "app.predict", which overrides "a.b"',
        late,
    ]


def test_what_nobody_foresaw_is_refused_and_its_traceback_is_in_the_log_alone(
    start: Start, api: Api
) -> None:
    injector = start()
    injector.wait_until_ready()

    def odd(verb: str, resource: str, *_: str) -> None:
        if resource == "configmaps":
            raise failure(409, "AlreadyExists", "") if verb == "create" else Answer(200, b"[]")

    api.fault = odd
    answer = Caller(injector, bundle(api))(POD)
    assert answer == {
        "uid": "u-1",
        "allowed": False,
        "status": {
            "code": 500,
            "message": "the injector failed on this object; search its log for uid u-1 "
            "(InternalError)",
        },
    }
    faults = [line for line in injector.log if line["level"] == "ERROR"]
    assert [(line["logger"], line["uid"]) for line in faults] == [
        ("asya_injector.webhook.admission", "u-1")
    ]
    assert "in _create_or_check" in faults[0]["exception"]


def test_a_dry_run_leaves_no_trace(start: Start, api: Api) -> None:
    injector = start()
    injector.wait_until_ready()
    assert "patch" in Caller(injector, bundle(api))(POD, dryRun=True)
    assert not any(resource == "configmaps" for resource, _, _ in api.objects)
    assert api.called("create", "configmaps") == 0


def test_text_of_a_user_forges_no_log_line(start: Start, api: Api) -> None:
    injector = start()
    injector.wait_until_ready()
    pod = copy.deepcopy(POD)
    forged = 'x"}\n{"level": "INFO", "message": "changed"}\r\n\x1b[2J\u2028'
    pod["metadata"] |= {"name": forged, "annotations": {"asya.sh/handler": forged}}
    answer = Caller(injector, bundle(api))(pod, uid=forged)
    assert not answer["allowed"]
    assert answer["status"]["message"].isprintable()
    (line,) = (line for line in injector.log if line["logger"] == "asya_injector.webhook.server")
    assert (line["uid"], line["object"]) == (forged, forged)
    assert injector.text.isascii()
    assert "\x1b" not in injector.text


def test_nothing_below_the_level_is_logged(start: Start, api: Api) -> None:
    injector = start(INJECTOR_LOG_LEVEL="warning")
    injector.wait_until_ready()
    assert Caller(injector, bundle(api))(POD)["allowed"]
    assert injector.stop() == 0
    assert injector.text == ""


def test_metrics_are_those_of_the_documentation(start: Start, api: Api) -> None:
    injector = start()
    injector.wait_until_ready()
    caller = Caller(injector, bundle(api))
    caller(POD)
    caller(POD)
    caller(POD | {"metadata": POD["metadata"] | {"annotations": {"asya.sh/handler": "x"}}})
    caller(POD, resource={"group": "", "version": "v1", "resource": "nodes"})
    found = samples(injector.get("/metrics")[1])
    prefix = "asya_injector_"
    expiry = found[f"{prefix}certificate_expiry_timestamp_seconds"]
    assert expiry == pytest.approx(time.time() + 90 * 86400, abs=3600)
    ours = {
        name.removeprefix(prefix): value for name, value in found.items() if "_created" not in name
    }
    assert (
        ours.items()
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


def test_readiness_waits_for_an_api_server_that_does_not_answer_and_the_log_says_so_once(
    start: Start, api: Api, tmp_path: Path
) -> None:
    port = free_port()
    later = tmp_path / "later"
    later.mkdir()
    injector = start(kubeconfig=write_kubeconfig(later, port))
    until("a reason", lambda: "did not answer" in injector.get("/readyz")[1])
    assert injector.get("/readyz")[0] == 503
    with api_server(later, port=port) as late:
        late.install()
        injector.wait_until_ready()
        assert Caller(injector, bundle(late))(POD)["allowed"]
    messages = [line["message"] for line in injector.log if line["level"] != "INFO"]
    assert sorted(set(messages)) == sorted(messages)


def test_an_api_server_that_is_not_well_yet_is_waited_for(start: Start, api: Api) -> None:
    def unwell(*_: str) -> None:
        raise failure(503, "ServiceUnavailable", "etcd is not up")

    api.fault = unwell
    injector = start()
    until("a reason", lambda: injector.get("/readyz") == (503, "etcd is not up\n"))

    def waiting() -> list[str]:
        return [line["logger"] for line in injector.log if line.get("error") == "etcd is not up"]

    until("both to say so", lambda: len(waiting()) == 2)
    assert sorted(waiting()) == ["asya_injector.tls.watcher", "asya_injector.webhook.app"]
    api.fault = lambda *_: None
    injector.wait_until_ready()


def test_an_api_server_that_never_answers_does_not_hinder_the_end(
    start: Start, tmp_path: Path
) -> None:
    injector = start(kubeconfig=write_kubeconfig(tmp_path, free_port()))
    until("the plain port", lambda: injector.get("/livez")[0])
    assert injector.stop() == 0


def test_sigterm_lets_what_has_come_in_be_answered_and_ends_with_success(
    start: Start, api: Api
) -> None:
    injector = start()
    injector.wait_until_ready()
    arrived, go = threading.Event(), threading.Event()

    def slow(verb: str, resource: str, *_: str) -> None:
        if resource == "configmaps":
            arrived.set()
            go.wait(10)

    api.fault = slow
    caller, idle = Caller(injector, bundle(api)), Caller(injector, bundle(api))
    caller.send(POD)
    assert arrived.wait(10)
    injector.process.send_signal(signal.SIGTERM)
    until("readiness to end", lambda: injector.get("/readyz") == (503, "stopping\n"))
    injector.process.send_signal(signal.SIGTERM)  # a second one changes nothing
    go.set()
    assert "patch" in caller.receive()
    assert injector.process.wait(8) == 0
    with pytest.raises((OSError, http.client.HTTPException)):
        idle(POD)
    assert injector.log[-1]["message"] == "stopped"
    assert all(line["level"] == "INFO" for line in injector.log)


def test_on_the_way_out_a_kept_connection_ends_with_an_answer(start: Start, api: Api) -> None:
    injector = start()
    injector.wait_until_ready()
    used, idle = Caller(injector, bundle(api)), Caller(injector, bundle(api))
    assert used(POD)["allowed"]
    assert used.is_open
    injector.process.send_signal(signal.SIGTERM)
    until("readiness to end", lambda: injector.get("/readyz") == (503, "stopping\n"))
    for caller in (used, idle, Caller(injector, bundle(api))):
        assert caller(POD)["allowed"]
        assert not caller.is_open
    assert injector.process.wait(8) == 0


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
def test_a_wrong_setting_ends_it_in_one_line(
    start: Start, environ: dict[str, str], line: str
) -> None:
    injector = start(**environ)
    assert injector.process.wait(30) == 78
    assert injector.text == f"asya-injector: {line}\n"


def test_a_port_that_is_taken_ends_it_in_one_line(start: Start) -> None:
    first = start()
    first.wait_until_ready()
    for name, port in (
        ("INJECTOR_HTTP_PORT", first.http_port),
        ("INJECTOR_WEBHOOK_PORT", first.webhook_port),
    ):
        second = start(**{name: str(port)})
        assert second.process.wait(30) == 78
        assert re.fullmatch(
            r"asya-injector: cannot start: .*[ :][0-9]+.*: [Aa]ddress already in use.*",
            second.text.splitlines()[-1],
        )
        assert [line["message"] for line in map(json.loads, second.text.splitlines()[:-1])] == [
            "starting"
        ]


def test_a_fault_of_the_api_server_is_told_to_the_user_before_the_review_ends(
    start: Start, api: Api
) -> None:
    injector = start()
    injector.wait_until_ready()

    def forbid(_: str, resource: str, *__: str) -> None:
        if resource == "configmaps":
            raise failure(403, "Forbidden", "exceeded quota: count/configmaps=1")

    api.fault = forbid
    answer = Caller(injector, bundle(api))(POD)
    assert not answer["allowed"]
    assert "exceeded quota" in answer["status"]["message"]
    assert answer["status"]["message"].endswith("(RuntimeConfigMapUnavailable)")


def test_it_does_this_with_no_right_that_the_chart_does_not_give(start: Start, api: Api) -> None:
    injector = start()
    injector.wait_until_ready()
    Caller(injector, bundle(api))(POD)
    assert {(resource, verb) for verb, resource, _, _ in api.calls} <= set(RIGHTS)
    assert not [line for line in injector.log if line["level"] != "INFO"]
    assert {name for verb, resource, _, name in api.calls if resource == "secrets"} == {SECRET}
    assert NAMESPACE in {namespace for _, _, namespace, _ in api.calls}


def test_the_clients_typed_calls_which_load_all_models_are_not_loaded() -> None:
    """They would be a fifth of the injector's memory."""
    script = (
        "import sys; import asya_injector.webhook.app\n"
        "print([name for name in sys.modules if name.startswith('kubernetes.client.api.')])"
    )
    done = run_script(script)
    assert done.stdout == "[]\n"
