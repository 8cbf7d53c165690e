"""An API server in memory, with the few parts that the injector uses.

It serves discovery (for kopf), ConfigMaps, Secrets and one webhook configuration. Names, resource
versions and conflicts work as in the real one. It allows exactly the requests for which the chart
gives the injector permissions.
"""

from __future__ import annotations

import contextlib
import copy
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

KINDS = {
    "apps": ("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet"),
    "batch": ("Job", "CronJob"),
    "": ("Pod",),
}
NAMESPACE, NAME = "asya-system", "asya-runtime"
SECRET = "asya-runtime-tls"
# The allowed verbs by resource, and the one name that a verb is restricted to.
RIGHTS = {
    ("configmaps", "create"): None,
    ("configmaps", "patch"): None,
    ("secrets", "create"): None,
    ("secrets", "get"): SECRET,
    ("secrets", "update"): SECRET,
    ("secrets", "patch"): SECRET,
    ("mutatingwebhookconfigurations", "get"): NAME,
    ("mutatingwebhookconfigurations", "patch"): NAME,
}
VERBS = {"GET": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}

Object = dict[str, Any]


def resources(version: str, kinds: tuple[str, ...]) -> Object:
    """The response to `GET /apis/GROUP/VERSION`."""
    verbs = ["create", "delete", "get", "list", "patch", "update", "watch"]
    return {
        "kind": "APIResourceList",
        "groupVersion": version,
        "resources": [
            {
                "name": f"{kind.lower()}s",
                "singularName": kind.lower(),
                "namespaced": True,
                "kind": kind,
                "verbs": verbs,
            }
            for kind in kinds
        ],
    }


def group(name: str) -> Object:
    version = {"groupVersion": f"{name}/v1", "version": "v1"}
    return {"name": name, "versions": [version], "preferredVersion": version}


DISCOVERY: dict[str, Object] = {
    "/version": {"major": "1", "minor": "34", "gitVersion": "v1.34.0"}
    | dict.fromkeys(("gitCommit", "gitTreeState", "buildDate"), "-")
    | dict.fromkeys(("goVersion", "compiler", "platform"), "-"),
    "/api": {"kind": "APIVersions", "versions": ["v1"]},
    "/api/v1": resources("v1", KINDS[""]),
    "/apis": {"kind": "APIGroupList", "groups": [group(name) for name in KINDS if name]},
    **{f"/apis/{name}/v1": resources(f"{name}/v1", KINDS[name]) for name in KINDS if name},
}


@dataclass
class Answer(Exception):  # noqa: N818
    """An HTTP response; an error is raised."""

    code: int
    body: Object | bytes  # bytes are sent unchanged
    headers: dict[str, str] = field(default_factory=dict)


def failure(code: int, reason: str, message: str, headers: dict[str, str] | None = None) -> Answer:
    """An error response of the API server."""
    status: Object = {"kind": "Status", "apiVersion": "v1", "status": "Failure"}
    status |= {"code": code, "reason": reason, "message": message}
    return Answer(code, status, headers or {})


class Api:
    """The state of the server. Tests read and change it while they hold `lock`.

    objects: by resource, namespace and name.
    calls: verb, resource, namespace and name of each call, in order, but not of discovery.
    discovered: the path of each call of discovery.
    fault: called with verb, resource, namespace and name before each call; may sleep, raise an
        Answer, or return.
    time: the server's clock as Unix time; None for the real time.
    version: its major and minor version.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.objects: dict[tuple[str, str, str], Object] = {}
        self.calls: list[tuple[str, str, str, str]] = []
        self.discovered: list[str] = []
        self.fault: Callable[[str, str, str, str], None] = lambda *_: None
        self.time: float | None = None
        self.version = ("1", "34")
        self.kubeconfig = Path()
        self._versions = 0

    def install(self) -> None:
        """Create what the chart creates: a webhook configuration and a Secret without data."""
        webhooks = [
            {
                "name": f"{name}.asya.sh",
                "clientConfig": {"service": {"name": NAME, "namespace": NAMESPACE}},
                "admissionReviewVersions": ["v1"],
                "sideEffects": "NoneOnDryRun",
            }
            for name in ("pods", "workloads", "templates")
        ]
        metadata = {"name": NAME, "annotations": {"meta.helm.sh/release-name": NAME}}
        self.put("mutatingwebhookconfigurations", "", {"metadata": metadata, "webhooks": webhooks})
        self.put("secrets", NAMESPACE, {"metadata": {"name": SECRET}, "type": "Opaque"})

    def put(self, resource: str, namespace: str, thing: Object) -> Object:
        """Create or replace an object."""
        with self.lock:
            self._versions += 1
            metadata = thing["metadata"] | {"resourceVersion": str(self._versions)}
            if namespace:
                metadata["namespace"] = namespace
            stored = copy.deepcopy(thing) | {"metadata": metadata}
            self.objects[resource, namespace, metadata["name"]] = stored
            return stored

    def called(self, verb: str, resource: str) -> int:
        """The number of calls with this verb and resource."""
        with self.lock:
            return sum(call[:2] == (verb, resource) for call in self.calls)

    def answer(self, method: str, path: str, body: Object) -> Answer:
        path = path.rstrip("/")
        if path in DISCOVERY:
            with self.lock:
                self.discovered.append(path)
            self.fault("get", path, "", "")
            return Answer(200, DISCOVERY[path] | self._describe_version(path))
        resource, namespace, name = _split(path)
        verb = VERBS[method]
        with self.lock:
            self.calls.append((verb, resource, namespace, name))
        self.fault(verb, resource, namespace, name)
        if (resource, verb) not in RIGHTS or RIGHTS[resource, verb] not in (None, name):
            raise failure(403, "Forbidden", f'{resource} "{name}" is forbidden: no right to {verb}')
        with self.lock:
            return getattr(self, f"_{verb}")(resource, namespace, name, body)  # type: ignore[no-any-return]

    def _describe_version(self, path: str) -> Object:
        major, minor = self.version
        return {"major": major, "minor": minor} if path == "/version" else {}

    def _found(self, resource: str, namespace: str, name: str) -> Object:
        found = self.objects.get((resource, namespace, name))
        if found is None:
            raise failure(404, "NotFound", f'{resource} "{name}" not found')
        return found

    def _get(self, resource: str, namespace: str, name: str, _: Object) -> Answer:
        return Answer(200, self._found(resource, namespace, name))

    def _create(self, resource: str, namespace: str, _: str, body: Object) -> Answer:
        name = body["metadata"]["name"]
        if (resource, namespace, name) in self.objects:
            raise failure(409, "AlreadyExists", f'{resource} "{name}" already exists')
        return Answer(201, self.put(resource, namespace, body))

    def _update(self, resource: str, namespace: str, name: str, body: Object) -> Answer:
        found = self._found(resource, namespace, name)
        wanted = body["metadata"].get("resourceVersion")
        if wanted not in (None, found["metadata"]["resourceVersion"]):
            raise failure(409, "Conflict", f'{resource} "{name}": the object has been modified')
        return Answer(200, self.put(resource, namespace, body))

    def _patch(self, resource: str, namespace: str, name: str, body: Object) -> Answer:
        found = copy.deepcopy(self._found(resource, namespace, name))
        if not body:
            return Answer(200, found)
        for patch in body["webhooks"]:
            webhook = next(each for each in found["webhooks"] if each["name"] == patch["name"])
            webhook["clientConfig"] |= patch["clientConfig"]
        return Answer(200, self.put(resource, namespace, found))


def _split(path: str) -> tuple[str, str, str]:
    """The resource, namespace and name in a path."""
    words = path.strip("/").split("/")
    words = (words[2:] if words[0] == "api" else words[3:]) or [""]
    namespace = ""
    if words[0] == "namespaces" and len(words) > 2:
        namespace, words = words[1], words[2:]
    return words[0], namespace, words[1] if len(words) > 1 else ""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    api: Api

    def _serve(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        sent = json.loads(self.rfile.read(size) or b"{}")
        try:
            answer = self.api.answer(self.command, self.path.partition("?")[0], sent)
        except Answer as failed:
            answer = failed
        body = answer.body
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        self.send_response(answer.code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815

    def date_time_string(self, timestamp: float | None = None) -> str:
        return formatdate(time.time() if self.api.time is None else self.api.time, usegmt=True)

    def log_message(self, *_: Any) -> None:
        """Log nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that close their connection."""


@contextlib.contextmanager
def api_server(directory: Path, *, port: int = 0) -> Iterator[Api]:
    """Run it on a port of 127.0.0.1, and write its kubeconfig to the directory."""
    api = Api()
    server = _Server(("127.0.0.1", port), type("Handler", (_Handler,), {"api": api}))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    api.kubeconfig = write_kubeconfig(directory, server.server_address[1])
    try:
        yield api
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def write_kubeconfig(directory: Path, port: int) -> Path:
    """Write a kubeconfig for a server on a port of 127.0.0.1."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "here"}}],
        "clusters": [{"name": "here", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "users": [{"name": "here", "user": {"token": "none"}}],
    }
    path = directory / "kubeconfig"
    path.write_text(json.dumps(config))  # JSON is YAML
    return path
