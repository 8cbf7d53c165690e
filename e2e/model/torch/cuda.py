"""The part of torch.cuda that concerns memory, for one device."""

from __future__ import annotations

import os
from collections import Counter

from ._allocator import GIB, AcceleratorError, Gpu, OutOfMemoryError

__all__ = ["AcceleratorError", "OutOfMemoryError"]

# How often each function was called. For tests; the original has no such thing.
calls: Counter[str] = Counter()
_gpu: Gpu | None = None
_is_lost = False

# The text of torch 2.9 and later. Older versions lack the second line and raise a RuntimeError.
DEVICE_ASSERT = """CUDA error: device-side assert triggered
Search for `cudaErrorAssert' in \
https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__TYPES.html for more information.
CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace \
below might be incorrect.
For debugging consider passing CUDA_LAUNCH_BLOCKING=1
Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.
"""


def _lose_context() -> None:
    """From now on every call fails."""
    global _is_lost  # noqa: PLW0603
    _is_lost = True


def _initialized() -> Gpu:
    """The GPU; the first call creates its context, as in the original."""
    global _gpu  # noqa: PLW0603
    if _is_lost:
        raise AcceleratorError(DEVICE_ASSERT)
    if _gpu is None:
        _gpu = Gpu(int(os.environ.get("GPU_MEMORY") or 4 * GIB))
    return _gpu


def is_available() -> bool:
    return True


def is_initialized() -> bool:
    """Whether this process has used the GPU."""
    return _gpu is not None


def memory_allocated(device: int | None = None) -> int:
    return _gpu.allocated if _gpu else 0


def memory_reserved(device: int | None = None) -> int:
    return _gpu.reserved if _gpu else 0


def memory_stats(device: int | None = None) -> dict[str, int]:
    """Counters of the allocator, with the names of the original."""
    stats = _gpu.stats if _gpu else Counter[str]()
    return {
        "allocated_bytes.all.current": memory_allocated(),
        "reserved_bytes.all.current": memory_reserved(),
        "allocation.all.allocated": stats["num_allocs"],
        "allocation.all.freed": stats["num_frees"],
        "num_alloc_retries": stats["num_alloc_retries"],
        "num_ooms": stats["num_ooms"],
    }


def mem_get_info(device: int | None = None) -> tuple[int, int]:
    """Free and total bytes of the device."""
    gpu = _initialized()
    return gpu.free, gpu.total


def synchronize(device: int | None = None) -> None:
    calls["synchronize"] += 1
    _initialized()


def empty_cache() -> None:
    calls["empty_cache"] += 1
    if _gpu:
        _initialized().empty_cache()


def ipc_collect() -> None:
    calls["ipc_collect"] += 1
    _initialized()


def device_malloc(size: int) -> None:
    """cudaMalloc, as other libraries on the GPU call it; the original has no such function."""
    gpu = _initialized()
    if size > gpu.free:
        raise AcceleratorError("CUDA error: out of memory")
    gpu.used_by_others += size


def device_free(size: int) -> None:
    """cudaFree of memory from `device_malloc`."""
    _initialized().used_by_others -= size
