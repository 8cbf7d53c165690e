"""The cluster as tests use it, objects to create, and waiting with a deadline."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from cryptography import x509
from kubernetes import client, config

from e2e.pod_exec import exec_python

T = TypeVar("T")
Object = dict[str, Any]
Pod = Any  # client.V1Pod, each of whose fields may be None by its types

REPOSITORY = Path(__file__).parent.parent
RELEASE = "asya-runtime"
SYSTEM = "asya-system"
SIDECAR = "asya-sidecar"
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}
IMAGE_DELIVERY = "runtime.delivery=image"  # the chart's value for runtime files from an image
MADE_HERE = "example.com/made-by=e2e"  # the next run deletes what a failed run left

# The sidecar's side of the protocol: one line of JSON for each message and for each reply. Replies
# are missing if the actor's process ends.
CLIENT = """
import os, socket, struct, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect(os.environ["ASYA_SOCKET_PATH"])
stream = connection.makefile("rb")
in_flight, ahead = int(sys.argv[1]) if sys.argv[1:] else 1, 0
def receive():
    prefix = stream.read(4)
    if not prefix:
        sys.exit()
    print(stream.read(int.from_bytes(prefix, "big")).decode())
for line in sys.stdin.buffer:
    body = line.rstrip(b"\\n")
    connection.sendall(struct.pack(">I", len(body)) + body)
    ahead += 1
    if ahead == in_flight:
        receive()
        ahead -= 1
for _ in range(ahead):
    receive()
"""


READ_PROC = """
import json, os
usage = {}
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        words = open(f"/proc/{pid}/cmdline").read().split("\\0")
        status = dict(line.split(":", 1) for line in open(f"/proc/{pid}/status"))
        stat = open(f"/proc/{pid}/stat").read().rsplit(") ", 1)[1].split()
        descriptors = len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        continue
    if int(pid) != os.getpid() and "VmRSS" in status and "--ready" not in words:
        name = next((word for word in words if word.endswith(("runtime.py", "asya_injector"))), "")
        if name:
            usage[os.path.basename(name)] = {
                "memory_mb": int(status["VmRSS"].split()[0]) / 1024,
                "threads": int(status["Threads"]),
                "descriptors": descriptors,
                "cpu_s": (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK"),
            }
print(json.dumps(usage))
"""


def run(
    *words: str,
    stdin: str | None = None,
    check: bool = True,
    timeout: float = 300,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a program; with `check`, a failure is an AssertionError with its error output."""
    done = subprocess.run(
        words, input=stdin, capture_output=True, text=True, timeout=timeout, check=False, env=env
    )
    if check and done.returncode:
        raise AssertionError(f"{' '.join(words)} ended with {done.returncode}:\n{done.stderr}")
    return done


def until(what: str, check: Callable[[], T | None], *, seconds: float = 180) -> T:
    """The first true result of `check`; fails with `what` after the deadline.

    The deadline ends a test that hangs. Two thirds of the time are pauses: a busy machine must not
    wait for the checks.
    """
    deadline = time.monotonic() + seconds
    while True:
        began = time.monotonic()
        found = check()
        if found:
            return found
        ended = time.monotonic()
        if ended > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        time.sleep(min(1.0, max(0.1, 2 * (ended - began))))


# The container engine's proxy sometimes drops a connection; a busy machine is slow to accept one.
_UNREACHED = re.compile(
    r"^Unable to connect to the server: (EOF|net/http: TLS handshake timeout|dial tcp .* timeout$)",
    re.M,
)


def retry_unreached(
    kubectl: Callable[[], subprocess.CompletedProcess[str]],
) -> subprocess.CompletedProcess[str]:
    """Run kubectl; for a minute, retry a request that did not reach the API server."""
    deadline = time.monotonic() + 60
    while True:
        done = kubectl()
        if not _UNREACHED.search(done.stderr) or time.monotonic() > deadline:
            return done


class Cluster:
    """The cluster of KUBECONFIG, with the images of the tests loaded."""

    def __init__(self, injector_image: str, images: dict[str, str]) -> None:
        self.injector_image = injector_image
        self.images = images
        self.model_image = images["model"]
        self.core: Any = client.CoreV1Api()

    def version(self) -> tuple[int, int]:
        """The minor version of the API server."""
        server = json.loads(self.kubectl("version", "-o", "json").stdout)["serverVersion"]
        return int(server["major"]), int(server["minor"].rstrip("+"))

    def kubectl(
        self, *words: str, check: bool = True, **how: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl."""
        done = retry_unreached(lambda: run("kubectl", *words, check=False, **how))
        if check and done.returncode:
            raise AssertionError(f"kubectl {' '.join(words)}: {done.returncode}\n{done.stderr}")
        return done

    def exec_python(
        self, *pod: str, program: str, check: bool = True, **how: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a Python program in a pod; see `pod_exec`. pod: kubectl's arguments for the pod."""
        done = retry_unreached(lambda: exec_python(*pod, program=program, **how))
        if check and done.returncode:
            raise AssertionError(f"in {' '.join(pod)}: {done.returncode}\n{done.stderr}")
        return done

    def process_usage(
        self, namespace: str, pod: str, container: str
    ) -> dict[str, dict[str, float]]:
        """What the runtime's and the injector's processes of a container use, by their names.

        Empty if the container does not answer.
        """
        where = ("-n", namespace, pod, "-c", container)
        for _ in range(3):  # an exec is lost now and then: see pod_exec
            done = self.exec_python(*where, program=READ_PROC, check=False)
            if not done.returncode:
                return dict(json.loads(done.stdout))
        return {}

    def get(self, *words: str) -> Object:
        """An object, or a list, as the API server returns it."""
        result: Object = json.loads(self.kubectl("get", *words, "-o", "json").stdout)
        return result

    def apply(
        self, *objects: Object, namespace: str = "default", **how: Any
    ) -> subprocess.CompletedProcess[str]:
        items = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        words = ["apply", "-n", namespace, "-f", "-"]
        return self.kubectl(*words, stdin=json.dumps(items), **how)

    def make_namespace(self, name: str) -> None:
        """Create a namespace under restricted PodSecurity, ready for pods."""
        label, _, value = MADE_HERE.partition("=")
        ours = {label: value} if name.startswith("e2e-") else {}
        metadata = {"name": name, "labels": RESTRICTED | ours}
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})

        def is_complete() -> bool:
            accounts = self.core.list_namespaced_service_account(name).items
            maps = self.core.list_namespaced_config_map(name).items
            names = {each.metadata.name for each in (*accounts, *maps)}
            return names >= {"default", "kube-root-ca.crt"}

        until(f"the account and the CA of namespace {name}", is_complete)

    def create(self, item: Object, *words: str, **how: Any) -> subprocess.CompletedProcess[str]:
        return self.kubectl("create", "-f", "-", *words, stdin=json.dumps(item), **how)

    def install(
        self,
        *values: str,
        namespace: str = SYSTEM,
        verb: str = "install",
        chart: Path = REPOSITORY / "chart",
        options: Iterable[str] = (),
    ) -> None:
        """`helm install` as in the README, with the image under test and further options.

        Returns when reviews reach the injector. Ready pods are not enough: the node's rules and the
        API server's copy of the webhooks may come later.
        """
        repository, tag = self.injector_image.rsplit(":", 1)
        image = f"injector.image.repository={repository},injector.image.tag={tag}"
        words = [RELEASE, str(chart), "--namespace", namespace, "--create-namespace", "--wait"]
        settings = [word for value in (image, *values) for word in ("--set", value)]
        run("helm", verb, *words, *options, "--timeout", "5m", *settings, timeout=400)
        until("the injector to be reached", lambda: self.is_reviewed("default"))

    def uninstall(self) -> None:
        """Uninstall the release from every namespace."""
        listed = json.loads(run("helm", "list", "-A", "-o", "json").stdout)
        for namespace in [each["namespace"] for each in listed if each["name"] == RELEASE]:
            run("helm", "uninstall", RELEASE, "--namespace", namespace, timeout=400)
            self._wait_until_gone(namespace)

    def _wait_until_gone(self, namespace: str) -> None:
        """Wait for terminating pods, and shorten that, because no request reaches them."""

        def gone() -> bool:
            pods = self.injector_pods(namespace)
            for pod in pods:
                if (pod.metadata.deletion_grace_period_seconds or 0) > 1:
                    words = ["delete", "pod", pod.metadata.name, "--ignore-not-found"]
                    self.kubectl("-n", namespace, *words, "--grace-period=1", "--wait=false")
            return not pods

        until("the injector's pods to be gone", gone)

    def injector_pods(self, namespace: str = SYSTEM) -> list[Pod]:
        """The injector's pods, including terminating ones."""
        selector = f"app.kubernetes.io/name=asya-injector,app.kubernetes.io/instance={RELEASE}"
        listed = self.core.list_namespaced_pod(namespace, label_selector=selector).items
        return list(listed)

    def injectors(self, namespace: str = SYSTEM) -> list[str]:
        """The names of the injector's pods."""
        return [pod.metadata.name for pod in self.injector_pods(namespace)]

    def settle(self, replicas: int = 2) -> None:
        """Wait until all replicas are ready and none is terminating, because those still answer."""

        def are_settled() -> bool:
            pods = self.injector_pods()
            stay = [pod for pod in pods if is_ready(pod) and not pod.metadata.deletion_timestamp]
            return len(pods) == len(stay) == replicas

        until(f"{replicas} replicas of the injector and no other", are_settled)

    def request_pod(self, namespace: str) -> subprocess.CompletedProcess[str]:
        """Request an annotated pod, as a dry run."""
        pod = bare_pod("requested", self.model_image, {"asya.sh/handler": "handlers.echo"})
        words = ("-n", namespace, "--dry-run=server", "-o", "yaml")
        return self.create(pod, *words, check=False)

    def admits(self, namespace: str) -> bool:
        """Whether an annotated pod would be admitted now, injected or not."""
        return not self.request_pod(namespace).returncode

    def is_reviewed(self, namespace: str) -> bool:
        """Whether an annotated pod reaches the injector now, which injects or rejects it."""
        done = self.request_pod(namespace)
        return "asya.sh/injected" in done.stdout or "denied the request" in done.stderr

    def copies(self, namespace: str) -> list[Object]:
        """The runtime ConfigMaps of a namespace."""
        listed = self.get("-n", namespace, "configmaps")["items"]
        return [each for each in listed if each["metadata"]["name"].startswith("asya-runtime-")]

    def replica_sets(self, namespace: str) -> int:
        return len(self.get("-n", namespace, "replicasets")["items"])

    def ca_bundles(self) -> set[str]:
        """The CA bundles of the webhooks; an empty string for a webhook without one."""
        webhooks = self.get(f"mutatingwebhookconfiguration/{RELEASE}")["webhooks"]
        return {webhook["clientConfig"].get("caBundle", "") for webhook in webhooks}

    def certificate_serials(self) -> set[int]:
        """The serial numbers of the replicas' certificates; 0 for a replica without TLS."""
        program = "import ssl; print(ssl.get_server_certificate(('127.0.0.1', 9443), timeout=5))"
        found = set()
        for name in self.injectors():
            done = self.exec_python("-n", SYSTEM, name, program=program, check=False)
            found.add(0 if done.returncode else serial(done.stdout.encode()))
        return found

    def rights(self, account: str, *, namespace: str = SYSTEM) -> set[tuple[str, str, str]]:
        """The permissions of an account of the release in a namespace.

        Each with resource or URL, names and verbs; without those of every account, which depend on
        the Kubernetes release.
        """

        def listed(name: str) -> set[tuple[str, str, str]]:
            user = f"system:serviceaccount:{SYSTEM}:{name}"
            printed = self.kubectl("auth", "can-i", "--list", "-n", namespace, "--as", user).stdout
            rows = re.findall(r"^(\S*) +\[(.*?)\] +\[(.*?)\] +\[(.*?)\]$", printed, re.M)
            assert len(rows) == printed.count("\n") - 1, printed  # all but the header
            return {
                (resource or url, names, " ".join(sorted(verbs.split())))
                for resource, url, names, verbs in rows
            }

        return listed(account) - listed("default")

    @contextlib.contextmanager
    def without_injectors(self) -> Iterator[None]:
        """Without any replica in the context; with two afterwards, also after a failure."""
        self.kubectl("-n", SYSTEM, "scale", f"deployment/{RELEASE}", "--replicas=0")
        self._wait_until_gone(SYSTEM)
        until("no endpoints", lambda: self._endpoints() == 0)
        try:
            yield
        finally:
            self.kubectl("-n", SYSTEM, "scale", f"deployment/{RELEASE}", "--replicas=2")
            until("two endpoints", lambda: self._endpoints() == 2)
            until("the route to them", lambda: self.admits("default"))

    def _endpoints(self) -> int:
        """The number of ready endpoints of the Service."""
        slices = self.get("-n", SYSTEM, "endpointslices")["items"]
        endpoints = [each for part in slices for each in part["endpoints"] or []]
        return len([each for each in endpoints if each["conditions"]["ready"]])

    def pods(self, namespace: str, name: str) -> list[Pod]:
        """The pods of an application that are not terminating."""
        listed = self.core.list_namespaced_pod(namespace, label_selector=f"app={name}").items
        return [pod for pod in listed if not pod.metadata.deletion_timestamp]

    def ready_pod(self, namespace: str, name: str, *, seconds: float = 180) -> Pod:
        """The one ready pod of an application."""

        def find_ready() -> Pod | None:
            return next((pod for pod in self.pods(namespace, name) if is_ready(pod)), None)

        return until(f"a ready pod of {namespace}/{name}", find_ready, seconds=seconds)

    def end_target(self, pod: Pod) -> None:
        """End process 1 of the target container, which may end the command's process first."""
        words = ["-n", pod.metadata.namespace, "exec", pod.metadata.name, "-c", "model"]
        self.kubectl(*words, "--", "python3", "-c", "import os; os.kill(1, 15)", check=False)

    def restart_target(self, pod: Pod) -> None:
        """End process 1 of the target container and wait until the container is ready again."""
        name, namespace = pod.metadata.name, pod.metadata.namespace

        def read_status() -> Any:
            statuses = self.core.read_namespaced_pod(name, namespace).status.container_statuses
            return next(each for each in statuses if each.name == "model")

        count = read_status().restart_count
        self.end_target(pod)

        def is_restarted() -> bool:
            now = read_status()
            return bool(now.restart_count > count and now.ready)

        until("the container to be restarted", is_restarted)

    def call(
        self, pod: Pod, *messages: Object, in_flight: int = 1, check: bool = True
    ) -> list[Object]:
        """Send messages to the pod's actor from its sidecar, over one connection.

        check: fail unless it accepts the connection.
        """
        lines = "".join(json.dumps(message) + "\n" for message in messages)
        words = ["-n", pod.metadata.namespace, "-c", SIDECAR, pod.metadata.name]
        arguments = (str(in_flight),)
        done = self.exec_python(
            *words, program=CLIENT, arguments=arguments, stdin=lines, check=check
        )
        return [json.loads(line) for line in done.stdout.splitlines()]

    def reviews(self, webhook: str) -> int:
        """How often the API server has called one of the webhooks, by its own metrics."""
        text = self.kubectl("get", "--raw", "/metrics").stdout
        pattern = rf'^apiserver_admission_webhook_request_total{{[^}}]*name="{webhook}".*}} (\S+)$'
        return sum(int(float(count)) for count in re.findall(pattern, text, re.MULTILINE))

    def events(self, namespace: str) -> Iterable[str]:
        """The messages of all events."""
        return [event.message or "" for event in self.core.list_namespaced_event(namespace).items]


def connect(injector_image: str, images: str) -> Cluster:
    """The cluster of KUBECONFIG. images: a line for each image, its key and its name."""
    config.load_kube_config(os.environ["KUBECONFIG"])  # type: ignore[no-untyped-call]
    return Cluster(injector_image, dict(line.split() for line in images.splitlines()))


def serial(pem: bytes) -> int:
    """The serial number of a certificate."""
    return x509.load_pem_x509_certificate(pem).serial_number


def is_ready(pod: Pod) -> bool:
    conditions = pod.status.conditions or []
    return any(each.type == "Ready" and each.status == "True" for each in conditions)


def container(name: str, image: str, command: list[str] | None) -> Object:
    """A container that satisfies the restricted PodSecurity level."""
    return {
        "name": name,
        "image": image,
        **({"command": command} if command else {}),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "runAsUser": 10001,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }


def workload(
    name: str,
    image: str,
    *,
    annotations: dict[str, str] | None = None,
    template: dict[str, str] | None = None,
    command: list[str] | None = None,
    kind: str = "Deployment",
) -> Object:
    """A model with a sidecar, which runs as another user.

    annotations: those of the workload; template: those of its pod template.
    """
    sleep = "import signal; signal.signal(15, lambda *_: exit()); signal.pause()"
    sidecar = container(SIDECAR, image, ["python3", "-c", sleep])
    sidecar["securityContext"]["runAsUser"] = 20002
    metadata = {"labels": {"app": name}, "annotations": template or {}}
    containers = [container("model", image, command), sidecar]
    pod = {"containers": containers, "terminationGracePeriodSeconds": 1}
    return {
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": {"name": name, "annotations": annotations or {}},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": metadata, "spec": pod},
        },
    }


def bare_pod(name: str, image: str, annotations: dict[str, str], **container_fields: Any) -> Object:
    """A pod without a controller, labelled with its name."""
    target = container("model", image, ["python3", "-m", "app"]) | container_fields
    metadata = {"name": name, "labels": {"app": name}, "annotations": annotations}
    spec = {"containers": [target], "terminationGracePeriodSeconds": 1}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def switch_injection(cluster: Cluster, namespace: str, *, on: bool) -> None:
    """Switch injection on or off in a namespace, and wait until that is effective."""
    label = "asya.sh/injection-" if on else "asya.sh/injection=disabled"
    cluster.kubectl("label", "namespace", namespace, label)

    def is_effective() -> bool:
        done = cluster.request_pod(namespace)
        return not done.returncode and ("asya.sh/injected" in done.stdout) == on

    until("the label to be effective", is_effective)


def limit_config_maps(cluster: Cluster, namespace: str, count: int) -> None:
    """Create a quota that the namespace's ConfigMaps use up."""
    hard = {"count/configmaps": str(count)}
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "few"}}
    cluster.create({**quota, "spec": {"hard": hard}}, "-n", namespace)

    another: Object = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "another"}}
    words = ("-n", namespace, "--dry-run=server")

    def is_used_up() -> bool:  # in the API server's own copy, which follows
        return "exceeded quota" in cluster.create(another, *words, check=False).stderr

    until("the quota to be counted", is_used_up)
