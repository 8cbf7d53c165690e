"""Every interpreter found here runs the real file."""

from __future__ import annotations

import subprocess

import pytest

from .conftest import DEADLINE, ENTRYPOINT, RUNTIME, Start, frame

SOURCE = """
    import asyncio
    async def work(message):
        what = message["payload"]["what"]
        await asyncio.sleep(0)
        if what == "gpu": raise RuntimeError("CUDA out of memory. Tried to allocate 1 GiB")
        if what == "nan": return {"score": float("nan")}
        return [what]
"""


@pytest.mark.parametrize("concurrency", ["1", "2"])
def test_the_contract_holds(start: Start, python: str, concurrency: str) -> None:
    process = start(SOURCE, "app.work", python=python, ASYA_CONCURRENCY=concurrency)
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


@pytest.mark.parametrize("file", [RUNTIME, ENTRYPOINT], ids=lambda path: path.stem)
def test_an_old_interpreter_is_told_in_one_line(old_python: str, file: object) -> None:
    ran = subprocess.run(
        [old_python, str(file)], capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    assert ran.returncode == 78
    assert ran.stderr.count("\n") == 1
    assert ": needs Python 3.9 or newer, this is 3." in ran.stderr
