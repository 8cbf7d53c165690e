"""Peers that mean no good, and how long others wait while they are at work."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from pathlib import Path

from .conftest import Client, Process, frame

FORGED = b"\xff\xff\xff\xff"
KINDS = ("idle", "forged", "drip", "deaf")


def besiege(path: str, cores: set[int], ready: object, over: object) -> None:
    """Hold 400 bad connections, and make and break a few hundred more a second, until `over`."""
    os.sched_setaffinity(0, cores)
    crowd = {kind: [Client(Path(path)) for _ in range(100)] for kind in KINDS}
    large = frame({"payload": {"text": "x" * 90_000}})
    for client in crowd["forged"]:
        client.send(FORGED + b"{" * 1000)
    for client in crowd["drip"]:
        client.send(b"\x00\x00\x10\x00{")
    for client in crowd["deaf"]:
        client.sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            client.sock.send(large * 2)  # never to be read
    ready.set()  # type: ignore[attr-defined]
    turn = 0
    while not over.wait(0.005):  # type: ignore[attr-defined]
        turn += 1
        client = Client(Path(path))
        with contextlib.suppress(OSError):
            client.send(
                [b"\x00\x00", FORGED + b"x" * 500, frame(b"{nope"), b"\xde\xad" * 50][turn % 4]
            )
        client.close()
        with contextlib.suppress(OSError):
            crowd["drip"][turn % 100].send(b" ")


def p99(client: Client, calls: int) -> float:
    """Give the 99th percentile of the round trips of a 1 KB message, in seconds."""
    message = {"payload": {"text": "x" * 1000}}
    times = []
    for _ in range(calls):
        began = time.perf_counter()
        client.call(message)
        times.append(time.perf_counter() - began)
    return sorted(times)[calls * 99 // 100]


def ratio_of_p99(process: Process, rounds: int = 5, calls: int = 2000) -> str:
    """Measure others' p99 with and without hostile peers, in turns; give a line that says so.

    The runtime and its good client share a core, which the peers do not get: what they cost the
    runtime is asked, not what they take from it by computing on the same machine.
    """
    cores = os.sched_getaffinity(0)
    core = {max(cores)}
    for thread in (0, *(int(task.name) for task in Path(f"/proc/{process.pid}/task").iterdir())):
        os.sched_setaffinity(thread, core)
    others = cores - core or core
    spawn = multiprocessing.get_context("spawn")
    quiet, besieged = [], []
    client = Client(process.socket)
    p99(client, calls)
    for _ in range(rounds):
        quiet.append(p99(client, calls))
        ready, over = spawn.Event(), spawn.Event()
        peers = spawn.Process(target=besiege, args=(str(process.socket), others, ready, over))
        peers.start()
        if not ready.wait(60):
            peers.kill()
            raise RuntimeError("the hostile peers did not start within 60 s")
        besieged.append(p99(client, calls))
        over.set()
        peers.join()
    client.close()
    os.sched_setaffinity(0, cores)
    one, other = (sorted(figures)[rounds // 2] * 1e6 for figures in (quiet, besieged))
    return (
        f"p99 of others {one:.0f} us, with 400 hostile connections and 200 more a second "
        f"{other:.0f} us: ratio {other / one:.2f} (medians of {rounds} rounds)"
    )
