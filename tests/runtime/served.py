"""Tables of handlers: what each is sent, and the whole replies that are due."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from .conftest import DEADLINE, Process, Start, frame

Reply = dict[str, Any]


def ok(result: object) -> Reply:
    return {"status": "ok", "result": result}


def error(kind: str, message: str, code: str = "processing_error", **more: object) -> Reply:
    reply = {"status": "error", "error": code, "message": message, "type": kind}
    return reply | ({"severity": "fatal"} | more)


def memory_error(kind: str, message: str, code: str = "oom_error") -> Reply:
    seconds = {"oom_error": 30, "cuda_oom_error": 60}[code]
    return error(kind, message, code, severity="recoverable", retry_after=seconds)


RESTARTING = {
    "status": "error",
    "error": "processing_error",
    "message": "the process is restarting",
    "severity": "recoverable",
    "retry_after": 1,
}


class Like:
    """Equal to each reply that has these fields, whatever else it has."""

    def __init__(self, **fields: object) -> None:
        self.fields = fields

    def __eq__(self, other: object) -> bool:
        return isinstance(other, dict) and self.fields.items() <= other.items()

    def __repr__(self) -> str:
        return f"Like({self.fields})"

    __hash__ = None  # type: ignore[assignment]


ANSWERED = Like()  # the reply's text is no contract, that there is one is


# In a handler: `arm(n)` lets a signal handler raise TimeoutError, which is an OSError, where the
# n-th call in the code of the runtime or of asyncio has returned, or a function of theirs begins
ARM = """
    import opcode, os, signal, sys
    def late(number, frame): raise TimeoutError("late")
    signal.signal(signal.SIGUSR1, late)
    CALLS = [n for n, name in enumerate(opcode.opname) if name.startswith("CALL")]
    TRACE = '''
    def make_trace(left):
        before = {}
        def trace(frame, event, argument):
            nonlocal left
            file = frame.f_code.co_filename
            if not (file.endswith("asya_runtime.py") or "/asyncio/" in file): return trace
            frame.f_trace_opcodes = True
            if event == "call": before.pop(id(frame), None)
            if event != "opcode": return trace
            last = before.get(id(frame))
            before[id(frame)] = frame.f_code.co_code[frame.f_lasti]
            if last is None or last in CALLS:
                left -= 1
                if left == 0:
                    sys.settrace(None)
                    before.clear()
                    signal.raise_signal(signal.SIGUSR1)
                    for step in range(9): pass
            return trace
        return trace
    '''
    import textwrap
    # The signal interrupts this function, which therefore has to seem a part of the library
    exec(compile(textwrap.dedent(TRACE), os.path.dirname(os.__file__) + "/trace.py", "exec"))
    def disarm(): sys.settrace(None)
    def arm(count):
        trace, frame = make_trace(count), sys._getframe(2)
        while frame is not None:
            frame.f_trace, frame.f_trace_opcodes = trace, True
            frame = frame.f_back
        sys.settrace(trace)
"""


@dataclass(frozen=True)
class Case:
    """A handler, its messages with the replies that are due, and the status after SIGTERM."""

    source: str
    calls: Sequence[tuple[object, object]]
    environ: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    handler: str = "app.predict"
    status: int = 0
    logged: str = ""


def write_files(folder: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(textwrap.dedent(text))


def replies_to(process: Process, payloads: Sequence[object]) -> list[object]:
    """Send each after the reply to the one before it; a lost one is `None`, on a new connection."""
    replies: list[object] = []
    client = None
    for payload in payloads:
        try:
            client = client or process.client()
            client.send(frame(payload if isinstance(payload, bytes) else {"payload": payload}))
            replies.append(client.reply())
        except (OSError, EOFError) as lost:
            replies.append(f"lost: {lost!r}")
            client = None
            if process.popen.poll() is not None or isinstance(lost, TimeoutError):
                break
    return replies


def check(start: Start, folder: Path, case: Case, python: str, **environ: str) -> None:
    """Serve the case; then SIGTERM must end it with its status and without its socket."""
    write_files(folder, case.files)
    process = start(case.source, case.handler, python=python, **{**case.environ, **environ})
    got = replies_to(process, [payload for payload, _ in case.calls])
    assert got == [reply for _, reply in case.calls], process.log()
    stopped(process, case.status)
    assert case.logged in process.log()


def stopped(process: Process, status: int = 0, seconds: float = DEADLINE) -> None:
    """End it by SIGTERM: the status is as it should be, and no socket is left."""
    process.signal()
    got = process.wait(seconds)
    if got != status or process.socket.exists():
        pytest.fail(f"ended with {got}, not {status}:\n{process.log()}")
