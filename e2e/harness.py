"""What the tests do to a cluster, and how they wait: by looking, with a deadline."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from cryptography import x509
from kubernetes import client

from e2e.pod_exec import run_inside

T = TypeVar("T")
Object = dict[str, Any]
Pod = Any  # client.V1Pod, each of whose fields may be None by its types

REPOSITORY = Path(__file__).parent.parent
RELEASE = "asya-runtime"
SYSTEM = "asya-system"
SIDECAR = "asya-sidecar"
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}
MADE_HERE = "example.com/made-by=e2e"  # the next run takes away what a failed one left

# The sidecar's side of the protocol: a line of JSON in, a line of JSON out. Fewer lines come out
# when the actor's process ends.
CLIENT = """
import os, socket, struct, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect(os.environ["ASYA_SOCKET_PATH"])
stream = connection.makefile("rb")
for line in sys.stdin.buffer:
    body = line.rstrip(b"\\n")
    connection.sendall(struct.pack(">I", len(body)) + body)
    prefix = stream.read(4)
    if not prefix:
        break
    print(stream.read(int.from_bytes(prefix, "big")).decode())
"""


def run(
    *words: str, stdin: str | None = None, check: bool = True, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run a program; where `check`, its failure is shown with all that it said."""
    done = subprocess.run(
        words, input=stdin, capture_output=True, text=True, timeout=timeout, check=False
    )
    if check and done.returncode:
        raise AssertionError(f"{' '.join(words)} ended with {done.returncode}:\n{done.stderr}")
    return done


def until(what: str, look: Callable[[], T | None], *, seconds: float = 60) -> T:
    """Look until something is there; fails with `what` after the deadline."""
    deadline = time.monotonic() + seconds
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        time.sleep(0.1)


def reach(
    kubectl: Callable[[], subprocess.CompletedProcess[str]],
) -> subprocess.CompletedProcess[str]:
    """Run kubectl. What never reached the API server is said again, for 10 seconds at most: the
    container engine's proxy on the way to it has been seen to drop a connection.
    """
    deadline = time.monotonic() + 10
    while True:
        done = kubectl()
        lost = done.stderr.startswith("Unable to connect to the server: EOF")
        if not lost or time.monotonic() > deadline:
            return done


class Cluster:
    """The cluster that KUBECONFIG names, with the images that the tests need loaded into it."""

    def __init__(self, injector_image: str, images: dict[str, str]) -> None:
        self.injector_image = injector_image
        self.images = images
        self.model_image = images["model"]
        self.core: Any = client.CoreV1Api()

    def kubectl(
        self, *words: str, check: bool = True, **how: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl."""
        done = reach(lambda: run("kubectl", *words, check=False, **how))
        if check and done.returncode:
            raise AssertionError(f"kubectl {' '.join(words)}: {done.returncode}\n{done.stderr}")
        return done

    def run_inside(
        self, *pod: str, program: str, check: bool = True, **how: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a Python program in a pod, named in kubectl's words, as `inside.py` has it."""
        done = reach(lambda: run_inside(*pod, program=program, **how))
        if check and done.returncode:
            raise AssertionError(f"in {' '.join(pod)}: {done.returncode}\n{done.stderr}")
        return done

    def get(self, *words: str) -> Object:
        """An object as the API server gives it."""
        result: Object = json.loads(self.kubectl("get", *words, "-o", "json").stdout)
        return result

    def apply(
        self, *objects: Object, namespace: str = "default", **how: Any
    ) -> subprocess.CompletedProcess[str]:
        items = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        words = ["apply", "-n", namespace, "-f", "-"]
        return self.kubectl(*words, stdin=json.dumps(items), **how)

    def make_namespace(self, name: str) -> None:
        """A namespace under restricted PodSecurity, in which pods can be created."""
        label, _, value = MADE_HERE.partition("=")
        ours = {label: value} if name.startswith("e2e-") else {}
        metadata = {"name": name, "labels": RESTRICTED | ours}
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
        both = ["serviceaccount/default", "configmap/kube-root-ca.crt"]
        words = ["get", *both, "-n", name, "-o", "name", "--ignore-not-found"]
        until(
            f"{' and '.join(both)} of {name}",
            lambda: self.kubectl(*words).stdout.split() == both,
        )

    def create(self, item: Object, *words: str, **how: Any) -> subprocess.CompletedProcess[str]:
        return self.kubectl("create", "-f", "-", *words, stdin=json.dumps(item), **how)

    def install(
        self,
        *values: str,
        namespace: str = SYSTEM,
        verb: str = "install",
        chart: Path = REPOSITORY / "chart",
    ) -> None:
        """`helm install` as the README has it, with the image under test."""
        repository, tag = self.injector_image.rsplit(":", 1)
        image = f"injector.image.repository={repository},injector.image.tag={tag}"
        words = [RELEASE, str(chart), "--namespace", namespace, "--create-namespace", "--wait"]
        settings = [word for value in (image, *values) for word in ("--set", value)]
        run("helm", verb, *words, "--timeout", "3m", *settings, timeout=200)

    def uninstall(self) -> None:
        """Take every release of ours away, whoever installed it and wherever."""
        listed = json.loads(run("helm", "list", "-A", "-o", "json").stdout)
        for namespace in [each["namespace"] for each in listed if each["name"] == RELEASE]:
            run("helm", "uninstall", RELEASE, "--namespace", namespace, timeout=200)
            self._end(namespace)

    def _end(self, namespace: str) -> None:
        """Wait for those on their way out; it is short, because nobody calls them any more."""

        def gone() -> bool:
            pods = self.injector_pods(namespace)
            for pod in pods:
                if (pod.metadata.deletion_grace_period_seconds or 0) > 1:
                    words = ["delete", "pod", pod.metadata.name, "--ignore-not-found"]
                    self.kubectl("-n", namespace, *words, "--grace-period=1", "--wait=false")
            return not pods

        until("the injector's pods to be gone", gone, seconds=90)

    def injector_pods(self, namespace: str = SYSTEM) -> list[Pod]:
        """The injector's pods, those on their way out among them."""
        selector = f"app.kubernetes.io/name=asya-injector,app.kubernetes.io/instance={RELEASE}"
        listed = self.core.list_namespaced_pod(namespace, label_selector=selector).items
        return list(listed)

    def injectors(self, namespace: str = SYSTEM) -> list[str]:
        """Their names."""
        return [pod.metadata.name for pod in self.injector_pods(namespace)]

    def settle(self, replicas: int = 2) -> None:
        """Wait until all replicas are ready, and none is on its way out: till then it answers."""

        def look() -> bool:
            pods = self.injector_pods()
            stay = [pod for pod in pods if is_ready(pod) and not pod.metadata.deletion_timestamp]
            return len(pods) == len(stay) == replicas

        until(f"{replicas} replicas of the injector and no other", look, seconds=90)

    def admits(self, namespace: str) -> bool:
        """Whether an annotated pod would be let in now.

        Helm 3 waits for ready pods, endpoints for readiness: neither for the node's rules to lead
        to them. Who brings the CA may be slower still.
        """
        pod = bare_pod("asked", self.model_image, {"asya.sh/handler": "handlers.echo"})
        return not self.create(pod, "-n", namespace, "--dry-run=server", check=False).returncode

    def copies(self, namespace: str) -> list[Object]:
        """The copies of the runtime in a namespace, whole."""
        listed = self.get("-n", namespace, "configmaps")["items"]
        return [each for each in listed if each["metadata"]["name"].startswith("asya-runtime-")]

    def replica_sets(self, namespace: str) -> int:
        return len(self.get("-n", namespace, "replicasets")["items"])

    def ca_bundles(self) -> set[str]:
        """What the API server is told to trust for the webhooks; empty for one that lacks it."""
        webhooks = self.get(f"mutatingwebhookconfiguration/{RELEASE}")["webhooks"]
        return {webhook["clientConfig"].get("caBundle", "") for webhook in webhooks}

    def serials_shown(self) -> set[int]:
        """Serial numbers of the certificates that the injectors show; 0 where one shows none."""
        program = "import ssl; print(ssl.get_server_certificate(('127.0.0.1', 9443), timeout=5))"
        found = set()
        for name in self.injectors():
            done = self.run_inside("-n", SYSTEM, name, program=program, check=False)
            found.add(0 if done.returncode else serial(done.stdout.encode()))
        return found

    def rights(self, account: str) -> set[tuple[str, str, str]]:
        """Resources, names and verbs that `kubectl auth can-i --list` has for an account of the
        release's namespace, without everybody's: Kubernetes has more of these in each version.
        """

        def listed(name: str) -> set[tuple[str, str, str]]:
            user = f"system:serviceaccount:{SYSTEM}:{name}"
            said = self.kubectl("auth", "can-i", "--list", "-n", SYSTEM, "--as", user).stdout
            rows = re.findall(r"^(\S+) +\[\] +\[(.*?)\] +\[(.*?)\]$", said, re.M)
            return {
                (resource, names, " ".join(sorted(each.split()))) for resource, names, each in rows
            }

        return listed(account) - listed("default")

    @contextlib.contextmanager
    def without_injectors(self) -> Iterator[None]:
        """No replica answers inside; two do after it, whatever happens."""
        self.kubectl("-n", SYSTEM, "scale", f"deployment/{RELEASE}", "--replicas=0")
        self._end(SYSTEM)
        until("nobody to be called", lambda: self._endpoints() == 0)
        try:
            yield
        finally:
            self.kubectl("-n", SYSTEM, "scale", f"deployment/{RELEASE}", "--replicas=2")
            until("both replicas to be called", lambda: self._endpoints() == 2, seconds=90)
            until("the way to them", lambda: self.admits("default"))

    def _endpoints(self) -> int:
        """How many replicas the Service leads to."""
        slices = self.get("-n", SYSTEM, "endpointslices")["items"]
        endpoints = [each for part in slices for each in part["endpoints"] or []]
        return len([each for each in endpoints if each["conditions"]["ready"]])

    def pods(self, namespace: str, name: str) -> list[Pod]:
        """The pods of an application that are not on their way out."""
        listed = self.core.list_namespaced_pod(namespace, label_selector=f"app={name}").items
        return [pod for pod in listed if not pod.metadata.deletion_timestamp]

    def ready_pod(self, namespace: str, name: str, *, seconds: float = 90) -> Pod:
        """The one ready pod of an application."""

        def look() -> Pod | None:
            return next((pod for pod in self.pods(namespace, name) if is_ready(pod)), None)

        return until(f"a ready pod of {namespace}/{name}", look, seconds=seconds)

    def restart_model(self, pod: Pod) -> None:
        """End process 1 of the model's container and wait for its successor to be ready."""
        name, namespace = pod.metadata.name, pod.metadata.namespace
        words = ["-n", namespace, "exec", name, "-c", "model", "--", "python3", "-c"]
        self.kubectl(*words, "import os; os.kill(1, 15)")

        def restarted() -> bool:
            now = self.core.read_namespaced_pod(name, namespace)
            status = next(each for each in now.status.container_statuses if each.name == "model")
            return bool(status.restart_count and status.ready)

        until("the container's successor", restarted, seconds=90)

    def call(self, pod: Pod, *messages: Object) -> list[Object]:
        """Send messages to the pod's actor from its sidecar."""
        lines = "".join(json.dumps(message) + "\n" for message in messages)
        words = ["-n", pod.metadata.namespace, "-c", SIDECAR, pod.metadata.name]
        done = self.run_inside(*words, program=CLIENT, stdin=lines)
        return [json.loads(line) for line in done.stdout.splitlines()]

    def reviews(self, webhook: str) -> int:
        """How often the API server has called a webhook of ours, by its own count."""
        text = self.kubectl("get", "--raw", "/metrics").stdout
        pattern = rf'^apiserver_admission_webhook_request_total{{[^}}]*name="{webhook}".*}} (\S+)$'
        return sum(int(float(count)) for count in re.findall(pattern, text, re.MULTILINE))

    def events(self, namespace: str) -> Iterable[str]:
        """The messages of all events."""
        return [event.message or "" for event in self.core.list_namespaced_event(namespace).items]


def serial(pem: bytes) -> int:
    """The serial number of a certificate."""
    return x509.load_pem_x509_certificate(pem).serial_number


def is_ready(pod: Pod) -> bool:
    conditions = pod.status.conditions or []
    return any(each.type == "Ready" and each.status == "True" for each in conditions)


def container(name: str, image: str, command: list[str] | None) -> Object:
    """A container as strict as PodSecurity knows."""
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
    """A model with a sidecar; annotations on the workload itself and on its template.

    The sidecar runs as another user than the model.
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
    model = container("model", image, ["python3", "-m", "app"]) | container_fields
    metadata = {"name": name, "labels": {"app": name}, "annotations": annotations}
    spec = {"containers": [model], "terminationGracePeriodSeconds": 1}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
