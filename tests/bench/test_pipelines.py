"""Clients that keep requests in flight: what they take for complete replies."""

import contextlib
import json
import socketserver
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.contenders import FRAMES, HTTP, ServerError
from bench.pipelines import drive, split_in_flight, take_frames, take_responses

HEAD = b"HTTP/1.1 200 OK\r\nserver: x\r\nContent-Length: 2\r\n\r\n"


@pytest.mark.parametrize(
    ("take", "whole"),
    [
        (take_frames, b"\0\0\0\2ab\0\0\0\0\0\0\0\1c"),
        (
            take_responses,
            HEAD + b"ab" + HEAD.replace(b"2\r\n\r", b"0\r\n\r") + HEAD[:-5] + b"1\r\n\r\nc",
        ),
    ],
)
def test_replies_are_complete_wherever_a_read_ends(
    take: Callable[[bytearray], list[bytes]], whole: bytes
) -> None:
    for end in range(len(whole) + 1):
        received = bytearray(whole[:end])
        bodies = take(received)
        received += whole[end:]
        assert bodies + take(received) == [b"ab", b"", b"c"]
        assert not received


@pytest.mark.parametrize(
    "head",
    [
        HEAD.replace(b"200 OK", b"503 Busy"),
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
    ],
)
def test_a_response_that_is_not_200_or_has_no_length_ends_the_benchmark(head: bytes) -> None:
    with pytest.raises(ServerError, match=r"unexpected response: .*HTTP"):
        take_responses(bytearray(head + b"ab"))


@pytest.mark.parametrize(
    ("protocol", "in_flight", "depths"),
    [
        (HTTP, 1, [1]),
        (HTTP, 3, [1, 1, 1]),
        (FRAMES, 1, [1]),
        (FRAMES, 3, [1, 1, 1]),
        (FRAMES, 9, [2, 1, 1, 1, 1, 1, 1, 1]),
        (FRAMES, 128, [16] * 8),
    ],
)
def test_requests_in_flight_are_spread_over_connections(
    protocol: str, in_flight: int, depths: list[int]
) -> None:
    assert split_in_flight(protocol, in_flight) == depths


class _Echo(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # the client left at a wrong reply
            while prefix := self.rfile.read(4):
                self.wfile.write(prefix + self.rfile.read(int.from_bytes(prefix, "big")))


@pytest.fixture
def echo(tmp_path: Path) -> Iterator[str]:
    class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
        pass

    with Server(str(tmp_path / "socket"), _Echo) as server:
        threading.Thread(target=server.serve_forever, args=[0.01]).start()
        yield str(tmp_path / "socket")
        server.shutdown()


def test_every_reply_is_compared_with_the_one_to_its_request(echo: str) -> None:
    expected = [{"number": number} for number in range(5)]
    bodies = [json.dumps(each).encode() for each in expected]
    requests = [len(body).to_bytes(4, "big") + body for body in bodies]
    seconds, latencies = drive(FRAMES, echo, requests, expected, [4, 3], 0.02)
    assert len(latencies) >= 7
    assert 0 < max(latencies) <= seconds
    with pytest.raises(ServerError, match="wrong reply to request 3"):
        drive(FRAMES, echo, requests, [*expected[:3], {}, {}], [4, 3], 0.02)
