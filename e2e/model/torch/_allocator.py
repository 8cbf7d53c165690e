"""A GPU of a set size, and the caching allocator that hands out its memory.

Like the real one in what a test can tell: memory of a dropped tensor stays reserved for the next
one; a request that fits nowhere first gives unused segments back to the device and tries again;
only then is it out of memory. A segment with any part in use is never given back.
"""

from __future__ import annotations

import threading
from collections import Counter, deque

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


class OutOfMemoryError(RuntimeError):
    """The device is full."""


class AcceleratorError(RuntimeError):
    """A CUDA call failed, the allocator not involved."""


for _error in (OutOfMemoryError, AcceleratorError):
    _error.__module__ = "torch"


class Device:
    """The memory itself, shared by all who allocate on it (`malloc` is cudaMalloc)."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.used = 0
        self._lock = threading.Lock()

    @property
    def free(self) -> int:
        return self.total - self.used

    def malloc(self, size: int) -> bool:
        """Take memory; False if there is not enough."""
        with self._lock:
            fits = size <= self.free
            self.used += size if fits else 0
        return fits

    def release(self, size: int) -> None:
        """Give memory back."""
        with self._lock:
            self.used -= size


class Block:
    """A piece of a segment, in use by one tensor or free; neighbours never are both free."""

    def __init__(self, segment: list[Block], size: int) -> None:
        self.segment = segment
        self.size = size
        self.in_use = False


class CachingAllocator:
    """Segments of device memory, cut into blocks."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.stats: Counter[str] = Counter()
        self._segments: list[list[Block]] = []
        self._lock = threading.Lock()
        # A tensor may die in the middle of anything, even of `allocate` (by garbage collection):
        # its block waits here, and the next operation takes it in.
        self._returned: deque[Block] = deque()

    def allocate(self, size: int) -> Block:
        """A block for a tensor; OutOfMemoryError if there is no room."""
        wanted = max(512, _round(size, 512))
        with self._lock:
            self._take_back()
            block = self._cached(wanted) or self._reserve(wanted)
            if block is None:
                self.stats["num_alloc_retries"] += 1
                self._release_unused()
                block = self._reserve(wanted)
            if block is None:
                self.stats["num_ooms"] += 1
                raise OutOfMemoryError(self._full(size))
            _split(block, wanted)
            block.in_use = True
            self.stats["num_allocs"] += 1
            return block

    def free(self, block: Block) -> None:
        """A tensor is gone; safe to call from a finalizer."""
        self._returned.append(block)

    def empty_cache(self) -> None:
        """Give back to the device what no tensor refers to."""
        with self._lock:
            self._take_back()
            self._release_unused()

    def allocated(self) -> int:
        """Bytes in use by tensors."""
        with self._lock:
            self._take_back()
            return self._allocated()

    def reserved(self) -> int:
        """Bytes taken from the device: in use or cached."""
        with self._lock:
            return self._reserved()

    def _allocated(self) -> int:
        return sum(b.size for segment in self._segments for b in segment if b.in_use)

    def _reserved(self) -> int:
        return sum(b.size for segment in self._segments for b in segment)

    def _take_back(self) -> None:
        while self._returned:
            block = self._returned.popleft()
            block.in_use = False
            self.stats["num_frees"] += 1
            _join(block.segment)

    def _cached(self, wanted: int) -> Block | None:
        """The smallest free block that is large enough."""
        free = (b for s in self._segments for b in s if not b.in_use and b.size >= wanted)
        return min(free, key=lambda block: block.size, default=None)

    def _reserve(self, wanted: int) -> Block | None:
        """A new segment from the device; its size depends on the request as in the original."""
        if wanted <= MIB:
            size = 2 * MIB
        elif wanted < 10 * MIB:
            size = 20 * MIB
        else:
            size = _round(wanted, 2 * MIB)
        if not self.device.malloc(size):
            return None
        segment: list[Block] = []
        segment.append(Block(segment, size))
        self._segments.append(segment)
        return segment[0]

    def _release_unused(self) -> None:
        unused = [s for s in self._segments if not any(block.in_use for block in s)]
        for segment in unused:
            self._segments.remove(segment)
            self.device.release(sum(block.size for block in segment))

    def _full(self, size: int) -> str:
        allocated, reserved = self._allocated(), self._reserved()
        return (
            f"CUDA out of memory. Tried to allocate {_readable(size)}. "
            f"GPU 0 has a total capacity of {_readable(self.device.total)} "
            f"of which {_readable(self.device.free)} is free. "
            f"Including non-PyTorch memory, this process has {_readable(self.device.used)} "
            "memory in use. "
            f"Of the allocated memory {_readable(allocated)} is allocated by PyTorch, "
            f"and {_readable(reserved - allocated)} is reserved by PyTorch but unallocated. "
            "If reserved but unallocated memory is large try setting "
            "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid fragmentation.  "
            "See documentation for Memory Management  "
            "(https://pytorch.org/docs/stable/notes/cuda.html#environment-variables)"
        )


def _round(size: int, step: int) -> int:
    return -(-size // step) * step


def _split(block: Block, size: int) -> None:
    """Cut a block down to `size`; the rest becomes a free block behind it."""
    rest = block.size - size
    if rest:
        block.size = size
        block.segment.insert(block.segment.index(block) + 1, Block(block.segment, rest))


def _join(segment: list[Block]) -> None:
    """Make one of free neighbours."""
    for index in range(len(segment) - 1, 0, -1):
        left, right = segment[index - 1], segment[index]
        if not left.in_use and not right.in_use:
            left.size += right.size
            segment.remove(right)


def _readable(size: int) -> str:
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if size >= unit:
            return f"{size / unit:.2f} {name}"
    return f"{size} bytes"
