"""User code may change any name of any module and the state of its process: it is served on."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import Start, eventually, frame, taken
from .served import (
    ANSWERED,
    Case,
    Like,
    check,
    error,
    memory_error,
    ok,
    replies_to,
    stopped,
)

# --- names of modules are replaced -----------------------------------------------------

GROUPS = {
    "process": "os posix sys signal resource fcntl faulthandler gc atexit errno stat",
    "threads": "time threading _thread queue _queue contextvars",
    "sockets": "socket _socket select selectors struct _struct ssl",
    "json": "json json.encoder json.decoder json.scanner _json",
    "text": "re codecs _codecs io _io traceback linecache tokenize string warnings logging",
    "others": "collections types functools operator itertools contextlib enum weakref math random "
    "importlib importlib.util importlib.machinery inspect subprocess abc marshal genericpath "
    "posixpath copyreg heapq bisect tempfile pathlib dis ast opcode keyword token locale ctypes",
}
# While a module is imported, the import itself uses these
NOT_WHILE_IMPORTING = {"posix", "sys", "_thread", "_io", "marshal", "_codecs"}

JUNK = """
    import builtins, importlib, sys
    module_type = type(sys)
    Error, Memory = ValueError, MemoryError
    def raising(*args, **more): raise KeyError("junk")
    def exiting(*args, **more): raise SystemExit("junk")
    def texting(*args, **more): return "junk"
    KINDS = {"none": None, "raises": raising, "exits": exiting, "text": texting}
    loaded = []
    for name in NAMES:
        try: loaded.append(importlib.import_module(name))
        except ImportError: pass
    def junk(kind):
        value = KINDS[kind]
        for module in loaded:
            for key, thing in list(vars(module).items()):
                if key[:1] == "_" or type(thing) is module_type: continue
                if callable(thing) or module is not sys and type(thing) in (int, str):
                    try: setattr(module, key, value if callable(thing) else KINDS["none"])
                    except AttributeError: pass
    def predict(m):
        payload = m["payload"]
        if "junk" in payload: return junk(payload["junk"])
        if "error" in payload: raise Error("no")
        if "memory" in payload: raise Memory("all")
        return payload
    if AT_IMPORT: junk(AT_IMPORT)
"""
SMALL, LARGE = {"a": [1, 1.5, None, "ä"]}, {"a": "x" * 300_000}
PROBES = [
    (SMALL, ok(SMALL)),
    ({"error": 1}, error("ValueError", "no")),
    ({"memory": 1}, memory_error("MemoryError", "all")),
    (b"[", Like(error="invalid_json")),
    (LARGE, ok(LARGE)),
    (SMALL, ok(SMALL)),
]


def junk(names: str, at_import: str = "") -> str:
    chosen = [n for n in names.split() if not at_import or n not in NOT_WHILE_IMPORTING]
    return JUNK.replace("NAMES", repr(chosen)).replace("AT_IMPORT", repr(at_import))


ALL = " ".join(GROUPS.values())
KINDS = ["none", "raises", "exits", "text"]


@pytest.mark.parametrize("kind", KINDS)
def test_names_that_are_replaced_at_import_are_not_the_runtimes(
    start: Start, folder: Path, python: str, kind: str
) -> None:
    check(start, folder, Case(junk(ALL, kind), PROBES), python)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("concurrency", ["1", "3"])
def test_names_of_one_kind_that_are_replaced_at_import_are_not_the_runtimes(
    start: Start, folder: Path, group: str, concurrency: str
) -> None:
    case = Case(junk(GROUPS[group], "none"), PROBES)
    check(start, folder, case, sys.executable, ASYA_CONCURRENCY=concurrency)


@pytest.mark.parametrize("concurrency", ["1", "3"])
def test_names_that_are_replaced_in_a_call_are_not_the_runtimes(
    start: Start, folder: Path, python: str, concurrency: str
) -> None:
    calls = [step for kind in KINDS for step in [({"junk": kind}, ok(None)), *PROBES]]
    environ = {"ASYA_CONCURRENCY": concurrency, "ASYA_HANDLER_TIMEOUT": "100"}
    check(start, folder, Case(junk(ALL), calls, environ), python)


@pytest.mark.parametrize("group", GROUPS)
def test_names_of_one_kind_that_are_replaced_in_a_call_are_not_the_runtimes(
    start: Start, folder: Path, group: str
) -> None:
    check(
        start,
        folder,
        Case(junk(GROUPS[group]), [({"junk": "none"}, ok(None)), *PROBES]),
        sys.executable,
    )


BUILTINS = """
    import builtins
    Error, replace = ValueError, setattr
    def raising(*args, **more): raise Error("junk")
    def predict(m):
        payload = m["payload"]
        if "junk" in payload:
            for name in NAMES: replace(builtins, name, raising)
        if "error" in payload: raise Error("no")
        return payload
"""
REPLACED = {
    "open-and-print": "['open', 'print', 'input', 'exit', 'quit', 'breakpoint', '__import__']",
    "every-function": "[n for n in dir(builtins) if type(getattr(builtins, n)) is type(len)]",
    "every-function-and-class": "[n for n in dir(builtins) if callable(getattr(builtins, n))]",
}


@pytest.mark.parametrize("names", REPLACED.values(), ids=REPLACED)
def test_builtins_that_are_replaced_in_a_call_are_not_the_runtimes(
    start: Start, folder: Path, python: str, names: str
) -> None:
    calls = [
        ({"junk": 1}, ok({"junk": 1})),
        (SMALL, ok(SMALL)),
        ({"error": 1}, error("ValueError", "no")),
        (b"[", Like(status="error")),
        (LARGE, ok(LARGE)),
        (SMALL, ok(SMALL)),
    ]
    check(start, folder, Case(BUILTINS.replace("NAMES", names), calls), python)


MODULES = """
    import sys, traceback, json, threading, logging
    def spoil(value):
        for name in list(sys.modules):
            if name not in ("app", "__main__", "sys", "builtins"): sys.modules[name] = value
    def predict(m):
        payload = m["payload"]
        if "spoil" in payload: spoil([None, "junk", 1][payload["spoil"]])
        if "clear" in payload: sys.modules.clear()
        if "error" in payload: raise ValueError("no")
        if "memory" in payload: raise MemoryError("all")
        return payload
    AT_IMPORT
"""


@pytest.mark.parametrize("value", ["None", "'junk'"])
@pytest.mark.parametrize("concurrency", ["1", "3"])
def test_modules_that_are_replaced_at_import_are_not_the_runtimes(
    start: Start, folder: Path, python: str, value: str, concurrency: str
) -> None:
    source = MODULES.replace("AT_IMPORT", f"spoil({value})")
    check(start, folder, Case(source, PROBES), python, ASYA_CONCURRENCY=concurrency)


def test_modules_that_are_replaced_in_a_call_are_not_the_runtimes(
    start: Start, folder: Path, python: str
) -> None:
    spoilt = [{"spoil": 0}, {"spoil": 1}, {"spoil": 2}, {"clear": 1}]
    calls = [step for spoil in spoilt for step in [(spoil, ok(spoil)), *PROBES]]
    check(start, folder, Case(MODULES.replace("AT_IMPORT", ""), calls), python)


# --- the state of the process is changed ----------------------------------------------

ACTS = r"""
    import asyncio, atexit, builtins, codecs, ctypes, decimal, faulthandler, gc, io, json
    import linecache, locale, logging, os, resource, select, signal, socket, sys, tempfile
    import threading, time, traceback, warnings
    def raising(*args, **more): raise KeyError("from user code")
    def exiting(*args, **more): raise SystemExit("from user code")
    def every_signal(action):
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            try: signal.signal(number, action)
            except OSError: pass
    def lower(what, left):
        with open("/proc/self/statm") as stream: pages = stream.read().split()
        used = int(pages[{resource.RLIMIT_AS: 0, resource.RLIMIT_DATA: 5}[what]]) * 4096
        resource.setrlimit(what, (used + left, resource.getrlimit(what)[1]))
    class Signals:
        def term_ignored(): signal.signal(signal.SIGTERM, signal.SIG_IGN)
        def term_default(): signal.signal(signal.SIGTERM, signal.SIG_DFL)
        def term_raising(): signal.signal(signal.SIGTERM, raising)
        def term_exiting(): signal.signal(signal.SIGTERM, exiting)
        def all_ignored(): every_signal(signal.SIG_IGN)
        def all_default(): every_signal(signal.SIG_DFL)
        def all_raising(): every_signal(raising)
        def wakeup_fd_off(): signal.set_wakeup_fd(-1)
        def wakeup_fd_of_its_own():
            reader, writer = os.pipe()
            os.set_blocking(writer, False)
            signal.set_wakeup_fd(writer)
        def wakeup_fd_that_is_closed():
            reader, writer = os.pipe()
            os.set_blocking(writer, False)
            signal.set_wakeup_fd(writer)
            os.close(reader); os.close(writer)
        def blocked(): signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        def interrupting(): signal.siginterrupt(signal.SIGTERM, True)
        def everything_of_it():
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        def a_loop_that_takes_them():
            async def main():
                asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, raising)
            asyncio.new_event_loop().run_until_complete(main())
        def asyncio_run():
            async def main(): pass
            asyncio.run(main())
    class Limits:
        def few_files(): resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        def no_file_size(): resource.setrlimit(resource.RLIMIT_FSIZE, (0, -1))
        def little_data(): lower(resource.RLIMIT_DATA, 30_000_000)
        def little_address_space(): lower(resource.RLIMIT_AS, 100_000_000)
        def little_stack(): resource.setrlimit(resource.RLIMIT_STACK, (65536, -1))
        def no_processes(): resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
        def low_recursion(): sys.setrecursionlimit(75)
        def high_recursion(): sys.setrecursionlimit(10**9)
        def small_stacks_of_threads(): threading.stack_size(32768)
    class Interpreter:
        def tracing():
            def trace(frame, event, argument): raise KeyError("tracer")
            threading.settrace(trace); sys.settrace(trace)
        def tracing_for_long():
            def trace(frame, event, argument): return trace
            sys.settrace(trace)
        def profiling():
            def profile(frame, event, argument): raise KeyError("profiler")
            sys.setprofile(profile)
        def slow_switches(): sys.setswitchinterval(1e-6)
        def no_gc(): gc.disable(); gc.freeze()
        def much_gc(): gc.set_threshold(1, 1, 1)
        def raising_gc(): gc.callbacks.append(raising)
        def hooks():
            sys.excepthook = sys.unraisablehook = sys.displayhook = raising
            threading.excepthook = raising
        def no_hooks(): del sys.excepthook, sys.unraisablehook
        def errors_for_warnings(): warnings.simplefilter("error")
        def no_streams(): sys.stdout = sys.stderr = sys.stdin = None
        def no_streams_at_all(): del sys.stdout, sys.stderr, sys.stdin, sys.__stdout__
        def closed_streams(): sys.stdout.close(); sys.stderr.close()
        def streams_that_raise():
            class Stream:
                def __getattr__(self, name): raise KeyError(name)
            sys.stdout = sys.stderr = Stream()
        def closed_standard(): os.close(0); os.close(1); os.close(2)
        def closed_standard_input(): os.close(0)
        def a_pipe_that_nobody_reads_for_stderr():
            reader, writer = os.pipe()
            os.dup2(writer, 2); os.close(reader); os.close(writer)
        def descriptors_that_block():
            for fd in map(int, os.listdir("/proc/self/fd")):
                try: os.set_blocking(fd, True)
                except OSError: pass
        def nothing_to_import():
            sys.path.clear(); sys.meta_path.clear(); sys.path_hooks.clear()
            sys.path_importer_cache.clear()
        def no_path_at_all(): del sys.path, sys.meta_path, sys.path_hooks, sys.argv
        def imports_that_raise(): builtins.__import__ = raising
        def an_audit_hook():
            def hook(event, arguments):
                if event in ("import", "compile", "exec"):
                    raise KeyError(event)
            sys.addaudithook(hook)
        def no_environment(): os.environ.clear()
        def another_directory():
            path = tempfile.mkdtemp()
            os.chdir(path); os.rmdir(path)
        def a_mask(): os.umask(0o777)
        def codecs_that_raise():
            for name in ("backslashreplace", "replace", "surrogateescape", "strict"):
                try: codecs.register_error(name, raising)
                except ValueError: pass
            codecs.register(raising)
        def no_lines(): linecache.cache = None
        def hooks_of_forks(): os.register_at_fork(before=raising, after_in_parent=raising)
        def hooks_of_the_end(): atexit.register(raising); atexit.register(exiting)
        def no_hooks_of_the_end(): atexit._clear()
        def hooks_of_the_end_before_it(): atexit._run_exitfuncs()
        def time_limits_of_sockets(): socket.setdefaulttimeout(0.001)
        def faults(): faulthandler.disable()
        def classes_of_the_library():
            json.JSONEncoder.default = json.JSONEncoder.encode = json.JSONDecoder.decode = raising
            json.JSONEncoder.iterencode = json.JSONDecoder.raw_decode = raising
            json.JSONDecodeError.__init__ = raising
            threading.Thread.__init__ = threading.Thread.start = threading.Thread.run = raising
            threading.Event.wait = threading.Condition.wait = raising
            traceback.TracebackException.__init__ = traceback.TracebackException.format = raising
            socket.socket.__init__ = socket.socket.send = socket.socket.recv = raising
            logging.Handler.handle = logging.Logger.handle = raising
        def no_epoll(): del select.epoll, select.poll
    class Threads:
        def leaving():
            thread = threading.Thread(target=exiting)
            thread.start(); thread.join()
        def failing():
            thread = threading.Thread(target=raising)
            thread.start(); thread.join()
        def many():
            for _ in range(50):
                threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
    class Loops:
        def another():
            asyncio.set_event_loop(asyncio.new_event_loop())
        def a_closed_one():
            loop = asyncio.new_event_loop()
            asyncio.set_event_loop(loop)
            loop.close()
        def none(): asyncio.set_event_loop(None)
        def a_policy():
            class Policy(asyncio.DefaultEventLoopPolicy):
                get_event_loop = new_event_loop = set_event_loop = raising
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                asyncio.set_event_loop_policy(Policy())
    ACTS = {
        kind.__name__.lower() + "." + name: act
        for kind in (Signals, Limits, Interpreter, Threads, Loops)
        for name, act in vars(kind).items() if name[:2] != "__"
    }
    for name in AT_IMPORT: ACTS[name]()
    def predict(m):
        payload = m["payload"]
        if "error" in payload: raise ValueError("no")
        if "memory" in payload: raise MemoryError("all")
        if "do" in payload:
            try: ACTS[payload["do"]]()
            except (ValueError, OSError, RecursionError) as e: return repr(e)
            return "done"
        return payload
    ASYNC
"""


def acts(*at_import: str, handler: str = "") -> str:
    return ACTS.replace("AT_IMPORT", repr(list(at_import))).replace("ASYNC", handler)


def _names() -> list[str]:
    names, kind = [], ""
    for line in ACTS.splitlines():
        if line.startswith("    class "):
            kind = line.split()[1].rstrip(":").lower()
        elif kind and line.startswith("        def "):
            names.append(f"{kind}.{line.split()[1].partition('(')[0]}")
    return names


NAMES = _names()
# What leaves no room for a message of the probes, or none to be read in one process with others
TIGHT = {"limits.no_file_size", "limits.little_stack"}
CODING = "async def later(m): return predict(m)"


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("signals.")])
def test_what_a_call_does_to_its_process_leaves_it_served_and_ended_by_sigterm(
    start: Start, folder: Path, name: str
) -> None:
    calls = [({"do": name}, ok("done")), *PROBES]
    check(start, folder, Case(acts(), calls), sys.executable)


# These raise in the rest of the import itself, which then fails by its own doing
RAISE_AT_ONCE = {"interpreter.tracing", "interpreter.profiling"}


@pytest.mark.parametrize("name", [name for name in NAMES if name not in RAISE_AT_ONCE])
def test_what_an_import_does_to_its_process_leaves_it_served_and_ended_by_sigterm(
    start: Start, folder: Path, name: str
) -> None:
    check(start, folder, Case(acts(name), PROBES), sys.executable)


@pytest.mark.parametrize(
    ("handler", "concurrency"),
    [("predict", "1"), ("later", "1"), ("predict", "2"), ("later", "2")],
    ids=["plain", "async", "threads", "async-threads"],
)
def test_whatever_calls_do_to_their_process_one_after_another_it_is_served(
    start: Start, folder: Path, python: str, handler: str, concurrency: str
) -> None:
    """All of it in one process; where it was lost, a new one goes on."""
    lost: dict[str, object] = {}
    process = None
    skipped = {"interpreter.imports_that_raise", "interpreter.an_audit_hook", *TIGHT}
    if handler == "later":
        skipped |= {n for n in NAMES if n.startswith(("loops.", "threads."))}
        skipped |= {"signals.asyncio_run", "signals.a_loop_that_takes_them"}
        skipped |= {"interpreter.tracing", "interpreter.profiling", "interpreter.tracing_for_long"}
    for name in [name for name in NAMES if name not in skipped]:
        if process is None or process.popen.poll() is not None:
            process = start(
                acts(handler=CODING),
                f"app.{handler}",
                python=python,
                ASYA_CONCURRENCY=concurrency,
            )
        due = [(None, ANSWERED), *PROBES[:4], *PROBES[5:]]
        got = replies_to(process, [{"do": name}, *(payload for payload, _ in due[1:])])
        if got != [reply for _, reply in due]:
            lost[name] = got
            process.end()
            process.socket.unlink(missing_ok=True)
    assert lost == {}, process and process.log()[-4000:]


PIPE = """
    import signal
    if AT_IMPORT: signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    def predict(m):
        if "do" in m["payload"]: signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        return "x" * m["payload"].get("size", 1)
"""


@pytest.mark.parametrize("when", ["import", "call"])
@pytest.mark.parametrize("concurrency", ["1", "2"])
def test_a_peer_that_has_gone_does_not_end_a_process_whose_user_code_reset_sigpipe(
    start: Start, folder: Path, when: str, concurrency: str
) -> None:
    if (when, concurrency) == ("call", "2"):
        pytest.skip("signal.signal works on the main thread only")
    source = PIPE.replace("AT_IMPORT", str(when == "import"))
    process = start(source, "app.predict", ASYA_CONCURRENCY=concurrency)
    if when == "call":
        assert process.call({"do": 1}) == ok("x")
    for size in (1, 5_000_000) * 3:
        client = process.client()
        client.send(frame({"payload": {"size": size}}) * 3)
        client.close()
        assert process.call({}) == ok("x")
    stopped(process)
    assert "exception" not in process.log()


CLOSES = """
    import os, socket, sys
    def forbid(*events):
        def hook(event, arguments):
            if event in events: raise KeyError(event)
        sys.addaudithook(hook)
    def close_connection():
        for fd in sorted(map(int, os.listdir("/proc/self/fd")), reverse=True):
            try:
                socket.socket(fileno=os.dup(fd)).getpeername()
                return os.close(fd)
            except OSError: pass
    if AT_IMPORT: os.closerange(3, 300)
    def predict(m):
        if "do" in m["payload"]: eval(m["payload"]["do"])
        return m["payload"]
"""


def test_an_import_that_closes_all_descriptors_is_served(
    start: Start, folder: Path, python: str
) -> None:
    check(start, folder, Case(CLOSES.replace("AT_IMPORT", "True"), [(SMALL, ok(SMALL))]), python)


@pytest.mark.parametrize("do", ["os.closerange(3, 300)", 'forbid("socket.__new__")'])
@pytest.mark.parametrize("concurrency", ["1", "2"])
def test_a_call_that_ends_all_connections_leaves_no_process_that_answers_nobody(
    start: Start, folder: Path, python: str, concurrency: str, do: str
) -> None:
    process = start(
        CLOSES.replace("AT_IMPORT", "False"),
        "app.predict",
        python=python,
        ASYA_CONCURRENCY=concurrency,
    )
    client = process.client()
    client.send(frame({"payload": {"do": do}}))
    with contextlib.suppress(OSError, EOFError):
        client.reply()

    def ended_or_served() -> bool:
        if process.popen.poll() is not None:
            return process.popen.returncode != 0
        try:
            another = process.client()
            another.sock.settimeout(2)
            return bool(another.call({"payload": SMALL}) == ok(SMALL))
        except (OSError, EOFError):
            return False

    eventually(ended_or_served, "its end, or a reply to another client")


def test_a_call_that_closes_its_connection_is_logged_and_others_are_served(start: Start) -> None:
    process = start(CLOSES.replace("AT_IMPORT", "False"), "app.predict")
    client = process.client()
    client.send(frame({"payload": {"do": "close_connection()"}}))
    assert client.at_end()
    assert process.call({"a": 1}) == ok({"a": 1})
    process.logged("asya_runtime: user code has closed the descriptor of a connection\n")
    stopped(process)


def test_a_hook_that_forbids_to_remove_files_does_not_change_the_exit_status(start: Start) -> None:
    process = start(CLOSES.replace("AT_IMPORT", "False"), "app.predict")
    do = 'forbid("os.remove")'
    assert process.call({"do": do}) == ok({"do": do})
    process.signal()
    assert process.wait() == 0, process.log()


# --- coroutines of others --------------------------------------------------------------

PATCHES = {
    "gevent": "from gevent import monkey; monkey.patch_all()",
    "eventlet": "import eventlet; eventlet.monkey_patch()",
}
PATCHED = """
    PATCH
    import queue, socket, subprocess, sys, threading, time
    def predict(m):
        payload = m["payload"]
        if "error" in payload: raise ValueError("no")
        if "memory" in payload: raise MemoryError("all")
        done = queue.Queue()
        threading.Thread(target=lambda: (time.sleep(0.001), done.put(1))).start()
        done.get()
        return payload
"""


@pytest.mark.parametrize("library", PATCHES)
@pytest.mark.parametrize("concurrency", ["1", "3"])
def test_a_process_that_is_monkey_patched_is_served(
    start: Start, folder: Path, python: str, library: str, concurrency: str
) -> None:
    there = subprocess.run(
        [python, "-W", "ignore", "-c", f"import {library}"], capture_output=True, check=False
    )
    if there.returncode:
        pytest.skip(f"{library} is not installed for this interpreter")
    case = Case(PATCHED.replace("PATCH", PATCHES[library]), PROBES * 2)
    check(start, folder, case, python, ASYA_CONCURRENCY=concurrency)


# What those libraries do to the modules, without them
LIKE_GEVENT = """
    import _thread, os, queue, select, signal, socket, ssl, subprocess, sys, threading, time
    class Lock:
        def __init__(self): self.held = False
        def acquire(self, blocking=True, timeout=-1):
            if self.held: return False
            self.held = True
            return True
        def release(self):
            if not self.held: raise RuntimeError("cannot release un-acquired lock")
            self.held = False
        __enter__ = acquire
        def __exit__(self, *args): self.release()
        def locked(self): return self.held
    class RLock(Lock):
        def acquire(self, *args, **more):
            self.held = True
            return True
        __enter__ = acquire
        def release(self): self.held = False
    def later(function, args=(), more={}):
        "Start a thread of theirs: it runs when somebody waits in one of their functions"
        return 4711
    def local(): return 4711
    _thread.start_new_thread = threading._start_new_thread = later
    _thread.allocate_lock = _thread.allocate = threading._allocate_lock = threading.Lock = Lock
    threading.RLock = threading._RLock = threading._CRLock = RLock
    _thread.get_ident = threading.get_ident = local
    threading._active = {4711: threading.main_thread()}
    threading._main_thread._tstate_lock = Lock()
    threading._main_thread._ident = 4711
    threading._shutdown_locks = set()
    threading.Thread._bootstrap = lambda self: None
    for name in ("epoll", "poll", "kqueue", "devpoll"):
        if hasattr(select, name): delattr(select, name)
    select.select = lambda *args: ([], [], [])
    class Socket(socket.socket):
        def __init__(self, *args, **more): raise RuntimeError("no hub")
    socket.socket = socket.SocketType = Socket
    socket.create_connection = socket.socketpair = socket.fromfd = Socket
    def no_hub(*args, **more): raise RuntimeError("no hub")
    time.sleep = os.fork = os.read = os.write = os.waitpid = os.waitid = no_hub
    signal.signal = signal.getsignal = signal.set_wakeup_fd = no_hub
    class Queue:
        def put(self, *args): raise RuntimeError("no hub")
        get = put_nowait = get_nowait = put
    queue.SimpleQueue = queue._PySimpleQueue = queue.Queue = Queue
    def predict(m):
        payload = m["payload"]
        if "error" in payload: raise ValueError("no")
        if "memory" in payload: raise MemoryError("all")
        return payload
"""


@pytest.mark.parametrize("concurrency", ["1", "3"])
def test_a_process_that_is_patched_as_gevent_and_eventlet_do_is_served(
    start: Start, folder: Path, python: str, concurrency: str
) -> None:
    environ = {"ASYA_CONCURRENCY": concurrency, "ASYA_HANDLER_TIMEOUT": "100"}
    check(start, folder, Case(LIKE_GEVENT, PROBES * 2, environ), python)


NUMBERS: list[tuple[object, object]] = [({}, ok([n])) for n in range(1, 4)]
LOOPS = {
    "a-future-of-the-current-loop": Case(
        """
        import asyncio
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        future = loop.create_future()
        loop.call_later(0.01, future.set_result, 5)
        async def predict(m): return await asyncio.shield(future)
        """,
        [({}, ok(5))] * 3,
    ),
    "a-loop-that-has-run-and-stays-current": Case(
        """
        import asyncio
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        async def connect():
            q = asyncio.Queue()
            async def serve():
                n = 0
                while True:
                    f = await q.get()
                    n += 1
                    f.set_result(n)
            return q, asyncio.ensure_future(serve())
        q, task = loop.run_until_complete(connect())
        async def predict(m):
            f = asyncio.get_running_loop().create_future()
            q.put_nowait(f)
            return [await f]
        """,
        NUMBERS,
    ),
    "get_event_loop-at-import": Case(
        """
        import asyncio, warnings
        warnings.simplefilter("ignore")
        try: loop = asyncio.get_event_loop_policy().get_event_loop()
        except RuntimeError:  # from 3.14 on it makes none
            loop = asyncio.new_event_loop()
            asyncio.set_event_loop(loop)
        future = loop.create_future()
        future.set_result(5)
        async def predict(m): return [await future, loop is asyncio.get_running_loop()]
        """,
        [({}, ok([5, True]))] * 2,
    ),
    "asyncio.run-at-import": Case(
        """
        import asyncio
        async def load(): return 5
        loaded = asyncio.run(load())
        async def predict(m):
            await asyncio.sleep(0)
            return loaded
        """,
        [({}, ok(5))] * 3,
    ),
    "asyncio.run-at-import-and-in-a-plain-handler": Case(
        """
        import asyncio
        async def load(): return 5
        loaded = asyncio.run(load())
        def predict(m): return asyncio.run(load())
        """,
        [({}, ok(5))] * 3,
    ),
    "a-loop-that-was-closed": Case(
        """
        import asyncio
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
        async def predict(m):
            await asyncio.sleep(0)
            return 5
        """,
        [({}, ok(5))] * 2,
    ),
    "no-loop": Case(
        """
        import asyncio
        asyncio.set_event_loop(None)
        async def predict(m):
            await asyncio.sleep(0)
            return 5
        """,
        [({}, ok(5))] * 2,
    ),
    "a-policy-and-a-loop-of-their-own": Case(
        """
        import asyncio, selectors, warnings
        warnings.simplefilter("ignore")
        class Loop(asyncio.SelectorEventLoop): pass
        class Policy(asyncio.DefaultEventLoopPolicy):
            def new_event_loop(self): return Loop(selectors.SelectSelector())
        asyncio.set_event_loop_policy(Policy())
        async def predict(m): return type(asyncio.get_running_loop()).__name__
        """,
        [({}, ok("Loop"))] * 2,
    ),
    "a-lock-and-a-queue-made-at-import": Case(
        """
        import asyncio
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        lock, q = asyncio.Lock(), asyncio.Queue(1)
        async def predict(m):
            async with lock:
                asyncio.get_running_loop().call_later(0.001, q.put_nowait, 5)
                return await q.get()
        """,
        [({}, ok(5))] * 2,
    ),
    "a-loop-that-a-call-closes-or-stops": Case(
        """
        import asyncio
        async def predict(m):
            loop = asyncio.get_running_loop()
            if "stop" in m["payload"]: loop.stop()
            if "forget" in m["payload"]: asyncio.set_event_loop(None)
            await asyncio.sleep(0)
            return 5
        """,
        [({"stop": 1}, ok(5)), ({}, ok(5)), ({"forget": 1}, ok(5)), ({}, ok(5))],
    ),
    "functions-of-asyncio-that-a-call-replaces": Case(
        """
        import asyncio
        def bad(*args, **more): raise KeyError("from user code")
        async def predict(m):
            if "do" in m["payload"]:
                for name in dir(asyncio):
                    if type(getattr(asyncio, name)) in (type(bad), type(len)):
                        setattr(asyncio, name, bad)
            return 5
        """,
        [({"do": 1}, ok(5)), ({}, ok(5)), ({}, ok(5))],
    ),
    "a-task-factory-that-fails": Case(
        """
        import asyncio
        async def predict(m):
            loop = asyncio.get_running_loop()
            def fail(*args, **more):
                loop.set_task_factory(None)
                raise KeyError("factory")
            if "do" in m["payload"]: loop.set_task_factory(fail)
            return 5
        """,
        [({"do": 1}, ok(5)), ({}, error("KeyError", "'factory'")), ({}, ok(5))],
    ),
    "a-loop-whose-selector-a-call-closes": Case(
        """
        import asyncio
        async def predict(m):
            await asyncio.sleep(0)
            if "do" in m["payload"]:
                asyncio.get_running_loop()._selector.close()
                asyncio.ensure_future(asyncio.sleep(60))
            return 5
        """,
        [({"do": 1}, ANSWERED), ({}, Like(status="error")), ({}, ok(5)), ({}, ok(5))],
    ),
}


@pytest.mark.parametrize("case", LOOPS.values(), ids=LOOPS)
def test_an_event_loop_of_user_code_is_the_handlers(
    start: Start, folder: Path, case: Case, python: str
) -> None:
    check(start, folder, case, python)


@pytest.mark.parametrize(
    "name",
    [
        "a-future-of-the-current-loop",
        "a-loop-that-has-run-and-stays-current",
        "asyncio.run-at-import",
        "functions-of-asyncio-that-a-call-replaces",
        "a-task-factory-that-fails",
        "a-loop-whose-selector-a-call-closes",
    ],
)
def test_an_event_loop_of_user_code_is_the_handlers_beside_others(
    start: Start, folder: Path, name: str, python: str
) -> None:
    check(start, folder, LOOPS[name], python, ASYA_CONCURRENCY="3")


CANCELS = """
    import asyncio, os, time
    async def predict(m):
        if "first" not in m["payload"]: return 5
        os.write(2, b"held\\n")
        while not os.path.exists("go"): time.sleep(0.005)
        others = set()
        while not others:  # the second begins one turn after it is here
            await asyncio.sleep(0)
            others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others: task.cancel()
        return 1
"""


def test_a_task_that_user_code_cancels_before_it_begins_is_answered(
    start: Start, python: str
) -> None:
    process = start(CANCELS, "app.predict", python=python, ASYA_CONCURRENCY="3")
    first, second = process.client(), process.client()
    first.send(frame({"payload": {"first": 1}}))
    process.logged("held")
    second.send(frame({"payload": {}}))
    taken(second)
    (process.folder / "go").touch()
    assert [first.reply(), second.reply()] == [ok(1), error("CancelledError", "CancelledError")]
    assert process.call({}) == ok(5)
    stopped(process)


# --- forks -----------------------------------------------------------------------------

FORKS = """
    import os, sys, multiprocessing, threading
    class Stop(BaseException): pass
    def end(way):
        if way == "return": return "from the child"
        if way == "exit": sys.exit(3)
        if way == "exit-nothing": sys.exit()
        if way == "exit-text": sys.exit("text")
        if way == "exit-large": sys.exit(256 + 4)
        if way == "_exit": os._exit(4)
        if way == "error": raise ValueError("in the child")
        if way == "base": raise Stop
        if way == "print":
            print("from the child", end="")
            sys.exit(5)
        if way == "kill": os.kill(os.getpid(), 9)
        if way == "thread":
            thread = threading.Thread(target=lambda: None)
            thread.start(); thread.join()
            sys.exit(6)
        if way == "again":
            pid = os.fork()
            if pid == 0: sys.exit(2)
            sys.exit(10 + os.WEXITSTATUS(os.waitpid(pid, 0)[1]))
        if way == "unencodable": return {1, 2}
    def fork():
        pid = os.fork()
        return os.WEXITSTATUS(os.waitpid(pid, 0)[1]) if pid else 9
    class Encoded:
        def model_dump(self, mode): return fork()
    class Printed(Exception):
        def __str__(self): return str(fork())
    def predict(m):
        way = m["payload"]["way"]
        if way == "encoded": return Encoded()
        if way == "printed": raise Printed
        if way == "Process":
            child = multiprocessing.get_context("fork").Process(target=sys.exit, args=(3,))
            child.start(); child.join(9)
            return child.exitcode
        pid = os.fork()
        if pid == 0: return end(way)
        status = os.waitpid(pid, 0)[1]
        return os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)
    async def later(m): return predict(m)
"""
WAYS = {
    "return": 0,
    "exit": 3,
    "exit-nothing": 0,
    "exit-text": 1,
    "exit-large": 4,
    "_exit": 4,
    "error": 1,
    "base": 1,
    "print": 5,
    "kill": -9,
    "thread": 6,
    "again": 12,
    "unencodable": 0,
    "encoded": 0,
    "Process": 3,
}


@pytest.mark.parametrize(
    ("handler", "concurrency"),
    [("predict", "1"), ("later", "1"), ("predict", "2")],
    ids=["plain", "async", "threads"],
)
def test_a_child_forked_in_a_call_ends_with_the_status_of_its_own(
    start: Start, python: str, handler: str, concurrency: str
) -> None:
    process = start(FORKS, f"app.{handler}", python=python, ASYA_CONCURRENCY=concurrency)
    client = process.client()
    got = {}
    for way in WAYS:
        client.send(frame({"payload": {"way": way}}))
        got[way] = client.reply()
    assert got == {way: ok(status) for way, status in WAYS.items()}
    assert process.log().count("from the child") == 1
    assert replies_to(process, [{"way": "printed"}]) == [error("Printed", "0")]
    assert "exiting" not in process.log()
    assert replies_to(process, [{"way": "exit"}]) == [ok(3)]
    stopped(process)


FORKED_AT_IMPORT = """
    import os, sys, time
    pid = os.fork()
    if pid == 0:
        WAY
    status = os.waitpid(pid, 0)[1]
    def predict(m): return os.WEXITSTATUS(status)
"""


@pytest.mark.parametrize(
    ("way", "status"),
    [("os._exit(4)", 4), ("sys.exit('text')", 1), ("sys.exit()", 0), ("1 / 0", 1)],
)
def test_a_child_forked_at_import_ends_with_a_status(
    start: Start, folder: Path, way: str, status: int
) -> None:
    case = Case(FORKED_AT_IMPORT.replace("WAY", way), [({}, ok(status))])
    check(start, folder, case, sys.executable)


def test_a_child_forked_at_import_ends_with_the_status_of_its_own(
    start: Start, folder: Path, python: str
) -> None:
    case = Case(FORKED_AT_IMPORT.replace("WAY", "sys.exit(3)"), [({}, ok(3))])
    check(start, folder, case, python)


STAYS = """
    import os, signal, time
    AT_IMPORT
    def predict(m):
        pid = os.fork()
        if pid: return pid
        open("child", "w").close()
        while True: time.sleep(60)
"""


def test_a_child_that_runs_on_is_ended_by_its_own_sigterm_and_holds_nothing(
    start: Start, folder: Path, python: str
) -> None:
    process = start(STAYS.replace("AT_IMPORT", ""), "app.predict", python=python)
    client = process.client()
    client.send(frame({"payload": {}}))
    pid = client.reply()["result"]
    eventually((folder / "child").exists, "the child")
    process.signal()
    assert process.wait() == 0
    assert client.at_end()
    os.kill(pid, signal.SIGTERM)
