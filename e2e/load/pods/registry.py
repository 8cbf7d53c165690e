"""An image registry that asks for a login and has one image, whose blobs are files in a folder.

Arguments: the folder, user and password. `manifest.json` is the manifest of every name and tag; the
other files are named as their digests, without `sha256:`.
"""

from __future__ import annotations

import base64
import hashlib
import http.server
import sys
from pathlib import Path

FOLDER = Path(sys.argv[1])
LOGIN = "Basic " + base64.b64encode(":".join(sys.argv[2:4]).encode()).decode()


class Registry(http.server.BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.headers["Authorization"] != LOGIN:
            self._answer(401, {"WWW-Authenticate": 'Basic realm="private"'})
            return
        name = self.path.partition("?")[0].rpartition("/")[2].removeprefix("sha256:")
        is_manifest = "/manifests/" in self.path
        file = FOLDER / ("manifest.json" if is_manifest else name)
        kind = "application/vnd.oci.image.manifest.v1+json" if is_manifest else "application/x-tar"
        if not file.is_file():
            self._answer(404, {})
        else:
            body = file.read_bytes()
            digest = "sha256:" + hashlib.sha256(body).hexdigest()
            self._answer(200, {"Content-Type": kind, "Docker-Content-Digest": digest}, body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def _answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log no requests."""


http.server.ThreadingHTTPServer(("", 5000), Registry).serve_forever()
