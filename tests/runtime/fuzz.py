"""Fuzz: mutated frames against the real process, each reply compared with the oracle's.

    make fuzz                                 10^6 frames
    make fuzz FRAMES=5000 ARGS='--seed 7'
    make fuzz ARGS='--seed 7 --batch 123'     one batch again: what a failure names

A batch is one connection's life: frames, some mutated, some over the limit, some cut short,
sent in pieces; all of it follows from the seed and the number of the batch.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from . import oracle
from .conftest import ROOT, RUNTIME, Client, Process, environment, frame
from .hostile import ratio_of_p99

SAMPLES = [
    b'{"payload":{}}',
    b'{"payload":{"a":[1,2.5,-3e9,null,true,"\\ud83d\\ude00"]},"id":"x"}',
    b'{"id":"x", "payload" : {"n": 12345678901234567890, "n": -0.0, "deep": {"er": [[[]]]}}}',
    json.dumps({"payload": {"text": "ä\u2028" * 150}}, ensure_ascii=False).encode(),
    b'{"payload":{"n":1e400}}',
    b'{"payload":{"a":' + b"[" * 300 + b"]" * 300 + b"}}",
    b'{"payload":{"a":NaN}}',
    b" \t\r\n[]",
    b"",
    b'{"payload":{"a":{"$bytes":3},"b":[{"$bytes":0},{"$bytes":1,"c":2}]},"id":{"$bytes":2}}\0abc\0\xff',
    b'{"payload":{"a":{"$bytes":9}}}   \0{"payload"',
    b'{"payload":{}} \0',
]
RARE = [b'{"payload":{"do":"%s"}}' % deed.encode() for deed in oracle.DEEDS] + [
    json.dumps({"payload": {"text": "x" * size}}).encode() for size in (4064, 70_000, 99_000)
]
RARE += [b'{"payload":{"a":{"$bytes":%d}}}\0' % size + bytes(size) for size in (4064, 70_000)]
WORDS = [b"{", b"}", b"[", b"]", b'"', b"\\", b",", b":", b"0", b"-", b"e", b"null", b'"payload":',
         b"\\ud800", b"\x00", b"\xff", b"\xc3", b"Infinity", b"9" * 50, b'{"$bytes":1}',
         b'"$bytes":', b"true", b"-1", b"1.0", b"4294967296"]  # fmt: skip
# Sent ahead: frames at most, and bytes after which there is no further frame. The replies have to
# fit the socket's buffer, or client and runtime would wait for each other.
WINDOW, AHEAD = 30, 65536


def mutated(chance: random.Random) -> bytes:
    """Give the body of one frame."""
    body = bytearray(chance.choice(RARE if chance.random() < 0.005 else SAMPLES))
    for _ in range(chance.randrange(5)):
        at = chance.randrange(len(body) + 1)
        match chance.randrange(5):
            case 0:
                body[at : at + 1] = chance.randbytes(1)
            case 1:
                body[at:at] = chance.randbytes(chance.randrange(5))
            case 2:
                del body[at : at + chance.randrange(9)]
            case 3:
                body[at:at] = body[: chance.randrange(40)]
            case 4:
                body[at:at] = chance.choice(WORDS)
    return bytes(body)


@dataclass(frozen=True)
class Batch:
    """The life of one connection."""

    windows: list[bytes]
    piece: int  # bytes sent at once
    end: str  # "close" after the last reply; "half" after the last byte; "leave" unread


def batch(seed: int, number: int) -> Batch:
    chance = random.Random(f"{seed}/{number}")
    windows = []
    for _ in range(chance.randrange(1, 12)):
        frames: list[bytes] = []
        for _ in range(chance.randrange(1, WINDOW)):
            if sum(map(len, frames)) < AHEAD:
                frames.append(frame(mutated(chance)))
        if chance.random() < 0.05:
            frames.append(frame(bytes(oracle.LIMIT + chance.randrange(1, 99))))
        windows.append(b"".join(frames))
    end = chance.choices(["close", "half", "leave"], [90, 8, 2])[0]
    if end == "half":
        tail = chance.choice([b"\xff\xff\xff\xff", b"\x00\x00\x00\x09", frame(mutated(chance))])
        windows.append((tail + chance.randbytes(3))[: chance.randrange(8)])
    tiny = sum(map(len, windows)) < 20_000 and chance.random() < 0.1
    return Batch(
        windows, chance.choice([1, 3, 4, 5]) if tiny else 1 << chance.randrange(9, 20), end
    )


class Mismatch(Exception):  # noqa: N818
    """A reply that is not the one the contract wants, or none."""


def play(client: Client, one: Batch) -> int:
    """Live through a batch; give the number of replies. Raises Mismatch."""
    stream, seen = b"", 0
    for number, window in enumerate(one.windows):
        try:
            for at in range(0, len(window), one.piece):
                client.send(window[at : at + one.piece])
        except OSError as error:
            raise Mismatch(f"frame {seen}: {error!r} while sending") from error
        stream += window
        last = number == len(one.windows) - 1
        if last and one.end == "leave":
            return seen
        ended = last and one.end == "half"
        if ended:
            client.sock.shutdown(socket.SHUT_WR)
        # A window ends where a frame ends: only the last one may be cut short.
        for expected in oracle.replies(window, ended):
            try:
                reply = client.exactly(int.from_bytes(client.exactly(4), "big"))
            except (OSError, EOFError) as error:
                raise Mismatch(f"reply {seen}: {error!r}; expected {expected!r:.300}") from error
            if not oracle.agrees(reply, expected):
                raise Mismatch(f"reply {seen}: {reply!r:.300}\nexpected {expected!r:.300}")
            seen += 1
        if ended and not client.at_end():
            raise Mismatch(f"after reply {seen}: more bytes")
    client.sock.setblocking(False)
    try:
        more = client.sock.recv(1) if one.end == "close" else b""
    except BlockingIOError:
        more = b""
    if more:
        raise Mismatch(f"after reply {seen}: more bytes")
    return seen


@dataclass
class Report:
    """What a run has seen so far."""

    frames: int = 0  # complete ones, and those cut short by a half-close
    replies: int = 0  # all of them but what clients left unread
    batches: int = 0
    began: float = field(default_factory=time.monotonic)

    def line(self, process: Process, at_first: tuple[int, int, int]) -> str:
        seconds = time.monotonic() - self.began
        memory, threads, files = footprint(process)
        return (
            f"{self.frames} frames, {self.replies} replies, "
            f"{self.frames - self.replies} left unread, {self.batches} connections, "
            f"{seconds:.0f} s; memory {memory - at_first[0]:+d} KiB of {memory}, "
            f"threads {threads - at_first[1]:+d}, files {files - at_first[2]:+d}"
        )


def footprint(process: Process) -> tuple[int, int, int]:
    """Give resident KiB, threads and open files, once nothing is in the works."""
    proc = Path(f"/proc/{process.pid}")
    resident = int((proc / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024
    return resident, len(list((proc / "task").iterdir())), len(list((proc / "fd").iterdir()))


def run(process: Process, seed: int, numbers: Iterator[int], report: Report) -> None:
    """Play batches against a process. Raises Mismatch, which names the batch."""
    for number in numbers:
        one = batch(seed, number)
        client = Client(process.socket)
        try:
            report.replies += play(client, one)
        except Mismatch as mismatch:
            raise Mismatch(f"seed {seed}, batch {number}: {mismatch}") from mismatch
        finally:
            client.close()
        report.batches += 1
        ended = one.end == "half"
        report.frames += sum(len(list(oracle.replies(w, ended))) for w in one.windows)


def settings(folder: Path, **more: str) -> dict[str, str]:
    """Write the handler into `folder`; give the environment of its process."""
    (folder / "app.py").write_text(textwrap.dedent(oracle.HANDLER))
    limits = {"ASYA_MAX_MESSAGE_SIZE": str(oracle.LIMIT), "ASYA_JSON": "stdlib"}
    return environment(folder, ASYA_HANDLER="app.answer") | limits | more


def until(frames: int, seconds: float, report: Report) -> Iterator[int]:
    end, number = time.monotonic() + seconds, 0
    while report.frames < frames and time.monotonic() < end:
        yield number
        number += 1


def main() -> int:
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=1800, help="an end in any case")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--batch", type=int, help="only this one")
    parser.add_argument("--concurrency", default="1", help="ASYA_CONCURRENCY")
    arguments = parser.parse_args()
    seed: int = arguments.seed
    with tempfile.TemporaryDirectory(prefix="asya-fuzz-") as name:
        folder = Path(name)
        environ = settings(folder, ASYA_CONCURRENCY=arguments.concurrency)
        process = Process(folder, [sys.executable, str(RUNTIME)], environ).ready()
        report, shown, good = Report(), time.monotonic(), process.client()
        at_first = footprint(process)
        todo = until(arguments.frames, arguments.seconds, report)
        try:
            for number in todo if arguments.batch is None else [arguments.batch]:
                run(process, seed, iter([number]), report)
                if number == 200:
                    at_first = footprint(process)  # warm: buffers and caches are there
                if time.monotonic() - shown > 10:
                    shown = time.monotonic()
                    print(f"fuzz: seed {seed}: {report.line(process, at_first)}", flush=True)
            for _ in range(5):  # what was closed before is closed there as well
                good.call({"payload": {}})
            last = f"fuzz: passed: seed {seed}: {report.line(process, at_first)}"
            if arguments.batch is None:
                print(f"fuzz: {ratio_of_p99(process)}", flush=True)
            print(last)
            return 0
        except Mismatch as mismatch:
            number = report.batches if arguments.batch is None else arguments.batch
            kept = ROOT / "build" / f"fuzz-{seed}-{number}.bin"
            kept.parent.mkdir(exist_ok=True)
            kept.write_bytes(b"".join(batch(seed, number).windows))
            status = process.popen.poll()
            print(f"{process.log()[-4000:]}\nfuzz: {mismatch}")
            if status is not None:
                print(f"fuzz: the process ended with {status}")
            print(
                f"fuzz: FAILED; its bytes are in {kept.relative_to(ROOT)}; again with: "
                f"make fuzz ARGS='--seed {seed} --batch {number}'"
            )
            return 1
        finally:
            process.end()


if __name__ == "__main__":
    sys.exit(main())
