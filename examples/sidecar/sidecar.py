"""A minimal sidecar: messages on stdin, one JSON document per line; replies on stdout.

A frame is the length of the JSON as 4 bytes, big-endian, followed by the JSON, in both directions.
A real sidecar receives its messages from a queue instead of stdin.
"""

import json
import os
import signal
import socket
import sys
import time

PREFIX = 4


def connect(path: str, seconds: float = 30) -> socket.socket:
    """Connect to the actor; its socket appears when the handler is ready to serve."""
    deadline = time.monotonic() + seconds
    while True:
        actor = socket.socket(socket.AF_UNIX)
        try:
            actor.connect(path)
            return actor
        except (FileNotFoundError, ConnectionRefusedError):
            actor.close()
            if time.monotonic() > deadline:
                sys.exit(f"sidecar: nothing accepts connections on {path}")
            time.sleep(0.1)


def call(actor: socket.socket, message: bytes) -> bytes:
    """Send one message and wait for its reply; every message gets exactly one."""
    actor.sendall(len(message).to_bytes(PREFIX, "big") + message)
    return receive(actor, int.from_bytes(receive(actor, PREFIX), "big"))


def receive(actor: socket.socket, size: int) -> bytes:
    """Read exactly `size` bytes, which may arrive in pieces."""
    data = b""
    while len(data) < size:
        piece = actor.recv(size - len(data))
        if not piece:
            raise ConnectionResetError("end of stream")
        data += piece
    return data


def main() -> None:
    """Send the lines of stdin; with `--wait`, only keep the container running."""
    if sys.argv[1:] == ["--wait"]:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        signal.sigwait([signal.SIGTERM])
        return
    with connect(os.environ["ASYA_SOCKET_PATH"]) as actor:
        for line in sys.stdin.buffer:
            try:
                reply = json.loads(call(actor, line.strip()))
            except ConnectionError:  # for example a crash; a real sidecar would retry
                sys.exit("sidecar: the actor closed the connection without a reply")
            print(json.dumps(reply, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
