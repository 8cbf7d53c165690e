"""The image's own program: a web server that answers ok until SIGTERM."""

from __future__ import annotations

import signal
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PORT = 8080


class Handler(BaseHTTPRequestHandler):
    """One HTTP request."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "3")
        self.end_headers()
        self.wfile.write(b"ok\n")

    def log_message(self, *_: Any) -> None:
        """Log no requests."""


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    print(f"app: serving on port {PORT}", flush=True)
    ThreadingHTTPServer(("", PORT), Handler).serve_forever()
