"""The baseline: a blocking loop that reads prefix and body and does the JSON work, without checks.

    bare_echo.py SOCKET [threads|orjson]

threads: one for each connection; without it, one client is served after another.
orjson: that library in place of the standard one.
"""

import socket
import sys
import threading

from work import answer, reply


def read(connection: socket.socket, size: int) -> bytearray | None:
    buffer, got = bytearray(size), 0
    with memoryview(buffer) as view:
        while got < size:
            count = connection.recv_into(view[got:])
            if not count:
                return None
            got += count
    return buffer


def serve(connection: socket.socket) -> None:
    with connection:
        while (prefix := read(connection, 4)) is not None:
            body = read(connection, int.from_bytes(prefix, "big"))
            if body is None:
                return
            result = answer(body)
            connection.sendall(len(result).to_bytes(4, "big") + result)


if "orjson" in sys.argv:
    import orjson

    def answer(body: bytes | bytearray) -> bytes:
        return orjson.dumps(reply(orjson.loads(body)))


listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen(64)
while True:
    connection, _ = listener.accept()
    if "threads" in sys.argv:
        threading.Thread(target=serve, args=[connection], daemon=True).start()
    else:
        serve(connection)
