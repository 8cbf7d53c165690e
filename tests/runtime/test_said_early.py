"""What cannot be served is said at the start, and what is said is said clearly."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import DEADLINE, RUNTIME, Start, environment, eventually, frame
from .processes import children_of, needs_namespace, pid_1_of, state_of
from .served import Case, check, ok, replies_to, stopped, write_files


def checked(folder: Path, source: str, handler: str, python: str = sys.executable) -> str:
    """Give the status of `--check`, and of what it said the last line."""
    write_files(folder, {"app.py": source})
    ran = subprocess.run(
        [python, str(RUNTIME), "--check"],
        env=environment(folder, ASYA_HANDLER=handler),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=DEADLINE,
        check=False,
    )
    lines = ran.stdout.decode().splitlines() or [""]
    return f"{ran.returncode} {lines[-1]}"


# --- what can be called with one argument -----------------------------------------------

REFUSED = {
    "no-argument": "def predict(): pass",
    "two-arguments": "def predict(a, b): pass",
    "two-and-a-default": "def predict(a, b, c=1): pass",
    "a-keyword": "def predict(m, *, model): pass",
    "only-keywords": "def predict(*, m): pass",
    "any-keywords": "def predict(**m): pass",
    "async": "async def predict(a, b): pass",
    "a-generator": "def predict(a, b): yield 1",
    "an-async-generator": "async def predict(a, b): yield 1",
    "lambda": "predict = lambda: 1",
    "partial": "import functools\ndef f(a): pass\npredict = functools.partial(f, 1)",
    "partial-of-three": "import functools\npredict = functools.partial(lambda a, b, c: 1, 1)",
    "an-object": "class P:\n    def __call__(self): pass\npredict = P()",
    "a-bound-method": "class P:\n    def f(self): pass\npredict = P().f",
    "a-decorated-one": "import functools\ndef f(m): pass\n@functools.wraps(f)\n"
    "def predict(a, b): pass",
    "a-built-in": "predict = divmod",
    "a-method": "class Model:\n    def predict(self): pass",
    "a-method-of-two": "class Model:\n    def predict(self, a, b): pass",
    "a-static-method": "class Model:\n    @staticmethod\n    def predict(): pass",
    "a-class-method": "class Model:\n    @classmethod\n    def predict(cls, a, b): pass",
    "a-default-that-cannot-be-printed": "class Bad:\n    def __repr__(self): raise ValueError\n"
    "class P:\n    def __call__(self, a, b, c=Bad()): pass\npredict = P()",
}
CALLED = {
    "one-argument": "def predict(m): return 1",
    "a-default": "def predict(m, model=None): return 1",
    "any-arguments": "def predict(*m): return 1",
    "anything": "def predict(*m, **k): return 1",
    "a-keyword-with-a-default": "def predict(m, *, model=None): return 1",
    "only-a-default": "def predict(m=None): return 1",
    "positional-only": "def predict(m, /): return 1",
    "async": "async def predict(m): return 1",
    "partial": "import functools\npredict = functools.partial(lambda a, m: 1, 0)",
    "partial-with-keywords": "import functools\ndef f(m, *, a): return 1\n"
    "predict = functools.partial(f, a=0)",
    "an-object": "class P:\n    def __call__(self, m): return 1\npredict = P()",
    "decorated": "import functools\ndef f(a, b): pass\n@functools.wraps(f)\n"
    "def predict(m): return 1",
    "cached": "import functools\n@functools.singledispatch\ndef predict(m): return 1",
    "a-built-in": "predict = len",
    "a-built-in-with-no-signature": "class M(dict): pass\nimport operator\n"
    "predict = operator.itemgetter('payload')",
    "a-signature-that-raises": "class P:\n    def __call__(self, m): return 1\n"
    "    @property\n    def __signature__(self): raise SystemExit(0)\npredict = P()",
    "a-class-that-raises": "class P:\n    __class__ = property(lambda self: 1 / 0)\n"
    "    def __call__(self, m): return 1\npredict = P()",
    "a-class-whose-name-raises": "class Meta(type):\n    __name__ = property(lambda self: 1 / 0)\n"
    "class P(metaclass=Meta):\n    def __call__(self, m): return 1\npredict = P()",
    "a-proxy-that-has-every-attribute": "class P:\n    def __getattr__(self, name): return P()\n"
    "    def __call__(self, m): return 1\npredict = P()",
    "a-signature-that-lies": "def predict(m): return 1\npredict.__signature__ = 5",
    "a-mock": "from unittest.mock import Mock\npredict = Mock(return_value=1)",
    "a-method": "class Model:\n    def predict(self, m): return 1",
    "a-static-method": "class Model:\n    @staticmethod\n    def predict(m): return 1",
    "a-class-method": "class Model:\n    @classmethod\n    def predict(cls, m): return 1",
}


def handler_of(source: str) -> str:
    return "app.Model.predict" if "class Model" in source else "app.predict"


@pytest.mark.parametrize("source", REFUSED.values(), ids=REFUSED)
def test_check_refuses_what_cannot_be_called_with_one_argument(folder: Path, source: str) -> None:
    said = checked(folder, source, handler_of(source))
    assert said.startswith("78 asya_runtime: app."), said
    assert "argument" in said


@pytest.mark.parametrize("source", CALLED.values(), ids=CALLED)
def test_check_accepts_what_can_be_called_with_one_argument(folder: Path, source: str) -> None:
    handler = handler_of(source)
    assert checked(folder, source, handler) == f"0 asya_runtime: {handler} can be served"


@pytest.mark.parametrize("name", ["two-arguments", "a-method"])
def test_a_start_is_refused_for_what_cannot_be_called_with_one_argument(
    start: Start, python: str, name: str
) -> None:
    source = REFUSED[name]
    process = start(source, handler_of(source), python=python, ready=False)
    assert process.wait() == 78, process.log()
    assert process.log().startswith("asya_runtime: app.")
    assert process.log().count("\n") == 1
    assert not process.socket.exists()


# --- attributes that are made when somebody asks ----------------------------------------

LAZY = {
    "an-error": "def __getattr__(name): raise ValueError('no weights')",
    "exit": "def __getattr__(name):\n    raise SystemExit(0)",
    "an-interrupt": "def __getattr__(name): raise KeyboardInterrupt",
    "import-error": "def __getattr__(name): raise ImportError('no torch')",
    "memory": "def __getattr__(name): raise MemoryError",
    "a-missing-import": "def __getattr__(name): import no_such_module",
    "a-property": "class Model:\n    @property\n    def predict(self): raise ValueError('no')",
    "getattr-of-an-instance": "class Model:\n    def __getattr__(self, n): raise ValueError('no')",
    "a-dir-that-raises": "def __dir__(): raise ValueError('no')",
    "a-dir-of-numbers": "def __dir__(): return [5, None]",
    "a-path-that-is-none": "__path__ = 5",
    "a-path-in-an-archive": "__path__ = ['/dev/null/pkg']",
}


@pytest.mark.parametrize("source", LAZY.values(), ids=LAZY)
def test_a_lazy_attribute_that_raises_is_refused_in_one_line(
    start: Start, folder: Path, source: str
) -> None:
    handler = handler_of(source)
    process = start(source, handler, ready=False)
    assert process.wait() == 78, process.log()
    last = process.log().splitlines()[-1]
    assert last.startswith("asya_runtime: ")
    assert "app" in last
    assert checked(folder, source, handler).startswith("78 asya_runtime: ")


def test_modules_that_were_patched_before_the_start_are_refused_in_one_line(
    start: Start, folder: Path
) -> None:
    """As gevent does it, in a file that the interpreter runs before the script."""
    write_files(folder, {"lib/sitecustomize.py": "import select\ndel select.epoll"})
    process = start(PYTHONPATH=str(folder / "lib"), ready=False)
    assert process.wait() == 78, process.log()
    assert process.log().startswith("asya_runtime: select.epoll is missing: a sitecustomize or ")
    assert process.log().count("\n") == 1


def test_a_lazy_attribute_that_raises_is_refused_everywhere(start: Start, python: str) -> None:
    process = start(LAZY["an-error"], "app.predict", python=python, ready=False)
    assert process.wait() == 78, process.log()
    assert "ValueError: no weights" in process.log().splitlines()[-1]


def test_a_lazy_attribute_is_served(start: Start, folder: Path, python: str) -> None:
    source = """
        def __getattr__(name):
            if name == "predict": return lambda m: m["payload"]
            raise AttributeError(name)
    """
    check(start, folder, Case(source, [({"a": 1}, ok({"a": 1}))]), python)


# --- what a plain function gives back that is to be awaited ------------------------------

AWAITED = """
    import asyncio, functools
    async def f(m):
        await asyncio.sleep(0)
        return m["payload"]["a"]
    async def items(m):
        for n in range(3):
            await asyncio.sleep(0)
            yield n
    async def fails(m):
        await asyncio.sleep(0)
        raise ValueError("no")
    class Later:
        def __init__(self, m): self.m = m
        def __await__(self): return f(self.m).__await__()
    def decorate(function):
        @functools.wraps(function)
        def inner(m): return function(m)
        return inner
    def unlike(function):
        def inner(*args): return function(*args)
        return inner
    class Object:
        def __call__(self, m): return f(m)
    WAYS = {
        "decorated": decorate(f), "twice": decorate(decorate(f)), "unlike": unlike(f),
        "lambda": lambda m: f(m), "object": Object(), "awaitable": Later,
        "items": decorate(items), "generator": decorate(lambda m: (n for n in range(3))),
        "plain": lambda m: m["payload"]["a"], "fails": decorate(fails),
        "partial": functools.partial(unlike(f)),
    }
    def predict(m): return WAYS[m["payload"]["way"]](m)
"""
DUE = {
    "decorated": ok(5),
    "twice": ok(5),
    "unlike": ok(5),
    "lambda": ok(5),
    "object": ok(5),
    "awaitable": ok(5),
    "items": ok([0, 1, 2]),
    "generator": ok([0, 1, 2]),
    "plain": ok(5),
    "fails": {
        "status": "error",
        "error": "processing_error",
        "message": "no",
        "type": "ValueError",
        "severity": "fatal",
    },
    "partial": ok(5),
}


@pytest.mark.parametrize("concurrency", ["1", "2"])
def test_async_below_a_plain_function_is_awaited(
    start: Start, folder: Path, python: str, concurrency: str
) -> None:
    calls = [({"way": way, "a": 5}, due) for way, due in DUE.items()]
    check(start, folder, Case(AWAITED, calls * 2), python, ASYA_CONCURRENCY=concurrency)


def test_calls_of_a_plain_function_share_one_event_loop(
    start: Start, folder: Path, python: str
) -> None:
    source = """
        import asyncio
        q = None
        async def f(m):
            global q
            if q is None: q = asyncio.Queue()
            q.put_nowait(m["payload"]["a"])
            return [q.qsize(), id(asyncio.get_running_loop()) == loops.setdefault(
                "first", id(asyncio.get_running_loop()))]
        loops = {}
        def predict(m): return f(m)
    """
    check(start, folder, Case(source, [({"a": 1}, ok([n, True])) for n in (1, 2, 3)]), python)


# --- texts ------------------------------------------------------------------------------

SURROGATES = r"""
    def predict(m):
        way = m["payload"]["way"]
        if way == "value": raise ValueError("a\ud800b\udcffc\U0001f600")
        if way == "key": raise KeyError("\ud800")
        if way == "pair": raise ValueError("\ud83d\ude00")
        if way == "cut": raise ValueError("x" * 1999 + "\U0001f600" + "y")
        if way == "path": return {"\ud800": float("nan")}
        if way == "surrogateescape": return open(b"no\xff".decode("utf-8", "surrogateescape"))
        if way == "memory": raise MemoryError("\udc80")
        if way == "gpu": raise RuntimeError("CUDA out of memory \ud800")
"""
TOLD = ["value", "key", "pair", "cut", "path", "surrogateescape", "memory", "gpu"]


@pytest.mark.parametrize("way", TOLD)
def test_strict_parsers_read_a_message_with_lone_surrogates(start: Start, way: str) -> None:
    process = start(SURROGATES, "app.predict")
    client = process.client()
    client.send(frame({"payload": {"way": way}}))
    body = client.exactly(int.from_bytes(client.exactly(4), "big"))
    told = json.loads(body)
    assert told["status"] == "error"
    for text in (told["message"], told["type"]):
        text.encode("utf-8")  # no half of a pair
        assert "\ufffd" not in text or way != "pair"
    if way == "value":
        assert told["message"][0] == "a"
        assert told["message"].endswith("\U0001f600")
    if way == "cut":
        assert told["message"].startswith("x" * 1999)


def test_strict_parsers_read_a_message_with_lone_surrogates_everywhere(
    start: Start, python: str
) -> None:
    client = start(SURROGATES, "app.predict", python=python).client()
    for way in TOLD:
        client.send(frame({"payload": {"way": way}}))
        body = client.exactly(int.from_bytes(client.exactly(4), "big"))
        json.loads(body)["message"].encode("utf-8")


NAMED = """
    def make(module, name): return type(name, (), {"__module__": module})()
    def predict(m): return {"items": [1, make(*m["payload"]["kind"])]}
"""


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (["numpy", "bool"], "numpy.bool"),
        (["numpy", "str"], "numpy.str"),
        (["numpy", "float32"], "numpy.float32"),
        (["torch", "Tensor"], "torch.Tensor"),
        (["pandas.core.frame", "DataFrame"], "DataFrame"),
        (["app", "int"], "app.int"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_value_that_is_no_json_is_called_what_it_is(
    start: Start, kind: list[str], name: str
) -> None:
    process = start(NAMED, "app.predict")
    got = process.call({"kind": kind})
    assert got["error"] == "processing_error"
    assert name in got["message"]
    assert ".items[1]" in got["message"]


# --- PID 1, and what runs between messages ----------------------------------------------

ORPHANS = """
    import os, subprocess, sys
    kept = []
    def predict(m):
        do = m["payload"]["do"]
        if do == "orphan":
            pid = os.fork()
            if pid == 0:
                for _ in range(5):
                    if os.fork() == 0: os._exit(7)
                os._exit(0)
            return os.waitpid(pid, 0)[1]
        if do == "run": return subprocess.run(["sh", "-c", "exit 3"]).returncode
        if do == "keep": kept.append(subprocess.Popen(["sh", "-c", "exit 4"]))
        if do == "kept": return kept.pop().wait(9)
        if do == "shell": return subprocess.run(["sh", "-c", "(exit 5) & exit 6"]).returncode
"""


@needs_namespace
def test_orphans_are_reaped_by_a_runtime_that_is_pid_1(start: Start, python: str) -> None:
    argv = ["unshare", "--pid", "--fork", "--kill-child", python, str(RUNTIME)]
    process = start(ORPHANS, "app.predict", argv=argv)
    calls = [("orphan", 0), ("run", 3), ("keep", None), ("shell", 6), ("kept", 4), ("orphan", 0)]
    got = replies_to(process, [{"do": do} for do, _ in calls])
    assert got == [ok(status) for _, status in calls]
    pid = pid_1_of(process)
    eventually(lambda: "Z" not in map(state_of, children_of(pid)), "no zombie")
    os.kill(pid, signal.SIGTERM)
    assert process.wait() == 0


BACKGROUND = """
    import asyncio, os
    ran = []
    async def later():
        for n in range(3):
            await asyncio.sleep(0.01)
            ran.append(n)
        open("ran", "w").close()
    async def predict(m):
        if "begin" in m["payload"]: ran.append(asyncio.ensure_future(later()))
        return len(ran)
"""


@pytest.mark.parametrize("concurrency", ["1", "2"])
def test_background_tasks_of_async_handlers_run_on_between_messages(
    start: Start, folder: Path, python: str, concurrency: str
) -> None:
    process = start(BACKGROUND, "app.predict", python=python, ASYA_CONCURRENCY=concurrency)
    assert replies_to(process, [{"begin": 1}]) == [ok(1)]
    eventually((folder / "ran").exists, "the end of a task in the background")
    assert replies_to(process, [{}]) == [ok(4)]
    stopped(process)
