"""A sidecar that sends messages without end and prints the result of each attempt.

One line per attempt: `STATE ID BEGAN SENT ENDED DETAIL`. Times are Unix seconds; SENT is 0 if the
frame was not sent as a whole. A message that is `cut`, `rejected` or `waiting` (the socket does not
accept) is sent again until it is answered. It is `undelivered` if the socket no longer accepts when
the pod ends.

Two clients: `kept` uses one connection, `new` one for each message. On SIGUSR1, `kept` sends a long
message; on SIGUSR2, one that exhausts the memory (a retry is an ordinary message). After SIGTERM it
goes on until the actor accepts no connection, and then prints `end` and the number of lines.
"""

import itertools
import json
import os
import queue
import signal
import socket
import struct
import sys
import threading
import time

PATH = os.environ["ASYA_SOCKET_PATH"]
PAUSE = float(sys.argv[1]) if len(sys.argv) > 1 else 0.1
RETRY = 0.1
TIMEOUT = 40
CALL: "dict[str, object]" = {"seconds": 0.02}
COMMANDS: "dict[int, dict[str, object]]" = {
    signal.SIGUSR1: {"seconds": 2.0, "announce": True},
    signal.SIGUSR2: {"seconds": 0.5, "announce": True, "exhaust": True},
}
commands: "queue.SimpleQueue[dict[str, object]]" = queue.SimpleQueue()
stopping = threading.Event()
print_lock = threading.Lock()
BEGAN = int(time.time())  # a restarted container has the same name and pid
lines = itertools.count()


def report(*words: object) -> None:
    with print_lock:
        next(lines)
        print(*words, flush=True)


def exchange(connection: socket.socket, body: bytes) -> "tuple[float, bytes | None]":
    """When the frame was sent as a whole (0: never), and the reply (None: no reply)."""
    try:
        connection.sendall(struct.pack(">I", len(body)) + body)
    except OSError:
        return 0.0, None
    sent = time.time()
    try:
        stream = connection.makefile("rb")
        prefix = stream.read(4)
        (size,) = struct.unpack(">I", prefix)
        reply = stream.read(size)
        return sent, reply if len(reply) == size else None
    except (OSError, struct.error):
        return sent, None


def judge(name: str, reply: bytes) -> "tuple[str, str]":
    answer = json.loads(reply)
    if answer["status"] == "ok":
        return ("answered", "-") if answer["result"] == {"id": name} else ("wrong", "-")
    return "rejected", answer["error"]


def client(kind: str, kept: bool) -> None:
    """Send messages one after the other, each until it is answered."""
    connection = None
    number = 0
    while True:
        number += 1
        name = f"{os.environ['HOSTNAME']}-{kind}-{BEGAN}-{number}"
        call = dict(CALL)
        if kept and not commands.empty():
            call.update(commands.get())
        is_reported = False
        while True:
            began = time.time()
            if connection is None:
                connection = socket.socket(socket.AF_UNIX)
                connection.settimeout(TIMEOUT)
                try:
                    connection.connect(PATH)
                except OSError as error:
                    connection = None
                    if stopping.is_set():
                        report("undelivered", name, began, 0, time.time(), error.strerror)
                        return
                    if not is_reported:
                        report("waiting", name, began, 0, time.time(), error.strerror)
                    is_reported = True
                    time.sleep(RETRY)
                    continue
            sent, reply = exchange(
                connection, json.dumps({"payload": {"id": name, **call}}).encode()
            )
            state, detail = (
                judge(name, reply) if reply else ("cut" if sent else "waiting", "closed")
            )
            report(state, name, began, sent, time.time(), detail)
            if reply is None or not kept:
                connection.close()
                connection = None
            if state in ("answered", "wrong"):
                break
            call = dict(CALL)
            time.sleep(RETRY)
        time.sleep(PAUSE)


def main() -> None:
    # sigwait, not handlers: a signal that arrives just before the interpreter sleeps in `join`
    # would be handled only when the next one wakes it.
    signals = {signal.SIGTERM, *COMMANDS}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    threads = [
        threading.Thread(target=client, args=one) for one in (("kept", True), ("new", False))
    ]
    for thread in threads:
        thread.start()
    while (number := signal.sigwait(signals)) != signal.SIGTERM:
        commands.put(COMMANDS[number])
    stopping.set()
    for thread in threads:
        thread.join()
    print("end", next(lines), flush=True)


if __name__ == "__main__":
    main()
