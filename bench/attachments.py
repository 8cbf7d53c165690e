"""Measures bytes beside JSON: an echo of some bytes, in each way to send them to a function."""

import base64
import contextlib
import json
import os
import random
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from bench.clients import Situation, ask, build_request, drive
from bench.contenders import BARE_BYTES, BYTES_CONTENDERS, Contender, ServerError
from bench.processes import cpu_seconds, memory, serving
from bench.results import Goal, Results, short
from bench.runtime import KB, MB, Figures, duration, median_ratio, percentile, pin
from tests.support.tables import Table

ONE_CLIENT = Situation("1 client", 1, keep_alive=True, pinned=True)
# By size: so many slices of so many seconds each
SLICES = {100 * KB: (12, 0.05), MB: (12, 0.1), 16 * MB: (6, 0.4), 64 * MB: (3, 1.0)}
GOAL_SIZE, PEAK_SIZE = MB, 64 * MB
ATTACHMENT, BASE64, RAW = "attachment", "base64", "raw"


class Form(NamedTuple):
    """How bytes are sent, and how they are found in a reply."""

    write: Callable[[bytes], bytes]
    read: Callable[[bytes], bytes]


def _write_attachment(data: bytes) -> bytes:
    text = b'{"payload": {"data": {"$bytes": %d}}}' % len(data)
    return text + b" " * (-(len(text) + 1) % 16) + b"\0" + data


def _read_attachment(body: bytes) -> bytes:
    text, _, data = body.partition(b"\0")
    if json.loads(text)["result"] != {"echo": {"data": {"$bytes": len(data)}}}:
        raise ServerError(f"wrong reply: {text[:200]!r}")
    return data


FORMS = {
    ATTACHMENT: Form(_write_attachment, _read_attachment),
    BASE64: Form(
        lambda data: b'{"payload": {"data": "%s"}}' % base64.b64encode(data),
        lambda body: base64.b64decode(json.loads(body)["result"]["echo"]["data"]),
    ),
    RAW: Form(bytes, bytes),
}


def check(contender: Contender, path: str, data: bytes) -> int:
    """Send some bytes; return the size of the reply, which has to hold the same."""
    form = FORMS[contender.form]
    size, body = ask(contender.protocol, path, form.write(data))
    if form.read(body) != data:
        raise ServerError(f"{contender.label}: the reply has other bytes")
    return size


def measure_size(size: int) -> dict[str, Figures]:
    """Rates and CPU time of each way, in turns; the ratios are to the bare socket."""
    print(f"attachments: {size // KB} KB", file=sys.stderr, flush=True)
    data, (rounds, span) = random.Random(size).randbytes(size), SLICES[size]
    rates, cpu = defaultdict[str, list[float]](list), defaultdict[str, list[float]](list)
    latencies = defaultdict[str, list[float]](list)
    cores = os.sched_getaffinity(0)
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers = []
        for one in BYTES_CONTENDERS:
            pid, path, _ = stack.enter_context(serving(one, directory))
            request = build_request(one.protocol, FORMS[one.form].write(data))
            servers.append((one, pid, path, request, check(one, path, data)))
        stack.callback(pin, cores, [os.getpid()])
        pin({max(cores)}, [os.getpid(), *(pid for _, pid, *_ in servers)])
        for number in range(rounds):
            for one, pid, path, request, reply in servers if number % 2 else reversed(servers):
                before = cpu_seconds(pid)
                seconds, taken = drive(one.protocol, path, request, reply, span, ONE_CLIENT)
                cpu[one.label].append((cpu_seconds(pid) - before) / len(taken))
                rates[one.label].append(len(taken) / seconds)
                latencies[one.label] += taken
    return {
        label: Figures(
            statistics.median(rates[label]),
            median_ratio(rates[label], rates[BARE_BYTES]),
            percentile(latencies[label], 99),
            statistics.median(cpu[label]),
            median_ratio(cpu[label], cpu[BARE_BYTES]),
        )
        for label in rates
    }


def measure_peak(contender: Contender, size: int) -> float:
    """Highest resident memory while one message passes, above idle, in sizes of the message."""
    data = random.Random(size).randbytes(size)
    with (
        tempfile.TemporaryDirectory() as directory,
        serving(contender, Path(directory)) as (pid, path, _),
    ):
        check(contender, path, data[:KB])
        idle = memory(pid, "VmRSS")
        check(contender, path, data)
        return (memory(pid, "VmHWM") - idle) / size


def compare(figures: dict[str, Figures], others: list[str]) -> float:
    """The rate of attachments as a multiple of the best of the others, by ratios in each round."""
    ours = next(one.label for one in BYTES_CONTENDERS if one.form == ATTACHMENT)
    return figures[ours].ratio / max(figures[label].ratio for label in others)


def bytes_goals(figures: dict[str, Figures], peak: float) -> list[Goal]:
    """What is asked of attachments of 1 MB, and of their memory."""
    base64_labels = [one.label for one in BYTES_CONTENDERS if one.form == BASE64]
    peers = [one.label for one in BYTES_CONTENDERS if one.form == RAW and one.label != BARE_BYTES]
    return [
        Goal("1 MB attachment, × base64", compare(figures, base64_labels), 8, at_least=True),
        Goal(
            f"1 MB attachment, × {BARE_BYTES}", compare(figures, [BARE_BYTES]), 0.7, at_least=True
        ),
        Goal("1 MB attachment, × best framework", compare(figures, peers), 1.5, at_least=True),
        Goal("peak memory for an attachment of 64 MB, × its size", peak, 1.3),
    ]


def measure(results: Results, *, quick: bool) -> None:
    """Add the table and the goals; in the quick form, of the size that these are about."""
    sizes = [GOAL_SIZE] if quick else list(SLICES)
    figures = {size: measure_size(size) for size in sizes}
    peaks = {one.label: measure_peak(one, PEAK_SIZE) for one in BYTES_CONTENDERS}
    head = [f"{size // MB} MB" if size >= MB else f"{size // KB} KB" for size in sizes]
    rows = [["", *head, "server's CPU, 1 MB", "peak, 64 MB"]]
    for label, peak in peaks.items():
        cells = [figures[size][label] for size in sizes]
        row = [f"{short(one.rate)}/s ×{one.ratio:.2f}, {duration(one.p99)}" for one in cells]
        usual = figures[GOAL_SIZE][label]
        cost = f"{duration(usual.cpu)} ×{usual.cpu_ratio:.2f}"
        rows.append([label, *row, cost, f"×{peak:.2f}"])
    title = f"Bytes beside JSON, 1 client: messages a second, × the {BARE_BYTES}, p99; CPU; memory"
    results.tables.append(Table(rows, title))
    ours = next(one.label for one in BYTES_CONTENDERS if one.form == ATTACHMENT)
    results.goals += bytes_goals(figures[GOAL_SIZE], peaks[ours])
