"""Processes in PID namespaces, and what /proc tells of processes while they live.

Each may end, or close a file, between two reads: what has gone is left out, never an error.
"""

import contextlib
import os
from pathlib import Path

import pytest

from .conftest import Process, eventually

needs_namespace = pytest.mark.skipif(os.geteuid() != 0, reason="a namespace needs root")
PID_1 = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]


def pid_1_of(process: Process) -> int:
    """Give the child of `unshare`, once it runs the command."""

    def search() -> int:
        found = children_of(process.pid)
        return next((pid for pid in found if command_of(pid)[:1] not in ([], PID_1[:1])), 0)

    pid: int = eventually(search, "PID 1")
    return pid


def processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def children_of(pid: int) -> list[int]:
    """Give the children of the main thread."""
    return [int(child) for child in _read(pid, f"task/{pid}/children").split()]


def command_of(pid: int) -> list[str]:
    """Give the command line; a zombie has none."""
    return _read(pid, "cmdline").split("\0")[:-1]


def environment_of(pid: int) -> list[str]:
    """Give the NAME=VALUE entries that it was started with; none if they may not be read."""
    return _read(pid, "environ").split("\0")[:-1]


def state_of(pid: int) -> str:
    """Give the letter of the state, such as Z for a zombie; "" if the process has ended."""
    return _read(pid, "stat").rpartition(")")[2][1:2]


def open_files(pid: int) -> list[str]:
    """Give what each descriptor leads to: a path, `socket:[INODE]` and the like."""
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(str(entry.readlink()))
    return found


def heap_of(pid: int) -> int:
    """Give the bytes of the C library's heap that are in memory."""
    heap = _read(pid, "smaps").partition("[heap]")[2].partition("\nRss:")[2]
    return int(heap.split()[0]) * 1024


def used(process: Process) -> float:
    """Give the processor time of the main thread in seconds: a busy machine changes no other."""
    return int(_read(process.pid, "schedstat").split()[0]) / 1e9


def _read(pid: int, name: str) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/{name}").read_text(errors="surrogateescape")
    return ""
