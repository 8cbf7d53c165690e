"""Every way to end, on every interpreter: alone, under the wrapper, and left by a hook."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import textwrap
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from .conftest import (
    DEADLINE,
    ENTRYPOINT,
    RUNTIME,
    Compiled,
    Process,
    changed,
    environment,
    eventually,
    frame,
)
from .processes import PID_1, needs_namespace, pid_1_of
from .served import error, ok

SERVED = """
    import os, time
    def predict(m):
        p = m["payload"]
        if "hold" in p:
            open("in-handler", "w").close()
            while not os.path.exists("go"): time.sleep(0.005)
        if "large" in p: return "x" * p["large"]
        if "do" in p: exec(p["do"])
        return p
"""


@dataclass(frozen=True)
class End:
    """What is imported, and how the process then ends: its status, -n for a signal."""

    source: str
    status: int = 78
    environ: dict[str, str] = field(default_factory=dict)
    files: tuple[str, ...] = ()


IMPORTS = {
    "a-wrong-setting": End(SERVED, environ={"ASYA_CONCURRENCY": "0"}),
    "no-handler": End(SERVED, environ={"ASYA_HANDLER": ""}),
    "no-such-module": End(SERVED, environ={"ASYA_HANDLER": "other.predict"}),
    "no-such-function": End("x = 1"),
    "no-function": End("predict = 5"),
    "a-class": End("class predict: pass"),
    "a-method-of-nothing": End(SERVED, environ={"ASYA_HANDLER": "app.Model.predict"}),
    "an-instance-that-fails": End(
        "class Model:\n    def __init__(self): raise ValueError('no weights')",
        environ={"ASYA_HANDLER": "app.Model.predict"},
    ),
    "no-directory": End(SERVED, environ={"ASYA_SOCKET_PATH": "/proc/asya/app.sock"}),
    "a-file-in-the-sockets-place": End(SERVED, files=("app.sock",)),
    "a-file-that-comes": End("open('app.sock', 'w').close()\ndef predict(m): pass"),
    "no-orjson": End(
        "def predict(m): pass",
        environ={"ASYA_JSON": "orjson"},
        files=("orjson.py",),
    ),
    "a-syntax-error": End("def predict(m) return 1"),
    "an-error": End("1 / 0"),
    "a-missing-module": End("import no_such_module"),
    "exit-0": End("import sys; sys.exit(0)"),
    "exit-3": End("import sys; sys.exit(3)"),
    "exit-text": End("import sys; sys.exit('text')"),
    "an-interrupt": End("raise KeyboardInterrupt"),
    "a-base-exception": End("class E(BaseException): pass\nraise E"),
    "a-generator-exit": End("raise GeneratorExit"),
    "endless-recursion": End("def f(): f()\nf()"),
    "no-memory": End("bytearray(1 << 62)"),
    "a-lost-gpu": End("raise RuntimeError('CUDA error: device-side assert triggered')"),
    "an-exception-that-cannot-be-shown": End(
        "class E(Exception):\n    def __str__(self): raise SystemExit(0)\nraise E"
    ),
    "an-exception-whose-class-cannot-be-named": End(
        "class Meta(type):\n    __name__ = property(lambda self: raised())\n"
        "class E(Exception, metaclass=Meta):\n    __class__ = property(lambda self: raised())\n"
        "def raised(): raise E\nraised()"
    ),
    "an-exception-whose-text-cannot-be-cut": End(
        "class Text(str):\n    def __getitem__(self, place): raise SystemExit(0)\n"
        "class E(Exception):\n    def __str__(self): return Text('x')\nraise E"
    ),
    "a-missing-module-without-a-name": End(
        "class Bad:\n    def __str__(self): raise SystemExit(0)\n"
        "raise ModuleNotFoundError('x', name=Bad())"
    ),
    "a-hook-that-forbids-the-sockets-name": End(
        "import sys\ndef hook(event, arguments):\n"
        "    if event == 'os.rename': raise KeyError(event)\n"
        "sys.addaudithook(hook)\ndef predict(m): pass"
    ),
    "a-loop-that-is-left": End(
        "import asyncio\nloop = asyncio.new_event_loop()\nasyncio.set_event_loop(loop)\n"
        "loop.run_until_complete(asyncio.sleep(0))\n1 / 0"
    ),
    "asyncio-has-run": End("import asyncio\nasyncio.run(asyncio.sleep(0))\n1 / 0"),
    "a-child-that-is-left": End(
        "import subprocess\nsubprocess.Popen(['sleep', '1'])\ndef predict(m) pass"
    ),
    "a-thread-that-is-left": End(
        "import threading, time\n"
        "threading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n1 / 0"
    ),
    "signals-that-are-ignored": End(
        "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n1 / 0"
    ),
    "hooks-of-forks": End("import os\nos.register_at_fork(after_in_child=print)\n1 / 0"),
    "no-descriptor-left": End(
        "import resource as r\nr.setrlimit(r.RLIMIT_NOFILE, (3, 64))\ndef predict(m): pass"
    ),
    "abort": End("import os; os.abort()", -signal.SIGABRT),
    "killed": End("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
    "a-segmentation-fault": End("import ctypes; ctypes.string_at(0)", -signal.SIGSEGV),
    "_exit-5": End("import os; os._exit(5)", 5),
    "_exit-0": End("import os; os._exit(0)", 0),
}


def begin(folder: Path, name: str, end: End, argv: list[str]) -> Process:
    place = folder / name
    place.mkdir()
    (place / "app.py").write_text(textwrap.dedent(end.source))
    for file in end.files:
        (place / file).write_text("raise ImportError" if file.endswith(".py") else "precious")
    settings = {"ASYA_HANDLER": "app.predict", **end.environ}
    return Process(place, argv, environment(place, **settings))


@contextlib.contextmanager
def ended(processes: list[Process]) -> Iterator[None]:
    try:
        yield
    finally:
        for process in processes:
            process.end()


def ended_as(process: Process, end: End, status: int) -> str:
    """Say what is wrong about an end; nothing, if it is as it should be."""
    try:
        got = process.wait()
    except subprocess.TimeoutExpired:
        return f"goes on\n{process.log()}"
    lines = process.log().splitlines() or [""]
    if got != status:
        return f"ended with {got}, not {status}\n{process.log()}"
    if end.status == 78 and not any(line.startswith("asya_runtime: ") for line in lines):
        return f"said nothing\n{process.log()}"
    left = sorted(path.name for path in process.folder.glob(".asya-*"))
    if left and end.status == 78:
        return f"left {left}"
    if (process.folder / "app.sock").exists() and "app.sock" not in end.source + str(end.files):
        return "left its socket"
    return ""


# One of each kind: what differs in how it ends, not only in what is wrong
KINDS = [
    "a-wrong-setting",
    "no-such-function",
    "no-directory",
    "an-error",
    "exit-0",
    "a-file-that-comes",
    "asyncio-has-run",
    "abort",
    "a-segmentation-fault",
    "_exit-5",
    "_exit-0",
]


def all_ends(
    folder: Path, argv: list[str], status: Callable[[int], int], names: Iterable[str]
) -> dict[str, str]:
    """Begin four at a time; give what is wrong, by name."""

    def one(pair: tuple[str, End]) -> tuple[str, str]:
        process = begin(folder, *pair, argv)
        with ended([process]):
            return pair[0], ended_as(process, pair[1], status(pair[1].status))

    with ThreadPoolExecutor(4) as pool:
        return {
            name: wrong
            for name, wrong in pool.map(one, [(name, IMPORTS[name]) for name in names])
            if wrong
        }


def test_every_end_of_an_import_has_its_status(
    folder: Path, python: str, compiled: Compiled
) -> None:
    assert all_ends(folder, [python, compiled(python)], lambda status: status, IMPORTS) == {}


def test_every_end_of_an_import_is_the_containers_under_the_wrapper(
    folder: Path, python: str
) -> None:
    argv = [python, "-I", "-S", str(ENTRYPOINT), "--", "sleep", "600"]
    told = all_ends(folder, argv, lambda status: status if status >= 0 else 128 - status, KINDS)
    assert told == {}


@needs_namespace
def test_every_end_of_an_import_is_told_by_the_hook_or_by_the_supervisor(
    folder: Path, python: str
) -> None:
    """What is refused fails the hook, with a line; what dies is started again."""
    argv = [*PID_1, "sleep", "600"]
    first = Process(folder, argv, environment(folder))
    with ended([first]):
        enter = ["nsenter", "-t", str(pid_1_of(first)), "-p", "-m"]
        chosen = [(name, IMPORTS[name]) for name in KINDS]
        # For a refusal, the hook waits as long as a busy machine may take
        copy = changed(ENTRYPOINT, folder / "patient.py", {"FOR_HOOK = 3": "FOR_HOOK = 600"})
        patient = [copy, "--detach", "--runtime", str(RUNTIME)]
        hasty = [str(ENTRYPOINT), "--detach"]

        def one(pair: tuple[str, End]) -> tuple[str, str]:
            name, end = pair
            place = folder / name
            hook = [python, "-I", "-S", *(patient if end.status == 78 else hasty)]
            process = begin(folder, name, end, [*enter, "env", "-C", str(place), *hook])
            with ended([process]):
                got = process.wait()
                due = 78 if end.status == 78 else 0
                if got != due:
                    return name, f"the hook ended with {got}, not {due}\n{process.log()}"
                if due and "asya_" not in process.log():
                    return name, f"the hook said nothing: {process.log()}"
            return name, ""

        with ThreadPoolExecutor(4) as pool:
            wrong = {name: text for name, text in pool.map(one, chosen) if text}
        assert wrong == {}
        for status in {128 - e.status if e.status < 0 else e.status for _, e in chosen}:
            if status != 78:
                first.logged(f"the runtime exited with status {status}; restarting in 2 s")


# --- phases of a process that serves ---------------------------------------------------


def is_there(process: Process, name: str) -> None:
    eventually((process.folder / name).exists, f"{name}\n{process.log()}")


def importing(process: Process) -> None:
    is_there(process, "importing")
    process.signal()


def idle(process: Process) -> None:
    client = process.ready().client()
    client.send(frame({"payload": {"a": 1}}))
    assert client.reply() == ok({"a": 1})
    process.signal()
    assert client.at_end()


def in_a_call(process: Process) -> None:
    client, other = process.ready().client(), process.client()
    client.send(frame({"payload": {"hold": 1}}))
    is_there(process, "in-handler")
    other.send(frame({"payload": {"a": 1}}) * 3)
    process.signal()
    (process.folder / "go").touch()
    assert client.reply() == ok({"hold": 1})
    assert [other.reply() for _ in range(3)] == [ok({"a": 1})] * 3
    assert client.at_end()


def replying(process: Process) -> None:
    client = process.ready().client()
    client.send(frame({"payload": {"large": 4_000_000}}))
    size = int.from_bytes(client.exactly(4), "big")
    process.signal()
    assert client.exactly(size) == b'{"status":"ok","result":"' + b"x" * 4_000_000 + b'"}'
    assert client.at_end()


def in_mid_frame(process: Process) -> None:
    client = process.ready().client()
    client.send(frame({"payload": {"a": 1}}) + b"\x00\x00\x01")
    assert client.reply() == ok({"a": 1})
    process.signal()
    assert client.reply()["error"] == "connection_error"
    assert client.at_end()


def interrupted(process: Process) -> None:
    process.ready().signal(signal.SIGINT)


def twice(process: Process) -> None:
    process.ready().client().send(frame({"payload": {"hold": 1}}))
    is_there(process, "in-handler")

    def over() -> bool:
        with contextlib.suppress(ProcessLookupError):
            process.signal()
        return process.popen.poll() is not None

    eventually(over, "the end by a second signal")


def draining(process: Process) -> None:
    """The main thread is free: it is in the middle of its end when the second signal comes."""
    process.ready().client().send(frame({"payload": {"large": 9_000_000}}))
    process.clients[0].exactly(4)
    process.signal()
    eventually(lambda: not process.socket.exists(), "no socket")
    process.signal()


def poisoned(process: Process) -> None:
    client = process.ready().client()
    text = "CUDA error: device-side assert triggered"
    client.send(frame({"payload": {"do": f"raise RuntimeError({text!r})"}}))
    assert client.reply() == error("RuntimeError", text)


def crashing(process: Process) -> None:
    process.ready().client().send(frame({"payload": {"do": "os.abort()"}}))


def leaving(process: Process) -> None:
    process.ready().client().send(frame({"payload": {"do": "os._exit(9)"}}))


IMPORTING = "import time\nopen('importing', 'w').close()\ntime.sleep(600)"
IN_C = "import hashlib\nopen('importing', 'w').close()\nhashlib.pbkdf2_hmac('md5', b'', b'', 10**9)"
# name: the source, what is done, the status alone, the status under the wrapper
PHASES: dict[str, tuple[str, Callable[[Process], None], int, int | None]] = {
    "importing": (IMPORTING, importing, 0, 143),
    "importing-in-c": (IN_C, importing, 0, 143),
    "idle": (SERVED, idle, 0, 143),
    "in-a-call": (SERVED, in_a_call, 0, 143),
    "replying": (SERVED, replying, 0, 143),
    "in-mid-frame": (SERVED, in_mid_frame, 0, 143),
    "interrupted": (SERVED, interrupted, 0, None),
    "twice": (SERVED, twice, 143, 143),
    "draining": (SERVED, draining, 143, None),
    "poisoned": (SERVED, poisoned, 70, 70),
    "crashing": (SERVED, crashing, -signal.SIGABRT, 134),
    "leaving": (SERVED, leaving, 9, 9),
}


def all_phases(folder: Path, argv: list[str], *, wrapped: bool) -> dict[str, str]:
    def one(name: str) -> tuple[str, str]:
        source, act, alone, under = PHASES[name]
        status = under if wrapped else alone
        if status is None:
            return name, ""
        process = begin(folder, name, End(source, status), argv)
        with ended([process]):
            try:
                act(process)
            except (OSError, EOFError, AssertionError, pytest.fail.Exception) as wrong:
                return name, f"{wrong!r}\n{process.log()}"
            killed = status < 0 or status in (134, 9) or name in ("twice", "draining")
            end = End("app.sock" if killed else "", status)
            return name, ended_as(process, end, status)

    with ThreadPoolExecutor(4) as pool:
        return {name: wrong for name, wrong in pool.map(one, PHASES) if wrong}


@pytest.mark.parametrize("concurrency", ["1", "2"])
def test_every_end_of_a_process_that_serves_has_its_status(
    folder: Path, python: str, compiled: Compiled, concurrency: str
) -> None:
    argv = ["env", f"ASYA_CONCURRENCY={concurrency}", python, compiled(python)]
    assert all_phases(folder, argv, wrapped=False) == {}


def test_every_end_of_a_process_that_serves_has_its_status_under_the_wrapper(
    folder: Path, python: str
) -> None:
    argv = [python, "-I", "-S", str(ENTRYPOINT), "--", "sleep", "600"]
    assert all_phases(folder, argv, wrapped=True) == {}


ASYNC = """
    import asyncio
    async def predict(m):
        await asyncio.sleep(0)
        return m["payload"]
"""


@pytest.mark.parametrize("concurrency", ["1", "2"])
def test_an_async_handler_ends_with_its_status(
    folder: Path, python: str, compiled: Compiled, concurrency: str
) -> None:
    end = End(ASYNC, 0, {"ASYA_CONCURRENCY": concurrency})
    process = begin(folder, "async", end, [python, compiled(python)])
    with ended([process]):
        idle(process)
        assert ended_as(process, end, 0) == ""


def test_another_process_that_serves_is_told_in_one_line(folder: Path, python: str) -> None:
    end = End(SERVED)
    process = begin(folder, "one", end, [python, str(RUNTIME)])
    with ended([process]):
        process.ready()
        environ = environment(process.folder, ASYA_HANDLER="app.predict")
        ran = subprocess.run(
            [python, str(RUNTIME)],
            env=environ,
            cwd=process.folder,
            capture_output=True,
            timeout=DEADLINE,
            check=False,
        )
        assert (ran.returncode, ran.stderr.count(b"\n")) == (78, 1)
        idle(process)
