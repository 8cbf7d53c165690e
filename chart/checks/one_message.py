"""What `helm test` runs in a pod that asks to be an actor: one message, and is its reply right?

Ends with status 0, or with 1 and a line that says what is wrong. Standard library only.
"""

import json
import os
import socket
import struct
import sys
import time

SECONDS = 60
MESSAGE = {"payload": {"is": ["anybody", "there"]}}
LET_IN_AS_IT_WAS = (
    "this pod was let in without the runtime: the API server did not ask the injector about it, "
    "or got no answer. Is this namespace left out by webhook.namespaceSelector, or by its label "
    "asya.sh/injection? Is webhook.failurePolicy Ignore?"
)


def connected(path: str) -> socket.socket:
    """A connection to the actor; the socket's file appears when the actor serves."""
    deadline = time.monotonic() + SECONDS
    while True:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(SECONDS)
        try:
            connection.connect(path)
        except OSError as error:
            connection.close()
            if time.monotonic() > deadline:
                sys.exit(f"no actor at {path} after {SECONDS} s: {error}")
            time.sleep(0.05)
        else:
            return connection


def main() -> None:
    """Send the message; the handler is one that gives back what it gets."""
    path = os.environ.get("ASYA_SOCKET_PATH")
    if not path:
        sys.exit(LET_IN_AS_IT_WAS)
    body = json.dumps(MESSAGE).encode()
    with connected(path) as connection:
        connection.sendall(struct.pack(">I", len(body)) + body)
        stream = connection.makefile("rb")
        (size,) = struct.unpack(">I", stream.read(4))
        reply = json.loads(stream.read(size))
    if reply != {"status": "ok", "result": MESSAGE}:
        sys.exit(f"the actor answered {reply} to {MESSAGE}, which it should have sent back")
    print("the injector made this pod an actor, and the actor answers")  # noqa: T201


main()
