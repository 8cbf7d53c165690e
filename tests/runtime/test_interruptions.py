"""A signal handler of user code may raise an exception after any step: no message is lost to it."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import RUNTIME, Process, Start, frame, run_to_end
from .served import ARM, Case, check, error, ok, stopped

HANDLER = (
    ARM
    + """
    import asyncio
    def predict(message):
        disarm()
        payload = message["payload"]
        if payload["at"]: arm(payload["at"])
        return payload["n"]
    def batch(messages): return [predict(message) for message in messages]
    async def later(message):
        result = predict(message)
        await asyncio.sleep(0)
        return result
    async def background(message):
        global task
        if "task" not in globals(): task = asyncio.create_task(asyncio.sleep(3600))
        return predict(message)
"""
)
MODES = {
    "plain": ("predict", {}),
    "deadline": ("predict", {"ASYA_HANDLER_DEADLINE": "60"}),
    "timeout": ("predict", {"ASYA_HANDLER_TIMEOUT": "60"}),
    "batches": ("batch", {"ASYA_BATCH_SIZE": "4"}),
    "async": ("later", {}),
    "async-deadline": ("later", {"ASYA_HANDLER_DEADLINE": "60"}),
    "background-task": ("background", {}),
    "broken-pipe": ("predict", {}),
    "async-broken-pipe": ("later", {}),
    "twice": ("predict", {}),
    "batches-twice": ("batch", {"ASYA_BATCH_SIZE": "4"}),
}
# What the runtime gets too, from a peer that has gone
BROKEN_PIPE = ('TimeoutError("late")', 'BrokenPipeError(32, "late")')
# A second one arrives while the first is handled
TWICE = ('if payload["at"]: ', 'if payload["at"]: interrupt_log(); ')
INTERRUPT_LOG = """
    runtime = sys.modules["__main__"]
    log_traceback = runtime.log_traceback
    def interrupt_log():
        def interrupted(*arguments):
            runtime.log_traceback = log_traceback
            raise TimeoutError("late")
        runtime.log_traceback = interrupted
"""


def source_of(mode: str) -> str:
    source = HANDLER.replace(*BROKEN_PIPE) if "broken-pipe" in mode else HANDLER
    return source.replace(*TWICE) + INTERRUPT_LOG if mode.endswith("twice") else source


def call(process: Process, at: int, numbers: Iterator[int]) -> bool:
    """Interrupt after `at` steps the reply to a message, or the connection that comes next."""
    first = process.client()
    whole = []
    for step in (at, 0, 0):
        for old in (first, None):
            client, number = old or process.client(), next(numbers)
            client.send(frame({"payload": {"at": step if old else 0, "n": number}}))
            reply = client.reply()
            whole.append(reply == ok(number))
            assert whole[-1] or reply["message"].endswith(("late", "cannot be printed")), at
            if client is not first:
                client.close()
    first.close()
    assert whole[-1], at
    return all(whole)


@pytest.mark.parametrize("mode", MODES)
def test_an_exception_after_any_step_loses_no_message(start: Start, python: str, mode: str) -> None:
    handler, environ = MODES[mode]
    process = start(source_of(mode), f"app.{handler}", python=python, **environ)
    numbers = itertools.count()
    steps = range(1, 400, 3 if python == sys.executable else 13)
    whole = [call(process, at, numbers) for at in steps]
    assert 0.02 < sum(whole) / len(whole) < 0.98
    stopped(process)


# After so many calls of a connection, one exception; after so many steps from there, another one:
# a step is where the interpreter looks for signals, which is after a call and at a jump back
SECOND = """
    import opcode, sys
    CALLS, JUMPS = (
        [n for n, name in enumerate(opcode.opname) if name.startswith(names)]
        for names in ("CALL", ("JUMP_BACKWARD", "JUMP_ABSOLUTE"))
    )
    raised = last = 0
    def late():
        global raised
        raised += 1
        raise TimeoutError("late")
    def arm(calls, steps):
        def trace(frame, event, argument):
            nonlocal steps
            global last
            if "serve_connection" not in frame.f_globals: return None
            frame.f_trace_opcodes = True
            if event != "opcode": return trace
            code = frame.f_code.co_code[frame.f_lasti]
            steps -= last in CALLS or code in JUMPS
            last = code
            if steps: return trace
            sys.settrace(None)
            late()
        def profile(frame, event, argument):
            nonlocal calls
            calls -= event == "c_return" and frame.f_code.co_name == "serve_connection"
            if calls: return
            sys.setprofile(None)
            frame.f_trace, frame.f_trace_opcodes = trace, True
            sys.settrace(trace)
            late()
        sys.setprofile(profile)
    def predict(message):
        sys.settrace(None)
        payload = message["payload"]
        if payload["at"]: arm(*divmod(payload["at"], 1000))
        return raised if payload["n"] is None else payload["n"]
"""


@pytest.mark.parametrize("change", [("", ""), BROKEN_PIPE], ids=["timeout", "broken-pipe"])
def test_an_exception_at_any_step_of_handling_another_one_loses_no_message(
    start: Start, python: str, change: tuple[str, str]
) -> None:
    process = start(SECOND.replace(*change), "app.predict", python=python)
    numbers = itertools.count()
    cases = [1000 * calls + steps for calls in range(1, 9) for steps in range(1, 30)]
    for case in cases:
        call(process, case, numbers)
    raised = process.client().call({"payload": {"at": 0, "n": None}})["result"]
    assert raised > 1.2 * len(cases)  # the second one, unless the next message came first
    stopped(process)


# Prints the jumps back and the resumptions in the `try` statements of a function: how many they
# are, and the lines of those without a handler. For a jump, 3.11 and 3.12 look at the instruction
# before its target.
LOOK = """
import ast, dis, sys
if sys.version_info < (3, 11): sys.exit("no exception tables")
name, source = "serve_connection", open(sys.argv[1]).read()
(tree,) = [one for one in ast.parse(source).body if getattr(one, "name", "") == name]
whole = compile(source, "", "exec")
(code,) = [one for one in whole.co_consts if getattr(one, "co_name", "") == name]
bodies = [one.body for one in ast.walk(tree) if isinstance(one, ast.Try)]
lines = {line for body in bodies for line in range(body[0].lineno, body[-1].end_lineno + 1)}
steps = list(dis.get_instructions(code))
handlers = {one.offset for one in steps if one.opname == "PUSH_EXC_INFO"}  # not the generator's
table = [one for one in dis._parse_exception_table(code) if one.target in handlers]
handled = {at for one in table for at in range(one.start, one.end)}
found = [
    (one.positions.lineno, {one.offset, steps[where.get(one.argval, at + 1) - 1].offset})
    for where in [{one.offset: at for at, one in enumerate(steps)}]
    for at, one in enumerate(steps)
    if (one.opname == "JUMP_BACKWARD" or one.opname == "RESUME") and one.positions.lineno in lines
]
print(len(found), [line for line, offsets in found if not offsets <= handled])
"""


def test_an_exception_at_each_jump_of_a_connection_has_its_handler(
    folder: Path, python: str
) -> None:
    """Exceptions from outside arrive there, and some jumps are not where their `try` is."""
    (folder / "look.py").write_text(LOOK)
    status, printed = run_to_end([python, "look.py", str(RUNTIME)], folder)
    if printed == "no exception tables\n":
        pytest.skip("this interpreter has none")
    count, _, lines = printed.partition(" ")
    assert (status, lines, int(count) > 10) == (0, "[]\n", True), printed


@pytest.mark.parametrize("mode", ["plain", "async"])
def test_an_exception_after_any_step_of_the_end_does_not_change_the_exit_status(
    start: Start, mode: str
) -> None:
    handler, environ = MODES[mode]
    for at in range(20, 400, 20):
        process = start(HANDLER, f"app.{handler}", **environ)
        call(process, 0, itertools.count())
        client = process.client()
        client.send(frame({"payload": {"at": at, "n": at}}))
        reply = client.reply()
        assert reply == ok(at) or reply["message"].endswith(("late", "cannot be printed")), at
        stopped(process)


# --- signal handlers of async handlers --------------------------------------------------

ALARM = """
    import asyncio, os, signal, sys, threading, time
    def late(number, frame): raise TimeoutError("late")
    main = threading.get_ident()
    def ring(function):
        "Send the signal when the main thread sleeps in this function: seen twice, it is there"
        seen = 0
        while seen < 2:
            time.sleep(0.01)
            with open("/proc/self/stat") as stat: state = stat.read().rpartition(")")[2].split()[0]
            there = sys._current_frames()[main].f_code.co_name == function
            seen = seen + 1 if there and state == "S" else 0
        os.kill(os.getpid(), signal.SIGALRM)
    first = signal.signal(signal.SIGALRM, late)
    async def predict(message):
        do = message["payload"]["do"]
        if do == "echo": return do
        if do == "handlers":
            before = signal.signal(signal.SIGALRM, signal.SIG_IGN)
            ignored = signal.signal(signal.SIGALRM, late)
            return [one is late for one in (before, signal.getsignal(signal.SIGALRM))] + [
                ignored is signal.SIG_IGN, first is signal.SIG_DFL]
        def sleep(): time.sleep(3600)
        place = "sleep" if do == "own-code" else "select"
        threading.Thread(target=ring, args=(place,)).start()
        if do == "task": await asyncio.create_task(asyncio.sleep(3600))
        try:
            if do == "await": await asyncio.sleep(3600)
            if do == "own-code": sleep()
        except TimeoutError: return "caught"
"""
LATE = error("TimeoutError", "late")


def test_a_signal_handler_that_raises_while_a_call_waits_ends_that_call(
    start: Start, folder: Path, python: str
) -> None:
    calls = [
        ({"do": "handlers"}, ok([True, True, True, True])),
        ({"do": "await"}, LATE),
        ({"do": "echo"}, ok("echo")),
        ({"do": "task"}, LATE),
        ({"do": "own-code"}, ok("caught")),
        ({"do": "echo"}, ok("echo")),
    ]
    check(start, folder, Case(ALARM, calls), python)


# An alarm in the event loop, and another one while the runtime takes in what the first one raised
AGAIN = """
    import asyncio, signal
    count = 0
    def late(number, frame):
        global count
        count += 1
        if count % 2: signal.setitimer(signal.ITIMER_REAL, (count % 300 + 1) * 1e-6)
        raise TimeoutError("late")
    async def predict(message):
        number = message["payload"]["n"]
        signal.signal(signal.SIGALRM, late)
        signal.setitimer(signal.ITIMER_REAL, (number % 200 + 1) * 1e-6)
        for _ in range(5): await asyncio.sleep(0)
        return number
"""


def test_a_signal_handler_that_fails_twice_while_a_call_waits_leaves_the_event_loop_whole(
    start: Start, python: str
) -> None:
    process = start(AGAIN, "app.predict", python=python)
    client = process.client()
    for number in range(600):
        reply = client.call({"payload": {"n": number}})
        assert reply == ok(number) or reply["status"] == "error", number
    stopped(process)
