"""An attacker in the cluster gains nothing."""

import json
from typing import Any

import pytest

from e2e.harness import SIDECAR, SYSTEM, Cluster, Object, bare_pod, run, workload

ECHO = {"asya.sh/handler": "handlers.echo"}
ACCOUNT = f"system:serviceaccount:{SYSTEM}:asya-runtime"

HOSTILE = {
    "shell": "handlers.echo; rm -rf /",
    "substitution": "handlers.$(id)",
    "traversal": "../../etc/passwd",
    "line": "handlers.echo\nASYA_MODE=evil",
    "terminal": "handlers.\x1b]0;owned\x07",
    "look-alike": "handlers.есho",  # Cyrillic
    "right-to-left": "handlers.\u202eohce",
    "yaml": "!!python/object/apply:os.system [id]",
    "large": "a." * 100_000 + "b",
}

# Malicious frames, each on its own connection; then a valid one.
ATTACK = r"""
import os, socket, struct
def send(*pieces):
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(100)
    connection.connect(os.environ["ASYA_SOCKET_PATH"])
    for piece in pieces:
        connection.sendall(piece)
    return connection
def frame(body):
    return struct.pack(">I", len(body)) + body
def reply(connection):
    stream = connection.makefile("rb")
    print(stream.read(int.from_bytes(stream.read(4), "big")).decode())
held = [
    send(b"\xff\xff\xff\xff"),                     # announces four gigabytes
    send(struct.pack(">I", 1 << 30), b"{" * 10),   # a frame that never ends
    send(frame(b'{"payload": {}}') * 100),         # never reads
    *[send() for _ in range(100)],                 # sends nothing
]
send(os.urandom(4096)).close()
for body in (b"", b"\xff\xfe", b"[" * 100000, b'{"payload": NaN}', b"9" * 10000, b"null"):
    reply(send(frame(body)))
reply(send(frame(b'{"payload": {"still": "here"}}')))
"""

# Requests to API server and injector with the token that every pod has.
INTRUDER = r"""
import json, ssl, sys, urllib.error, urllib.request
place = "/var/run/secrets/kubernetes.io/serviceaccount/"
token = open(place + "token").read()
trusted = ssl.create_default_context(cafile=place + "ca.crt")
unverified = ssl._create_unverified_context()
def status(url, method="GET", body=None, context=trusted, kind="application/json"):
    headers = {"Authorization": "Bearer " + token, "Content-Type": kind}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60, context=context) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
api, system = "https://kubernetes.default.svc/api/v1/namespaces/", sys.argv[1]
hook = "https://asya-runtime." + system + ".svc/"
label = {"app.kubernetes.io/managed-by": "asya-injector"}
forged = {"apiVersion": "v1", "kind": "ConfigMap", "data": {"asya_runtime.py": "import evil"},
          "metadata": {"name": "asya-runtime-0123456789", "labels": label}}
review = json.loads(sys.argv[2])
print(json.dumps({
    "secret": status(api + system + "/secrets/asya-runtime-tls")[0],
    "source": status(api + system + "/configmaps/asya-runtime", "PATCH", {"data": {}},
                     kind="application/merge-patch+json")[0],
    "elsewhere": status(api + "default/configmaps", "POST", forged)[0],
    "here": status(api + sys.argv[3] + "/configmaps", "POST", forged)[0],
    "webhook": status(hook + "pods", "POST", review, unverified)[0],
    "garbage": status(hook + "pods", "POST", {"a": 1}, unverified)[0],
    "unknown": status(hook + "../../etc/passwd", "GET", None, unverified)[0],
}))
"""

FIND = r"""
import json, os, shutil, stat
kinds = {"setuid": [], "writable": []}
for top in ("/usr", "/app", "/etc", "/opt"):
    for directory, _, names in os.walk(top):
        for name in names:
            path = os.path.join(directory, name)
            mode = os.lstat(path).st_mode
            if stat.S_ISREG(mode) and mode & (stat.S_ISUID | stat.S_ISGID):
                kinds["setuid"].append(path)
            if stat.S_ISREG(mode) and os.access(path, os.W_OK):
                kinds["writable"].append(path)
tools = ["gcc", "cc", "g++", "make", "pip", "pip3", "git", "curl", "wget", "ssh", "nc"]
kinds["tools"] = [tool for tool in tools if shutil.which(tool)]
kinds["user"] = os.getuid()
print(json.dumps(kinds))
"""


def test_malicious_annotations_are_rejected_in_one_printable_line(
    cluster: Cluster, namespace: str
) -> None:
    for name, handler in HOSTILE.items():
        pod = bare_pod(name, cluster.model_image, {"asya.sh/handler": handler})
        done = cluster.create(pod, "-n", namespace, check=False)
        assert done.returncode == 1, name
        (line,) = done.stderr.splitlines()
        assert line.endswith("(AnnotationInvalid)"), name
        assert line.isascii(), name
        assert line.isprintable(), name
        assert len(line) < 2000, name
    assert cluster.get("-n", namespace, "pods")["items"] == []


@pytest.mark.timeout(300)
def test_malicious_frames_do_not_affect_other_connections(cluster: Cluster, namespace: str) -> None:
    command = ["python3", "-m", "app"]
    cluster.apply(
        workload("model", cluster.model_image, template=ECHO, command=command), namespace=namespace
    )
    pod = cluster.ready_pod(namespace, "model")
    words = ["-n", namespace, pod.metadata.name, "-c", SIDECAR]
    printed = cluster.exec_python(*words, program=ATTACK).stdout.splitlines()
    replies = [json.loads(line) for line in printed]
    assert [reply.get("error", reply.get("result")) for reply in replies] == [
        *["invalid_json"] * 6,
        {"still": "here"},
    ]
    now = cluster.core.read_namespaced_pod(pod.metadata.name, namespace)
    assert [status.restart_count for status in now.status.container_statuses] == [0, 0]


@pytest.mark.timeout(300)
def test_a_pod_without_permissions_can_access_no_secret_and_no_config_map(
    cluster: Cluster, namespace: str
) -> None:
    pod = bare_pod("intruder", cluster.model_image, {})
    cluster.create(pod, "-n", namespace)
    cluster.ready_pod(namespace, "intruder")
    annotated: Object = bare_pod("annotated", cluster.model_image, ECHO)
    review = {
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "1",
            "operation": "CREATE",
            "namespace": namespace,
            "dryRun": True,
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "object": annotated,
        },
    }
    arguments = (SYSTEM, json.dumps(review), namespace)
    words = ["-n", namespace, "intruder"]
    seen = json.loads(cluster.exec_python(*words, program=INTRUDER, arguments=arguments).stdout)
    assert {key: seen[key] for key in ("secret", "source", "elsewhere", "here")} == {
        "secret": 403,
        "source": 403,
        "elsewhere": 403,
        "here": 403,
    }
    # It can send a review, and learns only how the pod in that review would be changed.
    assert seen["webhook"] == 200
    assert seen["garbage"] == 400
    assert seen["unknown"] == 405  # only POST is allowed


def as_injector(cluster: Cluster, *words: str, **how: Any) -> str:
    """The error of kubectl with the injector's account."""
    return cluster.kubectl(*words, "--as", ACCOUNT, check=False, **how).stderr


FORBIDDEN = {
    "read Secrets of other namespaces": ["get", "secrets", "-n", "kube-system"],
    "read all Secrets of its own namespace": ["get", "secrets", "-n", SYSTEM],
    "read ConfigMaps": ["get", "configmap", "asya-runtime", "-n", SYSTEM],
    "read pods": ["get", "pods", "-A"],
    "read workloads": ["get", "deployments", "-A"],
    "read nodes": ["get", "nodes"],
    "delete ConfigMaps": ["delete", "configmap", "asya-runtime-0123456789", "-n", "default"],
    "run a pod": ["run", "evil", "--image=evil", "-n", SYSTEM],
    "get a token": ["create", "token", "default", "-n", "default"],
    "change its policy": ["patch", "validatingadmissionpolicy/asya-runtime", "-p", "{}"],
    "change other webhooks": ["patch", "mutatingwebhookconfiguration/other", "-p", "{}"],
    "extend its role": ["create", "clusterrolebinding", "evil", "--clusterrole=cluster-admin",
                           f"--serviceaccount={SYSTEM}:asya-runtime"],
}  # fmt: skip


def test_the_injectors_account_has_no_other_permissions(cluster: Cluster) -> None:
    errors = {what: as_injector(cluster, *words) for what, words in FORBIDDEN.items()}
    assert [what for what, text in errors.items() if "cannot" not in text] == [], errors


def test_the_injectors_image_has_no_tools_and_needs_no_shell(cluster: Cluster) -> None:
    plain = ["docker", "run", "--rm", "--network=none", "--read-only", "--cap-drop=ALL"]
    image = cluster.injector_image
    found = json.loads(run(*plain, "--entrypoint=python3", image, "-c", FIND).stdout)
    assert found == {"setuid": [], "writable": [], "tools": [], "user": 65532}
    shells = [
        word
        for shell in ("sh", "dash", "bash")
        for word in ("--volume", f"/dev/null:/usr/bin/{shell}:ro")
    ]
    printed = run(*plain, *shells, image, "run", "--help").stdout
    assert "asya-injector run" in printed
    pods = cluster.core.list_namespaced_pod(
        SYSTEM, label_selector="app.kubernetes.io/instance=asya-runtime"
    ).items
    for pod in pods:
        (container,) = pod.spec.containers
        context = container.security_context
        assert context.read_only_root_filesystem
        assert not context.allow_privilege_escalation
        assert context.capabilities.drop == ["ALL"]
