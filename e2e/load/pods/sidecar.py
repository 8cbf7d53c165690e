"""A sidecar that never runs out of messages and says what became of each attempt.

A line an attempt: `STATE ID BEGAN SENT ENDED DETAIL`, times in Unix seconds, SENT 0 where the frame
was not wholly handed over. `cut` and `waiting` (nobody there) are tried again until it is answered,
or `untaken`: nobody was there any more when the pod ended.

Two clients: `kept` uses one connection, `new` one for each message. SIGUSR1 makes `kept` send a
long message, SIGUSR2 one that eats all memory (once: said again, it is a plain one). SIGTERM: go
on until the actor takes nothing more, then say `end` and how many lines there were.
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
PATIENCE = 40
CALL: "dict[str, object]" = {"seconds": 0.02}
ORDERS: "dict[int, dict[str, object]]" = {
    signal.SIGUSR1: {"seconds": 2.0, "say": True},
    signal.SIGUSR2: {"seconds": 0.5, "say": True, "eat": True},
}
orders: "queue.SimpleQueue[dict[str, object]]" = queue.SimpleQueue()
stopping = threading.Event()
saying = threading.Lock()
BEGAN = int(time.time())  # a container that is started again has the same name and pid
lines = itertools.count()


def say(*words: object) -> None:
    with saying:
        next(lines)
        print(*words, flush=True)


def exchange(connection: socket.socket, body: bytes) -> "tuple[float, bytes | None]":
    """When the frame was wholly sent (0: never), and the reply (None: none)."""
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
    said = json.loads(reply)
    if said["status"] == "ok":
        return ("answered", "-") if said["result"] == {"id": name} else ("mangled", "-")
    return "refused", said["error"]


def client(kind: str, kept: bool) -> None:
    """Deliver messages one after the other, each until it is answered."""
    connection = None
    number = 0
    while True:
        number += 1
        name = f"{os.environ['HOSTNAME']}-{kind}-{BEGAN}-{number}"
        call = dict(CALL)
        if kept and not orders.empty():
            call.update(orders.get())
        nobody = False
        while True:
            began = time.time()
            if connection is None:
                connection = socket.socket(socket.AF_UNIX)
                connection.settimeout(PATIENCE)
                try:
                    connection.connect(PATH)
                except OSError as error:
                    connection = None
                    if stopping.is_set():
                        say("untaken", name, began, 0, time.time(), error.strerror)
                        return
                    if not nobody:
                        say("waiting", name, began, 0, time.time(), error.strerror)
                    nobody = True
                    time.sleep(RETRY)
                    continue
            sent, reply = exchange(
                connection, json.dumps({"payload": {"id": name, **call}}).encode()
            )
            state, detail = (
                judge(name, reply) if reply else ("cut" if sent else "waiting", "closed")
            )
            say(state, name, began, sent, time.time(), detail)
            if reply is None or not kept:
                connection.close()
                connection = None
            if state in ("answered", "mangled"):
                break
            call = dict(CALL)
            time.sleep(RETRY)
        time.sleep(PAUSE)


def main() -> None:
    # Waited for, not handled: a handler's signal that comes while the interpreter goes to sleep
    # in `join` is looked at when the next one wakes it.
    signals = {signal.SIGTERM, *ORDERS}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    threads = [
        threading.Thread(target=client, args=one) for one in (("kept", True), ("new", False))
    ]
    for thread in threads:
        thread.start()
    while (number := signal.sigwait(signals)) != signal.SIGTERM:
        orders.put(ORDERS[number])
    stopping.set()
    for thread in threads:
        thread.join()
    print("end", next(lines), flush=True)


if __name__ == "__main__":
    main()
