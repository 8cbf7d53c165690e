"""The deadline of a call: every way to run over it, and what is answered and lost by it.

Here, calls put the clock of their process forward. So a late call costs no time, and on a busy
machine no other call is late.
"""

from __future__ import annotations

import contextlib
import faulthandler
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from .conftest import RUNTIME, Compiled, Process, Start, changed, compile_once, eventually, frame
from .served import RESTARTING, error, ok, stopped, write_files

DEADLINE = 20
SHORT = 0.5  # where the time is real
LATE = error(
    "HandlerDeadlineExceeded",
    "the call ran longer than 20 s, the deadline of ASYA_HANDLER_DEADLINE",
    severity="recoverable",
    retry_after=1,
)
# The signal wakes the thread that watches the calls
CLOCK = """
    import os, signal, time
    monotonic, ahead = time.monotonic, [0.0]
    time.monotonic = lambda: monotonic() + ahead[0]
    signal.signal(signal.SIGUSR2, lambda *_: None)
    def skip(seconds):
        ahead[0] += seconds
        os.kill(os.getpid(), signal.SIGUSR2)
"""
# A payload has `late`: True, or the name of a file to wait for before; with "all", of two calls,
# the first does it for both. Or it has `really`, which leaves the clock alone.
HANDLERS = """
import asyncio, ctypes, faulthandler, os, re, sys, threading, time
from sitecustomize import skip
faulthandler.dump_traceback_later = None
both = threading.Barrier(2)
def name(m): return m["payload"]["n"]
def late(m):
    how = m["payload"].pop("late", None)
    first = both.wait(20) == 0 if how == "all" else how
    if type(how) is str:
        open("began", "w").close()
        while not os.path.exists(how): time.sleep(0.005)
    if how: m["payload"]["really"] = True
    if first: skip(20)
    return "really" in m["payload"]
def soon_late(m):
    if "late" in m["payload"]: asyncio.get_running_loop().call_soon(skip, 20)  # when it waits
    return "late" in m["payload"]
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
    is_late = soon_late(m)
    while is_late:
        try: await asyncio.sleep(1e9)
        except asyncio.CancelledError: skip(1)
    return name(m)
async def awaits(m):
    if soon_late(m): await asyncio.sleep(1e9)
    return name(m)
async def catches(m):
    try:
        if soon_late(m): await asyncio.sleep(1e9)
    except asyncio.CancelledError: return "caught"
    return name(m)
async def raises(m):
    try:
        if soon_late(m): await asyncio.sleep(1e9)
    except asyncio.CancelledError: raise ValueError("other")
    return name(m)
async def future(m):
    if soon_late(m): await asyncio.get_running_loop().create_future()
    return name(m)
async def in_thread(m):
    if soon_late(m): await asyncio.get_running_loop().run_in_executor(None, time.sleep, 30)
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


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """A runtime that lets a cancelled coroutine take as long as a busy machine may let it."""
    copy = tmp_path_factory.mktemp("patient") / "patient.py"
    changed(RUNTIME, copy, {"\nCANCEL_PATIENCE = 1.0 ": "\nCANCEL_PATIENCE = 60.0 "})
    return compile_once(tmp_path_factory, copy)


@pytest.fixture
def clock(folder: Path) -> str:
    """The PYTHONPATH of a process whose calls put its clock forward."""
    write_files(folder, {"clock/sitecustomize.py": CLOCK})
    return str(folder / "clock")


Serve = Callable[..., Process]


@pytest.fixture
def serve(start: Start, clock: str) -> Serve:
    """Serve one of the handlers, or another source, with the deadline."""

    def serve_one(
        handler: str, concurrency: str = "1", source: str = HANDLERS, **more: str
    ) -> Process:
        return start(
            source,
            f"app.{handler}",
            ASYA_CONCURRENCY=concurrency,
            **{"ASYA_HANDLER_DEADLINE": str(DEADLINE), "PYTHONPATH": clock, **more},
        )

    return serve_one


def check_end(serve: Serve, handler: str, concurrency: str, python: str = sys.executable) -> None:
    process = serve(handler, concurrency, python=python)
    client = process.client()
    assert client.call({"payload": {"n": 1}}) == ok([1] if handler == "generator" else 1)
    assert client.call({"payload": {"n": 2, "late": True}}) == LATE
    assert process.wait() == 75
    assert not process.socket.exists()
    log = process.log()
    assert "a call does not end within the deadline of 20 s; exiting" in log
    assert "app.py" in log[log.index("is here:") :]  # the stacks of the threads
    assert client.at_end()


@pytest.mark.parametrize("handler", ENDS)
def test_a_late_call_is_answered_and_the_process_ends(
    serve: Serve, python: str, handler: str
) -> None:
    check_end(serve, handler, "1", python)


@pytest.mark.parametrize("handler", ENDS)
def test_a_late_call_of_a_worker_is_answered_and_the_process_ends(
    serve: Serve, handler: str
) -> None:
    check_end(serve, handler, "2")


def check_cancellation(
    serve: Serve,
    patient: Compiled,
    handler: str,
    concurrency: str,
    python: str = sys.executable,
) -> None:
    process = serve(handler, concurrency, argv=[python, patient(python)])
    client = process.client()
    for n in range(2):
        assert client.call({"payload": {"n": n, "late": True}}) == LATE
        assert client.call({"payload": {"n": n}}) == ok(n)
    assert "a task is here:" in process.log()
    if handler != "in_thread":  # its thread still sleeps
        stopped(process)


@pytest.mark.parametrize("handler", CANCELLED)
def test_a_late_coroutine_is_cancelled_and_the_process_goes_on(
    serve: Serve, patient: Compiled, python: str, handler: str
) -> None:
    check_cancellation(serve, patient, handler, "1", python)


@pytest.mark.parametrize("handler", CANCELLED)
def test_a_late_coroutine_beside_others_is_cancelled(
    serve: Serve, patient: Compiled, handler: str
) -> None:
    check_cancellation(serve, patient, handler, "2")


def test_three_late_coroutines_in_a_row_end_the_process(serve: Serve, patient: Compiled) -> None:
    process = serve("awaits", argv=[sys.executable, patient(sys.executable)])
    client = process.client()
    late = [True, True, False, True, True, True]  # after the third, the count begins again
    more = {True: {"late": True}, False: {}}
    got = [client.call({"payload": {"n": n, **more[is_late]}}) for n, is_late in enumerate(late)]
    assert got == [LATE, LATE, ok(2), LATE, LATE, LATE]
    assert process.wait() == 75


@pytest.mark.parametrize("handler", SILENT)
@pytest.mark.parametrize("concurrency", ["1", "2"])
def test_code_that_keeps_the_interpreters_lock_is_ended_after_twice_the_deadline(
    serve: Serve, handler: str, concurrency: str
) -> None:
    began = time.monotonic()
    process = serve(handler, concurrency, ASYA_HANDLER_DEADLINE=str(SHORT))
    send_first(process)
    assert process.wait() == 1
    assert time.monotonic() - began > SHORT
    assert "Timeout (0:00:01)!" in process.log()


def send_first(process: Process) -> None:
    """Send a late call. On a busy machine the process may end first, if its watch does not run."""
    with contextlib.suppress(OSError):
        process.client().send(frame({"payload": {"n": 1, "really": True}}))


def test_a_process_without_a_thread_to_watch_its_calls_does_not_start(
    start: Start, folder: Path
) -> None:
    (folder / "sitecustomize.py").write_text(
        "import _thread\n"
        'def refuse(*_): raise RuntimeError("can\'t start new thread")\n'
        "_thread.start_new_thread = refuse\n"
    )
    process = start(ready=False, ASYA_HANDLER_DEADLINE=str(SHORT), PYTHONPATH=str(folder))
    assert process.wait() == 78
    log = process.log()
    assert "cannot watch signals and slow calls while C code runs: can't start new thread" in log
    assert (
        "ASYA_HANDLER_DEADLINE needs a thread: raise the limit of processes, or set it to 0" in log
    )


@pytest.mark.parametrize("concurrency", ["1", "2"])
def test_the_first_call_has_a_deadline_although_no_other_thread_has_run(
    serve: Serve, folder: Path, concurrency: str
) -> None:
    """The thread that watches waits for a processor, which a busy machine does not have."""
    (folder / "sitecustomize.py").write_text(
        "import _thread, time\n"
        "start, first = _thread.start_new_thread, []\n"
        "def starve(work, *arguments):\n"
        "    if first: return start(work, *arguments)\n"
        "    first.append(work)\n"
        "    return start(lambda *more: (time.sleep(60), work(*more)), *arguments)\n"
        "_thread.start_new_thread = starve\n"
        "skip = None\n"
    )
    process = serve(
        "regular_expression",
        concurrency,
        ASYA_HANDLER_DEADLINE=str(SHORT),
        PYTHONPATH=str(folder),
        ready=False,
    )
    eventually(lambda: process.socket.exists() or process.popen.poll() is not None, "socket")
    send_first(process)
    assert process.wait() == 1
    assert "serving" in process.log()


@pytest.mark.parametrize(
    ("handler", "concurrency", "size", "second"),
    [("sleeps", "1", "1", RESTARTING), ("sleeps", "2", "1", RESTARTING), ("batch", "1", "2", LATE)],
)
def test_what_has_arrived_is_answered_too(
    serve: Serve, folder: Path, handler: str, concurrency: str, size: str, second: object
) -> None:
    """One late call for each thread; the rest waits: on its connection, in the backlog."""
    process = serve(handler, concurrency, ASYA_BATCH_SIZE=size)
    how = "all" if concurrency == "2" else "sent"
    late = [process.client() for _ in range(int(concurrency))]
    for client in late:
        client.send(frame({"payload": {"n": 1, "late": how}}) + frame({"payload": {"n": 2}}))
    others = [process.client() for _ in range(20)]
    for client in others:
        client.send(frame({"payload": {"n": 3}}))
    (folder / how).touch()
    assert [(client.reply(), client.reply()) for client in late] == [(LATE, second)] * len(late)
    replies = [client.reply() for client in others]
    assert set(map(str, replies)) <= {str(RESTARTING), str(ok(3))}
    assert process.wait() == 75


def test_a_call_beside_a_late_one_gets_its_own_deadline(serve: Serve, folder: Path) -> None:
    source = """
        import os, time
        from sitecustomize import skip
        def wait(name):
            while not os.path.exists(name): time.sleep(0.005)
        def predict(m):
            if m["payload"].get("late"):
                skip(10)
                open("half", "w").close()
                wait("beside")
                skip(10)
                wait("never")
            open("beside", "w").close()
            wait("answered")
            return "in time"
    """
    process = serve("predict", "2", source)
    late, beside = process.client(), process.client()
    late.send(frame({"payload": {"late": True}}))
    eventually((folder / "half").exists, "half of its time")
    beside.send(frame({"payload": {}}))
    assert late.reply() == LATE
    (folder / "answered").touch()
    assert beside.reply() == ok("in time")
    assert process.wait() == 75


def test_a_large_reply_under_way_is_completed(serve: Serve) -> None:
    source = """
        import time
        from sitecustomize import skip
        def predict(m):
            if m["payload"].get("late"):
                skip(20)
                time.sleep(60)
            return "x" * 30_000_000
    """
    process = serve("predict", source=source)
    reader, late = process.client(), process.client()
    reader.send(frame({"payload": {}}))
    reader.exactly(4)
    late.send(frame({"payload": {"late": True}}))
    assert late.reply() == LATE
    reader.exactly(30_000_000)
    assert process.wait() == 75


@pytest.mark.parametrize("concurrency", ["1", "2"])
def test_a_call_that_ends_after_its_deadline_is_answered_once(
    serve: Serve, folder: Path, concurrency: str
) -> None:
    """It ends while the process waits for a peer that does not read its reply."""
    source = """
        import os, time
        from sitecustomize import skip
        def predict(m):
            if m["payload"].get("late"):
                skip(20)
                while not os.path.exists("answered"): time.sleep(0.005)
            return "x" * m["payload"].get("size", 1)
    """
    process = serve("predict", concurrency, source)
    deaf, late = process.client(), process.client()
    deaf.send(frame({"payload": {"size": 9_000_000}}))
    deaf.exactly(4)
    late.send(frame({"payload": {"late": True}}) + frame({"payload": {}}))
    assert late.reply() == LATE
    (folder / "answered").touch()
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


@pytest.mark.parametrize("delay", [0, 500], ids=["in-time", "late-itself"])
def test_a_coroutine_has_a_second_from_its_cancellation_to_end(
    runtime: ModuleType, monkeypatch: pytest.MonkeyPatch, delay: int
) -> None:
    """However late the watch has come, on a busy machine, and however long the deadline is."""
    now = [1000.0]
    monkeypatch.setattr(runtime.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(runtime.faulthandler, "dump_traceback_later", lambda *_, **__: None)
    state = runtime.State()
    deadline = runtime.Deadline(600.0, state)
    batch = runtime.Batch([runtime.Message()])
    deadline.began = {batch: now[0] - 600 - delay}
    given_up: list[Any] = []
    caller = SimpleNamespace(cancel=lambda thread: True)
    enforce = runtime.make_enforce_deadline(deadline, caller, state, given_up.append)
    assert enforce() == 1.0
    now[0] += 0.75
    assert (enforce(), given_up) == (0.25, [])
    now[0] += 0.25
    enforce()
    assert (given_up, state.exit_code) == ([batch], 75)


def test_a_batch_that_was_answered_is_not_tried_again(
    runtime: ModuleType, monkeypatch: Any
) -> None:
    """Its call has failed after the watch replied to it: its thread parks before the next one."""
    parked: list[None] = []
    monkeypatch.setattr(runtime, "park", lambda: parked.append(None))
    state, batch = runtime.State(), runtime.Batch([runtime.Message()])
    deadline = runtime.Deadline(600.0, state)
    deadline.began[batch] = 0.0
    state.renew_deadline(batch)
    assert (deadline.began[batch] > 0.0, parked) == (True, [])
    deadline.began.clear()
    batch.is_taken = True
    state.renew_deadline(batch)
    assert (deadline.began, parked) == ({}, [None])


@pytest.mark.parametrize(
    ("limit", "silence"), [(1e-300, 1.0), (0.05, 1.0), (60, 120), (1e300, 1e9)]
)
def test_a_process_that_waits_outlives_any_deadline(
    runtime: ModuleType, monkeypatch: Any, limit: float, silence: float
) -> None:
    """The watch runs every 0.1 s at most, and faulthandler does not take any number."""
    later = faulthandler.dump_traceback_later
    armed: list[float] = []

    def arm(seconds: float, **options: Any) -> None:
        later(seconds, **options)
        armed.append(seconds)

    monkeypatch.setattr(runtime.faulthandler, "dump_traceback_later", arm)
    state = runtime.State()
    deadline, caller = runtime.Deadline(limit, state), SimpleNamespace()
    try:
        runtime.make_enforce_deadline(deadline, caller, state, bool)()
    finally:
        faulthandler.cancel_dump_traceback_later()
    assert armed == [silence] * 2


def test_the_deadline_holds_while_the_process_is_told_to_end(serve: Serve, folder: Path) -> None:
    process = serve("sleeps")
    client = process.client()
    client.send(frame({"payload": {"n": 1, "late": "told"}}))
    eventually((folder / "began").exists, "the call")
    process.signal()
    process.signal_taken()
    (folder / "told").touch()
    assert client.reply() == LATE
    assert process.wait() == 75


@pytest.mark.parametrize("kind", ["def", "async def"])
@pytest.mark.parametrize(("fails", "calls"), [(0, "4"), (4, "42")])
def test_a_late_batch_is_answered_whole_and_not_tried_again(
    serve: Serve, folder: Path, kind: str, fails: int, calls: str
) -> None:
    source = f"""
        import asyncio, time
        from sitecustomize import skip
        {kind} predict(messages):
            open("calls", "a").write(str(len(messages)))
            if len(messages) == {fails}: raise ValueError
            if len(messages) > 1:
                skip(20)
                {"await asyncio.sleep(60)" if kind != "def" else "time.sleep(60)"}
            return [1 for m in messages]
    """
    process = serve("predict", source=source, ASYA_BATCH_SIZE="4", ASYA_BATCH_WAIT="10")
    client = process.client()
    client.send(frame({"payload": {}}) * 4)
    assert [client.reply() for _ in range(4)] == [LATE] * 4
    assert (folder / "calls").read_text() == calls


def test_each_call_of_a_batch_that_is_tried_again_has_its_own_deadline(serve: Serve) -> None:
    """All seven together take longer."""
    source = """
        from sitecustomize import skip
        def predict(messages):
            skip(15)
            raise ValueError("bad")
    """
    process = serve("predict", source=source, ASYA_BATCH_SIZE="4", ASYA_BATCH_WAIT="600")
    client = process.client()
    client.send(frame({"payload": {}}) * 4)
    assert [client.reply() for _ in range(4)] == [error("ValueError", "bad")] * 4
    stopped(process)


def test_a_blocked_log_does_not_keep_the_process(serve: Serve) -> None:
    """Nobody reads the pipe of stderr, which is full."""
    source = """
        import os, time
        from sitecustomize import skip
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        try:
            while True: os.write(writer, b"x" * 4096)
        except BlockingIOError: os.set_blocking(writer, True)
        def predict(m):
            os.dup2(writer, 2)
            skip(20)
            time.sleep(60)
    """
    process = serve("predict", source=source)
    client = process.client()
    client.send(frame({"payload": {}}))
    eventually(lambda: process.popen.poll() is not None, "the end", 30)
    assert process.wait() == 75
    assert client.reply() == LATE


def test_calls_within_the_deadline_are_served_as_without_one(serve: Serve) -> None:
    """Each call has its own: all together take longer."""
    source = """
        from sitecustomize import skip
        def predict(m):
            skip(1)
            return m["payload"]["n"]
    """
    process = serve("predict", source=source)
    client = process.client()
    assert [client.call({"payload": {"n": n}}) for n in range(60)] == [ok(n) for n in range(60)]
    stopped(process)
