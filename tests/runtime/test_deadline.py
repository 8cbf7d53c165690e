"""The deadline of a call: every way to run over it, and what is answered and lost by it."""

from __future__ import annotations

import faulthandler
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from .conftest import Process, Start, eventually, frame
from .served import RESTARTING, error, ok, stopped

DEADLINE = 0.5
LATE = error(
    "HandlerDeadlineExceeded",
    "the call ran longer than 0.5 s, the deadline of ASYA_HANDLER_DEADLINE",
    severity="recoverable",
    retry_after=1,
)
HANDLERS = """
import asyncio, ctypes, faulthandler, os, re, sys, threading, time
faulthandler.dump_traceback_later = None
def name(m): return m["payload"]["n"]
def late(m): return m["payload"].get("late")
def sleeps(m):
    if late(m): time.sleep(1e9)
    return name(m)
def spins(m):
    while late(m): pass
    return name(m)
def waits(m):
    if late(m): threading.Lock().acquire() and threading.Event().wait()
    return name(m)
def reads(m):
    if late(m): os.read(os.pipe()[0], 1)
    return name(m)
def swallows(m):
    while late(m):
        try: time.sleep(1e9)
        except BaseException: pass
    return name(m)
def in_c(m):
    if late(m): ctypes.CDLL(None).pause()
    return name(m)
def generator(m):
    if late(m): time.sleep(1e9)
    yield name(m)
class Slow:
    def __bool__(self): time.sleep(1e9)
def decorated(m): return helper(m)
def helper(m): return sleeps(m)
async def blocks(m):
    if late(m): time.sleep(1e9)
    return name(m)
async def ignores(m):
    while late(m):
        try: await asyncio.sleep(1e9)
        except asyncio.CancelledError: pass
    return name(m)
async def awaits(m):
    if late(m): await asyncio.sleep(1e9)
    return name(m)
async def catches(m):
    try:
        if late(m): await asyncio.sleep(1e9)
    except asyncio.CancelledError: return "caught"
    return name(m)
async def raises(m):
    try:
        if late(m): await asyncio.sleep(1e9)
    except asyncio.CancelledError: raise ValueError("other")
    return name(m)
async def future(m):
    if late(m): await asyncio.get_running_loop().create_future()
    return name(m)
async def in_thread(m):
    if late(m): await asyncio.get_running_loop().run_in_executor(None, time.sleep, 30)
    return name(m)
def holds_the_lock(m):
    if late(m): ctypes.PyDLL(None).pause()
    return name(m)
def batch(messages): return [sleeps(m) for m in messages]
def regular_expression(m):
    if late(m): re.match("(a+)+$", "a" * 64 + "b")
    return name(m)
"""
ENDS = [
    "sleeps", "spins", "waits", "reads", "swallows", "in_c", "generator", "decorated", "blocks",
    "ignores",
]  # fmt: skip
CANCELLED = ["awaits", "catches", "raises", "future", "in_thread"]
SILENT = ["holds_the_lock", "regular_expression"]


def serve(start: Start, handler: str, concurrency: str, **more: str) -> Process:
    """Serve one of the handlers, with the deadline."""
    return start(
        HANDLERS,
        f"app.{handler}",
        ASYA_CONCURRENCY=concurrency,
        ASYA_HANDLER_DEADLINE=str(DEADLINE),
        **more,
    )


def check_end(start: Start, handler: str, concurrency: str, python: str = sys.executable) -> None:
    process = serve(start, handler, concurrency, python=python)
    client = process.client()
    assert client.call({"payload": {"n": 1}}) == ok([1] if handler == "generator" else 1)
    assert client.call({"payload": {"n": 2, "late": True}}) == LATE
    assert process.wait() == 75
    assert not process.socket.exists()
    log = process.log()
    assert "a call does not end within the deadline of 0.5 s; exiting" in log
    assert "app.py" in log[log.index("is here:") :]  # the stacks of the threads
    assert client.at_end()


@pytest.mark.parametrize("handler", ENDS)
def test_a_late_call_is_answered_and_the_process_ends(
    start: Start, python: str, handler: str
) -> None:
    check_end(start, handler, "1", python)


@pytest.mark.parametrize("handler", ENDS)
def test_a_late_call_of_a_worker_is_answered_and_the_process_ends(
    start: Start, handler: str
) -> None:
    check_end(start, handler, "2")


def check_cancellation(
    start: Start, handler: str, concurrency: str, python: str = sys.executable
) -> None:
    process = serve(start, handler, concurrency, python=python)
    client = process.client()
    for n in range(2):
        assert client.call({"payload": {"n": n, "late": True}}) == LATE
        assert client.call({"payload": {"n": n}}) == ok(n)
    assert "a task is here:" in process.log()
    if handler != "in_thread":  # its thread still sleeps
        stopped(process)


@pytest.mark.parametrize("handler", CANCELLED)
def test_a_late_coroutine_is_cancelled_and_the_process_goes_on(
    start: Start, python: str, handler: str
) -> None:
    check_cancellation(start, handler, "1", python)


@pytest.mark.parametrize("handler", CANCELLED)
def test_a_late_coroutine_beside_others_is_cancelled(start: Start, handler: str) -> None:
    check_cancellation(start, handler, "2")


def test_three_late_coroutines_in_a_row_end_the_process(start: Start) -> None:
    process = start(HANDLERS, "app.awaits", ASYA_HANDLER_DEADLINE=str(DEADLINE))
    client = process.client()
    late = [True, True, False, True, True, True]  # after the third, the count begins again
    got = [client.call({"payload": {"n": n, "late": is_late}}) for n, is_late in enumerate(late)]
    assert got == [LATE, LATE, ok(2), LATE, LATE, LATE]
    assert process.wait() == 75


@pytest.mark.parametrize("handler", SILENT)
@pytest.mark.parametrize("concurrency", ["1", "2"])
def test_code_that_keeps_the_interpreters_lock_is_ended_after_twice_the_deadline(
    start: Start, handler: str, concurrency: str
) -> None:
    process = serve(start, handler, concurrency)
    client = process.client()
    began = time.monotonic()
    client.send(frame({"payload": {"n": 1, "late": True}}))
    assert process.wait() == 1
    assert time.monotonic() - began > DEADLINE
    assert client.at_end()
    assert "Timeout (0:00:01)!" in process.log()


def test_a_process_without_a_thread_to_watch_its_calls_does_not_start(
    start: Start, folder: Path
) -> None:
    (folder / "sitecustomize.py").write_text(
        "import _thread\n"
        'def refuse(*_): raise RuntimeError("can\'t start new thread")\n'
        "_thread.start_new_thread = refuse\n"
    )
    process = start(ready=False, ASYA_HANDLER_DEADLINE=str(DEADLINE), PYTHONPATH=str(folder))
    assert process.wait() == 78
    log = process.log()
    assert "cannot watch signals and slow calls while C code runs: can't start new thread" in log
    assert (
        "ASYA_HANDLER_DEADLINE needs a thread: raise the limit of processes, or set it to 0" in log
    )


@pytest.mark.parametrize("concurrency", ["1", "2"])
def test_the_first_call_has_a_deadline_although_no_other_thread_has_run(
    start: Start, concurrency: str
) -> None:
    """The other threads of the runtime wait for a processor, which a busy process has."""
    starve = """
for thread in {*map(int, os.listdir("/proc/self/task"))} - {os.getpid()}:
    os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
parent = os.getpid()
if os.fork() == 0:
    while os.getppid() == parent: pass
    os._exit(0)
"""
    process = start(
        HANDLERS + starve,
        "app.regular_expression",
        ASYA_CONCURRENCY=concurrency,
        ASYA_HANDLER_DEADLINE=str(DEADLINE),
    )
    process.client().send(frame({"payload": {"n": 1, "late": True}}))
    assert process.wait() == 1


@pytest.mark.parametrize(
    ("handler", "concurrency", "size", "second"),
    [("sleeps", "1", "1", RESTARTING), ("sleeps", "2", "1", RESTARTING), ("batch", "1", "2", LATE)],
)
def test_what_has_arrived_is_answered_too(
    start: Start, handler: str, concurrency: str, size: str, second: object
) -> None:
    """One late call for each thread; the rest waits: on its connection, in the backlog."""
    process = serve(start, handler, concurrency, ASYA_BATCH_SIZE=size)
    late = [process.client() for _ in range(int(concurrency))]
    for client in late:
        client.send(frame({"payload": {"n": 1, "late": True}}) + frame({"payload": {"n": 2}}))
    others = [process.client() for _ in range(20)]
    for client in others:
        client.send(frame({"payload": {"n": 3}}))
    assert [(client.reply(), client.reply()) for client in late] == [(LATE, second)] * len(late)
    replies = [client.reply() for client in others]
    assert set(map(str, replies)) <= {str(RESTARTING), str(ok(3))}
    assert process.wait() == 75


def test_a_call_beside_a_late_one_gets_its_own_deadline(start: Start) -> None:
    source = """
        import time
        def predict(m):
            time.sleep(m["payload"]["seconds"])
            return "in time"
    """
    process = start(
        source, "app.predict", ASYA_CONCURRENCY="2", ASYA_HANDLER_DEADLINE=str(DEADLINE)
    )
    late, beside = process.client(), process.client()
    late.send(frame({"payload": {"seconds": 60}}))
    time.sleep(0.2)
    beside.send(frame({"payload": {"seconds": 0.4}}))
    assert late.reply() == LATE
    assert beside.reply() == ok("in time")
    assert process.wait() == 75


def test_a_large_reply_under_way_is_completed(start: Start) -> None:
    source = """
        import time
        def predict(m):
            if m["payload"].get("late"): time.sleep(60)
            return "x" * 30_000_000
    """
    process = start(source, "app.predict", ASYA_HANDLER_DEADLINE="2")
    reader, late = process.client(), process.client()
    reader.send(frame({"payload": {}}))
    reader.exactly(4)
    late.send(frame({"payload": {"late": True}}))
    assert late.reply()["type"] == "HandlerDeadlineExceeded"
    reader.exactly(30_000_000)
    assert process.wait() == 75


@pytest.mark.parametrize("concurrency", ["1", "2"])
def test_a_call_that_ends_after_its_deadline_is_answered_once(
    start: Start, concurrency: str
) -> None:
    """It ends while the process waits for a peer that does not read its reply."""
    source = """
        import time
        def predict(m):
            if m["payload"].get("late"): time.sleep(1.5)
            return "x" * m["payload"].get("size", 1)
    """
    process = start(
        source,
        "app.predict",
        ASYA_CONCURRENCY=concurrency,
        ASYA_HANDLER_DEADLINE=str(DEADLINE),
    )
    deaf, late = process.client(), process.client()
    deaf.send(frame({"payload": {"size": 9_000_000}}))
    deaf.exactly(4)
    late.send(frame({"payload": {"late": True}}) + frame({"payload": {}}))
    assert late.reply() == LATE
    assert late.reply() == RESTARTING
    assert late.at_end()
    assert process.wait() == 75
    assert "in park" in process.log()  # its thread, which would go on with the connections


def test_a_call_that_has_just_ended_is_not_late(runtime: ModuleType) -> None:
    """It ends between the look of the watch and its claim."""

    class Ended(dict[Any, float]):
        def pop(self, *arguments: Any) -> None:  # type: ignore[override]
            return None

    state = runtime.State()
    deadline = runtime.Deadline(600.0, state)
    batch = runtime.Batch([runtime.Message()])
    deadline.began = Ended({batch: time.monotonic() - 601})
    given_up: list[Any] = []
    caller = SimpleNamespace(cancel=lambda thread: False)
    enforce = runtime.make_enforce_deadline(deadline, caller, state, given_up.append)
    try:
        enforce()
    finally:
        faulthandler.cancel_dump_traceback_later()
    assert (given_up, batch.messages[0].reply, state.exit_code) == ([], None, 0)


@pytest.mark.parametrize(
    ("limit", "seconds"), [(5e-324, 1.0), (0.01, 1.0), (0.6, 1.2), (1e300, 1e9), (1.7e308, 1e9)]
)
def test_faulthandler_gets_a_time_that_it_can_wait_for_and_the_watch_can_keep(
    runtime: ModuleType, monkeypatch: pytest.MonkeyPatch, limit: float, seconds: float
) -> None:
    """The watch arms it again after 0.1 seconds at the earliest."""
    armed: list[float] = []
    monkeypatch.setattr(
        runtime.faulthandler, "dump_traceback_later", lambda seconds, **_: armed.append(seconds)
    )
    state = runtime.State()
    runtime.make_enforce_deadline(runtime.Deadline(limit, state), None, state, None)()
    assert armed == [seconds, seconds]


def test_the_deadline_holds_while_the_process_is_told_to_end(start: Start) -> None:
    process = start(HANDLERS, "app.sleeps", ASYA_HANDLER_DEADLINE=str(DEADLINE))
    client = process.client()
    client.send(frame({"payload": {"n": 1, "late": True}}))
    time.sleep(0.1)
    process.signal()
    assert client.reply() == LATE
    assert process.wait() == 75


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_a_late_batch_is_answered_whole_and_not_tried_again(
    start: Start, folder: Path, kind: str
) -> None:
    source = f"""
        import asyncio, time
        {kind} predict(messages):
            open("calls", "a").write(str(len(messages)))
            if len(messages) > 1:
                {"await asyncio.sleep(60)" if kind != "def" else "time.sleep(60)"}
            return [1 for m in messages]
    """
    process = start(
        source,
        "app.predict",
        ASYA_HANDLER_DEADLINE=str(DEADLINE),
        ASYA_BATCH_SIZE="4",
        ASYA_BATCH_WAIT="10",
    )
    client = process.client()
    client.send(frame({"payload": {}}) * 4)
    assert [client.reply() for _ in range(4)] == [LATE] * 4
    assert (folder / "calls").read_text() == "4"


def test_a_blocked_log_does_not_keep_the_process(start: Start, folder: Path) -> None:
    """Nobody reads the pipe of stderr, which is full."""
    source = """
        import os, time
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        try:
            while True: os.write(writer, b"x" * 4096)
        except BlockingIOError: os.set_blocking(writer, True)
        def predict(m):
            os.dup2(writer, 2)
            time.sleep(60)
    """
    process = start(source, "app.predict", ASYA_HANDLER_DEADLINE=str(DEADLINE))
    client = process.client()
    client.send(frame({"payload": {}}))
    eventually(lambda: process.popen.poll() is not None, "the end", 30)
    assert process.wait() == 75
    assert client.reply() == LATE


def test_calls_within_the_deadline_are_served_as_without_one(start: Start) -> None:
    source = """
        import time
        def predict(m):
            time.sleep(0.02)
            return m["payload"]["n"]
    """
    # Each call has a deadline of its own: all together take longer
    process = start(source, "app.predict", ASYA_HANDLER_DEADLINE="1")
    client = process.client()
    assert [client.call({"payload": {"n": n}}) for n in range(60)] == [ok(n) for n in range(60)]
    stopped(process)
