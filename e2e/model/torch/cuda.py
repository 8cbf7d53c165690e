"""The part of torch.cuda that concerns memory, for one device."""

from __future__ import annotations

import os
from collections import Counter

from ._allocator import GIB, AcceleratorError, CachingAllocator, Device, OutOfMemoryError

__all__ = ["AcceleratorError", "OutOfMemoryError"]

# How often each function was called: for tests, the original has no such thing.
calls: Counter[str] = Counter()
_gpu: CachingAllocator | None = None
_is_lost = False

# Of torch 2.9 and later; older ones lack the second line and raise a plain RuntimeError.
DEVICE_ASSERT = """CUDA error: device-side assert triggered
Search for `cudaErrorAssert' in \
https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__TYPES.html for more information.
CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace \
below might be incorrect.
For debugging consider passing CUDA_LAUNCH_BLOCKING=1
Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.
"""


def _lose_context() -> None:
    """From now on every call fails, until the process ends."""
    global _is_lost  # noqa: PLW0603
    _is_lost = True


def _initialized() -> CachingAllocator:
    """The GPU; the first use creates its context, as the original does."""
    global _gpu  # noqa: PLW0603  (the original keeps its context in a global too)
    if _is_lost:
        raise AcceleratorError(DEVICE_ASSERT)
    if _gpu is None:
        _gpu = CachingAllocator(Device(int(os.environ.get("GPU_MEMORY") or 4 * GIB)))
    return _gpu


def is_available() -> bool:
    """There always is a GPU."""
    return True


def is_initialized() -> bool:
    """Whether this process has used the GPU."""
    return _gpu is not None


def device_count() -> int:
    """One."""
    return 1


def memory_allocated(device: int | None = None) -> int:
    """Bytes in use by tensors."""
    return _gpu.allocated() if _gpu else 0


def memory_reserved(device: int | None = None) -> int:
    """Bytes in use by tensors or cached for the next ones."""
    return _gpu.reserved() if _gpu else 0


def memory_stats(device: int | None = None) -> dict[str, int]:
    """Counters of the allocator, under the original's names."""
    counted = _gpu.stats if _gpu else Counter[str]()
    return {
        "allocated_bytes.all.current": memory_allocated(),
        "reserved_bytes.all.current": memory_reserved(),
        "allocation.all.allocated": counted["num_allocs"],
        "allocation.all.freed": counted["num_frees"],
        "num_alloc_retries": counted["num_alloc_retries"],
        "num_ooms": counted["num_ooms"],
    }


def mem_get_info(device: int | None = None) -> tuple[int, int]:
    """Free and total bytes of the device, as every process on it sees them."""
    gpu = _initialized().device
    return gpu.free, gpu.total


def synchronize(device: int | None = None) -> None:
    """Wait for the GPU, which never has anything to do."""
    calls["synchronize"] += 1
    _initialized()


def empty_cache() -> None:
    """Give cached memory back to the device; nothing if the GPU was never used."""
    calls["empty_cache"] += 1
    if _gpu:
        _initialized().empty_cache()


def device_malloc(size: int) -> None:
    """cudaMalloc, as cuBLAS, TensorRT or another process call it; the original has no such name."""
    if not _initialized().device.malloc(size):
        raise AcceleratorError("CUDA error: out of memory")


def device_free(size: int) -> None:
    """cudaFree, of what `device_malloc` took."""
    _initialized().device.release(size)


def ipc_collect() -> None:
    """Nothing is shared with other processes here."""
    calls["ipc_collect"] += 1
    _initialized()
