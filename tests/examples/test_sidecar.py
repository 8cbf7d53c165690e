"""The example sidecar speaks the protocol, to a peer that makes it hard."""

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
        timeout=30,
        check=False,
    )


def serve(listener: socket.socket, got: list[bytes], replies: list[str]) -> None:
    """Take frames and answer each, one byte at a time."""
    connection, _ = listener.accept()
    with connection, connection.makefile("rb") as stream:
        for reply in replies:
            got.append(stream.read(int.from_bytes(stream.read(4), "big")))
            frame = len(reply.encode()).to_bytes(4, "big") + reply.encode()
            for byte in frame:
                connection.sendall(bytes([byte]))


@pytest.fixture
def listener(tmp_path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.settimeout(30)
    listener.bind(str(tmp_path / "s"))
    listener.listen()
    return listener


@pytest.mark.parametrize(
    ("replies", "code", "complaint"),
    [
        pytest.param(REPLIES, 0, b"", id="every message answered"),
        pytest.param(
            REPLIES[:1], 1, b"the actor went away without a reply", id="the actor goes away"
        ),
    ],
)
def test_each_line_is_a_message_and_each_reply_a_line(
    examples: Path,
    tmp_path: Path,
    listener: socket.socket,
    replies: list[str],
    code: int,
    complaint: bytes,
) -> None:
    got: list[bytes] = []
    actor = threading.Thread(target=serve, args=(listener, got, replies))
    with listener:
        actor.start()
        done = run(examples, tmp_path / "s")
        actor.join(30)
    assert done.stdout.decode().splitlines() == replies
    assert (done.returncode, got) == (code, MESSAGES[: len(replies)])
    assert complaint in done.stderr
