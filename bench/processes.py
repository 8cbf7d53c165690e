"""Servers as processes: started, waited for, looked at, and ended by their id."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from bench.contenders import SERVERS, Contender

INJECTOR = SERVERS.parents[1] / "injector"
DEADLINE = 60.0  # seconds for a start; all take less than three on a quiet machine


class NotServing(Exception):  # noqa: N818
    """A server did not come up; the text says which, with the end of what it printed."""


class Process:
    """A process of ours in a session of its own, so that Ctrl-C reaches only who ends it."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self.output = tempfile.TemporaryFile()  # noqa: SIM115
        self.began = time.monotonic()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self.output,
            stderr=self.output,
            env={**os.environ, "PYTHONPATH": str(INJECTOR), **environment},
            cwd=SERVERS,
            start_new_session=True,
        )
        self.pid = self._process.pid

    def wait_until(self, is_up: Callable[[], bool], what: str) -> float:
        """Seconds from the start until `is_up()`; raises NotServing after the deadline."""
        while not is_up():
            if self._process.poll() is not None or time.monotonic() - self.began > DEADLINE:
                raise NotServing(f"{what} does not serve: {self.tail()}")
            time.sleep(0.0005)
        return time.monotonic() - self.began

    def tail(self) -> str:
        """The end of what it printed, on one line."""
        self.output.seek(0)
        text = self.output.read().decode(errors="replace").strip()
        return " | ".join(text.splitlines()[-3:]) or "it printed nothing"

    def end(self) -> None:
        """End it, by force if need be."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(3)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self.output.close()

    def cpu_seconds(self) -> float:
        """CPU time of all its threads so far, ended ones too."""
        return time.clock_gettime((~self.pid << 3) | 2)  # Linux's id of that process' clock

    def memory(self, field: str) -> int:
        """Bytes of a field of /proc/PID/status: VmRSS now, VmHWM at the highest."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
        raise NotServing(f"process {self.pid} has ended")


@contextlib.contextmanager
def serving(contender: Contender, directory: Path) -> Iterator[tuple[Process, str, float]]:
    """Run a contender: its process, its socket's path, the seconds until it accepted."""
    path = f"{directory}/{contender.name}.sock"
    Path(path).unlink(missing_ok=True)
    process = Process(
        [word.replace("{socket}", path) for word in contender.command],
        {key: value.replace("{socket}", path) for key, value in contender.environment.items()},
    )
    try:
        yield process, path, process.wait_until(lambda: _accepts(path), contender.label)
    finally:
        process.end()


@contextlib.contextmanager
def bare_interpreter(directory: Path) -> Iterator[tuple[Process, float]]:
    """Run an interpreter that does nothing: its process, the seconds until its first line ran."""
    mark = directory / "bare"
    mark.unlink(missing_ok=True)
    code = f"import time; open({str(mark)!r}, 'x'); time.sleep(60)"
    process = Process([sys.executable, "-c", code], {})
    try:
        yield process, process.wait_until(mark.exists, "the bare interpreter")
    finally:
        process.end()


def _accepts(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
        return True
