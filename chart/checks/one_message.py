"""Program of the pod of `helm test`, which is annotated as an actor: sends a message to the actor.

Exits with status 0 if the reply is correct, otherwise with 1 and a line that says what is wrong.
Standard library only.
"""

import json
import os
import socket
import struct
import sys
import time

SECONDS = 60
MESSAGE = {"payload": {"numbers": [1, 2], "text": "hello"}}
NOT_INJECTED = (
    "this pod was admitted without the runtime. Check that webhook.namespaceSelector and the "
    "namespace's label asya.sh/injection include this namespace. With webhook.failurePolicy "
    "Ignore, check that the injector is ready"
)


def connect(path: str) -> socket.socket:
    """Connect to the actor, whose socket appears when it is ready."""
    deadline = time.monotonic() + SECONDS
    while True:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(SECONDS)
        try:
            connection.connect(path)
        except OSError as error:
            connection.close()
            if time.monotonic() > deadline:
                sys.exit(f"cannot connect to the actor at {path} within {SECONDS} s: {error}")
            time.sleep(0.05)
        else:
            return connection


def main() -> None:
    """Send the message to the handler, which returns it unchanged."""
    path = os.environ.get("ASYA_SOCKET_PATH")
    if not path:
        sys.exit(NOT_INJECTED)
    body = json.dumps(MESSAGE).encode()
    with connect(path) as connection:
        connection.sendall(struct.pack(">I", len(body)) + body)
        stream = connection.makefile("rb")
        (size,) = struct.unpack(">I", stream.read(4))
        reply = json.loads(stream.read(size))
    if reply != {"status": "ok", "result": MESSAGE}:
        sys.exit(f"the actor replied {reply}, expected the message {MESSAGE} as the result")
    print("the injector turned this pod into an actor, and the actor answers correctly")  # noqa: T201


main()
