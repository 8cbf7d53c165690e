"""What an error is, its class and its origin say; a text that quotes the payload says nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import Client, Process, Start, frame
from .processes import used
from .served import Like, error, memory_error, ok, replies_to, stopped, write_files

STICKY = [
    "CUDA error: device-side assert triggered",
    "CUDA error: an illegal memory access was encountered",
    "CUDA error: unspecified launch failure",
    "CUDA error: misaligned address",
    "CUDA error: an illegal instruction was encountered",
    "CUDA error: uncorrectable ECC error encountered",
    "CUDA error: unknown error",
    "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`",
    "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
    "NCCL error in: ProcessGroupNCCL.cpp:9\nncclUnhandledCudaError: Call to CUDA failed.",
    "cudaErrorIllegalAddress: an illegal memory access was encountered",
    "CUDA_ERROR_LAUNCH_FAILED: unspecified launch failure",
    "Cannot re-initialize CUDA in forked subprocess. To use CUDA with multiprocessing",
    "misaligned address",
]
GPU = [
    "CUDA out of memory. Tried to allocate 20.00 GiB",
    "HIP out of memory. Tried to allocate 2 GiB",
    "XPU out of memory. Tried to allocate 2 GiB",
    "MPS backend out of memory (MPS allocated: 9.00 GB",
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "CUDA failed with error out of memory",
    "CUDA_ERROR_OUT_OF_MEMORY: out of memory",
    "cudaErrorMemoryAllocation: out of memory",
    "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 99 bytes.",
    "FATAL ERROR :: MODULE:PT_DEVMEM Allocation failed for size",
]
HOST = [
    "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried",
    "DefaultCPUAllocator: not enough memory: you tried to allocate",
    "RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes.",
]
TEXTS = STICKY + GPU + HOST

SOURCE = """
    import json
    class Own(Exception): pass
    class OutOfMemoryError(Exception): pass
    class EngineDeadError(Exception): pass
    class OwnValue(ValueError): pass
    def kind(module, name, *bases):
        return type(name, bases or (Exception,), {"__module__": module})
    CLASSES = {
        "pydantic": kind("pydantic_core._pydantic_core", "ValidationError", ValueError),
        "pydantic-1": kind("pydantic.error_wrappers", "ValidationError", ValueError),
        "jsonschema": kind("jsonschema.exceptions", "ValidationError"),
        "torch": kind("torch", "AcceleratorError", RuntimeError),
        "torch-memory": kind("torch", "OutOfMemoryError", RuntimeError),
        "torch-cuda": kind("torch.cuda", "DeferredCudaCallError"),
        "tensorflow": kind("tensorflow.python.framework.errors_impl", "InternalError"),
        "jax": kind("jax.errors", "JaxRuntimeError", RuntimeError),
        "jaxlib": kind("jaxlib.xla_extension", "XlaRuntimeError", RuntimeError),
        "cupy": kind("cupy_backends.cuda.api.runtime", "CUDARuntimeError", RuntimeError),
        "numba": kind("numba.cuda.cudadrv.driver", "CudaAPIError"),
        "onnx": kind("onnxruntime.capi.onnxruntime_pybind11_state", "RuntimeException"),
        "ctranslate2": kind("ctranslate2", "Error", RuntimeError),
        "vllm": kind("vllm.v1.engine.exceptions", "EngineGenerateError"),
        "vllm-input": kind("vllm.exceptions", "VLLMValidationError", ValueError),
        "tensorflow-input": kind(
            "tensorflow.python.framework.errors_impl", "InvalidArgumentError"),
        "jax-input": kind("jax.errors", "ConcretizationTypeError", TypeError),
        "vllm-dead": kind("vllm.v1.engine.exceptions", "EngineDeadError"),
        "Own": Own, "OwnValue": OwnValue, "OutOfMemoryError": OutOfMemoryError,
        "EngineDeadError": EngineDeadError,
    }
    def make(name, text):
        kind = CLASSES.get(name) or vars(__builtins__).get(name) if not isinstance(
            __builtins__, dict) else CLASSES.get(name) or __builtins__[name]
        if name == "JSONDecodeError": return json.JSONDecodeError(text, "x", 0)
        if name == "UnicodeDecodeError": return UnicodeDecodeError("utf-8", b"x", 0, 1, text)
        return kind(text)
    def predict(m):
        p = m["payload"]
        if "class" in p: raise make(p["class"], p["text"])
        if "int" in p: return int(p["int"])
        if "key" in p: return {}[p["key"]]
        if "attribute" in p: return getattr(p, p["attribute"])
        if "open" in p: return open(p["open"])
        if "import" in p: return __import__(p["import"])
        if "loads" in p: return json.loads(p["loads"])
        if "index" in p: return [][p["index"]]
        if "assert" in p: assert p["assert"] == 1, p["assert"]
        if "encode" in p: return p["encode"].encode("ascii")
        if "call" in p: return predict(**{p["call"]: 1})
        if "format" in p: return ("%d" % p["format"])
        if "chain" in p:
            try: int(p["chain"])
            except ValueError as e: raise KeyError("n") from e
        if "wrapped" in p:
            try: int(p["wrapped"])
            except ValueError as e: raise RuntimeError("the request is wrong") from e
        if "group" in p:
            error = Own("several")
            error.exceptions = (ValueError(p["group"]), KeyError(p["group"]))
            raise error
        if "cause" in p:
            raise make(*p["cause"][0]) from make(*p["cause"][1])
        return p
"""

# Whose texts say nothing: people write them, or they quote what was sent
SAY_NOTHING = [
    "ValueError",
    "KeyError",
    "LookupError",
    "IndexError",
    "TypeError",
    "AttributeError",
    "AssertionError",
    "ArithmeticError",
    "NameError",
    "ImportError",
    "UnicodeError",
    "UnicodeDecodeError",
    "JSONDecodeError",
    "StopIteration",
    "SyntaxError",
    "pydantic",
    "pydantic-1",
    "jsonschema",
    "OwnValue",
    "Own",
    "OSError",  # Transformers quotes the name of a model in it
    "vllm-input",
    "tensorflow-input",
    "jax-input",
]
QUOTES = ["int", "key", "attribute", "open", "import", "loads", "assert", "call", "chain", "group"]
QUOTES += ["wrapped"]


def test_a_text_that_quotes_the_payload_is_an_error_of_that_message(
    start: Start, python: str
) -> None:
    process = start(SOURCE, "app.predict", python=python)
    client = process.client()
    wrong = {}
    for way in QUOTES:
        for text in TEXTS:
            client.send(frame({"payload": {way: text}}))
            got = client.reply()
            if (got["error"], got["severity"]) != ("processing_error", "fatal"):
                wrong[way, text] = got
            if "restarts" in got["message"]:
                pytest.fail(f"{way} {text}: {got}")
    assert wrong == {}
    assert process.popen.poll() is None
    stopped(process)


def test_texts_count_in_no_exception_of_a_class_that_people_raise(
    start: Start, python: str
) -> None:
    process = start(SOURCE, "app.predict", python=python)
    client = process.client()
    wrong = {}
    for kind in SAY_NOTHING:
        for text in TEXTS:
            client.send(frame({"payload": {"class": kind, "text": text}}))
            got = client.reply()
            if (got["error"], got["severity"]) != ("processing_error", "fatal"):
                wrong[kind, text] = got
            if "restarts" in got["message"]:
                pytest.fail(f"{kind} {text}: {got}")
    assert wrong == {}
    assert process.popen.poll() is None
    stopped(process)


def test_the_reply_to_a_quoting_error_is_its_own(start: Start, python: str) -> None:
    process = start(SOURCE, "app.predict", python=python)
    quoted = "invalid literal for int() with base 10: "
    calls = [
        ({"int": "misaligned address"}, error("ValueError", f"{quoted}'misaligned address'")),
        ({"int": "CUDA out of memory"}, error("ValueError", f"{quoted}'CUDA out of memory'")),
        ({"key": "CUDA error: unknown error"}, error("KeyError", "'CUDA error: unknown error'")),
        ({"chain": "misaligned address"}, error("KeyError", "'n'")),
        ({"wrapped": GPU[0]}, error("RuntimeError", "the request is wrong")),
        ({"a": 1}, ok({"a": 1})),
    ]
    assert replies_to(process, [payload for payload, _ in calls]) == [due for _, due in calls]
    stopped(process)


# Whose texts count: what frameworks raise
COUNT = {
    "RuntimeError": "RuntimeError",
    "SystemError": "SystemError",
    "torch": "AcceleratorError",
    "torch-memory": "OutOfMemoryError",
    "torch-cuda": "DeferredCudaCallError",
    "tensorflow": "InternalError",
    "jax": "JaxRuntimeError",
    "jaxlib": "XlaRuntimeError",
    "cupy": "CUDARuntimeError",
    "numba": "CudaAPIError",
    "onnx": "RuntimeException",
    "ctranslate2": "Error",
    "vllm": "EngineGenerateError",
}


def test_texts_count_in_exceptions_that_frameworks_raise(start: Start, python: str) -> None:
    process = start(SOURCE, "app.predict", python=python)
    calls: list[tuple[object, object]] = [
        ({"class": "RuntimeError", "text": text}, memory_error("RuntimeError", text, code))
        for code, texts in (("cuda_oom_error", GPU), ("oom_error", HOST))
        for text in texts
    ]
    calls += [
        ({"class": kind, "text": GPU[0]}, memory_error(name, GPU[0], "cuda_oom_error"))
        for kind, name in COUNT.items()
    ]
    calls += [
        (
            {"cause": [["ValueError", "outer"], ["RuntimeError", GPU[0]]]},
            memory_error("ValueError", "outer", "cuda_oom_error"),
        ),
        ({"class": "MemoryError", "text": ""}, memory_error("MemoryError", "MemoryError")),
        (
            {"class": "torch-memory", "text": "something new"},
            memory_error("OutOfMemoryError", "something new", "cuda_oom_error"),
        ),
        ({"class": "OutOfMemoryError", "text": "x"}, error("OutOfMemoryError", "x")),
        ({"class": "EngineDeadError", "text": "x"}, error("EngineDeadError", "x")),
    ]
    got = replies_to(process, [payload for payload, _ in calls])
    assert got == [due for _, due in calls]
    stopped(process)


ENDS = [("RuntimeError", text) for text in STICKY[:13]]
ENDS += [("torch", STICKY[0]), ("SystemError", STICKY[1]), ("cupy", STICKY[10])]
ENDS += [("numba", STICKY[11]), ("vllm-dead", "EngineCore encountered an issue.")]


@pytest.mark.parametrize(("kind", "text"), ENDS)
def test_a_lost_context_of_this_process_ends_it_with_70(start: Start, kind: str, text: str) -> None:
    process = start(SOURCE, "app.predict")
    (got,) = replies_to(process, [{"class": kind, "text": text}])
    name = {"torch": "AcceleratorError", "cupy": "CUDARuntimeError", "numba": "CudaAPIError"}
    name["vllm-dead"] = "EngineDeadError"
    assert got == error(name.get(kind, kind), text)
    assert process.wait() == 70
    assert not process.socket.exists()


# --- the context of another process ----------------------------------------------------

CHILDREN = """
    import concurrent.futures.process, json, multiprocessing.pool, sys, traceback
    def kind(module, name, *bases):
        return type(name, bases or (Exception,), {"__module__": module})
    Spawned = kind("torch.multiprocessing.spawn", "ProcessRaisedException")
    Ray = kind("ray.exceptions", "RayTaskError", RuntimeError)
    Loky = kind("joblib.externals.loky.process_executor", "_RemoteTraceback")
    TRACE = '''Traceback (most recent call last):
      File "/app/data.py", line 9, in __getitem__
        return image.cuda()
      File "torch/cuda/__init__.py", line 305, in _lazy_init
        raise RuntimeError(
    RuntimeError: '''
    def worker_of_a_loader(text):
        raise RuntimeError(
            "Caught RuntimeError in DataLoader worker process 0.\\nOriginal " + TRACE + text)
    def pool(text):
        error = RuntimeError(text)
        error.__cause__ = multiprocessing.pool.RemoteTraceback(TRACE + text)
        raise error
    def executor(text):
        error = RuntimeError(text)
        error.__cause__ = concurrent.futures.process._RemoteTraceback(TRACE + text)
        raise error
    def loky(text):
        error = RuntimeError(text)
        error.__cause__ = Loky(TRACE + text)
        raise error
    def spawned(text):
        raise Spawned("\\n\\n-- Process 0 terminated with the following error:\\n" + TRACE + text)
    def ray(text): raise Ray("ray::f() (pid=9, ip=10.0.0.1)\\n" + TRACE + text)
    def real_pool(text):
        context = multiprocessing.get_context("fork")
        with context.Pool(1) as pool: pool.apply(fail, (text,))
    def fail(text): raise RuntimeError(text)
    WAYS = [worker_of_a_loader, pool, executor, loky, spawned, ray, real_pool]
    def predict(m):
        p = m["payload"]
        if "way" in p: WAYS[p["way"]](p["text"])
        return p
"""
WAYS = ["a-dataloader", "pool", "executor", "loky", "spawned", "ray", "a-real-pool"]


def test_a_lost_context_of_a_child_does_not_end_this_process(start: Start, python: str) -> None:
    wrong = {}
    process = start(CHILDREN, "app.predict", python=python)
    for way, name in enumerate(WAYS):
        for text in STICKY if way < 6 else STICKY[:1]:
            got = replies_to(process, [{"way": way, "text": text}, {"a": 1}])
            if got != [Like(error="processing_error", severity="fatal"), ok({"a": 1})]:
                wrong[name] = got
                process.end()
                process.socket.unlink(missing_ok=True)
                process = start(CHILDREN, "app.predict", python=python)
                break
    assert wrong == {}
    stopped(process)


@pytest.mark.parametrize("way", [0, 1, 2], ids=WAYS[:3])
def test_gpu_memory_that_a_child_did_not_get_is_a_gpu_memory_error(start: Start, way: int) -> None:
    process = start(CHILDREN, "app.predict")
    (got,) = replies_to(process, [{"way": way, "text": GPU[0]}])
    assert isinstance(got, dict)
    assert (got["error"], got["severity"]) == ("cuda_oom_error", "recoverable")
    stopped(process)


# --- the origin of a ValueError --------------------------------------------------------

VLLM = """
    def check(text): raise ValueError(text)
"""
ORIGIN = """
    import sys
    sys.path.insert(0, "site")
    import vllm.v1.core
    def predict(m):
        if "there" in m["payload"]: vllm.v1.core.check(m["payload"]["there"])
        raise ValueError(m["payload"]["here"])
"""


def test_a_value_error_of_vllm_counts_and_one_of_the_users_does_not(
    start: Start, folder: Path, python: str
) -> None:
    """What vLLM raises when its cache does not fit is a ValueError: its origin tells it."""
    files = {"site/vllm/__init__.py": "", "site/vllm/v1/__init__.py": ""}
    write_files(folder, {**files, "site/vllm/v1/core.py": VLLM})
    process = start(ORIGIN, "app.predict", python=python)
    text = "No available memory for the cache blocks. Try increasing `gpu_memory_utilization`"
    assert replies_to(process, [{"there": text}, {"here": text}]) == [
        memory_error("ValueError", text, "cuda_oom_error"),
        error("ValueError", text),
    ]
    stopped(process)


# --- long texts ------------------------------------------------------------------------

PIECES = [
    "cuda ",
    "gpu=",
    "GPU=0 ",
    "cuda failure ",
    "cuda error: ",
    "oom when allocating tensor ",
    "oom when allocating tensor device:",
    "device:gpu",
    "device:cpu",
    "device:gpu:0 failed to allocate ",
    "internal assert failed at ",
    "internal assert failed at x",
    "onnxruntimeerror",
    "onnxruntimeerror std::",
    "cumem",
    "cumemalloc failed: ",
    "available memory of 1",
    "1",
    "cublas_status_not_initialized ",
    "cublas_status_not_initialized when calling ",
    "bad_alloc: ",
    "an illegal ",
    " ",
    "\n",
    "a",
    "_",
]
SIZE = 20_000


def cost(process: Process, client: Client, text: str) -> float:
    """Give the processor time of a call that ends with an error of this text: the best of five."""
    best = 9e9
    for _ in range(5):
        began = used(process)
        client.send(frame({"payload": {"class": "RuntimeError", "text": text}}))
        client.reply()
        best = min(best, used(process) - began)
        if best > 0.1:
            break
    return best


def test_a_text_of_20000_characters_costs_what_a_plain_one_does(start: Start, python: str) -> None:
    """At most 2 ms more: measured as a multiple of what a text that holds no such word costs."""
    process = start(SOURCE, "app.predict", python=python)
    client = process.client()
    client.sock.settimeout(30)
    plain = min(cost(process, client, "xyzw " * (SIZE // 5)) for _ in range(3))
    slow = {}
    for piece in PIECES:
        text = (piece * SIZE)[: SIZE - 1]
        for whole in (text, text[: SIZE // 2] + "y" * (SIZE // 2)):
            took = cost(process, client, whole)
            if took > 3 * plain + 0.002:
                slow[piece] = round(took * 1000, 1)
                break
    assert slow == {}, f"milliseconds; a plain text: {plain * 1000:.1f}"
    stopped(process)
