"""A small API server over HTTP: it lists objects page by page, and records all calls."""

from __future__ import annotations

import contextlib
import datetime as dt
import email.utils
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from asya_injector.kube_client import Cluster
from kubernetes import client

Object = dict[str, Any]
NOW = dt.datetime(2026, 11, 24, 12, tzinfo=dt.UTC)


class PagedApi(http.server.ThreadingHTTPServer):
    """What the server contains, and how it answers.

    lists: objects by path. objects: single objects by path; POST also answers with them.
    calls: method, path and body of each call, in order. page_size: objects per page.
    expired: how many requests for a later page are answered with 410.
    denied: status by method and path. after: called after a list was read, by path.
    date: the Date header, which some proxies drop.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.lists: dict[str, list[Object]] = {}
        self.objects: dict[str, Object] = {}
        self.calls: list[str] = []
        self.page_size = 2
        self.expired = 0
        self.denied: dict[str, int] = {}
        self.after: dict[str, Callable[[], None]] = {}
        self.date: str | None = email.utils.format_datetime(NOW, usegmt=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def write_kubeconfig(self, path: Path) -> Path:
        """Write a kubeconfig with the contexts `here` and `elsewhere`."""
        clusters = {"here": self.url, "elsewhere": "http://127.0.0.1:9"}
        kubeconfig = {
            "current-context": "here",
            "clusters": [
                {"name": name, "cluster": {"server": url}} for name, url in clusters.items()
            ],
            "contexts": [
                {"name": name, "context": {"cluster": name, "user": "me"}} for name in clusters
            ],
            "users": [{"name": "me", "user": {"token": "t"}}],
        }
        path.write_text(json.dumps(kubeconfig))
        return path

    def connect(self) -> Cluster:
        settings = client.Configuration(host=self.url)
        settings.retries = False
        return Cluster(client.ApiClient(settings))


@contextlib.contextmanager
def serve_paged_api() -> Iterator[PagedApi]:
    server = PagedApi()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: PagedApi

    def log_message(self, *_: Any) -> None:
        """Log nothing."""

    def send_header(self, keyword: str, value: str) -> None:
        if keyword != "Date":
            super().send_header(keyword, value)
        elif self.server.date is not None:
            super().send_header(keyword, self.server.date)

    def do_GET(self) -> None:
        server, (path, query) = self.server, self._record_call()
        if path in server.objects:
            self._answer(200, server.objects[path])
            return
        token = int(query.get("continue", ["0"])[0])
        if token and server.expired:
            server.expired -= 1
            self._answer(410, {"message": "expired"})
            return
        found = [item for item in server.lists.get(path, []) if self._is_selected(item, query)]
        server.after.get(path, lambda: None)()
        end = token + server.page_size
        metadata = {"continue": str(end)} if end < len(found) else {}
        self._answer(200, {"items": found[token:end], "metadata": metadata})

    def do_POST(self) -> None:
        path, _ = self._record_call()
        found = self.server.objects.get(path)
        self._answer(201 if found else 404, found or {"message": "not found"})

    def do_DELETE(self) -> None:
        self._record_call()
        self._answer(200, {})

    def _record_call(self) -> tuple[str, dict[str, list[str]]]:
        address = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        self.server.calls.append(f"{self.command} {address.path}{' ' * bool(body)}{body}")
        status = self.server.denied.get(f"{self.command} {address.path}")
        if status:
            self._answer(status, {"message": f"{address.path} is forbidden"})
            raise ConnectionAbortedError
        return address.path, parse_qs(address.query)

    def _is_selected(self, item: Object, query: dict[str, list[str]]) -> bool:
        words = query.get("labelSelector", [""])[0].split(",")
        labels = item["metadata"].get("labels", {})
        field, _, name = query.get("fieldSelector", [""])[0].partition("=")
        if field and (field != "metadata.name" or item["metadata"].get("name") != name):
            return False
        return all(
            labels.get(key) == value for key, _, value in (w.partition("=") for w in words if w)
        )

    def _answer(self, status: int, body: Object) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def handle(self) -> None:
        with contextlib.suppress(ConnectionAbortedError):
            super().handle()
