"""A webhook that puts a launcher before a container's program, as vault-secrets-webhook does."""

from __future__ import annotations

import base64
import json
import ssl
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LAUNCHER = "/vault/vault-env"
# The real one reads it from the image's registry.
ENTRYPOINT = sys.argv[1:]


def has_reference(container: dict[str, Any]) -> bool:
    return any(each.get("value", "").startswith("vault:") for each in container.get("env", []))


def build_patch(pod: dict[str, Any]) -> list[dict[str, Any]]:
    """The changes of the pod; none if it has the launcher already."""
    patch: list[dict[str, Any]] = []
    for index, container in enumerate(pod["spec"]["containers"]):
        if not has_reference(container) or container.get("command") == [LAUNCHER]:
            continue
        program = container.get("command") or ENTRYPOINT
        mount = {"name": "vault-env", "mountPath": "/vault", "readOnly": True}
        changed = {
            **container,
            "command": [LAUNCHER],
            "args": [*program, *container.get("args", [])],
            "volumeMounts": [*container.get("volumeMounts", []), mount],
        }
        path = f"/spec/containers/{index}"
        patch.append({"op": "replace", "path": path, "value": changed})
    if patch:
        scripts = {"name": "launcher", "defaultMode": 0o555}
        volume = {"name": "vault-env", "configMap": scripts}
        volumes = [*pod["spec"].get("volumes", []), volume]
        patch.append({"op": "add", "path": "/spec/volumes", "value": volumes})
    return patch


class Handler(BaseHTTPRequestHandler):
    """One review."""

    def do_POST(self) -> None:
        review = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        request = review["request"]
        patch = json.dumps(build_patch(request["object"])).encode()
        answer = {
            "uid": request["uid"],
            "allowed": True,
            "patchType": "JSONPatch",
            "patch": base64.b64encode(patch).decode(),
        }
        body = json.dumps({**review, "response": answer}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain("/tls/tls.crt", "/tls/tls.key")
    server = ThreadingHTTPServer(("", 8443), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.serve_forever()
