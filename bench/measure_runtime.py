"""Measure the runtime beside its peers, in one run; writes JSON. `run.py` starts this.

Slices of a twentieth of a second go round all servers, in reverse order every other round, and
what counts is the median over the rounds of each server's ratio to the bare echo in the same
round: the machine's ups and downs meet all of them alike.

A single client shares a core with its server, so that the ratio is that of their work. On two, what
the scheduler does with a pair that wakes each other up changes small messages by more than anything
a server does: two copies of one server have been seen at 1.03 and 1.23 in the same run.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.contenders import BASE, BASE_FAST, BASE_FOR_MANY, BY_NAME, CONTENDERS, Contender
from bench.load import (
    ASCII,
    PROSE,
    SITUATIONS,
    Slice,
    WrongReply,
    drive,
    first_reply,
    message_of,
    request_of,
)
from bench.processes import NotServing, Process, bare_interpreter, serving

KB, MB = 1 << 10, 1 << 20
# Messages of one size differ from round to round, in length by a hundredth and in where their text
# begins. Else each copy meets the same alignment every time, and some processors need fifteen times
# as long for a target 1 to 15 bytes beyond its source, pages left aside: with orjson, whose texts
# lie one heap block after their source, a beginning 22 bytes into the message had just that.
FORMS = 8
STRIDE = 16  # what the allocator aligns blocks to: at most one of the beginnings is an unlucky one
USUAL = next(iter(SITUATIONS))


@dataclass(frozen=True)
class Cell:
    """One situation.

    kept: connections are kept, or each message has its own.
    together: a client and its server share one core.
    text: the kind of text in the message.
    """

    size: int
    clients: int
    kept: bool
    together: bool
    span: float  # seconds a slice
    rounds: int
    text: str = ASCII


@dataclass
class Samples:
    """What was seen of one server in one situation."""

    rates: dict[int, float] = field(default_factory=dict)  # by round
    cpu: dict[int, float] = field(default_factory=dict)
    latencies: list[float] = field(default_factory=list)

    def add(self, number: int, slice_: Slice, cpu: float) -> None:
        self.rates[number] = slice_.rate
        self.cpu[number] = cpu / len(slice_.latencies)
        self.latencies += slice_.latencies


def situations(quick: bool) -> list[Cell]:
    """The grid; in the quick form the part of it that the goals are about."""
    if quick:
        small = [Cell(KB, *shape, 0.04, 12) for shape in SITUATIONS]
        large = [Cell(64 * KB, *USUAL, 0.04, 12), Cell(MB, *USUAL, 0.1, 4)]
        return [*small, *large, *(replace(cell, text=PROSE) for cell in large)]
    return [
        *(Cell(KB, *shape, 0.05, 40) for shape in SITUATIONS),
        *(Cell(64 * KB, *shape, 0.05, 40) for shape in SITUATIONS),
        *(Cell(MB, *shape, 0.1, 12) for shape in SITUATIONS),
        *(Cell(16 * MB, *shape, 0.5, 4 if shape[0] == 1 else 2) for shape in SITUATIONS),
        Cell(64 * KB, *USUAL, 0.05, 40, PROSE),
        Cell(MB, *USUAL, 0.1, 12, PROSE),
    ]


def put_on(cores: Collection[int], pids: Iterable[int]) -> None:
    """Bind all threads of these processes to these cores; those that they start inherit it."""
    for pid in pids:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(ProcessLookupError):  # it has ended
                os.sched_setaffinity(int(thread.name), cores)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def round_trips(cells: Sequence[Cell], *, until: float) -> list[dict[str, Any]]:
    """Rates, CPU time and latencies of everyone in every situation, message by message.

    Each message has servers of its own: large ones teach the C library's allocator to keep memory,
    which would make later smaller ones cheaper than they are.
    """
    found, left = [], len(cells)
    for size, text in sorted({(cell.size, cell.text) for cell in cells}):
        some = [cell for cell in cells if (cell.size, cell.text) == (size, text)]
        now = time.monotonic()
        share = (until - now) * len(some) / left  # what one message does not need is the others'
        left -= len(some)
        say(f"  {size // KB} KB, {text}")
        found += one_message(some, until=now + share)
    return found


def one_message(cells: Sequence[Cell], *, until: float) -> list[dict[str, Any]]:
    """The same for situations with one and the same message."""
    samples: dict[tuple[Cell, str], Samples] = {}
    rounds = max(cell.rounds for cell in cells)
    size = cells[0].size
    messages = [
        message_of(size - n * (size // 100), cells[0].text, n * STRIDE) for n in range(FORMS)
    ]
    replies: dict[str, list[int]] = {}  # their lengths
    cores = os.sched_getaffinity(0)
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers: dict[str, tuple[Process, str]] = {}
        for contender in CONTENDERS:
            process, path, _ = stack.enter_context(serving(contender, directory))
            servers[contender.name] = (process, path)
            replies[contender.name] = [
                first_reply(contender.protocol, path, message) for message in messages
            ]
        pids = [os.getpid(), *(process.pid for process, _ in servers.values())]
        stack.callback(put_on, cores, pids[:1])
        for number in range(rounds):
            for cell in cells:
                if number >= cell.rounds:
                    continue
                put_on({max(cores)} if cell.together else cores, pids)
                absent = (BASE, BASE_FAST) if cell.clients > 1 else (BASE_FOR_MANY,)
                order = [contender for contender in CONTENDERS if contender.name not in absent]
                for contender in order if number % 2 else reversed(order):
                    process, path = servers[contender.name]
                    before = process.cpu_seconds()
                    slice_ = drive(
                        contender.protocol,
                        path,
                        request_of(contender.protocol, messages[number % FORMS]),
                        replies[contender.name][number % FORMS],
                        clients=cell.clients,
                        kept=cell.kept,
                        span=cell.span,
                    )
                    cpu = process.cpu_seconds() - before
                    samples.setdefault((cell, contender.name), Samples()).add(number, slice_, cpu)
                if time.monotonic() > until:
                    break
            if time.monotonic() > until:
                say(f"    time is up in round {number + 1} of {rounds}")
                break
    return [
        {
            "size": cell.size,
            "text": cell.text,
            "clients": cell.clients,
            "kept": cell.kept,
            "together": cell.together,
            "server": name,
            **figures(taken, samples[cell, BASE if cell.clients == 1 else BASE_FOR_MANY]),
        }
        for (cell, name), taken in samples.items()
    ]


def figures(taken: Samples, base: Samples) -> dict[str, Any]:
    """One line of the result: medians over rounds, and percentiles over all messages."""
    ranked = sorted(taken.latencies)
    shared = [number for number in taken.rates if number in base.rates]

    def median(values: list[float]) -> float:
        return statistics.median(values) if values else float("nan")

    return {
        "rounds": len(taken.rates),
        "messages": len(ranked),
        "rate": median(list(taken.rates.values())),
        "ratio": median([taken.rates[number] / base.rates[number] for number in shared]),
        "cpu_us": 1e6 * median(list(taken.cpu.values())),
        "cpu_ratio": median([taken.cpu[number] / base.cpu[number] for number in shared]),
        "p50_us": 1e6 * ranked[len(ranked) // 2],
        "p99_us": 1e6 * ranked[min(len(ranked) - 1, len(ranked) * 99 // 100)],
    }


def starts(contenders: Sequence[Contender], *, rounds: int, until: float) -> list[dict[str, Any]]:
    """Seconds to accepting and resident memory after 100 messages, above a bare interpreter."""
    seconds: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    cpu: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    memory: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    message = message_of(KB)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for number in range(rounds):
            if number and time.monotonic() > until:
                break
            with bare_interpreter(directory) as (process, bare):
                bare_cpu, bare_memory = process.cpu_seconds(), process.memory("VmRSS")
            for contender in contenders if number % 2 else reversed(contenders):
                with serving(contender, directory) as (process, path, took):
                    cpu[contender.name].append(process.cpu_seconds() - bare_cpu)
                    for _ in range(100):
                        first_reply(contender.protocol, path, message)
                    seconds[contender.name].append(took - bare)
                    memory[contender.name].append(process.memory("VmRSS") - bare_memory)
    return [
        {
            "server": name,
            "rounds": len(seconds[name]),
            "start_ms": 1e3 * statistics.median(seconds[name]),
            "start_cpu_ms": 1e3 * statistics.median(cpu[name]),
            "memory_mb": statistics.median(memory[name]) / MB,
        }
        for name in seconds
    ]


def peaks(contenders: Sequence[Contender], sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Highest resident memory while one message passes, above idle, in sizes of the message."""
    found = []
    with tempfile.TemporaryDirectory() as directory:
        for size in sizes:
            message = message_of(size)
            for contender in contenders:
                with serving(contender, Path(directory)) as (process, path, _):
                    first_reply(contender.protocol, path, message_of(KB))
                    idle = process.memory("VmRSS")
                    first_reply(contender.protocol, path, message)
                    times = (process.memory("VmHWM") - idle) / size
                    found.append({"server": contender.name, "size": size, "times": times})
    return found


def main(output: str, form: str) -> None:
    quick, began = form == "quick", time.monotonic()
    ours = [BY_NAME[name] for name in (BASE, "asya", "asya-orjson")]
    echoes = (BASE_FAST, BASE_FOR_MANY)  # which need what the bare echo needs
    everyone = [contender for contender in CONTENDERS if contender.name not in echoes]
    say("round trips")
    trips = round_trips(situations(quick), until=began + (35 if quick else 400))
    say("start and memory")
    start = starts(
        ours if quick else everyone,
        rounds=5,
        until=time.monotonic() + (5 if quick else 40),
    )
    peak = peaks(ours if quick else everyone, [256 * MB] if quick else [MB, 16 * MB, 256 * MB])
    result = {"python": sys.version.split()[0], "trips": trips, "starts": start, "peaks": peak}
    Path(output).write_text(json.dumps(result, indent=1))


def end(*_: object) -> None:
    """End every server, once, and then this process."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, end)
    try:
        main(*sys.argv[1:])
    except (KeyboardInterrupt, NotServing, WrongReply) as problem:
        sys.exit(str(problem) or 130)
