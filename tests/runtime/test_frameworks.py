"""The real frameworks, out of real memory, in the runtime's process; CPU builds raise these too.

One process for each framework, so that its import is paid once. An address space limit makes
the errors certain where the kernel would promise anything.
"""

from __future__ import annotations

import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import DEADLINE, RUNTIME, Client, Process, environment, eventually, frame

LIMITED = """
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))
"""
NUMPY = """
    import numpy
    one = numpy.ones(1)
    def work(message):
        what = message["payload"].get("what")
        if what == "empty": numpy.empty(1 << 40)
        if what == "expression": one.repeat(1 << 31) * numpy.ones((4, 1))
        if what == "list": numpy.broadcast_to(one, (1 << 40,)).tolist()
        if what == "text": b"x" * (1 << 40)
        if what == "wrapped":
            try: numpy.empty(1 << 40)
            except MemoryError as error: raise RuntimeError("prediction failed") from error
        if what == "handled":
            try: numpy.empty(1 << 40)
            except MemoryError: raise ValueError("too large a picture") from None
        if what == "shape": one.reshape(3)
        if what == "impossible": numpy.zeros(1 << 62)
        return float(one.sum())
"""
ONNX = """
    import numpy, onnxruntime
    def field(number, value):
        def varint(n): return bytes([n]) if n < 128 else bytes([n & 127 | 128]) + varint(n >> 7)
        if isinstance(value, int): return varint(number << 3) + varint(value)
        value = value.encode() if isinstance(value, str) else value
        return varint(number << 3 | 2) + varint(len(value)) + value
    def value(name, kind): return field(1, name) + field(2, field(1, field(1, kind)))
    # A model of one node: y = Expand(x, shape)
    node = field(1, field(1, "x") + field(1, "shape") + field(2, "y") + field(4, "Expand"))
    ends = field(11, value("x", 1)) + field(11, value("shape", 7)) + field(12, value("y", 1))
    graph = field(7, node + field(2, "g") + ends)
    model = field(1, 8) + field(8, field(1, "") + field(2, 13)) + graph
    def session(arena):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.enable_cpu_mem_arena, options.log_severity_level = arena, 4
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    sessions = {"arena": session(True), "plain": session(False)}
    def work(message):
        what, size = message["payload"].get("what", "arena"), message["payload"].get("size", 1)
        if what == "shape": size = -7
        inputs = {"x": numpy.ones(1, "f4"), "shape": numpy.array([size], "i8")}
        return float(sessions[what if what in sessions else "arena"].run(None, inputs)[0].sum())
"""
JAX = """
    import os
    os.environ.update(JAX_PLATFORMS="cpu", NPROC="1", XLA_FLAGS=(
        "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"))
    import jax, jax.numpy, numpy
    multiply = jax.jit(lambda x: jax.numpy.outer(x, x) @ jax.numpy.outer(x, x))
    def work(message):
        what = message["payload"].get("what")
        if what == "zeros": jax.numpy.zeros(1 << 36, "float32").block_until_ready()
        if what == "compiled": multiply(jax.numpy.ones(1 << 18)).block_until_ready()
        if what == "put": jax.device_put(numpy.broadcast_to(numpy.float32(1), (1 << 36,)))
        if what == "wrapped":
            try: jax.numpy.zeros(1 << 36, "float32").block_until_ready()
            except Exception: raise ValueError("while that was handled")
        if what == "shape": jax.numpy.ones(3).reshape(2)
        return float(jax.numpy.ones(1).sum())
"""
RAM = ("oom_error", "recoverable", 30)
OTHER = ("processing_error", "fatal", None)
# payload: what the reply says, its type, a part of its message
CASES: dict[str, tuple[str, list[tuple[dict[str, Any], tuple[object, ...], str, str]]]] = {
    "numpy": (
        NUMPY,
        [
            ({"what": "empty"}, RAM, "MemoryError", "Unable to allocate 8.00 TiB for an arr"),
            ({"what": "expression"}, RAM, "MemoryError", "Unable to allocate "),
            ({"what": "list"}, RAM, "MemoryError", "MemoryError"),
            ({"what": "text"}, RAM, "MemoryError", "MemoryError"),
            ({"what": "wrapped"}, RAM, "RuntimeError", "prediction failed"),
            ({"what": "handled"}, OTHER, "ValueError", "too large a picture"),
            ({"what": "shape"}, OTHER, "ValueError", "cannot reshape array"),
            ({"what": "impossible"}, OTHER, "ValueError", "array is too big"),
        ],
    ),
    "onnxruntime": (
        ONNX,
        [
            ({"size": 1 << 40}, RAM, "Fail", "Failed to allocate memory for requested buffer"),
            ({"size": 1 << 33}, RAM, "Fail", "Failed to allocate memory for requested buffer"),
            ({"what": "plain", "size": 1 << 40}, RAM, "RuntimeException", "std::bad_alloc"),
            ({"what": "shape"}, OTHER, "Fail", "Tensor shape.Size() must be >= 0"),
        ],
    ),
    "jax": (
        JAX,
        [
            ({"what": "zeros"}, RAM, "JaxRuntimeError", "RESOURCE_EXHAUSTED: Out of memory alloc"),
            ({"what": "compiled"}, RAM, "JaxRuntimeError", "RESOURCE_EXHAUSTED: Out of memory al"),
            ({"what": "put"}, RAM, "JaxRuntimeError", "RESOURCE_EXHAUSTED: Out of memory alloca"),
            ({"what": "wrapped"}, RAM, "ValueError", "while that was handled"),
            ({"what": "shape"}, OTHER, "TypeError", "cannot reshape array of shape"),
        ],
    ),
}


@pytest.fixture(scope="module", params=CASES)
def served(request: pytest.FixtureRequest) -> Iterator[tuple[str, Process, Client]]:
    with tempfile.TemporaryDirectory(prefix="asya-") as name:
        folder = Path(name)
        source = textwrap.dedent(LIMITED) + textwrap.dedent(CASES[request.param][0])
        (folder / "app.py").write_text(source)
        environ = environment(folder, ASYA_HANDLER="app.work", OPENBLAS_NUM_THREADS="1")
        process = Process(folder, [sys.executable, str(RUNTIME)], environ)
        try:
            eventually(
                lambda: process.socket.exists() or process.popen.poll() is not None, "import", 90
            )
            assert process.popen.poll() is None, process.log()
            client = process.client()
            client.sock.settimeout(2 * DEADLINE)
            yield request.param, process, client
        finally:
            process.end()


def test_real_memory_errors_are_told_from_others_and_survived(
    served: tuple[str, Process, Client],
) -> None:
    name, process, client = served
    for payload, verdict, kind, part in CASES[name][1] * 2:
        reply = client.call({"payload": payload})
        got = reply.get("error"), reply.get("severity"), reply.get("retry_after")
        assert (got, reply.get("type")) == (verdict, kind), (payload, reply)
        assert part in reply["message"]
        assert client.call({"payload": {}}) == {"status": "ok", "result": 1.0}
    assert process.popen.poll() is None


def test_what_comes_right_behind_a_real_memory_error_is_served(
    served: tuple[str, Process, Client],
) -> None:
    name, _, client = served
    payload = CASES[name][1][0][0]
    client.send((frame({"payload": payload}) + frame({"payload": {}})) * 3)
    for _ in range(3):
        assert client.reply()["error"] == "oom_error"
        assert client.reply() == {"status": "ok", "result": 1.0}
