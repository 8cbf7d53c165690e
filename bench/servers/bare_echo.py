"""The limit: a blocking loop that reads prefix and body apart and does the JSON work, no checks.

    bare_echo.py SOCKET [threads] [orjson]

`threads`: a thread a connection, for several clients at once; without, one client after another.
`orjson`: with that library in place of the standard one.
"""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Callable

from work import answer, fast_answer

Answer = Callable[[bytearray], bytes]


def read(connection: socket.socket, size: int) -> bytearray | None:
    buffer, got = bytearray(size), 0
    with memoryview(buffer) as view:
        while got < size:
            count = connection.recv_into(view[got:])
            if not count:
                return None
            got += count
    return buffer


def serve(connection: socket.socket, answer: Answer) -> None:
    with connection:
        while (prefix := read(connection, 4)) is not None:
            body = read(connection, int.from_bytes(prefix, "big"))
            if body is None:
                return
            reply = answer(body)
            connection.sendall(len(reply).to_bytes(4, "big") + reply)


def main(path: str, *words: str) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    chosen = fast_answer() if "orjson" in words else answer
    while True:
        work = (listener.accept()[0], chosen)
        if "threads" in words:
            threading.Thread(target=serve, args=work, daemon=True).start()
        else:
            serve(*work)


main(*sys.argv[1:])
