"""Memory errors: recognised by name and text, answered, and what they held let go."""

from __future__ import annotations

from types import ModuleType

import pytest

from .conftest import Start, frame


def raised(module: str, name: str, *bases: type, text: str = "", args: bool = True) -> Exception:
    """Make a faithful stand-in for a framework's exception."""
    body = {"__module__": module, "__str__": lambda self: text}
    kind = type(name, bases or (RuntimeError,), body)
    error = kind(text) if args else kind()
    assert isinstance(error, Exception)
    return error


def chained(inner: BaseException, *, cause: bool, suppress: bool = False) -> Exception:
    try:
        try:
            raise inner
        except BaseException as error:
            if cause:
                raise ValueError("outer") from error
            if suppress:
                raise ValueError("outer") from None
            raise ValueError("outer")  # noqa: B904
    except ValueError as error:
        return error


def grouped(inner: Exception) -> Exception:
    error = RuntimeError("several")
    error.exceptions = (KeyError("x"), inner)  # type: ignore[attr-defined]
    return error


TORCH = "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 15.77 GiB"
ARENA = (
    "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Add node. "
    "bfc_arena.cc:360 Failed to allocate memory for requested buffer of size 4398046511104"
)
OOM_TF = "OOM when allocating tensor with shape[9] and type float on /job:localhost/device:"
GPU, HOST, STICKY = "cuda_oom_error", "oom_error", "sticky"


def onnx(name: str, text: str) -> Exception:
    return raised("onnxruntime.capi.onnxruntime_pybind11_state", name, Exception, text=text)


def tensorflow(text: str) -> Exception:
    module = "tensorflow.python.framework.errors_impl"
    return raised(module, "ResourceExhaustedError", Exception, text=text, args=False)


def from_vllm(text: str) -> Exception:
    """Raise a ValueError in a module of vLLM, and return it with its traceback."""
    code = compile("raise ValueError(text)", "vllm/v1/core/kv_cache_utils.py", "exec")
    try:
        exec(code, {"__name__": "vllm.v1.core.kv_cache_utils", "text": text})
    except ValueError as error:
        return error
    raise AssertionError


R = RuntimeError

CASES: dict[str, tuple[str, BaseException]] = {
    "torch": (GPU, raised("torch", "OutOfMemoryError", text=TORCH)),
    "torch-renamed-text": (GPU, raised("torch", "OutOfMemoryError", text="something new")),
    "torch-1.12": (GPU, R(TORCH)),
    "torch-hip": (GPU, R("HIP out of memory. Tried to allocate 2 GiB")),
    "torch-xpu": (GPU, R("XPU out of memory. Tried to allocate 2 GiB")),
    "torch-mps": (GPU, R("MPS backend out of memory (MPS allocated: 9.00 GB")),
    "torch-raw": (GPU, raised("torch", "AcceleratorError", text="CUDA error: out of memory")),
    "torch-script": (GPU, R(f"failed in the TorchScript interpreter.\nRuntimeError: {TORCH}")),
    "cublas": (GPU, R("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(h)`")),
    "cublas-create": (
        GPU,
        R("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    ),
    "cudnn": (GPU, R("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")),
    "nvml": (GPU, R('NVML_SUCCESS == r INTERNAL ASSERT FAILED at "../CUDACachingAllocator.cpp"')),
    "torch-2.0": (
        GPU,
        R("CUDA out of memory. Tried to allocate 2.00 GiB (GPU 0; 15.77 GiB total capacity; "),
    ),
    "torch-cuda-class": (GPU, raised("torch.cuda", "OutOfMemoryError", text="")),
    "torch-driver": (GPU, R("CUDA driver error: out of memory")),
    "cublas-handles": (
        GPU,
        R('!handles_.at(i) INTERNAL ASSERT FAILED at "../c10/cuda/CUDACachingAllocator.cpp":1'),
    ),
    "cusolver": (GPU, R("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cus")),
    "gaudi": (GPU, R("FATAL ERROR :: MODULE:PT_DEVMEM Allocation failed for size")),
    "tensorflow": (
        GPU,
        raised("tensorflow", "ResourceExhausted", Exception, text=OOM_TF + "GPU:0", args=False),
    ),
    "tensorflow-eager": (
        GPU,
        raised(
            "tensorflow.python.framework.errors_impl",
            "ResourceExhaustedError",
            Exception,
            text="{{function_node __wrapped__Mul_device_/job:localhost/replica:0/task:0/"
            "device:GPU:0}} failed to allocate memory [Op:Mul]",
            args=False,
        ),
    ),
    "jax-request": (GPU, R("RESOURCE_EXHAUSTED: Failed to allocate request for 2.0GiB")),
    "jax-old": (
        GPU,
        raised(
            "jaxlib.xla_extension",
            "XlaRuntimeError",
            text="RESOURCE_EXHAUSTED: Out of memory while trying to allocate 99 bytes.",
        ),
    ),
    "jax": (GPU, R("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 99 bytes.")),
    "cupy": (
        GPU,
        raised("cupy.cuda.memory", "OutOfMemoryError", MemoryError, text="allocating 1 byte"),
    ),
    "cupy-raw": (GPU, R("cudaErrorMemoryAllocation: out of memory")),
    "cupy-driver": (
        GPU,
        raised(
            "cupy_backends.cuda.api.driver",
            "CUDADriverError",
            text="CUDA_ERROR_OUT_OF_MEMORY: out of memory",
        ),
    ),
    "numba": (
        GPU,
        raised(
            "numba.cuda.cudadrv.driver",
            "CudaAPIError",
            Exception,
            text="[2] Call to cuMemAlloc results in CUDA_ERROR_OUT_OF_MEMORY",
        ),
    ),
    "onnx-gpu": (GPU, onnx("Fail", "[ONNXRuntimeError] CUDA failure 2: out of memory ; GPU=0")),
    "onnx-gpu-arena": (GPU, onnx("Fail", "GPU=0 " + ARENA)),
    "onnx-cublas": (GPU, onnx("Fail", "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0")),
    "rmm": (GPU, MemoryError("std::bad_alloc: out_of_memory: RMM failure at: pool.hpp")),
    "pycuda": (GPU, raised("pycuda._driver", "MemoryError", text="cuMemAlloc failed: out of me")),
    "ctranslate2": (GPU, R("CUDA failed with error out of memory")),
    "vllm": (GPU, from_vllm("No available memory for the cache blocks. Try increasing")),
    "vllm-free": (
        GPU,
        from_vllm("Free memory on device (1/15 GiB) is less than desired GPU memory utilization"),
    ),
    "vllm-cache": (
        GPU,
        from_vllm("9 GiB KV cache is needed, which is larger than the available KV cache memory"),
    ),
    "python": (HOST, MemoryError()),
    "numpy": (
        HOST,
        raised("numpy._core._exceptions", "_ArrayMemoryError", MemoryError, text="Unable to"),
    ),
    "mmap": (HOST, OSError(12, "Cannot allocate memory")),
    "torch-cpu": (
        HOST,
        R("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you"),
    ),
    "torch-cpu-windows": (HOST, R("DefaultCPUAllocator: not enough memory: you tried")),
    "tensorflow-eager-cpu": (
        HOST,
        tensorflow(
            "{{function_node x_device_/task:0/device:CPU:0}} failed to allocate memory [Op:"
        ),
    ),
    "onnx-available": (
        HOST,
        onnx(
            "RuntimeException",
            "Available memory of 9 is smaller than requested bytes of 4398046511104",
        ),
    ),
    "bad-alloc": (HOST, MemoryError("std::bad_alloc")),
    "jax-cpu": (HOST, R("RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes.")),
    "tensorflow-cpu": (HOST, tensorflow(OOM_TF + "CPU:0 by allocator cpu")),
    "onnx-arena": (HOST, onnx("Fail", ARENA)),
    "onnx-bad-alloc": (HOST, onnx("RuntimeException", "[ONNXRuntimeError] : 6 : std::bad_alloc")),
    "cause": (GPU, chained(R(TORCH), cause=True)),
    "context": (GPU, chained(R(TORCH), cause=False)),
    "group": (HOST, grouped(MemoryError())),
    "assert": (STICKY, R("CUDA error: device-side assert triggered\nCUDA kernel errors might")),
    "illegal": (STICKY, R("CUDA error: an illegal memory access was encountered")),
    "launch": (STICKY, R("CUDA error: unspecified launch failure")),
    "ecc": (STICKY, R("CUDA error: uncorrectable ECC error encountered")),
    "unknown": (STICKY, R("CUDA error: unknown error")),
    "misaligned": (STICKY, R("CUDA error: misaligned address")),
    "instruction": (STICKY, R("CUDA error: an illegal instruction was encountered")),
    "cublas-execution": (STICKY, R("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `")),
    "cudnn-execution": (STICKY, R("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED")),
    "nccl": (
        STICKY,
        R("NCCL error in: ProcessGroupNCCL.cpp:9, unhandled cuda error\nncclUnhandledCudaError: "),
    ),
    "torch-accelerator": (
        STICKY,
        raised("torch", "AcceleratorError", text="CUDA error: device-side assert triggered"),
    ),
    "sticky-and-oom": (
        STICKY,
        chained(R("CUDA error: an illegal memory access was encountered"), cause=False),
    ),
    "cupy-illegal": (
        STICKY,
        R("cudaErrorIllegalAddress: an illegal memory access was encountered"),
    ),
    "fork": (STICKY, R("Cannot re-initialize CUDA in forked subprocess. To use CUDA with")),
    "engine-dead": (STICKY, raised("vllm.v1.engine.exceptions", "EngineDeadError", Exception)),
    "sticky-behind-oom": (STICKY, chained(R("CUDA error: unknown error"), cause=True)),
    "suppressed": ("", chained(R(TORCH), cause=False, suppress=True)),
    "vllm-text-elsewhere": ("", ValueError("No available memory for the cache blocks.")),
    "onnx-text-elsewhere": ("", Exception("[ONNXRuntimeError] CUDA failure 2: out of memory")),
    "device": ("", R("CUDA error: invalid device ordinal")),
    "accelerator": (
        "",
        raised("torch", "AcceleratorError", text="CUDA error: no kernel image is available for"),
    ),
    "illegal-elsewhere": ("", ValueError("illegal memory access in the user's own emulator")),
    "file-not-found": ("", FileNotFoundError(2, "No such file: out of memory.txt")),
    "space": ("", OSError(28, "No space left on device")),
    "handled": ("", chained(MemoryError(), cause=False, suppress=True)),
    "customer": ("", ValueError("we ran out of memory of this customer")),
    "quota": ("", OSError(122, "Disk quota exceeded")),
    "tensorflow-quota": ("", raised("tensorflow", "ResourceExhaustedError", text="disk quota")),
    "shared-memory": ("", R("out of resource: shared memory, Required: 99, Hardware limit: 9")),
    "own-class": ("", raised("app", "OutOfMemoryError", text="of this customer")),
    "empty": ("", ValueError()),
}


@pytest.mark.parametrize(("expected", "error"), CASES.values(), ids=CASES)
def test_memory_errors_are_told_from_others(
    runtime: ModuleType, expected: str, error: BaseException
) -> None:
    assert runtime.make_classify()(error) == expected


def test_a_chain_that_bites_its_tail_ends(runtime: ModuleType) -> None:
    one, two = ValueError("one"), ValueError("two")
    one.__context__, two.__context__ = two, one
    assert runtime.make_classify()(one) == ""


RAISE = """
    import errno
    def fail(message):
        raise eval(message["payload"]["code"])
"""
RAM = {"severity": "recoverable", "retry_after": 30}
VRAM = {"severity": "recoverable", "retry_after": 60}
REPLIES = {
    "host": (
        "MemoryError('no')",
        {"error": "oom_error", "message": "no", "type": "MemoryError"} | RAM,
    ),
    "gpu": (
        f"RuntimeError({TORCH!r})",
        {"error": "cuda_oom_error", "message": TORCH, "type": "RuntimeError"} | VRAM,
    ),
}


@pytest.mark.parametrize(("code", "expected"), REPLIES.values(), ids=REPLIES)
def test_a_memory_error_is_recoverable_and_the_next_call_is_served(
    start: Start, code: str, expected: dict[str, object]
) -> None:
    client = start(RAISE, "app.fail").client()
    for _ in range(2):
        assert client.call({"payload": {"code": code}}) == {"status": "error"} | expected


@pytest.mark.parametrize(("code", "expected"), REPLIES.values(), ids=REPLIES)
def test_without_detection_they_are_processing_errors(
    start: Start, code: str, expected: dict[str, object]
) -> None:
    got = start(RAISE, "app.fail", ASYA_ENABLE_OOM_DETECTION="false").call({"code": code})
    assert (got["error"], got["severity"]) == ("processing_error", "fatal")
    assert "retry_after" not in got


def test_a_real_memory_error_anywhere_is_answered_and_survived(start: Start) -> None:
    source = """
        import resource
        def echo(message):
            if "limit" in message["payload"]:
                used = int(open("/proc/self/statm").read().split()[5]) * 4096
                resource.setrlimit(resource.RLIMIT_DATA, (used + 40_000_000, -1))
                return 1
            if "make" in message["payload"]: return len(bytearray(message["payload"]["make"]))
            if "result" in message["payload"]: return ["x" * 9_000_000] * 5
            return len(message["payload"].get("text", ""))
    """
    client = start(source, ASYA_JSON="stdlib").client()  # orjson crashes under a limit
    assert client.call({"payload": {"limit": 1}}) == {"status": "ok", "result": 1}
    small = {"payload": {"text": "x"}}
    for message in (
        {"payload": {"make": 200_000_000}},
        {"payload": {"text": "x" * 35_000_000}},
        {"payload": {"text": "x" * 80_000_000}},
        {"payload": {"result": 1}},
    ):
        reply = client.call(message)
        assert (
            reply
            == {
                "status": "error",
                "error": "oom_error",
                "message": reply["message"],
                "type": "MemoryError",
            }
            | RAM
        )
        assert client.call(small) == {"status": "ok", "result": 1}


FRAMEWORKS = """
    import sys, types, weakref
    events = []
    class Tensor: pass
    class Context(list): pass
    alive = weakref.WeakSet()
    def empty(name):
        def call(*_):
            events.append([name, len(alive)])
        return call
    torch = types.ModuleType("torch")
    torch.cuda = types.SimpleNamespace(
        is_initialized=lambda: True, empty_cache=empty("cuda"), ipc_collect=empty("ipc"))
    torch.xpu = types.SimpleNamespace(is_initialized=lambda: False, empty_cache=empty("xpu"))
    def broken(): raise RuntimeError(OOM)
    torch.backends = types.SimpleNamespace(mps=types.SimpleNamespace(is_available=broken))
    cupy = types.ModuleType("cupy")
    pool = types.SimpleNamespace(free_all_blocks=empty("pool"))
    cupy.get_default_memory_pool = cupy.get_default_pinned_memory_pool = lambda: pool
    sys.modules.update(torch=torch, cupy=cupy)
    OOM = "CUDA out of memory. Tried to allocate 1 GiB"
    def deepest():
        tensor = Tensor(); alive.add(tensor)
        cycle = [tensor]; cycle.append(cycle)
        raise RuntimeError(OOM)
    def middle():
        tensor = Tensor(); alive.add(tensor)
        try: deepest()
        except RuntimeError as error: raise ValueError("wrapped") from error
    kept = []
    def keeping():
        tensor = Tensor(); alive.add(tensor)
        try: deepest()
        except RuntimeError as error:
            kept.append(error)
            kept.append(ValueError("kept by a logger of exceptions"))
            raise kept[-1] from error
    def tracing():
        tensor = Tensor(); alive.add(tensor)
        try: deepest()
        except RuntimeError:
            kept.append(sys.exc_info()[2])
            raise
    def fail(message):
        if "events" in message["payload"]: return [events[:], len(alive)]
        tensor = Tensor(); alive.add(tensor)
        message["held"] = Tensor(); alive.add(message["held"])
        ways = {"chain": middle, "keep": keeping, "trace": tracing}
        ways.get(message["payload"].get("way"), deepest)()
    async def fail_later(message): return fail(message)
"""


@pytest.mark.parametrize("handler", ["fail", "fail_later"])
@pytest.mark.parametrize("concurrency", ["1", "2"])
@pytest.mark.parametrize(
    "payload",
    [{}, {"way": "chain"}, {"way": "keep"}, {"way": "trace"}],
    ids=["plain", "chained", "kept", "traceback-kept"],
)
def test_what_the_failed_call_held_is_free_before_the_caches_are_emptied(
    start: Start, handler: str, concurrency: str, payload: dict[str, str]
) -> None:
    process = start(FRAMEWORKS, f"app.{handler}", ASYA_CONCURRENCY=concurrency)
    client = process.client()
    assert client.call({"payload": payload})["error"] == "cuda_oom_error"
    emptied = [["cuda", 0], ["ipc", 0], ["pool", 0], ["pool", 0]]
    assert client.call({"payload": {"events": 1}})["result"] == [emptied, 0]


FAILS = """
    import asyncio, gc
    gc.disable()
    alive = 0
    class Failed(Exception):
        def __init__(self):
            global alive
            alive += 1
        def __del__(self):
            global alive
            alive -= 1
    def plain(m):
        if "count" in m["payload"]: return alive
        raise Failed
    async def coroutine(m):
        await asyncio.sleep(0)
        return plain(m)
    def awaited(m): return coroutine(m)
    async def batch_coroutine(messages): return [plain(m) for m in messages]
"""


@pytest.mark.parametrize(
    ("way", "concurrency"),
    [("plain", "1"), ("coroutine", "1"), ("awaited", "2"), ("batch_coroutine", "1")],
)
def test_an_exception_that_was_answered_is_free_without_collecting_garbage(
    start: Start, python: str, way: str, concurrency: str
) -> None:
    """Many turn the collection off for speed: with each exception the locals of its call stay."""
    size = "2" if way.startswith("batch") else "1"
    process = start(
        FAILS, f"app.{way}", python=python, ASYA_CONCURRENCY=concurrency, ASYA_BATCH_SIZE=size
    )
    for _ in range(3):
        assert process.call({})["type"] == "Failed"
    assert process.call({"count": 1}) in ({"status": "ok", "result": n} for n in (0, [0]))


def test_the_caches_stay_when_the_setting_says_so(start: Start) -> None:
    client = start(FRAMEWORKS, "app.fail", ASYA_CUDA_CLEANUP_ON_OOM="no").client()
    client.call({"payload": {}})
    assert client.call({"payload": {"events": 1}})["result"] == [[], 0]


@pytest.mark.parametrize("concurrency", ["1", "2"])
def test_a_lost_gpu_context_is_answered_and_ends_the_process_with_70(
    start: Start, concurrency: str
) -> None:
    text = "CUDA error: device-side assert triggered"
    process = start(RAISE, "app.fail", ASYA_CONCURRENCY=concurrency)
    client = process.client()
    bad = {"payload": {"code": f"RuntimeError({text!r})"}}
    client.send(frame(bad) * 2)
    assert client.reply() == {
        "status": "error",
        "error": "processing_error",
        "message": text,
        "type": "RuntimeError",
        "severity": "fatal",
    }
    assert client.reply() == {
        "status": "error",
        "error": "processing_error",
        "message": "the process is restarting",
        "severity": "recoverable",
        "retry_after": 1,
    }
    assert process.wait() == 70
    assert not process.socket.exists()
