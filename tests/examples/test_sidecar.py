"""The example sidecar and the protocol, with an actor that sends one byte at a time."""

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

MESSAGES = [b'{"payload": {"text": "a"}}', '{"payload": {"text": "ä"}}'.encode()]
REPLIES = ['{"status": "ok", "result": "ä"}', '{"status": "ok", "result": 2}']


def run(examples: Path, path: Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, examples / "sidecar" / "sidecar.py"],
        input=b"\n".join(MESSAGES),
        env={**os.environ, "ASYA_SOCKET_PATH": str(path), "PYTHONUTF8": "1"},
        capture_output=True,
        timeout=200,
        check=False,
    )


def serve(listener: socket.socket, received: list[bytes], replies: list[str]) -> None:
    """Receive frames, and answer each one byte at a time."""
    connection, _ = listener.accept()
    with connection, connection.makefile("rb") as stream:
        for reply in replies:
            received.append(stream.read(int.from_bytes(stream.read(4), "big")))
            frame = len(reply.encode()).to_bytes(4, "big") + reply.encode()
            for byte in frame:
                connection.sendall(bytes([byte]))


@pytest.fixture
def listener(tmp_path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.settimeout(200)
    listener.bind(str(tmp_path / "s"))
    listener.listen()
    return listener


@pytest.mark.parametrize(
    ("replies", "code", "error"),
    [
        pytest.param(REPLIES, 0, b"", id="all messages answered"),
        pytest.param(
            REPLIES[:1],
            1,
            b"the actor closed the connection without a reply",
            id="the actor closes the connection",
        ),
    ],
)
def test_each_line_is_a_message_and_each_reply_a_line(
    examples: Path,
    tmp_path: Path,
    listener: socket.socket,
    replies: list[str],
    code: int,
    error: bytes,
) -> None:
    received: list[bytes] = []
    actor = threading.Thread(target=serve, args=(listener, received, replies))
    with listener:
        actor.start()
        done = run(examples, tmp_path / "s")
        actor.join(200)
    assert done.stdout.decode().splitlines() == replies
    assert (done.returncode, received) == (code, MESSAGES[: len(replies)])
    assert error in done.stderr
