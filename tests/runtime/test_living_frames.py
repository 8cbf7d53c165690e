"""What cleans up after a failed call reaches no further than that call.

Coroutines, generators and threads of user code go on living after an exception has passed them,
or was caught by them, and exceptions that user code keeps are read by it later.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from .conftest import Start, frame
from .served import Case, check, error, memory_error, ok, replies_to, stopped, write_files

DIVISION = error("ZeroDivisionError", "division by zero")
OOM = "CUDA out of memory. Tried to allocate 1 GiB"
X = [{"x": x} for x in (1, 0, 1, 0, 2)]

WORKER = """
    import asyncio
    q = None
    async def work():
        while True:
            f, x = await q.get()
            try: f.set_result({result})
            except {caught} as e: f.set_exception({exception})
    async def predict(m):
        global q, t
        if not q:
            q = asyncio.Queue()
            t = asyncio.create_task(work())
        f = asyncio.get_running_loop().create_future()
        q.put_nowait((f, m["payload"]["x"]))
        return await f
"""


def worker(result: str = "1 / x", caught: str = "Exception", exception: str = "e") -> str:
    filled = WORKER.replace("{result}", result).replace("{caught}", caught)
    return filled.replace("{exception}", exception)


def each(failure: object) -> list[tuple[object, object]]:
    """Good, failed, good, failed, good: whoever was closed with a failure answers no third."""
    return [(x, failure if not x["x"] else ok(1 / x["x"])) for x in X]


def hands_out(result: str) -> str:
    """Give a handler that raises what a generator has caught while it computed `result` of x."""
    return f"""
        def divide(x):
            if x == 0: raise MemoryError("all")
            return 1 / x
        def work():
            result = None
            while True:
                x = yield result
                try: result = {result}
                except Exception as e: result = e
        worker = work()
        next(worker)
        def predict(m):
            result = worker.send(m["payload"]["x"])
            if isinstance(result, Exception): raise result
            return result
    """


CASES = {
    "a-task-that-sets-the-exception": Case(worker(), each(DIVISION)),
    "a-task-that-sets-it-as-a-cause": Case(
        """
        import asyncio
        q = None
        async def work():
            while True:
                f, x = await q.get()
                try: f.set_result(1 / x)
                except Exception as e:
                    wrapped = ValueError("wrapped")
                    wrapped.__cause__ = e
                    f.set_exception(wrapped)
        async def predict(m):
            global q, t
            if not q:
                q = asyncio.Queue()
                t = asyncio.create_task(work())
            f = asyncio.get_running_loop().create_future()
            q.put_nowait((f, m["payload"]["x"]))
            return await f
        """,
        each(error("ValueError", "wrapped")),
    ),
    "a-task-that-runs-out-of-memory": Case(
        worker("1 / x if x else bytearray(1 << 62)", exception="MemoryError('all')"),
        each(memory_error("MemoryError", "all")),
    ),
    "a-task-that-hands-on-a-memory-error": Case(
        """
        import asyncio
        q = None
        def divide(x):
            if x == 0: raise MemoryError("all")
            return 1 / x
        async def work():
            while True:
                f, x = await q.get()
                try: f.set_result(divide(x))
                except MemoryError as e: f.set_exception(e)
        async def predict(m):
            global q, t
            if not q:
                q = asyncio.Queue()
                t = asyncio.create_task(work())
            f = asyncio.get_running_loop().create_future()
            q.put_nowait((f, m["payload"]["x"]))
            return await f
        """,
        each(memory_error("MemoryError", "all")),
    ),
    "a-task-that-hands-on-a-gpu-memory-error": Case(
        f"""
        import asyncio
        q = None
        def divide(x):
            if x == 0: raise RuntimeError({OOM!r})
            return 1 / x
        async def work():
            while True:
                f, x = await q.get()
                try: f.set_result(divide(x))
                except RuntimeError as e: f.set_exception(e)
        async def predict(m):
            global q, t
            if not q:
                q = asyncio.Queue()
                t = asyncio.create_task(work())
            f = asyncio.get_running_loop().create_future()
            q.put_nowait((f, m["payload"]["x"]))
            return await f
        """,
        each(memory_error("RuntimeError", OOM, "cuda_oom_error")),
    ),
    "a-generator-that-hands-its-exception-out": Case(
        hands_out("1 / x"),
        each(DIVISION),
    ),
    "a-generator-that-hands-a-memory-error-out": Case(
        hands_out("divide(x)"),
        each(memory_error("MemoryError", "all")),
    ),
    "a-generator-whose-finally-ends-a-session": Case(
        """
        open_ = []
        def session():
            open_.append(1)
            error = None
            try:
                while True:
                    x = yield error
                    try: error = 1 / x
                    except ZeroDivisionError as e: error = e
            finally: open_.clear()
        one = session()
        next(one)
        def predict(m):
            result = one.send(m["payload"]["x"])
            if isinstance(result, Exception): raise result
            return [result, len(open_)]
        """,
        [(x, ok([1 / x["x"], 1]) if x["x"] else DIVISION) for x in X],
    ),
    "a-context-that-is-kept-open": Case(
        """
        import contextlib
        seen = []
        @contextlib.contextmanager
        def pool():
            error = None
            while True:
                try:
                    yield lambda x: 1 / x
                    return
                except ZeroDivisionError as e:
                    seen.append(e)
                    raise KeyError("from the pool") from e
        stack = contextlib.ExitStack()
        use = stack.enter_context(pool())
        def predict(m): return use(m["payload"]["x"])
        """,
        each(DIVISION),
    ),
    "an-async-generator": Case(
        """
        worker = None
        async def work():
            result = None
            while True:
                x = yield result
                try: result = 1 / x
                except Exception as e: result = e
        async def predict(m):
            global worker
            if worker is None:
                worker = work()
                await worker.asend(None)
            result = await worker.asend(m["payload"]["x"])
            if isinstance(result, Exception): raise result
            return result
        """,
        each(DIVISION),
    ),
    "a-connection-that-tells-why-it-failed-before": Case(
        """
        import asyncio
        class Backend:
            last = None
            wanted = None
            async def keep(self):
                while True:
                    x = await self.wanted.get()
                    try: self.last = 1 / x
                    except ZeroDivisionError as e: self.last = e
                    self.wanted.task_done()
        backend = Backend()
        async def predict(m):
            if backend.wanted is None:
                backend.wanted = asyncio.Queue()
                backend.task = asyncio.ensure_future(backend.keep())
            backend.wanted.put_nowait(m["payload"]["x"])
            await backend.wanted.join()
            if isinstance(backend.last, Exception):
                raise ConnectionError("backend down") from backend.last
            return backend.last
        """,
        each(error("ConnectionError", "backend down")),
    ),
    "a-coroutine-driven-by-hand": Case(
        """
        async def work():
            result = None
            while True:
                x = await Give(result)
                try: result = 1 / x
                except Exception as e: result = e
        class Give:
            def __init__(self, value): self.value = value
            def __await__(self): return (yield self.value)
        worker = work()
        worker.send(None)
        def predict(m):
            result = worker.send(m["payload"]["x"])
            if isinstance(result, Exception): raise result
            return result
        """,
        each(DIVISION),
    ),
    "a-thread-whose-loop-runs-on": Case(
        """
        import queue, threading
        jobs = queue.Queue()
        def work():
            while True:
                box, done, x = jobs.get()
                try: box.append(1 / x)
                except Exception as e: box.append(e)
                done.set()
        threading.Thread(target=work, daemon=True).start()
        def predict(m):
            box, done = [], threading.Event()
            jobs.put((box, done, m["payload"]["x"]))
            done.wait(9)
            if isinstance(box[0], Exception): raise box[0]
            return box[0]
        """,
        each(DIVISION),
    ),
    "an-executor": Case(
        """
        import concurrent.futures
        pool = concurrent.futures.ThreadPoolExecutor(1)
        def predict(m):
            return pool.submit(lambda: 1 / m["payload"]["x"]).result(9)
        """,
        each(DIVISION),
    ),
    "a-future-that-two-messages-wait-for": Case(
        """
        import asyncio
        shared = None
        async def load():
            await asyncio.sleep(0)
            raise ValueError("no such model")
        async def predict(m):
            global shared
            if shared is None: shared = asyncio.ensure_future(load())
            await shared
        """,
        [({}, error("ValueError", "no such model"))] * 3,
    ),
    "an-exception-in-a-group-of-tasks": Case(
        """
        import asyncio
        q = r = None
        async def work():
            while True:
                x = await q.get()
                try: r.put_nowait(1 / x)
                except Exception as e: r.put_nowait(e)
        class Several(Exception):
            def __init__(self, exceptions):
                super().__init__("several")
                self.exceptions = tuple(exceptions)
        async def predict(m):
            global q, r, t
            if q is None:
                q, r = asyncio.Queue(), asyncio.Queue()
                t = [asyncio.create_task(work()) for _ in range(2)]
            for _ in t: q.put_nowait(m["payload"]["x"])
            got = [await r.get() for _ in t]
            if isinstance(got[0], Exception): raise Several(got)
            return got[0]
        """,
        each(error("Several", "several")),
    ),
    "an-exception-that-is-kept": Case(
        """
        import traceback
        kept = []
        def inner(secret): raise ValueError("no")
        def predict(m):
            if kept:
                trace = kept[0].__traceback__
                names = [frame.f_code.co_name for frame, _ in traceback.walk_tb(trace)]
                last = list(traceback.walk_tb(trace))[-1][0]
                return [names[-2:], dict(last.f_locals)]
            try: inner(42)
            except ValueError as e:
                kept.append(e)
                raise
        """,
        [
            ({}, error("ValueError", "no")),
            ({}, ok([["predict", "inner"], {"secret": 42}])),
        ],
    ),
    "a-cause-that-is-kept": Case(
        """
        kept = []
        def inner(secret): raise ValueError("no")
        def predict(m):
            if kept:
                last = kept[0].__traceback__.tb_next.tb_frame
                return [last.f_code.co_name, dict(last.f_locals)]
            try: inner(42)
            except ValueError as e:
                kept.append(e)
                raise KeyError("outer") from e
        """,
        [
            ({}, error("KeyError", "'outer'")),
            ({}, ok(["inner", {"secret": 42}])),
        ],
    ),
    "a-generator-that-the-garbage-collector-passes-over": Case(
        hands_out("divide(x)") + "    import gc\n        gc.freeze()\n",
        each(memory_error("MemoryError", "all")),
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_what_lives_on_after_a_failed_call_serves_the_next(
    start: Start, folder: Path, case: Case
) -> None:
    check(start, folder, case, sys.executable)


ALL = """
    import importlib
    async def predict(m):
        result = importlib.import_module(m["payload"]["case"]).predict(m)
        return await result if hasattr(result, "__await__") else result
"""


def test_what_lives_on_after_failed_calls_of_all_kinds_serves_the_next(
    start: Start, folder: Path, python: str
) -> None:
    names = {f"case_{at}": (name, case) for at, (name, case) in enumerate(CASES.items())}
    write_files(folder, {f"{module}.py": case.source for module, (_, case) in names.items()})
    wrong = {}
    process = start(ALL, "app.predict", python=python)
    for module, (name, case) in names.items():
        sent = [
            payload | {"case": module} for payload, _ in case.calls if isinstance(payload, dict)
        ]
        got = replies_to(process, sent)
        if got != [reply for _, reply in case.calls]:
            wrong[name] = got
            process.end()
            process.socket.unlink(missing_ok=True)
            process = start(ALL, "app.predict", python=python)
    assert wrong == {}
    stopped(process)


SHARED = """
    import asyncio, threading
    both, q = threading.Barrier(2), None
    async def work():
        while True:
            f, x = await q.get()
            try: f.set_result(1 / x)
            except Exception as e: f.set_exception(e)
    async def predict(m):
        global q, t
        if not q:
            q = asyncio.Queue()
            t = asyncio.create_task(work())
        f = asyncio.get_running_loop().create_future()
        q.put_nowait((f, m["payload"]["x"]))
        return await f
"""


def test_a_task_that_serves_messages_side_by_side_outlives_their_failures(
    start: Start, python: str
) -> None:
    process = start(SHARED, "app.predict", python=python, ASYA_CONCURRENCY="4")
    clients = [process.client() for _ in range(4)]
    for _ in range(3):
        for x, client in enumerate(clients):
            client.send(frame({"payload": {"x": x}}))
        assert [client.reply() for client in clients] == [DIVISION, ok(1), ok(0.5), ok(1 / 3)]
    process.signal()
    assert process.wait() == 0
