"""Measures the runtime beside its peers.

docs/benchmarks.md describes the method.
"""

import contextlib
import os
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from bench.clients import ASCII, PROSE, Situation, build_message, build_request, drive, exchange
from bench.contenders import BASELINE, CONTENDERS, LABELS, MANY, ONE, RUNTIME_LABEL, Contender
from bench.processes import cpu_seconds, memory, reset_peak, running, serving
from bench.results import Goal, Results, draw_bars, short
from tests.support.tables import Table

KB, MB = 1 << 10, 1 << 20
# Messages of one size differ from round to round in length and in where their text begins, because
# the time of a copy depends on its alignment.
VARIANTS = 8
STRIDE = 16  # the alignment of the allocator's blocks: at most one of the variants is affected

SITUATIONS = (
    USUAL := Situation("1 client", 1, keep_alive=True, pinned=True),
    ANY_CORE := Situation("1 client, on any core", 1, keep_alive=True, pinned=False),
    Situation("1 client, new connections", 1, keep_alive=False, pinned=True),
    SEVERAL := Situation("16 clients", 16, keep_alive=True, pinned=False),
    Situation("16 clients, new connections", 16, keep_alive=False, pinned=False),
)


class Load(NamedTuple):
    """Messages of one size and kind in some situations: so many slices of `span` seconds each."""

    size: int
    rounds: int
    span: float
    situations: tuple[Situation, ...] = SITUATIONS
    kind: str = ASCII

    @property
    def label(self) -> str:
        size = f"{self.size // MB} MB" if self.size >= MB else f"{self.size // KB} KB"
        return f"{size} of {self.kind}" if self.kind != ASCII else size


QUICK = (
    Load(KB, 8, 0.04, (USUAL, ANY_CORE, SEVERAL)),
    *(Load(64 * KB, 8, 0.04, (USUAL,), kind) for kind in (ASCII, PROSE)),
    *(Load(MB, 4, 0.1, (USUAL,), kind) for kind in (ASCII, PROSE)),
)
FULL = (
    Load(KB, 4 * VARIANTS, 0.05),
    Load(64 * KB, 4 * VARIANTS, 0.05),
    Load(64 * KB, 4 * VARIANTS, 0.05, (USUAL,), PROSE),
    Load(MB, 12, 0.1),
    Load(MB, 12, 0.1, (USUAL,), PROSE),
    Load(16 * MB, 3, 0.5),
)


class Figures(NamedTuple):
    """One server in one situation: medians over the rounds; p99 and cpu are seconds."""

    rate: float
    ratio: float
    p99: float
    cpu: float
    cpu_ratio: float


Cells = dict[tuple[str, str], Figures]  # by situation and server


def median_ratio(values: Sequence[float], baseline: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(values, baseline, strict=True))


def percentile(values: Sequence[float], percent: int) -> float:
    return sorted(values)[len(values) * percent // 100]


def pin(cores: Collection[int], pids: Iterable[int]) -> None:
    """Bind all threads of these processes to these cores; threads that they start inherit it."""
    for pid in pids:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(ProcessLookupError):  # it has ended
                os.sched_setaffinity(int(thread.name), cores)


def measure_load(load: Load) -> Cells:
    """Rates, latencies and CPU time of all servers in all situations of a load.

    Each load has new servers: after large messages the C library's allocator keeps more memory.
    """
    print(f"runtime: {load.label}", file=sys.stderr, flush=True)
    lengths = [load.size - n * (load.size // 100) for n in range(VARIANTS)]
    messages = [build_message(size, load.kind, n * STRIDE) for n, size in enumerate(lengths)]
    rates, cpu = defaultdict[tuple[str, str], list[float]](list), defaultdict(list)
    latencies = defaultdict[tuple[str, str], list[float]](list)
    cores = os.sched_getaffinity(0)
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers: list[tuple[Contender, int, str, list[int]]] = []
        for contender in CONTENDERS:
            pid, path, _ = stack.enter_context(serving(contender, directory))
            sizes = [exchange(contender.protocol, path, message) for message in messages]
            servers.append((contender, pid, path, sizes))
        pids = [os.getpid(), *(pid for _, pid, _, _ in servers)]
        stack.callback(pin, cores, pids[:1])
        for number in range(load.rounds):
            variant = number % VARIANTS
            for situation in load.situations:
                pin({max(cores)} if situation.pinned else cores, pids)
                other = MANY if situation.clients == 1 else ONE
                order = [server for server in servers if server[0].only_for != other]
                for contender, pid, path, sizes in order if number % 2 else reversed(order):
                    request = build_request(contender.protocol, messages[variant])
                    before = cpu_seconds(pid)
                    seconds, taken = drive(
                        contender.protocol, path, request, sizes[variant], load.span, situation
                    )
                    key = situation.label, contender.label
                    cpu[key].append((cpu_seconds(pid) - before) / len(taken))
                    rates[key].append(len(taken) / seconds)
                    latencies[key] += taken
    return {
        key: Figures(
            statistics.median(rates[key]),
            median_ratio(rates[key], rates[key[0], BASELINE]),
            percentile(latencies[key], 99),
            statistics.median(cpu[key]),
            median_ratio(cpu[key], cpu[key[0], BASELINE]),
        )
        for key in rates
    }


def load_table(load: Load, cells: Cells) -> Table:
    rows = [["", *(situation.label for situation in load.situations), "server's CPU"]]
    for label in LABELS:
        row = [label]
        for situation in load.situations:
            one = cells.get((situation.label, label))
            rate = f"{short(one.rate)}/s ×{one.ratio:.2f}" if one else ""
            row.append(f"{rate}, {duration(one.p99)}" if one else "-")
        usual = cells[USUAL.label, label]
        rows.append([*row, f"{duration(usual.cpu)} ×{usual.cpu_ratio:.2f}"])
    what = f"messages a second, × the {BASELINE}, p99; CPU per message of 1 client"
    return Table(rows, f"{load.label}: {what}")


def duration(seconds: float) -> str:
    factor, unit = (1e6, "µs") if seconds < 1e-3 else (1e3, "ms") if seconds < 1 else (1, "s")
    return f"{seconds * factor:.3g} {unit}"


def message_goals(results: dict[str, Cells]) -> list[Goal]:
    goals = []
    one, faster = USUAL.label, f"{RUNTIME_LABEL}, orjson"
    for size, bound in (("1 KB", 1.1), ("64 KB", 1.0), ("1 MB", 1.0)):
        text, cells = f"{size}, {one}, × {BASELINE}", results[size]
        goals.append(Goal(text, cells[one, RUNTIME_LABEL].ratio, bound, at_least=True))
        if size != "1 KB":
            goals.append(Goal(f"{text}, orjson", cells[one, faster].ratio, 4, at_least=True))
    cells = results["1 KB"]
    ratio = cells[one, RUNTIME_LABEL].rate / cells[one, "uvicorn + Starlette"].rate
    goals.append(Goal(f"1 KB, {one}, × uvicorn", ratio, 4, at_least=True))
    several, any_core = (cells[each.label, RUNTIME_LABEL].rate for each in (SEVERAL, ANY_CORE))
    text = f"1 KB, {SEVERAL.label}, × {ANY_CORE.label}"
    return [*goals, Goal(text, several / any_core, 2, at_least=True)]


def measure_starts(contenders: Sequence[Contender], rounds: int) -> dict[str, tuple[float, ...]]:
    """Above an idle interpreter, by server: ms until it accepts, CPU ms, MB after 100 messages."""
    message = build_message(KB)
    taken = defaultdict[str, list[tuple[float, float, float]]](list)
    with tempfile.TemporaryDirectory() as name:
        for number in range(rounds):
            ready = Path(name, f"idle-{number}")
            code = f"import time; open({str(ready)!r}, 'x'); time.sleep(60)"
            with running([sys.executable, "-c", code], {}, ready.exists, "Python") as (pid, idle):
                idle_cpu, idle_memory = cpu_seconds(pid), memory(pid, "VmRSS")
            for contender in contenders if number % 2 else reversed(contenders):
                with serving(contender, Path(name)) as (pid, path, took):
                    cpu = cpu_seconds(pid) - idle_cpu
                    for _ in range(100):
                        exchange(contender.protocol, path, message)
                    resident = (memory(pid, "VmRSS") - idle_memory) / MB
                taken[contender.label].append((1e3 * (took - idle), 1e3 * cpu, resident))
    order = [one.label for one in contenders]
    return {one: tuple(map(statistics.median, zip(*taken[one], strict=True))) for one in order}


def measure_peak(contender: Contender, size: int) -> float:
    """Highest resident memory while one message passes, above idle, in sizes of the message."""
    with (
        tempfile.TemporaryDirectory() as directory,
        serving(contender, Path(directory)) as (pid, path, _),
    ):
        exchange(contender.protocol, path, build_message(KB))
        idle = memory(pid, "VmRSS")
        reset_peak(pid)  # a server needs more while it starts
        exchange(contender.protocol, path, build_message(size))
        return (memory(pid, "VmHWM") - idle) / size


def measure(results: Results, *, quick: bool) -> None:
    """Tables, goals and the picture; in the quick form, the part that the goals are about."""
    cells_by_load = {load: measure_load(load) for load in (QUICK if quick else FULL)}
    print("runtime: start and memory", file=sys.stderr, flush=True)
    alone = [contender for contender in CONTENDERS if contender.only_for != MANY]
    if quick:
        alone = [one for one in alone if one.label in (BASELINE, RUNTIME_LABEL)]
    starts = measure_starts(alone, 3 if quick else 5)
    sizes = [256 * MB] if quick else [MB, 16 * MB, 256 * MB]
    peaks = {one.label: [measure_peak(one, size) for size in sizes] for one in alone}
    rows = [["", "start", "its CPU", "memory", *(f"peak, {size // MB} MB" for size in sizes)]]
    for label, (start, cpu, resident) in starts.items():
        row = [label, f"{start:.0f} ms", f"{cpu:.0f} ms", f"{resident:.1f} MB"]
        rows.append([*row, *(f"×{peak:.2f}" for peak in peaks[label])])
    results.tables += [load_table(load, cells) for load, cells in cells_by_load.items()]
    title = "Start to accepting and memory, above an idle interpreter; peak memory above idle, "
    results.tables.append(Table(rows, title + "in sizes of the message"))
    start, _, resident = starts[RUNTIME_LABEL]
    results.goals += [
        *message_goals({load.label: cells for load, cells in cells_by_load.items()}),
        Goal("start above an idle interpreter", start, 80, " ms"),
        Goal("memory above an idle interpreter", resident, 8, " MB"),
        Goal("peak memory for 256 MB, × its size", peaks[RUNTIME_LABEL][-1], 3),
    ]
    bars = {
        load.label: {label: cells[USUAL.label, label].ratio for label in LABELS}
        for load, cells in cells_by_load.items()
        if load.kind == ASCII
    }
    title = "Messages a second, as a multiple of a bare blocking echo (longer is better)"
    results.picture = draw_bars(title, bars, RUNTIME_LABEL)
