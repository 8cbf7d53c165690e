"""Handlers: what can be one, and what is said when there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from .conftest import Start, frame

KINDS = """
    import asyncio, functools, threading
    def function(message): return message["payload"]["n"] + 1
    class Model:
        def __init__(self): self.calls = 0
        def predict(self, message):
            self.calls += 1
            return [self.calls]
        @staticmethod
        def static(message): return "static"
        @classmethod
        def of_class(cls, message): return cls.__name__
        async def later(self, message): return "later"
    model = Model()
    partial = functools.partial(lambda extra, message: extra, 7)
    async def coroutine(message):
        await asyncio.sleep(0)
        return message["payload"]["n"] + 1
    loops = set()
    async def loop(message):
        loops.add(id(asyncio.get_running_loop()))
        return [len(loops), threading.current_thread() is threading.main_thread()]
    def generator(message):
        for n in range(message["payload"]["n"]): yield {"n": n}
    async def async_generator(message):
        for n in range(message["payload"]["n"]):
            await asyncio.sleep(0)
            yield {"n": n}
    async def exit(message): raise SystemExit(3)
    async def background_exit(message):
        async def die(): raise SystemExit(3)
        asyncio.get_running_loop().create_task(die())
        await asyncio.sleep(0.01)
        return 1
    class Callable:
        async def __call__(self, message): return "called"
    instance = Callable()
"""
HANDLERS: dict[str, list[Any]] = {
    "function": [2, 2],
    "Model.predict": [[1], [2]],
    "model.predict": [[1], [2]],
    "Model.static": ["static"],
    "Model.of_class": ["Model"],
    "Model.later": ["later"],
    "partial": [7],
    "coroutine": [2, 2],
    "loop": [[1, True], [1, True]],
    "generator": [[{"n": 0}]],
    "async_generator": [[{"n": 0}]],
    "background_exit": [1, 1],
    "instance": ["called"],
}


@pytest.mark.parametrize(("handler", "results"), HANDLERS.items(), ids=HANDLERS)
@pytest.mark.parametrize("package", ["app", "pkg.deep.app"])
def test_every_kind_of_handler_is_served(
    start: Start, folder: Path, package: str, handler: str, results: list[Any]
) -> None:
    (folder / "pkg" / "deep").mkdir(parents=True)
    (folder / "pkg" / "deep" / "app.py").write_text("from app import *")
    client = start(KINDS, f"{package}.{handler}").client()
    got = [client.call({"payload": {"n": 1}}) for _ in results]
    assert got == [{"status": "ok", "result": result} for result in results]


@pytest.mark.parametrize("concurrency", ["1", "4"])
def test_a_system_exit_in_a_coroutine_is_answered(start: Start, concurrency: str) -> None:
    client = start(KINDS, "app.exit", ASYA_CONCURRENCY=concurrency).client()
    for _ in range(2):
        assert client.call({"payload": {}})["type"] == "SystemExit"


def test_coroutines_run_side_by_side_on_one_loop_with_concurrency(start: Start) -> None:
    source = """
        import asyncio
        waiting = []
        async def meet(message):
            waiting.append(asyncio.get_running_loop().create_future())
            if len(waiting) == 3:
                for future in waiting: future.set_result(1)
            return await waiting[-1] if len(waiting) == 3 else await waiting[len(waiting) - 1]
    """
    process = start(source, "app.meet", ASYA_CONCURRENCY="3")
    clients = [process.client() for _ in range(3)]
    for client in clients:
        client.send(frame({"payload": {}}))
    assert [client.reply()["result"] for client in clients] == [1, 1, 1]


def test_the_current_directory_comes_first_and_pythonpath_stays(start: Start, folder: Path) -> None:
    (folder / "lib").mkdir()
    for place in (folder, folder / "lib"):
        (place / "asya_twice.py").write_text(f"place = {place.name!r}")
    (folder / "lib" / "asya_once.py").write_text("place = 'once'")
    source = """
        import asya_twice, asya_once
        def echo(message): return [asya_twice.place, asya_once.place]
    """
    process = start(source, PYTHONPATH=str(folder / "lib"))
    assert process.call({})["result"] == [folder.name, "once"]


def test_what_a_script_does_at_its_import_is_no_harm(start: Start, folder: Path) -> None:
    source = """
        import argparse, logging, os, sys
        argparse.ArgumentParser().parse_args()
        logging.basicConfig(level=logging.DEBUG, force=True)
        os.chdir("/")
        os.umask(0)
        sys.stdout = sys.stderr = open(os.devnull, "w")
        def echo(message): return [sys.argv[1:], os.getcwd()]
    """
    assert start(source).call({})["result"] == [[], "/"]


def test_a_generator_that_fails_half_way_gets_one_reply(start: Start) -> None:
    source = """
        import asyncio
        async def half(message):
            yield 1
            await asyncio.sleep(0)
            if message["payload"]: raise ValueError("half way")
    """
    client = start(source, "app.half").client()
    for _ in range(2):
        got = client.call({"payload": {"a": 1}})
        assert (got["error"], got["message"], got["type"]) == (
            "processing_error",
            "half way",
            "ValueError",
        )
        assert client.call({"payload": {}}) == {"status": "ok", "result": [1]}


MISTAKES: dict[str, tuple[str, str, str]] = {
    "no-module": ("", "nowhere.echo", "ASYA_HANDLER=nowhere.echo: no module nowhere; searched "),
    "near": ("", "lost.echo", "/src: add that to PYTHONPATH; searched "),
    "no-submodule": ("", "pkg.absent.echo", "pkg has no absent; it has the module model"),
    "no-function": (
        "def echo(m): pass\ndef predict(m): pass",
        "app.ecko",
        "app has no ecko; it has echo, predict",
    ),
    "dependency": (
        "import asya_no_such_framework\ndef echo(m): pass",
        "app.echo",
        "app imports asya_no_such_framework, which is not installed in this image: "
        "ModuleNotFoundError: No module named 'asya_no_such_framework'",
    ),
    "raises": ("1 / 0", "app.echo", "importing app failed: ZeroDivisionError: division by zero"),
    "exits": ("raise SystemExit(3)", "app.echo", "importing app failed: SystemExit: 3"),
    "syntax": ("def echo(", "app.echo", "importing app failed: SyntaxError: "),
    "class": (
        "class Model:\n def predict(self, m): pass",
        "app.Model",
        "app.Model is a class; set ASYA_HANDLER to one of its methods: predict",
    ),
    "constructor": (
        "class Model:\n def __init__(self, path): pass\n def predict(self, m): pass",
        "app.Model.predict",
        "instantiating app.Model failed: TypeError: ",
    ),
    "number": ("echo = 7", "app.echo", "app.echo is not callable: it is of type int"),
}


@pytest.mark.parametrize(("source", "handler", "line"), MISTAKES.values(), ids=MISTAKES)
def test_a_handler_that_cannot_be_loaded_is_one_line_that_helps(
    start: Start, folder: Path, source: str, handler: str, line: str
) -> None:
    for name in ("src/lost.py", "pkg/model.py"):
        (folder / name).parent.mkdir()
        (folder / name).touch()
    process = start(source, handler, ready=False)
    assert process.wait() == 78
    assert line in process.log().splitlines()[-1]
    assert not process.socket.exists()
