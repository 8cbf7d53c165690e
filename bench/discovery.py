"""The little of an API server that kopf asks for at its start: which resources there are.

With it, the measurement of reviews needs no cluster; after its start kopf asks nothing more.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

KINDS = {
    "apps": ("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet"),
    "batch": ("Job", "CronJob"),
    "": ("Pod",),
}


def resources(version: str, kinds: tuple[str, ...]) -> dict[str, Any]:
    """What `GET /apis/GROUP/VERSION` gives."""
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


def group(name: str) -> dict[str, Any]:
    version = {"groupVersion": f"{name}/v1", "version": "v1"}
    return {"name": name, "versions": [version], "preferredVersion": version}


ANSWERS = {
    "/api": {"kind": "APIVersions", "versions": ["v1"]},
    "/api/v1": resources("v1", KINDS[""]),
    "/apis": {"kind": "APIGroupList", "groups": [group(name) for name in KINDS if name]},
    **{f"/apis/{name}/v1": resources(f"{name}/v1", KINDS[name]) for name in KINDS if name},
}


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        answer = ANSWERS.get(self.path.partition("?")[0])
        body = json.dumps(answer or {"kind": "Status", "code": 404}).encode()
        self.send_response(200 if answer else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextlib.contextmanager
def api_server(directory: Path) -> Iterator[Path]:
    """Run it on a port of 127.0.0.1; gives a kubeconfig that points to it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "bench",
        "contexts": [{"name": "bench", "context": {"cluster": "bench", "user": "bench"}}],
        "clusters": [
            {
                "name": "bench",
                "cluster": {"server": f"http://127.0.0.1:{server.server_address[1]}"},
            }
        ],
        "users": [{"name": "bench", "user": {"token": "none"}}],
    }
    path = directory / "kubeconfig"
    path.write_text(json.dumps(config))  # JSON is YAML
    try:
        yield path
    finally:
        server.shutdown()
        server.server_close()
