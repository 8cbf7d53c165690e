"""Metrics: what is counted, and that no scraper can hurt the actor."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from prometheus_client.parser import text_string_to_metric_families

from .conftest import DEADLINE, RUNTIME, Start, changed, eventually, frame
from .processes import open_files
from .served import stopped

Samples = dict[str, float]
HANDLER = """
    import os, time
    def predict(message):
        what = message["payload"].get("what")
        if what == "full": raise MemoryError
        if what == "gpu": raise RuntimeError("CUDA out of memory. Tried to allocate 1 GiB")
        if what == "wait":
            open("waiting", "w").close()
            while not os.path.exists("go"): time.sleep(0.002)
        if what == "fork":
            if os.fork() == 0: time.sleep(60)
        return 1 / (what != "bad")
"""


@pytest.fixture
def port() -> Iterator[int]:
    """A port that nobody else gets: this socket keeps it, and lets those listen who may share it.

    Set before, the option would also let others have the port.
    """
    with socket.socket(socket.AF_INET6) as sock:
        sock.bind(("::", 0))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        yield sock.getsockname()[1]


def scrape(port: int) -> Samples:
    """All samples, by name and labels; each name has its help and its type."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=DEADLINE) as response:
        assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        text = response.read().decode()
    families = list(text_string_to_metric_families(text))
    assert all(family.documentation and family.type != "unknown" for family in families)
    samples = [sample for family in families for sample in family.samples]
    return {
        sample.name + "".join(f" {key}={value}" for key, value in sample.labels.items()):
        sample.value
        for sample in samples
    }  # fmt: skip


def scrape_until(port: int, **expected: float) -> Samples:
    """Samples in which these have their values; a text may be half a second old."""
    found: Samples = {}
    errors: set[str] = set()

    def is_there() -> bool:
        found.clear()
        try:
            found.update(scrape(port))
        except OSError as error:
            errors.add(repr(error))
            return False
        return expected.items() <= found.items()

    end = time.monotonic() + DEADLINE
    while not is_there():
        assert time.monotonic() < end, (expected, found, errors)
    return found


def pick(samples: Samples, pattern: str) -> Samples:
    return {name: value for name, value in samples.items() if re.fullmatch(pattern, name) and value}


MODES = {
    "direct": {},
    "workers": {"ASYA_CONCURRENCY": "2"},
    "deadline": {"ASYA_HANDLER_DEADLINE": "30"},
    "slow": {"ASYA_HANDLER_TIMEOUT": "30"},
}


@pytest.mark.parametrize("mode", MODES)
def test_each_message_is_counted(start: Start, python: str, port: int, mode: str) -> None:
    process = start(
        HANDLER, "app.predict", python=python,
        ASYA_METRICS_PORT=str(port), ASYA_MAX_MESSAGE_SIZE="1000", ASYA_JSON="stdlib",
        **MODES[mode],
    )  # fmt: skip
    client, sent, received = process.client(), 0, 0
    for what in ("ok", "ok", "bad", "full", "gpu"):
        body = json.dumps({"payload": {"what": what}}).encode()
        client.send(frame(body))
        sent, received = sent + len(body) + 4, received + len(json.dumps(client.reply()))
    for bad in (b"{", b"x" * 1001):
        client.send(frame(bad))
        client.reply()
    samples = scrape_until(port, asya_connections=1, **{"asya_messages_total outcome=ok": 2})
    assert pick(
        samples, "asya_messages_total.*|asya_memory.*|asya_batch.*|.*_count|asya_conn.*"
    ) == {
        "asya_messages_total outcome=ok": 2,
        "asya_messages_total outcome=processing_error": 1,
        "asya_messages_total outcome=oom_error": 1,
        "asya_messages_total outcome=cuda_oom_error": 1,
        "asya_messages_total outcome=invalid_json": 1,
        "asya_messages_total outcome=connection_error": 1,
        "asya_memory_errors_total kind=oom_error": 1,
        "asya_memory_errors_total kind=cuda_oom_error": 1,
        "asya_handler_seconds_count": 5,
        "asya_decode_seconds_count": 5,
        "asya_encode_seconds_count": 2,
        "asya_batch_size_bucket le=+Inf": 5,
        "asya_batch_size_sum": 5,
        "asya_batch_size_count": 5,
        "asya_batch_limit": 1,
        "asya_connections": 1,
    }
    assert samples["asya_received_bytes_total"] == sent + 5
    assert 0 < samples["asya_sent_bytes_total"] <= received + 1000
    assert 0 < samples["asya_handler_seconds_sum"] < DEADLINE
    assert samples["asya_handler_seconds_bucket le=60.0"] == 5
    assert samples["process_resident_memory_bytes"] > 4 << 20
    assert 0 <= time.time() - samples["process_start_time_seconds"] < DEADLINE
    (info,) = pick(samples, "asya_runtime_info.*")
    assert re.fullmatch(
        r"asya_runtime_info version=\d+\.\d+\.\d+ python=3\.\d+\.\d+\S* json=standard library "
        r"handler=app\.predict", info
    )  # fmt: skip
    stopped(process)


def test_a_call_that_runs_is_seen(start: Start, folder: Path, port: int) -> None:
    process = start(HANDLER, "app.predict", ASYA_METRICS_PORT=str(port))
    first, second = process.client(), process.client()
    first.send(frame({"payload": {"what": "wait"}}))
    eventually((folder / "waiting").exists, "the call")
    second.send(frame({"payload": {}}))
    running = scrape_until(port, asya_connections_waiting=1)["asya_call_running_seconds"]
    assert scrape_until(port, asya_connections_waiting=1)["asya_call_running_seconds"] > 0
    assert running > 0
    (folder / "go").touch()
    assert [first.reply()["status"], second.reply()["status"]] == ["ok", "ok"]
    scrape_until(port, asya_call_running_seconds=0, asya_connections_waiting=0)


BATCHES = """
    import os, time
    def predict(messages):
        open("waiting", "w").close()
        while not os.path.exists("go"): time.sleep(0.002)
        if len(messages) > 4: raise MemoryError
        return list(range(len(messages)))
"""


def test_batches_are_counted_by_their_sizes(start: Start, folder: Path, port: int) -> None:
    process = start(BATCHES, "app.predict", ASYA_METRICS_PORT=str(port), ASYA_BATCH_SIZE="8")
    client = process.client()
    client.send(frame({"payload": {}}))
    eventually((folder / "waiting").exists, "the first call")
    client.send(frame({"payload": {}}) * 7 + frame(b"{"))
    scrape_until(port, asya_connections_waiting=1, asya_batch_limit=8)
    (folder / "go").touch()
    for _ in range(9):
        client.reply()
    samples = scrape_until(port, asya_batch_limit=4)
    assert pick(samples, "asya_batch_size.*|asya_m.*|asya_(hand|dec|enc).*_count") == {
        "asya_batch_size_bucket le=1.0": 1,  # one; then 7 of which 4 and 3 fit
        "asya_batch_size_bucket le=2.0": 1,
        "asya_batch_size_bucket le=4.0": 3,
        "asya_batch_size_bucket le=7.0": 4,
        "asya_batch_size_bucket le=+Inf": 4,
        "asya_batch_size_sum": 15,
        "asya_batch_size_count": 4,
        "asya_messages_total outcome=ok": 8,
        "asya_messages_total outcome=invalid_json": 1,
        "asya_memory_errors_total kind=oom_error": 1,
        "asya_handler_seconds_count": 4,
        "asya_decode_seconds_count": 15,
        "asya_encode_seconds_count": 8,
    }


def test_a_late_call_is_counted_as_what_was_sent(start: Start, port: int) -> None:
    source = """
        import asyncio
        async def predict(message): await asyncio.sleep(60)
    """
    environ = {"ASYA_METRICS_PORT": str(port), "ASYA_HANDLER_DEADLINE": "2"}
    process = start(source, "app.predict", **environ)
    assert process.call({})["type"] == "HandlerDeadlineExceeded"
    samples = scrape_until(port, **{"asya_messages_total outcome=processing_error": 1})
    assert pick(samples, "asya_messages_total.*") == {
        "asya_messages_total outcome=processing_error": 1
    }


REQUESTS = {
    b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n": b"HTTP/1.1 200 OK",
    b"GET /metrics?a=b HTTP/1.0\r\n\r\n": b"HTTP/1.1 200 OK",
    b"HEAD /metrics HTTP/1.1\r\n\r\n": b"HTTP/1.1 200 OK",
    b"POST /metrics HTTP/1.1\r\n\r\n": b"HTTP/1.1 405 Method Not Allowed",
    b"GET / HTTP/1.1\r\n\r\n": b"HTTP/1.1 404 Not Found",
    b"GET /metrics\r\n\r\n": b"HTTP/1.1 400 Bad Request",
    b"\x16\x03\x01\x02\x00\xff\xff\r\n\r\n": b"HTTP/1.1 400 Bad Request",
    b"\r\n\r\n": b"HTTP/1.1 400 Bad Request",
    b"GET /metrics HTTP/1.1\r\n" + b"a" * (16384 - 23): b"HTTP/1.1 431 ",
    b"": b"",
}


def ask(port: int, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), DEADLINE) as sock:
        sock.sendall(request)
        sock.shutdown(socket.SHUT_WR)
        data = b""
        while more := sock.recv(65536):
            data += more
        return data


def test_what_scrapers_send_is_answered_or_dropped(start: Start, folder: Path, port: int) -> None:
    """The two seconds that a scraper has are a constant: a busy machine may need more."""
    copy = changed(RUNTIME, folder / "patient.py", {"SCRAPER_TIME = 2.0": "SCRAPER_TIME = 60.0"})
    process = start(argv=[sys.executable, copy], ASYA_METRICS_PORT=str(port))
    scrape_until(port)
    for request, expected in REQUESTS.items():
        head, _, body = ask(port, request).partition(b"\r\n\r\n")
        assert head.startswith(expected), request[:40]
        size = re.search(rb"Content-Length: (\d+)", head)
        assert request[:4] == b"HEAD" or not size or int(size[1]) == len(body)
    assert process.call({"a": 1})["status"] == "ok"


@pytest.fixture
def silent(port: int) -> Iterator[list[socket.socket]]:
    """Connections that say nothing, to be opened by the test."""
    opened: list[socket.socket] = []
    yield opened
    for sock in opened:
        sock.close()


def test_silent_and_slow_scrapers_hold_up_nobody(
    start: Start, port: int, silent: list[socket.socket]
) -> None:
    process = start(ASYA_METRICS_PORT=str(port))
    scrape_until(port)
    for number in range(100):
        silent.append(socket.create_connection(("127.0.0.1", port), DEADLINE))
        if number % 2:
            silent[-1].send(b"GET /met")
    assert process.call({"a": 1})["status"] == "ok"
    scrape_until(port)  # in time: 2 s for each of them would be 200
    for sock in silent:
        sock.settimeout(DEADLINE)
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(1) == b""  # closed after two seconds
    stopped(process)


def test_a_port_that_cannot_be_had_is_one_line_and_tried_again(
    start: Start, folder: Path, port: int
) -> None:
    later = "next_attempt = time.monotonic() + PORT_PAUSE"
    often = {later: "next_attempt = 0.0; log('tried')"}
    copy = changed(RUNTIME, folder / "impatient.py", often)
    with socket.socket(socket.AF_INET6) as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # beside the fixture's
        other.bind(("::", port))
        other.listen()
        process = start(argv=[sys.executable, copy], ASYA_METRICS_PORT=str(port))
        eventually(lambda: process.log().count("tried") >= 3, "three attempts")
        line = f"ASYA_METRICS_PORT={port}: Address already in use; free it or set another port"
        assert process.log().count("ASYA_METRICS_PORT") == process.log().count(line) == 1
        assert process.call({"a": 1})["status"] == "ok"
    scrape_until(port)


def test_a_child_that_user_code_forks_does_not_keep_the_port(start: Start, port: int) -> None:
    process = start(HANDLER, "app.predict", ASYA_METRICS_PORT=str(port))
    scrape_until(port)
    assert process.call({"what": "fork"})["status"] == "ok"
    stopped(process)
    with socket.socket(socket.AF_INET6) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # after its own connections
        sock.bind(("::", port))
        sock.listen()


def test_a_listener_that_user_code_closes_is_opened_again(start: Start, port: int) -> None:
    source = """
        import os, socket
        def predict(message):
            for name in os.listdir("/proc/self/fd"):
                try: sock = socket.socket(fileno=int(name))
                except OSError: continue
                if sock.family == socket.AF_INET6: sock.close()
                else: sock.detach()
            return os.open("/dev/null", os.O_RDONLY)
    """
    process = start(source, "app.predict", ASYA_METRICS_PORT=str(port))
    scrape_until(port)
    kept = process.call({})["result"]
    scrape_until(port)
    assert Path(f"/proc/{process.pid}/fd/{kept}").readlink() == Path("/dev/null")


@pytest.mark.parametrize(("number", "threads"), [("0", 2), ("port", 3)])
def test_without_the_setting_there_is_no_thread_and_no_port(
    start: Start, python: str, port: int, number: str, threads: int
) -> None:
    number = str(port) if number == "port" else number
    process = start(python=python, ASYA_METRICS_PORT=number)
    assert process.call({})["status"] == "ok"
    assert len([*Path(f"/proc/{process.pid}/task").iterdir()]) == threads
    # The thread of the metrics opens the port when it comes to run.
    eventually(lambda: _count_tcp_sockets(process.pid) == threads - 2, "the port of the metrics")


def _count_tcp_sockets(pid: int) -> int:
    inodes = {
        line.split()[9]
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]
    }
    return sum(link[8:-1] in inodes for link in open_files(pid))


def test_values_that_nobody_counts_take_bounded_memory(runtime: ModuleType) -> None:
    raw = runtime.Raw()
    for _ in range(runtime.MOST_RAW + 10):
        raw.append(1)
    assert raw.take() == [1] * runtime.MOST_RAW
    assert raw.take() == []


def test_values_are_counted_by_upper_bounds(runtime: ModuleType) -> None:
    histogram = runtime.Histogram([1, 2, 4])
    for values in ([], [0.5, 1, 1.5], [9.0], [2, 2.5, 4]):
        histogram.add(values)
    assert list(histogram.render("a")) == [
        'a_bucket{le="1.0"} 2',
        'a_bucket{le="2.0"} 4',
        'a_bucket{le="4.0"} 6',
        'a_bucket{le="+Inf"} 7',
        "a_sum 20.5",
        "a_count 7",
    ]
