"""The part of torch.cuda that concerns memory, for one device."""

from __future__ import annotations

import os
from collections import Counter

from ._allocator import GIB, AcceleratorError, CachingAllocator, Device, OutOfMemoryError

__all__ = ["AcceleratorError", "OutOfMemoryError"]

# How often each function was called: for tests, the original has no such thing.
calls: Counter[str] = Counter()
_gpu: CachingAllocator | None = None


def _initialized() -> CachingAllocator:
    """The GPU; the first use creates its context, as the original does."""
    global _gpu  # noqa: PLW0603  (the original keeps its context in a global too)
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
        _gpu.empty_cache()


def ipc_collect() -> None:
    """Nothing is shared with other processes here."""
    calls["ipc_collect"] += 1
    _initialized()
