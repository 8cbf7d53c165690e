"""The web application: a page with a form at `/`, and `POST /predict` for programs."""

from __future__ import annotations

import html
import json
import signal
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from whichlang.service import predict

PORT = 8080
PAGE = """<!doctype html><title>Which language?</title>
<form><input name="text" value="{text}" size="80"><button>Which language?</button></form>
<p>{answer}</p>
"""


class Handler(BaseHTTPRequestHandler):
    """One HTTP request."""

    def do_GET(self) -> None:
        """The page, with the answer if the form was submitted."""
        url = urlsplit(self.path)
        if url.path != "/":
            return self._send(404, "text/plain", "not found\n")
        text = parse_qs(url.query).get("text", [""])[0]
        try:
            answer = predict({"payload": {"text": text}})["language"] if text else ""
        except ValueError as error:
            answer = str(error)
        page = PAGE.format(text=html.escape(text), answer=html.escape(answer))
        return self._send(200, "text/html; charset=utf-8", page)

    def do_POST(self) -> None:
        """`predict` over HTTP: request and answer are JSON."""
        if self.path != "/predict":
            return self._send(404, "text/plain", "not found\n")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            status, answer = 200, predict(json.loads(body))
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            status, answer = 400, {"error": str(error)}
        return self._send(status, "application/json", json.dumps(answer) + "\n")

    def _send(self, status: int, kind: str, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    """Serve until SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    server = ThreadingHTTPServer(("", PORT), Handler)
    server.daemon_threads = True
    print(f"whichlang: serving on port {PORT}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
