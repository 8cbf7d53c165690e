"""Every interpreter found here runs the real file."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from .conftest import DEADLINE, ENTRYPOINT, RUNTIME, Start, eventually, frame

DEV = ["-X", "dev"]  # shows all warnings
SOURCE = """
    import asyncio
    async def work(message):
        what = message["payload"]["what"]
        await asyncio.sleep(0)
        if what == "gpu": raise RuntimeError("CUDA out of memory. Tried to allocate 1 GiB")
        if what == "nan": return {"score": float("nan")}
        return [what]
"""


@pytest.mark.parametrize(
    ("concurrency", "options"), [("1", DEV), ("2", [])], ids=["dev", "threads"]
)
def test_the_contract_holds(
    start: Start, python: str, concurrency: str, options: list[str]
) -> None:
    argv = [python, *options, str(RUNTIME)]
    process = start(SOURCE, "app.work", argv=argv, ASYA_CONCURRENCY=concurrency)
    client = process.client()

    def call(what: object) -> tuple[object, ...]:
        reply = client.call({"payload": {"what": what}})
        return reply["status"], reply.get("result"), reply.get("error"), reply.get("type")

    assert call("ä" * 100_000) == ("ok", ["ä" * 100_000], None, None)
    assert call("gpu") == ("error", None, "cuda_oom_error", "RuntimeError")
    assert call("nan") == ("error", None, "processing_error", "ValueError")
    for bad in (b"{", b'{"payload":{"a":' + b"9" * 99999 + b"}}", b"[" * 200000):
        assert client.call(bad)["error"] == "invalid_json"
    client.send(frame({"payload": {"what": 1}}) * 3)
    process.signal()
    assert process.wait() == 0
    assert "Warning" not in process.log()


MODEL = """
    import dataclasses, os, signal, sqlite3, threading, weakref
    memory = sqlite3.connect(":memory:")
    class Tensor: pass
    @dataclasses.dataclass(frozen=True)
    class Frozen(Exception):
        text: str
        def __str__(self): return self.text
    class Model:
        kept = None
        def predict(self, message):
            return getattr(self, message["payload"]["do"])()
        def generator(self):
            yield memory.execute("select 1").fetchone()[0]
            yield threading.current_thread() is threading.main_thread()
        def fork(self):
            pid = os.fork()
            if pid == 0: os._exit(7)
            return os.waitpid(pid, 0)[1] >> 8
        def frozen(self): raise Frozen("cold")
        def exit(self): raise SystemExit(3)
        def memory(self):
            tensor = Tensor()
            Model.kept = weakref.ref(tensor)
            try: bytearray(1 << 62)
            except MemoryError as error: raise ValueError("wrapped") from error
        def held(self): return Model.kept() is not None
"""
DONE = [
    ("generator", ("ok", [1, True], None, None)),
    ("fork", ("ok", 7, None, None)),
    ("frozen", ("error", None, "processing_error", "Frozen")),
    ("exit", ("error", None, "processing_error", "SystemExit")),
    ("memory", ("error", None, "oom_error", "ValueError")),
    ("held", ("ok", False, None, None)),
]


def test_a_model_is_served_on_the_main_thread(start: Start, python: str) -> None:
    process = start(
        MODEL, "app.Model.predict", argv=[python, str(RUNTIME)], ASYA_HANDLER_TIMEOUT="9"
    )
    client = process.client()
    for what, expected in DONE * 2:
        got = client.call({"payload": {"do": what}})
        assert (got["status"], got.get("result"), got.get("error"), got.get("type")) == expected
    process.signal()
    assert process.wait() == 0
    assert not process.socket.exists()


def test_a_wrong_setting_is_one_line(start: Start, python: str) -> None:
    process = start(argv=[python, str(RUNTIME)], ready=False, ASYA_CONCURRENCY="0")
    assert process.wait() == 78
    line = "asya_runtime: ASYA_CONCURRENCY=0: must be a whole number from 1 to 1024\n"
    assert process.log() == line


def test_sigterm_is_heard_while_importing(start: Start, folder: Path, python: str) -> None:
    in_c = "__import__('hashlib').pbkdf2_hmac('md5', b'', b'', 10**9)"
    source = f"open('importing', 'w').close()\n{in_c}"
    process = start(source, argv=[python, str(RUNTIME)], ready=False)
    eventually((folder / "importing").exists, "import")
    process.signal()
    assert process.wait() == 0


def test_the_wrapper_serves_and_gives_the_programs_status(start: Start, python: str) -> None:
    wait = "trap 'exit 3' TERM; echo up; while :; do sleep 0.05; done"
    argv = [python, *DEV, "-I", "-S", str(ENTRYPOINT), "--", "sh", "-c", wait]
    process = start(argv=argv)
    assert process.call({"a": 1}) == {"status": "ok", "result": {"a": 1}}
    process.logged("up")
    process.signal()
    assert process.wait() == 3
    assert not process.socket.exists()
    assert "Warning" not in process.log()


@pytest.mark.parametrize("file", [RUNTIME, ENTRYPOINT], ids=lambda path: path.stem)
def test_an_old_interpreter_is_told_in_one_line(old_python: str, file: object) -> None:
    ran = subprocess.run(
        [old_python, str(file)], capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    assert ran.returncode == 78
    assert ran.stderr.count("\n") == 1
    assert ": requires Python 3.9 or newer; this is 3." in ran.stderr
