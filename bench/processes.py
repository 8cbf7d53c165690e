"""Servers as processes: started, waited for, measured, and stopped."""

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from bench.contenders import SERVERS, Contender, ServerError

DEADLINE = 60.0  # seconds for a start; all take less than three on a quiet machine
_numbers = itertools.count()


@contextlib.contextmanager
def running(
    command: Sequence[str], environment: Mapping[str, str], is_ready: Callable[[], bool], name: str
) -> Iterator[tuple[int, float]]:
    """Run a process: its id, and the seconds until `is_ready()`."""
    with tempfile.TemporaryFile() as output:
        began = time.monotonic()
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env=os.environ | environment, cwd=SERVERS
        )
        try:
            while not is_ready():
                if process.poll() is not None or time.monotonic() - began > DEADLINE:
                    output.seek(0)
                    lines = output.read().decode(errors="replace").strip().splitlines()
                    raise ServerError(f"{name} does not serve: {' | '.join(lines[-3:])}")
                time.sleep(0.0005)
            yield process.pid, time.monotonic() - began
        finally:
            for pid in process_tree(process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()


@contextlib.contextmanager
def serving(contender: Contender, directory: Path) -> Iterator[tuple[int, str, float]]:
    """Run a contender: its process id, the path of its socket, the seconds until it accepted."""
    path = f"{directory}/{next(_numbers)}.sock"
    command = [word.replace("{socket}", path) for word in contender.command]
    environment = {k: value.replace("{socket}", path) for k, value in contender.environment.items()}
    with running(command, environment, lambda: accepts(path), contender.label) as (pid, took):
        yield pid, path, took


def accepts(address: str | tuple[str, int]) -> bool:
    """Whether a Unix socket or a TCP address accepts connections."""
    with socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET) as probe:
        return probe.connect_ex(address) == 0


def process_tree(pid: int) -> list[int]:
    """A process and all its descendants; those whose parent has ended are not among them."""
    pids = [pid]
    for parent in pids:  # grows meanwhile
        for path in Path(f"/proc/{parent}/task").glob("*/children"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
                pids += map(int, path.read_text().split())
    return pids


def cpu_seconds(pid: int) -> float:
    """CPU time of all threads of a process so far, including those that have ended."""
    return time.clock_gettime((~pid << 3) | 2)  # Linux's id of the clock of that process


def memory(pid: int, field: str) -> int:
    """Bytes of a field of /proc/PID/status: VmRSS is the current value, VmHWM the highest."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def reset_peak(pid: int) -> None:
    """Reset VmHWM to the memory that the process uses now."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def until_interrupted(main: Callable[[], int]) -> int | str:
    """Run a benchmark for sys.exit; SIGTERM is like Ctrl-C, so that all processes are stopped."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return main()
    except KeyboardInterrupt:
        return 130
    except ServerError as problem:
        return f"bench: {problem}"
