"""The limit for bytes: a blocking loop that sends back what it has received, from one buffer.

bare_bytes.py SOCKET
"""

import socket
import sys

buffer = bytearray(1 << 16)
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen(64)


def read(connection: socket.socket, start: int, end: int) -> bool:
    with memoryview(buffer) as view:
        while start < end:
            count = connection.recv_into(view[start:end])
            if not count:
                return False
            start += count
    return True


while True:
    connection, _ = listener.accept()
    with connection:
        while read(connection, 0, 4):
            size = 4 + int.from_bytes(buffer[:4], "big")
            if size > len(buffer):
                buffer += bytes(size - len(buffer))
            if not read(connection, 4, size):
                break
            with memoryview(buffer) as view:
                connection.sendall(view[:size])
