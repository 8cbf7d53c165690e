"""Measures what a readiness probe costs, beside an interpreter that does nothing."""

import os
import socket
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench.results import Goal, Results
from tests.support.tables import Table

FILES = Path(__file__).parents[1] / "runtime"
BARE, WRAPPER, RUNTIME = "python3 -c pass", "asya_entrypoint.py --ready", "asya_runtime.py --ready"
COMMANDS = {
    BARE: ["-c", "pass"],
    WRAPPER: [f"{FILES}/asya_entrypoint.py", "--ready"],
    RUNTIME: [f"{FILES}/asya_runtime.py", "--ready"],
}


def measure_command(words: Sequence[str], path: str) -> float:
    """CPU seconds of one run; its output is dropped."""
    argv = [sys.executable, "-I", "-S", *words]
    drop = (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)
    environment = {**os.environ, "ASYA_SOCKET_PATH": path}
    pid = os.posix_spawn(argv[0], argv, environment, file_actions=[drop])
    usage = os.wait4(pid, 0)[2]
    return usage.ru_utime + usage.ru_stime


def measure(results: Results, *, quick: bool) -> None:
    """A table of the commands, run in turns: while a process listens, and before one does."""
    print("probe", file=sys.stderr, flush=True)
    rows = [["", "ready", "not ready yet"]]
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{folder}/app.sock")
        listener.listen(4096)
        paths = [f"{folder}/app.sock", f"{folder}/none.sock"]
        taken: dict[tuple[str, str], list[float]] = {}
        for _ in range(10 if quick else 50):
            for label, words in COMMANDS.items():
                for path in paths:
                    taken.setdefault((label, path), []).append(measure_command(words, path))
    ratios = {}
    for label in COMMANDS:
        row = [label]
        for path in paths:
            seconds = taken[label, path]
            pairs = zip(seconds, taken[BARE, path], strict=True)
            ratios[label, path] = statistics.median(a / b for a, b in pairs)
            row.append(f"{1e3 * statistics.median(seconds):.1f} ms ×{ratios[label, path]:.2f}")
        rows.append(row)
    results.tables.append(Table(rows, "A readiness probe: CPU time, × an idle interpreter"))
    ready, starting = (ratios[WRAPPER, path] for path in paths)
    results.goals += [
        Goal("CPU of a probe, × an idle interpreter", ready, 1.5),
        Goal("CPU of a probe before the actor is ready, × an idle interpreter", starting, 1.5),
    ]
