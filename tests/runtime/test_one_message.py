"""What cannot be done for one message is an error of that message, never the end of the process."""

from __future__ import annotations

import builtins
import errno
import os
import random
import signal
import subprocess
import sys
import threading
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from .conftest import DEADLINE, ENTRYPOINT, RUNTIME, Start, environment, eventually, frame
from .processes import PID_1, command_of, pid_1_of
from .served import ANSWERED, Case, Like, check, error, memory_error, ok, replies_to, stopped

ECHO = "def predict(m): return m['payload']"

# --- settings at the ends of what is valid ----------------------------------------------

SECONDS = ["2147483", "2147484", "4294968", "1e10", "9223372036854775807", "1e19", "1.7e308"]


@pytest.mark.parametrize("seconds", SECONDS)
def test_a_long_read_timeout_waits_for_the_rest_of_a_frame(start: Start, seconds: str) -> None:
    process = start(ECHO, "app.predict", ASYA_READ_TIMEOUT=seconds)
    slow, deaf = process.client(), process.client()
    whole = frame({"payload": {"a": 1}})
    slow.send(whole[:2])
    deaf.send(frame({"payload": {"text": "x" * 3_000_000}}))
    assert replies_to(process, [{"b": 2}]) == [ok({"b": 2})]
    slow.send(whole[2:])
    assert slow.reply() == ok({"a": 1})
    assert deaf.reply() == ok({"text": "x" * 3_000_000})
    stopped(process)


def test_the_longest_time_limits_are_served_everywhere(start: Start, python: str) -> None:
    names = ("ASYA_READ_TIMEOUT", "ASYA_HANDLER_TIMEOUT", "ASYA_HANDLER_DEADLINE")
    environ = dict.fromkeys(names, "1.7e308")
    for concurrency in ("1", "2"):
        process = start(ECHO, "app.predict", python=python, ASYA_CONCURRENCY=concurrency, **environ)
        slow = process.client()
        slow.send(frame({"payload": {"a": 1}})[:2])
        assert replies_to(process, [{"b": 2}]) == [ok({"b": 2})]
        slow.send(frame({"payload": {"a": 1}})[2:])
        assert slow.reply() == ok({"a": 1})
        stopped(process)


@pytest.mark.parametrize("seconds", SECONDS)
def test_a_long_handler_timeout_leaves_sigterm_heard_in_c_code(
    start: Start, folder: Path, seconds: str
) -> None:
    source = """
        import hashlib
        def predict(m):
            open("in-handler", "w").close()
            hashlib.pbkdf2_hmac("sha1", b"", b"", 10**9)
    """
    process = start(source, "app.predict", ASYA_HANDLER_TIMEOUT=seconds)
    process.client().send(frame({"payload": {}}))
    eventually((folder / "in-handler").exists, "the handler's call")
    process.signal()

    def ended() -> bool:  # by the second that is heard: a thread hears while the call goes on
        process.signal()
        return process.popen.poll() is not None

    eventually(ended, "the end by a second signal")
    assert process.wait() == 143


# --- no thread, no process can be started ---------------------------------------------

NO_ROOM = """
    import resource, threading
    def full():
        with open("/proc/self/statm") as stream: used = int(stream.read().split()[0]) * 4096
        resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, resource.RLIM_INFINITY))
    barrier = threading.Barrier(2)
    def predict(m):
        if "full" in m["payload"]: full()
        if "meet" in m["payload"]: barrier.wait(9)
        return m["payload"]
    async def later(m): return predict(m)
    if AT_IMPORT: full()
"""
MB = 1 << 20


def no_room(megabytes: int, *, at_import: bool) -> str:
    text = NO_ROOM.replace("ROOM", str(megabytes * MB))
    return text.replace("AT_IMPORT", str(at_import))


def test_where_one_thread_can_be_started_two_workers_answer_all(start: Start, python: str) -> None:
    fewer_workers(start, python, 24, "predict")


@pytest.mark.parametrize("handler", ["predict", "later"])
@pytest.mark.parametrize("room", [8, 24, 40], ids=["none", "one", "two"])
def test_where_no_thread_can_be_started_fewer_workers_answer_all(
    start: Start, room: int, handler: str
) -> None:
    fewer_workers(start, sys.executable, room, handler)


def fewer_workers(start: Start, python: str, room: int, handler: str) -> None:
    """A worker was there before; the limit lets no more of them, with their stacks, begin."""
    source = no_room(room, at_import=False)
    process = start(source, f"app.{handler}", python=python, ASYA_CONCURRENCY="4")
    assert replies_to(process, [{"full": 1}]) == [ok({"full": 1})]
    clients = [process.client() for _ in range(8)]
    for _ in range(3):
        for number, client in enumerate(clients):
            client.send(frame({"payload": {"a": number}}))
        assert [client.reply() for client in clients] == [ok({"a": n}) for n in range(8)]
    assert process.popen.poll() is None, process.log()
    stopped(process)


def test_where_no_thread_could_ever_be_started_messages_are_answered(
    start: Start, python: str
) -> None:
    process = start(no_room(6, at_import=True), "app.predict", python=python, ASYA_CONCURRENCY="4")
    assert replies_to(process, [{"a": 1}] * 3) == [ANSWERED] * 3
    stopped(process)


def test_that_no_thread_can_be_started_is_said_in_one_line(start: Start) -> None:
    process = start(no_room(8, at_import=False), "app.predict", ASYA_CONCURRENCY="4")
    assert replies_to(process, [{"full": 1}]) == [ok({"full": 1})]
    clients = [process.client() for _ in range(8)]
    for client in clients:
        client.send(frame({"payload": {"a": 1}}) * 3)
    for client in clients:
        assert [client.reply() for _ in range(3)] == [ok({"a": 1})] * 3
    said = [line for line in process.log().splitlines() if "thread" in line]
    assert len(said) == 1, process.log()
    assert said[0].startswith("asya_runtime: ")


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="the process gets a user of its own")


@needs_root
def test_a_process_limit_lets_fewer_workers_answer_all(start: Start, folder: Path) -> None:
    """As in a pod: the limit on processes of the user, who is not root."""
    folder.chmod(0o777)
    user = str(200_000 + random.randrange(1_000_000))
    argv = [*user_without_rights(user), sys.executable, str(RUNTIME)]
    process = start(ECHO, "app.predict", argv=argv, ASYA_CONCURRENCY="4")
    assert replies_to(process, [{"a": 1}]) == [ok({"a": 1})]
    threads = len(list(Path(f"/proc/{process.pid}/task").iterdir()))
    limit_processes(process.pid, user, str(threads))
    clients = [process.client() for _ in range(8)]
    for number, client in enumerate(clients):
        client.send(frame({"payload": {"a": number}}) * 3)
    for number, client in enumerate(clients):
        assert [client.reply() for _ in range(3)] == [ok({"a": number})] * 3
    stopped(process)


def user_without_rights(user: str) -> list[str]:
    """Give the command to be that user, who may read all files; limits hold for them."""
    rights = "-all,+dac_override,+dac_read_search"
    given = [f"--inh-caps={rights}", f"--ambient-caps={rights}", f"--bounding-set={rights}"]
    return ["setpriv", f"--reuid={user}", "--clear-groups", *given]


def limit_processes(pid: int, user: str, soft: str) -> None:
    """Set the soft limit of a process of the user: who is root may lack the right."""
    limit = ["prlimit", f"--pid={pid}", f"--nproc={soft}:"]
    subprocess.run([*user_without_rights(user), *limit], check=True, timeout=DEADLINE)


@needs_root
def test_a_supervisor_that_can_start_no_process_says_so_and_tries_on(
    start: Start, folder: Path
) -> None:
    folder.chmod(0o777)
    user = str(200_000 + random.randrange(1_000_000))
    wrapper = [sys.executable, "-I", "-S", str(ENTRYPOINT), "--detach"]
    # The supervisor writes to /proc/1/fd/2: as PID 1 of a namespace, that is our log
    argv = [*PID_1, *user_without_rights(user), "sleep", "600"]
    process = start(ECHO, "app.predict", argv=argv, ready=False)
    first = pid_1_of(process)
    eventually(lambda: command_of(first)[:1] == ["sleep"], "the program, without rights")
    enter = ["nsenter", "-t", str(first), "-p", "-m", f"--wdns={folder}"]
    hook = subprocess.run(
        [*enter, *user_without_rights(user), *wrapper],
        env=environment(folder, ASYA_HANDLER="app.predict"),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert hook.returncode == 0, hook.stderr
    process.ready()
    assert replies_to(process, [{"a": 1}]) == [ok({"a": 1})]

    def find(pattern: str) -> list[int]:
        search = ["pgrep", "--ns", str(first), "--nslist", "pid", "-f", "--", pattern]
        ran = subprocess.run(search, capture_output=True, text=True, check=False)
        return [int(pid) for pid in ran.stdout.split()]

    (supervisor,) = find("--detach$")
    (server,) = find(f" {RUNTIME}$")
    limit_processes(supervisor, user, "1")
    os.kill(server, signal.SIGKILL)

    def lines() -> list[str]:
        return [line for line in process.log().splitlines() if "asya_entrypoint: " in line]

    eventually(lambda: len(lines()) >= 3 or not find("--detach$"), "two failed tries")
    assert find("--detach$") == [supervisor], process.log()
    limit_processes(supervisor, user, "1000")
    eventually(lambda: process.log().count("serving app.predict") == 2, "another start", 30)
    assert replies_to(process, [{"a": 1}]) == [ok({"a": 1})]


# --- exceptions that come between calls ------------------------------------------------

LATE = """
    import ctypes, os, signal, sys, threading, time
    main = threading.main_thread().ident
    KINDS = {
        "ValueError": ValueError, "KeyboardInterrupt": KeyboardInterrupt,
        "MemoryError": MemoryError,
        "SystemExit": SystemExit, "GeneratorExit": GeneratorExit, "StopIteration": StopIteration,
        "TimeoutError": TimeoutError, "BlockingIOError": BlockingIOError, "OSError": OSError,
        "InterruptedError": InterruptedError,
    }
    def rings(kind):
        def ring(number, frame):
            open("rang", "w").close()
            raise KINDS[kind]("late")
        return ring
    def predict(m):
        payload = m["payload"]
        if "alarm" in payload:
            signal.signal(signal.SIGALRM, rings(payload["alarm"]))
            signal.setitimer(signal.ITIMER_REAL, payload.get("after", 0.02))
        if "user" in payload: signal.signal(signal.SIGUSR1, rings(payload["user"]))
        if "aside" in payload:  # the signal interrupts no wait of the main thread
            signal.signal(signal.SIGUSR1, rings(payload["aside"]))
            def send():
                time.sleep(0.02)
                signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
            threading.Thread(target=send).start()
        if "thread" in payload:
            error = ctypes.py_object(KINDS[payload["thread"]])
            def send():
                time.sleep(0.02)
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(main), error)
                open("rang", "w").close()
            threading.Thread(target=send).start()
        return payload
    async def later(m): return predict(m)
    def both(m): return later(m) if m["payload"]["number"] % 2 else predict(m)
"""
KINDS = [
    "ValueError",
    "KeyboardInterrupt",
    "MemoryError",
    "SystemExit",
    "GeneratorExit",
    "StopIteration",
    "TimeoutError",
    "BlockingIOError",
    "OSError",
    "InterruptedError",
]


@pytest.mark.parametrize(
    ("way", "handler"),
    [*((way, "predict") for way in ("alarm", "user", "aside", "thread")), ("alarm", "later")],
)
def test_an_exception_that_comes_between_calls_is_logged_and_the_next_message_served(
    start: Start, folder: Path, python: str, way: str, handler: str
) -> None:
    process = start(LATE, f"app.{handler}", python=python)
    client = process.client()
    for kind in KINDS:
        client.send(frame({"payload": {way: kind}}))
        # One that comes early, on a busy machine, is an error of its own call; of no other
        early = [] if way == "user" else [Like(type=kind)]
        assert client.reply() in (ok({way: kind}), *early), kind
        if way == "user":
            process.signal(signal.SIGUSR1)
        # A thread's is raised when the main thread next runs, before it takes another message
        eventually((folder / "rang").exists, f"{kind} from user code")
        (folder / "rang").unlink()
        client.send(frame({"payload": {"a": 1}}))
        assert client.reply() == ok({"a": 1}), kind
        assert replies_to(process, [{}]) == [ok({})]
    if way == "user":
        for kind in KINDS:
            assert f"{kind}: late" in process.log(), kind
    stopped(process)


def test_alarms_of_calls_that_have_just_ended_lose_no_message(start: Start, python: str) -> None:
    """Each message is answered once, well or by the exception, whenever the alarm rings."""
    process = start(LATE, "app.both", python=python)
    client = process.client()
    microseconds = random.Random(7)
    for number in range(400):
        after = microseconds.randrange(1, 400) / 1e6
        sent = {"alarm": "TimeoutError", "after": after, "number": number}
        client.send(frame({"payload": sent}))
        assert client.reply() in (ok(sent), error("TimeoutError", "late")), process.log()[-3000:]
    assert process.popen.poll() is None
    stopped(process)


def test_work_of_a_thread_is_done_again_after_each_exception(runtime: ModuleType) -> None:
    done = threading.Event()
    raised: list[str] = []

    def work() -> None:
        if len(raised) == len(KINDS):
            done.set()
            threading.Event().wait()
        raised.append(KINDS[len(raised)])
        raise getattr(builtins, raised[-1])

    runtime.start_thread(runtime.persist(work))
    assert done.wait(DEADLINE)
    assert raised == KINDS


@pytest.mark.parametrize(
    "error",
    [OSError(errno.EBADF, "of user code's own descriptor"), TimeoutError("late")],
    ids=["with a number", "without"],
)
def test_only_an_error_of_the_system_says_that_a_descriptor_is_closed(
    runtime: ModuleType, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    def fail(fd: int) -> None:
        raise error

    fd = os.dup(0)
    is_open = runtime.make_is_open(fd)
    with monkeypatch.context() as patch:
        patch.setattr(runtime.os, "fstat", fail)
        from_outside = is_open()
    os.close(fd)
    assert (from_outside, is_open()) == (True, False)


def test_of_a_deep_traceback_only_the_end_is_formatted(
    runtime: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes 0.1 ms a frame, and user code may raise the recursion limit to millions."""

    def descend(depth: int) -> int:
        return descend(depth - 1) if depth else 1 // 0

    def measure(kind: type, error: BaseException, trace: Any, limit: int) -> list[str]:
        frames = list(traceback.walk_tb(trace))
        measured.append((len(frames), frames[-1][0].f_locals["depth"], limit))
        return []

    measured: list[tuple[int, int, int]] = []
    monkeypatch.setattr(runtime.traceback, "format_exception", measure)
    monkeypatch.setattr(runtime, "MOST_FRAMES", 50)
    for depth in (20, 700):
        with pytest.raises(ZeroDivisionError) as raised:
            descend(depth)
        runtime.log_traceback(raised.value, "deep")
    assert measured == [(22, 0, -50), (50, 0, -50)]


def test_long_notes_of_an_exception_are_not_formatted(
    runtime: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A million notes take many seconds."""
    formatted: list[BaseException] = []

    def note_error(kind: type, error: BaseException, trace: Any, limit: int) -> list[str]:
        formatted.append(error)
        return []

    monkeypatch.setattr(runtime.traceback, "format_exception", note_error)
    short, long, many = ValueError("short"), ValueError("long"), ValueError("many")
    noted: dict[ValueError, list[Any]] = {short: ["n"], long: ["n" * 100_000], many: [5] * 1000}
    for one, notes in noted.items():
        one.__notes__ = notes
        runtime.log_traceback(one, "noted")
    assert formatted == [short]


# --- hostile results and exceptions ----------------------------------------------------

HOSTILE = r"""
    import sys, types
    def bad(*args, **more): raise SystemExit("hostile")
    hidden = property(bad)
    class Text(str):
        __eq__ = __hash__ = __len__ = __str__ = __repr__ = __format__ = __getitem__ = encode = bad
    class Number(int):
        __repr__ = __str__ = __eq__ = __le__ = __lt__ = __ge__ = __gt__ = __bool__ = __int__ = bad
        __hash__ = None
    class Float(float):
        __repr__ = __sub__ = __eq__ = __le__ = __bool__ = __str__ = bad
        __hash__ = None
    class Map(dict):
        items = keys = values = __iter__ = __len__ = __getitem__ = get = __contains__ = bad
    class List(list):
        __iter__ = __len__ = __getitem__ = bad
    class Tuple(tuple):
        __iter__ = __len__ = __getitem__ = bad
    class Everything:
        def __getattribute__(self, name): raise SystemExit(name)
        __repr__ = __str__ = __eq__ = __bool__ = __len__ = __iter__ = __call__ = __del__ = bad
        __hash__ = None
    class Meta(type):
        __name__ = hidden
        __module__ = hidden
        __instancecheck__ = __subclasscheck__ = __eq__ = __repr__ = bad
        __hash__ = type.__hash__
    class OfMeta(metaclass=Meta): pass
    class Fails(Exception, metaclass=Meta): pass
    class Lies:
        __class__ = hidden
    class RaisesItself(type):
        __name__ = property(lambda self: itself_raised())
    class Raised(Exception, metaclass=RaisesItself):
        __class__ = property(lambda self: itself_raised())
    def itself_raised(): raise Raised
    def generator():
        yield 1
        raise SystemExit("hostile")
    def endless_cause():
        error = ValueError("deep")
        first = error
        for _ in range(2000):  # formatting them is quadratic in 3.11
            error.__cause__ = error.__context__ = ValueError("deep")
            error = error.__cause__
        return first
    def circle():
        one, two = ValueError("one"), ValueError("two")
        one.__cause__, two.__cause__ = two, one
        one.__context__, two.__context__ = two, one
        return one
    def with_attributes(**values):
        error = ValueError("attributes")
        for name, value in values.items(): setattr(error, name, value)
        return error
    def kind(name="E", bases=(Exception,), **body): return type(name, bases, body)
    def nested(depth):
        value = []
        for _ in range(depth): value = [value]
        return value
    def itself():
        value = {}
        value["a"] = value
        return value
    class Grows(dict):
        def items(self):
            for n in range(10):
                self[n] = n
                yield n, n
    def syntax(**values):
        error = SyntaxError("bad")
        for name, value in values.items(): setattr(error, name, value)
        return error
    def changing():
        import asyncio
        return asyncio.sleep(0)
    class Awaits:
        def __await__(self):
            return self
            yield
    class AwaitsAnother:
        def __await__(self):
            return AwaitsAnother()
            yield
    def holds_itself():
        error = ValueError("x")
        error.exceptions = (error,)
        return error
    def predict(m):
        payload = m["payload"]
        if "return" in payload: return eval(payload["return"])
        if "raise" in payload: raise eval(payload["raise"])
        return payload
    async def later(m): return predict(m)
"""
RETURNED = [
    "Awaits()",
    "AwaitsAnother()",
    "Map(a=1)",
    "List([1])",
    "Tuple((1,))",
    'Text("x")',
    "Number(1)",
    "Float(1.5)",
    "object.__new__(Everything)",
    "OfMeta()",
    'Fails("x")',
    "Lies()",
    "Meta",
    "OfMeta",
    '{Text("a"): 1}',
    "{1.5: 1, None: 2, True: 3}",
    "{(1,): 1}",
    "{object: 1}",
    "nested(100_000)",
    "itself()",
    "Grows(a=1)",
    "[[Map(a=1)]]",
    "[[Everything]]",
    r'"\ud800"',
    '[{"a": float("nan")}]',
    "10**5000",
    "sys",
    "sys._getframe()",
    'ValueError("x")',
    'b"x"',
    "generator()",
    "changing()",
    "{1: {2: Everything}}.items()",
]
RAISED = [
    'kind(__str__=bad)("x")',
    'kind(__repr__=bad)("x")',
    'kind(__str__=lambda self: 5)("x")',
    'kind(__str__=lambda self: Text("x"))("x")',
    r'kind(__str__=lambda self: "\ud800\0\n")("x")',
    'ValueError("x" * 10_000_000)',
    "ValueError(object.__new__(Everything))",
    "KeyError(object.__new__(Everything))",
    'kind(__getattr__=bad)("x")',
    'kind(__getattribute__=bad)("x")',
    r'kind("E\ud800")("x")',
    'kind("E" * 100_000)("x")',
    'Fails("x")',
    'kind(__class__=hidden)("x")',
    'kind(__cause__=hidden)("x")',
    'kind(__context__=hidden)("x")',
    'kind(__suppress_context__=hidden)("x")',
    'kind(__traceback__=hidden)("x")',
    'kind(__traceback__="none")("x")',
    'kind(with_traceback=bad)("x")',
    'kind(exceptions=hidden)("x")',
    'with_attributes(exceptions=(1, None, Everything, Text("x")))',
    'with_attributes(severity=Text("fatal"), retry_after=Number(1))',
    "with_attributes(severity=Number(1), retry_after=Float(1.0))",
    'with_attributes(severity=None, retry_after=float("nan"))',
    'with_attributes(severity=Everything, retry_after=Text("1"))',
    'with_attributes(__notes__=[object.__new__(Everything), Text("x"), 5])',
    "with_attributes(__notes__=Everything)",
    'OSError(Number(12), Text("x"))',
    'OSError("12", "x")',
    'kind(__dict__=hidden)("x")',
    'kind(__slots__=())("x")',
    "endless_cause()",
    "circle()",
    'syntax(filename=Everything, lineno="x", offset=Text("x"), text=5)',
    'syntax(filename="app.py", lineno=10**9, offset=-(10**9), text=Text("x"))',
    r'syntax(filename="\ud800", lineno=1, offset=1, text="\ud800")',
    'ImportError("x", name=object.__new__(Everything), path=5)',
    'NameError("x")',
    r'UnicodeDecodeError("utf-8", b"x", 0, 1, "\ud800")',
    r'UnicodeEncodeError("utf-8", "\ud800", 0, 1, "x")',
    "SystemExit(object.__new__(Everything))",
    'KeyboardInterrupt(Text("x"))',
    'GeneratorExit("x")',
    'StopIteration(Text("x"))',
    'StopAsyncIteration("x")',
    'MemoryError(Text("x"))',
    'kind(bases=(MemoryError,), __str__=bad, exceptions=hidden)("x")',
    'kind(bases=(BaseException,), __str__=bad)("x")',
    'RecursionError("x")',
    'kind("Raised")',
    "Raised()",
    'kind(Text("Raised"))("x")',
    "5",
    "None",
    "kind(__init__=lambda self, a, b: None)",
    "kind(__init__=bad)",
    'kind("OutOfMemoryError", (RuntimeError,), __module__="torch", __str__=bad)("x")',
    'kind(__module__=None)("x")',
    'kind(__module__=Text("torch"))("x")',
    'kind(__module__=5)("x")',
    'kind(mro=bad)("x")',
    'RuntimeError(Text("CUDA out of memory"))',
    "holds_itself()",
    'ExceptionGroup("several", [ValueError("x"), kind(__str__=bad)("x")])',
    'BaseExceptionGroup("several", [KeyboardInterrupt(), SystemExit(3)])',
]


@pytest.mark.parametrize(
    ("handler", "concurrency"),
    [("predict", "1"), ("later", "1"), ("predict", "2")],
    ids=["plain", "async", "threads"],
)
def test_whatever_a_handler_returns_or_raises_is_answered_once_and_the_next_served(
    start: Start, python: str, handler: str, concurrency: str
) -> None:
    process = start(HOSTILE, f"app.{handler}", python=python, ASYA_CONCURRENCY=concurrency)
    lost = {}
    for do, names in (("return", RETURNED), ("raise", RAISED)):
        for name in names:
            if process.popen.poll() is not None:
                process.end()
                process.socket.unlink(missing_ok=True)
                process = start(
                    HOSTILE, f"app.{handler}", python=python, ASYA_CONCURRENCY=concurrency
                )
            due = [ANSWERED if do == "return" else Like(status="error"), ok({"a": 1})]
            got = replies_to(process, [{do: name}, {"a": 1}])
            if got != due:
                lost[f"{do} {name}"] = got
    assert lost == {}, process.log()[-5000:]
    stopped(process)


# --- what gives memory back and what collects garbage fails ----------------------------

CLEANING = """
    import gc, sys, types
    KINDS = [SystemExit(3), KeyboardInterrupt(), MemoryError(), OSError(), GeneratorExit()]
    kind = KINDS[0]
    def bad(*args, **more): raise kind
    class Bad(types.ModuleType):
        __getattr__ = bad
    class Cuda:
        is_initialized = staticmethod(lambda: True)
        empty_cache = ipc_collect = staticmethod(bad)
    class Mps: is_available = staticmethod(bad)
    class Backends: mps = Mps
    class Torch: cuda = xpu = Cuda; backends = Backends; mps = Mps
    class Cupy: get_default_memory_pool = get_default_pinned_memory_pool = staticmethod(bad)
    MODULES = [Bad("torch"), Torch, Cupy, None, "junk", 5, object()]
    class Dies:
        def __del__(self): bad()
    def predict(m):
        global kind
        payload = m["payload"]
        if "module" in payload:
            kind = KINDS[payload["kind"]]
            sys.modules["torch"] = sys.modules["cupy"] = MODULES[payload["module"]]
            circle = [Dies()]
            circle.append(circle)
            raise RuntimeError("CUDA out of memory. Tried to allocate 1 GiB")
        return payload
"""


def test_a_cache_that_cannot_be_emptied_ends_nothing(
    start: Start, folder: Path, python: str
) -> None:
    text = "CUDA out of memory. Tried to allocate 1 GiB"
    calls = [
        step
        for kind in range(5)
        for number in range(7)
        for step in [
            (
                {"module": number, "kind": kind},
                memory_error("RuntimeError", text, "cuda_oom_error"),
            ),
            ({"a": 1}, ok({"a": 1})),
        ]
    ]
    check(start, folder, Case(CLEANING, calls), python)


# --- errors before the handler is called -----------------------------------------------

PRE_PARSE = [
    b"",
    b"[",
    b"null",
    b"[]",
    b"5",
    b'"x"',
    b"{}",
    b'{"payload":5}',
    b"\xff\xfe",
    b'{"payload":{"a":"\xed\xa0\x80"}}',
    b"[" * 200_000,
    b'{"payload":' * 100_000,
    b'{"payload":{"a":' + b"9" * 100_000 + b"}}",
    b'{"payload":{"a":NaN}}',
    b"\x00" * 70_000,
    "{\ud800".encode("utf-8", "surrogatepass"),
]
LIMITED = """
    import sys
    def predict(m):
        if "limit" in m["payload"]: sys.setrecursionlimit(m["payload"]["limit"])
        return m["payload"]
"""


@pytest.mark.parametrize("limit", [75, 1000, 10**9])
def test_a_message_that_is_none_is_answered_under_each_recursion_limit(
    start: Start, folder: Path, python: str, limit: int
) -> None:
    wrong = [(body, Like(status="error", error="invalid_json")) for body in PRE_PARSE]
    good = [({"a": 1}, ok({"a": 1}))]
    calls = [({"limit": limit}, ok({"limit": limit})), *wrong, *good]
    check(start, folder, Case(LIMITED, calls), python)
