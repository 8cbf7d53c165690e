"""The client of the API server: dates, lists of several pages, descriptions of errors."""

import datetime as dt
import socket
from collections.abc import Iterator

import pytest
from asya_injector.kube_client import ApiException, HTTPError, describe_error, read_time

from tests.injector.paged_api import NOW, Object, PagedApi, serve_paged_api

PODS: list[Object] = [{"metadata": {"name": name}} for name in "abcde"]


@pytest.fixture
def server() -> Iterator[PagedApi]:
    with serve_paged_api() as server:
        yield server


@pytest.mark.parametrize("date", [None, "", "yesterday", "Tue, 99 Nov 2026 12:00:00 GMT"])
def test_without_a_readable_date_in_an_answer_the_local_clock_is_used(
    server: PagedApi, date: str | None
) -> None:
    cluster = server.connect()
    list(cluster.list("v1", "pods"))
    assert cluster.now == NOW
    server.date = date
    before = dt.datetime.now(dt.UTC)
    list(cluster.list("v1", "pods"))
    assert before <= cluster.now <= dt.datetime.now(dt.UTC)


def test_a_date_without_time_zone_is_in_utc() -> None:
    assert read_time({"Date": "Tue, 24 Nov 2026 12:00:00 -0000"}) == NOW


def test_a_list_that_expires_is_read_again_from_the_start(server: PagedApi) -> None:
    server.lists = {"/api/v1/pods": PODS}
    server.expired = 2
    # The first page is read three times.
    names = [item["metadata"]["name"] for item in server.connect().list("v1", "pods")]
    assert "".join(names) == "abababcde"
    server.expired = 9
    with pytest.raises(ApiException) as error:
        list(server.connect().list("v1", "pods"))
    assert describe_error(error.value) == "expired"


def test_an_api_server_that_does_not_answer_is_described_in_one_line(server: PagedApi) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        server.server_port = unused.getsockname()[1]
        with pytest.raises(HTTPError) as error:
            list(server.connect().list("v1", "pods"))
    line = describe_error(error.value)
    assert line == "the API server did not answer: [Errno 111] Connection refused"


@pytest.mark.parametrize(
    ("api_version", "namespace", "path"),
    [
        ("v1", "", "/api/v1/things"),
        ("v1", "m", "/api/v1/namespaces/m/things"),
        ("apps/v1", "", "/apis/apps/v1/things"),
        ("apps/v1", "m", "/apis/apps/v1/namespaces/m/things"),
    ],
)
def test_paths_are_those_of_the_api(
    server: PagedApi, api_version: str, namespace: str, path: str
) -> None:
    assert list(server.connect().list(api_version, "things", namespace=namespace)) == []
    assert server.calls == [f"GET {path}"]
